//! Settings that only some families have.

use super::fields::{Fields, same};
use super::{Dynamic, ModelConfig, Norm, Placement, PositionKind, QkNorm};
use crate::error::{Error, Result};
use serde_json::{Value, json};

/// Reads what is particular to the configuration's family into it.
pub(super) fn read(f: &mut Fields, c: &mut ModelConfig) -> Result<()> {
    match c.model_type.as_str() {
        "gemma2" => {
            c.attention_softcap = cap(f, "attn_logit_softcapping", Some(50.0))?;
            c.logit_softcap = cap(f, "final_logit_softcapping", Some(30.0))?;
            gemma(f, c)?;
            let window = c.attention.iter().find_map(|a| a.window);
            repeats(f, "sliding_window_size", "sliding_window", json!(window))?;
        }
        "gemma3_text" => {
            c.logit_softcap = cap(f, "final_logit_softcapping", None)?;
            gemma(f, c)?;
        }
        "granite" => {
            c.embedding_multiplier = f.number("embedding_multiplier")?.unwrap_or(1.0);
            c.residual_multiplier = f.number("residual_multiplier")?.unwrap_or(1.0);
            c.attention_scale = f.number("attention_multiplier")?.unwrap_or(1.0);
            c.logit_multiplier = 1.0 / f.number("logits_scaling")?.unwrap_or(1.0);
        }
        "cohere2" => {
            c.logit_multiplier = f.number("logit_scale")?.unwrap_or(0.0625);
            repeats(f, "use_embedding_sharing", "tie_word_embeddings", json!(c.tie_word_embeddings))?;
            layer_switch(f, c)?;
        }
        "gpt2" => {
            let scaled = f.boolean("scale_attn_weights")?.unwrap_or(true);
            c.attention_scale = if scaled { c.attention_scale } else { 1.0 };
        }
        "gpt_neox" => {
            let parallel = f.boolean("use_parallel_residual")?.unwrap_or(true);
            c.placement = if parallel { c.placement } else { Placement::Pre };
        }
        "stablelm" => {
            if f.boolean("use_parallel_residual")? == Some(true) {
                c.placement = Placement::Parallel { norms: 1 };
            }
            if f.boolean("qk_layernorm")? == Some(true) {
                c.qk_norm = QkNorm::EachHead;
            }
            repeats(f, "norm_eps", "layer_norm_eps", json!(c.norm_eps))?;
            repeats(f, "rope_pct", "partial_rotary_factor", json!(c.rope.dim as f64 / c.head_dim as f64))?;
        }
        "phi" => {
            let normed = f.boolean("qk_layernorm")?.unwrap_or(false);
            c.qk_norm = if normed { QkNorm::Head } else { QkNorm::None };
        }
        "bloom" => {
            let key = "apply_residual_connection_post_layernorm";
            c.residual_after_norm = f.boolean(key)?.unwrap_or(false);
        }
        "falcon" => falcon(f, c)?,
        "bert" => bert(f, c)?,
        "roberta" | "xlm-roberta" => {
            bert(f, c)?;
            roberta(f, c)?;
        }
        "modernbert" => modernbert(f, c)?,
        "starcoder2" => {
            for (key, only) in [("norm_type", "layer_norm"), ("mlp_type", "default")] {
                if let Some(kind) = f.text(key)?.filter(|kind| kind != only) {
                    return Err(Error::unsupported(&f.path, key, kind, only));
                }
            }
            repeats(f, "layer_norm_epsilon", "norm_epsilon", json!(c.norm_eps))?;
        }
        "qwen2" => dual_chunks(f, c)?,
        _ => {}
    }
    Ok(())
}

/// Checks a key that says again what the configuration says, and that the family's class does not read.
fn repeats(f: &mut Fields, key: &str, of: &str, value: Value) -> Result<()> {
    match f.take(key).filter(|given| !same(given, &value)) {
        None => Ok(()),
        Some(given) => Err(f.malformed(key, format!("{given} contradicts {of} = {value}"))),
    }
}

/// Cohere's older name of the distance between layers without a window.
fn layer_switch(f: &mut Fields, c: &ModelConfig) -> Result<()> {
    let Some(every) = f.size("layer_switch")? else { return Ok(()) };
    let whole = |i: usize| every > 0 && (i + 1).is_multiple_of(every);
    match (0..c.layers).find(|&i| whole(i) != c.attention[i].window.is_none()) {
        None => Ok(()),
        Some(i) => Err(f.malformed("layer_switch", format!("{every} contradicts the window of layer {i}"))),
    }
}

