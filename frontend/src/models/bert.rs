//! BERT (Devlin et al. 2018): learned positions and token types, bidirectional attention, LayerNorm after
//! each residual sum. RoBERTa (Liu et al. 2019) and XLM-RoBERTa (Conneau et al. 2020) count positions from another
//! row of their table.
//!
//! Sums go to their LayerNorm in f32; what it gives is rounded once, for the next matmul and the next sum.
//! The pooler and heads are not part of it: the output is `last_hidden_state` [tokens, h] f32.

use super::blocks::{ModelBuilder, embedding, encoder, mlp, norm};
use weft_ir::dtype::DType;
use weft_ir::graph::Input;
use weft_ir::ids::NodeId;
use weft_ir::scalar::Binary;

/// Adds BERT to the builder. Hugging Face tensor names, with or without `bert.` before them.
pub fn build(m: &mut ModelBuilder<'_>) {
    with(m, "bert.");
}

/// Adds RoBERTa or XLM-RoBERTa to the builder; with or without `roberta.` before the tensor names.
pub fn roberta(m: &mut ModelBuilder<'_>) {
    with(m, "roberta.");
}

fn with(m: &mut ModelBuilder<'_>, prefix: &'static str) {
    let root = m.root_of(prefix, "embeddings.word_embeddings.weight");
    let mut x = embeddings(m, &format!("{root}embeddings"));
    for layer in 0..m.config.layers {
        if m.failed() {
            break;
        }
        let name = format!("{root}encoder.layer.{layer}");
        x = m.scoped(&name, |m| {
            let stream = m.g.cast(x, m.dtype);
            let h = encoder::self_attention(m, stream, &format!("{name}.attention.self"));
            let h = m.linear_wide(h, &format!("{name}.attention.output.dense"), m.config.hidden_size, true);
            let h = sum(m, stream, h);
            let h = norm::configured(m, h, &format!("{name}.attention.output.LayerNorm"));
            let stream = m.g.cast(h, m.dtype);
            let h = mlp::plain(m, stream, &name, ["intermediate.dense", "output.dense"], false);
            let h = sum(m, stream, h);
            norm::configured(m, h, &format!("{name}.output.LayerNorm"))
        });
    }
    m.g.output("last_hidden_state", x);
}

/// Token, token type and position embeddings, summed and normalised in f32: [t, h].
fn embeddings(m: &mut ModelBuilder<'_>, name: &str) -> NodeId {
    let c = m.config;
    m.scoped(name, |m| {
        let rows = |m: &mut ModelBuilder<'_>, part: &str, rows, input| {
            let x = embedding::rows(m, &format!("{name}.{part}.weight"), rows, input);
            m.g.cast(x, DType::F32)
        };
        let mut x = rows(m, "word_embeddings", c.vocab_size, Input::TokenIds);
        if c.type_vocab_size > 0 {
            let types = rows(m, "token_type_embeddings", c.type_vocab_size, Input::TokenTypes);
            x = sum(m, types, x);
        }
        let table = format!("{name}.position_embeddings.weight");
        let positions = embedding::positions(m, &table);
        let positions = m.g.cast(positions, DType::F32);
        x = sum(m, positions, x);
        norm::configured(m, x, &format!("{name}.LayerNorm"))
    })
}

/// x + y in f32, not rounded: it goes to a norm.
fn sum(m: &mut ModelBuilder<'_>, x: NodeId, y: NodeId) -> NodeId {
    let x = m.g.cast(x, DType::F32);
    m.g.binary(Binary::Add, y, x)
}
