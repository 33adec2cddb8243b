//! Sampling of one token from a row of logits: the definition that the CPU reference runs and that the
//! GPU kernel repeats step by step.
//!
//! The order is that of Hugging Face's logits processors: penalties, temperature, top-k, top-p, min-p, then a draw.
//! Filters compare an order-preserving `u32` key of each scaled logit, so a threshold is a key and can be
//! found by bisection on its 32 bits. The draw is the Gumbel-max trick with counter-based random bits
//! (Philox4x32-10, Salmon et al. 2011), so it depends on seed, position and token alone.

/// What decides a draw.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Params {
    /// Divides the logits; 0 or less takes the largest logit.
    pub temperature: f32,
    /// Keep the k largest, and those equal to the smallest kept; 0 or less keeps all.
    pub top_k: i32,
    /// Keep the largest of this total probability; 1 or more keeps all.
    pub top_p: f32,
    /// Keep tokens at least this likely relative to the most likely; 0 or less keeps all.
    pub min_p: f32,
    /// Seed.
    pub seed: u32,
}

impl Params {
    /// The largest logit.
    pub const GREEDY: Params = Params { temperature: 0.0, top_k: 0, top_p: 1.0, min_p: 0.0, seed: 0 };
}

/// Second word of the Philox key: "WEFT".
pub const KEY: u32 = 0x5745_4654;

/// Ten rounds of Philox4x32: 128 random bits of a counter and a key.
pub fn philox4x32_10(counter: [u32; 4], key: [u32; 2]) -> [u32; 4] {
    let wide = |a: u32, b: u32| {
        let p = u64::from(a) * u64::from(b);
        ((p >> 32) as u32, p as u32)
    };
    let (mut c, mut k) = (counter, key);
    for round in 0..10 {
        if round > 0 {
            k = [k[0].wrapping_add(0x9E37_79B9), k[1].wrapping_add(0xBB67_AE85)];
        }
        let (hi0, lo0) = wide(0xD251_1F53, c[0]);
        let (hi1, lo1) = wide(0xCD9E_8D57, c[2]);
        c = [hi1 ^ c[1] ^ k[0], lo1, hi0 ^ c[3] ^ k[1], lo0];
    }
    c
}

/// Random bits of four tokens, `4·quad .. 4·quad + 4`.
fn bits(seed: u32, position: i32, quad: u32) -> [u32; 4] {
    philox4x32_10([quad, position as u32, 0, 0], [seed, KEY])
}

/// Uniform number in (0, 1) of random bits: min((bits ≫ 8 + 0.5) · 2⁻²⁴, 1 − 2⁻²⁴), in f32.
///
/// The minimum matters: 2²⁴ − 1 + 0.5 rounds to 2²⁴ in f32, which would make the draw infinite and choose
/// an arbitrary token once in 2²⁴ numbers, that is, every few hundred rows of a large vocabulary.
pub fn uniform_of_bits(bits: u32) -> f32 {
    const SCALE: f32 = 1.0 / 16_777_216.0;
    (((bits >> 8) as f32 + 0.5) * SCALE).min(1.0 - SCALE)
}

/// Uniform number in (0, 1) of a seed, a position and a token id.
pub fn uniform(seed: u32, position: i32, token: u32) -> f32 {
    uniform_of_bits(bits(seed, position, token / 4)[(token % 4) as usize])
}

/// Standard Gumbel number of a uniform one: −ln(−ln u).
pub fn gumbel(u: f32) -> f32 {
    -(-u.ln()).ln()
}

/// Key of a number: keys are ordered as the numbers are, and −0 has the key of +0.
pub fn key(x: f32) -> u32 {
    let b = (x + 0.0).to_bits();
    if b >> 31 == 1 { !b } else { b | 0x8000_0000 }
}

/// What earlier tokens cost.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Penalties {
    /// Divides the positive logits of tokens that occurred, in the prompt too, and multiplies the others
    /// (Keskar et al. 2019); 1 changes nothing.
    pub repetition: f32,
    /// Taken from the logits of tokens that occurred behind the prompt, once each; 0 changes nothing.
    pub presence: f32,
}

impl Penalties {
    /// No penalties.
    pub const NONE: Penalties = Penalties { repetition: 1.0, presence: 0.0 };
}

