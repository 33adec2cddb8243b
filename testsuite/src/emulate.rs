//! Runs the kernels of a plan on the emulator, each compared with the reference on the same inputs.

pub use crate::distance::{Distance, too_far};
use crate::fixture::Bytes;
use weft_codegen::emulator::{Arg, Launch, Memory, Order, run_in_order};
use weft_codegen::{Emitted, emit};
use weft_frontend::checkpoint::Checkpoint;
use weft_ir::dtype::DType;
use weft_ir::graph::{Input, Literal};
use weft_ir::ids::BufferId;
use weft_ir::plan::{BufferKind, Dispatch, Entry, Plan, Scratch};
use weft_ir::reference::{
    Data, LoadedPlan, Precision, Real, StepInputs, Tensor, WeightBytes, load_plan, run_dispatch,
};
use weft_ir::shape::Bindings;

/// A plan on the emulator: one buffer of memory for each buffer of the plan.
pub struct Emulated<'a> {
    pub(crate) plan: &'a Plan,
    kernels: Vec<Emitted>,
    pub(crate) oracle: LoadedPlan<f64>,
    pub(crate) rounded: LoadedPlan<f32>,
    pub(crate) memory: Memory,
    /// Index in memory of each buffer.
    pub(crate) at: Vec<usize>,
    /// In which order the blocks of a kernel run.
    pub order: Order,
    /// Counters of blocks, which steps leave as they find them.
    counters: Vec<i64>,
}

/// Scratch of a kernel while it runs: last in memory, the counters behind the partial results.
struct Lent {
    args: Vec<Arg>,
    first: usize,
    counters: std::ops::Range<usize>,
}

impl<'a> Emulated<'a> {
    /// Loads a plan; states are zero.
    ///
    /// # Panics
    /// When the plan does not load or its kernels do not emit.
    pub fn new(plan: &'a Plan, checkpoint: &Checkpoint) -> Self {
        Self::with_weights(plan, &Bytes(checkpoint))
    }

    /// Loads a plan with weights of any origin; states are zero.
    ///
    /// # Panics
    /// When the plan does not load or its kernels do not emit.
    pub fn with_weights(plan: &'a Plan, weights: &dyn WeightBytes) -> Self {
        Self::try_with_weights(plan, weights).unwrap_or_else(|why| panic!("{why}"))
    }

    /// The same; what does not load or emit is an error.
    ///
    /// # Errors
    /// Why.
    pub fn try_with_weights(plan: &'a Plan, weights: &dyn WeightBytes) -> Result<Self, String> {
        let oracle = load_plan(plan, weights, Precision::F64).map_err(|e| e.to_string())?;
        let rounded = load_plan(plan, weights, Precision::Rounded).map_err(|e| e.to_string())?;
        let kernels = emit(plan).map_err(|e| e.to_string())?;
        let counters = plan.entries.iter().map(|e| e.scratch.counter_bytes / 4).max().unwrap_or(0);
        let counters = vec![0; counters];
        Ok(Emulated {
            plan,
            kernels,
            oracle,
            rounded,
            memory: Memory::new(),
            at: Vec::new(),
            order: Order::Forward,
            counters,
        })
    }

    /// Prepares memory for an entry: constants, inputs and unwritten results; states are kept.
    pub(crate) fn prepare(&mut self, entry: &Entry, inputs: &StepInputs) {
        let old = std::mem::take(&mut self.memory);
        let old_at = std::mem::take(&mut self.at);
        for (i, b) in self.plan.buffers.iter().enumerate() {
            let elements = entry.bind.elements(&b.shape);
            let index = match &b.kind {
                BufferKind::Weight(_) => {
                    let value = self.rounded.constant(BufferId::new(i)).expect("a weight");
                    match value.to_ints() {
                        Ok(ints) => self.memory.ints(b.dtype, &widened(&ints)),
                        Err(_) => self.memory.floats(b.dtype, &value.to_reals().expect("floats")),
                    }
                }
                BufferKind::Literal(Literal::F32(v)) => self.memory.floats(b.dtype, v),
                BufferKind::Literal(Literal::I32(v)) => self.memory.ints(b.dtype, &widened(v)),
                BufferKind::Input(input) => input_buffer(&mut self.memory, *input, inputs),
                BufferKind::State(_) => match old_at.get(i) {
                    Some(&at) => {
                        let mut state = old.buffers[at].clone();
                        state.settle();
                        self.memory.add(state)
                    }
                    None => self.memory.zeros(b.dtype, elements),
                },
                BufferKind::Output(_) | BufferKind::Temp | BufferKind::Control(_) => {
                    self.memory.uninitialised(b.dtype, elements)
                }
            };
            self.at.push(index);
        }
    }

