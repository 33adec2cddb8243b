//! Every rewrite rule on random instances: all equalities that it adds hold, to the class it claims.
//!
//! For each rule a maker gives a graph that it applies to, in random sizes and types. The graph is saturated
//! with that rule (and those it builds on), and every alternative of every class is evaluated beside the form
//! that was taken. Near misses of every rule are in `near_misses.rs`, more of those of linear layers in `eqsat.rs`.

use std::collections::BTreeMap;
use weft_ir::dtype::DType;
use weft_ir::graph::{Graph, GraphBuilder, Input, Op, ValueType};
use weft_ir::ids::NodeId;
use weft_ir::reference::{Precision, Real, States, StepInputs, load, step};
use weft_ir::scalar::{Binary, Reduce, Unary};
use weft_ir::shape::{Bindings, Dim, Sym};
use weft_ir::target::Target;
use weft_passes::eqsat::{CostModel, equalities, rules};
use weft_passes::{Numerics, Products, Selection};

const BIND: Bindings = Bindings { tokens: 3, seqs: 1, rows: 1, context: 4, slots: 8 };
const T: Dim = Dim::Sym(Sym::Tokens);
/// Instances of each rule.
const INSTANCES: u64 = 24;

struct Rng(u64);

impl Rng {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        self.0 >> 33
    }

    fn up_to(&mut self, low: usize, high: usize) -> usize {
        low + self.next() as usize % (high - low + 1)
    }

    fn dtype(&mut self) -> DType {
        [DType::F32, DType::BF16, DType::F16][self.up_to(0, 2)]
    }
}

struct Maker {
    g: GraphBuilder,
    rng: Rng,
    weights: BTreeMap<String, Vec<u8>>,
}

impl Maker {
    fn new(seed: u64) -> Maker {
        let mut rng = Rng(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15).wrapping_add(77));
        (0..4).for_each(|_| {
            rng.next();
        });
        Maker { g: GraphBuilder::new(), rng, weights: BTreeMap::new() }
    }

    /// A stored f32 tensor; values are small multiples of 1/64, which every type holds.
    fn weight(&mut self, name: &str, shape: &[usize]) -> NodeId {
        let count: usize = shape.iter().product();
        let values: Vec<f32> = (0..count).map(|_| (self.rng.up_to(0, 200) as f32 - 100.0) / 64.0).collect();
        self.weights.insert(name.into(), values.iter().flat_map(|v| v.to_le_bytes()).collect());
        let shape = shape.iter().map(|&n| Dim::Const(n)).collect();
        self.g.weight(name, ValueType::plain(DType::F32, shape))
    }

    /// Computed rows [t, width] of a type.
    fn rows(&mut self, width: usize, dtype: DType) -> NodeId {
        let table = self.weight("table", &[11, width]);
        let ids = self.g.input(Input::TokenIds);
        let x = self.g.gather(table, ids);
        let x = self.g.unary(Unary::Abs, x);
        self.g.cast(x, dtype)
    }

    fn linear(&mut self, x: NodeId, name: &str, n: usize) -> NodeId {
        let k = self.g.shape(x)[1].as_const().expect("width");
        let w = self.weight(name, &[n, k]);
        let w = self.g.cast(w, self.g.dtype(x));
        self.g.matmul_t(x, w, DType::F32)
    }

    fn split(&mut self, x: NodeId, parts: &[usize]) -> NodeId {
        let shape = std::iter::once(T).chain(parts.iter().map(|&n| Dim::Const(n))).collect();
        self.g.reshape(x, shape)
    }

    fn bias(&mut self, y: NodeId, n: usize) -> NodeId {
        let b = self.weight("bias", &[1, n]);
        let b = self.g.broadcast(b, vec![T, Dim::Const(n)]);
        self.g.binary(Binary::Add, y, b)
    }
}

