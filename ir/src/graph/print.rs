//! Text of graphs. [`super::parse`] reads it back exactly.
//!
//! ```text
//! %0 = input token_ids -> i32[tokens]
//! %1 = weight "model.embed_tokens.weight" -> bf16[49152, 576] @"model.embed_tokens"
//! %2 = gather %1, %0 -> bf16[tokens, 576] @"model.embed_tokens"
//! %3 = constant [0.5, -inf, 0x7fc00000] -> f32[3]
//! %4 = slice %2 axis=1 start=0 len=32 -> bf16[tokens, 32]
//! %5 = matmul.t %4, %4 -> f32[tokens, tokens]
//! output "logits" = %5
//! state "cache.0.k" = %9
//! ```
//!
//! One node a line, in order. The type after `->` also gives what only types say: the shapes of `reshape`,
//! `broadcast`, `iota` and `constant`, the types of `cast` and of products. `@` gives the scope. `//`
//! starts a comment.

use super::{Graph, Literal, Node, Op, type_text};
use crate::ids::NodeId;
use std::fmt::{self, Display, Write};

impl Display for Graph {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for id in self.ids() {
            write!(f, "{id} = ")?;
            node(f, self.node(id))?;
            f.write_char('\n')?;
        }
        for o in &self.outputs {
            writeln!(f, "output {} = {}", Quoted(&o.name), o.value)?;
        }
        for s in &self.state_out {
            writeln!(f, "state {} = {}", Quoted(&s.name), s.value)?;
        }
        Ok(())
    }
}

/// The line of a node in the graph's text, without its end.
pub fn line(graph: &Graph, id: NodeId) -> String {
    struct Line<'a>(&'a Graph, NodeId);
    impl Display for Line<'_> {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(f, "{} = ", self.1)?;
            node(f, self.0.node(self.1))
        }
    }
    Line(graph, id).to_string()
}

fn node(f: &mut fmt::Formatter<'_>, node: &Node) -> fmt::Result {
    f.write_str(node.op.name())?;
    match &node.op {
        Op::Input(input) => write!(f, " {}", input.name())?,
        Op::Weight { tensor, .. } => write!(f, " {}", Quoted(tensor))?,
        Op::State { name, .. } => write!(f, " {}", Quoted(name))?,
        Op::Constant { literal, .. } => match literal {
            Literal::F32(v) => list(f, v.iter().map(|&x| Float(x)))?,
            Literal::I32(v) => list(f, v.iter())?,
        },
        Op::MatMul { transpose_b: true, .. } => f.write_str(".t")?,
        Op::MatMul { transpose_b: false, .. }
        | Op::Iota { .. }
        | Op::Decode
        | Op::Unary(_)
        | Op::Binary(_)
        | Op::Compare(_)
        | Op::Select
        | Op::Cast(_)
        | Op::Reshape(_)
        | Op::Transpose(_)
        | Op::Broadcast(_)
        | Op::Slice { .. }
        | Op::Concat { .. }
        | Op::Reduce(_)
        | Op::Softmax
        | Op::TopK { .. }
        | Op::RoutedMatMul { .. }
        | Op::Gather
        | Op::Scatter
        | Op::Penalize
        | Op::Sample => {}
    }
    for (i, input) in node.inputs.iter().enumerate() {
        write!(f, "{}{input}", if i == 0 { " " } else { ", " })?;
    }
    match &node.op {
        Op::Transpose(perm) => {
            f.write_str(" perm=")?;
            bracketed(f, perm.iter())?;
        }
        Op::Slice { axis, start, len } => write!(f, " axis={axis} start={start} len={len}")?,
        Op::TopK { k } => write!(f, " k={k}")?,
        Op::Concat { axis } | Op::Iota { axis, .. } => write!(f, " axis={axis}")?,
        Op::Input(_)
        | Op::Weight { .. }
        | Op::Constant { .. }
        | Op::State { .. }
        | Op::Decode
        | Op::Unary(_)
        | Op::Binary(_)
        | Op::Compare(_)
        | Op::Select
        | Op::Cast(_)
        | Op::Reshape(_)
        | Op::Broadcast(_)
        | Op::Reduce(_)
        | Op::Softmax
        | Op::MatMul { .. }
        | Op::RoutedMatMul { .. }
        | Op::Gather
        | Op::Scatter
        | Op::Penalize
        | Op::Sample => {}
    }
    write!(f, " -> {}", type_text(&node.ty))?;
    if !node.scope.is_empty() {
        write!(f, " @{}", Quoted(&node.scope))?;
    }
    Ok(())
}

fn list<T: Display>(f: &mut fmt::Formatter<'_>, items: impl Iterator<Item = T>) -> fmt::Result {
    f.write_char(' ')?;
    bracketed(f, items)
}

fn bracketed<T: Display>(f: &mut fmt::Formatter<'_>, items: impl Iterator<Item = T>) -> fmt::Result {
    f.write_char('[')?;
    for (i, item) in items.enumerate() {
        write!(f, "{}{item}", if i == 0 { "" } else { ", " })?;
    }
    f.write_char(']')
}

/// A float that is read back exactly: shortest decimal, or its bits when it is NaN.
struct Float(f32);

impl Display for Float {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_nan() { write!(f, "0x{:08x}", self.0.to_bits()) } else { write!(f, "{:?}", self.0) }
    }
}

/// A name in quotes: `"` and `\` are escaped, and so are control characters, as `\u{a}`.
struct Quoted<'a>(&'a str);

impl Display for Quoted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_char('"')?;
        for c in self.0.chars() {
            match c {
                '"' | '\\' => write!(f, "\\{c}")?,
                c if c.is_control() => write!(f, "\\u{{{:x}}}", c as u32)?,
                c => f.write_char(c)?,
            }
        }
        f.write_char('"')
    }
}
