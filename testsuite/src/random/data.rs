//! What random graphs run on: weights, step inputs and states, all decided by names and a seed, so that a
//! graph's text is enough to run it again.

use super::make::{IDS, MAX_BATCH, MAX_SEQ};
use super::rng::Rng;
use half::{bf16, f16};
use std::collections::BTreeMap;
use weft_ir::dtype::{DType, Encoding};
use weft_ir::graph::{Graph, Op, ValueType};
use weft_ir::plan::{Entry, Role};
use weft_ir::reference::{Real, States, StepInputs, Tensor};
use weft_ir::shape::Bindings;

/// Bytes of weights by name.
pub type Weights = BTreeMap<String, Vec<u8>>;

/// Steps of a run, one after the other on the same states.
#[derive(Clone, Debug)]
pub struct Steps {
    /// Bindings and inputs of each step; the slots are the same.
    pub steps: Vec<(Bindings, StepInputs)>,
    seed: u64,
}

/// The weights of a graph.
pub fn weights(graph: &Graph, seed: u64) -> Weights {
    let mut out = Weights::new();
    for node in &graph.nodes {
        if let Op::Weight { tensor, ty } = &node.op {
            out.entry(tensor.clone()).or_insert_with(|| weight(tensor, ty, seed));
        }
    }
    out
}

/// Bytes of a weight. Its name says what it is for: `norm…` are about 1, `b…` and `table…` about 0, `index…`
/// are below the number of ids, all others are scaled by their last axis.
fn weight(name: &str, ty: &ValueType, seed: u64) -> Vec<u8> {
    let shape: Vec<usize> = ty.shape.iter().map(|d| d.as_const().unwrap_or(1)).collect();
    let elements: usize = shape.iter().product();
    let mut rng = Rng::named(seed, name);
    let fan = (3.0 / shape.last().copied().unwrap_or(1).max(1) as f32).sqrt();
    let value = |rng: &mut Rng| match name.trim_end_matches(|c: char| c.is_ascii_digit()) {
        "norm" => 1.0 + 0.4 * rng.signed(),
        "table" => 1.5 * rng.signed(),
        "b" => 0.7 * rng.signed(),
        _ => fan * rng.signed(),
    };
    let mut out = Vec::new();
    match ty.encoding {
        Encoding::Plain(d) => {
            for _ in 0..elements {
                match d {
                    DType::F32 => out.extend(value(&mut rng).to_le_bytes()),
                    DType::F16 => out.extend(f16::from_f32(value(&mut rng)).to_le_bytes()),
                    DType::BF16 => out.extend(bf16::from_f32(value(&mut rng)).to_le_bytes()),
                    DType::I64 => out.extend((rng.below(IDS) as i64).to_le_bytes()),
                    DType::I32 | DType::U32 => out.extend((rng.below(IDS) as i32).to_le_bytes()),
                    DType::Bool => out.push(rng.below(2) as u8),
                }
            }
        }
        encoding => {
            let (block, bytes) = encoding.block();
            for _ in 0..elements / block {
                let scale = if encoding == Encoding::Q8_0 { 0.01 } else { 0.1 } * fan;
                let (scale_at, least_at) = scales_of(encoding);
                let start = out.len();
                let heads = usize::from(scale_at == 0) * 2 + usize::from(least_at == Some(2)) * 2;
                out.resize(start + heads, 0);
                out.extend((heads..bytes).map(|_| rng.below(256) as u8));
                let mut put = |at: usize, x: f32| {
                    out[start + at..start + at + 2].copy_from_slice(&f16::from_f32(x).to_le_bytes());
                };
                match encoding {
                    // A power of two alone.
                    Encoding::Mxfp4 | Encoding::E8M0 => out[start] = 124,
                    Encoding::Scaled { .. } => {}
                    Encoding::Q4_1 | Encoding::Q5_1 => {
                        put(scale_at, scale);
                        put(2, -8.0 * scale);
                    }
                    _ => {
                        put(scale_at, scale);
                        if let Some(at) = least_at {
                            put(at, scale);
                        }
                    }
                }
            }
        }
    }
    out
}

/// Where a block has its f16 scale and minimum.
fn scales_of(encoding: Encoding) -> (usize, Option<usize>) {
    match encoding {
        Encoding::Q2K => (80, Some(82)),
        Encoding::Q3K => (108, None),
        Encoding::Q6K => (208, None),
        Encoding::Q4_1 | Encoding::Q5_1 | Encoding::Q4K | Encoding::Q5K => (0, Some(2)),
        _ => (0, None),
    }
}

