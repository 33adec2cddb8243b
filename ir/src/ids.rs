//! Typed ids: an index is never a bare integer, so ids of different things cannot be mixed up.

use serde::{Deserialize, Serialize};
use std::fmt;

macro_rules! typed_id {
    ($(#[$doc:meta])* $name:ident, $prefix:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub u32);

        impl $name {
            /// Position in the list that this id indexes.
            pub fn index(self) -> usize {
                self.0 as usize
            }

            /// The id of position `index`.
            pub fn new(index: usize) -> Self {
                Self(index as u32)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($prefix, "{}"), self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }
    };
}

typed_id!(/** A node of a graph, which is also its one result value. */ NodeId, "%");
typed_id!(/** A buffer of a plan. */ BufferId, "b");
typed_id!(/** A dispatch of an entry of a plan. */ DispatchId, "d");
typed_id!(/** A kernel of a plan: code shared by dispatches. */ KernelId, "k");
typed_id!(/** An operand of a dispatch: a position in its list of reads. */ OperandId, "in");
typed_id!(/** A variable (register or register array) of a kernel. */ VarId, "v");
typed_id!(/** A parameter of a kernel. */ ParamId, "p");
typed_id!(/** A shared-memory array of a kernel. */ SharedId, "s");
typed_id!(/** A signal of a kernel. */ SignalId, "signal");
typed_id!(/** A ring of stages of a kernel. */ RingId, "ring");
