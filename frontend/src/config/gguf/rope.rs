//! Rotary embedding in GGUF metadata, and the tensors of factors that belong to it.

use super::metadata::Metadata;
use crate::config::spec::Spec;
use crate::config::{Rope, RopeScaling};
use crate::error::{Error, Result};
use crate::tensor::TensorInfo;
use weft_ir::decode::decode_f32;

/// Turns of a wavelength between which YaRN blends, where the file does not say (llama.cpp's defaults).
const YARN: (f64, f64) = (32.0, 1.0);

/// Base and scaling. A tensor `rope_freqs.weight` holds one divisor for each pair (Llama 3); `rope_factors_short.weight`
/// and `…_long.weight` those of LongRoPE (Phi 3).
pub(super) fn read(m: &Metadata, spec: &Spec, head_dim: usize, context: usize) -> Result<Rope> {
    let dim = m.size("rope.dimension_count")?.unwrap_or(head_dim);
    let whole = spec.partial_rotary.is_none();
    if dim > head_dim || (whole && dim != head_dim) {
        let supported = match whole {
            true => format!("the width of a key head, {head_dim}"),
            false => format!("at most the width of a key head, {head_dim}"),
        };
        return Err(m.unsupported("rope.dimension_count", dim, supported));
    }
    let theta = m.number("rope.freq_base")?.unwrap_or(spec.theta);
    let made = |scaling| Rope { theta, dim, interleaved: spec.interleaved, dynamic: None, scaling };
    let path = m.file.path();
    if let Some(short) = m.file.tensor("rope_factors_short.weight") {
        return long_rope(m, short, context).map(made);
    }
    let kind = m.text("rope.scaling.type")?;
    let older = m.number("rope.scale_linear")?;
    let scaling = match (kind, m.number("rope.scaling.factor")?.or(older)) {
        (Some("none"), _) | (None, None) => RopeScaling::None,
        (Some("linear") | None, Some(factor)) => RopeScaling::Linear { factor },
        (Some("yarn"), Some(factor)) => yarn(m, factor, context)?,
        (Some(kind @ ("linear" | "yarn")), None) => {
            let remedy = format!("{kind} scaling needs it");
            return Err(Error::missing(path, m.key("rope.scaling.factor"), remedy));
        }
        (Some(other), _) => {
            let supported = "none, linear, yarn, or factors in rope_freqs.weight (llama3) or \
                             rope_factors_short.weight (longrope)";
            return Err(m.unsupported("rope.scaling.type", other, supported));
        }
    };
    let Some(tensor) = m.file.tensor("rope_freqs.weight") else { return Ok(made(scaling)) };
    if !matches!(scaling, RopeScaling::None | RopeScaling::Linear { factor: 1.0 }) {
        let supported = "either scaling metadata or the tensor rope_freqs.weight, not both";
        return Err(m.unsupported("rope.scaling.type", format!("{scaling:?}"), supported));
    }
    Ok(made(RopeScaling::Factors(factors(m, tensor)?)))
}

fn yarn(m: &Metadata, factor: f64, context: usize) -> Result<RopeScaling> {
    let original_max_position = match m.size("rope.scaling.original_context_length")? {
        Some(n) => n,
        None => return Err(m.absent("rope.scaling.original_context_length")),
    };
    if let Some(ext) = m.number("rope.scaling.yarn_ext_factor")?.filter(|&x| x != 1.0) {
        return Err(m.unsupported("rope.scaling.yarn_ext_factor", ext, "absent or 1"));
    }
    let by = |name: &str| m.number(name).map(|x| x.unwrap_or(1.0));
    let by = by("rope.scaling.attn_factor")? * by("rope.scaling.yarn_attn_factor")?;
    if original_max_position > context {
        let supported = format!("at most context_length, {context}");
        return Err(m.unsupported("rope.scaling.original_context_length", original_max_position, supported));
    }
    Ok(RopeScaling::Yarn {
        factor,
        beta_fast: m.number("rope.scaling.yarn_beta_fast")?.unwrap_or(YARN.0),
        beta_slow: m.number("rope.scaling.yarn_beta_slow")?.unwrap_or(YARN.1),
        attention_factor: by * (1.0 + 0.1 * factor.ln()),
        score_factor: 1.0,
        truncate: true,
        original_max_position,
    })
}

fn long_rope(m: &Metadata, short: &TensorInfo, context: usize) -> Result<RopeScaling> {
    // The file's type is "longrope", "none" or absent: the tensors say it all.
    m.text("rope.scaling.type")?;
    let original_max_position = m.size("rope.scaling.original_context_length")?.unwrap_or(context);
    let wide = |tensor| -> Result<Vec<f64>> { Ok(factors(m, tensor)?.into_iter().map(f64::from).collect()) };
    Ok(RopeScaling::LongRope {
        short_factor: wide(short)?,
        long_factor: m.file.tensor("rope_factors_long.weight").map_or_else(|| Ok(Vec::new()), wide)?,
        long: false,
        extended_max_position: context,
        attention_factor: m.number("rope.scaling.attn_factor")?.unwrap_or(1.0),
        original_max_position,
    })
}

/// A tensor of one factor for each pair. Its bytes are in the file, so these f32 are no more than a few times its size.
fn factors(m: &Metadata, tensor: &TensorInfo) -> Result<Vec<f32>> {
    let path = m.file.path();
    let bytes = m.file.data(tensor)?;
    let encoding = tensor.require_encoding(path)?;
    let mut factors = vec![0.0; tensor.elements().unwrap_or(0)];
    decode_f32(encoding, bytes, &mut factors)
        .map_err(|e| Error::damaged(path, format!("tensor {:?}", tensor.name), e))?;
    Ok(factors)
}
