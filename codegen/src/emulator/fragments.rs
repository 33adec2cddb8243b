//! Warp matrix instructions and their lane layouts (PTX ISA: `mma.m16n8k16`, `ldmatrix`).

use super::fault::Step;
use super::machine::Machine;
use super::program::{Node, Registers};
use super::race::Mode;
use super::value;
use weft_ir::dtype::DType;
use weft_ir::kernel::MatrixCount;

impl Machine<'_> {
    /// `N` registers of every lane of a warp, and where they are.
    fn fragment<const N: usize>(
        &self,
        slot: usize,
        at: &[u64],
        ty: DType,
        warp: usize,
    ) -> Step<[[u64; N]; 32]> {
        let mut out = [[0; N]; 32];
        for (lane, registers) in out.iter_mut().enumerate() {
            let t = warp * 32 + lane;
            let position = self.registers(slot, value::int_of(ty, at[t]), N, t as u32)?;
            for (i, r) in registers.iter_mut().enumerate() {
                *r = self.register(slot, position + i * self.threads)?;
            }
        }
        Ok(out)
    }

    pub(super) fn mma(
        &mut self,
        dtype: DType,
        acc: &Registers,
        a: &Registers,
        b: &Registers,
        active: &[u32],
    ) -> Step<()> {
        let warps = self.full_warps(active, "mma")?;
        let at_acc = self.eval(&acc.at, active)?;
        let at_a = self.eval(&a.at, active)?;
        let at_b = self.eval(&b.at, active)?;
        for warp in warps {
            let words_a = self.fragment::<4>(a.slot, &at_a, a.at.dtype, warp)?.map(|r| r.map(|x| x as u32));
            let words_b = self.fragment::<2>(b.slot, &at_b, b.at.dtype, warp)?.map(|r| r.map(|x| x as u32));
            let mut d =
                self.fragment::<4>(acc.slot, &at_acc, acc.at.dtype, warp)?.map(|r| r.map(value::f32_of));
            mma_m16n8k16(dtype, &mut d, &words_a, &words_b);
            for (lane, values) in d.iter().enumerate() {
                let t = warp * 32 + lane;
                let index = value::int_of(acc.at.dtype, at_acc[t]);
                let position = self.registers(acc.slot, index, 4, t as u32)?;
                for (i, v) in values.iter().enumerate() {
                    self.set_register(acc.slot, position + i * self.threads, u64::from(v.to_bits()));
                }
            }
        }
        [at_acc, at_a, at_b].into_iter().for_each(|v| self.give(v));
        Ok(())
    }

    pub(super) fn ld_matrix(
        &mut self,
        to: &Registers,
        (mem, index): (usize, &Node),
        count: MatrixCount,
        transpose: bool,
        active: &[u32],
    ) -> Step<()> {
        let warps = self.full_warps(active, "ldmatrix")?;
        let rows_at = self.eval(index, active)?;
        let at = self.eval(&to.at, active)?;
        for warp in warps {
            for matrix in 0..count.count() as usize {
                let mut rows = [[0u16; 8]; 8];
                for (r, row) in rows.iter_mut().enumerate() {
                    let t = warp * 32 + matrix * 8 + r;
                    let index = value::int_of(index.dtype, rows_at[t]);
                    let (region, offset) = self.touch(mem, index, 8, t as u32, Mode::WarpRead)?;
                    for (i, x) in row.iter_mut().enumerate() {
                        *x = self.regions[region].get(offset + i * 2, 2) as u16;
                    }
                }
                for lane in 0..32 {
                    let t = warp * 32 + lane;
                    let first = value::int_of(to.at.dtype, at[t]) + matrix as i64;
                    let position = self.registers(to.slot, first, 1, t as u32)?;
                    let word = load_matrix(&rows, lane, transpose);
                    self.set_register(to.slot, position, u64::from(word));
                }
            }
        }
        self.give(rows_at);
        self.give(at);
        Ok(())
    }
}

/// The two halves of a register.
fn halves(dtype: DType, register: u32) -> [f32; 2] {
    let half = |bits: u32| value::as_f32(dtype, u64::from(bits & 0xffff));
    [half(register), half(register >> 16)]
}

/// `d += a · b` on the registers of 32 lanes: `a` 16×16 by rows, `b` 16×8 by columns, `d` 16×8.
/// Products are exact; each element's sum is rounded once.
fn mma_m16n8k16(dtype: DType, d: &mut [[f32; 4]; 32], a: &[[u32; 4]; 32], b: &[[u32; 2]; 32]) {
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
fn load_matrix(rows: &[[u16; 8]; 8], lane: usize, transpose: bool) -> u32 {
    let (row, pair) = (lane / 4, lane % 4 * 2);
    let (low, high) = match transpose {
        false => (rows[row][pair], rows[row][pair + 1]),
        true => (rows[pair][row], rows[pair + 1][row]),
    };
    u32::from(low) | (u32::from(high) << 16)
}
