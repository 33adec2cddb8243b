//! What tests read off a compilation: the contracts of a form of the step, and the works of an entry.

use weft_ir::plan::{Attention, Compute, Plan, Role, Work};
use weft_passes::Compiled;
use weft_passes::fusion::Contract;

/// The contract of a fusion in a form of the step.
///
/// # Panics
/// When there is none.
pub fn contract<'a>(c: &'a Compiled, body: &str, fusion: &str) -> &'a Contract {
    let body = c.context.contracts.iter().find(|b| b.body == body).expect("a body");
    body.contracts.iter().find(|c| c.fusion == fusion).expect("a contract")
}

/// Works of the dispatches of a role's first entry.
///
/// # Panics
/// When the plan has no such entry.
pub fn works(plan: &Plan, role: Role) -> Vec<&Work> {
    let entry = plan.entries.iter().find(|e| e.role == role).expect("an entry");
    plan.bodies[entry.body as usize].dispatches.iter().map(|d| &plan.works[d.work as usize]).collect()
}

/// The attentions among them.
///
/// # Panics
/// As [`works`].
pub fn attentions(plan: &Plan, role: Role) -> Vec<(&Work, &Attention)> {
    fn attention(w: &Work) -> Option<(&Work, &Attention)> {
        match &w.compute {
            Compute::Attention(a) => Some((w, a)),
            _ => None,
        }
    }
    works(plan, role).into_iter().filter_map(attention).collect()
}
