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
    /// Elements of the result.
    pub elements: usize,
}

/// A result of fewer elements may be far by chance.
const FEW: usize = 64;

impl Distance {
    /// At most twice the rounded reference's distance, with a floor of one ulp.
    pub fn is_close(&self) -> bool {
        self.kernel_rmse <= (2.0 * self.rounded_rmse).max(self.ulp)
    }
}

impl Distance {
    /// The same over several results of a kernel, each element counted once.
    ///
    /// # Panics
    /// When there are none.
    pub fn together(all: &[&Distance]) -> Distance {
        let elements = all.iter().map(|d| d.elements).sum();
        let mean = |of: fn(&Distance) -> f64| {
            let squares: f64 = all.iter().map(|d| of(d) * of(d) * d.elements as f64).sum();
            (squares / elements as f64).sqrt()
        };
        Distance {
            kernel: all[0].kernel.clone(),
            kernel_rmse: mean(|d| d.kernel_rmse),
            rounded_rmse: mean(|d| d.rounded_rmse),
            ulp: mean(|d| d.ulp),
            elements,
        }
    }
}

/// The results that are too far. A kernel's results of few elements are looked at together.
pub fn too_far(all: &[Distance]) -> Vec<Distance> {
    let mut far: Vec<Distance> = Vec::new();
    for d in all.iter().filter(|d| !d.is_close()) {
        let few = |other: &&Distance| other.kernel == d.kernel && other.elements < FEW;
        let seen = match d.elements < FEW {
            true => Distance::together(&all.iter().filter(few).collect::<Vec<_>>()),
            false => d.clone(),
        };
        if !seen.is_close() && !far.iter().any(|f| f.kernel == seen.kernel) {
            far.push(seen);
        }
    }
    far
}