/// The value that the rule is about, and rules that it builds on.
fn instance(rule: &str, m: &mut Maker) -> (NodeId, &'static [&'static str]) {
    let dtype = m.rng.dtype();
    let (a, b, c) = (m.rng.up_to(1, 4), m.rng.up_to(1, 5), m.rng.up_to(1, 3));
    let none: &'static [&'static str] = &[];
    match rule {
        "identity-movement" => {
            let x = m.rows(a * b, dtype);
            let shape = m.g.shape(x);
            let op = match m.rng.up_to(0, 4) {
                0 => Op::Reshape(shape),
                1 => Op::Transpose(vec![0, 1]),
                2 => Op::Slice { axis: 1, start: 0, len: a * b },
                3 => Op::Broadcast(shape),
                _ => Op::Cast(dtype),
            };
            (m.g.add(op, &[x]), none)
        }
        "join-reshapes" => {
            let x = m.rows(a * b * c, dtype);
            let y = m.split(x, &[a, b * c]);
            (m.split(y, &[a * b, c]), none)
        }
        "join-transposes" => {
            let x = m.rows(a * b, dtype);
            let x = m.split(x, &[a, b]);
            let perms = [[0, 2, 1], [1, 0, 2], [2, 0, 1], [1, 2, 0], [2, 1, 0]];
            let (p, q) = (perms[m.rng.up_to(0, 4)], perms[m.rng.up_to(0, 4)]);
            let y = m.g.add(Op::Transpose(p.to_vec()), &[x]);
            (m.g.add(Op::Transpose(q.to_vec()), &[y]), none)
        }
        "join-slices" => {
            let x = m.rows(a + b + c + 2, dtype);
            let y = m.g.slice(x, 1, a, b + c + 1);
            (m.g.slice(y, 1, b, c), none)
        }
        "slice-of-concat" => {
            let x = m.rows(a + b, dtype);
            let other = m.g.unary(Unary::Neg, x);
            let both = m.g.concat(&[x, other], 1);
            (m.g.slice(both, 1, a + b + a - 1, b), none)
        }
        "concat-of-slices" => {
            let x = m.rows(a + b + c, dtype);
            let mut parts = vec![m.g.slice(x, 1, 0, a), m.g.slice(x, 1, a, b)];
            let x2 = m.g.slice(x, 1, a + b, c);
            if m.rng.up_to(0, 1) == 0 {
                parts.push(x2);
                return (m.g.concat(&parts, 1), none);
            }
            let rest = m.g.slice(x, 1, a, b + c);
            (m.g.concat(&[parts[0], rest], 1), none)
        }
        "join-casts" => {
            let x = m.rows(a, DType::BF16);
            let wide = m.g.cast(x, DType::F32);
            (m.g.cast(wide, dtype), none)
        }
        "times-one" => {
            let x = m.rows(a, DType::F32);
            let one = m.g.scalar_like(1.0, x);
            let op = if m.rng.up_to(0, 1) == 0 { Binary::Mul } else { Binary::Div };
            (m.g.binary(op, x, one), none)
        }
        "fold-constants" => {
            let x = m.rows(a, DType::F32);
            let (p, q) = (m.g.scalar_like(b as f32 * 0.25, x), m.g.scalar_like(c as f32 * 1.5, x));
            let op = [Binary::Add, Binary::Sub, Binary::Mul][m.rng.up_to(0, 2)];
            let folded = m.g.binary(op, p, q);
            (m.g.binary(Binary::Add, x, folded), none)
        }
        "join-negations" => {
            let x = m.rows(a, dtype);
            let y = m.g.unary(Unary::Neg, x);
            (m.g.unary(Unary::Neg, y), none)
        }
        "pair-rotary-halves" => {
            let (heads, half, rest) = (a, b, m.rng.up_to(0, 2) * 2);
            let n = heads * (2 * half + rest);
            let x = m.rows(c * 4, dtype);
            let mut y = m.linear(x, "q", n);
            if m.rng.up_to(0, 1) == 0 {
                y = m.bias(y, n);
            }
            let y = m.split(y, &[heads, 2 * half + rest]);
            let (low, high) = (m.g.slice(y, 2, 0, half), m.g.slice(y, 2, half, half));
            let mut parts = vec![m.g.binary(Binary::Sub, low, high), m.g.binary(Binary::Add, low, high)];
            if rest > 0 {
                parts.push(m.g.slice(y, 2, 2 * half, rest));
            }
            (m.g.concat(&parts, 2), none)
        }
        "merge-linears" => {
            let x = m.rows(c * 4, dtype);
            let (p, q) = (m.linear(x, "p", a), m.linear(x, "q", b));
            (m.g.concat(&[p, q], 1), none)
        }
        "pair-gate-up" => {
            let x = m.rows(c * 4, dtype);
            let (mut gate, up) = (m.linear(x, "gate", a), m.linear(x, "up", a));
            if m.rng.up_to(0, 1) == 0 {
                gate = m.bias(gate, a);
            }
            let gate = match m.rng.up_to(0, 2) {
                0 => m.g.unary(Unary::Silu, gate),
                1 => {
                    let zero = m.g.scalar_like(0.0, gate);
                    m.g.binary(Binary::Max, gate, zero)
                }
                _ => {
                    let scale = m.g.scalar_like(1.702, gate);
                    let s = m.g.binary(Binary::Mul, gate, scale);
                    let s = m.g.unary(Unary::Sigmoid, s);
                    m.g.binary(Binary::Mul, gate, s)
                }
            };
            (m.g.binary(Binary::Mul, gate, up), &["merge-linears"])
        }
        "norm-prologue" => {
            let x = m.rows(c * 4, DType::F32);
            let square = m.g.binary(Binary::Mul, x, x);
            let mean = m.g.reduce(Reduce::Mean, square);
            let eps = m.g.scalar_like(1e-5, mean);
            let mean = m.g.binary(Binary::Add, mean, eps);
            let scale = m.g.unary(Unary::Rsqrt, mean);
            let y = m.g.binary(Binary::Mul, x, scale);
            let w = m.weight("norm", &[1, c * 4]);
            let y = m.g.binary(Binary::Mul, y, w);
            let y = m.g.add(Op::Cast(dtype), &[y]);
            (m.linear(y, "w", a), none)
        }
        "absorb-latent" => (latent_attention(m, dtype, [a, b, 2 * c, b + c]), none),
        other => panic!("no instances of rule {other}: add some"),
    }
}

