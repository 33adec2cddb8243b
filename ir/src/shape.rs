//! Shapes with symbolic dimensions.
//!
//! A step processes a ragged list of tokens, so a few extents are known only when an entry (a bucket) is
//! chosen: they are symbols, bound by [`Bindings`]. All other extents are constants.

use serde::{Deserialize, Serialize};
use std::fmt;

/// A symbolic extent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Sym {
    /// Tokens of a step, over all sequences.
    Tokens,
    /// Sequences that a step can hold.
    Seqs,
    /// Rows of the step's output: the tokens whose logits are wanted.
    Rows,
    /// Keys that a token of this entry may attend to: the longest context.
    Context,
    /// Slots of the cache, over all sequences.
    Slots,
}

impl Sym {
    /// All symbols, in the order in which kernels receive them.
    pub const ALL: [Sym; 5] = [Sym::Tokens, Sym::Seqs, Sym::Rows, Sym::Context, Sym::Slots];

    /// Lower-case name, as printed, parsed, and used for kernel parameters.
    pub fn name(self) -> &'static str {
        match self {
            Sym::Tokens => "tokens",
            Sym::Seqs => "seqs",
            Sym::Rows => "rows",
            Sym::Context => "context",
            Sym::Slots => "slots",
        }
    }

    /// The symbol of this name.
    pub fn parse(name: &str) -> Option<Sym> {
        Sym::ALL.into_iter().find(|s| s.name() == name)
    }
}

/// One extent: a constant or a symbol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Dim {
    /// Known number of elements.
    Const(usize),
    /// Bound by the entry.
    Sym(Sym),
}

impl Dim {
    /// The constant, if it is one.
    pub fn as_const(self) -> Option<usize> {
        match self {
            Dim::Const(n) => Some(n),
            Dim::Sym(_) => None,
        }
    }

    /// Extent under bindings.
    pub fn eval(self, bind: &Bindings) -> usize {
        match self {
            Dim::Const(n) => n,
            Dim::Sym(s) => bind.get(s),
        }
    }
}

impl From<usize> for Dim {
    fn from(n: usize) -> Dim {
        Dim::Const(n)
    }
}

impl From<Sym> for Dim {
    fn from(s: Sym) -> Dim {
        Dim::Sym(s)
    }
}

impl fmt::Display for Dim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Dim::Const(n) => write!(f, "{n}"),
            Dim::Sym(s) => f.write_str(s.name()),
        }
    }
}

/// Extents, outermost first; values are stored row-major.
pub type Shape = Vec<Dim>;

/// Shape as text: `[tokens, 9, 64]`.
pub fn shape_text(shape: &[Dim]) -> String {
    let parts: Vec<String> = shape.iter().map(Dim::to_string).collect();
    format!("[{}]", parts.join(", "))
}

/// Values of all symbols for one entry or one step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Bindings {
    /// [`Sym::Tokens`].
    pub tokens: usize,
    /// [`Sym::Seqs`].
    pub seqs: usize,
    /// [`Sym::Rows`].
    pub rows: usize,
    /// [`Sym::Context`].
    pub context: usize,
    /// [`Sym::Slots`].
    pub slots: usize,
}

impl Bindings {
    /// Value of a symbol.
    pub fn get(&self, s: Sym) -> usize {
        match s {
            Sym::Tokens => self.tokens,
            Sym::Seqs => self.seqs,
            Sym::Rows => self.rows,
            Sym::Context => self.context,
            Sym::Slots => self.slots,
        }
    }

    /// Extents of a shape.
    pub fn shape(&self, shape: &[Dim]) -> Vec<usize> {
        shape.iter().map(|d| d.eval(self)).collect()
    }

    /// Number of elements of a shape; the largest number where it overflows, so that nothing has room for it.
    pub fn elements(&self, shape: &[Dim]) -> usize {
        shape.iter().fold(1, |n: usize, d| n.saturating_mul(d.eval(self)))
    }
}
