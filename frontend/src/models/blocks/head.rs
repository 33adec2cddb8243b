//! Output rows, language-model head, sampling.

use super::ModelBuilder;
use weft_ir::dtype::DType;
use weft_ir::graph::{Input, Op};
use weft_ir::ids::NodeId;

/// Hidden states of the tokens whose logits are wanted: x [t, h] → [rows, h].
pub fn output_rows(m: &mut ModelBuilder<'_>, x: NodeId) -> NodeId {
    let rows = m.g.input(Input::OutputRows);
    m.scoped("model.output_rows", |m| m.g.gather(x, rows))
}

/// Outputs `logits` `[rows, vocab]` f32 and `tokens` `[rows]` i32, from x `[rows, h]`. Tied heads take the
/// embedding table.
pub fn logits_and_sample(m: &mut ModelBuilder<'_>, x: NodeId, embedding: &str, head: &str) {
    let tied = m.config.tie_word_embeddings || !m.has(head);
    m.scoped("lm_head", |m| {
        let name = if tied { embedding } else { head };
        let w = m.weight(name, &[m.config.vocab_size, m.config.hidden_size]);
        let logits = m.g.matmul_t(x, w, DType::F32);
        m.g.output("logits", logits);
        let rows = m.g.input(Input::OutputRows);
        let positions = m.g.input(Input::Positions);
        let position = m.g.gather(positions, rows);
        let parameters = [Input::Temperature, Input::TopK, Input::TopP, Input::MinP, Input::Seed];
        let mut inputs = vec![logits, position];
        inputs.extend(parameters.map(|p| m.g.input(p)));
        let tokens = m.g.add(Op::Sample, &inputs);
        m.g.output("tokens", tokens);
    });
}