/// Qwen2.5-1M's dual chunk attention (An et al. 2024). It is plain attention as long as all positions are in one chunk
/// and in the original context; no more of them can be run.
fn dual_chunks(f: &mut Fields, c: &mut ModelConfig) -> Result<()> {
    let key = "dual_chunk_attention_config";
    let map = match f.take(key) {
        None => return Ok(()),
        Some(Value::Object(map)) => map,
        Some(other) => return Err(f.mistyped(key, &other, "an object")),
    };
    let mut d = Fields { path: f.path.clone(), prefix: format!("{key}."), map };
    let (size, local) = (d.required("chunk_size")?, d.required("local_size")?);
    let Some(chunk) = size.checked_sub(local).filter(|&n| n > 0) else {
        return Err(d.malformed("local_size", format!("{local} is not below chunk_size = {size}")));
    };
    let original = d.size("original_max_position_embeddings")?.unwrap_or(chunk);
    if d.boolean("sparse_attention_enabled")? == Some(true) {
        let field = d.name("sparse_attention_enabled");
        return Err(Error::unsupported(&d.path, field, true, "absent or false"));
    }
    if let Some((key, value)) = d.map.iter().find(|(_, v)| !v.is_null()) {
        return Err(Error::unsupported(&d.path, d.name(key), value, "absent"));
    }
    c.max_position = c.max_position.min(chunk).min(original);
    c.rope.dynamic = Some(Dynamic::Chunks);
    Ok(())
}

/// A soft-cap: null is none, an absent key the family's default.
fn cap(f: &mut Fields, key: &str, default: Option<f64>) -> Result<Option<f64>> {
    if f.map.contains_key(key) { f.number(key) } else { Ok(default) }
}

fn gemma(f: &mut Fields, c: &mut ModelConfig) -> Result<()> {
    let scalar = f.number("query_pre_attn_scalar")?.unwrap_or(256.0);
    if !(scalar.is_finite() && scalar > 0.0) {
        return Err(f.malformed("query_pre_attn_scalar", format!("{scalar} is not a positive number")));
    }
    c.attention_scale = 1.0 / scalar.sqrt();
    c.embedding_multiplier = (c.hidden_size as f64).sqrt();
    // Superseded by hidden_activation, and not read by the reference.
    f.take("hidden_act");
    Ok(())
}

/// Falcon's three decoders (`modeling_falcon.py`): 40B's with one norm or two, 7B's parallel one, and the
/// sequential one of RefinedWeb.
fn falcon(f: &mut Fields, c: &mut ModelConfig) -> Result<()> {
    if f.boolean("alibi")? == Some(true) {
        c.positions = PositionKind::AlibiUnscaled;
    }
    let new = f.boolean("new_decoder_architecture")?.unwrap_or(false);
    let parallel = f.boolean("parallel_attn")?.unwrap_or(true);
    let norms = f.size("num_ln_in_parallel_attn")?;
    let factor = c.intermediate_size as f64 / c.hidden_size as f64;
    repeats(f, "ff_factor", "ffn_hidden_size / hidden_size", json!(factor))?;
    c.placement = match (new, parallel, norms) {
        (true, true, None | Some(2)) => Placement::Parallel { norms: 2 },
        (true, true, Some(1)) | (false, true, None | Some(1)) => Placement::Parallel { norms: 1 },
        (false, false, _) => Placement::Pre,
        (true, false, _) => {
            let supported = "true where new_decoder_architecture is set";
            return Err(Error::unsupported(&f.path, "parallel_attn", false, supported));
        }
        (_, true, Some(n)) => {
            let supported = "1, or 2 where new_decoder_architecture is set";
            return Err(Error::unsupported(&f.path, "num_ln_in_parallel_attn", n, supported));
        }
    };
    Ok(())
}

/// BERT, as an encoder with absolute positions.
fn bert(f: &mut Fields, c: &mut ModelConfig) -> Result<()> {
    for key in ["is_decoder", "add_cross_attention"] {
        if f.boolean(key)? == Some(true) {
            return Err(Error::unsupported(&f.path, key, true, "absent or false: an encoder"));
        }
    }
    if let Some(kind) = f.text("position_embedding_type")?.filter(|kind| kind != "absolute") {
        return Err(Error::unsupported(&f.path, "position_embedding_type", kind, "absent or absolute"));
    }
    c.type_vocab_size = f.size("type_vocab_size")?.unwrap_or(2);
    repeats(f, "emb_size", "hidden_size", json!(c.hidden_size))
}

/// RoBERTa's table of positions begins with a row for padding and those before it, which texts do not reach.
fn roberta(f: &mut Fields, c: &mut ModelConfig) -> Result<()> {
    c.position_offset = c.pad_token_id.map_or(1, |id| id as usize) + 1;
    let Some(positions) = c.max_position.checked_sub(c.position_offset).filter(|&n| n > 0) else {
        let problem =
            format!("{} leaves no positions after the {} of padding", c.max_position, c.position_offset);
        return Err(f.malformed("max_position_embeddings", problem));
    };
    c.max_position = positions;
    Ok(())
}

/// Gives ModernBERT's settings the names that other families have.
pub(super) fn modernbert_names(f: &mut Fields) -> Result<()> {
    f.rename("global_rope_theta", "rope_theta")?;
    // The window's whole width; a token sees half of it on each side.
    let width = f.size("local_attention")?.unwrap_or(128);
    f.map.insert("sliding_window".to_owned(), (width / 2 + 1).into());
    Ok(())
}

/// ModernBERT, but for its heads.
fn modernbert(f: &mut Fields, c: &mut ModelConfig) -> Result<()> {
    c.norm = Norm::Layer { bias: f.boolean("norm_bias")?.unwrap_or(false) };
    // Left from BERT's files, and not read by the reference.
    for unread in ["layer_norm_eps", "position_embedding_type"] {
        f.take(unread);
    }
    Ok(())
}
