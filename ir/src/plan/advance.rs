//! Generation: decode steps that follow each other on the device, and what runs between them.

use super::Dispatch;
use crate::dtype::DType;
use crate::generation::MAX_STOP_TOKENS;
use crate::graph::Input;
use crate::ids::DispatchId;
use crate::plan::{BufferKind, EdgeKind};
use crate::shape::{Dim, Shape, Sym};
use serde::{Deserialize, Serialize};

/// An array of a generation that is no input of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Control {
    /// `[rows]` i32: tokens that a row may still have; 0 when it ended or is padding.
    Remaining,
    /// `[1 + MAX_STOP_TOKENS]` i32: how many stop tokens there are, then they.
    StopTokens,
    /// `[1]` i32: steps done.
    Step,
    /// `[rows]` i32, in host memory, written by the host at any time: not 0 ends the row.
    Cancel,
    /// `[max_seq, rows]` i32, in host memory, read by the host at any time: the token that each step made of each
    /// row, and `generation::EMPTY` where there is none (yet).
    Stream,
}

impl Control {
    /// All, in order.
    pub const ALL: [Control; 5] =
        [Control::Remaining, Control::StopTokens, Control::Step, Control::Cancel, Control::Stream];

    /// Lower-case name, as in kernels.
    pub fn name(self) -> &'static str {
        match self {
            Control::Remaining => "remaining",
            Control::StopTokens => "stop_tokens",
            Control::Step => "step",
            Control::Cancel => "cancel",
            Control::Stream => "stream",
        }
    }

    /// Shape in a plan of this longest context; elements are i32.
    pub fn shape(self, max_seq: usize) -> Shape {
        let rows = Dim::Sym(Sym::Rows);
        match self {
            Control::Remaining | Control::Cancel => vec![rows],
            Control::StopTokens => vec![Dim::Const(1 + MAX_STOP_TOKENS)],
            Control::Step => vec![Dim::Const(1)],
            Control::Stream => vec![Dim::Const(max_seq), rows],
        }
    }

    /// Element type.
    pub fn dtype(self) -> DType {
        DType::I32
    }

    /// Whether it lies in host memory that the device sees.
    pub fn on_host(self) -> bool {
        match self {
            Control::Cancel | Control::Stream => true,
            Control::Remaining | Control::StopTokens | Control::Step => false,
        }
    }
}

/// What follows a decode step: see [`crate::generation::advance`]. Operands are those of [`Advance::reads`] and
/// [`Advance::writes`]. The kernel's last parameter is the loop's condition: whether a row is left.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Advance {
    /// Rows; each has one token.
    pub rows: Dim,
    /// Longest context of a sequence.
    pub context: usize,
}

impl Advance {
    /// Buffers read, in order.
    pub fn reads() -> [BufferKind; 3] {
        [
            BufferKind::Output("tokens".into()),
            BufferKind::Control(Control::StopTokens),
            BufferKind::Control(Control::Cancel),
        ]
    }

    /// Buffers changed in place, in order; of the stream only the step's row.
    pub fn writes() -> [BufferKind; 6] {
        [
            BufferKind::Input(Input::TokenIds),
            BufferKind::Input(Input::Positions),
            BufferKind::Input(Input::Slots),
            BufferKind::Control(Control::Remaining),
            BufferKind::Control(Control::Step),
            BufferKind::Control(Control::Stream),
        ]
    }
}

/// How decode steps follow each other on the device: after a body's launches the advance, again and again
/// while it says so. It is no launch of the body, since a single step goes without it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Generation {
    /// The advance, on buffers.
    pub advance: Dispatch,
    /// The bodies of decode steps.
    pub bodies: Vec<GeneratingBody>,
}

impl Generation {
    /// The launches of a body that the advance waits for; `None` where it is no body of decode steps.
    pub fn after(&self, body: u32) -> Option<&[(DispatchId, EdgeKind)]> {
        self.bodies.iter().find(|b| b.body == body).map(|b| &b.after[..])
    }
}

/// A body of decode steps that generations run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct GeneratingBody {
    /// Its position in [`super::Plan::bodies`].
    pub body: u32,
    /// Launches of the body that it waits for, transitively reduced. The next step waits for it: iterations of a
    /// loop follow each other.
    pub after: Vec<(DispatchId, EdgeKind)>,
}
