//! Plans of one attention over a cache, for tests of the kernels that take keys one by one: any shape, tokens of
//! any number of keys, with what may be done to the scores.

use crate::one_work::OneWork;
use std::collections::HashMap;
use weft_ir::dtype::{DType, Encoding};
use weft_ir::graph::Literal;
use weft_ir::ids::{BufferId, OperandId};
use weft_ir::plan::{
    Attention, AttentionProjection, Buffer, BufferKind, Compute, Operand, Pack, Plan, Scalar, Schedule, Work,
};
use weft_ir::reference::WeightBytes;
use weft_ir::scalar::{Binary, Unary};
use weft_ir::shape::{Bindings, Dim};
use weft_ir::target::Target;

use crate::product::{TOKENS, at, less, load_at, op, store};

/// A token of a step: what it is (its query and where its keys lie follow from it), and its number of keys.
pub type Token = (usize, i32);

/// Heads, sizes and types of an attention.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// Heads of keys and values.
    pub kv_heads: usize,
    /// Query heads for each.
    pub group: usize,
    /// Elements of a key.
    pub head_dim: usize,
    /// Elements of a value.
    pub value_dim: usize,
    /// Type of queries, keys, values and results.
    pub dtype: DType,
    /// Only so many of the last keys count; the others have no slot, so that reading one is out of bounds.
    pub window: Option<i32>,
    /// Scores are bent into ± this.
    pub cap: Option<f32>,
    /// Whether each head has a score without a key.
    pub sink: bool,
    /// Whether values are the first elements of the keys' rows.
    pub latent: bool,
    /// Whether all keys of a token but the last may be read before the dependency wait.
    pub settled: bool,
    /// Columns of a projection that attention makes of its outputs; 0 where it makes none.
    pub projected: usize,
}

impl Shape {
    /// A plain one.
    pub fn new(kv_heads: usize, group: usize, head_dim: usize, dtype: DType) -> Shape {
        let (window, cap, sink, latent, settled) = (None, None, false, false, false);
        let (value_dim, projected) = (head_dim, 0);
        Shape { kv_heads, group, head_dim, value_dim, dtype, window, cap, sink, latent, settled, projected }
    }
}

/// Arrays of a plan.
pub struct Arrays {
    bytes: HashMap<String, Vec<u8>>,
}

impl WeightBytes for Arrays {
    fn bytes(&self, tensor: &str) -> Option<&[u8]> {
        self.bytes.get(tensor).map(Vec::as_slice)
    }
}

/// Values in ±size that a seed makes.
fn values(seed: u32, n: usize, size: f32) -> impl Iterator<Item = f32> {
    let mut state = seed.wrapping_mul(2_654_435_769) | 1;
    (0..n).map(move |_| {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        ((state >> 8) as f32 / (1 << 23) as f32 - 1.0) * size
    })
}

fn bits(dtype: DType, v: f32) -> Vec<u8> {
    match dtype {
        DType::BF16 => half::bf16::from_f32(v).to_le_bytes().to_vec(),
        DType::F16 => half::f16::from_f32(v).to_le_bytes().to_vec(),
        _ => v.to_le_bytes().to_vec(),
    }
}

struct Maker {
    arrays: Arrays,
    buffers: Vec<Buffer>,
    reads: Vec<Operand>,
}

impl Maker {
    fn read(&mut self, name: &str, dtype: DType, shape: &[usize], kind: BufferKind) -> OperandId {
        let shape: Vec<Dim> = shape.iter().map(|&n| Dim::Const(n)).collect();
        self.buffers.push(Buffer { name: name.into(), dtype, shape: shape.clone(), kind });
        self.reads.push(Operand { name: name.into(), dtype, shape, constant: false });
        OperandId::new(self.reads.len() - 1)
    }

    fn floats(&mut self, name: &str, dtype: DType, shape: &[usize], v: &[f32]) -> OperandId {
        let bytes = v.iter().flat_map(|v| bits(dtype, *v)).collect();
        self.arrays.bytes.insert(name.into(), bytes);
        let pack = Pack::Tensor { name: name.into(), encoding: Encoding::Plain(dtype), shape: shape.into() };
        self.read(name, dtype, shape, BufferKind::Weight(pack))
    }

    fn ints(&mut self, name: &str, v: Vec<i32>) -> OperandId {
        self.read(name, DType::I32, &[v.len()], BufferKind::Literal(Literal::I32(v)))
    }
}

