//! Mixtures of experts and latent attention: what a configuration says of them.
//!
//! Keys and defaults: `configuration_*.py` of mixtral, qwen2_moe, qwen3_moe, gpt_oss and deepseek_v3 in
//! transformers.

use super::fields::Fields;
use super::{Activation, MAX_COUNT, ModelConfig, RopeScaling};
use crate::error::{Error, Result};
use serde::Serialize;
use serde_json::{Value, json};

/// A model's mixture of experts (Shazeer et al. 2017): each token goes through `picks` of `count` MLPs.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Experts {
    /// Experts.
    pub count: usize,
    /// Experts of a token.
    pub picks: usize,
    /// Width of an expert.
    pub width: usize,
    /// How logits become choices and weights.
    pub scoring: Scoring,
    /// Whether a token's weights are divided by their sum.
    pub normalised: bool,
    /// Weights are multiplied by this.
    pub scale: f64,
    /// Groups of which the best are looked at, where there are any.
    pub groups: Option<Groups>,
    /// The expert that every token goes through.
    pub shared: Option<Shared>,
    /// SwiGLU with limits, in place of the configured activation.
    pub clamped: Option<Clamped>,
    /// Whether each layer has experts, rather than one MLP: one entry a layer.
    pub sparse: Vec<bool>,
}

/// How logits become choices and weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum Scoring {
    /// Softmax; the most likely are chosen.
    Softmax,
    /// Sigmoid; those whose sum with a stored bias is largest are chosen (DeepSeek-AI 2024).
    BiasedSigmoid,
}

/// Groups of neighbouring experts: the ones with the largest sum of their two best scores are looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Groups {
    /// Groups.
    pub count: usize,
    /// Groups looked at.
    pub picks: usize,
}

/// The expert that every token goes through.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Shared {
    /// Width.
    pub width: usize,
    /// Whether its result is multiplied by the sigmoid of a stored projection of the token.
    pub gated: bool,
}

/// g · sigmoid(α g) · (u + 1), with g at most the limit and u between it and its negative.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Clamped {
    /// α.
    pub alpha: f64,
    /// Limit.
    pub limit: f64,
}

/// Multi-head latent attention (DeepSeek-AI 2024): keys and values are projections of one narrow value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Latent {
    /// Width of the value that queries are projected from; `None`: of the hidden state itself.
    pub q_rank: Option<usize>,
    /// Width of the value that keys and values are projected from.
    pub kv_rank: usize,
    /// Elements of a head's query and key that are not rotated.
    pub plain: usize,
    /// Those that are; the key's are shared by all heads.
    pub rotated: usize,
    /// Elements of a head's value.
    pub value: usize,
}

