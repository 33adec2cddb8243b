//! What a dispatch computes. Structured enough that code generation recognises nothing, and free of how
//! it is done (that is the [`super::Schedule`]).

use super::{Advance, Attention, Grouping, Routed, Scalar, Steps};
use crate::dtype::DType;
use crate::ids::OperandId;
use crate::scalar::Reduce;
use crate::shape::{Dim, Shape, Sym};
use serde::{Deserialize, Serialize};

/// An array that a dispatch reads or writes: type and shape, not which buffer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Operand {
    /// Name hint for the kernel's parameter.
    pub name: String,
    /// Stored element type.
    pub dtype: DType,
    /// Shape, row-major.
    pub shape: Shape,
    /// Whether it never changes while a step runs (weights, literals, inputs).
    pub constant: bool,
}

/// A store of a result: `writes[output][index] = value`, where the guard holds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Store {
    /// Position in the work's `writes`.
    pub output: u8,
    /// One index for each axis of the output.
    pub index: Vec<Scalar>,
    /// Value, rounded to the output's type.
    pub value: Scalar,
    /// Where it is false, nothing is stored.
    pub guard: Option<Scalar>,
}

/// A reduction along the reduced axis of a loop, or along k or n of a matmul.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Stage {
    /// How. `Mean` is written as a `Sum` and a division.
    pub op: Reduce,
    /// Element: an expression over the domain and the reduced axis, and earlier stages.
    pub value: Scalar,
}

/// Elementwise and row-reduction loop nest.
///
/// Coordinates `0..domain.len()` run over the domain; with a reduced axis, coordinate `domain.len()` runs
/// along it. Stages are computed in order for each point of the domain; then `element_stores` run for
/// each point and each position of the reduced axis (or, without one, each point), `row_stores` once for
/// each point.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Loop {
    /// Parallel extents.
    pub domain: Shape,
    /// Reduced extent.
    pub reduced: Option<Dim>,
    /// Reductions.
    pub stages: Vec<Stage>,
    /// Stores for each element.
    pub element_stores: Vec<Store>,
    /// Stores for each row (only with a reduced axis).
    pub row_stores: Vec<Store>,
}

/// What a matrix product makes of its whole rows before it stores them: a residual sum and a norm.
///
/// All expressions are over Coord 0 = m and Coord 1 = n.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RowEpilogue {
    /// What takes the accumulator's place, [`Scalar::Acc`] 0, in the stages and in the stores: an expression
    /// of the accumulator, computed once.
    pub value: Scalar,
    /// Reductions along n. The results, [`Scalar::Reduced`], count on from those of the product's own stages;
    /// a stage sees all earlier ones.
    pub stages: Vec<Stage>,
}

/// Sampling of one token for each row of a product whose stores make the rows' logits: what
/// [`crate::sampling`] does with the stored values.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Draw {
    /// Output that one store fills with the logits, an array [m, columns].
    pub logits: u8,
    /// Output of the tokens, an i32 array `[m]`.
    pub tokens: u8,
    /// Position of a row's token: Coord 0 = m.
    pub position: Scalar,
    /// Temperature, top-k, top-p, min-p and seed: arrays `[m]`.
    pub parameters: [OperandId; 5],
    /// Penalties on the logits, before a token is drawn from them.
    pub penalties: Option<DrawPenalties>,
}

impl Draw {
    /// The arrays that are read beside expressions.
    pub fn operands(&self) -> Vec<OperandId> {
        let penalties = self.penalties.iter().flat_map(|p| p.parameters.iter().chain([&p.history]));
        self.parameters.iter().chain(penalties).copied().collect()
    }

    /// The expressions of a row's place: its position, and its sequence's first slot.
    pub fn places(&self) -> impl Iterator<Item = &Scalar> {
        std::iter::once(&self.position).chain(self.penalties.iter().map(|p| &p.base))
    }
}

/// Penalties on a row's logits: what `Op::Penalize` does.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DrawPenalties {
    /// Tokens by slot: an i32 array `[slots]`.
    pub history: OperandId,
    /// First slot of a row's sequence: Coord 0 = m.
    pub base: Scalar,
    /// Length of the prompt, repetition and presence penalty: arrays `[m]`.
    pub parameters: [OperandId; 3],
}

