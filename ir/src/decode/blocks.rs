//! GGML blocks of 32 elements. Byte `j` of the 16 nibble bytes holds element `j` in its low nibble and element `j + 16`
//! in its high nibble.
//!
//! | encoding | bytes of a block | value |
//! | --- | --- | --- |
//! | `q4_0` | d: f16, q: 16 bytes | d · (q − 8) |
//! | `q4_1` | d: f16, m: f16, q: 16 bytes | d · q + m |
//! | `q5_0` | d: f16, h: u32, q: 16 bytes | d · (q − 16), bit `j` of h the fifth of element `j` |
//! | `q5_1` | d: f16, m: f16, h: u32, q: 16 bytes | d · q + m |
//! | `q8_0` | d: f16, q: 32 × i8 | d · q |
//! | `iq4_nl` | d: f16, q: 16 bytes | d · [`IQ4_NL`]`[q]` |
//! | `mxfp4` | e: E8M0, q: 16 bytes | 2^(e−128) · [`E2M1_TWICE`]`[q]` |

use super::half;

/// Levels of IQ4_NL: denser around zero.
const IQ4_NL: [i8; 16] = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];

/// Twice the values of E2M1.
pub(super) const E2M1_TWICE: [i8; 16] = [0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12];

pub(super) fn q4_0(block: &[u8; 18], values: &mut [f32; 32]) {
    let d = half(block);
    nibbles(&block[2..], values, |_, q| d * (f32::from(q) - 8.0));
}

pub(super) fn q4_1(block: &[u8; 20], values: &mut [f32; 32]) {
    let (d, m) = (half(block), half(&block[2..]));
    nibbles(&block[4..], values, |_, q| d * f32::from(q) + m);
}

pub(super) fn q5_0(block: &[u8; 22], values: &mut [f32; 32]) {
    let (d, high) = (half(block), fifths(&block[2..]));
    nibbles(&block[6..], values, |j, q| d * (f32::from(q | high(j)) - 16.0));
}

pub(super) fn q5_1(block: &[u8; 24], values: &mut [f32; 32]) {
    let (d, m, high) = (half(block), half(&block[2..]), fifths(&block[4..]));
    nibbles(&block[8..], values, |j, q| d * f32::from(q | high(j)) + m);
}

pub(super) fn q8_0(block: &[u8; 34], values: &mut [f32; 32]) {
    let d = half(block);
    for (v, &q) in values.iter_mut().zip(&block[2..]) {
        *v = d * f32::from(q as i8);
    }
}

pub(super) fn iq4_nl(block: &[u8; 18], values: &mut [f32; 32]) {
    let d = half(block);
    nibbles(&block[2..], values, |_, q| d * f32::from(IQ4_NL[usize::from(q)]));
}

/// The levels are whole numbers, so the scale is half of E8M0's; below the normal numbers, too.
pub(super) fn mxfp4(block: &[u8; 17], values: &mut [f32; 32]) {
    let e = u32::from(block[0]);
    let d = f32::from_bits(if e < 2 { 0x0020_0000 << e } else { (e - 1) << 23 });
    nibbles(&block[1..], values, |_, q| d * f32::from(E2M1_TWICE[usize::from(q)]));
}

/// The fifth bit of each element, in its place.
fn fifths(bytes: &[u8]) -> impl Fn(usize) -> u8 {
    let bits = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
    move |j| ((bits >> j & 1) as u8) << 4
}

/// Low nibbles are the first half of the values, high nibbles the second; `value` of position and nibble.
fn nibbles(nibbles: &[u8], values: &mut [f32; 32], value: impl Fn(usize, u8) -> f32) {
    let (low, high) = values.split_at_mut(16);
    for (j, ((l, h), &byte)) in low.iter_mut().zip(high).zip(nibbles).enumerate() {
        *l = value(j, byte & 15);
        *h = value(j + 16, byte >> 4);
    }
}
