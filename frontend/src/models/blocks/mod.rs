//! Shared blocks of model builders.
//!
//! Values are rounded to the model's type where they are stored between layers' matmuls, and nowhere
//! else: norms, rotations, activations and residual sums are computed in f32. So a fused kernel rounds where
//! the graph does.
//!
//! Shapes: `t` tokens, `h` hidden, `q`/`kv` heads, `d` head elements.

pub mod attention;
pub mod embedding;
pub mod head;
pub mod mlp;
pub mod norm;

use crate::checkpoint::Checkpoint;
use crate::config::ModelConfig;
use crate::error::Error;
use weft_ir::dtype::{DType, Encoding};
use weft_ir::graph::{Graph, GraphBuilder, ValueType};
use weft_ir::ids::NodeId;
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
    fault: Option<Error>,
}

impl<'a> ModelBuilder<'a> {
    /// An empty model.
    pub fn new(checkpoint: &'a Checkpoint, dtype: DType) -> Self {
        ModelBuilder { g: GraphBuilder::new(), config: checkpoint.config(), dtype, checkpoint, fault: None }
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

    /// Whether the checkpoint has a tensor of this Hugging Face name.
    pub fn has(&self, name: &str) -> bool {
        self.checkpoint.has(name)
    }

    /// A weight of this shape as a value of the model's type: decoded, with the rows of interleaved rotary
    /// heads (GGUF's llama layout) put back in Hugging Face's order.
    pub fn weight(&mut self, name: &str, shape: &[usize]) -> NodeId {
        let source = match self.checkpoint.source(name) {
            Ok(s) if s.shape == shape => s,
            Ok(s) => {
                let e = Error::tensor_shape(self.checkpoint.root(), name, &s.shape, shape);
                return self.missing(e, shape);
            }
            Err(e) => return self.missing(e, shape),
        };
        let dims = |s: &[usize]| s.iter().map(|&n| Dim::Const(n)).collect::<Vec<_>>();
        let mut w =
            self.g.weight(&source.tensor, ValueType { encoding: source.encoding, shape: dims(shape) });
        if !matches!(source.encoding, Encoding::Plain(_)) {
            w = self.g.decode(w);
        }
        if let (Some(heads), [rows, rest @ ..]) = (source.interleaved_heads, shape) {
            let half = rows / heads / 2;
            let rest: usize = rest.iter().product();
            w = self.g.reshape(w, dims(&[heads, half, 2, rest]));
            w = self.g.transpose(w, &[0, 2, 1, 3]);
            w = self.g.reshape(w, dims(shape));
        }
        self.g.cast(w, self.dtype)
    }

    /// x [t, in] · Wᵀ + b, with W `name.weight` `[out, in]` and b `name.bias` `[out]` where `bias` is set, rounded
    /// to the model's type.
    pub fn linear(&mut self, x: NodeId, name: &str, out: usize, bias: bool) -> NodeId {
        let wide = self.linear_wide(x, name, out, bias);
        self.g.cast(wide, self.dtype)
    }

    /// As [`ModelBuilder::linear`], in f32: for results that further arithmetic takes before they are
    /// stored.
    pub fn linear_wide(&mut self, x: NodeId, name: &str, out: usize, bias: bool) -> NodeId {
        let shape = self.g.shape(x);
        let inner = shape.last().and_then(|d| d.as_const()).unwrap_or(0);
        let part = name.rsplit('.').next().unwrap_or(name);
        self.scoped(part, |m| {
            let w = m.weight(&format!("{name}.weight"), &[out, inner]);
            let y = m.g.matmul_t(x, w, DType::F32);
            if !bias {
                return y;
            }
            let b = m.weight(&format!("{name}.bias"), &[out]);
            let b = m.g.reshape(b, vec![Dim::Const(1), Dim::Const(out)]);
            let b = m.g.cast(b, DType::F32);
            m.g.binary(weft_ir::scalar::Binary::Add, y, b)
        })
    }

    /// x + y in f32, rounded to the model's type: a residual connection.
    pub fn residual(&mut self, x: NodeId, y: NodeId) -> NodeId {
        let x = self.g.cast(x, DType::F32);
        let sum = self.g.binary(weft_ir::scalar::Binary::Add, x, y);
        self.g.cast(sum, self.dtype)
    }

    fn missing(&mut self, e: Error, shape: &[usize]) -> NodeId {
        self.fault.get_or_insert(e);
        let shape: Vec<Dim> = shape.iter().map(|&n| Dim::Const(n)).collect();
        self.g.weight("", ValueType::plain(self.dtype, shape))
    }
}
