//! What holds of every valid graph: its text reads back, it compiles, and every plan computes what it does
//! ([`super::judge`]), on the emulator too ([`super::kernels`]).
//!
//! The plans compared are a list of [`Variant`]s: options of the compiler (level, and whatever else can be
//! chosen).

use super::judge::About;
use super::kernels;
use super::make::{MAX_BATCH, MAX_SEQ};
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use weft_ir::dtype::DType;
use weft_ir::graph::{Graph, parse};
use weft_ir::plan::Plan;
use weft_ir::target::Target;
use weft_ir::verify;
use weft_passes::{Options, Selection};

/// One way to compile.
#[derive(Clone, Debug)]
pub struct Variant {
    /// Name in reports: `level 2`, `level 2 without rope`.
    pub name: String,
    /// Options.
    pub options: Options,
}

/// Options of a level for the sizes that random graphs have.
///
/// # Panics
/// Never: the target exists.
pub fn options(opt_level: u8) -> Options {
    let target = Target::parse("sm_90").unwrap_or_else(|e| panic!("{e}"));
    // The type is that of reports: graphs say their own.
    Options {
        target,
        dtype: DType::BF16,
        opt_level,
        max_seq: MAX_SEQ,
        max_batch: MAX_BATCH,
        selection: Default::default(),
        dump: false,
        schedules: Default::default(),
    }
}

/// All levels.
pub fn levels() -> Vec<Variant> {
    (0..=2).map(|l| Variant { name: format!("level {l}"), options: options(l) }).collect()
}

/// The highest level without some rules, with the stages of rewriting in an order.
pub fn without(rules: &[&str], stages: Vec<usize>) -> Variant {
    Variant {
        name: format!("level 2 without {}, stages {stages:?}", rules.join(", ")),
        options: Options { selection: Selection { stages, ..Selection::without(rules) }, ..options(2) },
    }
}

/// What a failure is about: the shrinker keeps it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    /// The graph does not verify: a fault of the generator.
    Verify,
    /// Its text does not read back.
    Text,
    /// The graph interpreter refuses it.
    Reference,
    /// It does not compile.
    Compile,
    /// The plan's text does not read back.
    PlanText,
    /// The plan does not run.
    Run,
    /// Another result in f64.
    F64,
    /// Another result in f32.
    F32,
    /// Too far a result when rounding to stored types.
    Rounded,
    /// A kernel faults on the emulator, or is too far from the reference.
    Emulator,
    /// Something panicked.
    Panic,
}

/// A failure.
#[derive(Clone, Debug)]
pub struct Failure {
    /// What it is about.
    pub stage: Stage,
    /// Position of the variant, where it is about one.
    pub variant: Option<usize>,
    /// What is wrong.
    pub what: String,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {}", self.stage, self.what)
    }
}

/// The rule that a graph's results were held to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Judged {
    /// All of them to the rule of every kernel.
    Plain,
    /// Some, of few elements, to the same rule on the mean of several inputs.
    OnAverage,
    /// Some, which the graph's own roundings move by more than a unit in the last place, to what these do.
    ByNoise,
}

/// What is checked of a graph.
#[derive(Clone, Debug)]
pub struct Check {
    /// Ways to compile, compared with the graph.
    pub variants: Vec<Variant>,
    /// Rules and fusions that may be disabled, each in a quarter of the graphs.
    pub rules: Vec<&'static str>,
    /// Variants whose kernels run on the emulator, by position.
    pub emulated: Vec<usize>,
    /// Seed of weights, inputs and states.
    pub data: u64,
}

impl Check {
    /// All levels, without the emulator.
    pub fn new(data: u64) -> Check {
        let rules = weft_passes::names();
        Check { variants: levels(), rules, emulated: Vec::new(), data }
    }

    /// The same for one variant, or none.
    pub fn only(&self, variant: Option<usize>, stage: Stage) -> Check {
        let variants = variant.map_or(Vec::new(), |v| vec![self.variants[v].clone()]);
        let emulated = if stage == Stage::Emulator { vec![0] } else { Vec::new() };
        Check { variants, rules: Vec::new(), emulated, data: self.data }
    }

    /// Checks a graph; by which rule.
    ///
    /// # Errors
    /// The first failure.
    pub fn run(&self, graph: &Graph) -> Result<Judged, Failure> {
        let all = || self.unguarded(graph);
        catch_unwind(AssertUnwindSafe(all)).unwrap_or_else(|payload| {
            let text = payload.downcast_ref::<String>().cloned();
            let text = text.or_else(|| payload.downcast_ref::<&str>().map(|s| (*s).to_string()));
            Err(Failure { stage: Stage::Panic, variant: None, what: text.unwrap_or_default() })
        })
    }

    fn unguarded(&self, graph: &Graph) -> Result<Judged, Failure> {
        let fail = |stage: Stage, what: String| Failure { stage, variant: None, what };
        verify::graph::verify(graph).map_err(|faults| {
            let lines: Vec<String> = faults.iter().map(ToString::to_string).collect();
            fail(Stage::Verify, lines.join("; "))
        })?;
        match parse(&graph.to_string()) {
            Ok(read) if read == *graph => {}
            Ok(_) => return Err(fail(Stage::Text, "it reads back as another graph".into())),
            Err(e) => return Err(fail(Stage::Text, e.to_string())),
        }
        let about = About::new(graph, self.data).map_err(|e| fail(Stage::Reference, e))?;
        let mut judged = Judged::Plain;
        for (v, variant) in self.variants.iter().enumerate() {
            let fail = |stage: Stage, what: String| {
                let what = format!("{}: {what}", variant.name);
                Failure { stage, variant: Some(v), what }
            };
            let plan = weft_passes::compile(graph, variant.options.clone())
                .map_err(|e| fail(Stage::Compile, e.to_string()))?
                .plan;
            let text = plan.to_ron().map_err(|e| fail(Stage::PlanText, e.to_string()))?;
            match Plan::from_ron(&text) {
                Ok(read) if read == plan => {}
                Ok(_) => return Err(fail(Stage::PlanText, "it reads back as another plan".into())),
                Err(e) => return Err(fail(Stage::PlanText, e.to_string())),
            }
            judged = judged.max(about.compare(&plan).map_err(|(stage, what)| fail(stage, what))?);
            if self.emulated.contains(&v) {
                kernels::emulate(&plan, about.weights(), self.data)
                    .map_err(|what| fail(Stage::Emulator, what))?;
            }
        }
        Ok(judged)
    }
}
