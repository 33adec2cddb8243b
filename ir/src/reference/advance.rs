//! From a decode step to the next.

use super::error::OpError;
use super::precision::Real;
use super::tensor::Tensor;
use crate::generation::{self, Rows, Rules};
use crate::plan::Advance;

/// (tokens, stop tokens, cancel; token ids, positions, slots, remaining, step, stream) → the last six, changed:
/// see [`crate::generation`] and [`crate::plan::Control`].
///
/// # Errors
/// When shapes or kinds of elements do not fit, or the stream has no room for the step.
pub fn advance<R: Real>(
    a: &Advance,
    reads: &[Tensor<R>],
    writes: &[Tensor<R>],
) -> Result<Vec<Tensor<R>>, OpError> {
    let ints = |list: &[Tensor<R>]| list.iter().map(Tensor::to_ints).collect::<Result<Vec<_>, OpError>>();
    let (read, mut written) = (ints(reads)?, ints(writes)?);
    let ([tokens, stop, cancel], [ids, positions, slots, remaining, step, stream]) =
        (&read[..], &mut written[..])
    else {
        let got = (reads.len(), writes.len());
        return Err(OpError::Shape(format!("an advance reads 3 and writes 6 arrays, got {got:?}")));
    };
    let rows = remaining.len();
    if [tokens, cancel].iter().any(|x| x.len() != rows)
        || [&*ids, &*positions, &*slots].iter().any(|x| x.len() != rows)
    {
        return Err(OpError::Shape(format!("the arrays of an advance have not {rows} elements each")));
    }
    let count = stop.first().and_then(|&n| usize::try_from(n).ok());
    let stop_tokens = count.and_then(|n| stop.get(1..=n)).unwrap_or_default();
    if count != Some(stop_tokens.len()) {
        return Err(OpError::Shape(format!("{stop:?} is not a number of stop tokens and they")));
    }
    let done = step.first().and_then(|&n| usize::try_from(n).ok());
    let shown = done.and_then(|n| stream.get_mut(n * rows..(n + 1) * rows));
    let (Some(shown), Some(step)) = (shown, step.first_mut()) else {
        return Err(OpError::Shape(format!("the stream has no room for step {step:?}")));
    };
    let mut state = Rows { token_ids: ids, positions, slots, remaining };
    let rules = Rules { stop_tokens, context: a.context };
    let made = generation::advance(&mut state, tokens, cancel, &rules);
    for (to, token) in shown.iter_mut().zip(made) {
        if token != generation::EMPTY {
            *to = token;
        }
    }
    *step += 1;
    written.into_iter().zip(writes).map(|(v, old)| Tensor::int(v, old.shape().to_vec())).collect()
}
