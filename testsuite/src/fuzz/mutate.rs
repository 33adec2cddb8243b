//! Changed seeds.

use super::json;
use super::targets::Form;
use crate::random::rng::Rng;

/// Longest input.
const LONGEST: usize = 1 << 16;

/// Numbers at which arithmetic goes wrong.
const NUMBERS: [u64; 18] = [
    0,
    1,
    2,
    3,
    7,
    31,
    32,
    127,
    128,
    255,
    65535,
    1 << 31,
    (1 << 31) - 1,
    u32::MAX as u64,
    1 << 32,
    1 << 62,
    i64::MAX as u64,
    u64::MAX,
];

/// Pieces of the formats.
const TOKENS: [&str; 64] = [
    "{",
    "}",
    "[",
    "]",
    "\"",
    ":",
    ",",
    "null",
    "true",
    "-1",
    "1e999",
    "0.5",
    "NaN",
    "\\u0000",
    "\\ud800",
    "\u{FEFF}",
    "é",
    "🦀",
    "{{",
    "}}",
    "{%",
    "%}",
    "{#",
    "~",
    "|",
    "for",
    "endfor",
    "in",
    "range(",
    "set",
    "endset",
    "macro",
    "endmacro",
    "namespace(",
    "messages",
    "message['content']",
    "loop.index0",
    "| tojson",
    "| length",
    "is defined",
    "not",
    "and",
    "%0",
    "%99999999999",
    "->",
    "f32[",
    "bf16[tokens, 4]",
    "e4m3_128x128",
    "q4_k",
    "weight \"x\"",
    "cast",
    "slice",
    "axis=9",
    "start=18446744073709551615",
    "perm=[",
    "Const(",
    "Some(",
    "None",
    "()",
    "Sym(",
    "\0",
    "\n",
    " ",
    "//",
];

/// A seed, changed some times.
pub fn mutated(form: Form, seeds: &[Vec<u8>], rng: &mut Rng) -> Vec<u8> {
    let mut out = seeds[rng.below(seeds.len())].clone();
    if matches!(form, Form::Json | Form::Safetensors) && rng.chance(70) {
        let other = &seeds[rng.below(seeds.len())];
        out = match form {
            Form::Safetensors => in_header(out, rng, |h, rng| json::mutated(h, header(other), rng)),
            _ => json::mutated(&out, other, rng),
        };
        if rng.chance(60) {
            return out;
        }
    }
    for _ in 0..rng.within(1, 6) {
        let other = &seeds[rng.below(seeds.len())];
        if form == Form::Safetensors && rng.chance(70) {
            out = in_header(out, rng, |h, rng| {
                let mut h = h.to_vec();
                step(Form::Text, &mut h, header(other), rng);
                h
            });
        } else {
            step(form, &mut out, other, rng);
        }
    }
    out.truncate(LONGEST);
    out
}

/// The JSON of a safetensors file.
fn header(file: &[u8]) -> &[u8] {
    let length = file.first_chunk::<8>().map_or(0, |b| u64::from_le_bytes(*b) as usize);
    length.checked_add(8).and_then(|end| file.get(8..end)).unwrap_or(&[])
}

/// A safetensors file with another header, of the right length.
fn in_header(file: Vec<u8>, rng: &mut Rng, change: impl FnOnce(&[u8], &mut Rng) -> Vec<u8>) -> Vec<u8> {
    let old = header(&file);
    let data = file.get(8 + old.len()..).unwrap_or(&[]);
    let new = change(old, rng);
    let mut out = (new.len() as u64).to_le_bytes().to_vec();
    out.extend(new);
    out.extend(data);
    out
}

/// One change.
fn step(form: Form, out: &mut Vec<u8>, other: &[u8], rng: &mut Rng) {
    let n = out.len();
    let at = rng.below(n + 1);
    let len = if rng.chance(80) { rng.within(1, 8) } else { rng.within(1, 200) };
    let end = (at + len).min(n);
    let binary = form == Form::Binary;
    match rng.below(11) {
        0 if n > 0 => out[at.min(n - 1)] ^= 1 << rng.below(8),
        1 if n > 0 => out[at.min(n - 1)] = rng.below(256) as u8,
        2 => drop(out.drain(at..end)),
        3 => {
            // A piece many times, so that nesting goes deep.
            let piece = out[at..end].to_vec();
            let times = if rng.chance(10) { rng.within(1, 3000) } else { rng.within(1, 4) };
            out.splice(at..at, piece.repeat(times.min(LONGEST / piece.len().max(1))));
        }
        4 => {
            let from = rng.below(other.len() + 1);
            let to = (from + rng.within(1, 300)).min(other.len());
            out.splice(at..end, other[from..to].iter().copied());
        }
        5 => out.truncate(at),
        6 | 7 if binary => {
            let number = if rng.chance(80) { rng.pick(&NUMBERS) } else { rng.bits() };
            let width = rng.pick(&[1, 2, 4, 8]);
            for (o, b) in out[at..].iter_mut().zip(number.to_le_bytes().iter().take(width)) {
                *o = *b;
            }
        }
        6 | 7 => number_in_text(out, at, rng),
        8 | 9 if !binary => {
            let token = rng.pick(&TOKENS);
            let end = if rng.chance(50) { at } else { end };
            out.splice(at..end, token.bytes());
        }
        _ => {
            let from = rng.below(n + 1);
            let to = (from + len).min(n);
            let piece = out[from..to].to_vec();
            out.splice(at..end, piece);
        }
    }
}

/// Replaces the next number of a text.
fn number_in_text(out: &mut Vec<u8>, at: usize, rng: &mut Rng) {
    let Some(from) = out[at..].iter().position(u8::is_ascii_digit).map(|i| at + i) else { return };
    let to = out[from..].iter().position(|b| !b.is_ascii_digit()).map_or(out.len(), |i| from + i);
    let number = match rng.below(4) {
        0 => format!("-{}", rng.pick(&NUMBERS)),
        1 => rng.below(300).to_string(),
        _ => rng.pick(&NUMBERS).to_string(),
    };
    out.splice(from..to, number.into_bytes());
}