    /// Runs a step by an entry of this name, inputs already padded to its bindings.
    ///
    /// # Panics
    /// When a kernel faults: out of bounds, uninitialised, a race, …
    pub fn step(&mut self, entry: &str, inputs: &StepInputs) -> Vec<Distance> {
        self.try_step(entry, inputs).unwrap_or_else(|why| panic!("{why}"))
    }

    /// The same; a kernel that faults is an error.
    ///
    /// # Errors
    /// The kernel and its fault.
    ///
    /// # Panics
    /// When there is no such entry, or the reference does not run.
    pub fn try_step(&mut self, entry: &str, inputs: &StepInputs) -> Result<Vec<Distance>, String> {
        let plan = self.plan;
        let entry = plan.entries.iter().find(|e| e.name == entry).unwrap_or_else(|| panic!("no {entry}"));
        self.prepare(entry, inputs);
        let body = entry.body as usize;
        let mut distances = Vec::new();
        for (i, d) in plan.bodies[body].dispatches.iter().enumerate() {
            let spec = &plan.kernels[entry.kernels[&d.work].index()];
            let expected = self.expect(&self.oracle, (body, i), &entry.bind);
            let rounded = self.expect(&self.rounded, (body, i), &entry.bind);
            self.dispatch(entry, i)?;
            for ((&b, expected), rounded) in d.writes.iter().zip(&expected).zip(&rounded) {
                let name = format!("{} ({}) → {}", spec.name, d.scope, plan.buffer(b).name);
                distances.push(self.distance(name, b, expected, rounded));
            }
        }
        Ok(distances)
    }

    /// Runs a step and compares nothing.
    ///
    /// # Errors
    /// The kernel and its fault.
    ///
    /// # Panics
    /// When there is no such entry.
    pub fn run(&mut self, entry: &str, inputs: &StepInputs) -> Result<(), String> {
        let plan = self.plan;
        let entry = plan.entries.iter().find(|e| e.name == entry).unwrap_or_else(|| panic!("no {entry}"));
        self.prepare(entry, inputs);
        let dispatches = 0..plan.bodies[entry.body as usize].dispatches.len();
        dispatches.into_iter().try_for_each(|i| self.dispatch(entry, i))
    }

    /// Runs the kernel of a dispatch.
    pub(crate) fn dispatch(&mut self, entry: &Entry, i: usize) -> Result<(), String> {
        let plan = self.plan;
        let d = &plan.bodies[entry.body as usize].dispatches[i];
        let spec = &plan.kernels[entry.kernels[&d.work].index()];
        let scratch = spec.scratch.as_ref().map(|s| self.scratch(entry, i, s));
        let args = scratch.as_ref().map_or(&[][..], |s| &s.args);
        self.launch(entry, d, args).map_err(|why| format!("dispatch {i}: {why}"))?;
        if let Some(s) = scratch {
            self.take_counters(s);
        }
        Ok(())
    }

    /// What a kernel needs besides: partial results that nothing has written, and its counters as they are.
    fn scratch(&mut self, entry: &Entry, dispatch: usize, s: &Scratch) -> Lent {
        let place = entry.scratch.of(dispatch).expect("a place of the scratch");
        let first = self.memory.buffers.len();
        for p in &s.partials {
            self.memory.uninitialised(p.dtype, p.elements.blocks(&entry.bind));
        }
        let counters = place.counters / 4..(place.counters + s.counter_bytes(&entry.bind)) / 4;
        self.memory.ints(DType::U32, &self.counters[counters.clone()]);
        Lent { args: (first..self.memory.buffers.len()).map(Arg::Buffer).collect(), first, counters }
    }

    /// Keeps the counters of a kernel and drops its scratch.
    fn take_counters(&mut self, lent: Lent) {
        let at = self.memory.buffers.len() - 1;
        let after = self.memory.read_ints(at).into_iter().map(|v| v.expect("a counter"));
        self.counters.splice(lent.counters, after);
        self.memory.buffers.truncate(lent.first);
    }

