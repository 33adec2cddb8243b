//! Model builders: from a checkpoint's configuration and tensor names to a graph of primitives.
//!
//! One module a form, which is that of several families where they differ by configuration alone. Modules are made
//! of shared [`blocks`], which expand to primitives; fused ops come from rewrite rules alone.

mod bert;
pub mod blocks;
mod bloom;
mod deepseek;
mod gemma;
mod glm4;
mod gpt2;
mod gpt_neox;
mod gpt_oss;
mod llama;
mod mixtral;
mod modernbert;
mod notes;
mod olmo2;
mod phi;
mod phi3;
mod starcoder2;
mod unread;

use crate::checkpoint::{Checkpoint, Task};
use crate::error::Error;
pub use blocks::Asked;
use blocks::ModelBuilder;
pub use notes::note;
use weft_ir::dtype::DType;
use weft_ir::graph::Graph;

/// What a model does with a sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Continues it, token by token: `logits` and `tokens`.
    Decoder,
    /// Reads all of it at once: `last_hidden_state`. Encoders do, and decoders that embed ([`Task::Embed`]).
    Encoder,
}

/// A model family that can be built.
pub struct Family {
    /// `model_type` in config.json.
    pub model_type: &'static str,
    /// Adds the model's nodes to a builder.
    build: fn(&mut ModelBuilder<'_>),
}

/// Encoders that can be built.
pub const ENCODERS: &[Family] = &[
    Family { model_type: "bert", build: bert::build },
    Family { model_type: "roberta", build: bert::roberta },
    Family { model_type: "xlm-roberta", build: bert::roberta },
    Family { model_type: "modernbert", build: modernbert::build },
];

/// Decoders that can be built.
pub const FAMILIES: &[Family] = &[
    Family { model_type: "llama", build: llama::build },
    Family { model_type: "mistral", build: llama::build },
    Family { model_type: "qwen2", build: llama::build },
    Family { model_type: "qwen3", build: llama::build },
    Family { model_type: "gemma2", build: gemma::build },
    Family { model_type: "gemma3_text", build: gemma::build },
    Family { model_type: "phi3", build: phi3::build },
    Family { model_type: "gpt2", build: gpt2::build },
    Family { model_type: "gpt_neox", build: gpt_neox::build },
    Family { model_type: "olmo2", build: olmo2::build },
    Family { model_type: "olmo3", build: olmo2::build },
    Family { model_type: "exaone4", build: olmo2::build },
    Family { model_type: "bloom", build: bloom::build },
    Family { model_type: "falcon", build: bloom::falcon },
    Family { model_type: "granite", build: llama::build },
    Family { model_type: "smollm3", build: llama::build },
    Family { model_type: "starcoder2", build: starcoder2::build },
    Family { model_type: "stablelm", build: llama::stablelm },
    Family { model_type: "phi", build: phi::build },
    Family { model_type: "cohere2", build: llama::build },
    Family { model_type: "glm4", build: glm4::build },
    Family { model_type: "mixtral", build: mixtral::build },
    Family { model_type: "qwen2_moe", build: mixtral::qwen },
    Family { model_type: "qwen3_moe", build: mixtral::qwen },
    Family { model_type: "gpt_oss", build: gpt_oss::build },
    Family { model_type: "deepseek_v3", build: deepseek::build },
];

/// The family of a checkpoint, and what its model does for the checkpoint's task.
///
/// # Errors
/// An unknown `model_type`.
pub fn family(checkpoint: &Checkpoint) -> Result<(Kind, &'static Family), Error> {
    let model_type = checkpoint.config().model_type.as_str();
    let all = || [(Kind::Decoder, FAMILIES), (Kind::Encoder, ENCODERS)].into_iter();
    let mut each = all().flat_map(|(kind, list)| list.iter().map(move |f| (kind, f)));
    let found = each.find(|(_, f)| f.model_type == model_type);
    let for_task = |(kind, family)| match checkpoint.task() {
        Task::Generate => (kind, family),
        Task::Embed => (Kind::Encoder, family),
    };
    found.map(for_task).ok_or_else(|| {
        let known: Vec<&str> = all().flat_map(|(_, list)| list).map(|f| f.model_type).collect();
        Error::unsupported_model(checkpoint.root(), model_type, &known)
    })
}

/// Builds the graph of one step of a checkpoint's model, with activations and weights of type `dtype`.
///
/// # Errors
/// An unknown `model_type`, a missing tensor, a tensor whose shape does not fit the configuration, or one of the model's
/// own modules that is not read.
pub fn build(checkpoint: &Checkpoint, dtype: DType) -> Result<Graph, Error> {
    let (_, family) = family(checkpoint)?;
    let mut builder = ModelBuilder::new(checkpoint, dtype);
    (family.build)(&mut builder);
    let read = builder.read();
    let graph = builder.finish()?;
    unread::judge(checkpoint, &read)?;
    Ok(graph)
}

/// The tensors that a checkpoint's model asks for, each once, in the model's order.
///
/// # Errors
/// As [`build`].
pub fn asked(checkpoint: &Checkpoint, dtype: DType) -> Result<Vec<Asked>, Error> {
    let (_, family) = family(checkpoint)?;
    let mut builder = ModelBuilder::new(checkpoint, dtype);
    (family.build)(&mut builder);
    let mut asked = builder.asked();
    builder.finish()?;
    let mut seen = std::collections::BTreeSet::new();
    asked.retain(|a| seen.insert(a.name.clone()));
    Ok(asked)
}