impl Steps {
    /// Two steps: one that fills the bucket of 16 tokens, and one that is smaller than any.
    pub fn new(seed: u64) -> Steps {
        let mut rng = Rng::new(seed ^ 0x57e9);
        let slots = MAX_BATCH * MAX_SEQ;
        let full = Bindings { tokens: slots, seqs: MAX_BATCH, rows: MAX_BATCH, context: MAX_SEQ, slots };
        let tokens = rng.within(1, 7);
        let small = Bindings {
            tokens,
            seqs: rng.within(1, MAX_BATCH),
            rows: rng.within(1, tokens),
            context: rng.within(3, MAX_SEQ),
            slots,
        };
        let steps = [full, small].map(|bind| (bind, inputs(&bind, bind.context, &mut rng)));
        Steps { steps: steps.into(), seed }
    }

    /// One step of an entry; in decode a sequence has one token at most.
    pub fn single(entry: &Entry, seed: u64) -> Steps {
        let bind = entry.bind;
        let each = if entry.role == Role::Decode { 1 } else { bind.context };
        let inputs = inputs(&bind, each, &mut Rng::new(seed ^ 0x57e9));
        Steps { steps: vec![(bind, inputs)], seed }
    }

    /// States before the first step.
    pub fn states<R: Real>(&self, graph: &Graph) -> States<R> {
        let mut states = States::new();
        let Some((bind, _)) = self.steps.first() else { return states };
        for node in &graph.nodes {
            if let Op::State { name, ty } = &node.op {
                let mut rng = Rng::named(self.seed, name);
                let values = (0..bind.elements(&ty.shape)).map(|_| rng.signed().round_to(ty.dtype()));
                let shape = bind.shape(&ty.shape);
                if let Ok(value) = Tensor::real(R::from_f32s(values.collect()), shape) {
                    states.put(name, value);
                }
            }
        }
        states
    }
}

/// Inputs that a runtime could give: ragged sequences of at most `each` tokens, each token with a position and a slot of
/// its own; the rest is padding.
fn inputs(bind: &Bindings, each: usize, rng: &mut Rng) -> StepInputs {
    let mut s = StepInputs::default();
    let mut left = if rng.chance(30) { bind.tokens.saturating_sub(1).max(1) } else { bind.tokens };
    for sequence in 0..bind.seqs {
        let most = left.min(bind.context).min(each);
        let count = if sequence + 1 == bind.seqs { most } else { rng.within(0, most) };
        let start = rng.within(0, bind.context - count);
        for position in start..start + count {
            s.positions.push(position as i32);
            s.sequences.push(sequence as i32);
            s.slots.push((sequence * MAX_SEQ + position) as i32);
        }
        left -= count;
    }
    s.positions.resize(bind.tokens, 0);
    s.sequences.resize(bind.tokens, 0);
    s.slots.resize(bind.tokens, -1);
    s.token_ids = (0..bind.tokens).map(|_| rng.below(IDS) as i32).collect();
    s.token_types = (0..bind.tokens).map(|_| rng.below(2) as i32).collect();
    s.prompts = (0..bind.tokens).map(|_| rng.below(bind.context + 1) as i32).collect();
    s.lengths = (0..bind.seqs).map(|_| rng.within(1, bind.context) as i32).collect();
    s.slot_base = (0..bind.seqs).map(|i| (i * MAX_SEQ) as i32).collect();
    s.output_rows = (0..bind.rows).map(|_| rng.below(bind.tokens) as i32).collect();
    s.temperature = (0..bind.rows).map(|_| rng.pick(&[0.0, 0.0, 0.7, 1.0])).collect();
    s.top_k = (0..bind.rows).map(|_| rng.pick(&[0, 1, 3])).collect();
    s.top_p = (0..bind.rows).map(|_| rng.pick(&[1.0, 0.9, 0.5])).collect();
    s.min_p = (0..bind.rows).map(|_| rng.pick(&[0.0, 0.0, 0.1])).collect();
    s.repetition_penalty = (0..bind.rows).map(|_| rng.pick(&[1.0, 1.0, 1.3, 0.8])).collect();
    s.presence_penalty = (0..bind.rows).map(|_| rng.pick(&[0.0, 0.0, 0.6])).collect();
    s.prompt_lengths = (0..bind.rows).map(|_| rng.below(bind.context) as i32).collect();
    s.seed = (0..bind.rows).map(|_| rng.bits() as u32).collect();
    s
}
