//! Forms of the step: which buckets share a graph, and what their products take.

use crate::context::Options;
use crate::schedule::{ALONE, Bucket, SHORT_TOKENS};
use weft_ir::dtype::DType;
use weft_ir::plan::Role;

/// How the products of a form of the step are made, and what they take as their left operand.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Products {
    /// Decode: kernels that stream the right operand. They compute the left operand of anything, with as many passes
    /// over its rows as that takes.
    Streams,
    /// Decode steps of more than [`ALONE`] sequences: the rest as in decode, but the products are short tiles, which
    /// make up to 16 rows for the price of one.
    Batches,
    /// Steps of few tokens: tiles on tensor cores that compute the left operand of arrays along k, and reductions over
    /// its rows beside the products.
    ShortTiles,
    /// The other steps: tiles on tensor cores, whose left operand is in memory. Each block of columns would compute it
    /// again.
    Tiles,
}

impl Products {
    /// All of them.
    pub const ALL: [Products; 4] =
        [Products::Streams, Products::Batches, Products::ShortTiles, Products::Tiles];

    /// The form that a bucket's steps have from level 2 on.
    ///
    /// Short tiles take bf16 alone: what a norm's scale is applied behind the product to is rounded without it, and f16
    /// has no room for that; f32 has no tensor cores. An encoder's norms are LayerNorms.
    pub fn of(bucket: &Bucket, o: &Options) -> Products {
        let tensor_cores = o.target.features.mma_sync && o.target.features.cp_async;
        let tiles = o.dtype == DType::BF16 && tensor_cores;
        match bucket.role {
            Role::Decode if tiles && bucket.bind.tokens > ALONE => Products::Batches,
            Role::Decode => Products::Streams,
            Role::Prefill | Role::Score if tiles && bucket.bind.tokens <= SHORT_TOKENS => {
                Products::ShortTiles
            }
            Role::Prefill | Role::Score | Role::Encode => Products::Tiles,
        }
    }

    /// Name of the form in tables, dumps and `--require`.
    pub fn name(self, encoder: bool) -> &'static str {
        match self {
            Products::Streams => "decode",
            Products::Batches => "batch",
            Products::ShortTiles => "short",
            Products::Tiles if encoder => "encode",
            Products::Tiles => "prefill",
        }
    }

    /// Whether products compute their left operand.
    pub fn compute_left(self) -> bool {
        match self {
            Products::Streams | Products::Batches | Products::ShortTiles => true,
            Products::Tiles => false,
        }
    }

    /// Whether a product may pass over the rows of its left operand before it begins: tiles do not.
    pub fn pass_before(self) -> bool {
        self == Products::Streams
    }

    /// Whether tiles compute their left operand beside the products.
    pub fn short_tiles(self) -> bool {
        matches!(self, Products::Batches | Products::ShortTiles)
    }

    /// Whether they are those of decode steps.
    pub fn decode(self) -> bool {
        matches!(self, Products::Streams | Products::Batches)
    }
}

/// Names of all forms, as `--require` takes them.
pub const FORMS: [&str; 5] = ["decode", "batch", "short", "prefill", "encode"];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_names_are_all_there() {
        let decoder = Products::ALL.map(|p| p.name(false));
        assert!(decoder.iter().chain(&[Products::Tiles.name(true)]).eq(&FORMS));
    }
}
