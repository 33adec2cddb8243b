//! The parts of an attention whose place the fusion rule names: matmul – score modification – softmax – matmul on
//! rows gathered by one index from two states (the slot-mapped cache) or, in an encoder, from two values of the
//! step. A site that is otherwise stays unfused, and the contract says so.

use std::collections::HashSet;
use weft_ir::graph::{Graph, Op};
use weft_ir::ids::NodeId;
use weft_ir::scalar::{Binary, Reduce, Unary};

/// An attention in the graph.
#[derive(Clone, Debug)]
pub struct AttentionSite {
    /// Last node: weights · values, [t, kv, group, d]; where all heads share one key head, heads may stand first.
    pub out: NodeId,
    /// Queries: t · heads · d elements, in this order.
    pub q: NodeId,
    /// Keys, [slots, kv, d]: the state after this step's write, or a value of the step ([t, kv, d]).
    pub keys: NodeId,
    /// Values, alike; a value is the first elements of its row.
    pub values: NodeId,
    /// Rows of the keys, [t, context].
    pub index: NodeId,
    /// q · keysᵀ, [t, kv, group, context].
    pub scores: NodeId,
    /// Input of the softmax.
    pub masked: NodeId,
    /// A score of each head that no key belongs to, [t, kv, group, 1].
    pub sink: Option<NodeId>,
    /// Nodes that exist only inside, but for `out`.
    pub covered: HashSet<NodeId>,
}

/// The parts of attention at each of the fusion's sites, where one kernel can be all of them.
pub fn find(
    graph: &Graph,
    at: impl Iterator<Item = NodeId>,
    users: &[Vec<NodeId>],
    kept: &HashSet<NodeId>,
) -> Vec<AttentionSite> {
    let matcher = Matcher { graph, users, kept };
    at.filter_map(|id| matcher.site(id)).collect()
}

struct Matcher<'a> {
    graph: &'a Graph,
    users: &'a [Vec<NodeId>],
    kept: &'a HashSet<NodeId>,
}

