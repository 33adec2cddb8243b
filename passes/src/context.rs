//! What all passes share: options, target, timings and dumps.

use crate::fusion::BodyContracts;
use crate::numerics::Selection;
use crate::schedule::database::Database;
use std::sync::Arc;
use std::time::{Duration, Instant};
use weft_ir::dtype::DType;
use weft_ir::target::Target;

/// Text of a dump that is as after the pass before.
pub const UNCHANGED: &str = "(unchanged)\n";

/// Names of the dumps, in order: passes, `eqsat-…` for a form of the step.
pub const DUMPS: [&str; 15] = [
    "build",
    "eqsat",
    "eqsat-encode",
    "eqsat-decode",
    "eqsat-batch",
    "eqsat-short",
    "eqsat-prefill",
    "lower",
    "prologues",
    "projections",
    "siblings",
    "generation",
    "schedule",
    "memory-plan",
    "launch",
];

/// What a user chooses.
#[derive(Clone, Debug)]
pub struct Options {
    /// GPU family.
    pub target: &'static Target,
    /// Type of activations and weights; the graph was built with it.
    pub dtype: DType,
    /// 0: one kernel an op; 1: pointwise ops and reductions share loops; 2: also epilogues and attention.
    pub opt_level: u8,
    /// Longest context of a sequence, in tokens.
    pub max_seq: usize,
    /// Most sequences of a step.
    pub max_batch: usize,
    /// Rules and fusions that are on.
    pub selection: Selection,
    /// Whether to keep the IR's text after each pass.
    pub dump: bool,
    /// Measured schedules.
    pub schedules: Arc<Database>,
}

/// Time a pass took.
#[derive(Clone, Debug)]
pub struct PassTime {
    /// Name of the pass.
    pub name: &'static str,
    /// Wall-clock time.
    pub time: Duration,
}

/// State of a compilation.
#[derive(Debug)]
pub struct Context {
    /// Options.
    pub options: Options,
    /// Times of the passes, in order.
    pub times: Vec<PassTime>,
    /// What equality saturation did, for each form of the step.
    pub reports: Vec<crate::eqsat::Report>,
    /// What became of the fusions, for each form of the step; from level 2.
    pub contracts: Vec<BodyContracts>,
    /// IR after each pass, when dumps are wanted: (pass, text).
    pub dumps: Vec<(&'static str, String)>,
}

impl Context {
    /// A fresh compilation.
    pub fn new(options: Options) -> Self {
        Context { options, times: Vec::new(), reports: Vec::new(), contracts: Vec::new(), dumps: Vec::new() }
    }

    /// Runs a pass, timed.
    pub fn timed<T>(&mut self, name: &'static str, run: impl FnOnce(&mut Self) -> T) -> T {
        let start = Instant::now();
        let out = run(self);
        self.times.push(PassTime { name, time: start.elapsed() });
        out
    }

    /// Keeps the IR's text after a pass, when dumps are wanted.
    pub fn dump(&mut self, name: &'static str, text: impl FnOnce() -> String) {
        if self.options.dump {
            debug_assert!(DUMPS.contains(&name), "{name} is not in DUMPS");
            self.dumps.push((name, text()));
        }
    }

    /// Keeps the IR's text after a pass, or that it is as it was after an earlier one. Where the earlier one changed
    /// nothing either, its text is that of the dump before it.
    pub fn dump_changed(&mut self, name: &'static str, before: &'static str, text: impl FnOnce() -> String) {
        self.dump(name, text);
        let Some(((_, text), earlier)) = self.dumps.split_last_mut() else { return };
        let from = earlier.iter().rposition(|(pass, _)| *pass == before);
        let until = earlier.iter().take(from.map_or(0, |i| i + 1));
        if until.rev().find(|(_, kept)| kept != UNCHANGED).is_some_and(|(_, last)| last == text) {
            *text = UNCHANGED.into();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Context, Options, UNCHANGED};
    use weft_ir::dtype::DType;
    use weft_ir::target::Target;

    fn context(dump: bool) -> Context {
        Context::new(Options {
            target: Target::parse("sm_90").expect("sm_90"),
            dtype: DType::BF16,
            opt_level: 2,
            max_seq: 64,
            max_batch: 1,
            selection: Default::default(),
            dump,
            schedules: Default::default(),
        })
    }

    #[test]
    fn several_passes_that_change_nothing_are_all_unchanged() {
        let mut c = context(true);
        c.dump("lower", || "a".into());
        c.dump_changed("siblings", "lower", || "a".into());
        c.dump_changed("generation", "siblings", || "a".into());
        c.dump_changed("schedule", "generation", || "b".into());
        c.dump_changed("launch", "schedule", || "a".into());
        let texts: Vec<&str> = c.dumps.iter().map(|(_, text)| text.as_str()).collect();
        assert_eq!(texts, ["a", UNCHANGED, UNCHANGED, "b", "a"]);
        let mut c = context(false);
        c.dump_changed("siblings", "lower", || unreachable!("no dump is wanted"));
        assert!(c.dumps.is_empty());
    }
}
