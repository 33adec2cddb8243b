//! What is particular to a family in GGUF metadata, and what llama.cpp's code fixes for it.

use super::metadata::Metadata;
use crate::config::spec::{RopeLayers, Spec, Windows};
use crate::config::{
    Clamped, Experts, LayerAttention, LayerRope, MAX_COUNT, ModelConfig, Placement, QkNorm, Rope,
    RopeScaling, Scoring,
};
use crate::error::{Error, Result};
use crate::gguf::Value;

/// Layers of the 27B variants of Gemma, whose scores llama.cpp scales by another width.
const GEMMA_27B: &[(&str, usize)] = &[("gemma2", 46), ("gemma3_text", 62)];

/// The limited SwiGLU of gpt-oss.
const CLAMPED: Clamped = Clamped { alpha: 1.702, limit: 7.0 };

/// Largest bias of BLOOM's ALiBi slopes.
const ALIBI: f64 = 8.0;

/// Reads what is particular to the configuration's family into it.
pub(super) fn read(m: &Metadata, spec: &Spec, c: &mut ModelConfig) -> Result<()> {
    match spec.model_type {
        "gemma2" | "gemma3_text" => gemma(m, spec, c)?,
        "granite" => {
            let of = |name: &str| m.number(name);
            c.embedding_multiplier = of("embedding_scale")?.unwrap_or(1.0);
            c.residual_multiplier = of("residual_scale")?.unwrap_or(1.0);
            c.logit_multiplier = 1.0 / of("logit_scale")?.unwrap_or(1.0);
            // 0 stands for the usual scale.
            c.attention_scale = of("attention.scale")?.filter(|&s| s != 0.0).unwrap_or(c.attention_scale);
        }
        "cohere2" => c.logit_multiplier = m.required_number("logit_scale")?,
        "gpt_neox" => {
            let parallel = m.boolean("use_parallel_residual")?.unwrap_or(true);
            c.placement = if parallel { c.placement } else { Placement::Pre };
        }
        "stablelm" => {
            // Files say that the residual is parallel whether or not it is; without a second norm it is.
            m.boolean("use_parallel_residual")?;
            if !m.has("blk.0.ffn_norm.weight") {
                c.placement = Placement::Parallel { norms: 1 };
            }
            if m.has("blk.0.attn_q_norm.weight") {
                c.qk_norm = QkNorm::EachHead;
            }
        }
        "falcon" => {
            let norms = if m.has("blk.0.attn_norm_2.weight") { 2 } else { 1 };
            c.placement = Placement::Parallel { norms };
        }
        "bloom" => {
            if let Some(other) = m.number("attention.max_alibi_bias")?.filter(|&x| x != ALIBI && x != 0.0) {
                return Err(m.unsupported("attention.max_alibi_bias", other, "absent or 8"));
            }
        }
        "gpt_oss" => {
            c.sinks = true;
            // As the model was trained, which its files do not say.
            if let RopeScaling::Yarn { truncate, .. } = &mut c.rope.scaling {
                *truncate = false;
            }
        }
        "phi3" => {
            if let RopeScaling::LongRope { original_max_position, .. } = &c.rope.scaling {
                c.max_position = c.max_position.min(*original_max_position);
            }
        }
        _ => {}
    }
    Ok(())
}

/// The mixture of experts, where the family has one. That weights are divided by their sum is llama.cpp's code.
pub(super) fn experts(m: &Metadata, spec: &Spec, layers: usize) -> Result<Option<Experts>> {
    let width = match spec.model_type {
        "mixtral" => m.required("feed_forward_length")?,
        "qwen3_moe" | "gpt_oss" => m.required("expert_feed_forward_length")?,
        _ => {
            return match m.size("expert_count")?.filter(|&n| n > 0) {
                None => Ok(None),
                Some(n) => Err(m.unsupported("expert_count", n, "absent or 0 for this architecture")),
            };
        }
    };
    let (count, picks) = (m.required("expert_count")?, m.required("expert_used_count")?);
    if count == 0 || count > MAX_COUNT || picks == 0 || picks > count {
        let problem = format!("{picks} of {count} experts, at most {MAX_COUNT} allowed");
        return Err(Error::damaged(m.file.path(), m.key("expert_used_count"), problem));
    }
    Ok(Some(Experts {
        count,
        picks,
        width,
        scoring: Scoring::Softmax,
        normalised: true,
        scale: 1.0,
        groups: None,
        shared: None,
        clamped: (spec.model_type == "gpt_oss").then_some(CLAMPED),
        sparse: vec![true; layers],
    }))
}