impl Matcher<'_> {
    fn op(&self, id: NodeId) -> &Op {
        &self.graph.node(id).op
    }

    fn input(&self, id: NodeId, i: usize) -> NodeId {
        self.graph.node(id).inputs[i]
    }

    fn site(&self, out: NodeId) -> Option<AttentionSite> {
        if !matches!(self.op(out), Op::MatMul { transpose_b: false, .. })
            || self.graph.ty(out).shape.len() != 4
        {
            return None;
        }
        let mut covered = HashSet::new();
        let mut weights = self.input(out, 0);
        while matches!(self.op(weights), Op::Cast(_)) {
            covered.insert(weights);
            weights = self.input(weights, 0);
        }
        let (masked, sink) = match self.op(weights) {
            Op::Softmax => (self.input(weights, 0), None),
            _ => self.with_sink(weights, &mut covered).map(|(masked, sink)| (masked, Some(sink)))?,
        };
        covered.insert(weights);
        let (values, index) = self.cache_read(self.input(out, 1), &mut covered)?;
        let values = self.first_part(values, &mut covered);
        let scores = self.scores_of(masked, &mut covered)?;
        let (keys, key_index) = self.cache_read(self.input(scores, 1), &mut covered)?;
        let heads = |rows: NodeId| self.graph.ty(rows).shape.get(1);
        if key_index != index || heads(keys) != heads(values) {
            return None;
        }
        // Queries are read by token, head and element, whatever shape they have in memory.
        let mut q = self.input(scores, 0);
        while let Op::Reshape(_) = self.op(q) {
            if self.users[q.index()].len() > 1 {
                break;
            }
            covered.insert(q);
            q = self.input(q, 0);
        }
        // Nothing inside may be used outside.
        let private = covered.iter().all(|n| {
            let inside = |u: &NodeId| *u == out || covered.contains(u);
            !self.kept.contains(n) && self.users[n.index()].iter().all(inside)
        });
        private.then_some(AttentionSite { out, q, keys, values, index, scores, masked, sink, covered })
    }

    /// exp(s − m) / (Σ exp(s − m) + exp(sink − m)) with m = max(max s, sink) → (s, sink).
    fn with_sink(&self, weights: NodeId, covered: &mut HashSet<NodeId>) -> Option<(NodeId, NodeId)> {
        let is = |id: NodeId, op: &Op| (self.op(id) == op).then_some(id);
        let two = |id: NodeId| [self.input(id, 0), self.input(id, 1)];
        let [keys, total] = two(is(weights, &Op::Binary(Binary::Div))?);
        let shifted = self.input(is(keys, &Op::Unary(Unary::Exp))?, 0);
        let [scores, top] = two(is(shifted, &Op::Binary(Binary::Sub))?);
        let (Op::Broadcast(_), Op::Broadcast(_)) = (self.op(top), self.op(total)) else { return None };
        let (wide, all) = ([top, total], [self.input(top, 0), self.input(total, 0)]);
        let [top, total] = all;
        let either = |id: NodeId, op: Op| {
            let [a, b] = two(is(id, &op)?);
            Some([(a, b), (b, a)])
        };
        let (sum, rest) = either(total, Op::Binary(Binary::Add))?
            .into_iter()
            .find(|(a, _)| *self.op(*a) == Op::Reduce(Reduce::Sum) && self.input(*a, 0) == keys)?;
        let (largest, sink) = either(top, Op::Binary(Binary::Max))?
            .into_iter()
            .find(|(a, _)| *self.op(*a) == Op::Reduce(Reduce::Max) && self.input(*a, 0) == scores)?;
        let beside = self.input(is(rest, &Op::Unary(Unary::Exp))?, 0);
        if two(is(beside, &Op::Binary(Binary::Sub))?) != [sink, top] {
            return None;
        }
        covered.extend([keys, shifted, top, total, sum, rest, largest, beside]);
        covered.extend(wide);
        Some((scores, sink))
    }

    /// Below a slice that takes the first elements of rows: values may be the first part of keys.
    fn first_part(&self, id: NodeId, covered: &mut HashSet<NodeId>) -> NodeId {
        match self.op(id) {
            Op::Slice { axis: 2, start: 0, .. } => {
                covered.insert(id);
                self.input(id, 0)
            }
            _ => id,
        }
    }

    /// `transpose(gather(rows, index), [0, 2, 1, 3])` → (rows, index), or that of one head for all heads.
    fn cache_read(&self, id: NodeId, covered: &mut HashSet<NodeId>) -> Option<(NodeId, NodeId)> {
        let mut turned = id;
        if let Op::Broadcast(_) = self.op(id) {
            covered.insert(id);
            turned = self.input(id, 0);
            // One key for a context of many would be another attention.
            let shape = |x: NodeId| &self.graph.ty(x).shape;
            if shape(turned)[0] != shape(id)[0] || shape(turned)[2..] != shape(id)[2..] {
                return None;
            }
        }
        let Op::Transpose(perm) = self.op(turned) else { return None };
        let gather = self.input(turned, 0);
        if perm != &[0, 2, 1, 3] || !matches!(self.op(gather), Op::Gather) {
            return None;
        }
        covered.extend([turned, gather]);
        Some((self.input(gather, 0), self.input(gather, 1)))
    }

    /// The one matmul that elementwise ops turn into `masked`; these ops are covered.
    fn scores_of(&self, masked: NodeId, covered: &mut HashSet<NodeId>) -> Option<NodeId> {
        if matches!(self.op(masked), Op::MatMul { transpose_b: true, .. }) {
            covered.insert(masked);
            return Some(masked);
        }
        let elementwise = match self.op(masked) {
            Op::Unary(_) | Op::Binary(_) | Op::Select | Op::Cast(_) => true,
            _ => return None,
        };
        let shape = &self.graph.ty(masked).shape;
        let mut found = None;
        for &x in &self.graph.node(masked).inputs {
            if elementwise && self.graph.ty(x).shape == *shape && self.reaches_scores(x) {
                found = Some(self.scores_of(x, covered)?);
            }
        }
        covered.insert(masked);
        found
    }

    fn reaches_scores(&self, id: NodeId) -> bool {
        match self.op(id) {
            Op::MatMul { transpose_b: true, .. } => true,
            Op::Unary(_) | Op::Binary(_) | Op::Select | Op::Cast(_) => {
                self.graph.node(id).inputs.iter().any(|&x| self.reaches_scores(x))
            }
            _ => false,
        }
    }
}
