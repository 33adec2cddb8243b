//! Near misses of the rewrite rules: for each rule a graph that it applies to, and others that differ from it in one
//! thing, which it must leave alone. A rule without one fails.

use weft_ir::dtype::DType;
use weft_ir::graph::{Graph, GraphBuilder, Input, Op, ValueType};
use weft_ir::ids::NodeId;
use weft_ir::scalar::{Binary, Reduce, Unary};
use weft_ir::shape::{Bindings, Dim, Sym};
use weft_ir::target::Target;
use weft_passes::eqsat::{self, CostModel, rules};
use weft_passes::{Products, Selection};

const BIND: Bindings = Bindings { tokens: 5, seqs: 2, rows: 2, context: 8, slots: 16 };
const T: Dim = Dim::Sym(Sym::Tokens);
const C: fn(usize) -> Dim = Dim::Const;

/// A graph's value; `change` is how it differs from what the rule is about, nothing where it does not.
type Make = fn(&mut Maker, &str) -> NodeId;

/// Every rule with what changes make near misses of its graph.
const CASES: [(&str, Make, &[&str]); 15] = [
    ("identity-movement", identity, &["transposed", "narrower"]),
    ("join-reshapes", reshapes, &["transposed between"]),
    ("join-transposes", transposes, &["reshaped between"]),
    ("join-slices", slices, &["another axis", "rounded between"]),
    ("slice-of-concat", slice_of_concat, &["across the seam", "another axis"]),
    ("concat-of-slices", concat_of_slices, &["order", "gap", "overlap", "not to the end", "two values"]),
    ("join-casts", casts, &["through bf16", "through f16", "through whole numbers"]),
    ("times-one", times_one, &["0.999", "one over it", "one in one column"]),
    ("fold-constants", fold, &["inexact", "divided", "a weight"]),
    ("join-negations", negations, &["absolute between", "once"]),
    ("absorb-latent", latent, &["two queries a key", "computed matrices"]),
    ("pair-rotary-halves", rotary, &["quarters"]),
    ("pair-gate-up", gated, &["two inputs", "one value"]),
    ("merge-linears", linears, &["two inputs", "two types"]),
    ("norm-prologue", norm, &["a scale of each element"]),
];

struct Maker {
    g: GraphBuilder,
}

impl Maker {
    fn weight(&mut self, name: &str, shape: &[usize]) -> NodeId {
        let shape = shape.iter().map(|&n| C(n)).collect();
        self.g.weight(name, ValueType::plain(DType::F32, shape))
    }

    /// Rows [t, width] of a table.
    fn rows(&mut self, table: &str, width: usize) -> NodeId {
        let table = self.weight(table, &[11, width]);
        let ids = self.g.input(Input::TokenIds);
        self.g.gather(table, ids)
    }

    /// Values [t, 4, 4].
    fn square(&mut self) -> NodeId {
        let x = self.rows("x", 16);
        self.g.reshape(x, vec![T, C(4), C(4)])
    }

    fn linear(&mut self, x: NodeId, name: &str, n: usize) -> NodeId {
        let k = self.g.shape(x)[1].as_const().expect("width");
        let w = self.weight(name, &[n, k]);
        self.g.matmul_t(x, w, DType::F32)
    }

    fn mul(&mut self, a: NodeId, b: NodeId) -> NodeId {
        self.g.binary(Binary::Mul, a, b)
    }
}

fn identity(m: &mut Maker, change: &str) -> NodeId {
    let x = m.square();
    match change {
        // Of the same shape, but other elements in their places.
        "transposed" => m.g.add(Op::Transpose(vec![0, 2, 1]), &[x]),
        "narrower" => m.g.add(Op::Cast(DType::BF16), &[x]),
        _ => m.g.add(Op::Transpose(vec![0, 1, 2]), &[x]),
    }
}

fn reshapes(m: &mut Maker, change: &str) -> NodeId {
    let mut x = m.square();
    if change == "transposed between" {
        x = m.g.transpose(x, &[0, 2, 1]);
    }
    m.g.reshape(x, vec![T, C(2), C(8)])
}

fn transposes(m: &mut Maker, change: &str) -> NodeId {
    let x = m.square();
    let mut x = m.g.transpose(x, &[0, 2, 1]);
    if change == "reshaped between" {
        x = m.g.reshape(x, vec![T, C(2), C(8)]);
    }
    m.g.transpose(x, &[1, 0, 2])
}