/// Reads a mixture's settings into the configuration, for the families that have them.
pub(super) fn read(f: &mut Fields, c: &mut ModelConfig) -> Result<()> {
    let all = vec![true; c.layers];
    let softmax = |count, picks, width| Experts {
        count,
        picks,
        width,
        scoring: Scoring::Softmax,
        normalised: true,
        scale: 1.0,
        groups: None,
        shared: None,
        clamped: None,
        sparse: all.clone(),
    };
    let width = c.intermediate_size;
    let experts = match c.model_type.as_str() {
        "mixtral" => {
            f.rename("num_experts", "num_local_experts")?;
            let count = f.size("num_local_experts")?.unwrap_or(8);
            softmax(count, f.size("num_experts_per_tok")?.unwrap_or(2), width)
        }
        "gpt_oss" => {
            f.rename("num_experts", "num_local_experts")?;
            // The original files' name of the same.
            f.rename("experts_per_token", "num_experts_per_tok")?;
            let count = f.size("num_local_experts")?.unwrap_or(128);
            let picks = f.size("num_experts_per_tok")?.unwrap_or(4);
            let alpha = f.number("swiglu_alpha")?.unwrap_or(1.702);
            let limit = f.number("swiglu_limit")?.unwrap_or(7.0);
            if c.hidden_act != Activation::Silu {
                let name = c.hidden_act.name();
                return Err(Error::unsupported(&f.path, "hidden_act", name, "silu: the experts' is fixed"));
            }
            c.sinks = true;
            Experts { clamped: Some(Clamped { alpha, limit }), ..softmax(count, picks, width) }
        }
        "qwen3_moe" => {
            f.rename("num_local_experts", "num_experts")?;
            let count = f.size("num_experts")?.unwrap_or(128);
            let picks = f.size("num_experts_per_tok")?.unwrap_or(8);
            let width = f.size("moe_intermediate_size")?.unwrap_or(768);
            let normalised = f.boolean("norm_topk_prob")?.unwrap_or(false);
            Experts { normalised, sparse: sparse(f, c.layers)?, ..softmax(count, picks, width) }
        }
        "qwen2_moe" => {
            f.rename("num_local_experts", "num_experts")?;
            let count = f.size("num_experts")?.unwrap_or(60);
            let picks = f.size("num_experts_per_tok")?.unwrap_or(4);
            let width = f.size("moe_intermediate_size")?.unwrap_or(1408);
            let normalised = f.boolean("norm_topk_prob")?.unwrap_or(false);
            let shared = f.size("shared_expert_intermediate_size")?.unwrap_or(5632);
            let shared = Some(Shared { width: shared, gated: true });
            Experts { normalised, shared, sparse: sparse(f, c.layers)?, ..softmax(count, picks, width) }
        }
        "deepseek_v3" => {
            c.latent = Some(latent(f, c)?);
            deepseek(f, c, softmax)?
        }
        _ => return Ok(()),
    };
    check(f, &experts)?;
    c.experts = Some(experts);
    Ok(())
}

/// The rope of gpt_oss where the file gives none: its class's, not a plain one.
pub(super) fn default_rope(f: &mut Fields, model_type: &str) {
    let given = |key: &str| f.map.get(key).is_some_and(|v| !v.is_null());
    // An empty rope_scaling is none.
    let scaled = given("rope_scaling") && f.map.get("rope_scaling") != Some(&json!({}));
    if model_type == "gpt_oss" && !given("rope_parameters") && !scaled {
        let rope = json!({
            "rope_type": "yarn", "factor": 32.0, "beta_fast": 32.0, "beta_slow": 1.0, "truncate": false,
            "original_max_position_embeddings": 4096,
        });
        f.map.insert("rope_parameters".to_owned(), rope);
    }
}

/// Qwen's sparse layers: every `decoder_sparse_step`-th but those of `mlp_only_layers`.
fn sparse(f: &mut Fields, layers: usize) -> Result<Vec<bool>> {
    let step = f.size("decoder_sparse_step")?.unwrap_or(1);
    if step == 0 {
        return Err(f.malformed("decoder_sparse_step", "0 is not an interval".to_owned()));
    }
    let indices = |v: &Value| v.as_array()?.iter().map(Value::as_u64).collect::<Option<Vec<u64>>>();
    let dense = f.typed("mlp_only_layers", "a list of layers", indices)?.unwrap_or_default();
    Ok((0..layers).map(|i| (i + 1).is_multiple_of(step) && !dense.contains(&(i as u64))).collect())
}

fn deepseek(f: &mut Fields, c: &ModelConfig, of: impl Fn(usize, usize, usize) -> Experts) -> Result<Experts> {
    f.rename("num_local_experts", "n_routed_experts")?;
    for (key, only) in [("scoring_func", "sigmoid"), ("topk_method", "noaux_tc")] {
        if let Some(kind) = f.text(key)?.filter(|kind| kind != only) {
            return Err(Error::unsupported(&f.path, key, kind, only));
        }
    }
    if let Some(every) = f.size("moe_layer_freq")?.filter(|n| *n != 1) {
        return Err(Error::unsupported(&f.path, "moe_layer_freq", every, "absent or 1"));
    }
    let count = f.size("n_routed_experts")?.unwrap_or(256);
    let picks = f.size("num_experts_per_tok")?.unwrap_or(8);
    let width = f.size("moe_intermediate_size")?.unwrap_or(2048);
    let dense = f.size("first_k_dense_replace")?.unwrap_or(3);
    let shared = f.size("n_shared_experts")?.unwrap_or(1).saturating_mul(width);
    let groups = Groups { count: f.size("n_group")?.unwrap_or(8), picks: f.size("topk_group")?.unwrap_or(4) };
    Ok(Experts {
        scoring: Scoring::BiasedSigmoid,
        normalised: f.boolean("norm_topk_prob")?.unwrap_or(true),
        scale: f.number("routed_scaling_factor")?.unwrap_or(2.5),
        groups: Some(groups),
        shared: Some(Shared { width: shared, gated: false }),
        sparse: (0..c.layers).map(|i| i >= dense).collect(),
        ..of(count, picks, width)
    })
}

