//! What can go wrong while a kernel runs, and where.

use std::fmt;

/// A fault of an emulated launch.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{place}: {kind}")]
pub struct Fault {
    /// Where it happened.
    pub place: Box<Place>,
    /// What happened.
    pub kind: FaultKind,
}

/// Where a fault happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// Name of the kernel.
    pub kernel: String,
    /// Number of the statement in program order (`Kernel::statement`).
    pub statement: usize,
    /// First line of the statement as C.
    pub text: String,
    /// Block.
    pub block: [u32; 3],
    /// Thread of the block.
    pub thread: u32,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [x, y, z] = self.block;
        write!(
            f,
            "kernel `{}`, statement {} `{}`, block ({x}, {y}, {z}), thread {}",
            self.kernel, self.statement, self.text, self.thread
        )
    }
}

/// The earlier of two accesses that race.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rival {
    /// Block, in launch order.
    pub block: u32,
    /// Thread of that block.
    pub thread: u16,
    /// Whether it wrote.
    pub wrote: bool,
}

impl fmt::Display for Rival {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verb = if self.wrote { "write" } else { "read" };
        write!(f, "the {verb} of thread {} of block {}", self.thread, self.block)
    }
}

/// Kinds of faults.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FaultKind {
    /// The kernel or the launch has no meaning.
    #[error("{0}")]
    Invalid(String),
    /// An access outside an array.
    #[error("element {index} of `{array}`, which has {len}")]
    OutOfBounds {
        /// Name of the array.
        array: String,
        /// Element.
        index: i64,
        /// Elements of the array.
        len: u64,
    },
    /// A read of memory or a register that nothing has written.
    #[error("element {index} of `{array}` is read before it is written")]
    Uninitialised {
        /// Name of the array.
        array: String,
        /// Element.
        index: i64,
    },
    /// A vector access or row that is not naturally aligned.
    #[error("access of {bytes} bytes at element {index} of `{array}` is not aligned")]
    Misaligned {
        /// Name of the array.
        array: String,
        /// Element.
        index: i64,
        /// Bytes of the access.
        bytes: u32,
    },
    /// Two accesses, at least one a write, that nothing orders.
    #[error("{} of element {index} of `{array}` races with {rival}", if *.writes { "write" } else { "read" })]
    Race {
        /// Name of the array.
        array: String,
        /// Element.
        index: i64,
        /// Whether this access writes.
        writes: bool,
        /// The earlier access.
        rival: Rival,
    },
    /// A block or warp barrier that not all threads reach.
    #[error("{arrived} of {expected} threads reach a barrier")]
    DivergentBarrier {
        /// Threads that reached it.
        arrived: u32,
        /// Threads that must.
        expected: u32,
    },
    /// A warp instruction that not all lanes execute.
    #[error("{arrived} of 32 lanes execute {what}")]
    DivergentCollective {
        /// The instruction.
        what: &'static str,
        /// Lanes that executed it.
        arrived: u32,
    },
    /// A counter of blocks that is not 0 when the first one arrives.
    #[error("counter {index} of `{array}` is {value} as the first block arrives, not 0")]
    Counter {
        /// Name of the array.
        array: String,
        /// Element.
        index: i64,
        /// What it holds.
        value: u32,
    },
    /// A counter of blocks at which more or fewer arrive than it expects.
    #[error("{arrived} blocks arrive at counter {index} of `{array}`, which expects {expected}")]
    Arrivals {
        /// Name of the array.
        array: String,
        /// Element.
        index: i64,
        /// Blocks that arrived.
        arrived: u32,
        /// Blocks that this block, or the last one, expects.
        expected: u32,
    },
    /// A block that arrives twice at one counter.
    #[error("the block arrives again at counter {index} of `{array}`")]
    ArrivesAgain {
        /// Name of the array.
        array: String,
        /// Element.
        index: i64,
    },
    /// Blocks that do not agree on how many they are.
    #[error("counter {index} of `{array}` expects {expected} blocks here and {before} in the block before")]
    Expectation {
        /// Name of the array.
        array: String,
        /// Element.
        index: i64,
        /// Blocks that this block expects.
        expected: u32,
        /// Blocks that the block which arrived before expects.
        before: u32,
    },
    /// An access to the destination of an asynchronous copy that nothing has waited for.
    #[error("element {index} of `{array}` is used while an asynchronous copy to it is in flight")]
    CopyInFlight {
        /// Name of the array.
        array: String,
        /// Element.
        index: i64,
    },
    /// Data sent to a block of the cluster that is not there.
    #[error("block {rank} of a cluster of {blocks} is sent to")]
    NoSuchBlock {
        /// Number in the cluster.
        rank: i64,
        /// Blocks of the cluster.
        blocks: u32,
    },
    /// A signal that gets more or fewer bytes than it waits for: the block goes on too early, or never.
    #[error("signal `{signal}` expects {expected} bytes, and {sent} are sent")]
    SignalBytes {
        /// Name of the signal.
        signal: String,
        /// Bytes that it expects.
        expected: i64,
        /// Bytes that the blocks of the cluster have sent.
        sent: i64,
    },
    /// Data that arrives in an element which its block has used, or which other data has arrived in.
    #[error("element {index} of `{array}` is used before what is sent to it has arrived")]
    UsedBeforeArrival {
        /// Name of the array.
        array: String,
        /// Element.
        index: i64,
    },
    /// Non-constant global memory touched before the grid dependency wait.
    #[error("`{0}` is accessed before the grid dependency wait")]
    BeforeDependencyWait(String),
    /// Integer division by zero.
    #[error("integer division by zero")]
    DivisionByZero,
    /// A result that its type cannot hold.
    #[error("{0} overflows")]
    Overflow(&'static str),
    /// A loop with a step that is not positive.
    #[error("step {0} of a loop is not positive")]
    LoopStep(i64),
}

/// A fault on its way out: the machine adds the place.
#[derive(Clone, Debug)]
pub(super) struct Raised {
    pub(super) thread: u32,
    pub(super) kind: FaultKind,
}

pub(super) type Step<T> = Result<T, Raised>;

/// Raises a fault of a thread.
pub(super) fn raise<T>(thread: u32, kind: FaultKind) -> Step<T> {
    Err(Raised { thread, kind })
}
