//! Token embedding.

use super::ModelBuilder;
use weft_ir::graph::Input;
use weft_ir::ids::NodeId;

/// Rows of the table [vocab, h] for the step's tokens: [t, h].
pub fn tokens(m: &mut ModelBuilder<'_>, table: &str) -> NodeId {
    m.scoped("model.embed_tokens", |m| {
        let table = m.weight(table, &[m.config.vocab_size, m.config.hidden_size]);
        let ids = m.g.input(Input::TokenIds);
        m.g.gather(table, ids)
    })
}