fn latent(f: &mut Fields, c: &mut ModelConfig) -> Result<Latent> {
    // A null rank means that queries are not compressed; an absent key the default.
    let q_rank = if f.map.contains_key("q_lora_rank") { f.size("q_lora_rank")? } else { Some(1536) };
    let latent = Latent {
        q_rank,
        kv_rank: f.size("kv_lora_rank")?.unwrap_or(512),
        plain: f.size("qk_nope_head_dim")?.unwrap_or(128),
        rotated: c.head_dim,
        value: f.size("v_head_dim")?.unwrap_or(128),
    };
    let sizes = [
        ("q_lora_rank", q_rank.unwrap_or(1)),
        ("kv_lora_rank", latent.kv_rank),
        ("qk_nope_head_dim", latent.plain),
        ("qk_rope_head_dim", latent.rotated),
        ("v_head_dim", latent.value),
    ];
    for (key, size) in sizes {
        if size == 0 || size > MAX_COUNT {
            return Err(f.malformed(key, format!("{size} is not between 1 and {MAX_COUNT}")));
        }
    }
    let head = latent.plain.saturating_add(latent.rotated);
    if let Some(given) = f.size("qk_head_dim")?.filter(|d| *d != head) {
        return Err(f.malformed("qk_head_dim", format!("{given} is not qk_nope_head_dim + qk_rope_head_dim")));
    }
    if c.kv_heads != c.heads {
        let supported = format!("{}, as many as query heads", c.heads);
        return Err(Error::unsupported(&f.path, "num_key_value_heads", c.kv_heads, supported));
    }
    c.rope.interleaved = f.boolean("rope_interleave")?.unwrap_or(true);
    c.attention_scale = 1.0 / (head as f64).sqrt();
    if let RopeScaling::Yarn { score_factor, .. } = &c.rope.scaling {
        c.attention_scale *= score_factor * score_factor;
    }
    Ok(latent)
}

/// What must hold between a mixture's numbers.
fn check(f: &Fields, e: &Experts) -> Result<()> {
    let wrong = |key: &str, problem: String| Err(f.malformed(key, problem));
    if e.count == 0 || e.count > MAX_COUNT {
        return wrong("number of experts", format!("{} is not between 1 and {MAX_COUNT}", e.count));
    }
    if e.picks == 0 || e.picks > e.count {
        return wrong("num_experts_per_tok", format!("{} of {} experts", e.picks, e.count));
    }
    if e.width == 0 || e.shared.is_some_and(|s| s.width == 0) {
        return wrong("moe_intermediate_size", "an expert of width 0".to_owned());
    }
    if !(e.scale.is_finite() && e.scale > 0.0) {
        return wrong("routed_scaling_factor", format!("{} is not a positive number", e.scale));
    }
    if let Some(c) = e.clamped
        && !(c.alpha.is_finite() && c.limit.is_finite() && c.limit > 0.0)
    {
        return wrong("swiglu_limit", format!("{} is not a positive number", c.limit));
    }
    let Some(g) = e.groups else { return Ok(()) };
    if g.count == 0 || !e.count.is_multiple_of(g.count) || e.count / g.count < 2 {
        return wrong("n_group", format!("{} groups of {} experts: at least two each", g.count, e.count));
    }
    if g.picks == 0 || g.picks > g.count || g.picks * (e.count / g.count) < e.picks {
        let problem = format!("{} of {} groups for {} experts of a token", g.picks, g.count, e.picks);
        return wrong("topk_group", problem);
    }
    Ok(())
}
