//! Token and position embeddings.

use super::ModelBuilder;
use weft_ir::dtype::DType;
use weft_ir::graph::Input;
use weft_ir::ids::NodeId;
use weft_ir::scalar::Binary;

/// Rows of the table `[vocab, h]` for the step's tokens, with the configured multiplier: `[t, h]`.
pub fn tokens(m: &mut ModelBuilder<'_>, table: &str) -> NodeId {
    m.scoped("model.embed_tokens", |m| {
        let x = rows(m, table, m.config.vocab_size, Input::TokenIds);
        let by = m.config.embedding_multiplier;
        if by == 1.0 {
            return x;
        }
        let x = m.g.cast(x, DType::F32);
        let x = m.times(x, by);
        m.g.cast(x, m.dtype)
    })
}

/// As [`tokens`], and a learned embedding of the position (Radford et al. 2019), summed in f32.
pub fn tokens_and_positions(m: &mut ModelBuilder<'_>, table: &str, positions: &str) -> NodeId {
    m.scoped("model.embed_tokens", |m| {
        let x = rows(m, table, m.config.vocab_size, Input::TokenIds);
        let p = self::positions(m, positions);
        let (x, p) = (m.g.cast(x, DType::F32), m.g.cast(p, DType::F32));
        let sum = m.g.binary(Binary::Add, x, p);
        m.g.cast(sum, m.dtype)
    })
}

/// Rows of the table of positions for the step's tokens: `[t, h]`; position 0 has the configured row.
pub fn positions(m: &mut ModelBuilder<'_>, table: &str) -> NodeId {
    let (offset, most) = (m.config.position_offset, m.config.max_position);
    let mut table = m.weight(table, &[offset + most, m.config.hidden_size]);
    if offset > 0 {
        table = m.g.slice(table, 0, offset, most);
    }
    let index = m.g.input(Input::Positions);
    m.g.gather(table, index)
}

/// Rows of a table `[rows, h]` that an input names for each token: `[t, h]`.
pub fn rows(m: &mut ModelBuilder<'_>, table: &str, rows: usize, index: Input) -> NodeId {
    let table = m.weight(table, &[rows, m.config.hidden_size]);
    let index = m.g.input(index);
    m.g.gather(table, index)
}