fn gemma(m: &Metadata, spec: &Spec, c: &mut ModelConfig) -> Result<()> {
    c.embedding_multiplier = (c.hidden_size as f64).sqrt();
    if GEMMA_27B.contains(&(spec.model_type, c.layers)) {
        c.attention_scale = 1.0 / (c.hidden_size as f64 / c.heads.max(1) as f64).sqrt();
    }
    let capped = spec.model_type == "gemma2";
    c.attention_softcap = m.number("attn_logit_softcapping")?.or(capped.then_some(50.0));
    c.logit_softcap = m.number("final_logit_softcapping")?.or(capped.then_some(30.0));
    match c.attention_softcap.filter(|_| !capped) {
        Some(cap) => Err(m.unsupported("attn_logit_softcapping", cap, "absent: the model has none")),
        None => Ok(()),
    }
}

/// The rope of layers with a window, where the family has one of its own.
pub(super) fn local_rope(m: &Metadata, spec: &Spec, rope: &Rope) -> Result<Option<Rope>> {
    let Some(default) = spec.local_theta else { return Ok(None) };
    let theta = m.number("rope.freq_base_swa")?.or(default).unwrap_or(rope.theta);
    Ok(Some(Rope { theta, scaling: RopeScaling::None, ..rope.clone() }))
}

/// Each layer's window and rotation; `layers` is checked to be small.
pub(super) fn attention(m: &Metadata, spec: &Spec, layers: usize) -> Result<Vec<LayerAttention>> {
    let gemma = matches!(spec.model_type, "gemma2" | "gemma3_text");
    // Elsewhere a window is refused with the keys that nobody reads.
    let (window, every) = match spec.windows {
        Windows::Pattern(every) => (m.size("attention.sliding_window")?.or(gemma.then_some(4096)), every),
        Windows::All(_) => (m.size("attention.sliding_window")?, usize::MAX),
        Windows::Alternate(default) => (m.size("attention.sliding_window")?.or(Some(default)), 2),
        Windows::None | Windows::Used | Windows::NoRope | Windows::Cycle(_) => (None, usize::MAX),
    };
    let window = window.filter(|&w| w > 0);
    let configured = window.is_some();
    let slides = pattern(m, layers, every)?;
    let of = |i: usize| {
        let window = window.filter(|_| slides[i]);
        let turned = match spec.ropes {
            RopeLayers::All => true,
            RopeLayers::Windowed { or_all } => window.is_some() || (or_all && !configured),
            // llama.cpp's own constant: the file does not say.
            RopeLayers::Listed => !(i + 1).is_multiple_of(4),
        };
        let rope = match (turned, window) {
            (false, _) => LayerRope::None,
            (true, Some(_)) if spec.local_theta.is_some() => LayerRope::Local,
            (true, _) => LayerRope::Global,
        };
        LayerAttention { window, rope }
    };
    Ok((0..layers).map(of).collect())
}

/// Which layers slide: as the file lists, else all but every n-th.
fn pattern(m: &Metadata, layers: usize, every: usize) -> Result<Vec<bool>> {
    let name = "attention.sliding_window_pattern";
    let every = match m.file.value(&m.key(name)) {
        None => every,
        Some(Value::Array(_)) => {
            let flags = m.file.booleans(&m.reading(name))?.unwrap_or_default();
            if flags.len() != layers {
                let problem = format!("{} entries for {layers} layers", flags.len());
                return Err(Error::damaged(m.file.path(), m.key(name), problem));
            }
            return Ok(flags);
        }
        Some(_) => match m.size(name)? {
            Some(0) | None => usize::MAX,
            Some(n) => n,
        },
    };
    Ok((0..layers).map(|i| !(i + 1).is_multiple_of(every)).collect())
}
