//! Rewrite rules, by family. A rule is a pattern, what it needs to hold, and what it adds.

mod linear;
mod norm;

use super::analysis::{Block, Types};
use super::language::Node;
use crate::numerics::Numerics;
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
    /// Before → after, for the generated page.
    pub summary: &'static str,
    /// Pattern of the class it looks at.
    pub pattern: &'static str,
    /// What follows.
    pub apply: Apply,
}

/// Stages of rules: each saturates before the next begins, because merging takes the paired forms where
/// they exist.
pub fn stages() -> Vec<Vec<Rule>> {
    vec![
        vec![linear::PAIR_ROTARY_HALVES],
        vec![linear::MERGE_SHARED_INPUT],
        vec![linear::PAIR_GATED],
        vec![norm::SCALE_AFTER_LINEAR],
    ]
}

/// All rules.
pub fn all() -> Vec<Rule> {
    stages().into_iter().flatten().collect()
}

struct Act(Apply);

impl Applier<Node, Types> for Act {
    fn apply_one(
        &self,
        egraph: &mut Block,
        class: Id,
        subst: &Subst,
        _ast: Option<&PatternAst<Node>>,
        rule: Symbol,
    ) -> Vec<Id> {
        let equal = (self.0)(egraph, class, subst).unwrap_or_default();
        equal.into_iter().filter(|(a, b)| egraph.union_trusted(*a, *b, rule)).map(|(a, _)| a).collect()
    }
}

impl Rule {
    /// As egg's rewrite.
    ///
    /// # Errors
    /// A pattern that does not parse.
    pub fn rewrite(&self) -> Result<Rewrite<Node, Types>, String> {
        let pattern: egg::Pattern<Node> =
            self.pattern.parse().map_err(|e| format!("rule {}: {e}", self.name))?;
        Rewrite::new(self.name, pattern, Act(self.apply)).map_err(|e| format!("rule {}: {e}", self.name))
    }
}

/// The class that a pattern variable stands for.
fn var(subst: &Subst, name: &str) -> Option<Id> {
    subst.get(name.parse().ok()?).copied()
}
