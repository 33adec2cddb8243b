//! Lane layouts of warp matrix instructions (PTX ISA: `mma.m16n8k16`, `ldmatrix`).

use super::value;
use weft_ir::dtype::DType;

/// The two halves of a register.
fn halves(dtype: DType, register: u32) -> [f32; 2] {
    let half = |bits: u32| value::as_f32(dtype, u64::from(bits & 0xffff));
    [half(register), half(register >> 16)]
}

/// `d += a · b` on the registers of 32 lanes: `a` 16×16 by rows, `b` 16×8 by columns, `d` 16×8.
/// Products are exact; each element's sum is rounded once.
pub(super) fn mma_m16n8k16(dtype: DType, d: &mut [[f32; 4]; 32], a: &[[u32; 4]; 32], b: &[[u32; 2]; 32]) {
    let mut matrix_a = [[0f32; 16]; 16];
    let mut matrix_b = [[0f32; 16]; 8];
    for lane in 0..32 {
        let (group, pair) = (lane / 4, lane % 4 * 2);
        for (i, register) in a[lane].iter().enumerate() {
            let (row, column) = (group + i % 2 * 8, pair + i / 2 * 8);
            matrix_a[row][column..column + 2].copy_from_slice(&halves(dtype, *register));
        }
        for (i, register) in b[lane].iter().enumerate() {
            let k = pair + i * 8;
            matrix_b[group][k..k + 2].copy_from_slice(&halves(dtype, *register));
        }
    }
    for (lane, accumulators) in d.iter_mut().enumerate() {
        let (group, pair) = (lane / 4, lane % 4 * 2);
        for (i, acc) in accumulators.iter_mut().enumerate() {
            let (row, column) = (group + i / 2 * 8, pair + i % 2);
            let products = matrix_a[row].iter().zip(&matrix_b[column]);
            let dot: f64 = products.map(|(x, y)| f64::from(*x) * f64::from(*y)).sum();
            *acc = (f64::from(*acc) + dot) as f32;
        }
    }
}

/// Register that a lane receives of an 8×8 matrix of 16-bit elements.
pub(super) fn ld_matrix(rows: &[[u16; 8]; 8], lane: usize, transpose: bool) -> u32 {
    let (row, pair) = (lane / 4, lane % 4 * 2);
    let (low, high) = match transpose {
        false => (rows[row][pair], rows[row][pair + 1]),
        true => (rows[pair][row], rows[pair + 1][row]),
    };
    u32::from(low) | (u32::from(high) << 16)
}
