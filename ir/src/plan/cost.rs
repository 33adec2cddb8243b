//! What a work moves and computes under bindings, and the roofline's estimate of its time
//! (Williams, Waterman & Patterson 2009).
//!
//! Bytes are those that must move at least once: each element of an array counts once, whoever reads it.
//! Where an index is itself loaded (rows of a table, slots of a cache), as many distinct rows are assumed as
//! it has points. Sequences are as long as the bindings' context; every token has a slot.

mod ranges;
mod routed;

use super::{
    Advance, Attention, Compute, Entry, KernelSpec, Loop, MatMul, Penalize, Plan, Sample, Scalar, Schedule,
    Stage, Store, Work,
};
use crate::dtype::DType;
use crate::ids::OperandId;
use crate::shape::{Bindings, Dim};
use crate::target::DeviceProfile;
use ranges::{Ranges, coordinates, distinct, narrow, points, spread};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::AddAssign;

/// What a work moves and computes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cost {
    /// Bytes read.
    pub read: u64,
    /// Bytes written.
    pub written: u64,
    /// Operations of matrix products: a multiplication and an addition are two.
    pub products: u64,
    /// Other operations on floats; a function (`exp`) is one.
    pub scalar: u64,
}

impl Cost {
    /// Bytes read and written.
    pub fn bytes(&self) -> u64 {
        self.read.saturating_add(self.written)
    }

    /// All operations on floats.
    pub fn flops(&self) -> u64 {
        self.products.saturating_add(self.scalar)
    }
}

impl AddAssign for Cost {
    fn add_assign(&mut self, other: Cost) {
        self.read = self.read.saturating_add(other.read);
        self.written = self.written.saturating_add(other.written);
        self.products = self.products.saturating_add(other.products);
        self.scalar = self.scalar.saturating_add(other.scalar);
    }
}

/// What limits a kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Bound {
    /// Bytes.
    Memory,
    /// Operations.
    Compute,
    /// Both take less than the launch itself.
    Launch,
}

impl Bound {
    /// Lower-case name.
    pub fn name(self) -> &'static str {
        match self {
            Bound::Memory => "memory",
            Bound::Compute => "compute",
            Bound::Launch => "launch",
        }
    }
}

/// Time of one launch by the roofline.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Estimate {
    /// Seconds: max(bytes / bandwidth, operations / rate) + launch.
    pub seconds: f64,
    /// The largest of the three parts.
    pub bound: Bound,
}

impl Cost {
    /// Time of a launch with this schedule on a GPU. Products run at the tensor cores' rate where the
    /// schedule uses them, everything else at the f32 rate.
    pub fn estimate(&self, schedule: &Schedule, profile: &DeviceProfile) -> Estimate {
        let rate = if schedule.on_tensor_cores() { profile.tensor_flops } else { profile.f32_flops };
        let memory = self.bytes() as f64 / profile.bandwidth;
        let compute = self.products as f64 / rate + self.scalar as f64 / profile.f32_flops;
        let larger = memory.max(compute);
        let bound = match (larger < profile.launch, memory < compute) {
            (true, _) => Bound::Launch,
            (false, true) => Bound::Compute,
            (false, false) => Bound::Memory,
        };
        Estimate { seconds: larger + profile.launch, bound }
    }
}

/// What a work moves and computes under bindings.
pub fn cost(work: &Work, bind: &Bindings) -> Cost {
    let mut c = Counter { work, bind, loads: vec![BTreeSet::new(); work.reads.len()], cost: Cost::default() };
    match &work.compute {
        Compute::Loop(l) => c.loops(l),
        Compute::MatMul(m) => c.matmul(m),
        Compute::Attention(a) => c.attention(a),
        Compute::Steps(s) => c.steps(s),
        Compute::Routed(r) => c.routed(r),
        Compute::Grouping(g) => c.grouping(g),
        Compute::Penalize(p) => c.penalize(p),
        Compute::Sample(s) => c.sample(s),
        Compute::Advance(a) => c.advance(a),
    }
    for (operand, loads) in work.reads.iter().zip(&c.loads) {
        let distinct = loads.iter().fold(0u64, |sum, (_, n)| sum.saturating_add(*n));
        let all = bind.elements(&operand.shape) as u64;
        c.cost.read = c.cost.read.saturating_add(distinct.min(all).saturating_mul(size(operand.dtype)));
    }
    c.cost
}

