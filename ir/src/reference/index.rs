//! Rows by index: gather and scatter.

use super::error::OpError;
use super::layout::GRAIN;
use super::precision::Real;
use super::tensor::{Data, Tensor, map_data};
use rayon::prelude::*;
use std::sync::Arc;

/// Rows of a table: (table [n, rest…], index [i…]) → [i…, rest…].
///
/// # Errors
/// When an index is outside 0..n, when the indices are not i32, or when the table is a scalar.
pub fn gather<R: Real>(table: &Tensor<R>, index: &Tensor<R>) -> Result<Tensor<R>, OpError> {
    let (&extent, rest) =
        table.shape().split_first().ok_or_else(|| OpError::Shape("gather from a scalar".into()))?;
    let picks = index.to_ints()?;
    for (at, &i) in picks.iter().enumerate() {
        if usize::try_from(i).map_or(true, |i| i >= extent) {
            return Err(OpError::Index { index: i.into(), at, extent });
        }
    }
    let row: usize = rest.iter().product();
    let shape = index.shape().iter().chain(rest).copied().collect();
    let table = table.packed();
    let from = table.layout().offset;
    let data = map_data!(table.data(), v => gathered(&v[from..from + table.len()], row, &picks));
    Tensor::new(data, shape)
}

fn gathered<T: Copy + Default + Send + Sync>(v: &[T], row: usize, picks: &[i32]) -> Vec<T> {
    let mut out = vec![T::default(); picks.len() * row];
    if row == 0 {
        return out;
    }
    let copy = |(o, &i): (&mut [T], &i32)| o.copy_from_slice(&v[i as usize * row..(i as usize + 1) * row]);
    if out.len() < 2 * GRAIN {
        out.chunks_mut(row).zip(picks).for_each(copy);
    } else {
        // Rows a task takes: enough to be worth it.
        let many = GRAIN.div_ceil(row);
        out.par_chunks_mut(row * many)
            .zip(picks.par_chunks(many))
            .for_each(|(o, p)| o.chunks_mut(row).zip(p).for_each(copy));
    }
    out
}

/// Whether [`scatter`] would succeed.
///
/// # Errors
/// When an index is beyond the state, or shapes or kinds of elements do not fit.
pub fn check_scatter<R: Real>(state: &Tensor<R>, rows: &Tensor<R>, index: &Tensor<R>) -> Result<(), OpError> {
    let (&extent, rest) =
        state.shape().split_first().ok_or_else(|| OpError::Shape("scatter into a scalar".into()))?;
    let picks = index.to_ints()?;
    if index.shape().len() != 1 || rows.shape().split_first() != Some((&picks.len(), rest)) {
        return Err(OpError::Shape(format!(
            "rows {:?} at {:?} do not fit {:?}",
            rows.shape(),
            index.shape(),
            state.shape()
        )));
    }
    if rows.kind() != state.kind() {
        return Err(OpError::Type(format!("{:?} rows for a {:?} state", rows.kind(), state.kind())));
    }
    for (at, &i) in picks.iter().enumerate() {
        if i >= 0 && i as usize >= extent {
            return Err(OpError::Index { index: i.into(), at, extent });
        }
    }
    Ok(())
}

/// The state with rows replaced: in place when nothing else holds its data, else in a copy. A negative
/// index writes nothing; of rows with equal index the last one stays.
///
/// # Errors
/// As [`check_scatter`]; then the state is lost.
pub fn scatter<R: Real>(state: Tensor<R>, rows: &Tensor<R>, index: &Tensor<R>) -> Result<Tensor<R>, OpError> {
    check_scatter(&state, rows, index)?;
    let picks = index.to_ints()?;
    let rows = rows.packed();
    let mut state = if state.layout().is_packed() { state } else { state.packed() };
    let row: usize = state.shape()[1..].iter().product();
    let (from, base) = (rows.layout().offset, state.layout().offset);
    match (state.parts_mut().0, rows.data()) {
        (Data::Real(s), Data::Real(r)) => replace(&mut Arc::make_mut(s)[base..], &r[from..], row, &picks),
        (Data::Int(s), Data::Int(r)) => replace(&mut Arc::make_mut(s)[base..], &r[from..], row, &picks),
        (Data::U32(s), Data::U32(r)) => replace(&mut Arc::make_mut(s)[base..], &r[from..], row, &picks),
        (Data::Bool(s), Data::Bool(r)) => replace(&mut Arc::make_mut(s)[base..], &r[from..], row, &picks),
        (s, r) => return Err(OpError::Type(format!("{} and {} elements", s.len(), r.len()))),
    }
    Ok(state)
}

fn replace<T: Copy>(state: &mut [T], rows: &[T], row: usize, picks: &[i32]) {
    for (at, &i) in picks.iter().enumerate() {
        if let Ok(i) = usize::try_from(i) {
            state[i * row..(i + 1) * row].copy_from_slice(&rows[at * row..(at + 1) * row]);
        }
    }
}
