//! Reading of the text form of graphs (see `print.rs`). Types are inferred again and compared with the
//! written ones.

use super::lex::{Line, ParseError, Parsed};
use super::{Graph, Input, Literal, Node, Op, Output, StateOut, ValueType, infer, type_text};
use crate::dtype::{DType, Encoding};
use crate::ids::NodeId;
use crate::scalar::{Binary, Compare, Reduce, Unary};
use crate::shape::{Dim, Sym};

/// Reads a graph.
///
/// # Errors
/// The first place where the text is no graph: syntax, a value that is not defined before its use, or a
/// type that the op does not give. What concerns the whole graph is left to `verify::graph`.
pub fn parse(text: &str) -> Result<Graph, ParseError> {
    let mut graph = Graph::default();
    for (i, line) in text.lines().enumerate() {
        let mut p = Line { chars: line.chars().collect(), at: 0, line: i + 1 };
        p.spaces();
        if !p.at_end() {
            p.item(&mut graph)?;
        }
    }
    Ok(graph)
}

impl Line {
    fn item(&mut self, graph: &mut Graph) -> Parsed<()> {
        let start = self.at;
        if self.peek() == Some('%') {
            let id = self.id()?;
            let next = NodeId::new(graph.nodes.len());
            if id != next {
                return Err(self.error_at(start, format!("{next}, the next node")));
            }
            self.token("=")?;
            let node = self.node(graph)?;
            graph.nodes.push(node);
            return self.end();
        }
        let word = self.word();
        let name = match word.as_str() {
            "output" | "state" => self.quoted()?,
            _ => return Err(self.error_at(start, "a node, \"output\" or \"state\"".into())),
        };
        self.token("=")?;
        let value = self.value(graph)?;
        if word == "output" {
            graph.outputs.push(Output { name, value });
        } else {
            graph.state_out.push(StateOut { name, value });
        }
        self.end()
    }

    fn node(&mut self, graph: &Graph) -> Parsed<Node> {
        self.spaces();
        let start = self.at;
        let keyword = self.word();
        let head = self.head(&keyword, start)?;
        let mut inputs = Vec::new();
        self.spaces();
        while self.peek() == Some('%') {
            inputs.push(self.value(graph)?);
            self.spaces();
            if !self.eat(",") {
                break;
            }
            self.spaces();
            if self.peek() != Some('%') {
                return Err(self.error("a value".into()));
            }
        }
        let tail = self.tail(&head)?;
        self.token("->")?;
        self.spaces();
        let ty_at = self.at;
        let ty = self.ty()?;
        let op = self.op(head, tail, &ty, ty_at)?;
        let types: Vec<&ValueType> = inputs.iter().map(|&i| graph.ty(i)).collect();
        let inferred =
            infer(&op, &types).map_err(|why| self.error_at(start, format!("operands that fit ({why})")))?;
        if inferred != ty {
            return Err(self.error_at(ty_at, type_text(&inferred)));
        }
        self.spaces();
        let scope = if self.eat("@") { self.quoted()? } else { String::new() };
        Ok(Node { op, inputs, ty, scope })
    }

    /// The keyword and what stands before the operands.
    fn head(&mut self, keyword: &str, start: usize) -> Parsed<Head> {
        Ok(match keyword {
            "input" => {
                self.spaces();
                let at = self.at;
                let name = self.word();
                Head::Input(Input::parse(&name).ok_or_else(|| {
                    let names: Vec<&str> = Input::ALL.iter().map(|i| i.name()).collect();
                    self.error_at(at, format!("the name of an input ({})", names.join(", ")))
                })?)
            }
            "weight" => Head::Weight(self.quoted()?),
            "state" => Head::State(self.quoted()?),
            "constant" => Head::Constant(self.literals()?),
            "iota" => Head::Iota,
            "decode" => Head::Plain(Op::Decode),
            "select" => Head::Plain(Op::Select),
            "softmax" => Head::Plain(Op::Softmax),
            "gather" => Head::Plain(Op::Gather),
            "scatter" => Head::Plain(Op::Scatter),
            "penalize" => Head::Plain(Op::Penalize),
            "sample" => Head::Plain(Op::Sample),
            "cast" => Head::Cast,
            "reshape" => Head::Reshape,
            "broadcast" => Head::Broadcast,
            "transpose" => Head::Transpose,
            "slice" => Head::Slice,
            "concat" => Head::Concat,
            "top_k" => Head::TopK,
            "routed_matmul" => Head::RoutedMatMul,
            "matmul" => Head::MatMul { transpose_b: false },
            "matmul.t" => Head::MatMul { transpose_b: true },
            name => {
                let op = Unary::parse(name).map(Op::Unary);
                let op = op.or_else(|| Binary::parse(name).map(Op::Binary));
                let op = op.or_else(|| Compare::parse(name).map(Op::Compare));
                let op = op.or_else(|| Reduce::parse(name).map(Op::Reduce));
                Head::Plain(op.ok_or_else(|| self.error_at(start, "the name of an op".into()))?)
            }
        })
    }