/// What a kernel moves and computes under bindings: its work, and partial results that blocks leave and the last
/// one reads.
pub fn kernel_cost(work: &Work, spec: &KernelSpec, bind: &Bindings) -> Cost {
    let mut cost = cost(work, bind);
    let partial = spec.scratch.as_ref().map_or(0, |s| s.partial_bytes(bind) as u64);
    cost += Cost { read: partial, written: partial, ..Cost::default() };
    cost
}

/// What a step of an entry launches, moves and computes.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct StepCost {
    /// Launches.
    pub launches: usize,
    /// Sum over them.
    pub cost: Cost,
    /// Sum of their estimated times, in seconds: an upper bound where they overlap.
    pub seconds: f64,
}

/// Sum over the launches of an entry, with these bindings (its own, or a shorter context).
pub fn step_cost(plan: &Plan, entry: &Entry, bind: &Bindings, profile: &DeviceProfile) -> StepCost {
    let mut of_work: BTreeMap<u32, (Cost, f64)> = BTreeMap::new();
    for (w, kernel) in &entry.kernels {
        let (Some(work), Some(spec)) = (plan.works.get(*w as usize), plan.kernels.get(kernel.index())) else {
            continue;
        };
        let cost = kernel_cost(work, spec, bind);
        of_work.insert(*w, (cost, cost.estimate(&spec.schedule, profile).seconds));
    }
    let mut step = StepCost::default();
    let dispatches = plan.bodies.get(entry.body as usize).map(|b| b.dispatches.as_slice());
    for d in dispatches.unwrap_or_default() {
        step.launches += 1;
        if let Some((cost, seconds)) = of_work.get(&d.work) {
            step.cost += *cost;
            step.seconds += seconds;
        }
    }
    step
}

fn size(dtype: DType) -> u64 {
    dtype.size() as u64
}

struct Counter<'a> {
    work: &'a Work,
    bind: &'a Bindings,
    /// For each array read: places that are loaded, as text with the ranges they depend on, and their number.
    loads: Vec<BTreeSet<(String, u64)>>,
    cost: Cost,
}

