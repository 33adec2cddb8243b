//! Sampling of one token a row.

use super::error::OpError;
use super::precision::Real;
use super::tensor::Tensor;
use crate::sampling::{Params, sample_row};
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
