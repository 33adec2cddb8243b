//! Graphs and plans interpreted by the CPU reference.

use std::sync::Arc;

use weft_ir::graph::{Graph, Input};
use weft_ir::plan::{Plan, Role};
use weft_ir::reference::{
    Loaded, LoadedPlan, Outputs, Precision, Real, ReferenceError, States, StepInputs, WeightBytes, load,
    load_plan, step, step_plan,
};
use weft_ir::shape::Bindings;

use super::bucket::{self, HIDDEN, LOGITS, TOKENS};
use super::check::{Bounds, Sizes, check};
use super::load::check_plan;
use super::{Executor, Limits, StepOutput};
use crate::error::{Error, Result};

/// What a graph, unlike a plan, does not say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CpuOptions {
    /// Longest context of a sequence, in tokens.
    pub max_seq: usize,
    /// Most sequences at once.
    pub max_batch: usize,
    /// Most tokens of a prefill or scoring step, or of an encoder's. A graph keeps every intermediate value of a step, rows gathered
    /// from the cache for each token among them.
    pub step_tokens: usize,
    /// Number type and rounding.
    pub precision: Precision,
}

impl Default for CpuOptions {
    fn default() -> Self {
        CpuOptions { max_seq: 2048, max_batch: 1, step_tokens: 64, precision: Precision::F32 }
    }
}

/// A graph or a plan on the CPU. Steps are computed at their own sizes, without padding, so a short context costs
/// little; the cache has all its slots, and those never written take no memory.
pub struct CpuModel {
    program: Program,
    numbers: Numbers,
    precision: Precision,
    limits: Limits,
    bounds: Bounds,
    used: Vec<Input>,
}

enum Program {
    Graph(Box<Graph>),
    Plan(Arc<Plan>),
}

/// What was loaded, and the states, in one of the two number types.
enum Numbers {
    Single(Box<Memory<f32>>),
    Double(Box<Memory<f64>>),
}

struct Memory<R> {
    loaded: Ready<R>,
    states: States<R>,
}

enum Ready<R> {
    Graph(Loaded<R>),
    Plan(LoadedPlan<R>),
}

impl CpuModel {
    /// Loads a graph: `--opt-level 0`.
    ///
    /// # Errors
    /// [`Error::Plan`] when it has neither logits nor hidden states, [`Error::Reference`] when it does not verify or a weight is missing.
    pub fn graph(graph: Graph, weights: &dyn WeightBytes, options: &CpuOptions) -> Result<CpuModel> {
        let (vocab, hidden) = bucket::graph_widths(&graph)?;
        let CpuOptions { max_seq, max_batch, step_tokens, precision } = *options;
        let slots = max_seq.checked_mul(max_batch).filter(|&n| n > 0 && i32::try_from(n).is_ok());
        let slots = slots.ok_or_else(|| {
            Error::bad(
                "max_seq · max_batch",
                format!("{max_seq} · {max_batch} slots; 1 to 2147483647 are possible"),
            )
        })?;
        let of = |kind: Option<usize>| kind.map_or(0, |_| step_tokens);
        let limits = Limits {
            max_seq,
            max_batch,
            prefill_tokens: of(vocab),
            score_tokens: of(vocab),
            encode_tokens: of(hidden),
            vocab,
            hidden,
        };
        let bounds = bucket::graph_bounds(&graph, vocab, (max_seq, max_batch, slots));
        let used = bucket::graph_inputs(&graph);
        let program = Program::Graph(Box::new(graph));
        let numbers = numbers(&program, weights, precision, &bounds)?;
        Ok(CpuModel { program, numbers, precision, limits, bounds, used })
    }

    /// Loads a plan, to run it dispatch by dispatch: `--opt-level 1` and up.
    ///
    /// # Errors
    /// [`Error::Plan`] when it does not verify, [`Error::Reference`] when a weight is missing.
    pub fn plan(plan: Arc<Plan>, weights: &dyn WeightBytes, precision: Precision) -> Result<CpuModel> {
        check_plan(&plan)?;
        let (limits, bounds, used) =
            (bucket::plan_limits(&plan)?, bucket::bounds(&plan)?, bucket::plan_inputs(&plan));
        let program = Program::Plan(plan);
        let numbers = numbers(&program, weights, precision, &bounds)?;
        Ok(CpuModel { program, numbers, precision, limits, bounds, used })
    }

    /// Sets all states to zero.
    pub fn reset(&mut self) {
        let bind = whole(&self.bounds);
        match &mut self.numbers {
            Numbers::Single(m) => m.states = states(&self.program, &bind),
            Numbers::Double(m) => m.states = states(&self.program, &bind),
        }
    }

    /// A state as f32 numbers, row-major; `None` when there is none of this name, or its elements are no floats.
    pub fn state(&self, name: &str) -> Option<Vec<f32>> {
        match &self.numbers {
            Numbers::Single(m) => m.states.get(name)?.to_reals().ok(),
            Numbers::Double(m) => narrow(m.states.get(name)?.to_reals().ok()?),
        }
    }

    /// Fails when a step is more than the role allows; gives the body of a plan that runs it.
    fn body(&self, role: Role, sizes: &Sizes) -> Result<usize> {
        match &self.program {
            Program::Plan(plan) => {
                let entry = bucket::choose(plan, role, sizes)?;
                Ok(plan.entries[entry].body as usize)
            }
            Program::Graph(_) => {
                let most = match role {
                    Role::Decode => self.limits.vocab.map_or(0, |_| self.limits.max_batch),
                    Role::Prefill | Role::Score => self.limits.prefill_tokens,
                    Role::Encode => self.limits.encode_tokens,
                };
                if sizes.tokens <= most {
                    return Ok(0);
                }
                Err(Error::NoBucket {
                    role: bucket::role_name(role),
                    tokens: sizes.tokens,
                    rows: sizes.rows,
                    available: format!("{} ({most} tokens)", bucket::role_name(role)),
                    remedy: "split the step",
                })
            }
        }
    }
}