impl Counter<'_> {
    fn extent(&self, d: Dim) -> u64 {
        d.eval(self.bind) as u64
    }

    fn loops(&mut self, l: &Loop) {
        let rows: Ranges = l.domain.iter().map(|d| (0, self.extent(*d))).collect();
        let all: Ranges = rows.iter().copied().chain(l.reduced.map(|d| (0, self.extent(d)))).collect();
        self.stages(&l.stages, &all);
        self.stores(&l.element_stores, &all);
        self.stores(&l.row_stores, &rows);
    }

    fn matmul(&mut self, m: &MatMul) {
        let rows = self.extent(m.m);
        let (k, columns) = (m.k as u64, m.columns() as u64);
        let over_k: Ranges = vec![(0, rows), (0, k)];
        self.evaluate(&m.a, &over_k);
        self.array(m.b, columns * k);
        self.stages(&m.stages, &over_k);
        let products = 2_u64.saturating_mul(rows).saturating_mul(columns).saturating_mul(k);
        self.cost.products = self.cost.products.saturating_add(products);
        let points: Ranges = vec![(0, rows), (0, m.n as u64)];
        if let Some(row) = &m.row {
            self.evaluate(&row.value, &points);
            self.stages(&row.stages, &points);
        }
        self.stores(&m.stores, &points);
        if let Some(draw) = &m.draw {
            // Greedy: each logit is compared where it is made.
            self.evaluate(&draw.position, &vec![(0, rows)]);
            draw.parameters.iter().for_each(|o| self.array(*o, rows));
            if let Some(p) = &draw.penalties {
                self.evaluate(&p.base, &vec![(0, rows)]);
                p.parameters.iter().for_each(|o| self.array(*o, rows));
            }
            self.cost.scalar += rows * columns;
            self.cost.written += rows * size(DType::I32);
        }
    }

    fn attention(&mut self, a: &Attention) {
        let tokens = self.extent(a.tokens);
        let heads = (a.kv_heads * a.group) as u64;
        let (head_dim, value_dim) = (a.head_dim as u64, a.value_dim as u64);
        let slots = self.work.reads.get(a.keys.index()).and_then(|o| o.shape.first());
        let slots = slots.map_or(u64::MAX, |d| self.extent(*d));
        let context = self.extent(Dim::Sym(crate::shape::Sym::Context)).min(slots);
        let keys = a.visible(context as usize) as u64;
        // Tokens of one sequence share its keys; a window moves on by a key from each to the next.
        let sequences = tokens.min(self.bind.seqs as u64);
        let shared = context.min(keys + tokens.div_ceil(sequences.max(1)).saturating_sub(1));
        let cached = shared.saturating_mul(sequences).min(slots).saturating_mul(a.kv_heads as u64);
        self.array(a.q, tokens * heads * head_dim);
        self.array(a.keys, cached.saturating_mul(head_dim));
        // Values may be the first elements of the keys' rows (latent attention).
        if a.values != a.keys {
            self.array(a.values, cached.saturating_mul(value_dim));
        }
        self.evaluate(&a.length, &vec![(0, tokens)]);
        self.evaluate(&a.slot, &vec![(0, tokens), (0, keys)]);
        self.evaluate(&a.score, &vec![(0, tokens), (0, heads), (0, keys)]);
        if let Some(sink) = &a.sink {
            self.evaluate(sink, &vec![(0, tokens), (0, heads)]);
        }
        let pairs = tokens.saturating_mul(heads).saturating_mul(keys);
        self.cost.products += pairs.saturating_mul(2 * (head_dim + value_dim));
        // Online softmax: the largest, its difference, the exponential and the sum.
        self.cost.scalar = self.cost.scalar.saturating_add(pairs.saturating_mul(4));
        let [rows, elements] = a.stored().map(|n| n as u64);
        self.stores(&a.stores, &vec![(0, tokens), (0, rows), (0, elements)]);
        if let Some(p) = &a.projection {
            self.evaluate(&p.value, &vec![(0, tokens), (0, heads), (0, value_dim)]);
            let (k, columns) = (heads.saturating_mul(value_dim), p.columns as u64);
            self.array(p.weight, k.saturating_mul(columns));
            self.cost.products = self
                .cost
                .products
                .saturating_add(2_u64.saturating_mul(tokens).saturating_mul(k).saturating_mul(columns));
        }
        if let Some(p) = &a.prologue {
            let rows = |heads: u64| vec![(0, tokens), (0, heads), (0, head_dim)];
            let (queries, keys) = (rows(heads), rows(a.kv_heads as u64));
            for (row, ranges) in [(&p.query, &queries), (&p.key, &keys)] {
                self.stages(&row.stages, ranges);
                self.evaluate(&row.value, ranges);
            }
            self.stores(std::slice::from_ref(&p.keep), &keys);
        }
    }

    /// No row has penalties: the logits are copied.
    fn penalize(&mut self, p: &Penalize) {
        let rows = self.extent(p.rows);
        let logits = rows * p.vocab as u64;
        for i in (0..self.work.reads.len()).filter(|i| *i != 1) {
            self.array(OperandId::new(i), if i == 0 { logits } else { rows });
        }
        self.cost.written += self.work.writes.first().map_or(0, |w| logits * size(w.dtype));
    }

    /// Greedy sampling: each logit is divided by the temperature and compared.
    fn sample(&mut self, s: &Sample) {
        let rows = self.extent(s.rows);
        let logits = rows * s.vocab as u64;
        for i in 0..self.work.reads.len() {
            self.array(OperandId::new(i), if i == 0 { logits } else { rows });
        }
        self.cost.scalar += 2 * logits;
        self.cost.written += self.work.writes.first().map_or(0, |w| rows * size(w.dtype));
    }

    /// Some words of each row, and one token of the stream.
    fn advance(&mut self, a: &Advance) {
        let rows = self.extent(a.rows);
        for i in 0..self.work.reads.len() {
            self.array(OperandId::new(i), rows);
        }
        let words: u64 = self.work.writes.iter().map(|w| rows * size(w.dtype)).sum();
        self.cost.read += words;
        self.cost.written += words;
        self.cost.scalar += rows;
    }

    /// Some elements of an array, all different.
    fn array(&mut self, operand: OperandId, elements: u64) {
        if let Some(loads) = self.loads.get_mut(operand.index()) {
            loads.insert(("array".into(), elements));
        }
    }

    fn stages(&mut self, stages: &[Stage], ranges: &Ranges) {
        for stage in stages {
            self.evaluate(&stage.value, ranges);
            self.cost.scalar = self.cost.scalar.saturating_add(points(ranges));
        }
    }

    fn stores(&mut self, stores: &[Store], ranges: &Ranges) {
        let mut written = vec![0u64; self.work.writes.len()];
        for store in stores {
            let mut inside = ranges.clone();
            if let Some(guard) = &store.guard {
                narrow(guard, &mut inside);
                self.load(guard, &inside);
            }
            self.evaluate(&store.value, &inside);
            store.index.iter().for_each(|e| self.load(e, &inside));
            if let Some(n) = written.get_mut(store.output as usize) {
                *n = n.saturating_add(points(&inside));
            }
        }
        for (operand, n) in self.work.writes.iter().zip(written) {
            let all = self.bind.elements(&operand.shape) as u64;
            self.cost.written =
                self.cost.written.saturating_add(n.min(all).saturating_mul(size(operand.dtype)));
        }
    }

    /// An expression evaluated at all points of ranges.
    fn evaluate(&mut self, e: &Scalar, ranges: &Ranges) {
        self.load(e, ranges);
        let each = self.flops(e, &mut Vec::new());
        self.cost.scalar = self.cost.scalar.saturating_add(points(ranges).saturating_mul(each));
    }

    /// Notes what an expression loads at all points of ranges.
    fn load(&mut self, e: &Scalar, ranges: &Ranges) {
        if let Scalar::Load(o, index) = e {
            let used = coordinates(index.iter());
            let here: Vec<_> = used.iter().filter_map(|i| ranges.get(*i as usize).map(|r| (i, r))).collect();
            let shape = self.work.reads.get(o.index()).map(|o| o.shape.clone()).unwrap_or_default();
            let axes = index.iter().zip(&shape).map(|(x, d)| distinct(x, ranges).min(self.extent(*d)));
            let places = axes.fold(1, u64::saturating_mul).min(spread(index.iter(), ranges));
            if let Some(loads) = self.loads.get_mut(o.index()) {
                loads.insert((format!("{index:?} {here:?}"), places));
            }
        }
        e.children().into_iter().for_each(|c| self.load(c, ranges));
    }

    /// Operations on floats of an expression; equal parts are computed once, index arithmetic is none, and
    /// of a choice the dearer side counts.
    fn flops<'e>(&self, e: &'e Scalar, seen: &mut Vec<&'e Scalar>) -> u64 {
        if seen.contains(&e) {
            return 0;
        }
        seen.push(e);
        match e {
            Scalar::Float(_)
            | Scalar::Int(_)
            | Scalar::Bool(_)
            | Scalar::Coord(_)
            | Scalar::Dim(_)
            | Scalar::Load(..)
            | Scalar::Local(..)
            | Scalar::Reduced(_)
            | Scalar::Acc(_) => 0,
            Scalar::Unary(_, a) => self.flops(a, seen) + u64::from(self.is_float(a)),
            Scalar::Binary(_, a, b) => {
                self.flops(a, seen) + self.flops(b, seen) + u64::from(self.is_float(a))
            }
            Scalar::Compare(_, a, b) => self.flops(a, seen) + self.flops(b, seen),
            Scalar::Cast(_, a) => self.flops(a, seen),
            Scalar::Select(c, a, b) => {
                let condition = self.flops(c, seen);
                let mut other = seen.clone();
                condition + self.flops(a, seen).max(self.flops(b, &mut other))
            }
        }
    }

    fn is_float(&self, e: &Scalar) -> bool {
        match e {
            Scalar::Float(_) | Scalar::Reduced(_) | Scalar::Acc(_) => true,
            Scalar::Int(_) | Scalar::Bool(_) | Scalar::Coord(_) | Scalar::Dim(_) | Scalar::Compare(..) => {
                false
            }
            Scalar::Local(step, _) => self.is_float_step(*step),
            Scalar::Load(o, _) => self.work.reads.get(o.index()).is_some_and(|o| o.dtype.is_float()),
            Scalar::Cast(d, _) => d.is_float(),
            Scalar::Unary(_, a) | Scalar::Binary(_, a, _) | Scalar::Select(_, a, _) => self.is_float(a),
        }
    }
}
