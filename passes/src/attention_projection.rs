//! The projection behind a decode step's attention becomes a part of it.
//!
//! Before: works and the dispatches of a body. After: a product fewer for each attention whose blocks project its outputs;
//! what they store are addends, one for each head of keys, which are added up, with what the product's epilogue had
//! beside its accumulator, where the product's result was read. Tests: `testsuite/tests/projection.rs`.
//!
//! Where a step is a chain of launches rather than of work, a launch costs about a microsecond; the addends of a few heads
//! of keys cost less, and a cluster has the outputs of one at hand (docs/performance.md).

use crate::fusion::{Contract, Miss};
use crate::lower::{Lowered, Placed};
use crate::merge::{self, Arrays, OPERANDS, TOO_LARGE};
use crate::numerics::{Numerics, Selection};
use crate::schedule;
use weft_ir::dtype::DType;
use weft_ir::graph::{Graph, Op};
use weft_ir::ids::{BufferId, NodeId, OperandId};
use weft_ir::plan::{
    Attention, AttentionProjection, Buffer, BufferKind, Compute, Dispatch, MatMul, Operand, Scalar, Store,
    Work,
};
use weft_ir::scalar::Binary;
use weft_ir::shape::{Bindings, Dim};
use weft_ir::target::Target;

/// Name, as in `--disable`.
pub const NAME: &str = "attention-projection";
/// What it does to the numbers.
pub const NUMERICS: Numerics = Numerics::Reassociates;
/// What it does, for the generated page.
pub const SUMMARY: &str = "a decode step's attention of few heads projects its outputs itself; what its heads of keys add \
                           is summed where the projection was read";

/// Makes what it can in a body, whose steps have these sizes. The contract's sites are attentions whose outputs a plain
/// product alone reads; where the pass is off, they are found and left.
pub fn run(
    lowered: &mut Lowered,
    body: usize,
    placed: &mut Placed,
    (binds, target): (&[Bindings], &Target),
    selection: &Selection,
) -> Contract {
    let enabled = selection.allows(NAME, NUMERICS);
    let mut contract = Contract::empty(NAME, NUMERICS, enabled);
    let Some(step) = merge::Step::of(lowered, body, placed) else { return contract };
    let mut step = Step { buffers: &lowered.buffers, body: step, addends: Vec::new(), projected: Vec::new() };
    for i in 0.. {
        if i >= step.body.dispatches.len() {
            break;
        }
        let Some(product) = step.product(i) else { continue };
        contract.candidates += 1;
        let scope = step.body.dispatches[i].scope.clone();
        let mut miss = |why: String| contract.misses.push(Miss { scope: scope.clone(), why });
        match step.site(i, product, (binds, target)) {
            Ok(_) if !enabled => miss(selection.why_off(NAME)),
            Ok(site) => {
                step.make(site, &placed.graph);
                contract.matched += 1;
            }
            Err(why) => miss(why),
        }
    }
    if contract.matched > 0 {
        let Step { body: after, addends, projected, .. } = step;
        lowered.buffers.extend(addends);
        placed.projected = projected;
        after.put(lowered, body, placed);
    }
    contract
}

/// The form of a step that has none.
pub fn nowhere(selection: &Selection) -> Contract {
    Contract::empty(NAME, NUMERICS, selection.allows(NAME, NUMERICS))
}

/// A body, and the buffers of all.
struct Step<'a> {
    buffers: &'a [Buffer],
    body: merge::Step,
    /// Buffers behind those.
    addends: Vec<Buffer>,
    /// Products that attention makes.
    projected: Vec<NodeId>,
}

/// An attention and the product behind it: positions of dispatches, the addends, and the works that change.
struct Site {
    attention: usize,
    product: usize,
    addends: Buffer,
    /// For dispatches: the work, with what it reads and writes.
    changed: Vec<(usize, Work, Dispatch)>,
}