/// The plan of a step of these tokens with an output `y`, and its arrays; `tweak` changes the schedule that is
/// chosen for the longest context, `context`.
///
/// # Panics
/// When it is not valid, or does not survive its text form.
pub fn plan(
    s: &Shape,
    tokens: &[Token],
    context: usize,
    target: &str,
    tweak: &dyn Fn(&mut Schedule),
) -> (Plan, Arrays) {
    let target = Target::parse(target).expect("a target");
    let mut m = Maker { arrays: Arrays { bytes: HashMap::new() }, buffers: Vec::new(), reads: Vec::new() };
    let heads = s.kv_heads * s.group;
    let slots = 8 * 16 + tokens.iter().map(|t| t.1 as usize).max().unwrap_or(1);
    let q: Vec<f32> =
        tokens.iter().flat_map(|(id, _)| values(*id as u32 + 7, heads * s.head_dim, 4.0)).collect();
    let q = m.floats("q", s.dtype, &[tokens.len(), heads, s.head_dim], &q);
    // A row is the same whatever the number of rows.
    let rows = |seed: u32, width: usize| -> Vec<f32> {
        (0..slots).flat_map(|slot| values(seed + slot as u32 * 3, s.kv_heads * width, 1.0)).collect()
    };
    let keys = m.floats("keys", s.dtype, &[slots, s.kv_heads, s.head_dim], &rows(1000, s.head_dim));
    let v = match s.latent {
        true => keys,
        false => m.floats("values", s.dtype, &[slots, s.kv_heads, s.value_dim], &rows(2000, s.value_dim)),
    };
    let lengths = m.ints("lengths", tokens.iter().map(|t| t.1).collect());
    // Tiles of tokens begin at a tile of keys.
    let begin = if tokens.len() > 8 { 64 } else { 1 };
    let base = |t: &Token| match s.window {
        Some(window) if t.1 > window => (window - t.1) / begin * begin,
        _ => t.0 as i32 * 16,
    };
    let bases = m.ints("bases", tokens.iter().map(base).collect());
    let length = load_at(lengths, &[at(0)]);
    let scale = Scalar::Float(1.0 / (s.head_dim as f32).sqrt());
    let mut score = op(Binary::Mul, Scalar::Acc(0), scale);
    if let Some(cap) = s.cap {
        let bent = Scalar::unary(Unary::Tanh, op(Binary::Div, score, Scalar::Float(cap)));
        score = op(Binary::Mul, bent, Scalar::Float(cap));
    }
    if let Some(window) = s.window {
        let oldest = op(Binary::Sub, length.clone(), Scalar::Int(i64::from(window)));
        let hidden = Box::new(Scalar::Float(-1e30));
        score = Scalar::Select(Box::new(less(at(2), oldest)), hidden, Box::new(score));
    }
    let sink = s.sink.then(|| {
        let scores: Vec<f32> = values(5, heads, 2.0).collect();
        load_at(m.floats("sinks", DType::F32, &[heads], &scores), &[at(1)])
    });
    let projection = (s.projected > 0).then(|| {
        let k = heads * s.value_dim;
        let weight: Vec<f32> = values(11, s.projected * k, 0.5).collect();
        let weight = m.floats("projection", s.dtype, &[s.projected, k], &weight);
        m.reads[weight.index()].constant = true;
        Box::new(AttentionProjection {
            weight,
            columns: s.projected,
            value: Scalar::Cast(s.dtype, Box::new(Scalar::Acc(0))),
        })
    });
    let (rows, elements, dtype) = match &projection {
        Some(p) => (s.kv_heads, p.columns, DType::F32),
        None => (heads, s.value_dim, s.dtype),
    };
    let shape = vec![TOKENS, Dim::Const(rows), Dim::Const(elements)];
    let out = Operand { name: "y".into(), dtype, shape: shape.clone(), constant: false };
    m.buffers.push(Buffer { name: "y".into(), dtype, shape, kind: BufferKind::Output("y".into()) });
    let attention = Attention {
        settled: s.settled,
        tokens: TOKENS,
        kv_heads: s.kv_heads,
        group: s.group,
        head_dim: s.head_dim,
        value_dim: s.value_dim,
        q,
        keys,
        values: v,
        slot: op(Binary::Add, load_at(bases, &[at(0)]), at(1)),
        length,
        score,
        sink,
        window: s.window.map(|w| w as usize),
        prologue: None,
        projection,
        stores: vec![store(0, &[at(0), at(1), at(2)], Scalar::Acc(0), None)],
    };
    if s.settled {
        // As inputs of a step are.
        for o in [lengths, bases] {
            m.reads[o.index()].constant = true;
        }
    }
    let bind = Bindings { tokens: tokens.len(), seqs: tokens.len(), rows: tokens.len(), context, slots };
    let reads = (0..m.reads.len()).map(BufferId::new).collect();
    let writes = vec![BufferId::new(m.buffers.len() - 1)];
    let work = Work {
        name: "attention".into(),
        compute: Compute::Attention(attention),
        reads: m.reads,
        writes: vec![out],
        in_place: vec![],
        ops: vec!["matmul".into()],
        rules: vec![],
    };
    let one = OneWork { work, buffers: m.buffers, on: [reads, writes], bind, dtype: s.dtype };
    (one.plan(target, tweak), m.arrays)
}
