//! How far a kernel may be from the reference.

/// How far a kernel was from the oracle.
#[derive(Clone, Debug)]
pub struct Distance {
    /// Kernel.
    pub kernel: String,
    /// Root mean square difference of the kernel's result to the f64 reference.
    pub kernel_rmse: f64,
    /// The same of the rounded reference.
    pub rounded_rmse: f64,
    /// One unit in the last place at the result's root mean square.
    pub ulp: f64,
}

impl Distance {
    /// At most twice the rounded reference's distance, with a floor of one ulp.
    pub fn is_close(&self) -> bool {
        self.kernel_rmse <= (2.0 * self.rounded_rmse).max(self.ulp)
    }
}
