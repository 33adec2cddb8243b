//! Model builders: from a checkpoint's configuration and tensor names to a graph of primitives.
//!
//! One module a family, made of shared [`blocks`]. Blocks expand to primitives; fused ops come from
//! rewrite rules alone.

pub mod blocks;
mod llama;

use crate::checkpoint::Checkpoint;
use crate::error::Error;
use blocks::ModelBuilder;
use weft_ir::dtype::DType;
use weft_ir::graph::Graph;

/// A model family that can be built.
pub struct Family {
    /// `model_type` in config.json.
    pub model_type: &'static str,
    /// Adds the model's nodes to a builder.
    build: fn(&mut ModelBuilder<'_>),
}

/// Families that can be built.
pub const FAMILIES: &[Family] = &[Family { model_type: "llama", build: llama::build }];

/// Builds the graph of one step of a checkpoint's model, with activations and weights of type `dtype`.
///
/// # Errors
/// An unknown `model_type`, a missing tensor, or a tensor whose shape does not fit the configuration.
pub fn build(checkpoint: &Checkpoint, dtype: DType) -> Result<Graph, Error> {
    let model_type = checkpoint.config().model_type.as_str();
    let family = FAMILIES.iter().find(|f| f.model_type == model_type).ok_or_else(|| {
        let known: Vec<&str> = FAMILIES.iter().map(|f| f.model_type).collect();
        Error::unsupported_model(checkpoint.root(), model_type, &known)
    })?;
    let mut builder = ModelBuilder::new(checkpoint, dtype);
    (family.build)(&mut builder);
    builder.finish()
}
