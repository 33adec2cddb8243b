//! What works of mixtures of experts move and compute.

use super::ranges::Ranges;
use super::{Counter, size};
use crate::ids::OperandId;
use crate::plan::{Compute, Grouping, Routed, StepKind, Steps};

impl Counter<'_> {
    /// Steps on rows: results of steps stay on the chip, but for those that are stored.
    pub(super) fn steps(&mut self, s: &Steps) {
        let rows = self.extent(s.rows);
        for step in &s.steps {
            let mut ranges: Ranges = vec![(0, rows)];
            ranges.extend(step.shape.iter().map(|&n| (0, n as u64)));
            let elements = rows * step.elements() as u64;
            match &step.kind {
                StepKind::Map(value) => self.evaluate(value, &ranges),
                StepKind::Reduce { extent, value, .. } => {
                    ranges.push((0, *extent as u64));
                    self.evaluate(value, &ranges);
                    self.cost.scalar += elements * *extent as u64;
                }
                StepKind::Product { k, a, b } => {
                    self.evaluate(a, &vec![(0, rows), (0, *k as u64)]);
                    self.array(*b, (step.elements() * k) as u64);
                    self.cost.products += 2 * elements * *k as u64;
                }
                // Each value is compared with all others of its row.
                StepKind::TopK { extent, value } => {
                    if let Some(last) = ranges.last_mut() {
                        *last = (0, *extent as u64);
                    }
                    self.evaluate(value, &ranges);
                    let lines = elements / step.shape.last().map_or(1, |n| (*n).max(1) as u64);
                    self.cost.scalar += lines * (*extent as u64).pow(2);
                }
            }
            let written = step.output.and_then(|o| self.work.writes.get(usize::from(o)));
            self.cost.written += written.map_or(0, |w| elements * size(w.dtype));
        }
    }

    /// Routed products: as many matrices are read as there are pairs, but no more than there are.
    pub(super) fn routed(&mut self, r: &Routed) {
        let tokens = self.extent(r.tokens);
        let pairs = tokens * r.picks as u64;
        let (n, k) = (r.n as u64, r.k as u64);
        let read = pairs.min(r.experts as u64) * n * k;
        self.array(r.a, pairs * k);
        r.weights.iter().for_each(|b| self.array(*b, read));
        self.array(r.index, pairs);
        if let Some(g) = r.grouped {
            self.array(g.order, pairs);
            self.array(g.begins, r.experts as u64 + 1);
        }
        self.cost.products += 2 * pairs * n * k * r.weights.len() as u64;
        self.stores(&r.stores, &vec![(0, tokens), (0, r.picks as u64), (0, n)]);
    }

    /// Pairs are read, and written with where each matrix's begin.
    pub(super) fn grouping(&mut self, g: &Grouping) {
        let pairs = self.extent(g.tokens) * g.picks as u64;
        self.array(OperandId::new(0), pairs);
        let counts = [pairs, g.experts as u64 + 1];
        let written = self.work.writes.iter().zip(counts).map(|(w, n)| n * size(w.dtype));
        self.cost.written += written.sum::<u64>();
    }

    /// Whether an element of a step's result is a float.
    pub(super) fn is_float_step(&self, step: u8) -> bool {
        match &self.work.compute {
            Compute::Steps(s) => s.steps.get(usize::from(step)).is_some_and(|s| s.dtype.is_float()),
            _ => false,
        }
    }
}
