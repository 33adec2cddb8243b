//! Rotary position embedding: what one object of a configuration says of it. [`super::ropes`] finds the objects.
//!
//! Semantics: `transformers/modeling_rope_utils.py`.

use super::fields::Fields;
use super::spec::Spec;
use crate::error::{Error, Result};
use serde::Serialize;
use std::path::Path;

/// Rotary position embedding (Su et al. 2021) over the first `dim` elements of a head: pair `i` of `dim / 2`
/// turns by `position · theta^(−2i / dim)`, changed by the scaling.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Rope {
    /// Base.
    pub theta: f64,
    /// Elements of a head that are turned, from the first; even.
    pub dim: usize,
    /// Whether a pair is two neighbours (2i, 2i + 1), not (i, i + dim / 2).
    pub interleaved: bool,
    /// What makes rotations depend on the length of a sequence beyond the original context: up to there they are as they
    /// are.
    pub dynamic: Option<Dynamic>,
    /// Change of the frequencies.
    pub scaling: RopeScaling,
}

/// Why rotations depend on the length of a sequence.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub enum Dynamic {
    /// `rope_type` "dynamic": the base grows with the length ("NTK-aware" scaling, as transformers computes it): in a
    /// sequence of L tokens it is `theta · (1 + factor · max(0, L / original − 1))^(dim / (dim − 2))`.
    Base {
        /// How fast it grows.
        factor: f64,
        /// Positions before the extension.
        original: usize,
        /// Whether there may be longer sequences ([`super::ModelConfig::reach`]).
        grows: bool,
    },
    /// Dual chunk attention (An et al. 2024).
    Chunks,
}

/// Change of the rotary frequencies.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub enum RopeScaling {
    /// As they are.
    None,
    /// Divided by the factor (Chen et al. 2023).
    Linear {
        /// Divisor.
        factor: f64,
    },
    /// Llama 3: long wavelengths divided by the factor, short ones kept, a blend between.
    Llama3 {
        /// Divisor of the long wavelengths.
        factor: f64,
        /// Wavelengths above `original_max_position / low_freq_factor` are long.
        low_freq_factor: f64,
        /// Wavelengths below `original_max_position / high_freq_factor` are short.
        high_freq_factor: f64,
        /// Positions before the extension.
        original_max_position: usize,
    },
    /// YaRN (Peng et al. 2023): a ramp over the pairs, from kept to divided by the factor.
    Yarn {
        /// Divisor.
        factor: f64,
        /// Turns in the original context at which the ramp begins.
        beta_fast: f64,
        /// Turns at which it ends.
        beta_slow: f64,
        /// Whether the ramp's ends are rounded to whole pairs.
        truncate: bool,
        /// Cosines and sines are multiplied by this.
        attention_factor: f64,
        /// `mscale_all_dim`'s factor, by whose square latent attention multiplies its scores; 1 where it is not
        /// given.
        score_factor: f64,
        /// Positions before the extension.
        original_max_position: usize,
    },
    /// LongRoPE (Ding et al. 2024): short factors within the original context, long ones in a longer, for all its
    /// positions.
    LongRope {
        /// One divisor for each pair.
        short_factor: Vec<f64>,
        /// Likewise; empty where the file has none.
        long_factor: Vec<f64>,
        /// Whether the context is longer than the original one ([`super::ModelConfig::reach`]).
        long: bool,
        /// Positions after the extension.
        extended_max_position: usize,
        /// Cosines and sines are multiplied by this.
        attention_factor: f64,
        /// Positions before the extension.
        original_max_position: usize,
    },
    /// Divided by one explicit factor for each pair, `dim / 2` of them (GGUF `rope_freqs.weight`).
    Factors(Vec<f32>),
}

/// What the parser needs to know of the rest of the configuration.
#[derive(Clone, Copy)]
pub(super) struct Around {
    pub head_dim: usize,
    pub max_position: usize,
}

