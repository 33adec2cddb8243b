//! Products of four warps from shared memory (PTX ISA, *Asynchronous Warpgroup Level Matrix Instructions*).
//!
//! Operands must be there when a product starts, and the same at the wait that needs it; until then its accumulators are
//! undefined. What threads leave in shared memory for products they show to the other proxy (`fence.proxy.async`) before
//! one starts.

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
/// Elements of a piece of a swizzled row, and of the row.
const PIECE: usize = 8;
const PITCH: i64 = SWIZZLED_ROW as i64;

/// A product that was started.
#[derive(Clone, Debug)]
pub(super) struct Product {
    dtype: DType,
    acc: usize,
    columns: usize,
    /// Array and first element of A and of B, and what they had then.
    operands: [(usize, i64, Vec<Row>); 2],
}

/// Elements of a row along k.
type Row = [f32; DEPTH];

/// Products of a warpgroup in flight.
#[derive(Clone, Debug, Default)]
pub(super) struct Products {
    open: Vec<Product>,
    groups: VecDeque<Vec<Product>>,
    /// Whether registers that were written are seen.
    fenced: bool,
}

/// Products of the warpgroups of a block, and threads whose writes to shared memory are not shown to them yet.
#[derive(Clone, Debug, Default)]
pub(super) struct Warpgroups {
    products: Vec<Products>,
    unseen: Vec<bool>,
}

impl Products {
    /// Those in flight, and those of no group yet.
    fn all(&self) -> impl Iterator<Item = &Product> {
        self.groups.iter().flatten().chain(&self.open)
    }
}

impl Warpgroups {
    pub(super) fn new(threads: usize) -> Warpgroups {
        let products = vec![Products::default(); threads.div_ceil(THREADS)];
        Warpgroups { products, unseen: vec![false; threads] }
    }

    /// A thread wrote to shared memory.
    pub(super) fn wrote(&mut self, thread: u32) {
        self.unseen[thread as usize] = true;
    }

    /// Whether all that a thread wrote is shown.
    pub(super) fn seen(&self, thread: u32) -> bool {
        !self.unseen[thread as usize]
    }

    /// What it was before copies that are not the thread's own writes.
    pub(super) fn set_seen(&mut self, thread: u32, seen: bool) {
        self.unseen[thread as usize] = !seen;
    }

    /// Threads show what they wrote.
    pub(super) fn show(&mut self, threads: &[u32]) {
        threads.iter().for_each(|t| self.unseen[*t as usize] = false);
    }
}