fn slices(m: &mut Maker, change: &str) -> NodeId {
    let x = m.square();
    let mut x = m.g.slice(x, 2, 1, 3);
    if change == "rounded between" {
        x = m.g.cast(x, DType::BF16);
    }
    m.g.slice(x, if change == "another axis" { 1 } else { 2 }, 1, 2)
}

fn slice_of_concat(m: &mut Maker, change: &str) -> NodeId {
    let (x, y) = (m.square(), m.rows("y", 16));
    let y = m.g.reshape(y, vec![T, C(4), C(4)]);
    let both = m.g.concat(&[x, y], 2);
    match change {
        "across the seam" => m.g.slice(both, 2, 3, 2),
        "another axis" => m.g.slice(both, 1, 0, 2),
        _ => m.g.slice(both, 2, 4, 2),
    }
}

fn concat_of_slices(m: &mut Maker, change: &str) -> NodeId {
    let (x, y) = (m.rows("x", 16), m.rows("y", 16));
    let (parts, other) = match change {
        "order" => ([(6, 10), (0, 6)], x),
        "gap" => ([(0, 6), (7, 9)], x),
        "overlap" => ([(0, 6), (5, 11)], x),
        "not to the end" => ([(0, 6), (6, 9)], x),
        "two values" => ([(0, 6), (6, 10)], y),
        _ => ([(0, 6), (6, 10)], x),
    };
    let [(a, n), (b, k)] = parts;
    let parts = [m.g.slice(x, 1, a, n), m.g.slice(other, 1, b, k)];
    m.g.concat(&parts, 1)
}

fn casts(m: &mut Maker, change: &str) -> NodeId {
    let x = m.rows("x", 8);
    let (from, through, to) = match change {
        "through bf16" => (DType::F32, DType::BF16, DType::F32),
        "through f16" => (DType::BF16, DType::F16, DType::F32),
        "through whole numbers" => (DType::F32, DType::I32, DType::BF16),
        _ => (DType::BF16, DType::F32, DType::F16),
    };
    let mut x = m.g.cast(x, from);
    if from != DType::F32 {
        // No cast itself.
        x = m.g.unary(Unary::Abs, x);
    }
    let x = m.g.cast(x, through);
    m.g.cast(x, to)
}

fn times_one(m: &mut Maker, change: &str) -> NodeId {
    let x = m.rows("x", 2);
    if change == "one in one column" {
        let c = m.g.constant(vec![1.0, 1.5], vec![C(1), C(2)]);
        return m.mul(x, c);
    }
    let c = m.g.scalar_like(if change == "0.999" { 0.999 } else { 1.0 }, x);
    if change == "one over it" { m.g.binary(Binary::Div, c, x) } else { m.mul(x, c) }
}

fn fold(m: &mut Maker, change: &str) -> NodeId {
    let x = m.rows("x", 8);
    let values = if change == "inexact" { [0.1, 0.2] } else { [0.25, 1.5] };
    let [a, mut b] = values.map(|v| m.g.scalar_like(v, x));
    if change == "a weight" {
        b = m.weight("b", &[1, 8]);
    }
    let op = if change == "divided" { Binary::Div } else { Binary::Add };
    let c = m.g.binary(op, a, b);
    m.mul(x, c)
}

fn negations(m: &mut Maker, change: &str) -> NodeId {
    let x = m.rows("x", 8);
    let y = m.g.unary(Unary::Neg, x);
    let y = if change == "absolute between" { m.g.unary(Unary::Abs, y) } else { y };
    if change == "once" { y } else { m.g.unary(Unary::Neg, y) }
}

/// Attention to cached rows [slots, rank], of which keys and values of two heads are products.
fn latent(m: &mut Maker, change: &str) -> NodeId {
    let (slots, heads, d, rank) = (Dim::Sym(Sym::Slots), 2, 4, 8);
    let x = m.rows("x", 16);
    let group = if change == "two queries a key" { 2 } else { 1 };
    let q = m.linear(x, "q", heads * group * d);
    let q = m.g.reshape(q, vec![T, C(heads), C(group), C(d)]);
    let cache = m.g.state("cache", ValueType::plain(DType::F32, vec![slots, C(1), C(rank)]));
    let narrow = m.g.reshape(cache, vec![slots, C(rank)]);
    let j = m.g.iota(1, vec![T, Dim::Sym(Sym::Context)]);
    let mut read = |name: &str| {
        let mut w = m.weight(name, &[heads * d, rank]);
        if change == "computed matrices" {
            w = m.g.unary(Unary::Tanh, w);
        }
        let y = m.g.matmul_t(narrow, w, DType::F32);
        let y = m.g.reshape(y, vec![slots, C(heads), C(d)]);
        let y = m.g.gather(y, j);
        m.g.transpose(y, &[0, 2, 1, 3])
    };
    let (keys, values) = (read("k"), read("v"));
    let scores = m.g.matmul_t(q, keys, DType::F32);
    let weights = m.g.softmax(scores);
    m.g.matmul(weights, values, DType::F32)
}

