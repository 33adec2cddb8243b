//! A near miss of every fusion: a graph that has a site of it, and others that differ from it in one thing. A fusion
//! without one fails.

use crate::maker::{Maker, T, WIDTH};
use weft_ir::dtype::DType;
use weft_ir::graph::{Input, Op, ValueType};
use weft_ir::ids::NodeId;
use weft_ir::scalar::{Binary, Compare, Reduce, Unary};
use weft_ir::shape::{Dim, Sym};
use weft_passes::fusion;

/// A graph's value; `change` is how it differs from what the fusion is about, nothing where it does not.
type Make = fn(&mut Maker, &str) -> NodeId;

const C: fn(usize) -> Dim = Dim::Const;

/// Every fusion with what changes make near misses of its graph, which has one site.
const CASES: [(&str, Make, &[&str]); 19] = [
    ("rms-norm", normed, &["root", "largest"]),
    ("layer-norm", layer_norm, &["another's mean", "largest taken off"]),
    ("residual-norm", residual_norm, &["bias", "no product"]),
    ("norm-prologue", norm_prologue, &["needed elsewhere", "root", "its own result"]),
    ("merge-linears", linears, &["two inputs", "two types"]),
    ("linear-bias", bias, &["computed"]),
    ("linear-activation", activation, &["another function", "no product"]),
    ("gated-activation", gated, &["one value", "no activation"]),
    ("residual", residual, &["a number a row", "a product a row"]),
    ("rope", |m, change| rotation(m, change), &["halves", "angle", "signs", "no product"]),
    ("cache-write", cache_write, &["no product", "scaled by itself"]),
    ("attention", |m, change| m.attention(change), &["exp", "sum"]),
    ("attention-epilogue", scores, &["plain", "sum"]),
    ("absorb-latent", latent, &["rows themselves", "computed rows"]),
    ("router", router, &["no weights", "no choice"]),
    ("grouped-experts", experts, &["one matrix", "by itself"]),
    ("head-sample", head_sample, &["no product"]),
    ("elementwise", chain, &["used twice", "one op", "reduced between"]),
    ("fold-cast", cast, &["of whole numbers", "at load"]),
];

fn normed(m: &mut Maker, change: &str) -> NodeId {
    let x = m.rows("x");
    match change {
        "root" => m.scaled_by(x, [x, x], Reduce::Mean, Unary::Sqrt),
        "largest" => m.scaled_by(x, [x, x], Reduce::Max, Unary::Rsqrt),
        _ => m.scaled(x, x),
    }
}

fn layer_norm(m: &mut Maker, change: &str) -> NodeId {
    let (x, z) = (m.rows("x"), m.rows("z"));
    let op = if change == "largest taken off" { Reduce::Max } else { Reduce::Mean };
    let mean = m.g.reduce(op, if change == "another's mean" { z } else { x });
    let c = m.bin(Binary::Sub, x, mean);
    m.scaled(c, c)
}

/// A norm of the stream with what a product adds to it; its scaled rows are the result.
fn residual_norm(m: &mut Maker, change: &str) -> NodeId {
    let x = m.rows("x");
    let y = if change == "no product" { m.g.unary(Unary::Tanh, x) } else { m.linear(x, "w", WIDTH) };
    let other = if change == "bias" { m.weight("b", &[1, WIDTH]) } else { x };
    let sum = m.bin(Binary::Add, other, y);
    m.scaled(sum, sum)
}

fn norm_prologue(m: &mut Maker, change: &str) -> NodeId {
    let x = m.rows("x");
    let x = if change == "its own result" { m.linear(x, "before", WIDTH) } else { x };
    let f = if change == "root" { Unary::Sqrt } else { Unary::Rsqrt };
    if change == "its own result" {
        // The product's result is normed, not what it takes.
        return m.scaled(x, x);
    }
    let y = m.scaled_by(x, [x, x], Reduce::Mean, f);
    let w = m.weight("norm", &[1, WIDTH]);
    let y = m.bin(Binary::Mul, y, w);
    let z = m.linear(y, "w", WIDTH);
    if change == "needed elsewhere" { m.bin(Binary::Add, z, y) } else { z }
}

fn linears(m: &mut Maker, change: &str) -> NodeId {
    let (x, z) = (m.rows("x"), m.rows("z"));
    let a = m.linear(x, "a", 8);
    let b = match change {
        "two types" => {
            let w = m.weight("b", &[8, WIDTH]);
            let b = m.g.matmul_t(x, w, DType::BF16);
            m.g.cast(b, DType::F32)
        }
        "two inputs" => m.linear(z, "b", 8),
        _ => m.linear(x, "b", 8),
    };
    m.g.concat(&[a, b], 1)
}

fn bias(m: &mut Maker, change: &str) -> NodeId {
    let x = m.rows("x");
    let y = m.linear(x, "w", 8);
    let b = match change {
        "computed" => m.g.reduce(Reduce::Mean, x),
        _ => m.weight("b", &[1, 8]),
    };
    m.bin(Binary::Add, y, b)
}

