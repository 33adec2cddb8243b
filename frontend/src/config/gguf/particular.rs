//! What is particular to a family in GGUF metadata, and what llama.cpp's code fixes for it.

use super::metadata::Metadata;
use crate::config::pooling;
use crate::config::spec::{RopeLayers, Spec, Windows};
use crate::config::{
    Clamped, Experts, Groups, Latent, LayerAttention, LayerRope, MAX_COUNT, ModelConfig, Placement, QkNorm,
    Rope, RopeScaling, Scoring, Shared,
};
use crate::error::{Error, Result};
use crate::gguf::Value;

/// Layers of the 27B variants of Gemma, whose scores llama.cpp scales by another width.
const GEMMA_27B: &[(&str, usize)] = &[("gemma2", 46), ("gemma3_text", 62)];

/// The limited SwiGLU of gpt-oss.
const CLAMPED: Clamped = Clamped { alpha: 1.702, limit: 7.0 };

/// The number of sigmoid among a file's ways to score experts.
const SIGMOID: usize = 2;

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
        "deepseek_v3" => scores_of_latent(m, c)?,
        "bert" => bert(m, c)?,
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

/// The mixture of experts, where the family has one. Whether weights are divided by their sum is llama.cpp's code:
/// all but Qwen 2's.
pub(super) fn experts(m: &Metadata, spec: &Spec, layers: usize) -> Result<Option<Experts>> {
    let width = match spec.model_type {
        "mixtral" => m.required("feed_forward_length")?,
        "qwen2_moe" | "qwen3_moe" | "gpt_oss" | "deepseek_v3" => m.required("expert_feed_forward_length")?,
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
    if spec.model_type == "deepseek_v3" {
        return deepseek(m, [count, picks, width], layers).map(Some);
    }
    let shared = match spec.model_type {
        "qwen2_moe" => Some(Shared { width: m.required("expert_shared_feed_forward_length")?, gated: true }),
        _ => None,
    };
    Ok(Some(Experts {
        count,
        picks,
        width,
        scoring: Scoring::Softmax,
        normalised: shared.is_none(),
        scale: 1.0,
        groups: None,
        shared,
        clamped: (spec.model_type == "gpt_oss").then_some(CLAMPED),
        sparse: vec![true; layers],
    }))
}

/// DeepSeek V3's experts: the first layers have none.
fn deepseek(m: &Metadata, [count, picks, width]: [usize; 3], layers: usize) -> Result<Experts> {
    match m.size("expert_gating_func")? {
        Some(SIGMOID) => {}
        other => {
            let (value, supported) = (other.unwrap_or(1), "2, sigmoid: DeepSeek V3's");
            return Err(m.unsupported("expert_gating_func", value, supported));
        }
    }
    // Older files do not say V3's groups, and other models of this architecture have none.
    let usual = if count == 256 { (8, 4) } else { (1, 1) };
    let groups = Groups {
        count: m.size("expert_group_count")?.unwrap_or(usual.0),
        picks: m.size("expert_group_used_count")?.unwrap_or(usual.1),
    };
    let fits = groups.count > 0
        && count.is_multiple_of(groups.count)
        && (groups.count == 1 || count / groups.count >= 2)
        && (1..=groups.count).contains(&groups.picks)
        && groups.picks * (count / groups.count) >= picks;
    if !fits {
        let problem = format!("{} of {} groups of {count} experts", groups.picks, groups.count);
        return Err(Error::damaged(m.file.path(), m.key("expert_group_used_count"), problem));
    }
    let dense = m.size("leading_dense_block_count")?.unwrap_or(0);
    let shared = m.size("expert_shared_count")?.unwrap_or(0).saturating_mul(width);
    Ok(Experts {
        count,
        picks,
        width,
        scoring: Scoring::BiasedSigmoid,
        normalised: m.boolean("expert_weights_norm")?.unwrap_or(false),
        scale: m.number("expert_weights_scale")?.unwrap_or(1.0),
        groups: (groups.count > 1).then_some(groups),
        shared: (shared > 0).then_some(Shared { width: shared, gated: false }),
        clamped: None,
        sparse: (0..layers).map(|i| i >= dense).collect(),
    })
}

/// The sizes of latent attention, where the family has it.
pub(super) fn latent(m: &Metadata, spec: &Spec) -> Result<Option<Latent>> {
    if spec.model_type != "deepseek_v3" {
        return Ok(None);
    }
    let kv_rank = m.required("attention.kv_lora_rank")?;
    let rotated = m.required("rope.dimension_count")?;
    // Newer files say here what the cache holds, and the heads' own sizes elsewhere.
    let (stored, own) = (m.size("attention.key_length")?, m.size("attention.key_length_mla")?);
    let (stored_value, own_value) =
        (m.size("attention.value_length")?, m.size("attention.value_length_mla")?);
    let key = own.or(stored).ok_or_else(|| m.absent("attention.key_length_mla"))?;
    let value = own_value.or(stored_value).ok_or_else(|| m.absent("attention.value_length_mla"))?;
    let sizes = [kv_rank, rotated, key, value];
    if sizes.iter().any(|n| *n == 0 || *n > MAX_COUNT) || key <= rotated {
        let problem = format!("keys of {key} elements, {rotated} of them rotated, and values of {value}");
        return Err(Error::damaged(m.file.path(), m.key("attention.key_length_mla"), problem));
    }
    let q_rank = m.size("attention.q_lora_rank")?.filter(|n| *n > 0);
    Ok(Some(Latent { q_rank, kv_rank, plain: key - rotated, rotated, value }))
}

/// The scale of scores of latent attention. YaRN's multiplier of the logarithm stands for `mscale` and
/// `mscale_all_dim`, which are equal in the models of this architecture: cosines stay as they are, and scores take it
/// twice.
fn scores_of_latent(m: &Metadata, c: &mut ModelConfig) -> Result<()> {
    let Some(l) = c.latent else { return Ok(()) };
    c.attention_scale = 1.0 / ((l.plain + l.rotated) as f64).sqrt();
    let by = m.number("rope.scaling.yarn_log_multiplier")?.filter(|&x| x != 0.0);
    if let RopeScaling::Yarn { factor, attention_factor, score_factor, .. } = &mut c.rope.scaling
        && let Some(by) = by
    {
        *attention_factor = 1.0;
        *score_factor = 1.0 + by * factor.ln();
        c.attention_scale *= *score_factor * *score_factor;
    }
    Ok(())
}

/// BERT, RoBERTa and XLM-RoBERTa, whose tables of positions the converter cuts to the rows that texts reach.
fn bert(m: &Metadata, c: &mut ModelConfig) -> Result<()> {
    if m.boolean("attention.causal")? != Some(false) {
        return Err(m.unsupported("attention.causal", "true or absent", "false: an encoder"));
    }
    let stored = m.file.tensor("token_types.weight").and_then(|t| t.shape.first().copied());
    c.type_vocab_size = stored.unwrap_or(0);
    let key = "tokenizer.ggml.token_type_count";
    match m.file.unsigned(key)? {
        Some(n) if stored.is_some_and(|rows| rows as u64 != n) => {
            let problem = format!("{n} types, but token_types.weight has {} rows", c.type_vocab_size);
            return Err(Error::damaged(m.file.path(), key, problem));
        }
        _ => {}
    }
    // `Pooling` reads it.
    m.reading(pooling::GGUF_KEY);
    Ok(())
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
