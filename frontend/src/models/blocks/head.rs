//! Output rows, language-model head, sampling.

use super::{Linear, ModelBuilder};
use crate::checkpoint::Task;
use weft_ir::dtype::DType;
use weft_ir::graph::{Input, Op, ValueType};
use weft_ir::ids::NodeId;
use weft_ir::shape::{Dim, Sym};

/// Hidden states of the tokens whose logits are wanted: x [t, h] → [rows, h] f32, so that the last layer's sum goes to
/// its norm as those of the others do. A model that embeds wants those of all.
pub fn output_rows(m: &mut ModelBuilder<'_>, x: NodeId) -> NodeId {
    match m.task() {
        Task::Generate => {}
        Task::Embed => return x,
    }
    let rows = m.g.input(Input::OutputRows);
    m.scoped("model.output_rows", |m| {
        let x = m.g.cast(x, DType::F32);
        m.g.gather(x, rows)
    })
}

/// The logits after the penalties of each row's sequence, whose tokens are a state by slot: `token_history`.
fn penalised(m: &mut ModelBuilder<'_>, logits: NodeId, rows: NodeId, position: NodeId) -> NodeId {
    let [ids, slots] = [Input::TokenIds, Input::Slots].map(|i| m.g.input(i));
    let history = m.g.state("token_history", ValueType::plain(DType::I32, vec![Dim::Sym(Sym::Slots)]));
    let history = m.g.scatter(history, ids, slots);
    m.g.state_out("token_history", history);
    let [sequences, bases] = [Input::Sequences, Input::SlotBase].map(|i| m.g.input(i));
    let sequence = m.g.gather(sequences, rows);
    let base = m.g.gather(bases, sequence);
    let parameters = [Input::PromptLengths, Input::RepetitionPenalty, Input::PresencePenalty];
    let mut inputs = vec![logits, history, base, position];
    inputs.extend(parameters.map(|p| m.g.input(p)));
    m.g.add(Op::Penalize, &inputs)
}

/// Outputs `logits` `[rows, vocab]` f32 and `tokens` `[rows]` i32, from x `[rows, h]`, with the configured
/// multiplier and soft-cap. Tied heads take the embedding table. A head with a stored bias adds it. A model that embeds
/// has none: its output is x, `last_hidden_state` `[tokens, h]` f32.
pub fn logits_and_sample(m: &mut ModelBuilder<'_>, x: NodeId, embedding: &str, head: &str) {
    match m.task() {
        Task::Generate => {}
        Task::Embed => {
            let x = m.g.cast(x, DType::F32);
            m.g.output("last_hidden_state", x);
            return;
        }
    }
    let tied = m.config.tie_word_embeddings || !m.has(head);
    let stem = head.trim_end_matches(".weight");
    let bias = m.has(&format!("{stem}.bias"));
    m.scoped("lm_head", |m| {
        let name = if tied { embedding } else { head };
        let vocab = m.config.vocab_size;
        let weight = m.weight(name, &[vocab, m.config.hidden_size]);
        let x = m.g.cast(x, m.dtype);
        let bias = bias.then(|| m.weight(&format!("{stem}.bias"), &[vocab]));
        let logits = m.apply(x, Linear { weight, bias });
        let logits = m.times(logits, m.config.logit_multiplier);
        let logits = m.soft_cap(logits, m.config.logit_softcap);
        m.g.output("logits", logits);
        let rows = m.g.input(Input::OutputRows);
        let positions = m.g.input(Input::Positions);
        let position = m.g.gather(positions, rows);
        let logits = penalised(m, logits, rows, position);
        let parameters = [Input::Temperature, Input::TopK, Input::TopP, Input::MinP, Input::Seed];
        let mut inputs = vec![logits, position];
        inputs.extend(parameters.map(|p| m.g.input(p)));
        let tokens = m.g.add(Op::Sample, &inputs);
        m.g.output("tokens", tokens);
    });
}