    /// Runs the kernel of a dispatch on what is in memory; arguments of its own follow those of every kernel.
    pub(crate) fn launch(&mut self, entry: &Entry, d: &Dispatch, more: &[Arg]) -> Result<(), String> {
        let (work, kernel) = (&self.plan.works[d.work as usize], entry.kernels[&d.work].index());
        let spec = &self.plan.kernels[kernel];
        let buffers = d.reads.iter().chain(&d.writes).map(|b| Arg::Buffer(self.at[b.index()]));
        let syms = work.syms().into_iter().map(|s| Arg::i32(entry.bind.get(s) as i32));
        let grid = std::array::from_fn(|axis| spec.grid[axis].blocks(&entry.bind) as u32);
        let args = buffers.chain(syms).chain(more.iter().copied()).collect();
        let launch = Launch { grid, args };
        let done = run_in_order(&self.kernels[kernel].kernel, &launch, &mut self.memory, self.order);
        done.map(|_| ()).map_err(|f| format!("{} ({}): {f}", spec.name, d.scope))
    }

    /// The results of a dispatch by the reference, on what is in memory now.
    pub(crate) fn expect<R: Real>(
        &self,
        loaded: &LoadedPlan<R>,
        at: (usize, usize),
        bind: &Bindings,
    ) -> Vec<Vec<f64>> {
        let d = &self.plan.bodies[at.0].dispatches[at.1];
        let mut values: Vec<Option<Tensor<R>>> = vec![None; self.plan.buffers.len()];
        let is_state = |b: &BufferId| matches!(self.plan.buffer(*b).kind, BufferKind::State(_));
        for b in d.reads.iter().chain(d.writes.iter().filter(|b| is_state(b))) {
            if loaded.constant(*b).is_none() {
                values[b.index()] = Some(self.tensor(*b, bind));
            }
        }
        run_dispatch(self.plan, loaded, at, bind, &mut values).unwrap_or_else(|e| panic!("{e}"));
        let result = |b: &BufferId| elements(values[b.index()].as_ref().expect("a result"));
        d.writes.iter().map(result).collect()
    }

    /// A buffer of the memory as a tensor; what was never written is zero.
    pub(crate) fn tensor<R: Real>(&self, b: BufferId, bind: &Bindings) -> Tensor<R> {
        let buffer = self.plan.buffer(b);
        let shape = bind.shape(&buffer.shape);
        let at = self.at[b.index()];
        let ints = || self.memory.read_ints(at).into_iter().map(|v| v.unwrap_or(0));
        match buffer.dtype {
            DType::F32 | DType::F16 | DType::BF16 => {
                let floats = self.memory.read_floats(at).into_iter().map(|v| v.unwrap_or(0.0)).collect();
                Tensor::real(R::from_f32s(floats), shape).expect("shape")
            }
            DType::I32 | DType::I64 => Tensor::int(ints().map(|v| v as i32).collect(), shape).expect("shape"),
            DType::U32 => {
                Tensor::new(Data::U32(std::sync::Arc::new(ints().map(|v| v as u32).collect())), shape)
                    .expect("shape")
            }
            DType::Bool => {
                Tensor::new(Data::Bool(std::sync::Arc::new(ints().map(|v| v != 0).collect())), shape)
                    .expect("shape")
            }
        }
    }

    pub(crate) fn distance(
        &self,
        kernel: String,
        b: BufferId,
        expected: &[f64],
        rounded: &[f64],
    ) -> Distance {
        let dtype = self.plan.buffer(b).dtype;
        let is_state = matches!(self.plan.buffer(b).kind, BufferKind::State(_));
        let got: Vec<f64> = if dtype.is_float() {
            self.values(b, &kernel, is_state)
        } else {
            self.memory
                .read_ints(self.at[b.index()])
                .into_iter()
                .map(|v| v.unwrap_or_else(|| panic!("{kernel}: an element was not written")) as f64)
                .collect()
        };
        let finite = |(x, y): &(&f64, &f64)| x.is_finite() || y.is_finite() || x != y;
        let rms = |a: &[f64], b: &[f64]| {
            let sum: f64 = a.iter().zip(b).filter(finite).map(|(x, y)| (x - y) * (x - y)).sum();
            (sum / a.len().max(1) as f64).sqrt()
        };
        let size: f64 = expected.iter().filter(|x| x.is_finite()).map(|x| x * x).sum();
        let size = (size / expected.len().max(1) as f64).sqrt();
        let epsilon = match dtype {
            DType::BF16 => 2f64.powi(-8),
            DType::F16 => 2f64.powi(-11),
            DType::F32 => 2f64.powi(-23),
            DType::I64 | DType::I32 | DType::U32 | DType::Bool => 0.0,
        };
        Distance {
            kernel,
            kernel_rmse: rms(&got, expected),
            rounded_rmse: rms(rounded, expected),
            ulp: epsilon * size,
            elements: expected.len(),
        }
    }

    fn values(&self, b: BufferId, kernel: &str, is_state: bool) -> Vec<f64> {
        let read = self.memory.read_floats(self.at[b.index()]);
        let missing = || if is_state { 0.0 } else { panic!("{kernel}: an element was not written") };
        read.into_iter().map(|v| f64::from(v.unwrap_or_else(missing))).collect()
    }