fn activation(m: &mut Maker, change: &str) -> NodeId {
    let x = m.rows("x");
    let y = if change == "no product" { x } else { m.linear(x, "w", 8) };
    m.g.unary(if change == "another function" { Unary::Tanh } else { Unary::Silu }, y)
}

fn gated(m: &mut Maker, change: &str) -> NodeId {
    let x = m.rows("x");
    let (gate, up) = (m.linear(x, "gate", 8), m.linear(x, "up", 8));
    let f = if change == "no activation" { gate } else { m.g.unary(Unary::Silu, gate) };
    m.bin(Binary::Mul, f, if change == "one value" { gate } else { up })
}

fn residual(m: &mut Maker, change: &str) -> NodeId {
    let x = m.rows("x");
    match change {
        "a number a row" => {
            let y = m.linear(x, "w", WIDTH);
            let mean = m.g.reduce(Reduce::Mean, x);
            m.bin(Binary::Add, mean, y)
        }
        "a product a row" => {
            let y = m.linear(x, "w", 1);
            m.bin(Binary::Add, x, y)
        }
        _ => {
            let y = m.linear(x, "w", WIDTH);
            m.bin(Binary::Add, x, y)
        }
    }
}

fn rotation(m: &mut Maker, change: &str) -> NodeId {
    let x = m.rows("x");
    let y = if change == "no product" { x } else { m.linear(x, "w", WIDTH) };
    m.rotated(y, change)
}

/// Rows written to their slots of a state: a projection's, or what is only like one.
fn cache_write(m: &mut Maker, change: &str) -> NodeId {
    let x = m.rows("x");
    let y = match change {
        "no product" => x,
        // A scale of each row, but no norm's.
        "scaled by itself" => m.scaled_by(x, [x, x], Reduce::Mean, Unary::Sqrt),
        _ => m.linear(x, "w", WIDTH),
    };
    let y = m.heads(y);
    let ty = ValueType::plain(DType::F32, vec![Sym::Slots.into(), C(2), C(WIDTH / 2)]);
    let state = m.g.state("k", ty);
    let at = m.g.input(Input::Slots);
    let state = m.g.scatter(state, y, at);
    m.g.state_out("k", state);
    m.g.unary(Unary::Cos, x)
}

fn scores(m: &mut Maker, change: &str) -> NodeId {
    match change {
        "" => m.attention("soft-cap"),
        "plain" => m.attention(""),
        other => m.attention(other),
    }
}

/// Attention to cached rows of which keys and values are products.
fn latent(m: &mut Maker, change: &str) -> NodeId {
    let (slots, rank) = (Sym::Slots.into(), WIDTH);
    let x = m.rows("x");
    let q = m.linear(x, "q", 16);
    let q = m.g.reshape(q, vec![T, C(2), C(1), C(8)]);
    let cache = m.g.state("cache", ValueType::plain(DType::F32, vec![slots, C(rank)]));
    let j = m.g.iota(1, vec![T, Sym::Context.into()]);
    let mut read = |name: &str| {
        let rows = match change {
            "rows themselves" => cache,
            "computed rows" => {
                let y = m.linear(cache, name, 16);
                m.g.unary(Unary::Tanh, y)
            }
            _ => m.linear(cache, name, 16),
        };
        let rows = m.g.reshape(rows, vec![slots, C(2), C(8)]);
        let rows = m.g.gather(rows, j);
        m.g.transpose(rows, &[0, 2, 1, 3])
    };
    let (keys, values) = (read("k"), read("v"));
    let scores = m.g.matmul_t(q, keys, DType::F32);
    let weights = m.g.softmax(scores);
    m.g.matmul(weights, values, DType::F32)
}

/// The softmax of the logits at a choice of them.
fn router(m: &mut Maker, change: &str) -> NodeId {
    let x = m.rows("x");
    let logits = m.linear(x, "w", 4);
    let index = match change {
        "no choice" => {
            let first = m.g.iota(1, vec![C(1), C(2)]);
            m.g.broadcast(first, vec![T, C(2)])
        }
        _ => m.g.top_k(logits, 2),
    };
    if change == "no weights" {
        // Rows of a table by the choice: nothing is summed.
        let table = m.weight("t", &[4, 8]);
        return m.g.gather(table, index);
    }
    let wide = vec![T, C(2), C(4)];
    let index = m.g.reshape(index, vec![T, C(2), C(1)]);
    let index = m.g.broadcast(index, wide.clone());
    let number = m.g.iota(2, wide.clone());
    let here = m.g.compare(Compare::Eq, number, index);
    let logits = m.g.reshape(logits, vec![T, C(1), C(4)]);
    let logits = m.g.broadcast(logits, wide);
    let none = m.g.scalar_like(0.0, logits);
    let only = m.g.select(here, logits, none);
    let chosen = m.g.reduce(Reduce::Sum, only);
    let chosen = m.g.reshape(chosen, vec![T, C(2)]);
    m.g.softmax(chosen)
}

