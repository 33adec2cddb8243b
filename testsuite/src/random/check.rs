//! What holds of every valid graph: its text reads back, it compiles, and every plan computes what it does.
//!
//! The plans compared are a list of [`Variant`]s: options of the compiler (level, and whatever else can be
//! chosen). A result in f64 may differ by 1e-9 of its size. In f32, and rounding to stored types, it may be
//! twice as far from f64 as the graph is in the same precision, with a floor of one unit in the last place: the
//! rule of every kernel. Only where measured noise of the roundings' size moves a result by more than that unit
//! (cancellation, jumps; [`super::noise`]) is a result that is farther held to what the noise does. [`Judged`]
//! says which.

use super::data::{Steps, Weights, weights};
use super::make::{MAX_BATCH, MAX_SEQ};
use super::noise::{noisy, roundoff};
use super::values::{Value, distance, run_graph, run_plan, size};
use crate::emulate::{Distance, Emulated};
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use weft_ir::dtype::DType;
use weft_ir::graph::{Graph, parse};
use weft_ir::plan::{Compute, KernelSpec, Plan, Schedule, Work};
use weft_ir::reference::Precision;
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

/// Unit of noise that stands for f64 itself.
const TINY: f64 = 1.0 / (1u64 << 50) as f64;

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
                about.emulate(&plan).map_err(|what| fail(Stage::Emulator, what))?;
            }
        }
        Ok(judged)
    }
}

/// A graph with its data and its own results.
struct About<'a> {
    graph: &'a Graph,
    weights: Weights,
    steps: Steps,
    data: u64,
    oracle: Vec<Value>,
    f32: Vec<Value>,
    rounded: Vec<Value>,
}

type Wrong = (Stage, String);

impl<'a> About<'a> {
    fn new(graph: &'a Graph, data: u64) -> Result<Self, String> {
        let (weights, steps) = (weights(graph, data), Steps::new(data));
        let oracle = run_graph::<f64>(graph, &weights, &steps, Precision::F64)?;
        let f32 = run_graph::<f32>(graph, &weights, &steps, Precision::F32)?;
        let rounded = run_graph::<f32>(graph, &weights, &steps, Precision::Rounded)?;
        Ok(About { graph, weights, steps, data, oracle, f32, rounded })
    }

    fn compare(&self, plan: &Plan) -> Result<Judged, Wrong> {
        let body = |body: usize| {
            let of_body = |(stage, what)| (stage, format!("body {body}: {what}"));
            self.compare_body(plan, body).map_err(of_body)
        };
        (0..plan.bodies.len()).try_fold(Judged::Plain, |judged, i| Ok(judged.max(body(i)?)))
    }

    fn compare_body(&self, plan: &Plan, body: usize) -> Result<Judged, Wrong> {
        let run = |e: String| (Stage::Run, e);
        let (graph, weights, steps) = (self.graph, &self.weights, &self.steps);
        let got = run_plan::<f64>(graph, (plan, body), weights, steps, Precision::F64).map_err(run)?;
        let judged = self.close(Stage::F64, &got)?;
        let got = run_plan::<f32>(graph, (plan, body), weights, steps, Precision::F32).map_err(run)?;
        let judged = judged.max(self.close(Stage::F32, &got)?);
        let got = run_plan::<f32>(graph, (plan, body), weights, steps, Precision::Rounded).map_err(run)?;
        Ok(judged.max(self.close(Stage::Rounded, &got)?))
    }

    /// Compares results with f64.
    fn close(&self, stage: Stage, got: &[Value]) -> Result<Judged, Wrong> {
        let own = match stage {
            Stage::F32 => &self.f32,
            Stage::Rounded => &self.rounded,
            _ => &self.oracle,
        };
        // What roundings can do is looked at only where something is far.
        let mut shaken: Option<Vec<Vec<Value>>> = None;
        for (i, value) in got.iter().enumerate() {
            let oracle = &self.oracle[i];
            let (far, odd) = distance(value, oracle);
            let (own_far, own_odd) = distance(&own[i], oracle);
            let exact = !oracle.dtype.is_float();
            let ulp = match stage {
                Stage::F32 => 2.0 * roundoff(DType::F32),
                Stage::Rounded => 2.0 * roundoff(oracle.dtype),
                _ => 1e-9,
            };
            let floor = if exact { 0.0 } else { ulp * size(oracle).max(1e-6) };
            if odd <= own_odd && far <= (2.0 * own_far).max(floor) {
                continue;
            }
            let runs = match &shaken {
                Some(runs) => runs,
                None => shaken.insert(self.shaken(stage)?),
            };
            let moved: Vec<(f64, usize)> = runs.iter().map(|run| distance(&run[i], oracle)).collect();
            let most = moved.iter().map(|m| m.0).fold(0.0, f64::max);
            let most_odd = moved.iter().map(|m| m.1).max().unwrap_or(0);
            // Without amplification the plain rule is the only one.
            let amplified = most > floor || most_odd > 0;
            let far_by_noise = far > (2.0 * most).max(2.0 * own_far).max(floor);
            if !amplified || (odd > 0 && odd > 2 * most_odd.max(own_odd)) || far_by_noise {
                let at = first_difference(value, oracle);
                return Err((
                    stage,
                    format!(
                        "{}: rmse {far:.3e}, {odd} not finite; the graph's own {own_far:.3e}, {own_odd}; roundings \
                         give {most:.3e}; size {:.3e}; {at}",
                        value.name,
                        size(oracle)
                    ),
                ));
            }
        }
        Ok(if shaken.is_some() { Judged::ByNoise } else { Judged::Plain })
    }

