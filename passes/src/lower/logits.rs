//! Works on whole rows of logits: penalties and sampling.

use super::Stop;
use super::emit::{Emitter, Made, finish};
use weft_ir::ids::NodeId;
use weft_ir::plan::{Compute, Penalize, Sample};
use weft_ir::shape::{Dim, Sym};

impl Emitter<'_> {
    pub(super) fn penalize(&mut self, id: NodeId) -> Result<Made, Stop> {
        let names = ["logits", "history", "base", "position", "prompt", "repetition", "presence"];
        self.row_of_logits(id, names, |rows, vocab| Compute::Penalize(Penalize { rows, vocab }))
    }

    pub(super) fn sample(&mut self, id: NodeId) -> Result<Made, Stop> {
        let names = ["logits", "position", "temperature", "top_k", "top_p", "min_p", "seed"];
        self.row_of_logits(id, names, |rows, vocab| Compute::Sample(Sample { rows, vocab }))
    }

    /// The work of an op on whole rows of logits, its first input.
    fn row_of_logits(
        &mut self,
        id: NodeId,
        names: [&str; 7],
        compute: impl FnOnce(Dim, usize) -> Compute,
    ) -> Result<Made, Stop> {
        let node = self.graph.node(id);
        let op = node.op.name();
        let write = self.write(id)?;
        let vocab = self.graph.ty(node.inputs[0]).shape.get(1).and_then(|d| d.as_const());
        let vocab = vocab.ok_or_else(|| Stop::Fault(format!("{id}: {op} needs a known vocabulary")))?;
        let mut inl = self.inliner(node.ty.shape.clone());
        for &x in &node.inputs {
            inl.operand(x)?;
        }
        inl.ops.push(id);
        let (mut reads, ops) = finish(inl);
        if reads.len() != node.inputs.len() {
            return Err(Stop::Fault(format!("{id}: {op} reads a value twice")));
        }
        reads.iter_mut().zip(names).for_each(|((o, _), name)| o.name = name.into());
        let compute = compute(Dim::Sym(Sym::Rows), vocab);
        Ok(Made { compute, reads, writes: vec![write], ops, rules: vec![], scope: op.into() })
    }
}
