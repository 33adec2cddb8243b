//! The values of a made-up tensor: a function of the seed, its name and the element's number alone.

use crate::config::{ModelConfig, Norm};
use crate::models::Asked;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;
use rand_distr::{Distribution, Open01, StandardNormal};
use sha2::{Digest, Sha256};

/// Elements that one stream of the generator makes.
pub(super) const CHUNK: usize = 1 << 16;
/// Most that the weight of a norm is away from its neutral value.
const NORM_WIDTH: f32 = 0.1;
/// Standard deviation of biases and attention sinks.
const BIAS: f32 = 0.02;
/// Smallest standard deviation of an embedding table.
const TABLE: f32 = 0.02;

/// The distribution of a tensor's values.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Distributed {
    /// Evenly, up to [`NORM_WIDTH`] around this.
    Around(f32),
    /// Normally around 0, with this standard deviation.
    Normal(f32),
}

/// The source of one tensor's values.
#[derive(Clone, Debug)]
pub(super) struct Values {
    /// The generator's key.
    key: [u8; 32],
    distributed: Distributed,
}

impl Values {
    /// Those of a tensor of the model of this configuration.
    pub(super) fn new(asked: &Asked, config: &ModelConfig, seed: u64) -> Values {
        let mut hash = Sha256::new();
        hash.update(seed.to_le_bytes());
        hash.update(asked.name.as_bytes());
        Values { key: hash.finalize().into(), distributed: distributed(asked, config) }
    }

    /// Fills elements `CHUNK * chunk ..` of the tensor, at most [`CHUNK`].
    pub(super) fn fill(&self, chunk: u64, out: &mut [f32]) {
        let mut rng = ChaCha8Rng::from_seed(self.key);
        rng.set_stream(chunk);
        match self.distributed {
            Distributed::Around(centre) => out.fill_with(|| {
                let unit: f32 = Open01.sample(&mut rng);
                centre + NORM_WIDTH * (2.0 * unit - 1.0)
            }),
            Distributed::Normal(deviation) => out.fill_with(|| {
                let unit: f32 = StandardNormal.sample(&mut rng);
                deviation * unit
            }),
        }
    }
}

/// Weights of norms lie around the value that changes nothing, biases around 0. A matrix keeps the size of what it
/// multiplies: its deviation is 1/√in (LeCun et al. 1998); a table's rows are not made smaller than [`TABLE`].
fn distributed(asked: &Asked, config: &ModelConfig) -> Distributed {
    match asked.shape.as_slice() {
        _ if asked.name.ends_with("bias") => Distributed::Normal(BIAS),
        [] => Distributed::Normal(BIAS),
        [_] if !asked.name.ends_with(".weight") => Distributed::Normal(BIAS),
        [_] if config.norm == Norm::RmsPlusOne => Distributed::Around(0.0),
        [_] => Distributed::Around(1.0),
        [.., rows, columns] => {
            let inner = if asked.turned { *rows } else { *columns };
            let deviation = 1.0 / (inner.max(1) as f32).sqrt();
            let positions = config.position_offset + config.max_position;
            let is_table = asked.shape.len() == 2
                && *columns == config.hidden_size
                && [config.vocab_size, positions, config.type_vocab_size].contains(rows);
            Distributed::Normal(if is_table { deviation.max(TABLE) } else { deviation })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    fn config(model_type: &str) -> ModelConfig {
        let own = if model_type == "gemma2" { r#", "query_pre_attn_scalar": 128"# } else { "" };
        let text = format!(
            r#"{{"model_type": "{model_type}", "hidden_size": 4096, "num_attention_heads": 32, "head_dim": 128,
                "num_key_value_heads": 8, "num_hidden_layers": 1, "intermediate_size": 64, "vocab_size": 100{own}}}"#
        );
        crate::config::hf::parse(Path::new("config.json"), text.as_bytes(), &[]).expect("parses")
    }

    fn moments(values: &Values) -> (f64, f64) {
        let mut all = vec![0.0; CHUNK];
        values.fill(3, &mut all);
        let n = all.len() as f64;
        let mean = all.iter().map(|&v| f64::from(v)).sum::<f64>() / n;
        let square = all.iter().map(|&v| (f64::from(v) - mean).powi(2)).sum::<f64>() / n;
        (mean, square.sqrt())
    }

    #[test]
    fn values_have_the_size_that_their_place_asks_for() {
        type Case<'a> = (&'a str, &'a str, &'a [usize], bool, f64, f64);
        let cases: &[Case<'_>] = &[
            ("llama", "model.norm.weight", &[4096], false, 1.0, 0.1 / 3f64.sqrt()),
            ("gemma2", "model.norm.weight", &[4096], false, 0.0, 0.1 / 3f64.sqrt()),
            ("llama", "q_proj.bias", &[4096], false, 0.0, 0.02),
            ("llama", "sinks", &[32], false, 0.0, 0.02),
            ("llama", "experts.gate_up_proj_bias", &[8, 64], false, 0.0, 0.02),
            ("llama", "down_proj.weight", &[4096, 64], false, 0.0, 0.125),
            ("llama", "c_fc.weight", &[64, 4096], true, 0.0, 0.125),
            ("llama", "experts.down_proj", &[8, 64, 4096], true, 0.0, 0.125),
            ("llama", "model.embed_tokens.weight", &[100, 4096], false, 0.0, 0.02),
        ];
        for &(family, name, shape, turned, mean, deviation) in cases {
            let asked = Asked { name: name.into(), shape: shape.to_vec(), turned };
            let (got, spread) = moments(&Values::new(&asked, &config(family), 7));
            // Five standard errors.
            let error = 5.0 / (CHUNK as f64).sqrt();
            assert!((got - mean).abs() < error * deviation, "{name}: mean {got}");
            assert!((spread / deviation - 1.0).abs() < error, "{name}: deviation {spread}, not {deviation}");
        }
    }
}