impl Step<'_> {
    fn work(&self, i: usize) -> &Work {
        &self.body.works[self.body.dispatches[i].work as usize]
    }

    /// Those that read a buffer, in order.
    fn readers(&self, buffer: BufferId) -> Vec<usize> {
        let all = self.body.dispatches.iter().enumerate();
        all.filter(|(_, d)| d.reads.contains(&buffer)).map(|(i, _)| i).collect()
    }

    fn is_temp(&self, buffer: BufferId) -> bool {
        self.buffers.get(buffer.index()).is_some_and(|b| b.kind == BufferKind::Temp)
    }

    /// The buffer that the next site's addends are.
    fn next(&self) -> BufferId {
        BufferId::new(self.buffers.len() + self.addends.len())
    }

    /// The product whose left operand is the only array that an attention stores.
    fn product(&self, i: usize) -> Option<usize> {
        let Compute::Attention(a) = &self.work(i).compute else { return None };
        let [store] = &a.stores[..] else { return None };
        let outputs = self.body.dispatches[i].writes[usize::from(store.output)];
        let [product] = self.readers(outputs)[..] else { return None };
        let Compute::MatMul(m) = &self.work(product).compute else { return None };
        let left = m.plain_left().map(|o| self.body.dispatches[product].reads[o.index()]);
        (left == Some(outputs) && self.is_temp(outputs) && a.projection.is_none()).then_some(product)
    }

    /// The works of an attention that projects, and of all that read the projection.
    ///
    /// # Errors
    /// Why there are none.
    fn site(&self, i: usize, product: usize, on: (&[Bindings], &Target)) -> Result<Site, String> {
        let (work, d) = (self.work(i), &self.body.dispatches[i]);
        let (of_product, projected) = (self.work(product), &self.body.dispatches[product]);
        let (Compute::Attention(a), Compute::MatMul(m)) = (&work.compute, &of_product.compute) else {
            return Err("it is no attention with a product behind it".into());
        };
        if a.prologue.is_some() {
            return Err("it makes its rows: whether it should project as well was not measured".into());
        }
        let store = &a.stores[0];
        if store.guard.is_some() || !in_order(store, a) {
            return Err("its outputs are not stored head by head".into());
        }
        let Some(added) = plain(m) else {
            return Err("the product behind it is more than a projection".into());
        };
        let rows = [a.tokens, Dim::Const(m.n)];
        let k = a.kv_heads * a.group * a.value_dim;
        if (m.m, m.k) != (a.tokens, k) || of_product.writes[0].shape != rows {
            return Err("the product behind it has other rows".into());
        }
        let left = m.plain_left();
        let mut again = false;
        added.visit(&mut |e| again |= matches!(e, Scalar::Load(o, _) if Some(*o) == left));
        if again {
            return Err("its outputs are used beside the product".into());
        }
        let value = stored(store.value.clone(), work.writes[usize::from(store.output)].dtype);
        let weight = &of_product.reads[m.b.index()];
        let mut reads = Arrays::of(work, d);
        let at = reads.place(weight.clone(), projected.reads[m.b.index()]);
        reads.rename(at, "projection");
        let projection = AttentionProjection { weight: at, columns: m.n, value };
        let output = store.output;
        let index = [0, 1, 2].map(Scalar::Coord).to_vec();
        let stores = vec![Store { output, index, value: Scalar::Acc(0), guard: None }];
        let attention = Attention { projection: Some(Box::new(projection)), stores, ..a.clone() };
        let shape = vec![a.tokens, Dim::Const(a.kv_heads), Dim::Const(m.n)];
        let addends = Buffer {
            name: format!("{}.addends", projected.scope),
            dtype: DType::F32,
            shape: shape.clone(),
            kind: BufferKind::Temp,
        };
        let mut writes = work.writes.clone();
        writes[usize::from(output)] =
            Operand { name: "addends".into(), dtype: DType::F32, shape, constant: false };
        let mut write_buffers = d.writes.clone();
        write_buffers[usize::from(output)] = self.next();
        if reads.len() + writes.len() > OPERANDS {
            return Err(TOO_LARGE.into());
        }
        let (mut ops, rules) = merge::origins(&[work], NAME);
        ops.extend_from_slice(parts(of_product).0);
        let (reads, read_buffers) = reads.parts();
        let name = merge::unique_name(&self.body.works, work, of_product);
        let in_place = work.in_place.clone();
        let made = Work { name, compute: Compute::Attention(attention), reads, writes, in_place, ops, rules };
        schedule::projects(&made, on)?;
        let dispatch =
            Dispatch { work: 0, reads: read_buffers, writes: write_buffers, scope: d.scope.clone() };
        let addend = made.writes[usize::from(output)].clone();
        let mut changed = vec![(i, made, dispatch)];
        for reader in self.readers(projected.writes[0]) {
            changed.push(self.reader(reader, product, (a.kv_heads, &addend), added)?);
        }
        if changed.len() == 1 || !self.is_temp(projected.writes[0]) {
            return Err("the projection is a result of the step".into());
        }
        Ok(Site { attention: i, product, addends, changed })
    }

    /// A work that reads a product's result, made one that adds it up.
    ///
    /// # Errors
    /// Why it cannot.
    fn reader(
        &self,
        reader: usize,
        product: usize,
        (kv_heads, addend): (usize, &Operand),
        added: &Scalar,
    ) -> Result<(usize, Work, Dispatch), String> {
        let (work, d) = (self.work(reader), &self.body.dispatches[reader]);
        let (of_product, projected) = (self.work(product), &self.body.dispatches[product]);
        let result = projected.writes[0];
        if reader < product || !self.settled(product, reader) {
            return Err("what the projection is added to changes before it is read".into());
        }
        if d.reads.iter().filter(|b| **b == result).count() != 1 {
            return Err("the projection is read as several arrays".into());
        }
        let at = d.reads.iter().position(|b| *b == result).map(OperandId::new);
        let at = at.ok_or("the projection is not read")?;
        if work.reads[at.index()].shape != of_product.writes[0].shape {
            return Err("the projection is read in another shape".into());
        }
        let mut reads = Arrays::of(work, d);
        reads.replace(at, (addend.clone(), self.next()));
        // What the product's epilogue reads, at its places here.
        let mut operands = vec![OperandId::new(0); of_product.reads.len()];
        added.visit(&mut |e| {
            if let Scalar::Load(o, _) = e {
                let i = o.index();
                operands[i] = reads.place(of_product.reads[i].clone(), projected.reads[i]);
            }
        });
        let addends = (0..kv_heads as i64)
            .map(|head| Scalar::Load(at, vec![Scalar::Coord(0), Scalar::Int(head), Scalar::Coord(1)]));
        let sum = addends.reduce(|a, b| Scalar::binary(Binary::Add, a, b)).unwrap_or(Scalar::Float(0.0));
        let sum = stored(with_acc(&merge::on(added, &operands), &sum), of_product.writes[0].dtype);
        let mut compute = work.compute.clone();
        let scalars = match &mut compute {
            Compute::Loop(l) => l.scalars_mut(),
            Compute::MatMul(m)
                if m.b != at && m.draw.as_ref().is_none_or(|d| !d.operands().contains(&at)) =>
            {
                m.scalars_mut()
            }
            _ => return Err("the projection is read by more than expressions".into()),
        };
        for scalar in scalars {
            *scalar = summed(scalar, at, &sum);
        }
        if reads.len() + work.writes.len() > OPERANDS {
            return Err(TOO_LARGE.into());
        }
        let (reads, buffers) = reads.parts();
        let (own, rules) = merge::origins(&[of_product, work], NAME);
        let ops = [parts(of_product).1, &own[of_product.ops.len()..]].concat();
        let name = merge::unique_name(&self.body.works, work, work);
        let made = Work { name, compute, reads, ops, rules, ..work.clone() };
        let dispatch = Dispatch { work: 0, reads: buffers, writes: d.writes.clone(), scope: d.scope.clone() };
        Ok((reader, made, dispatch))
    }

    /// Whether nothing that a dispatch reads is written from it to another one, nor by that.
    fn settled(&self, from: usize, to: usize) -> bool {
        let reads = &self.body.dispatches[from].reads;
        let written = |d: &Dispatch| d.writes.iter().any(|b| reads.contains(b));
        !self.body.dispatches[from..=to].iter().any(written)
    }

    /// Puts the works in their places, and takes the product out: its nodes go to attention, those of its epilogue to all
    /// that read it.
    fn make(&mut self, site: Site, graph: &Graph) {
        self.addends.push(site.addends);
        let readers: Vec<usize> =
            site.changed.iter().map(|(at, ..)| *at).filter(|at| *at != site.attention).collect();
        let (mut product, mut epilogue) = (Vec::new(), Vec::new());
        // In order: a node is behind what it reads.
        for n in std::mem::take(&mut self.body.nodes[site.product]) {
            let node = graph.node(n);
            let behind = |i: &NodeId| epilogue.contains(i) || self.projected.contains(i);
            if node.inputs.iter().any(behind) {
                epilogue.push(n);
            } else {
                product.push(n);
                self.projected.extend(matches!(node.op, Op::MatMul { .. }).then_some(n));
            }
        }
        let places = readers.into_iter().map(|at| (at, &epilogue)).chain([(site.attention, &product)]);
        for (at, nodes) in places {
            let here = &mut self.body.nodes[at];
            here.extend(nodes);
            here.sort_unstable();
            here.dedup();
        }
        for (at, mut work, dispatch) in site.changed {
            work.name = unused(&self.body.works, work.name);
            let work = merge::numbered(&mut self.body.works, work);
            self.body.dispatches[at] = Dispatch { work, ..dispatch };
        }
        self.body.dispatches.remove(site.product);
        self.body.nodes.remove(site.product);
    }
}

