//! Axes permuted as runs: where the innermost axes stay, whole rows move, and a row is a contiguous run.

use super::{Linear, Piece};

/// Fewest elements of a run: shorter ones cost more to find than to compute.
const SHORTEST: usize = 32;

/// A value with its axes permuted; `None` where what stays innermost is too short, or inside a block.
pub(super) fn permuted<'a>(l: &Linear<'a>, perm: &[usize]) -> Option<Linear<'a>> {
    let rank = l.shape.len();
    let mut seen = vec![false; rank];
    for &axis in perm {
        *seen.get_mut(axis)? = true;
    }
    if perm.len() != rank || seen.contains(&false) {
        return None;
    }
    let shape: Vec<usize> = perm.iter().map(|&axis| l.shape[axis]).collect();
    let stay = (0..rank).rev().take_while(|&i| perm[i] == i).count();
    let outer = rank - stay;
    let run: usize = l.shape[outer..].iter().product();
    if outer > 0 && run < SHORTEST {
        return None;
    }
    // In runs, of the value's own axes.
    let mut strides = vec![1; outer];
    for i in (1..outer).rev() {
        strides[i - 1] = strides[i] * l.shape[i];
    }
    let mut end = 0;
    let ends: Vec<usize> = l
        .pieces
        .iter()
        .map(|p| {
            end += p.elements;
            end
        })
        .collect();
    let runs: usize = shape[..outer].iter().product();
    let (mut pieces, mut at) = (Vec::with_capacity(runs), vec![0; outer]);
    for _ in 0..runs {
        let from: usize = at.iter().zip(perm).map(|(&x, &axis)| x * strides[axis]).sum();
        take(&l.pieces, &ends, from * run, run, &mut pieces)?;
        for i in (0..outer).rev() {
            at[i] += 1;
            if at[i] < shape[i] {
                break;
            }
            at[i] = 0;
        }
    }
    Some(Linear { pieces, shape })
}

/// Adds elements `from..from + len` of pieces that end at these elements.
fn take<'a>(
    pieces: &[Piece<'a>],
    ends: &[usize],
    mut from: usize,
    mut len: usize,
    out: &mut Vec<Piece<'a>>,
) -> Option<()> {
    let mut i = ends.partition_point(|&end| end <= from);
    while len > 0 {
        let piece = pieces.get(i)?;
        let skip = from - (ends[i] - piece.elements);
        let n = (piece.elements - skip).min(len);
        out.push(piece.part(skip, n)?);
        (from, len, i) = (from + n, len - n, i + 1);
    }
    Some(())
}
