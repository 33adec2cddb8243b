//! GGML "K" blocks of 256 elements: small blocks whose scales are quantised, too, and share an f16.
//!
//! | encoding | bytes of a block | value |
//! | --- | --- | --- |
//! | `q2_k` | s: 16 bytes, q: 64 bytes, d, m: f16 | d · low(s) · q − m · high(s), 16 elements a scale |
//! | `q3_k` | h: 32 bytes, q: 64 bytes, s: 12 bytes, d: f16 | d · (s − 32) · (q − 4), 16 a scale |
//! | `q4_k` | d, m: f16, s: 12 bytes, q: 128 bytes | d · s · q − m · t, 32 a scale s and minimum t |
//! | `q5_k` | d, m: f16, s: 12 bytes, h: 32 bytes, q: 128 bytes | as `q4_k`, with a fifth bit in h |
//! | `q6_k` | q: 128 bytes, h: 64 bytes, s: 16 × i8, d: f16 | d · s · (q − 32), 16 a scale |
//!
//! Where the bits of an element lie is said at each function.

use super::half;

/// Elements of a block.
const N: usize = 256;

/// Element e = 128·a + 32·b + c: bits 2b and 2b+1 of byte 32·a + c; scale e / 16.
pub(super) fn q2_k(block: &[u8; 84], values: &mut [f32; N]) {
    let (scales, quants) = (&block[..16], &block[16..80]);
    let (d, m) = (half(&block[80..]), half(&block[82..]));
    for (e, v) in values.iter_mut().enumerate() {
        let s = scales[e / 16];
        let (scale, least) = (d * f32::from(s & 15), m * f32::from(s >> 4));
        *v = scale * f32::from(quants[e / 128 * 32 + e % 32] >> (e % 128 / 32 * 2) & 3) - least;
    }
}

/// Low bits as in `q2_k`; the third is bit e / 32 of byte e % 32 of h. Scale i, of 6 bits: its low four are a nibble
/// of byte i % 8 (the low one for i < 8), its high two bits 2·(i / 4) and above of byte 8 + i % 4.
pub(super) fn q3_k(block: &[u8; 110], values: &mut [f32; N]) {
    let (high, quants, packed, d) = (&block[..32], &block[32..96], &block[96..108], half(&block[108..]));
    let scale = |i: usize| {
        let low = packed[i % 8] >> (i / 8 * 4) & 15;
        let top = packed[8 + i % 4] >> (i / 4 * 2) & 3;
        d * (f32::from(low | top << 4) - 32.0)
    };
    let scales: [f32; 16] = std::array::from_fn(scale);
    for (e, v) in values.iter_mut().enumerate() {
        let low = quants[e / 128 * 32 + e % 32] >> (e % 128 / 32 * 2) & 3;
        let top = high[e % 32] >> (e / 32) & 1;
        *v = scales[e / 16] * (f32::from(low | top << 2) - 4.0);
    }
}

/// Element e = 64·a + 32·b + c: nibble b of byte 32·a + c; scale e / 32.
pub(super) fn q4_k(block: &[u8; 144], values: &mut [f32; N]) {
    let quants = &block[16..];
    with_minima(block, values, |e| quants[e / 64 * 32 + e % 32] >> (e % 64 / 32 * 4) & 15);
}

/// Low bits as in `q4_k`; the fifth is bit e / 32 of byte e % 32 of h.
pub(super) fn q5_k(block: &[u8; 176], values: &mut [f32; N]) {
    let (high, quants) = (&block[16..48], &block[48..]);
    with_minima(block, values, |e| {
        let low = quants[e / 64 * 32 + e % 32] >> (e % 64 / 32 * 4) & 15;
        low | (high[e % 32] >> (e / 32) & 1) << 4
    });
}

/// Element e = 128·a + 32·b + c: nibble b / 2 of byte 64·a + 32·(b % 2) + c of q, and bits 2b and 2b+1 of byte
/// 32·a + c of h; scale e / 16.
pub(super) fn q6_k(block: &[u8; 210], values: &mut [f32; N]) {
    let (quants, high, scales, d) = (&block[..128], &block[128..192], &block[192..208], half(&block[208..]));
    for (e, v) in values.iter_mut().enumerate() {
        let (a, b, c) = (e / 128, e % 128 / 32, e % 32);
        let low = quants[64 * a + 32 * (b % 2) + c] >> (b / 2 * 4) & 15;
        let top = high[32 * a + c] >> (2 * b) & 3;
        *v = d * f32::from(scales[e / 16] as i8) * (f32::from(low | top << 4) - 32.0);
    }
}

/// Blocks with eight scales and minima of 6 bits in 12 bytes behind d and m. Those of i < 4 are the low six bits of
/// bytes i and i + 4; the others are nibbles of byte i + 4 (the scale the low one) below the high two bits of
/// bytes i − 4 and i.
fn with_minima(block: &[u8], values: &mut [f32; N], quant: impl Fn(usize) -> u8) {
    let (d, m, packed) = (half(block), half(&block[2..]), &block[4..16]);
    for (i, run) in values.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        let (scale, least) = match i < 4 {
            true => (packed[i] & 63, packed[i + 4] & 63),
            false => (packed[i + 4] & 15 | packed[i - 4] >> 6 << 4, packed[i + 4] >> 4 | packed[i] >> 6 << 4),
        };
        let (scale, least) = (d * f32::from(scale), m * f32::from(least));
        for (c, v) in run.iter_mut().enumerate() {
            *v = scale * f32::from(quant(32 * i + c)) - least;
        }
    }
}
