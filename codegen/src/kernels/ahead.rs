//! Loads ahead of their use: what an expression reads is loaded into registers while there is other work to do, and
//! the expression is lowered with the loaded values ([`Point::loaded`]).

use super::{Body, Point};
use weft_ir::dtype::DType;
use weft_ir::kernel::Expr;
use weft_ir::plan::{Scalar, Store};

/// The outermost loads of an expression that are made whatever its values are, and do not depend on an accumulator, a
/// reduction or a step. Loads in a branch of a select are left where they are: they may be out of bounds otherwise.
pub(super) fn certain_loads(s: &Scalar, out: &mut Vec<Scalar>) {
    match s {
        Scalar::Load(_, _) => {
            let mut free = true;
            s.visit(&mut |part| {
                free &= !matches!(part, Scalar::Acc(_) | Scalar::Reduced(_) | Scalar::Local(_, _));
            });
            if free && !out.contains(s) {
                out.push(s.clone());
            }
        }
        Scalar::Select(c, _, _) => certain_loads(c, out),
        _ => s.children().into_iter().for_each(|part| certain_loads(part, out)),
    }
}

/// Stores of one guard, whose reads are loaded ahead.
struct Group {
    guard: Option<Scalar>,
    /// Whether they are made here: the point exists, and the guard holds. What was loaded is defined there alone.
    taken: Option<Expr>,
    wanted: Vec<Scalar>,
    loaded: Vec<(Scalar, Expr)>,
}

/// The stores of a point, whose reads are loaded ahead.
pub(super) struct Prepared {
    at: Point,
    inside: Expr,
    groups: Vec<Group>,
    /// Group of each store.
    group_of: Vec<usize>,
}

impl Prepared {
    /// The loads that some stores at a point need where the point is `inside`; stores of one guard share theirs.
    pub fn new(stores: &[Store], at: Point, inside: Expr) -> Prepared {
        let mut groups: Vec<Group> = Vec::new();
        let mut group_of = Vec::new();
        for s in stores {
            let group = groups.iter().position(|g| g.guard == s.guard).unwrap_or_else(|| {
                let guard = s.guard.clone();
                groups.push(Group { guard, taken: None, wanted: Vec::new(), loaded: Vec::new() });
                groups.len() - 1
            });
            let wanted = &mut groups[group].wanted;
            certain_loads(&s.value, wanted);
            s.index.iter().for_each(|i| certain_loads(i, wanted));
            group_of.push(group);
        }
        Prepared { at, inside, groups, group_of }
    }

    /// Evaluates guards and makes loads: those of constants alone, or all that are left.
    pub fn load(&mut self, b: &mut Body<'_>, constants: bool) -> Result<(), String> {
        for g in &mut self.groups {
            let now = |s: &Scalar| !constants || b.is_constant(s);
            if g.taken.is_none() {
                match &g.guard {
                    None => g.taken = Some(self.inside.clone()),
                    Some(guard) if now(guard) => {
                        let taken = self.inside.clone().and(b.lower(guard, &self.at)?);
                        g.taken = Some(b.k.let_("taken", DType::Bool, taken));
                    }
                    Some(_) => {}
                }
            }
            let Some(taken) = g.taken.clone() else { continue };
            let (ready, later): (Vec<_>, Vec<_>) =
                std::mem::take(&mut g.wanted).into_iter().partition(|s| !constants || b.is_constant(s));
            g.wanted = later;
            if ready.is_empty() {
                continue;
            }
            let mut vars = Vec::new();
            for load in &ready {
                let float = b.is_float(load);
                let (dtype, zero) =
                    if float { (DType::F32, Expr::float(0.0)) } else { (DType::I32, Expr::int(0)) };
                vars.push(b.k.let_mut("ahead", dtype, zero));
            }
            b.if_then(taken, |b| {
                for (load, var) in ready.iter().zip(&vars) {
                    let value = b.lower(load, &self.at)?;
                    b.k.assign(*var, value);
                }
                Ok(())
            })?;
            g.loaded.extend(ready.into_iter().zip(vars.into_iter().map(Expr::Var)));
        }
        Ok(())
    }

    /// Emits the stores; accumulators and reductions are those of `of`.
    pub fn store(&self, b: &mut Body<'_>, stores: &[Store], of: &Point) -> Result<(), String> {
        for (i, g) in self.groups.iter().enumerate() {
            let taken = g.taken.clone().ok_or("a store whose guard was not evaluated")?;
            let at = Point { loaded: g.loaded.clone(), ..of.clone() };
            let mut own = stores.iter().zip(&self.group_of).filter(|(_, group)| **group == i);
            b.if_then(taken, |b| own.try_for_each(|(s, _)| b.store(s, &at)))?;
        }
        Ok(())
    }
}

impl Body<'_> {
    /// Whether an expression reads nothing that a step changes.
    pub(super) fn is_constant(&self, s: &Scalar) -> bool {
        let mut constant = true;
        s.visit(&mut |part| {
            constant &= match part {
                Scalar::Load(o, _) => self.work.reads[o.index()].constant,
                Scalar::Local(..) | Scalar::Acc(_) | Scalar::Reduced(_) => false,
                _ => true,
            };
        });
        constant
    }

    pub(super) fn is_float(&self, load: &Scalar) -> bool {
        matches!(load, Scalar::Load(o, _) if self.work.reads[o.index()].dtype.is_float())
    }
}
