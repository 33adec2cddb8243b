//! Generations on the emulator, as the device's loop runs them: the kernels of a decode step and the advance,
//! again and again on the same memory, until the condition is 0.

use crate::emulate::Emulated;
use weft_codegen::emulator::{Arg, Buffer};
use weft_ir::dtype::DType;
use weft_ir::generation::{EMPTY, MAX_STOP_TOKENS};
use weft_ir::plan::{BufferKind, Control, Entry, Generation, Role};
use weft_ir::reference::{StepInputs, Tensor, run_advance};
use weft_runtime::Error;
use weft_runtime::exec::check::Sizes;
use weft_runtime::exec::{Executor, Limits, StepOutput, bucket};

/// What the host gives a generation: an element a row of the entry.
#[derive(Clone, Debug)]
pub struct Controls {
    /// Tokens that each row may have.
    pub remaining: Vec<i32>,
    /// Tokens that end a row.
    pub stop_tokens: Vec<i32>,
}

/// An i32 buffer.
fn words(values: Vec<i32>) -> Buffer {
    Buffer::new(DType::I32, values.into_iter().flat_map(i32::to_le_bytes).collect())
}

/// The stop tokens as the device has them: their number, then they.
///
/// # Panics
/// When there are too many.
pub fn stop_words(tokens: &[i32]) -> Vec<i32> {
    assert!(tokens.len() <= MAX_STOP_TOKENS, "{} stop tokens", tokens.len());
    let mut out = vec![tokens.len() as i32];
    out.extend(tokens);
    out.resize(1 + MAX_STOP_TOKENS, -7);
    out
}

impl Emulated<'_> {
    /// The generation of the plan.
    ///
    /// # Panics
    /// When there is none.
    pub fn generation(&self) -> &Generation {
        self.plan.generation.as_ref().expect("a generation")
    }

    fn at_control(&self, control: Control) -> usize {
        let of = |b: &weft_ir::plan::Buffer| b.kind == BufferKind::Control(control);
        self.at[self.plan.buffers.iter().position(of).expect("a control")]
    }

    /// Runs a generation from a first step, padded to the entry, until the condition is 0; `cancel` is asked before
    /// each advance for the cancel words. Gives the stream, `[steps, rows]`.
    ///
    /// # Panics
    /// When a kernel faults, an advance differs from its definition, or the loop does not end.
    pub fn generate(
        &mut self,
        entry: &Entry,
        first: &StepInputs,
        controls: &Controls,
        cancel: &mut dyn FnMut(usize) -> Vec<i32>,
    ) -> Vec<i32> {
        self.prepare(entry, first);
        let rows = entry.bind.rows;
        let stream = self.at_control(Control::Stream);
        let set = [
            (Control::Remaining, controls.remaining.clone()),
            (Control::StopTokens, stop_words(&controls.stop_tokens)),
            (Control::Step, vec![0]),
            (Control::Stream, vec![EMPTY; self.plan.max_seq * rows]),
        ];
        for (control, values) in set {
            let at = self.at_control(control);
            self.memory.buffers[at] = words(values);
        }
        let condition = self.memory.zeros(DType::U32, 1);
        let dispatches = self.plan.bodies[entry.body as usize].dispatches.len();
        let advance = self.generation().advance.clone();
        for step in 0..self.plan.max_seq {
            // Iterations of a loop follow each other: what the last one wrote is there.
            self.memory.buffers.iter_mut().for_each(Buffer::settle);
            for i in 0..dispatches {
                self.dispatch(entry, i).unwrap_or_else(|why| panic!("step {step}: {why}"));
            }
            let at = self.at_control(Control::Cancel);
            self.memory.buffers[at] = words(cancel(step));
            let mut values: Vec<Option<Tensor<f32>>> = vec![None; self.plan.buffers.len()];
            for b in advance.reads.iter().chain(&advance.writes) {
                values[b.index()] = Some(self.tensor(*b, &entry.bind));
            }
            run_advance(self.plan, &self.rounded, &entry.bind, &mut values).unwrap_or_else(|e| panic!("{e}"));
            self.launch(entry, &advance, &[Arg::Buffer(condition)])
                .unwrap_or_else(|why| panic!("step {step}: {why}"));
            for b in &advance.writes {
                let wanted = values[b.index()].as_ref().and_then(|t| t.to_ints().ok()).expect("integers");
                let got = self.memory.read_ints(self.at[b.index()]);
                let got: Vec<i32> = got.into_iter().map(|v| v.expect("written") as i32).collect();
                assert!(got == wanted, "step {step}: {} is not as defined", self.plan.buffer(*b).name);
            }
            if self.memory.read_ints(condition) == [Some(0)] {
                let shown = self.memory.read_ints(stream);
                return shown[..(step + 1) * rows].iter().map(|v| v.expect("written") as i32).collect();
            }
        }
        panic!("the loop does not end");
    }
}

/// A plan on the emulator as an executor: a step is its kernels, and nothing is compared.
pub struct EmulatedModel<'a> {
    /// The plan and its memory.
    pub run: Emulated<'a>,
}

impl EmulatedModel<'_> {
    /// The entry that takes a step, and the step padded to it.
    ///
    /// # Errors
    /// A step that no entry holds.
    pub fn entry(&self, role: Role, inputs: &StepInputs) -> Result<(Entry, StepInputs), Error> {
        let context = inputs.positions.iter().map(|&p| p as usize + 1).max().unwrap_or(1);
        let sizes = Sizes { tokens: inputs.token_ids.len(), rows: inputs.output_rows.len(), context };
        let entry = self.run.plan.entries[bucket::choose(self.run.plan, role, &sizes)?].clone();
        let padded = bucket::pad(inputs, &entry.bind);
        Ok((entry, padded))
    }
}

impl Executor for EmulatedModel<'_> {
    fn step(&mut self, role: Role, inputs: &StepInputs, logits: bool) -> Result<StepOutput, Error> {
        let (entry, padded) = self.entry(role, inputs)?;
        self.run.run(&entry.name, &padded).unwrap_or_else(|why| panic!("{why}"));
        let mut tokens = self.run.output_ids("tokens");
        let rows = inputs.output_rows.len();
        tokens.truncate(rows);
        let mut out = StepOutput { tokens, ..StepOutput::default() };
        if let (true, Some(vocab)) = (logits, self.limits().vocab) {
            out.logits = self.run.output("logits");
            out.logits.truncate(rows * vocab);
        }
        Ok(out)
    }

    fn limits(&self) -> Limits {
        bucket::plan_limits(self.run.plan).unwrap_or_else(|e| panic!("{e}"))
    }

    fn device(&self) -> String {
        "emulator".into()
    }
}
