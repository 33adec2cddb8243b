//! Faults of kernel IR.

/// A fault of a kernel.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}{kind}", place(.statement))]
pub struct Fault {
    /// Number of the statement in program order (see [`crate::kernel::Kernel::statement`]); `None` for the header.
    pub statement: Option<usize>,
    /// What is wrong.
    pub kind: FaultKind,
}

fn place(statement: &Option<usize>) -> String {
    statement.map_or_else(String::new, |n| format!("statement {n}: "))
}

/// Kinds of faults.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FaultKind {
    /// Name, block size or shared arrays that no kernel can have.
    #[error("{0}")]
    Header(String),
    /// Types that do not fit.
    #[error("{0}")]
    Type(String),
    /// A variable used outside the block that declares it, or declared twice.
    #[error("{0}")]
    Scope(String),
    /// Assignment to a constant or loop variable.
    #[error("`{0}` is assigned but not mutable")]
    Immutable(String),
    /// An access that the parameter does not allow.
    #[error("{0}")]
    Access(String),
    /// A literal index outside its array.
    #[error("index {index} is outside `{array}` of {len} elements")]
    OutOfRange {
        /// Name of the array.
        array: String,
        /// First or last index touched.
        index: i64,
        /// Elements of the array.
        len: u32,
    },
    /// A register array indexed by something unrolling does not make constant.
    #[error("register array `{0}` is indexed by a value that is not constant after unrolling")]
    DynamicIndex(String),
    /// A vector access or asynchronous copy that is not 4, 8 or 16 bytes of whole elements.
    #[error("vector access of {0} bytes, must be 4, 8 or 16")]
    VectorWidth(u32),
    /// A fully unrolled loop with bounds that are not constant.
    #[error("loop over `{0}` is unrolled in full but its bounds are not constant")]
    Unroll(String),
    /// A barrier or collective in a branch or loop that threads take differently.
    #[error("{0} under a condition that differs between threads")]
    Divergent(&'static str),
    /// An operand that all threads of a block must agree on, and that is made from what differs between them.
    #[error("{0} differs between the threads of a block")]
    Disagreement(&'static str),
    /// Non-constant global memory touched before the dependency wait.
    #[error("`{0}` is accessed before the grid dependency wait")]
    BeforeDependencyWait(String),
    /// A dependency wait that some path may skip.
    #[error("grid dependency wait inside a branch or loop")]
    ConditionalDependencyWait,
    /// What all blocks of a cluster do together, inside a branch or loop.
    #[error("{0} inside a branch or loop")]
    ConditionalCluster(&'static str),
    /// Blocks of a cluster that do not agree on when something is sent.
    #[error("{0}")]
    Signal(String),
}

impl FaultKind {
    /// Whether the kernel has no meaning (ill-typed or ill-scoped), rather than a wrong one that an
    /// emulator can run and observe.
    pub fn is_structural(&self) -> bool {
        match self {
            FaultKind::Header(_)
            | FaultKind::Type(_)
            | FaultKind::Scope(_)
            | FaultKind::Immutable(_)
            | FaultKind::Access(_)
            | FaultKind::VectorWidth(_)
            | FaultKind::ConditionalCluster(_) => true,
            FaultKind::OutOfRange { .. }
            | FaultKind::DynamicIndex(_)
            | FaultKind::Unroll(_)
            | FaultKind::Divergent(_)
            | FaultKind::Disagreement(_)
            | FaultKind::BeforeDependencyWait(_)
            | FaultKind::ConditionalDependencyWait
            | FaultKind::Signal(_) => false,
        }
    }
}