impl Executor for CpuModel {
    fn step(&mut self, role: Role, inputs: &StepInputs, logits: bool) -> Result<StepOutput> {
        let sizes = check(role, inputs, &self.used, &self.bounds)?;
        let body = self.body(role, &sizes)?;
        let bind = Bindings {
            tokens: sizes.tokens,
            seqs: inputs.slot_base.len().max(1),
            // A step without output rows computes one that nobody reads.
            rows: sizes.rows.max(1),
            context: sizes.context,
            slots: self.bounds.slots,
        };
        let inputs = bucket::pad(inputs, &bind);
        match &mut self.numbers {
            Numbers::Single(m) => {
                let outputs = m.step(&self.program, body, &bind, &inputs)?;
                result(&outputs, &sizes, &self.limits, logits)
            }
            Numbers::Double(m) => {
                let outputs = m.step(&self.program, body, &bind, &inputs)?;
                result(&outputs, &sizes, &self.limits, logits)
            }
        }
    }

    fn limits(&self) -> Limits {
        self.limits.clone()
    }

    fn device(&self) -> String {
        let precision = match self.precision {
            Precision::F64 => "f64",
            Precision::F32 => "f32",
            Precision::Rounded => "f32, rounded to stored types",
        };
        let threads = rayon::current_num_threads();
        format!("CPU reference ({precision}, {threads} thread{})", if threads == 1 { "" } else { "s" })
    }
}

impl<R: Real> Memory<R> {
    fn new(
        program: &Program,
        weights: &dyn WeightBytes,
        precision: Precision,
        bounds: &Bounds,
    ) -> Result<Memory<R>> {
        let loaded = match program {
            Program::Graph(graph) => Ready::Graph(load(graph, weights, precision).map_err(reference)?),
            Program::Plan(plan) => Ready::Plan(load_plan(plan, weights, precision).map_err(reference)?),
        };
        Ok(Memory { loaded, states: states(program, &whole(bounds)) })
    }

    fn step(
        &mut self,
        program: &Program,
        body: usize,
        bind: &Bindings,
        inputs: &StepInputs,
    ) -> Result<Outputs<R>> {
        let states = &mut self.states;
        match (program, &self.loaded) {
            (Program::Graph(graph), Ready::Graph(loaded)) => step(graph, loaded, bind, inputs, states),
            (Program::Plan(plan), Ready::Plan(loaded)) => step_plan(plan, loaded, body, bind, inputs, states),
            (Program::Graph(_), Ready::Plan(_)) | (Program::Plan(_), Ready::Graph(_)) => {
                Err(ReferenceError::Mismatch("a graph and a plan".into()))
            }
        }
        .map_err(reference)
    }
}

fn numbers(
    program: &Program,
    weights: &dyn WeightBytes,
    precision: Precision,
    bounds: &Bounds,
) -> Result<Numbers> {
    Ok(match precision {
        Precision::F64 => Numbers::Double(Box::new(Memory::new(program, weights, precision, bounds)?)),
        Precision::F32 | Precision::Rounded => {
            Numbers::Single(Box::new(Memory::new(program, weights, precision, bounds)?))
        }
    })
}

/// Zeros: pages that are never written take no memory.
fn states<R: Real>(program: &Program, bind: &Bindings) -> States<R> {
    match program {
        Program::Graph(graph) => States::zeros(graph, bind),
        Program::Plan(plan) => States::zeros_of_plan(plan, bind),
    }
}

/// Bindings for states: they depend on slots alone.
fn whole(bounds: &Bounds) -> Bindings {
    Bindings { tokens: 0, seqs: bounds.seqs, rows: 0, context: bounds.max_seq, slots: bounds.slots }
}

fn reference(e: ReferenceError) -> Error {
    Error::Reference(Box::new(e))
}

fn result<R: Real>(outputs: &Outputs<R>, sizes: &Sizes, limits: &Limits, logits: bool) -> Result<StepOutput> {
    let fault =
        |name: &str, e: weft_ir::reference::OpError| Error::plan(format!("output {name}"), e.to_string());
    let mut tokens = match outputs.get(TOKENS) {
        Some(t) => t.to_ints().map_err(|e| fault(TOKENS, e))?,
        None => Vec::new(),
    };
    tokens.truncate(sizes.rows);
    let floats = |name: &'static str, elements: usize| -> Result<Vec<f32>> {
        let values =
            outputs.get(name).ok_or_else(|| Error::plan(format!("output {name}"), "there is none"))?;
        let values = values.to_reals().map_err(|e| fault(name, e))?;
        Ok(values.into_iter().take(elements).map(Real::to_f32).collect())
    };
    let mut out = StepOutput { tokens, ..StepOutput::default() };
    if let Some(width) = limits.hidden {
        out.hidden = floats(HIDDEN, sizes.tokens * width)?;
    }
    if let (true, Some(vocab)) = (logits, limits.vocab) {
        out.logits = floats(LOGITS, sizes.rows * vocab)?;
    }
    Ok(out)
}

fn narrow(values: Vec<f64>) -> Option<Vec<f32>> {
    Some(values.into_iter().map(Real::to_f32).collect())
}