/// Settings outside the rope's own object.
#[derive(Clone, Copy)]
pub(super) struct Outer {
    /// Base, and the key that gives it.
    pub theta: Option<(&'static str, f64)>,
    pub partial: Option<f64>,
    pub original: Option<usize>,
}

/// Reads one object of rope settings.
pub(super) fn one(
    r: &mut Fields,
    spec: &Spec,
    outer: &Outer,
    default_theta: f64,
    around: Around,
) -> Result<Rope> {
    let theta = match (r.number("rope_theta")?, outer.theta) {
        (Some(inner), Some((key, outer))) if inner != outer => {
            return Err(r.malformed("rope_theta", format!("{inner} contradicts {key} = {outer}")));
        }
        (inner, outer) => inner.or(outer.map(|(_, theta)| theta)).unwrap_or(default_theta),
    };
    let older_kind = r.text("type")?;
    let kind = r.text("rope_type")?.or(older_kind).unwrap_or_else(|| "default".to_owned());
    let inner = r.number("partial_rotary_factor")?;
    let part = match spec.partial_rotary {
        Some(default) => inner.or(outer.partial).unwrap_or(default),
        None => match inner.filter(|&x| x != 1.0) {
            None => 1.0,
            Some(x) => {
                let field = r.name("partial_rotary_factor");
                return Err(Error::unsupported(&r.path, field, x, "absent or 1"));
            }
        },
    };
    if !(part > 0.0 && part <= 1.0) {
        return Err(r.malformed("partial_rotary_factor", format!("{part} is not above 0 and at most 1")));
    }
    let dim = (around.head_dim as f64 * part) as usize;
    let dynamic = match kind.as_str() {
        "dynamic" => {
            let factor = r.required_number("factor")?;
            Some(Dynamic::Base { factor, original: around.max_position, grows: false })
        }
        _ => None,
    };
    let scaling = scaling(r, spec, &kind, outer.original, around)?;
    // Recorded, but not used by the kinds that do not read them.
    for unused in ["factor", "finetuned", "original_max_position_embeddings"] {
        r.map.remove(unused);
    }
    match r.map.iter().find(|(_, v)| !v.is_null()) {
        Some((key, value)) => {
            let supported = format!("the settings of rope_type {kind}");
            Err(Error::unsupported(&r.path, r.name(key), value, supported))
        }
        None => Ok(Rope { theta, dim, interleaved: spec.interleaved, dynamic, scaling }),
    }
}

/// The values of `rope_type` that are supported, as errors list them.
pub const KINDS: &str = "default, linear, dynamic, llama3, yarn, longrope";

/// Which of [`KINDS`] are bounded, and to what.
pub const BOUNDED: &str = "longrope up to the extended context";

fn scaling(
    r: &mut Fields,
    spec: &Spec,
    kind: &str,
    original: Option<usize>,
    around: Around,
) -> Result<RopeScaling> {
    // Phi3's own files once called longrope "su" and "yarn".
    let kind = match kind {
        "su" | "yarn" if spec.outer_original => "longrope",
        other => other,
    };
    Ok(match kind {
        "default" | "dynamic" => RopeScaling::None,
        "linear" => RopeScaling::Linear { factor: r.required_number("factor")? },
        "llama3" => RopeScaling::Llama3 {
            factor: r.required_number("factor")?,
            low_freq_factor: r.required_number("low_freq_factor")?,
            high_freq_factor: r.required_number("high_freq_factor")?,
            original_max_position: r.required("original_max_position_embeddings")?,
        },
        "yarn" => yarn(r, around)?,
        "longrope" => {
            let inner = r.size("original_max_position_embeddings")?;
            let original = original.or(inner).unwrap_or(around.max_position);
            let factor = r.number("factor")?.unwrap_or(around.max_position as f64 / original as f64);
            let attention_factor = r.number("attention_factor")?.unwrap_or_else(|| match factor > 1.0 {
                true => (1.0 + factor.ln() / (original as f64).ln()).sqrt(),
                false => 1.0,
            });
            let short_factor = r.numbers("short_factor")?.ok_or_else(|| r.absent("short_factor"))?;
            let long_factor = r.numbers("long_factor")?.ok_or_else(|| r.absent("long_factor"))?;
            if long_factor.len() != short_factor.len() {
                let problem =
                    format!("{} long factors, {} short ones", long_factor.len(), short_factor.len());
                return Err(r.malformed("long_factor", problem));
            }
            RopeScaling::LongRope {
                short_factor,
                long_factor,
                long: false,
                extended_max_position: around.max_position,
                attention_factor,
                original_max_position: original,
            }
        }
        _ => return Err(Error::unsupported(&r.path, r.name("rope_type"), kind, KINDS)),
    })
}

fn yarn(r: &mut Fields, around: Around) -> Result<RopeScaling> {
    let original_max_position = r.size("original_max_position_embeddings")?.unwrap_or(around.max_position);
    let factor = r.required_number("factor")?;
    let (mscale, all) = (r.number("mscale")?, r.number("mscale_all_dim")?);
    let scale = |m: f64| if factor <= 1.0 { 1.0 } else { 0.1 * m * factor.ln() + 1.0 };
    let suggested = match (mscale, all) {
        (Some(m), Some(all)) if m != 0.0 && all != 0.0 => scale(m) / scale(all),
        _ => scale(1.0),
    };
    Ok(RopeScaling::Yarn {
        factor,
        score_factor: all.filter(|&m| m != 0.0).map_or(1.0, scale),
        beta_fast: r.number("beta_fast")?.filter(|&x| x != 0.0).unwrap_or(32.0),
        beta_slow: r.number("beta_slow")?.filter(|&x| x != 0.0).unwrap_or(1.0),
        truncate: r.boolean("truncate")?.unwrap_or(true),
        attention_factor: r.number("attention_factor")?.unwrap_or(suggested),
        original_max_position,
    })
}

impl Rope {
    /// Multiplier of cosines and sines.
    pub fn attention_factor(&self) -> f64 {
        match &self.scaling {
            RopeScaling::Yarn { attention_factor, .. } | RopeScaling::LongRope { attention_factor, .. } => {
                *attention_factor
            }
            RopeScaling::None
            | RopeScaling::Linear { .. }
            | RopeScaling::Llama3 { .. }
            | RopeScaling::Factors(_) => 1.0,
        }
    }