/// Applies penalties to a row of logits, whose sequence so far is `past`, the first `prompt` of them the
/// prompt. Ids outside the vocabulary are passed over.
pub fn penalize_row(logits: &mut [f32], past: &[i32], prompt: usize, penalties: &Penalties) {
    let mut seen = std::collections::BTreeMap::new();
    for (i, &token) in past.iter().enumerate() {
        *seen.entry(token).or_insert(false) |= i >= prompt;
    }
    for (token, generated) in seen {
        let Some(l) = usize::try_from(token).ok().and_then(|t| logits.get_mut(t)) else { continue };
        *l = if *l < 0.0 { *l * penalties.repetition } else { *l / penalties.repetition };
        if generated {
            *l -= penalties.presence;
        }
    }
}

/// The token drawn from a row of logits at a position; −1 when a logit is NaN or there is none.
///
/// Infinities are allowed: −∞ is never drawn unless all are, and +∞ is drawn before all else.
pub fn sample_row(logits: &[f32], position: i32, params: &Params) -> i32 {
    if logits.is_empty() || logits.iter().any(|l| l.is_nan()) {
        return -1;
    }
    if params.temperature <= 0.0 || params.temperature.is_nan() {
        return argmax(logits.iter().copied());
    }
    let scaled: Vec<f32> = logits.iter().map(|l| l / params.temperature).collect();
    let threshold = threshold(&scaled, params);
    let mut best: Option<(f32, i32)> = None;
    for (quad, four) in scaled.chunks(4).enumerate() {
        if four.iter().all(|&l| key(l) < threshold) {
            continue;
        }
        let random = bits(params.seed, position, quad as u32);
        for (j, (&l, &r)) in four.iter().zip(&random).enumerate() {
            if key(l) < threshold {
                continue;
            }
            let score = l + gumbel(uniform_of_bits(r));
            if best.is_none_or(|(b, _)| score > b) {
                best = Some((score, (quad * 4 + j) as i32));
            }
        }
    }
    best.map_or(-1, |(_, token)| token)
}

/// Smallest position of the largest number; −1 of none.
fn argmax(values: impl Iterator<Item = f32>) -> i32 {
    let mut best: Option<(f32, i32)> = None;
    for (i, v) in values.enumerate() {
        if best.is_none_or(|(b, _)| v > b) {
            best = Some((v, i as i32));
        }
    }
    best.map_or(-1, |(_, i)| i)
}

/// The key at or above which tokens are kept by top-k, top-p and min-p.
fn threshold(scaled: &[f32], params: &Params) -> u32 {
    let max = scaled.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let mut least = 0;
    if params.top_k > 0 && (params.top_k as usize) < scaled.len() {
        let mut keys: Vec<u32> = scaled.iter().map(|&l| key(l)).collect();
        let at = keys.len() - params.top_k as usize;
        least = *keys.select_nth_unstable(at).1;
    }
    if params.top_p < 1.0 {
        least = nucleus(scaled, max, least, params.top_p);
    }
    if params.min_p > 0.0 {
        // The most likely token is always kept.
        least = least.max(key(max + params.min_p.min(1.0).ln()));
    }
    least
}

/// Largest key τ, up to that of the maximum, for which tokens with keys ≥ τ have at least the fraction
/// `top_p` of the mass of those with keys ≥ `least`.
fn nucleus(scaled: &[f32], max: f32, least: u32, top_p: f32) -> u32 {
    // exp(l − max), and 1 for the maximum even when it is infinite.
    let weights: Vec<(u32, f32)> = scaled
        .iter()
        .map(|&l| (key(l), if l == max { 1.0 } else { (l - max).exp() }))
        .filter(|&(k, _)| k >= least)
        .collect();
    let mass = |t: u32| weights.iter().map(|&(k, w)| if k >= t { w } else { 0.0 }).sum::<f32>();
    let wanted = top_p * mass(least);
    // Invariant: mass(low) is enough; keys above `high` are not needed or not enough.
    let (mut low, mut high) = (least, key(max));
    while low < high {
        let mid = low + (high - low).div_ceil(2);
        if mass(mid) >= wanted {
            low = mid;
        } else {
            high = mid - 1;
        }
    }
    low
}