/// Matrix product acc[m, j] = Σₖ a(m, k) · b[j, k], accumulated in f32, and row reductions beside it.
///
/// `a` is the prologue: an expression over Coord 0 = m and Coord 1 = k (a plain load in the simplest
/// case). The stages are reductions over k of expressions over the same coordinates (the sum of squares of a
/// norm); a stage may refer to earlier ones, and the left operand to any: it is a LayerNorm then, whose passes
/// over the row ([`MatMul::passes`]) the products wait for.
///
/// The epilogue's stores are over the points, Coord 0 = m and Coord 1 = n: point n has the `group`
/// accumulators of the rows n·group … of b, [`Scalar::Acc`], and the stages of its row,
/// [`Scalar::Reduced`]. Group 2 joins what one store needs of two rows: gate and up, or the two elements
/// that a rotation mixes. Stores with guards on ranges of Coord 1 split merged products. With a
/// [`RowEpilogue`] (and group 1) the stores also have reductions over the row that the product makes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MatMul {
    /// Rows.
    pub m: Dim,
    /// Points of a row.
    pub n: usize,
    /// Accumulators of a point: 1 or 2.
    pub group: usize,
    /// Length of the products.
    pub k: usize,
    /// Left operand.
    pub a: Scalar,
    /// Right operand: an array [n · group, k] of a float type.
    pub b: OperandId,
    /// Reductions along k.
    pub stages: Vec<Stage>,
    /// Reductions along n, over what the epilogue has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub row: Option<RowEpilogue>,
    /// Epilogue.
    pub stores: Vec<Store>,
    /// Sampling from the rows that the stores make.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub draw: Option<Draw>,
}

fn of_stores_mut(stores: &mut [Store]) -> impl Iterator<Item = &mut Scalar> {
    stores.iter_mut().flat_map(|s| s.index.iter_mut().chain([&mut s.value]).chain(&mut s.guard))
}

impl Loop {
    /// All expressions, to change.
    pub fn scalars_mut(&mut self) -> Vec<&mut Scalar> {
        let stages = self.stages.iter_mut().map(|s| &mut s.value);
        let stores = of_stores_mut(&mut self.element_stores).chain(of_stores_mut(&mut self.row_stores));
        stages.chain(stores).collect()
    }
}

impl MatMul {
    /// All expressions, to change.
    pub fn scalars_mut(&mut self) -> Vec<&mut Scalar> {
        let row = self
            .row
            .iter_mut()
            .flat_map(|r| std::iter::once(&mut r.value).chain(r.stages.iter_mut().map(|s| &mut s.value)));
        let stages = self.stages.iter_mut().map(|s| &mut s.value);
        let places = self.draw.iter_mut().flat_map(|d| {
            std::iter::once(&mut d.position).chain(d.penalties.iter_mut().map(|p| &mut p.base))
        });
        let first = std::iter::once(&mut self.a).chain(stages);
        first.chain(row).chain(of_stores_mut(&mut self.stores)).chain(places).collect()
    }

    /// Rows of the right operand.
    pub fn columns(&self) -> usize {
        self.n.saturating_mul(self.group)
    }

    /// The passes over a row of the left operand: for each stage the first in which all that it refers to is
    /// known, and the same for the left operand. All are 0 where nothing refers to a stage.
    pub fn passes(&self) -> (Vec<usize>, usize) {
        let after = |e: &Scalar, known: &[usize]| {
            let mut pass = 0;
            e.visit(&mut |e| {
                if let Scalar::Reduced(i) = e {
                    pass = pass.max(known.get(usize::from(*i)).map_or(0, |p| p + 1));
                }
            });
            pass
        };
        let mut stages = Vec::with_capacity(self.stages.len());
        for stage in &self.stages {
            stages.push(after(&stage.value, &stages));
        }
        let left = after(&self.a, &stages);
        (stages, left)
    }

    /// The operand whose elements (m, k) are the left operand, where it is not computed.
    pub fn plain_left(&self) -> Option<OperandId> {
        match &self.a {
            Scalar::Load(o, at) if at[..] == [Scalar::Coord(0), Scalar::Coord(1)] => Some(*o),
            _ => None,
        }
    }
}

/// Sampling of one token a row; reads in the order of `Op::Sample`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Sample {
    /// Rows.
    pub rows: Dim,
    /// Entries of the vocabulary.
    pub vocab: usize,
}

/// Penalties on rows of logits; reads in the order of `Op::Penalize`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Penalize {
    /// Rows.
    pub rows: Dim,
    /// Entries of the vocabulary.
    pub vocab: usize,
}

