//! The graphs that fusions' tests are about.

use weft_ir::dtype::DType;
use weft_ir::graph::{Graph, GraphBuilder, Input, ValueType};
use weft_ir::ids::NodeId;
use weft_ir::scalar::{Binary, Compare, Reduce, Unary};
use weft_ir::shape::{Dim, Sym};
use weft_passes::Selection;
use weft_passes::fusion::find;

pub const T: Dim = Dim::Sym(Sym::Tokens);
pub const WIDTH: usize = 16;

/// A small graph in the making.
pub struct Maker {
    /// Its builder.
    pub g: GraphBuilder,
}

impl Maker {
    pub fn new() -> Maker {
        Maker { g: GraphBuilder::new() }
    }

    pub fn weight(&mut self, name: &str, shape: &[usize]) -> NodeId {
        let shape = shape.iter().map(|&n| Dim::Const(n)).collect();
        self.g.weight(name, ValueType::plain(DType::F32, shape))
    }

    pub fn rows(&mut self, table: &str) -> NodeId {
        let table = self.weight(table, &[11, WIDTH]);
        let ids = self.g.input(Input::TokenIds);
        self.g.gather(table, ids)
    }

    pub fn linear(&mut self, x: NodeId, name: &str, n: usize) -> NodeId {
        let w = self.weight(name, &[n, WIDTH]);
        self.g.matmul_t(x, w, DType::F32)
    }

    pub fn bin(&mut self, op: Binary, a: NodeId, b: NodeId) -> NodeId {
        self.g.binary(op, a, b)
    }

    /// x · rsqrt(mean(of²) + ε).
    pub fn scaled(&mut self, x: NodeId, of: NodeId) -> NodeId {
        self.scaled_by(x, [of, of], Reduce::Mean, Unary::Rsqrt)
    }

    /// x · f(reduced(a · b) + ε).
    pub fn scaled_by(&mut self, x: NodeId, [a, b]: [NodeId; 2], op: Reduce, f: Unary) -> NodeId {
        let product = self.bin(Binary::Mul, a, b);
        let reduced = self.g.reduce(op, product);
        let eps = self.g.scalar_like(1e-5, reduced);
        let reduced = self.bin(Binary::Add, reduced, eps);
        let scale = self.g.unary(f, reduced);
        self.bin(Binary::Mul, x, scale)
    }

    pub fn heads(&mut self, x: NodeId) -> NodeId {
        self.g.reshape(x, vec![T, Dim::Const(2), Dim::Const(WIDTH / 2)])
    }

    /// Rotation with one of its parts replaced.
    pub fn rotated(&mut self, x: NodeId, change: &str) -> NodeId {
        let x = self.heads(x);
        let half = WIDTH / 4;
        let (a, b) = (self.g.slice(x, 2, 0, half), self.g.slice(x, 2, half, half));
        let p = self.g.input(Input::Positions);
        let p = self.g.cast(p, DType::F32);
        let p = self.g.reshape(p, vec![T, Dim::Const(1), Dim::Const(1)]);
        let (cos, sin) = (self.g.unary(Unary::Cos, p), self.g.unary(Unary::Sin, p));
        let (b2, s2) = match change {
            "halves" => (a, sin),
            "angle" => (b, cos),
            _ => (b, sin),
        };
        let (ac, bs) = (self.bin(Binary::Mul, a, cos), self.bin(Binary::Mul, b, sin));
        let (bc, sa) = (self.bin(Binary::Mul, b2, cos), self.bin(Binary::Mul, a, s2));
        let (low, high) = match change {
            "signs" => (self.bin(Binary::Add, ac, bs), self.bin(Binary::Sub, bc, sa)),
            _ => (self.bin(Binary::Sub, ac, bs), self.bin(Binary::Add, bc, sa)),
        };
        self.g.concat(&[low, high], 2)
    }

    /// Attention over cached rows; `change` is what differs from it.
    pub fn attention(&mut self, change: &str) -> NodeId {
        let slots = |n| vec![Sym::Slots.into(), Dim::Const(2), Dim::Const(n)];
        let keys = self.g.state("k", ValueType::plain(DType::F32, slots(8)));
        let values = self.g.state("v", ValueType::plain(DType::F32, slots(8)));
        let base = self.g.input(Input::SlotBase);
        let sequences = self.g.input(Input::Sequences);
        let base = self.g.gather(base, sequences);
        let base = self.g.reshape(base, vec![T, Dim::Const(1)]);
        let j = self.g.iota(1, vec![T, Sym::Context.into()]);
        let index = self.bin(Binary::Add, base, j);
        let (k, v) = (self.g.gather(keys, index), self.g.gather(values, index));
        let (k, v) = (self.g.transpose(k, &[0, 2, 1, 3]), self.g.transpose(v, &[0, 2, 1, 3]));
        let x = self.rows("q");
        let q = self.g.reshape(x, vec![T, Dim::Const(2), Dim::Const(1), Dim::Const(8)]);
        let scores = self.g.matmul_t(q, k, DType::F32);
        let scale = self.g.scalar_like(0.35, scores);
        let scores = self.bin(Binary::Mul, scores, scale);
        let scores = match change {
            "soft-cap" => {
                let y = self.g.unary(Unary::Tanh, scores);
                self.bin(Binary::Mul, y, scale)
            }
            "sum" => self.g.reduce(Reduce::Sum, scores),
            _ => scores,
        };
        let scores = match change {
            "sum" => {
                let shape = vec![T, Dim::Const(2), Dim::Const(1), Sym::Context.into()];
                self.g.broadcast(scores, shape)
            }
            _ => scores,
        };
        let hidden = self.g.scalar_like(f32::NEG_INFINITY, scores);
        let (one, context) = (Dim::Const(1), Sym::Context.into());
        let j = self.g.iota(3, vec![one, one, one, context]);
        let p = self.g.input(Input::Positions);
        let p = self.g.reshape(p, vec![T, one, one, one]);
        let past = self.g.compare(Compare::Le, j, p);
        let past = self.g.broadcast(past, vec![T, Dim::Const(2), one, context]);
        let masked = self.g.select(past, scores, hidden);
        let weights = match change {
            "exp" => self.g.unary(Unary::Exp, masked),
            _ => self.g.softmax(masked),
        };
        self.g.matmul(weights, v, DType::F32)
    }

    /// Number of sites of a fusion in the graph of a value.
    pub fn sites(mut self, value: NodeId, fusion: &str) -> usize {
        self.g.output("y", value);
        let graph: Graph = self.g.finish().unwrap_or_else(|e| panic!("{e}"));
        let sites = find(&graph, &Selection::default()).unwrap_or_else(|e| panic!("{e}"));
        sites.of.get(fusion).unwrap_or_else(|| panic!("no fusion {fusion}")).len()
    }
}
