//! Which rules are on: by name, and by what they do to the numbers.

use std::fmt;

/// What a rule does to the numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Numerics {
    /// Same rounding points and order of reductions.
    Exact,
    /// Same precision, other order.
    Reassociates,
    /// Rounds elsewhere.
    ChangesPrecision,
}

impl Numerics {
    /// All classes, from the strictest.
    pub const ALL: [Numerics; 3] = [Numerics::Exact, Numerics::Reassociates, Numerics::ChangesPrecision];

    /// As on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Numerics::Exact => "exact",
            Numerics::Reassociates => "reassociate",
            Numerics::ChangesPrecision => "full",
        }
    }
}

impl fmt::Display for Numerics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The rules that a compilation may use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Selection {
    /// Rules that are off, by name.
    pub disabled: Vec<String>,
    /// The most that a rule may do to the numbers.
    pub numerics: Numerics,
    /// Order of the stages of rewriting, by position; empty for their own. Any order is right, but not as fast.
    pub stages: Vec<usize>,
}

impl Default for Selection {
    fn default() -> Self {
        Selection { disabled: Vec::new(), numerics: Numerics::ChangesPrecision, stages: Vec::new() }
    }
}

impl Selection {
    /// All rules but these.
    pub fn without(disabled: &[&str]) -> Selection {
        Selection { disabled: disabled.iter().map(|d| (*d).to_string()).collect(), ..Selection::default() }
    }

    /// Stages of rewriting in the order that is asked for, each once.
    pub fn order<T>(&self, stages: Vec<T>) -> Vec<T> {
        let mut all: Vec<Option<T>> = stages.into_iter().map(Some).collect();
        let named: Vec<T> = self.stages.iter().filter_map(|&i| all.get_mut(i)?.take()).collect();
        named.into_iter().chain(all.into_iter().flatten()).collect()
    }

    /// Whether a rule of this name and class is on.
    pub fn allows(&self, name: &str, class: Numerics) -> bool {
        class <= self.numerics && !self.disabled.iter().any(|d| d == name)
    }
    /// Why one of this name is off.
    pub(crate) fn why_off(&self, name: &str) -> String {
        match self.disabled.iter().any(|d| d == name) {
            true => "it is disabled".into(),
            false => format!("--numerics {} leaves it out", self.numerics),
        }
    }
}