    /// Checks the numbers, whatever file they came from.
    pub(super) fn check(&self, path: &Path) -> Result<()> {
        let wrong = |field: &str, problem: String| {
            Err(Error::malformed(path, field, problem, "correct the checkpoint's configuration"))
        };
        let ok = |f: f64| f.is_finite() && f > 0.0;
        if !ok(self.theta) {
            return wrong("rope_theta", format!("{} is not a positive number", self.theta));
        }
        if self.dim == 0 || !self.dim.is_multiple_of(2) {
            let problem =
                format!("rotary embedding turns pairs, and {} elements of a head are odd", self.dim);
            return wrong("head_dim", problem);
        }
        if let Some(Dynamic::Base { factor, .. }) = self.dynamic {
            if !ok(factor) {
                return wrong("rope scaling factor", format!("{factor} is not a positive number"));
            }
            if self.dim == 2 {
                return wrong(
                    "head_dim",
                    "rope_type dynamic needs more than one pair of elements".to_owned(),
                );
            }
        }
        let pairs = |n: usize, good: bool, field: &str| match n == self.dim / 2 && good {
            true => Ok(()),
            false => {
                let pairs = self.dim / 2;
                wrong(field, format!("{n} factors for {pairs} pairs, or one that is not a positive number"))
            }
        };
        match &self.scaling {
            RopeScaling::None => Ok(()),
            RopeScaling::Linear { factor } if ok(*factor) => Ok(()),
            RopeScaling::Linear { factor } => {
                wrong("rope scaling factor", format!("{factor} is not a positive number"))
            }
            RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_position } => {
                let ordered = ok(*low_freq_factor) && high_freq_factor > low_freq_factor;
                if ok(*factor) && ordered && high_freq_factor.is_finite() && *original_max_position > 0 {
                    return Ok(());
                }
                let problem = "llama3 needs factor > 0, 0 < low_freq_factor < high_freq_factor and \
                               original_max_position_embeddings > 0";
                wrong("rope scaling", problem.to_owned())
            }
            RopeScaling::Yarn {
                factor,
                beta_fast,
                beta_slow,
                attention_factor,
                original_max_position,
                ..
            } => {
                let ordered = ok(*beta_slow) && beta_fast >= beta_slow && beta_fast.is_finite();
                if ok(*factor)
                    && ordered
                    && ok(*attention_factor)
                    && *original_max_position > 0
                    && self.theta != 1.0
                {
                    return Ok(());
                }
                let problem = "yarn needs factor > 0, 0 < beta_slow <= beta_fast, attention_factor > 0, \
                               original_max_position_embeddings > 0 and a rope_theta other than 1";
                wrong("rope scaling", problem.to_owned())
            }
            RopeScaling::LongRope {
                short_factor,
                long_factor,
                attention_factor,
                original_max_position,
                ..
            } => {
                if !ok(*attention_factor) || *original_max_position == 0 {
                    let problem = "longrope needs attention_factor > 0 and an original context above 1";
                    return wrong("rope scaling", problem.to_owned());
                }
                pairs(short_factor.len(), short_factor.iter().all(|&f| ok(f)), "rope scaling short_factor")?;
                match long_factor.len() {
                    0 => Ok(()),
                    n => pairs(n, long_factor.iter().all(|&f| ok(f)), "rope scaling long_factor"),
                }
            }
            RopeScaling::Factors(factors) => {
                pairs(factors.len(), factors.iter().all(|&f| ok(f64::from(f))), "rope factors")
            }
        }
    }
}
