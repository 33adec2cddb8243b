//! What a lane of a skinny product asks for first, and when.

use std::ops::Range;

/// Some of a lane's first loads: steps of k, and columns of each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoadPart {
    /// Steps of k.
    pub steps: Range<u32>,
    /// Columns.
    pub columns: Range<u32>,
}

/// A lane's first loads, `depth` steps of `columns` each, as [`super::Schedule::Gemv`] shares them out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FirstLoads {
    /// Those that start before the block waits for what it depends on.
    pub before: LoadPart,
    /// Those that start behind the loads of the left operand.
    pub behind: LoadPart,
}

impl FirstLoads {
    /// The last `behind` loads, whole steps of k or columns of the only one, start behind the left operand's.
    ///
    /// # Errors
    /// Where they are neither, or more than there are.
    pub fn new(columns: u32, depth: u32, behind: u32) -> Result<FirstLoads, String> {
        let part = |steps: Range<u32>, columns: Range<u32>| LoadPart { steps, columns };
        if behind.is_multiple_of(columns) && behind <= columns.saturating_mul(depth) {
            let before = depth - behind.checked_div(columns).unwrap_or(0);
            return Ok(FirstLoads {
                before: part(0..before, 0..columns),
                behind: part(before..depth, 0..columns),
            });
        }
        if depth == 1 && behind < columns {
            let before = columns - behind;
            return Ok(FirstLoads { before: part(0..1, 0..before), behind: part(0..1, before..columns) });
        }
        Err(format!("{behind} of {columns} × {depth} loads behind the wait"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each load is in one part.
    #[test]
    fn parts_are_all_loads() {
        for (columns, depth) in [(1, 1), (4, 1), (1, 3), (2, 4)] {
            let mut legal = Vec::new();
            for behind in 0..=columns * depth + 1 {
                let Ok(loads) = FirstLoads::new(columns, depth, behind) else { continue };
                let count = |p: &LoadPart| (p.steps.len() * p.columns.len()) as u32;
                assert_eq!((count(&loads.before), count(&loads.behind)), (columns * depth - behind, behind));
                legal.push(behind);
            }
            let whole = |behind: &u32| depth == 1 || behind.is_multiple_of(columns);
            assert_eq!(legal, (0..=columns * depth).filter(whole).collect::<Vec<_>>());
        }
    }
}