    /// The attributes after the operands.
    fn tail(&mut self, head: &Head) -> Parsed<Vec<usize>> {
        let names: &[&str] = match head {
            Head::Iota | Head::Concat => &["axis"],
            Head::Slice => &["axis", "start", "len"],
            Head::TopK => &["k"],
            Head::Transpose => {
                self.token("perm")?;
                self.token("=")?;
                return self.list("]", |p| p.size());
            }
            Head::Input(_)
            | Head::Weight(_)
            | Head::State(_)
            | Head::Constant(_)
            | Head::Plain(_)
            | Head::Cast
            | Head::Reshape
            | Head::Broadcast
            | Head::RoutedMatMul
            | Head::MatMul { .. } => &[],
        };
        let mut values = Vec::new();
        for name in names {
            self.token(name)?;
            self.token("=")?;
            values.push(self.size()?);
        }
        Ok(values)
    }

    fn op(&self, head: Head, tail: Vec<usize>, ty: &ValueType, ty_at: usize) -> Parsed<Op> {
        let shape = ty.shape.clone();
        let attribute = |i: usize| tail.get(i).copied().unwrap_or_default();
        Ok(match head {
            Head::Input(input) => Op::Input(input),
            Head::Weight(tensor) => Op::Weight { tensor, ty: ty.clone() },
            Head::State(name) => Op::State { name, ty: ty.clone() },
            Head::Constant(items) => Op::Constant { literal: self.literal(items, ty, ty_at)?, shape },
            Head::Plain(op) => op,
            Head::Iota => Op::Iota { axis: attribute(0), shape },
            Head::Cast => Op::Cast(ty.dtype()),
            Head::Reshape => Op::Reshape(shape),
            Head::Broadcast => Op::Broadcast(shape),
            Head::Transpose => Op::Transpose(tail),
            Head::Slice => Op::Slice { axis: attribute(0), start: attribute(1), len: attribute(2) },
            Head::Concat => Op::Concat { axis: attribute(0) },
            Head::TopK => Op::TopK { k: attribute(0) },
            Head::RoutedMatMul => Op::RoutedMatMul { out: ty.dtype() },
            Head::MatMul { transpose_b } => Op::MatMul { transpose_b, out: ty.dtype() },
        })
    }

    fn literal(&self, items: Vec<(usize, String)>, ty: &ValueType, ty_at: usize) -> Parsed<Literal> {
        match ty.encoding {
            Encoding::Plain(DType::F32) => {
                let item = |(at, s): (usize, String)| {
                    float(&s)
                        .ok_or_else(|| self.error_at(at, "an f32 literal (1.5, -inf, 0x7fc00000)".into()))
                };
                items.into_iter().map(item).collect::<Parsed<_>>().map(Literal::F32)
            }
            Encoding::Plain(DType::I32) => {
                let item = |(at, s): (usize, String)| {
                    s.parse().map_err(|_| self.error_at(at, "an i32 literal".into()))
                };
                items.into_iter().map(item).collect::<Parsed<_>>().map(Literal::I32)
            }
            _ => Err(self.error_at(ty_at, "f32 or i32: constants have no other type".into())),
        }
    }

    fn ty(&mut self) -> Parsed<ValueType> {
        let start = self.at;
        let word = self.word();
        let encoding = Encoding::parse(&word);
        let encoding = encoding.ok_or_else(|| self.error_at(start, "a type (f32, bf16, q4_0, …)".into()))?;
        let shape = self.list("]", |p| {
            p.spaces();
            if p.peek().is_some_and(|c| c.is_ascii_digit()) {
                return p.size().map(Dim::Const);
            }
            let start = p.at;
            let word = p.word();
            Sym::parse(&word).map(Dim::Sym).ok_or_else(|| {
                let names: Vec<&str> = Sym::ALL.iter().map(|s| s.name()).collect();
                p.error_at(start, format!("an extent (a number, {})", names.join(", ")))
            })
        })?;
        Ok(ValueType { encoding, shape })
    }

    fn literals(&mut self) -> Parsed<Vec<(usize, String)>> {
        self.list("]", |p| {
            p.spaces();
            let start = p.at;
            let text = p.take(|c| !matches!(c, ',' | ']' | ' '));
            if text.is_empty() { Err(p.error("a literal".into())) } else { Ok((start, text)) }
        })
    }

    fn value(&mut self, graph: &Graph) -> Parsed<NodeId> {
        self.spaces();
        let start = self.at;
        let id = self.id()?;
        if id.index() < graph.nodes.len() {
            return Ok(id);
        }
        Err(self.error_at(start, "a value that is defined above".into()))
    }
}

/// An op whose type is still to be read.
enum Head {
    Input(Input),
    Weight(String),
    State(String),
    /// Literals with their columns.
    Constant(Vec<(usize, String)>),
    /// Complete.
    Plain(Op),
    Iota,
    Cast,
    Reshape,
    Broadcast,
    Transpose,
    Slice,
    Concat,
    TopK,
    RoutedMatMul,
    MatMul {
        transpose_b: bool,
    },
}

fn float(text: &str) -> Option<f32> {
    if let Some(hex) = text.strip_prefix("0x") {
        return u32::from_str_radix(hex, 16).ok().map(f32::from_bits);
    }
    text.parse::<f32>().ok().filter(|x| !x.is_nan())
}
