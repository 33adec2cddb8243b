//! Verifier of plans: ids, operand shapes, expressions, arena, dependencies.

use crate::dtype::DType;
use crate::ids::BufferId;
use crate::plan::{
    Body, BufferKind, Compute, Draw, Entry, MatMul, Operand, Plan, Scalar, Schedule, Store, Work,
};
use crate::shape::{Dim, shape_text};
use std::collections::{HashMap, HashSet};
use std::fmt;

mod attention;
mod generation;
mod routed;
mod scratch;

/// Something wrong with a plan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Where: a work, a dispatch, an entry.
    pub place: String,
    /// What.
    pub what: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.place, self.what)
    }
}

/// Checks a plan.
///
/// # Errors
/// All faults found.
pub fn verify(plan: &Plan) -> Result<(), Vec<Fault>> {
    let mut v = Verifier { plan, faults: Vec::new() };
    for work in &plan.works {
        v.work(work);
    }
    let mut names = HashSet::new();
    for k in &plan.kernels {
        if k.work as usize >= plan.works.len() {
            v.fault(&k.name, "its work does not exist");
        }
        if !names.insert(&k.name) {
            v.fault(&k.name, "two kernels have this name");
        }
        if let Some(Compute::MatMul(m)) = plan.works.get(k.work as usize).map(|w| &w.compute)
            && m.row.is_some()
            && !matches!(k.schedule, Schedule::Gemm { tile_n, .. } if tile_n as usize >= m.n)
        {
            v.fault(&k.name, format!("no block makes a whole row of {} columns", m.n));
        }
        if let Some(Compute::MatMul(m)) = plan.works.get(k.work as usize).map(|w| &w.compute)
            && m.draw.is_some()
            && !matches!(k.schedule, Schedule::Gemv { .. } | Schedule::Gemm { warps_m: 1, .. })
        {
            v.fault(&k.name, "only streaming products and tiles of one warp's rows draw tokens");
        }
        if let Some(Compute::Attention(a)) = plan.works.get(k.work as usize).map(|w| &w.compute)
            && let Some(why) = attention::schedule(a, &k.schedule)
        {
            v.fault(&k.name, why);
        }
        if k.threads == 0 || k.threads % 32 != 0 || k.threads > 1024 {
            v.fault(&k.name, format!("{} threads are not whole warps up to 1024", k.threads));
        }
        if let Some(what) = k.scratch.as_ref().and_then(scratch::kernel) {
            v.fault(&k.name, what);
        }
    }
    for (i, body) in plan.bodies.iter().enumerate() {
        v.body(i, body);
    }
    for entry in &plan.entries {
        v.entry(entry);
    }
    if let Some(g) = &plan.generation {
        v.generation(plan, g);
    }
    if v.faults.is_empty() { Ok(()) } else { Err(v.faults) }
}

struct Verifier<'a> {
    plan: &'a Plan,
    faults: Vec<Fault>,
}

