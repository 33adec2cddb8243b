//! Kernel families: what the builders of `codegen/src/kernels` make, told apart by what differs in the code of a kernel.

use std::collections::{BTreeMap, BTreeSet};
use weft_ir::plan::{Compute, Entry, Plan, Scalar, Schedule, Work};
use weft_ir::shape::{Bindings, Dim};

macro_rules! families {
    ($($(#[$doc:meta])* $name:ident),* $(,)?) => {
        /// A family.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Family { $($(#[$doc])* $name),* }

        impl Family {
            /// All of them.
            pub const ALL: &'static [Family] = &[$(Family::$name),*];
        }
    };
}

families! {
    /// A thread an element.
    Pointwise,
    /// The same with a row that an index names: an embedding, keys of a cache.
    Gather,
    /// The same into a state: a cache write.
    Scatter,
    /// Reductions of a row by a warp.
    WarpRow,
    /// Reductions of a row by a block.
    BlockRow,
    /// Skinny product.
    Gemv,
    /// Skinny product whose k several warps share.
    GemvSplit,
    /// Skinny product that draws a token from each row.
    GemvDraw,
    /// Tiles of a product on tensor cores.
    Gemm,
    /// The same with a left operand that is computed, a norm's.
    GemmLeft,
    /// Tiles of a product that draws a token from each row.
    GemmDraw,
    /// Tiles that groups of four warps multiply out of shared memory.
    GemmWarpgroup,
    /// Tiles of whole rows, with reductions over them.
    GemmRow,
    /// Attention of one token, by keys.
    AttentionRow,
    /// The same with keys that several blocks share.
    AttentionRowSplit,
    /// The same with blocks that form clusters.
    AttentionRowCluster,
    /// Attention of one token, by tiles of keys.
    AttentionGroup,
    /// The same with keys that several blocks share.
    AttentionGroupSplit,
    /// The same with blocks that form clusters.
    AttentionGroupCluster,
    /// Attention of one token by clusters that project its outputs.
    AttentionGroupProjected,
    /// Attention of one token that makes its queries and own key, by keys.
    AttentionRowMade,
    /// The same by tiles of keys.
    AttentionGroupMade,
    /// Attention of many tokens, by tiles of both.
    AttentionTile,
    /// Steps on each row: a router.
    RowSteps,
    /// Products with chosen matrices, pair by pair.
    RoutedGemv,
    /// Products with chosen matrices, by tiles.
    RoutedGemm,
    /// Pairs by their matrix.
    GroupPairs,
    /// From a decode step to the next.
    Advance,
    /// Penalties.
    Penalize,
    /// Sampling.
    Sample,
}

impl Family {
    /// The family of a work's kernel.
    ///
    /// # Panics
    /// For a schedule that is not one of the work.
    pub fn of(work: &Work, schedule: &Schedule) -> Family {
        match schedule {
            Schedule::Elementwise { .. } if scatters(work) => Family::Scatter,
            Schedule::Elementwise { .. } if gathers(work) => Family::Gather,
            Schedule::Elementwise { .. } => Family::Pointwise,
            Schedule::WarpRow { .. } => Family::WarpRow,
            Schedule::BlockRow { .. } => Family::BlockRow,
            Schedule::Gemv { split, .. } => match &work.compute {
                Compute::MatMul(m) if m.draw.is_some() => Family::GemvDraw,
                _ if *split > 1 => Family::GemvSplit,
                _ => Family::Gemv,
            },
            Schedule::Gemm { .. } => match &work.compute {
                Compute::MatMul(m) if m.row.is_some() => Family::GemmRow,
                Compute::MatMul(m) if m.draw.is_some() => Family::GemmDraw,
                Compute::MatMul(m) if m.plain_left().is_none() => Family::GemmLeft,
                _ => Family::Gemm,
            },
            Schedule::WarpgroupGemm { .. } => Family::GemmWarpgroup,
            Schedule::AttentionRow { .. } if makes_rows(work) => Family::AttentionRowMade,
            Schedule::AttentionGroup { .. } if makes_rows(work) => Family::AttentionGroupMade,
            Schedule::AttentionGroup { .. } if projects(work) => Family::AttentionGroupProjected,
            Schedule::AttentionRow { splits: 1, .. } => Family::AttentionRow,
            Schedule::AttentionRow { cluster: 1, .. } => Family::AttentionRowSplit,
            Schedule::AttentionRow { .. } => Family::AttentionRowCluster,
            Schedule::AttentionGroup { splits: 1, .. } => Family::AttentionGroup,
            Schedule::AttentionGroup { cluster: 1, .. } => Family::AttentionGroupSplit,
            Schedule::AttentionGroup { .. } => Family::AttentionGroupCluster,
            Schedule::AttentionTile { .. } => Family::AttentionTile,
            Schedule::RowSteps { .. } => Family::RowSteps,
            Schedule::RoutedGemv { .. } => Family::RoutedGemv,
            Schedule::RoutedGemm { .. } => Family::RoutedGemm,
            Schedule::GroupPairs { .. } => Family::GroupPairs,
            Schedule::AdvanceRows { .. } => Family::Advance,
            Schedule::SampleRow { .. } => match &work.compute {
                Compute::Penalize(_) => Family::Penalize,
                Compute::Sample(_) => Family::Sample,
                Compute::Loop(_)
                | Compute::MatMul(_)
                | Compute::Attention(_)
                | Compute::Steps(_)
                | Compute::Routed(_)
                | Compute::Grouping(_)
                | Compute::Advance(_) => panic!("{schedule:?} of {}", work.name),
            },
        }
    }
}

/// Whether an expression loads.
fn loads(e: &Scalar) -> bool {
    let mut found = false;
    e.visit(&mut |e| found |= matches!(e, Scalar::Load(..)));
    found
}

/// Whether attention makes the rows that it reads.
fn makes_rows(work: &Work) -> bool {
    matches!(&work.compute, Compute::Attention(a) if a.prologue.is_some())
}

/// Whether attention projects its outputs.
fn projects(work: &Work) -> bool {
    matches!(&work.compute, Compute::Attention(a) if a.projection.is_some())
}

/// Whether a loop stores where a loaded index says.
fn scatters(work: &Work) -> bool {
    let Compute::Loop(l) = &work.compute else { return false };
    l.element_stores.iter().chain(&l.row_stores).any(|s| s.index.iter().any(loads))
}

/// Whether a work loads where a loaded index says.
fn gathers(work: &Work) -> bool {
    let mut found = false;
    for scalar in work.scalars() {
        scalar.visit(&mut |e| found |= matches!(e, Scalar::Load(_, at) if at.iter().any(loads)));
    }
    found
}

/// The extents that a work's kernel goes over.
pub fn sizes(work: &Work, bind: &Bindings) -> Vec<usize> {
    let eval = |d: &Dim| d.eval(bind);
    match &work.compute {
        Compute::Loop(l) => l.domain.iter().chain(&l.reduced).map(eval).collect(),
        Compute::MatMul(m) => vec![eval(&m.m), m.columns(), m.k],
        Compute::Attention(a) => vec![eval(&a.tokens), a.kv_heads, a.group, a.head_dim, a.value_dim],
        Compute::Steps(s) => {
            [eval(&s.rows)].into_iter().chain(s.steps.iter().map(|s| s.elements())).collect()
        }
        Compute::Routed(r) => vec![eval(&r.tokens), r.picks, r.experts, r.n, r.k],
        Compute::Grouping(g) => vec![eval(&g.tokens), g.picks, g.experts],
        Compute::Penalize(p) => vec![eval(&p.rows), p.vocab],
        Compute::Sample(s) => vec![eval(&s.rows), s.vocab],
        Compute::Advance(a) => vec![eval(&a.rows), a.context],
    }
}

/// Whether a shape is no whole number of warps, tiles or vectors along some axis.
pub fn is_odd(sizes: &[usize]) -> bool {
    sizes.iter().any(|n| *n > 1 && !n.is_multiple_of(16))
}

/// The shapes that each family's kernels have.
pub type Covered = BTreeMap<Family, BTreeSet<Vec<usize>>>;

/// Adds the kernels that an entry of a plan launches, its advance among them where `loops` is set.
pub fn cover(covered: &mut Covered, plan: &Plan, entry: &Entry, loops: bool) {
    let dispatches = &plan.bodies[entry.body as usize].dispatches;
    let advance = plan.generation.as_ref().filter(|_| loops).map(|g| &g.advance);
    for d in dispatches.iter().chain(advance) {
        let (work, kernel) = (&plan.works[d.work as usize], entry.kernels[&d.work].index());
        let family = Family::of(work, &plan.kernels[kernel].schedule);
        covered.entry(family).or_default().insert(sizes(work, &entry.bind));
    }
}