    /// The graph's results with noise.
    fn shaken(&self, stage: Stage) -> Result<Vec<Vec<Value>>, Wrong> {
        let unit = |d: DType| match stage {
            Stage::F32 => roundoff(DType::F32),
            Stage::Rounded => roundoff(d),
            _ => TINY,
        };
        let one = |phase: usize| {
            let graph = noisy(self.graph, &unit, phase);
            run_graph::<f64>(&graph, &self.weights, &self.steps, Precision::F64)
        };
        // A result may have one element: few runs would be close by chance.
        (0..12).map(one).collect::<Result<_, String>>().map_err(|e| (Stage::Reference, e))
    }

    /// Runs two buckets on the emulator, each kernel compared with the reference.
    ///
    /// Results of a few elements are close by chance: a kernel that is too far is looked at on more inputs.
    fn emulate(&self, plan: &Plan) -> Result<(), String> {
        for name in ["prefill_16", "decode_2"] {
            let Some(entry) = plan.entries.iter().find(|e| e.name == name) else { continue };
            let mut run = Emulated::try_with_weights(plan, &self.weights)?;
            let mut one = |more: u64| {
                let steps = Steps::single(entry, self.data.wrapping_add(more << 32));
                run.try_step(name, &steps.steps[0].1)
            };
            let first = one(0)?;
            let is_close = |d: &Distance| d.is_close() || d.kernel_rmse <= rounded_inside(plan, d);
            if first.iter().all(is_close) {
                continue;
            }
            let runs = (1..16).map(&mut one).collect::<Result<Vec<_>, String>>()?;
            let all: Vec<&Vec<Distance>> = runs.iter().chain([&first]).collect();
            for i in 0..first.len() {
                let mean = |of: &dyn Fn(&Distance) -> f64| {
                    let squares: f64 = all.iter().map(|r| of(&r[i]) * of(&r[i])).sum();
                    (squares / all.len() as f64).sqrt()
                };
                let together = Distance {
                    kernel: first[i].kernel.clone(),
                    kernel_rmse: mean(&|d| d.kernel_rmse),
                    rounded_rmse: mean(&|d| d.rounded_rmse),
                    ulp: mean(&|d| d.ulp),
                };
                // Sums in f32 in another order: the reference's may be nearly exact in all runs.
                let is_f32 = work_of(plan, &together)
                    .is_some_and(|(w, _)| w.writes.iter().all(|o| o.dtype == DType::F32));
                let loose = (4.0 * together.rounded_rmse).max(2.0 * together.ulp);
                let near = is_close(&together) || (is_f32 && together.kernel_rmse <= loose);
                if !near {
                    return Err(format!("{name}: {together:?}"));
                }
            }
        }
        Ok(())
    }
}

/// What a kernel that rounds inside of it may be off: tensor cores take attention's weights in 16 bits, as the
/// graph has them, also where the result is stored in f32. The plan's reference rounds only what is stored.
fn rounded_inside(plan: &Plan, d: &Distance) -> f64 {
    let Some((work, Schedule::AttentionTile { .. })) = work_of(plan, d) else { return 0.0 };
    let (Compute::Attention(a), [out]) = (&work.compute, &work.writes[..]) else { return 0.0 };
    d.ulp / roundoff(out.dtype) * roundoff(work.reads[a.q.index()].dtype)
}

/// The work and the schedule of the kernel that a distance is of.
fn work_of<'p>(plan: &'p Plan, d: &Distance) -> Option<(&'p Work, &'p Schedule)> {
    let of = |k: &&KernelSpec| d.kernel.strip_prefix(&k.name).is_some_and(|rest| rest.starts_with(" ("));
    plan.kernels.iter().find(of).map(|k| (&plan.works[k.work as usize], &k.schedule))
}

/// Where two results differ most.
fn first_difference(a: &Value, b: &Value) -> String {
    if a.shape != b.shape {
        return format!("shape {:?}, expected {:?}", a.shape, b.shape);
    }
    let gap = |i: &usize| {
        let d = (a.elements[*i] - b.elements[*i]).abs();
        if d.is_nan() && a.elements[*i].to_bits() != b.elements[*i].to_bits() { f64::INFINITY } else { d }
    };
    let worst = (0..a.elements.len()).max_by(|x, y| gap(x).total_cmp(&gap(y)));
    worst.map_or(String::new(), |i| {
        format!("element {i} of {:?} is {}, expected {}", a.shape, a.elements[i], b.elements[i])
    })
}
