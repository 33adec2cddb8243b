//! Names of lowering's rules: what was put into one work, and what that may do to the numbers.
//!
//! A work lists those that made it (`Work::rules`), and so do its kernel's header and `weft inspect --explain`. They
//! follow the fusions that are on, and are not turned off by themselves.

use crate::numerics::Numerics;

/// A rule of lowering.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Rule {
    /// Several elementwise ops.
    PointwiseGroup,
    /// Reductions of rows with what is before and behind them.
    RowReduction,
    /// Elementwise ops at a product's left operand.
    Prologue,
    /// Reductions of the left operand's rows in their product.
    NormPrologue,
    /// Columns of a product that one thread holds.
    PairedColumns,
    /// Elementwise ops behind a product.
    LinearEpilogue,
    /// A product that stores to a state.
    CacheWriteEpilogue,
    /// A product that draws tokens.
    DrawEpilogue,
    /// Reductions of a product's rows behind it.
    RowEpilogue,
    /// Attention.
    Attention,
    /// A router.
    FusedRouter,
    /// Products with chosen matrices.
    GroupedExperts,
    /// Several of them.
    PairedExperts,
    /// Elementwise ops behind them.
    ExpertEpilogue,
}

impl Rule {
    /// All of them, in the order of the generated page.
    pub const ALL: [Rule; 14] = [
        Rule::PointwiseGroup,
        Rule::RowReduction,
        Rule::Prologue,
        Rule::NormPrologue,
        Rule::PairedColumns,
        Rule::LinearEpilogue,
        Rule::CacheWriteEpilogue,
        Rule::DrawEpilogue,
        Rule::RowEpilogue,
        Rule::Attention,
        Rule::FusedRouter,
        Rule::GroupedExperts,
        Rule::PairedExperts,
        Rule::ExpertEpilogue,
    ];

    /// Name, class and what it puts together.
    const fn row(self) -> (&'static str, Numerics, &'static str) {
        use Numerics::{ChangesPrecision, Exact, Reassociates};
        match self {
            Rule::PointwiseGroup => ("pointwise-group", Exact, "several elementwise ops in one loop"),
            Rule::RowReduction => {
                ("row-reduction", Exact, "reductions of rows in a loop with the ops before and behind them")
            }
            Rule::Prologue => ("prologue", Exact, "elementwise ops where a product loads its left operand"),
            Rule::NormPrologue => (
                "norm-prologue",
                ChangesPrecision,
                "reductions of the left operand's rows in the kernel of their product, before or beside it",
            ),
            Rule::PairedColumns => {
                ("paired-columns", Exact, "columns of a product that are used together in one thread")
            }
            Rule::LinearEpilogue => ("linear-epilogue", Exact, "elementwise ops where a product is stored"),
            Rule::CacheWriteEpilogue => {
                ("cache-write-epilogue", Exact, "a product that is stored to cache slots")
            }
            Rule::DrawEpilogue => ("draw-epilogue", Exact, "a product whose last block draws tokens"),
            Rule::RowEpilogue => (
                "row-epilogue",
                Reassociates,
                "reductions of a product's rows where one block has whole rows of them",
            ),
            Rule::Attention => ("attention", Reassociates, "attention, with running maxima and sums"),
            Rule::FusedRouter => {
                ("fused-router", Reassociates, "a router's steps on each row, the logits' sum among them")
            }
            Rule::GroupedExperts => {
                ("grouped-experts", Exact, "products with the matrices that an index names")
            }
            Rule::PairedExperts => ("paired-experts", Exact, "several such products of one index"),
            Rule::ExpertEpilogue => {
                ("expert-epilogue", Exact, "elementwise ops where such products are stored")
            }
        }
    }

    /// Name, as in headers and explanations.
    pub const fn name(self) -> &'static str {
        self.row().0
    }

    /// What it may do to the numbers.
    pub const fn numerics(self) -> Numerics {
        self.row().1
    }

    /// What it puts together, for the generated page.
    pub const fn summary(self) -> &'static str {
        self.row().2
    }
}

#[cfg(test)]
mod tests {
    use super::Rule;
    use std::collections::BTreeSet;

    #[test]
    fn all_are_listed_once_and_agree_with_fusions_of_their_name() {
        // In the order of the enum, which ends with the last of the list.
        assert!(Rule::ALL.iter().enumerate().all(|(i, r)| *r as usize == i));
        assert_eq!(Rule::ALL.len(), Rule::ExpertEpilogue as usize + 1);
        let names: BTreeSet<&str> = Rule::ALL.iter().map(|r| r.name()).collect();
        assert_eq!(names.len(), Rule::ALL.len());
        for fusion in crate::fusion::all() {
            if let Some(rule) = Rule::ALL.iter().find(|r| r.name() == fusion.name) {
                assert_eq!(rule.numerics(), fusion.numerics, "{}", fusion.name);
            }
        }
    }
}
