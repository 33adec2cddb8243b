//! The left operand of a matrix product, as tiles on tensor cores take it.

use super::{MatMul, Operand, Scalar};
use crate::dtype::DType;
use crate::ids::OperandId;

/// Bytes of a copy to shared memory.
const COPY: usize = 16;

/// What a tile has of a left operand.
#[derive(Clone, Debug, PartialEq)]
pub enum TiledLeft {
    /// Its elements, copied as they are stored.
    Stored(OperandId),
    /// Elements of the arrays that it is made of (distinct [`Scalar::Load`]s over Coord 0 = m and Coord 1 = k), which
    /// are copied as they are stored; it is computed of them where it is multiplied.
    Computed(Vec<Scalar>),
}

/// The loads of expressions over (m, k) that depend on k, each once, where all of them are certain and read their array
/// along its last axis, element k at place k.
pub fn loads_along_k<'s>(values: impl IntoIterator<Item = &'s Scalar>) -> Option<Vec<Scalar>> {
    let mut loads = Vec::new();
    values.into_iter().all(|value| along_k(value, &mut loads)).then_some(loads)
}

fn depends_on_k(s: &Scalar) -> bool {
    let mut found = false;
    s.visit(&mut |part| found |= *part == Scalar::Coord(1));
    found
}

fn along_k(s: &Scalar, out: &mut Vec<Scalar>) -> bool {
    match s {
        Scalar::Load(_, index) if depends_on_k(s) => {
            let Some((last, rest)) = index.split_last() else { return false };
            let plain = *last == Scalar::Coord(1) && !rest.iter().any(depends_on_k);
            if plain && !out.contains(s) {
                out.push(s.clone());
            }
            plain
        }
        Scalar::Select(c, x, y) => along_k(c, out) && ![x, y].into_iter().any(|part| depends_on_k(part)),
        _ => s.children().into_iter().all(|part| along_k(part, out)),
    }
}

impl MatMul {
    /// The left operand, and the reductions beside the product, as tiles take them; `reads` are the work's.
    ///
    /// # Errors
    /// Why they cannot.
    pub fn tiled_left(&self, reads: &[Operand]) -> Result<TiledLeft, String> {
        let dtype = reads[self.b.index()].dtype;
        let plain = self.plain_left().filter(|x| reads[x.index()].dtype == dtype);
        if let (Some(x), true) = (plain, self.stages.is_empty()) {
            return Ok(TiledLeft::Stored(x));
        }
        let (stages, left) = self.passes();
        if left > 0 || stages.iter().any(|pass| *pass > 0) {
            return Err("the left operand needs a pass over the row of its own".into());
        }
        if self.row.is_some() {
            return Err("row reductions beside the product and behind it".into());
        }
        // A fragment has elements of the operands' type; the plan has to say that they are rounded to it.
        if plain.is_none() && !matches!(&self.a, Scalar::Cast(to, _) if *to == dtype) {
            return Err(format!("the left operand is computed, and not rounded to {dtype}"));
        }
        let values = || std::iter::once(&self.a).chain(self.stages.iter().map(|stage| &stage.value));
        let loads = loads_along_k(values()).ok_or("the left operand is not read along k")?;
        // Loads that are free of k would be made for each element.
        let mut all = 0;
        values().for_each(|v| v.visit(&mut |part| all += usize::from(is_outer_load(part, &loads))));
        if all > 0 {
            return Err("the left operand reads what is not along k".into());
        }
        for load in &loads {
            let Scalar::Load(o, _) = load else { continue };
            let Operand { name, dtype, shape, .. } = &reads[o.index()];
            let row = shape.last().and_then(|d| d.as_const()).unwrap_or(1);
            let copies = |n: usize| (n * dtype.size()).is_multiple_of(COPY);
            if !matches!(dtype, DType::F32 | DType::F16 | DType::BF16) || !copies(row) || !copies(self.k) {
                return Err(format!("rows of {name} are not whole {COPY}-byte pieces of floats"));
            }
        }
        Ok(TiledLeft::Computed(loads))
    }
}

/// Whether an expression loads, but not as one of these, nor for the place of one.
fn is_outer_load(s: &Scalar, known: &[Scalar]) -> bool {
    let within = |load: &Scalar| {
        let mut inside = false;
        load.visit(&mut |part| inside |= part == s);
        inside
    };
    matches!(s, Scalar::Load(..)) && !known.iter().any(within)
}