    /// An f32 output of the last step.
    ///
    /// # Panics
    /// When there is none.
    pub fn output(&self, name: &str) -> Vec<f32> {
        let i = self.output_buffer(name);
        self.memory.read_floats(self.at[i]).into_iter().map(|v| v.expect("written")).collect()
    }

    /// An integer output of the last step.
    ///
    /// # Panics
    /// When there is none.
    pub fn output_ids(&self, name: &str) -> Vec<i32> {
        let i = self.output_buffer(name);
        self.memory.read_ints(self.at[i]).into_iter().map(|v| v.expect("written") as i32).collect()
    }

    fn output_buffer(&self, name: &str) -> usize {
        let kind = BufferKind::Output(name.into());
        self.plan.buffers.iter().position(|b| b.kind == kind).expect("an output")
    }
}

/// Elements of a tensor.
fn elements<R: Real>(out: &Tensor<R>) -> Vec<f64> {
    match out.data() {
        Data::Int(_) => out.to_ints().expect("ints").into_iter().map(f64::from).collect(),
        Data::U32(_) => out.to_u32s().expect("u32s").into_iter().map(f64::from).collect(),
        Data::Bool(_) => out.to_bools().expect("bools").into_iter().map(|b| f64::from(u8::from(b))).collect(),
        Data::Real(_) => out.to_reals().expect("floats").into_iter().map(R::to_f64).collect(),
    }
}

fn widened(v: &[i32]) -> Vec<i64> {
    v.iter().map(|&x| i64::from(x)).collect()
}

fn input_buffer(memory: &mut Memory, input: Input, s: &StepInputs) -> usize {
    let mut ints = |v: &[i32]| memory.ints(DType::I32, &widened(v));
    match input {
        Input::TokenIds => ints(&s.token_ids),
        Input::Positions => ints(&s.positions),
        Input::Sequences => ints(&s.sequences),
        Input::Slots => ints(&s.slots),
        Input::SlotBase => ints(&s.slot_base),
        Input::OutputRows => ints(&s.output_rows),
        Input::TopK => ints(&s.top_k),
        Input::Lengths => ints(&s.lengths),
        Input::TokenTypes => ints(&s.token_types),
        Input::Prompts => ints(&s.prompts),
        Input::Temperature => memory.floats(DType::F32, &s.temperature),
        Input::TopP => memory.floats(DType::F32, &s.top_p),
        Input::MinP => memory.floats(DType::F32, &s.min_p),
        Input::RepetitionPenalty => memory.floats(DType::F32, &s.repetition_penalty),
        Input::PresencePenalty => memory.floats(DType::F32, &s.presence_penalty),
        Input::PromptLengths => ints(&s.prompt_lengths),
        Input::Seed => memory.ints(DType::U32, &s.seed.iter().map(|&x| i64::from(x)).collect::<Vec<_>>()),
    }
}

/// Inputs of a step of ragged sequences, padded to an entry: `(tokens, first position)` for each.
pub fn ragged(entry: &Entry, sequences: &[(&[i32], usize)], max_seq: usize, every_row: bool) -> StepInputs {
    let bind = &entry.bind;
    let mut s = StepInputs::default();
    for (i, (tokens, start)) in sequences.iter().enumerate() {
        for (j, &t) in tokens.iter().enumerate() {
            s.token_ids.push(t);
            s.positions.push((start + j) as i32);
            s.sequences.push(i as i32);
            s.slots.push((i * max_seq + start + j) as i32);
            if every_row || j + 1 == tokens.len() {
                s.output_rows.push(s.token_ids.len() as i32 - 1);
            }
        }
    }
    s.token_ids.resize(bind.tokens, 0);
    s.positions.resize(bind.tokens, 0);
    s.sequences.resize(bind.tokens, 0);
    s.slots.resize(bind.tokens, -1);
    s.slot_base = (0..bind.seqs).map(|i| (i * max_seq) as i32).collect();
    s.output_rows.resize(bind.rows, 0);
    s.temperature = vec![0.0; bind.rows];
    s.top_k = vec![0; bind.rows];
    s.top_p = vec![1.0; bind.rows];
    s.min_p = vec![0.0; bind.rows];
    s.seed = vec![0; bind.rows];
    s.repetition_penalty = vec![1.0; bind.rows];
    s.presence_penalty = vec![0.0; bind.rows];
    s.prompt_lengths = vec![0; bind.rows];
    s.prompts = vec![0; bind.tokens];
    s
}