impl Verifier<'_> {
    fn fault(&mut self, place: &str, what: impl Into<String>) {
        self.faults.push(Fault { place: place.into(), what: what.into() });
    }

    fn work(&mut self, work: &Work) {
        let rank = |c: &Compute| match c {
            Compute::Loop(l) => l.domain.len() + usize::from(l.reduced.is_some()),
            Compute::MatMul(_) => 2,
            Compute::Attention(_) => 3,
            // Those of its steps differ, and are checked with them.
            Compute::Steps(s) => s.steps.iter().map(|s| s.kind.value(s.shape.len()).1).max().unwrap_or(1),
            Compute::Routed(_) => 3,
            Compute::Grouping(_) | Compute::Penalize(_) | Compute::Sample(_) | Compute::Advance(_) => 1,
        };
        let rank = rank(&work.compute);
        let mut faults = Vec::new();
        for root in work.scalars() {
            root.visit(&mut |e| match e {
                Scalar::Coord(c) if *c as usize >= rank => {
                    faults.push(format!("coordinate {c} of a domain of rank {rank}"));
                }
                Scalar::Load(o, at) => match work.reads.get(o.index()) {
                    None => faults.push(format!("operand {o} does not exist")),
                    Some(x) if x.shape.len() != at.len() => {
                        faults.push(format!("{} indices into {}", at.len(), shape_text(&x.shape)));
                    }
                    Some(_) => {}
                },
                _ => {}
            });
        }
        match &work.compute {
            Compute::MatMul(m) => matmul(m, work, &mut faults),
            Compute::Steps(s) => routed::steps(s, work, &mut faults),
            Compute::Routed(r) => routed::products(r, work, &mut faults),
            Compute::Grouping(g) => routed::grouping(g, work, &mut faults),
            Compute::Advance(a) => generation::advance(a, work, self.plan.max_seq, &mut faults),
            Compute::Attention(a) => attention::attention(a, work, &mut faults),
            Compute::Loop(_) | Compute::Penalize(_) | Compute::Sample(_) => {}
        }
        for what in faults {
            self.fault(&work.name, what);
        }
    }

    fn body(&mut self, index: usize, body: &Body) {
        let plan = self.plan;
        let mut written: HashSet<BufferId> = HashSet::new();
        for (i, d) in body.dispatches.iter().enumerate() {
            let place = format!("body {index}, dispatch {i} ({})", d.scope);
            let Some(work) = plan.works.get(d.work as usize) else {
                self.fault(&place, "its work does not exist");
                continue;
            };
            if d.reads.len() != work.reads.len() || d.writes.len() != work.writes.len() {
                self.fault(&place, format!("buffers do not match the operands of {}", work.name));
                continue;
            }
            let operands = work.reads.iter().chain(&work.writes);
            for (o, b) in operands.zip(d.reads.iter().chain(&d.writes)) {
                let Some(buffer) = plan.buffers.get(b.index()) else {
                    self.fault(&place, format!("buffer {b} does not exist"));
                    continue;
                };
                if buffer.dtype != o.dtype || factors(&buffer.shape) != factors(&o.shape) {
                    let (have, want) = (shape_text(&buffer.shape), shape_text(&o.shape));
                    self.fault(&place, format!("{} is {} {have}, not {want}", buffer.name, buffer.dtype));
                }
            }
            for b in &d.reads {
                let computed = plan
                    .buffers
                    .get(b.index())
                    .is_some_and(|x| matches!(x.kind, BufferKind::Temp | BufferKind::Output(_)));
                if computed && !written.contains(b) {
                    self.fault(&place, format!("{} is read before it is written", plan.buffer(*b).name));
                }
            }
            for (w, r) in &work.in_place {
                let (to, from) = (d.writes.get(usize::from(*w)), d.reads.get(r.index()));
                if to.is_none() || to != from {
                    self.fault(&place, format!("output {w} is not the buffer of operand {r}"));
                }
            }
            written.extend(d.writes.iter().copied());
        }
        self.launches(index, body);
    }

    /// Every hazard through one buffer is covered by a path of edges.
    fn launches(&mut self, index: usize, body: &Body) {
        let n = body.dispatches.len();
        if body.launches.len() != n {
            self.fault(&format!("body {index}"), "launches do not match the dispatches");
            return;
        }
        let mut reach: Vec<Vec<bool>> = Vec::with_capacity(n);
        let mut writer: HashMap<BufferId, usize> = HashMap::new();
        let mut readers: HashMap<BufferId, Vec<usize>> = HashMap::new();
        for (i, (d, l)) in body.dispatches.iter().zip(&body.launches).enumerate() {
            let mut r = vec![false; n];
            for (before, _) in &l.after {
                let b = before.index();
                if b >= i {
                    self.fault(
                        &format!("body {index}, launch {i}"),
                        format!("waits for {before}, which is later"),
                    );
                    continue;
                }
                r[b] = true;
                r.iter_mut().zip(&reach[b]).for_each(|(x, y)| *x |= *y);
            }
            let mut needs: Vec<usize> = d.reads.iter().filter_map(|b| writer.get(b).copied()).collect();
            for b in &d.writes {
                needs.extend(writer.get(b));
                needs.extend(readers.get(b).into_iter().flatten());
            }
            if let Some(missing) = needs.into_iter().find(|&x| x != i && !r[x]) {
                self.fault(
                    &format!("body {index}, launch {i}"),
                    format!("has no path from launch {missing}"),
                );
            }
            reach.push(r);
            d.reads.iter().for_each(|b| readers.entry(*b).or_default().push(i));
            for b in &d.writes {
                writer.insert(*b, i);
                readers.remove(b);
            }
        }
    }

    fn entry(&mut self, entry: &Entry) {
        let plan = self.plan;
        let Some(body) = plan.bodies.get(entry.body as usize) else {
            self.fault(&entry.name, "its body does not exist");
            return;
        };
        let mut lives: HashMap<BufferId, (usize, usize)> = HashMap::new();
        for (i, d) in body.dispatches.iter().enumerate() {
            match entry.kernels.get(&d.work).map(|k| plan.kernels.get(k.index())) {
                Some(Some(k)) if k.work == d.work => {}
                _ => self.fault(&entry.name, format!("work {} has no kernel", d.work)),
            }
            for b in d.reads.iter().chain(&d.writes) {
                lives.entry(*b).and_modify(|l| l.1 = i).or_insert((i, i));
            }
        }
        let places: HashMap<BufferId, _> = entry.arena.iter().map(|p| (p.buffer, p)).collect();
        let mut temps = Vec::new();
        for (b, life) in &lives {
            let Some(buffer) = plan.buffers.get(b.index()) else { continue };
            if buffer.kind != BufferKind::Temp {
                continue;
            }
            match places.get(b) {
                Some(p)
                    if p.bytes >= buffer.bytes(&entry.bind)
                        && p.offset.checked_add(p.bytes).is_some_and(|end| end <= entry.arena_bytes) =>
                {
                    temps.push((p.offset, p.bytes, *life, p.buffer.to_string()));
                }
                _ => self.fault(&entry.name, format!("{} has no place in the arena", buffer.name)),
            }
        }
        let (places, faults) = scratch::places(plan, entry, body);
        temps.extend(places);
        faults.into_iter().for_each(|what| self.fault(&entry.name, what));
        temps.sort();
        for (i, (offset, bytes, life, name)) in temps.iter().enumerate() {
            for (_, _, other, other_name) in temps[i + 1..].iter().take_while(|q| q.0 < offset + bytes) {
                if life.0 <= other.1 && other.0 <= life.1 {
                    self.fault(&entry.name, format!("{name} and {other_name} live in the same memory"));
                }
            }
        }
    }
}