fn experts(m: &mut Maker, change: &str) -> NodeId {
    let x = m.rows("x");
    if change == "one matrix" {
        let y = m.linear(x, "w", 8);
        return m.g.unary(Unary::Silu, y);
    }
    let logits = m.linear(x, "router", 4);
    let index = m.g.top_k(logits, 2);
    if change == "by itself" {
        let rows = m.g.reshape(x, vec![T, C(1), C(WIDTH)]);
        let w = m.weight("a", &[4, 8, WIDTH]);
        return m.g.routed_matmul(rows, w, index, DType::F32);
    }
    let (gate, up) = routed_pair(m, x, [index, index]);
    let gate = m.g.unary(Unary::Silu, gate);
    m.bin(Binary::Mul, gate, up)
}

/// Two products of rows with matrices that two indices name.
fn routed_pair(m: &mut Maker, x: NodeId, index: [NodeId; 2]) -> (NodeId, NodeId) {
    let rows = m.g.reshape(x, vec![T, C(1), C(WIDTH)]);
    let [a, b] = [("a", index[0]), ("b", index[1])].map(|(name, index)| {
        let w = m.weight(name, &[4, 8, WIDTH]);
        m.g.routed_matmul(rows, w, index, DType::F32)
    });
    (a, b)
}

fn head_sample(m: &mut Maker, change: &str) -> NodeId {
    let x = m.rows("x");
    let rows = m.g.input(Input::OutputRows);
    let x = m.g.gather(x, rows);
    let logits = if change == "no product" { x } else { m.linear(x, "w", 32) };
    let position = m.g.input(Input::Positions);
    let position = m.g.gather(position, rows);
    let settings = [Input::Temperature, Input::TopK, Input::TopP, Input::MinP, Input::Seed];
    let settings = settings.map(|i| m.g.input(i));
    let all: Vec<NodeId> = [logits, position].into_iter().chain(settings).collect();
    m.g.add(Op::Sample, &all)
}

fn chain(m: &mut Maker, change: &str) -> NodeId {
    let x = m.rows("x");
    let y = m.g.unary(Unary::Tanh, x);
    match change {
        "one op" => y,
        "used twice" => {
            let (a, b) = (m.g.unary(Unary::Exp, y), m.g.unary(Unary::Cos, y));
            m.g.concat(&[a, b], 1)
        }
        "reduced between" => {
            let mean = m.g.reduce(Reduce::Mean, y);
            m.g.unary(Unary::Exp, mean)
        }
        _ => m.g.unary(Unary::Exp, y),
    }
}

fn cast(m: &mut Maker, change: &str) -> NodeId {
    match change {
        "of whole numbers" => {
            let p = m.g.input(Input::Positions);
            let p = m.g.cast(p, DType::F32);
            m.g.unary(Unary::Cos, p)
        }
        "at load" => {
            let table = m.weight("x", &[11, WIDTH]);
            let table = m.g.cast(table, DType::BF16);
            let ids = m.g.input(Input::TokenIds);
            m.g.gather(table, ids)
        }
        _ => {
            let x = m.rows("x");
            let y = m.g.cast(x, DType::BF16);
            m.g.unary(Unary::Cos, y)
        }
    }
}

fn sites(name: &str, make: Make, change: &str) -> usize {
    let mut m = Maker::new();
    let y = make(&mut m, change);
    m.sites(y, name)
}

#[test]
fn every_fusion_leaves_near_misses_alone() {
    for f in fusion::all() {
        let case = CASES.iter().find(|(name, ..)| *name == f.name);
        let (_, make, changes) = case.unwrap_or_else(|| panic!("no near miss of fusion {}: add one", f.name));
        assert!(!changes.is_empty(), "no near miss of fusion {}", f.name);
        assert_eq!(sites(f.name, *make, ""), 1, "{} has no site in its own graph", f.name);
        for change in *changes {
            assert_eq!(sites(f.name, *make, change), 0, "{}: {change}", f.name);
        }
    }
    assert_eq!(CASES.len(), fusion::all().len());
}

/// Products of one index are one site, those of two indices are two.
#[test]
fn experts_of_two_choices_are_apart() {
    let of = |apart: bool| {
        let mut m = Maker::new();
        let x = m.rows("x");
        let logits = m.linear(x, "router", 4);
        let first = m.g.top_k(logits, 2);
        let turned = m.g.unary(Unary::Neg, logits);
        let second = m.g.top_k(turned, 2);
        let (a, b) = routed_pair(&mut m, x, [first, if apart { second } else { first }]);
        let y = m.bin(Binary::Mul, a, b);
        m.sites(y, "grouped-experts")
    };
    assert_eq!((of(false), of(true)), (1, 2));
}