impl Machine<'_> {
    /// The warpgroups of the active threads, which must be whole.
    fn groups_of(&self, active: &[u32], what: &'static str) -> Step<Vec<usize>> {
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
        (operands, k): ([(usize, &Node); 2], u32),
        active: &[u32],
    ) -> Step<()> {
        let groups = self.groups_of(active, "wgmma")?;
        let mut places = Vec::with_capacity(2);
        for (mem, at) in operands {
            let values = self.eval(at, active)?;
            places.push((mem, at.dtype, values));
        }
        if let Some(thread) = self.warpgroups.unseen.iter().position(|unseen| *unseen) {
            let why = "wgmma reads shared memory that a thread wrote without a fence of the proxies";
            return raise(thread as u32, FaultKind::Invalid(why.into()));
        }
        for group in groups {
            let leader = (group * THREADS) as u32;
            let mut read = Vec::with_capacity(2);
            for ((mem, at, values), rows) in places.iter().zip([ROWS, columns as usize]) {
                let of = &values[group * THREADS..(group + 1) * THREADS];
                let first = value::int_of(*at, of[0]);
                if of.iter().any(|v| *v != of[0]) || first % (8 * PITCH) != 0 {
                    let why = "an operand of wgmma at different places, or not in the first row of eight";
                    return raise(leader, FaultKind::Invalid(why.into()));
                }
                let first = first + i64::from(k);
                read.push((*mem, first, self.swizzled(group, dtype, (*mem, first), rows)?));
            }
            let Ok(operands) = <[_; 2]>::try_from(read) else { continue };
            if !std::mem::replace(&mut self.warpgroups.products[group].fenced, true) {
                return raise(leader, FaultKind::Invalid("wgmma without a fence of its registers".into()));
            }
            let product = Product { dtype, acc, columns: columns as usize, operands };
            let chained = self.warpgroups.products[group].all().any(|p| p.acc == acc);
            self.hide(group, &product, chained)?;
            self.warpgroups.products[group].open.push(product);
        }
        places.into_iter().for_each(|(_, _, values)| self.give(values));
        Ok(())
    }

    pub(super) fn fence_products(&mut self, active: &[u32]) -> Step<()> {
        for group in self.groups_of(active, "a fence of wgmma")? {
            self.warpgroups.products[group].fenced = true;
        }
        Ok(())
    }

    pub(super) fn commit_products(&mut self, active: &[u32]) -> Step<()> {
        for group in self.groups_of(active, "a group of wgmma")? {
            let products = &mut self.warpgroups.products[group];
            products.groups.push_back(std::mem::take(&mut products.open));
        }
        Ok(())
    }

    pub(super) fn await_products(&mut self, pending: usize, active: &[u32]) -> Step<()> {
        for group in self.groups_of(active, "a wait for wgmma")? {
            while self.warpgroups.products[group].groups.len() > pending {
                for product in self.warpgroups.products[group].groups.pop_front().unwrap_or_default() {
                    self.finish_product(group, &product)?;
                }
            }
            if pending == 0 {
                self.warpgroups.products[group].fenced = false;
            }
        }
        Ok(())
    }

    /// At the end of a block no product is in flight.
    pub(super) fn no_products(&self) -> Step<()> {
        match self.warpgroups.products.iter().position(|p| p.all().next().is_some()) {
            None => Ok(()),
            Some(group) => raise(
                (group * THREADS) as u32,
                FaultKind::Invalid("wgmma in flight as the block ends".into()),
            ),
        }
    }

    /// The accumulators of a product that starts are undefined until it was awaited. They were written before, unless a
    /// product before it is in flight.
    fn hide(&mut self, group: usize, p: &Product, chained: bool) -> Step<()> {
        for thread in group * THREADS..(group + 1) * THREADS {
            for register in 0..p.columns / 2 {
                let position = self.registers(p.acc, register as i64, 1, thread as u32)?;
                if chained == self.written[p.acc][position] {
                    return match chained {
                        true => raise(
                            thread as u32,
                            FaultKind::Invalid("an accumulator is written in flight".into()),
                        ),
                        false => self.register(p.acc, position).map(|_| ()),
                    };
                }
                self.written[p.acc][position] = false;
            }
        }
        Ok(())
    }

    fn finish_product(&mut self, group: usize, p: &Product) -> Step<()> {
        for (mem, first, then) in &p.operands {
            let now = self.swizzled(group, p.dtype, (*mem, *first), then.len())?;
            let bits = |rows: &[Row]| rows.iter().flatten().map(|x| x.to_bits()).collect::<Vec<_>>();
            if bits(&now) != bits(then) {
                let why = "an operand of wgmma changed before its product was awaited";
                return raise((group * THREADS) as u32, FaultKind::Invalid(why.into()));
            }
        }
        let [(_, _, a), (_, _, b)] = &p.operands;
        let last = !self.warpgroups.products[group].all().any(|other| other.acc == p.acc);
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
                let before = value::f32_of(self.vars[p.acc][position]);
                let sum = (f64::from(before) + dot) as f32;
                self.set_register(p.acc, position, u64::from(sum.to_bits()));
                self.written[p.acc][position] = last;
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
    ) -> Step<Vec<Row>> {
        let mut out = vec![[0.0; DEPTH]; rows];
        for (i, elements) in out.iter_mut().enumerate() {
            let thread = (group * THREADS + i % THREADS) as u32;
            for (p, piece) in elements.chunks_mut(PIECE).enumerate() {
                let at = first + i as i64 * PITCH + (p * PIECE) as i64;
                let (row, place) = (at.div_euclid(PITCH), at.rem_euclid(PITCH) / PIECE as i64);
                let index = row * PITCH + (place ^ row.rem_euclid(8)) * PIECE as i64;
                let (region, offset) = self.touch(mem, index, PIECE, thread, Mode::WarpRead)?;
                for (e, x) in piece.iter_mut().enumerate() {
                    *x = value::as_f32(dtype, self.regions[region].get(offset + e * 2, 2));
                }
            }
        }
        Ok(out)
    }
}