/// A name that no work has: works of one site were named before they were there.
fn unused(works: &[Work], name: String) -> String {
    let taken = |name: &str| works.iter().any(|w| w.name == name);
    let others = (2..).map(|i| format!("{name}_{i}"));
    std::iter::once(name.clone()).chain(others).find(|n| !taken(n)).unwrap_or(name)
}

/// The ops of a product, and those of its epilogue.
fn parts(product: &Work) -> (&[String], &[String]) {
    let last = product.ops.iter().rposition(|op| op == "matmul").map_or(0, |i| i + 1);
    product.ops.split_at(last)
}

/// Whether an attention's outputs lie head by head, whichever way heads are counted.
fn in_order(store: &Store, a: &Attention) -> bool {
    let [token, head, element] = [0, 1, 2].map(Scalar::Coord);
    let of = |op| Scalar::binary(op, head.clone(), Scalar::Int(a.group as i64));
    let zero = || Scalar::Int(0);
    let (of_keys, of_group) = match (a.kv_heads, a.group) {
        (1, _) => (zero(), head.clone()),
        (_, 1) => (head.clone(), zero()),
        _ => (of(Binary::Div), of(Binary::Rem)),
    };
    let split = [token.clone(), of_keys, of_group, element.clone()];
    store.index == [token, head, element] || store.index == split
}