/// What is computed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Compute {
    /// Elementwise and reductions.
    Loop(Loop),
    /// Matrix product.
    MatMul(MatMul),
    /// Attention over the cache.
    Attention(Attention),
    /// Steps on each row.
    Steps(Steps),
    /// Products with chosen matrices.
    Routed(Routed),
    /// Pairs by their matrix.
    Grouping(Grouping),
    /// Penalties.
    Penalize(Penalize),
    /// Sampling.
    Sample(Sample),
    /// From a decode step to the next.
    Advance(Advance),
}

/// A work: what is computed, on which kinds of operands. Dispatches that differ in buffers only share one.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Work {
    /// Name, a C identifier, unique in a plan: `rmsnorm`, `gate_proj_matmul`.
    pub name: String,
    /// Computation.
    pub compute: Compute,
    /// Arrays read; [`OperandId`]s are positions in it.
    pub reads: Vec<Operand>,
    /// Arrays written.
    pub writes: Vec<Operand>,
    /// Writes that are the same buffer as a read (state updated in place): (position in writes, in reads).
    pub in_place: Vec<(u8, OperandId)>,
    /// Graph ops it came from, in topological order, as keywords.
    pub ops: Vec<String>,
    /// Rules that made it, in order.
    pub rules: Vec<String>,
}

impl Work {
    /// Symbols whose values the kernel needs, in the order of [`Sym::ALL`].
    pub fn syms(&self) -> Vec<Sym> {
        let mut used = std::collections::BTreeSet::new();
        let mut dim = |d: &Dim| {
            if let Dim::Sym(s) = d {
                used.insert(*s);
            }
        };
        match &self.compute {
            Compute::Loop(l) => l.domain.iter().chain(&l.reduced).for_each(&mut dim),
            Compute::MatMul(m) => dim(&m.m),
            Compute::Attention(a) => dim(&a.tokens),
            Compute::Steps(s) => dim(&s.rows),
            Compute::Routed(r) => dim(&r.tokens),
            Compute::Grouping(g) => dim(&g.tokens),
            Compute::Penalize(p) => dim(&p.rows),
            Compute::Sample(s) => dim(&s.rows),
            Compute::Advance(a) => dim(&a.rows),
        }
        // Strides of an operand are products of all its extents but the outermost.
        self.reads.iter().chain(&self.writes).flat_map(|o| o.shape.iter().skip(1)).for_each(&mut dim);
        self.scalars().into_iter().for_each(|s| {
            s.visit(&mut |e| {
                if let Scalar::Dim(sym) = e {
                    used.insert(*sym);
                }
            });
        });
        used.into_iter().collect()
    }

    /// All expressions.
    pub fn scalars(&self) -> Vec<&Scalar> {
        fn of(stores: &[Store]) -> impl Iterator<Item = &Scalar> {
            stores.iter().flat_map(|s| s.index.iter().chain([&s.value]).chain(&s.guard))
        }
        fn of_stages(stages: &[Stage]) -> impl Iterator<Item = &Scalar> {
            stages.iter().map(|s| &s.value)
        }
        match &self.compute {
            Compute::Loop(l) => {
                of_stages(&l.stages).chain(of(&l.element_stores)).chain(of(&l.row_stores)).collect()
            }
            Compute::MatMul(m) => {
                let row = m.row.iter().flat_map(|r| std::iter::once(&r.value).chain(of_stages(&r.stages)));
                let stages = of_stages(&m.stages).chain(row);
                let draw = m.draw.iter().flat_map(Draw::places);
                std::iter::once(&m.a).chain(stages).chain(of(&m.stores)).chain(draw).collect()
            }
            Compute::Attention(a) => {
                let made = a.prologue.iter().flat_map(|p| {
                    let rows = p.query.scalars().chain(p.key.scalars());
                    rows.chain(of(std::slice::from_ref(&p.keep)))
                });
                let own = [&a.slot, &a.length, &a.score].into_iter().chain(&a.sink);
                let projected = a.projection.iter().map(|p| &p.value);
                own.chain(of(&a.stores)).chain(made).chain(projected).collect()
            }
            Compute::Steps(s) => s.steps.iter().map(|s| s.kind.value(s.shape.len()).0).collect(),
            Compute::Routed(r) => of(&r.stores).collect(),
            Compute::Grouping(_) | Compute::Penalize(_) | Compute::Sample(_) | Compute::Advance(_) => {
                Vec::new()
            }
        }
    }
}