/// Attention to rows of which keys and values are products, with elements that the keys of all heads share, or
/// without.
fn latent_attention(m: &mut Maker, dtype: DType, [heads, d, rank, value]: [usize; 4]) -> NodeId {
    let shared = m.rng.up_to(0, 2);
    let x = m.rows(rank + shared, dtype);
    let q = m.linear(x, "q", heads * (d + shared));
    let q = m.g.cast(q, dtype);
    let q = m.split(q, &[heads, 1, d + shared]);
    let rows = m.split(x, &[1, rank + shared]);
    let narrow = m.g.slice(rows, 2, 0, rank);
    let narrow = m.split(narrow, &[rank]);
    let part = |m: &mut Maker, name: &str, n: usize| {
        let y = m.linear(narrow, name, heads * n);
        let y = m.g.cast(y, dtype);
        m.split(y, &[heads, n])
    };
    let (mut keys, values) = (part(m, "k", d), part(m, "v", value));
    if shared > 0 {
        let rest = m.g.slice(rows, 2, rank, shared);
        let rest = m.g.broadcast(rest, vec![T, Dim::Const(heads), Dim::Const(shared)]);
        keys = m.g.concat(&[keys, rest], 2);
    }
    let shape = vec![T, Dim::Sym(Sym::Context)];
    let j = m.g.iota(1, shape.clone());
    let last = m.g.iota(0, shape);
    let index = m.g.binary(Binary::Min, j, last);
    let mut read = |rows| {
        let y = m.g.gather(rows, index);
        m.g.transpose(y, &[0, 2, 1, 3])
    };
    let (keys, values) = (read(keys), read(values));
    let scores = m.g.matmul_t(q, keys, DType::F32);
    let weights = m.g.softmax(scores);
    let weights = m.g.cast(weights, dtype);
    m.g.matmul(weights, values, dtype)
}

fn evaluate<R: Real>(
    graph: &Graph,
    weights: &BTreeMap<String, Vec<u8>>,
    precision: Precision,
) -> Vec<Vec<R>> {
    let loaded = load::<R>(graph, weights, precision).unwrap_or_else(|e| panic!("{e}"));
    let inputs = StepInputs { token_ids: vec![3, 1, 4], positions: vec![0, 1, 2], ..StepInputs::default() };
    let out = step(graph, &loaded, &BIND, &inputs, &mut States::new()).unwrap_or_else(|e| panic!("{e}"));
    out.iter().map(|(_, t)| t.to_reals().unwrap_or_default()).collect()
}

#[test]
fn equalities_hold_on_random_instances() {
    let profile = Target::parse("sm_90").expect("sm_90").profile;
    let model = CostModel { bind: BIND, profile, products: Products::Streams };
    for rule in rules::all() {
        let mut checked = 0;
        for seed in 0..INSTANCES {
            let mut m = Maker::new(seed);
            let (value, needs) = instance(rule.name, &mut m);
            m.g.output("y", value);
            let graph = m.g.finish().unwrap_or_else(|e| panic!("{}: {e}", rule.name));
            let off: Vec<&str> = rules::all()
                .iter()
                .map(|r| r.name)
                .filter(|n| *n != rule.name && !needs.contains(n))
                .collect();
            let (pairs, n) = equalities(&graph, &model, &Selection::without(&off))
                .unwrap_or_else(|e| panic!("{}: {e}", rule.name));
            checked += n;
            let f64s = evaluate::<f64>(&pairs, &m.weights, Precision::F64);
            for pair in f64s.chunks(2) {
                let close = |(a, b): (&f64, &f64)| (a - b).abs() <= 1e-12 * a.abs().max(1.0);
                assert!(pair[0].iter().zip(&pair[1]).all(close), "{} seed {seed}\n{pairs}", rule.name);
            }
            if rule.numerics == Numerics::Exact {
                // The order of a product's sum may depend on where its row is in a block of the interpreter's.
                let rounded = evaluate::<f32>(&pairs, &m.weights, Precision::Rounded);
                let has_product = pairs.nodes.iter().any(|n| matches!(n.op, Op::MatMul { .. }));
                let slack = if has_product { 1e-5 } else { 0.0 };
                for pair in rounded.chunks(2) {
                    let same = |(a, b): (&f32, &f32)| (a - b).abs() <= slack * a.abs().max(1.0);
                    assert!(pair[0].iter().zip(&pair[1]).all(same), "{} seed {seed}\n{pairs}", rule.name);
                }
            }
        }
        assert!(
            checked >= INSTANCES as usize / 3,
            "{}: only {checked} equalities in {INSTANCES} graphs",
            rule.name
        );
    }
}