/// The value that a product stores of its accumulator, where it is nothing but a row of points.
fn plain(m: &MatMul) -> Option<&Scalar> {
    let [store] = &m.stores[..] else { return None };
    let fits = m.group == 1
        && m.stages.is_empty()
        && m.row.is_none()
        && m.draw.is_none()
        && store.guard.is_none()
        && store.output == 0
        && store.index == [Scalar::Coord(0), Scalar::Coord(1)];
    fits.then_some(&store.value)
}

/// A value as an array of a type has it.
fn stored(value: Scalar, dtype: DType) -> Scalar {
    if dtype.is_half() { Scalar::Cast(dtype, Box::new(value)) } else { value }
}

/// An expression with another in the accumulator's place.
fn with_acc(e: &Scalar, acc: &Scalar) -> Scalar {
    match e {
        Scalar::Acc(_) => acc.clone(),
        other => other.map_children(&mut |part| with_acc(part, acc)),
    }
}

/// An expression with a sum over (Coord 0, Coord 1) in the place of what was loaded from an array of them.
fn summed(e: &Scalar, from: OperandId, sum: &Scalar) -> Scalar {
    match e {
        Scalar::Load(o, at) if *o == from => {
            let at: Vec<Scalar> = at.iter().map(|i| summed(i, from, sum)).collect();
            placed(sum, &at)
        }
        other => other.map_children(&mut |part| summed(part, from, sum)),
    }
}

/// An expression at a place.
fn placed(e: &Scalar, at: &[Scalar]) -> Scalar {
    match e {
        Scalar::Coord(i) => at.get(usize::from(*i)).cloned().unwrap_or(Scalar::Coord(*i)),
        other => other.map_children(&mut |part| placed(part, at)),
    }
}
