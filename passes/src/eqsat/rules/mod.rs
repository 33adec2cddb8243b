//! Rewrite rules, by family. A rule is a pattern, what it needs to hold, and what it adds.

mod algebra;
mod latent;
mod linear;
mod movement;
mod norm;

use super::analysis::{Block, Record, Types};
use super::language::Node;
use crate::numerics::{Numerics, Selection};
use egg::{Applier, Id, PatternAst, Rewrite, Subst, Symbol};

/// Adds what the rule knows to be equal to the matched class; `None` when the rule does not hold there.
pub type Apply = fn(&mut Block, Id, &Subst) -> Option<Vec<(Id, Id)>>;

/// A rewrite rule.
#[derive(Clone)]
pub struct Rule {
    /// Name, as in reports and `--disable`.
    pub name: &'static str,
    /// Numerics class.
    pub numerics: Numerics,
    /// Rules without which it is off, because it does their work too.
    pub needs: &'static [&'static str],
    /// Before → after, for the generated page.
    pub summary: &'static str,
    /// Patterns of the class it looks at.
    pub patterns: &'static [&'static str],
    /// What follows.
    pub apply: Apply,
}

/// Stages of rules: each saturates before the next begins, because merging takes the paired forms where
/// they exist.
pub fn stages() -> Vec<Vec<Rule>> {
    vec![
        vec![
            movement::IDENTITY,
            movement::RESHAPES,
            movement::TRANSPOSES,
            movement::SLICES,
            movement::SLICE_OF_CONCAT,
            movement::CONCAT_OF_SLICES,
            movement::CASTS,
            algebra::TIMES_ONE,
            algebra::FOLD,
            algebra::NEGATIONS,
            latent::ABSORB,
        ],
        vec![linear::PAIR_ROTARY_HALVES, linear::PAIR_GATED],
        vec![linear::MERGE_SHARED_INPUT],
        vec![norm::SCALE_AFTER_LINEAR],
    ]
}

/// All rules.
pub fn all() -> Vec<Rule> {
    stages().into_iter().flatten().collect()
}

struct Act {
    rule: &'static str,
    numerics: Numerics,
    apply: Apply,
}

impl Applier<Node, Types> for Act {
    fn apply_one(
        &self,
        egraph: &mut Block,
        class: Id,
        subst: &Subst,
        _ast: Option<&PatternAst<Node>>,
        rule: Symbol,
    ) -> Vec<Id> {
        let mut changed = Vec::new();
        for (class, form) in (self.apply)(egraph, class, subst).unwrap_or_default() {
            let node = egraph[form].nodes.first().cloned();
            if egraph.union_trusted(class, form, rule) {
                let (rule, numerics) = (self.rule, self.numerics);
                egraph.analysis.log.extend(node.map(|node| Record { rule, numerics, class, node }));
                changed.push(class);
            }
        }
        changed
    }
}

impl Rule {
    /// Whether a compilation may use it.
    pub(super) fn is_on(&self, selection: &Selection) -> bool {
        let named = |name: &&str| selection.allows(name, self.numerics);
        named(&self.name) && self.needs.iter().all(named)
    }

    /// As egg's rewrites, one a pattern, named `NAME`, `NAME#1`, ….
    ///
    /// # Errors
    /// A pattern that does not parse.
    pub fn rewrites(&self) -> Result<Vec<Rewrite<Node, Types>>, String> {
        let one = |(i, pattern): (usize, &&str)| {
            let fault = |e: String| format!("rule {}: {e}", self.name);
            let parsed: egg::Pattern<Node> = pattern.parse().map_err(|e| fault(format!("{e}")))?;
            let act = Act { rule: self.name, numerics: self.numerics, apply: self.apply };
            Rewrite::new(self.egg_name(i), parsed, act).map_err(fault)
        };
        self.patterns.iter().enumerate().map(one).collect()
    }

    /// Name of the rewrite of a pattern.
    pub(super) fn egg_name(&self, pattern: usize) -> String {
        if pattern == 0 { self.name.into() } else { format!("{}#{pattern}", self.name) }
    }
}

/// The class that a pattern variable stands for.
fn var(subst: &Subst, name: &str) -> Option<Id> {
    subst.get(name.parse().ok()?).copied()
}
