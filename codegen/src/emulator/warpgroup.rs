//! Products of four warps from shared memory (PTX ISA, *Asynchronous Warpgroup Level Matrix Instructions*). They run as
//! late as they may, at the wait that needs them: what is overwritten too early is seen in the result.

use super::fault::{FaultKind, Step, raise};
use super::machine::Machine;
use super::program::Node;
use super::race::Mode;
use super::value;
use std::collections::VecDeque;
use weft_ir::dtype::DType;
use weft_ir::kernel::SWIZZLED_ROW;

/// Threads of a warpgroup.
const THREADS: usize = 128;
/// Rows of A, and elements along k.
const ROWS: usize = 64;
const DEPTH: usize = 16;
/// Elements of a piece of a swizzled row.
const PIECE: usize = 8;

/// A product that was started: array and first element of both operands.
#[derive(Clone, Copy, Debug)]
pub(super) struct Product {
    dtype: DType,
    acc: usize,
    columns: usize,
    a: (usize, i64),
    b: (usize, i64),
}

/// Products of a warpgroup in flight.
#[derive(Clone, Debug, Default)]
pub(super) struct Products {
    open: Vec<Product>,
    groups: VecDeque<Vec<Product>>,
}

impl Machine<'_> {
    /// The warpgroups of the active threads, which must be whole.
    fn warpgroups(&self, active: &[u32], what: &'static str) -> Step<Vec<usize>> {
        let warps = self.full_warps(active, what)?;
        for four in warps.chunks(4) {
            if four.len() != 4 || !four[0].is_multiple_of(4) || four[3] != four[0] + 3 {
                let arrived = four.len() as u32 * 32;
                return raise(four[0] as u32 * 32, FaultKind::DivergentCollective { what, arrived });
            }
        }
        Ok(warps.chunks(4).map(|four| four[0] / 4).collect())
    }

    pub(super) fn start_product(
        &mut self,
        dtype: DType,
        (acc, columns): (usize, u32),
        operands: [(usize, &Node); 2],
        active: &[u32],
    ) -> Step<()> {
        let groups = self.warpgroups(active, "wgmma")?;
        let mut places = Vec::with_capacity(2);
        for (mem, at) in operands {
            let values = self.eval(at, active)?;
            places.push((mem, at.dtype, values));
        }
        for group in groups {
            let mut first = [(0, 0); 2];
            for ((mem, dtype, values), to) in places.iter().zip(&mut first) {
                let of = &values[group * THREADS..(group + 1) * THREADS];
                if let Some(other) = of.iter().position(|v| *v != of[0]) {
                    let why = "operands of wgmma at places that differ between four warps";
                    return raise((group * THREADS + other) as u32, FaultKind::Invalid(why.into()));
                }
                *to = (*mem, value::int_of(*dtype, of[0]));
            }
            let [a, b] = first;
            let columns = columns as usize;
            self.products[group].open.push(Product { dtype, acc, columns, a, b });
        }
        places.into_iter().for_each(|(_, _, values)| self.give(values));
        Ok(())
    }

    pub(super) fn commit_products(&mut self, active: &[u32]) -> Step<()> {
        for group in self.warpgroups(active, "a group of wgmma")? {
            let products = &mut self.products[group];
            products.groups.push_back(std::mem::take(&mut products.open));
        }
        Ok(())
    }

    pub(super) fn await_products(&mut self, pending: usize, active: &[u32]) -> Step<()> {
        for group in self.warpgroups(active, "a wait for wgmma")? {
            while self.products[group].groups.len() > pending {
                for product in self.products[group].groups.pop_front().unwrap_or_default() {
                    self.product(group, &product)?;
                }
            }
        }
        Ok(())
    }

    fn product(&mut self, group: usize, p: &Product) -> Step<()> {
        let a = self.swizzled(group, p.dtype, p.a, ROWS)?;
        let b = self.swizzled(group, p.dtype, p.b, p.columns)?;
        for of_group in 0..THREADS {
            let (warp, lane) = (of_group / 32, of_group % 32);
            let thread = group * THREADS + of_group;
            for register in 0..p.columns / 2 {
                let (j, i) = (register / 4, register % 4);
                let row = 16 * warp + lane / 4 + i / 2 * 8;
                let column = 8 * j + lane % 4 * 2 + i % 2;
                let dot: f64 =
                    a[row].iter().zip(&b[column]).map(|(x, y)| f64::from(*x) * f64::from(*y)).sum();
                let position = self.registers(p.acc, register as i64, 1, thread as u32)?;
                let before = value::f32_of(self.register(p.acc, position)?);
                let sum = (f64::from(before) + dot) as f32;
                self.set_register(p.acc, position, u64::from(sum.to_bits()));
            }
        }
        Ok(())
    }

    /// Elements along k of rows that follow each other in swizzled memory.
    fn swizzled(
        &mut self,
        group: usize,
        dtype: DType,
        (mem, first): (usize, i64),
        rows: usize,
    ) -> Step<Vec<[f32; DEPTH]>> {
        let mut out = vec![[0.0; DEPTH]; rows];
        let pitch = i64::from(SWIZZLED_ROW);
        for (i, elements) in out.iter_mut().enumerate() {
            let thread = (group * THREADS + i % THREADS) as u32;
            for (p, piece) in elements.chunks_mut(PIECE).enumerate() {
                let at = first + i as i64 * pitch + (p * PIECE) as i64;
                let (row, place) = (at.div_euclid(pitch), at.rem_euclid(pitch) / PIECE as i64);
                let index = row * pitch + (place ^ row.rem_euclid(8)) * PIECE as i64;
                let (region, offset) = self.touch(mem, index, PIECE, thread, Mode::WarpRead)?;
                for (e, x) in piece.iter_mut().enumerate() {
                    *x = value::as_f32(dtype, self.regions[region].get(offset + e * 2, 2));
                }
            }
        }
        Ok(out)
    }
}
