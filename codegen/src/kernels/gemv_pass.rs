//! A pass over a row of a skinny product's left operand: what is reduced, and what is known from earlier passes.

use super::gemv_vectors::Held;
use super::warp::combine;
use super::{Body, Point};
use weft_ir::ids::VarId;
use weft_ir::kernel::Expr;
use weft_ir::plan::{MatMul, Scalar};

/// A pass over a row.
pub(super) struct Pass<'a> {
    /// Reductions of it, by position.
    pub stages: &'a [usize],
    /// Whether it stores the elements.
    pub stores: bool,
    /// Results of earlier passes, by stage.
    pub known: &'a [Expr],
    /// Registers of the row's vectors.
    pub held: &'a mut Held,
}

impl Pass<'_> {
    /// An element of the row.
    pub fn point(&self, row: &Expr, k: Expr, loaded: Vec<(Scalar, Expr)>) -> Point {
        let (coords, reduced) = (vec![row.clone(), k], self.known.to_vec());
        Point { coords, reduced, loaded, ..Point::default() }
    }

    /// Adds an element to a thread's reductions.
    pub fn add(&self, b: &mut Body<'_>, m: &MatMul, vars: &[VarId], point: &Point) -> Result<(), String> {
        for (&stage, &var) in self.stages.iter().zip(vars) {
            let stage = &m.stages[stage];
            let value = b.lower(&stage.value, point)?;
            b.k.assign(var, combine(stage.op, var.into(), value));
        }
        Ok(())
    }

    /// What the pass evaluates.
    pub fn values<'m>(&self, m: &'m MatMul) -> Vec<&'m Scalar> {
        let stages = self.stages.iter().map(|&i| &m.stages[i].value);
        stages.chain(self.stores.then_some(&m.a)).collect()
    }
}
