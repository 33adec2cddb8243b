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
            self.dumps.push((name, text()));
        }
    }

    /// Keeps the IR's text after a pass, or that it is as it was after an earlier one.
    pub fn dump_changed(&mut self, name: &'static str, before: &'static str, text: impl FnOnce() -> String) {
        self.dump(name, text);
        let last = self.dumps.iter().rfind(|(pass, _)| *pass == before).map(|(_, text)| text.clone());
        if let Some((_, text)) = self.dumps.last_mut().filter(|(_, text)| last.as_ref() == Some(text)) {
            *text = UNCHANGED.into();
        }
    }
}