/// What holds for matrix products: the right operand's shape, and which expressions refer to what.
fn matmul(m: &MatMul, work: &Work, faults: &mut Vec<String>) {
    if !(1..=2).contains(&m.group) {
        faults.push(format!("a group of {} accumulators", m.group));
    }
    if let Some(b) = work.reads.get(m.b.index())
        && b.shape != [Dim::Const(m.columns()), Dim::Const(m.k)]
    {
        let have = shape_text(&b.shape);
        faults.push(format!("the right operand is {have}, not [{}, {}]", m.columns(), m.k));
    }
    let mut check = |root: &Scalar, accumulators: usize, stages: usize| {
        root.visit(&mut |e| match e {
            Scalar::Acc(i) if usize::from(*i) >= accumulators => {
                faults.push(format!("accumulator {i} of {accumulators}"));
            }
            Scalar::Reduced(i) if usize::from(*i) >= stages => {
                faults.push(format!("stage {i} of {stages} is not known here"));
            }
            _ => {}
        });
    };
    m.stages.iter().enumerate().for_each(|(i, s)| check(&s.value, 0, i));
    let mut stages = m.stages.len();
    check(&m.a, 0, stages);
    if let Some(row) = &m.row {
        check(&row.value, m.group, stages);
        for s in &row.stages {
            check(&s.value, m.group, stages);
            stages += 1;
        }
    }
    for s in &m.stores {
        for e in s.index.iter().chain([&s.value]).chain(&s.guard) {
            check(e, m.group, stages);
        }
    }
    if m.row.is_some() && m.group != 1 {
        faults.push(format!("a row epilogue of points with {} accumulators", m.group));
    }
    if m.stores.iter().any(|s| usize::from(s.output) >= work.writes.len()) {
        faults.push("a store has no output".into());
    }
    if let Some(d) = &m.draw {
        draw(d, m, work, faults);
    }
}

/// What holds for sampling behind a product: one store makes all logits, and the arrays fit.
fn draw(d: &Draw, m: &MatMul, work: &Work, faults: &mut Vec<String>) {
    let made: Vec<_> = m.stores.iter().filter(|s| s.output == d.logits).collect();
    let whole = |s: &Store| s.guard.is_none() && s.index[..] == [Scalar::Coord(0), Scalar::Coord(1)];
    if m.group != 1 || made.len() != 1 || !made.iter().all(|s| whole(s)) {
        faults.push("tokens are drawn from logits that one store does not make whole".into());
    }
    let fits = |o: Option<&Operand>, dtypes: &[DType], shape: &[Dim]| {
        o.is_some_and(|o| dtypes.contains(&o.dtype) && o.shape == shape)
    };
    let (floats, columns) = ([DType::F32, DType::F16, DType::BF16], Dim::Const(m.columns()));
    if !fits(work.writes.get(usize::from(d.logits)), &floats, &[m.m, columns]) {
        faults.push("the logits are no floats [m, columns]".into());
    }
    if !fits(work.writes.get(usize::from(d.tokens)), &[DType::I32], &[m.m]) {
        faults.push("the tokens are no i32 [m]".into());
    }
    let dtypes = [DType::F32, DType::I32, DType::F32, DType::F32, DType::U32];
    let mut parameters: Vec<_> = d.parameters.iter().zip(dtypes).collect();
    if let Some(p) = &d.penalties {
        parameters.extend(p.parameters.iter().zip([DType::I32, DType::F32, DType::F32]));
        let history = work.reads.get(p.history.index());
        if !history.is_some_and(|h| h.dtype == DType::I32 && h.shape.len() == 1) {
            faults.push("the history is no list of i32".into());
        }
    }
    for (o, dtype) in parameters {
        if !fits(work.reads.get(o.index()), &[dtype], &[m.m]) {
            faults.push(format!("the sampling parameter {o} is no {dtype} [m]"));
        }
    }
}

/// Product of the constant extents, and the symbolic ones in order.
fn factors(shape: &[Dim]) -> (usize, Vec<Dim>) {
    let constant = shape.iter().filter_map(|d| d.as_const()).fold(1usize, usize::saturating_mul);
    (constant, shape.iter().copied().filter(|d| d.as_const().is_none()).collect())
}