fn rotary(m: &mut Maker, change: &str) -> NodeId {
    let x = m.rows("x", 16);
    let y = m.linear(x, "q", 16);
    let y = m.g.reshape(y, vec![T, C(2), C(8)]);
    let n = if change == "quarters" { 2 } else { 4 };
    let (low, high) = (m.g.slice(y, 2, 0, n), m.g.slice(y, 2, 4, n));
    let parts = [m.g.binary(Binary::Sub, low, high), m.g.binary(Binary::Add, low, high)];
    m.g.concat(&parts, 2)
}

fn gated(m: &mut Maker, change: &str) -> NodeId {
    let x = m.rows("x", 16);
    let gate = m.linear(x, "gate", 8);
    let up = match change {
        "two inputs" => {
            let x = m.g.unary(Unary::Tanh, x);
            m.linear(x, "up", 8)
        }
        "one value" => gate,
        _ => m.linear(x, "up", 8),
    };
    let gate = m.g.unary(Unary::Silu, gate);
    m.mul(gate, up)
}

fn linears(m: &mut Maker, change: &str) -> NodeId {
    let x = m.rows("x", 16);
    let other = if change == "two inputs" { m.g.unary(Unary::Tanh, x) } else { x };
    let (a, b) = (m.linear(x, "a", 8), m.linear(other, "b", 8));
    if change == "two types" {
        let w = m.weight("b16", &[8, 16]);
        let (b, a) = (m.g.matmul_t(x, w, DType::BF16), m.g.slice(a, 1, 0, 8));
        let b = m.g.cast(b, DType::F32);
        return m.g.concat(&[a, b], 1);
    }
    m.g.concat(&[a, b], 1)
}

fn norm(m: &mut Maker, change: &str) -> NodeId {
    let x = m.rows("x", 16);
    let square = m.mul(x, x);
    let mean = if change == "a scale of each element" { square } else { m.g.reduce(Reduce::Mean, square) };
    let eps = m.g.scalar_like(1e-5, mean);
    let mean = m.g.binary(Binary::Add, mean, eps);
    let scale = m.g.unary(Unary::Rsqrt, mean);
    let y = m.mul(x, scale);
    let w = m.weight("norm", &[1, 16]);
    let y = m.mul(y, w);
    m.linear(y, "w", 8)
}

/// How often a rule is applied to a graph, with those alone that it needs.
fn applied(rule: &rules::Rule, make: Make, change: &str) -> usize {
    let mut m = Maker { g: GraphBuilder::new() };
    let y = make(&mut m, change);
    m.g.output("y", y);
    let graph: Graph = m.g.finish().unwrap_or_else(|e| panic!("{} {change}: {e}", rule.name));
    let profile = Target::parse("sm_90").expect("sm_90").profile;
    let model = CostModel { bind: BIND, profile, products: Products::Streams };
    let others = rules::all().into_iter().map(|r| r.name);
    let off: Vec<&str> = others.filter(|n| *n != rule.name && !rule.needs.contains(n)).collect();
    let made = eqsat::run(&graph, &[model], &Selection::without(&off)).unwrap_or_else(|e| panic!("{e}"));
    made[0].1.applied.get(rule.name).copied().unwrap_or(0)
}

#[test]
fn every_rule_leaves_near_misses_alone() {
    for rule in rules::all() {
        let case = CASES.iter().find(|(name, ..)| *name == rule.name);
        let (_, make, changes) =
            case.unwrap_or_else(|| panic!("no near miss of rule {}: add one", rule.name));
        assert!(!changes.is_empty(), "no near miss of rule {}", rule.name);
        assert!(applied(&rule, *make, "") > 0, "{} does not apply to its own graph", rule.name);
        for change in *changes {
            assert_eq!(applied(&rule, *make, change), 0, "{}: {change}", rule.name);
        }
    }
    assert_eq!(CASES.len(), rules::all().len());
}
