//! Penalties, and sampling of one token a row.

use super::error::OpError;
use super::precision::Real;
use super::tensor::Tensor;
use crate::sampling::{Params, Penalties, penalize_row, sample_row};
use rayon::prelude::*;

/// (logits `[r, v]`, position `[r]`, temperature, top_k, top_p, min_p, seed `[r]`) → token `[r]`. See
/// [`crate::sampling`]; logits are rounded to f32 first.
///
/// # Errors
/// When shapes or kinds of elements do not fit, or a logit is NaN.
pub fn sample<R: Real>(inputs: &[Tensor<R>]) -> Result<Tensor<R>, OpError> {
    let [logits, position, temperature, top_k, top_p, min_p, seed] = inputs else {
        return Err(OpError::Shape(format!("sample takes 7 operands, got {}", inputs.len())));
    };
    let &[rows, vocab] = logits.shape() else {
        return Err(OpError::Shape(format!("logits {:?} are not [rows, vocabulary]", logits.shape())));
    };
    for x in &inputs[1..] {
        if x.shape() != [rows] {
            return Err(OpError::Shape(format!("{:?} is not [{rows}]", x.shape())));
        }
    }
    let (position, seed) = (position.to_ints()?, seed.to_u32s()?);
    let (temperature, top_k) = (temperature.to_reals()?, top_k.to_ints()?);
    let (top_p, min_p) = (top_p.to_reals()?, min_p.to_reals()?);
    let logits = logits.to_reals()?;
    let tokens = (0..rows).into_par_iter().map(|r| {
        let row: Vec<f32> = logits[r * vocab..(r + 1) * vocab].iter().map(|l| l.to_f32()).collect();
        let params = Params {
            temperature: temperature[r].to_f32(),
            top_k: top_k[r],
            top_p: top_p[r].to_f32(),
            min_p: min_p[r].to_f32(),
            seed: seed[r],
        };
        match sample_row(&row, position[r], &params) {
            token if token < 0 => Err(OpError::NanLogits(r)),
            token => Ok(token),
        }
    });
    Tensor::int(tokens.collect::<Result<Vec<i32>, OpError>>()?, vec![rows])
}

/// (logits `[r, v]`, history `[n]`, base, position, prompt, repetition, presence `[r]`) → logits `[r, v]`. See
/// [`crate::sampling`]; logits are rounded to f32 first.
///
/// # Errors
/// When shapes or kinds of elements do not fit, or a row's tokens are not all in the history.
pub fn penalize<R: Real>(inputs: &[Tensor<R>]) -> Result<Tensor<R>, OpError> {
    let [logits, history, base, position, prompt, repetition, presence] = inputs else {
        return Err(OpError::Shape(format!("penalize takes 7 operands, got {}", inputs.len())));
    };
    let &[rows, vocab] = logits.shape() else {
        return Err(OpError::Shape(format!("logits {:?} are not [rows, vocabulary]", logits.shape())));
    };
    if let Some(x) = inputs[2..].iter().find(|x| x.shape() != [rows]) {
        return Err(OpError::Shape(format!("{:?} is not [{rows}]", x.shape())));
    }
    let (history, base) = (history.to_ints()?, base.to_ints()?);
    let (position, prompt) = (position.to_ints()?, prompt.to_ints()?);
    let (repetition, presence) = (repetition.to_reals()?, presence.to_reals()?);
    let mut out = logits.to_reals()?;
    for r in 0..rows {
        let penalties = Penalties { repetition: repetition[r].to_f32(), presence: presence[r].to_f32() };
        if penalties == Penalties::NONE {
            continue;
        }
        let last = i64::from(base[r]) + i64::from(position[r]);
        let past = usize::try_from(base[r]).ok().and_then(|from| history.get(from..=last.max(0) as usize));
        let past = past.ok_or(OpError::Index { index: last, at: r, extent: history.len() })?;
        let row = &mut out[r * vocab..(r + 1) * vocab];
        let mut values: Vec<f32> = row.iter().map(|l| l.to_f32()).collect();
        penalize_row(&mut values, past, prompt[r].max(0) as usize, &penalties);
        row.iter_mut().zip(values).for_each(|(l, v)| *l = R::from_f32(v));
    }
    Tensor::real(out, vec![rows, vocab])
}
