//! Shared blocks of model builders.
//!
//! Values are rounded to the model's type where they are stored between layers' matmuls, and nowhere
//! else: norms, rotations, activations and residual sums are computed in f32. So a fused kernel rounds where
//! the graph does.
//!
//! Shapes: `t` tokens, `h` hidden, `q`/`kv` heads, `d` head elements.

pub mod attention;
pub mod decoder;
pub mod embedding;
pub mod encoder;
pub mod experts;
pub mod head;
pub mod latent;
mod linear;
pub mod mlp;
pub mod norm;
pub mod rotary;

pub use linear::Linear;

use crate::checkpoint::{Checkpoint, Layout, Task};
use crate::config::ModelConfig;
use crate::error::Error;
use weft_ir::dtype::{DType, Encoding};
use weft_ir::graph::{Graph, GraphBuilder, Literal, Op, ValueType};
use weft_ir::ids::NodeId;
use weft_ir::scalar::Binary;
use weft_ir::shape::Dim;

/// A graph builder with the checkpoint it takes weights from. The first fault is kept and reported at the
/// end, so that models read as formulas.
pub struct ModelBuilder<'a> {
    /// Graph so far.
    pub g: GraphBuilder,
    /// Normalised configuration.
    pub config: &'a ModelConfig,
    /// Type of activations and weights.
    pub dtype: DType,
    checkpoint: &'a Checkpoint,
    asked: Vec<Asked>,
    read: Vec<String>,
    fault: Option<Error>,
}

/// A tensor that a model asks its checkpoint for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asked {
    /// Hugging Face name.
    pub name: String,
    /// Dimensions, outermost first.
    pub shape: Vec<usize>,
    /// Whether it is a matrix (or several) stored as `[…, in, out]`.
    pub turned: bool,
}

impl<'a> ModelBuilder<'a> {
    /// An empty model.
    pub fn new(checkpoint: &'a Checkpoint, dtype: DType) -> Self {
        let (g, config) = (GraphBuilder::new(), checkpoint.config());
        ModelBuilder { g, config, dtype, checkpoint, asked: Vec::new(), read: Vec::new(), fault: None }
    }

    /// Runs a closure with a part added to the scope of the nodes it makes.
    pub fn scoped<T>(&mut self, part: &str, fill: impl FnOnce(&mut Self) -> T) -> T {
        self.g.enter(part);
        let out = fill(self);
        self.g.leave();
        out
    }

    /// The graph.
    ///
    /// # Errors
    /// The first missing or misfitting tensor.
    pub fn finish(self) -> Result<Graph, Error> {
        match self.fault {
            Some(e) => Err(e),
            None => self.g.finish().map_err(|why| Error::misfit(self.checkpoint.root(), &why)),
        }
    }

    /// Whether a fault was found, so that what is built further has no use.
    pub fn failed(&self) -> bool {
        self.fault.is_some()
    }

    /// What is made of the checkpoint.
    pub fn task(&self) -> Task {
        self.checkpoint.task()
    }

    /// Whether the checkpoint has a tensor of this Hugging Face name.
    pub fn has(&self, name: &str) -> bool {
        self.checkpoint.has(name)
    }

    /// What stands before this model's tensor names: `prefix`, or nothing where the file was saved without.
    pub fn root_of(&self, prefix: &'static str, tensor: &str) -> &'static str {
        if !self.has(&format!("{prefix}{tensor}")) && self.has(tensor) { "" } else { prefix }
    }

    /// A weight of this shape as a value of the model's type: decoded, and put in Hugging Face's order where the file
    /// has another.
    pub fn weight(&mut self, name: &str, shape: &[usize]) -> NodeId {
        self.weight_as(name, shape, self.dtype)
    }

    /// As [`ModelBuilder::weight`], of a matrix (or several) that Hugging Face stores as `[…, in, out]`.
    pub fn turned_weight(&mut self, name: &str, shape: &[usize]) -> NodeId {
        self.take(Asked { name: name.to_owned(), shape: shape.to_vec(), turned: true }, self.dtype)
    }

    /// As [`ModelBuilder::weight`], of another type.
    pub fn weight_as(&mut self, name: &str, shape: &[usize], dtype: DType) -> NodeId {
        self.take(Asked { name: name.to_owned(), shape: shape.to_vec(), turned: false }, dtype)
    }

    /// What the model asked for until now, in its order; a tensor may be asked for twice.
    pub fn asked(&mut self) -> Vec<Asked> {
        std::mem::take(&mut self.asked)
    }

    /// Stored names of the tensors that the model read until now; a tensor may be read twice.
    pub fn read(&mut self) -> Vec<String> {
        std::mem::take(&mut self.read)
    }

    fn take(&mut self, asked: Asked, dtype: DType) -> NodeId {
        let found = self.checkpoint.source_of(&asked.name, &asked.shape);
        let shape = asked.shape.clone();
        let shape = shape.as_slice();
        self.asked.push(asked);
        let source = match found {
            Ok(source) => source,
            Err(e) => return self.missing(e, shape),
        };
        self.read.push(source.tensor.clone());
        self.read.extend(source.scales.iter().map(|scales| scales.tensor.clone()));
        let dims = |s: &[usize]| s.iter().map(|&n| Dim::Const(n)).collect::<Vec<_>>();
        let stored = ValueType { encoding: source.encoding, shape: dims(&source.stored_shape) };
        let mut w = self.g.weight(&source.tensor, stored);
        if let Some(scales) = &source.scales {
            let ty = ValueType { encoding: scales.encoding, shape: dims(&scales.shape) };
            let scales = self.g.weight(&scales.tensor, ty);
            w = self.g.decode_scaled(w, scales);
        } else if !matches!(source.encoding, Encoding::Plain(_)) {
            w = self.g.decode(w);
        }
        let w = self.laid_out(w, source.layout, shape);
        self.g.cast(w, dtype)
    }

    /// A stored value in Hugging Face's order, of this shape.
    fn laid_out(&mut self, w: NodeId, layout: Layout, shape: &[usize]) -> NodeId {
        let dims = |s: &[usize]| s.iter().map(|&n| Dim::Const(n)).collect::<Vec<_>>();
        let (rows, rest) = (shape.first().copied().unwrap_or(1), shape.iter().skip(1).product::<usize>());
        match layout {
            Layout::Same => w,
            Layout::Interleaved { heads } => {
                let pairs = self.g.reshape(w, dims(&[heads, rows / heads.max(1) / 2, 2, rest]));
                let halves = self.g.transpose(pairs, &[0, 2, 1, 3]);
                self.g.reshape(halves, dims(shape))
            }
            Layout::Swapped => {
                let rank = shape.len();
                let perm: Vec<usize> = (0..rank - 2).chain([rank - 1, rank - 2]).collect();
                self.g.transpose(w, &perm)
            }
            Layout::Parts { heads, kv_heads } => {
                let d = rows / (heads + 2 * kv_heads).max(1);
                let part = |m: &mut Self, at: usize, heads: usize| {
                    let part = m.g.slice(w, 0, at * d, heads * d);
                    m.g.reshape(part, dims(&[kv_heads, heads / kv_heads * d, rest]))
                };
                let (q, k) = (part(self, 0, heads), part(self, heads, kv_heads));
                let v = part(self, heads + kv_heads, kv_heads);
                let groups = self.g.concat(&[q, k, v], 1);
                self.g.reshape(groups, dims(shape))
            }
            Layout::OneRow => self.g.reshape(w, dims(shape)),
            Layout::Row(row) => {
                let row = self.g.slice(w, 0, row, 1);
                self.g.reshape(row, dims(shape))
            }
        }
    }

    /// x + y in f32, rounded to the model's type: a residual connection, with the configured multiplier.
    pub fn residual(&mut self, x: NodeId, y: NodeId) -> NodeId {
        let x = self.g.cast(x, DType::F32);
        let y = self.times(y, self.config.residual_multiplier);
        let sum = self.g.binary(Binary::Add, x, y);
        self.g.cast(sum, self.dtype)
    }

    /// x times a number; nothing when it is 1.
    pub fn times(&mut self, x: NodeId, by: f64) -> NodeId {
        if by == 1.0 {
            return x;
        }
        let by = self.g.scalar_like(by as f32, x);
        self.g.binary(Binary::Mul, x, by)
    }

    /// One i32, repeated to the shape of `like`.
    pub fn int_like(&mut self, value: i32, like: NodeId) -> NodeId {
        let shape = self.g.shape(like);
        let ones = vec![Dim::Const(1); shape.len()];
        let one = self.g.add(Op::Constant { literal: Literal::I32(vec![value]), shape: ones }, &[]);
        self.g.broadcast(one, shape)
    }

    fn missing(&mut self, e: Error, shape: &[usize]) -> NodeId {
        self.fault.get_or_insert(e);
        let shape: Vec<Dim> = shape.iter().map(|&n| Dim::Const(n)).collect();
        self.g.weight("", ValueType::plain(self.dtype, shape))
    }
}
