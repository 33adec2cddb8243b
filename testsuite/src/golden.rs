//! Comparison of a run with Hugging Face's reference outputs, by the rules of `docs/architecture.md`.

use crate::fixture::{Fixture, folder, relative_rmse};
use serde_json::Value;
use weft::score::score;
use weft::tensors::{Ids, Input};
use weft_runtime::exec::Executor;

/// Margin between two candidates under which either is right.
const MARGIN: f32 = 0.01;

/// Rows of ids of equal length.
///
/// # Panics
/// When there are none.
pub fn ids(rows: Vec<Vec<u32>>) -> Ids {
    let len = rows.first().expect("a row").len();
    Ids { rows, len }
}

fn rows_of(values: &[i32], len: usize) -> Vec<Vec<u32>> {
    values.chunks(len).map(|r| r.iter().map(|&v| v as u32).collect()).collect()
}

/// The indices of the five largest.
pub fn top5(logits: &[f32]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..logits.len()).collect();
    order.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]).then(a.cmp(&b)));
    order.truncate(5);
    order
}

/// Log-probability of a token.
pub fn log_prob(logits: &[f32], token: usize) -> f64 {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|&l| f64::from(l - max).exp()).sum();
    f64::from(logits[token] - max) - sum.ln()
}

/// How far a run of a tiny checkpoint is from its golden.
#[derive(Clone, Debug)]
pub struct TinyReport {
    /// Relative rmse of `logits`.
    pub logits: f64,
    /// Relative rmse of `greedy_logits`, on the golden's tokens.
    pub greedy_logits: f64,
    /// Hugging Face's own 16-bit distance.
    pub hf_16bit: f64,
    /// Greedy choices that differ from the golden's where its margin is above 0.01.
    pub wrong_tokens: usize,
    /// First differing greedy tokens whose choices are outside each other's top five.
    pub outside_top5: usize,
}

/// Runs a tiny checkpoint and compares.
///
/// # Panics
/// When it does not run.
pub fn tiny(fixture: &Fixture, executor: &mut dyn Executor) -> TinyReport {
    tiny_at(fixture, executor, &|_, _| true)
}

/// As [`tiny`]; of the continuation, the steps (row, step) that are judged. A step's logits are those behind the token
/// before it: of step 0 the last of the input.
///
/// # Panics
/// As [`tiny`].
pub fn tiny_at(
    fixture: &Fixture,
    executor: &mut dyn Executor,
    judged: &dyn Fn(usize, usize) -> bool,
) -> TinyReport {
    let input = fixture.golden_ids("input_ids");
    let golden_ids = fixture.golden_ids("greedy_ids");
    let golden = fixture.golden_f32("logits");
    let golden_greedy = fixture.golden_f32("greedy_logits");
    let (length, steps) = (input.shape[1], golden_ids.shape[1]);
    let vocab = golden.shape[2];
    let request = Input {
        ids: ids(rows_of(&input.values, length)),
        continued: Some(ids(rows_of(&golden_ids.values, steps))),
    };
    let out = score(executor, &request, steps, &mut |_, _| {}).unwrap_or_else(|e| panic!("{e}"));
    let greedy = out.greedy.expect("a continuation");
    let hf = fixture.golden_json()["hf_16bit"]["rel_rmse"].as_f64().expect("hf_16bit");
    let of_judged = |values: &[f32]| -> Vec<f32> {
        let rows = values.chunks(vocab).enumerate().filter(|(at, _)| judged(at / steps, at % steps));
        rows.flat_map(|(_, row)| row).copied().collect()
    };
    let mut report = TinyReport {
        logits: relative_rmse(&out.logits, &golden.values),
        greedy_logits: relative_rmse(&of_judged(&greedy.logits), &of_judged(&golden_greedy.values)),
        hf_16bit: hf,
        wrong_tokens: 0,
        outside_top5: 0,
    };
    for row in 0..golden_ids.shape[0] {
        let mut differed = false;
        for n in (0..steps).filter(|&n| judged(row, n)) {
            let at = row * steps + n;
            let (ours, theirs) =
                (&greedy.logits[at * vocab..][..vocab], &golden_greedy.values[at * vocab..][..vocab]);
            let (a, b) = (greedy.ids[at] as usize, golden_ids.values[at] as usize);
            if a == b {
                continue;
            }
            let best = top5(theirs);
            if theirs[best[0]] - theirs[best[1]] > MARGIN {
                report.wrong_tokens += 1;
            }
            if !differed && (!best.contains(&a) || !top5(ours).contains(&b)) {
                report.outside_top5 += 1;
            }
            differed = true;
        }
    }
    report
}

/// How far a run of SmolLM2-135M-Instruct is from its golden, over the four prompts.
#[derive(Clone, Debug)]
pub struct TextReport {
    /// For each prompt, mean |Δ log-probability| of the golden tokens, teacher-forced.
    pub mean_abs_dlogprob: Vec<f64>,
    /// Hugging Face's own bf16 distance on the same.
    pub hf_bf16: Vec<f64>,
    /// Prompts whose first differing greedy token is outside the other's top five.
    pub outside_top5: usize,
}

/// Runs the prompts of `text/smollm2-135m-instruct.json` and compares.
///
/// # Panics
/// When they do not run.
pub fn smollm2(executor: &mut dyn Executor) -> TextReport {
    let text = std::fs::read_to_string(folder().join("text").join("smollm2-135m-instruct.json"));
    let all: Value = serde_json::from_str(&text.expect("texts")).expect("JSON");
    let list = |v: &Value| -> Vec<u32> {
        v.as_array().expect("ids").iter().map(|x| x.as_u64().expect("id") as u32).collect()
    };
    let mut report = TextReport { mean_abs_dlogprob: vec![], hf_bf16: vec![], outside_top5: 0 };
    for prompt in all.as_array().expect("prompts") {
        let golden = list(&prompt["greedy_ids"]);
        let steps = golden.len();
        let request =
            Input { ids: ids(vec![list(&prompt["input_ids"])]), continued: Some(ids(vec![golden.clone()])) };
        let out = score(executor, &request, steps, &mut |_, _| {}).unwrap_or_else(|e| panic!("{e}"));
        let greedy = out.greedy.expect("a continuation");
        let vocab = greedy.logits.len() / steps;
        let mut sum = 0.0;
        let mut differed = false;
        for (n, &token) in golden.iter().enumerate() {
            let ours = &greedy.logits[n * vocab..][..vocab];
            let theirs = prompt["greedy_logprobs"][n].as_f64().expect("log-probability");
            sum += (log_prob(ours, token as usize) - theirs).abs();
            let mine = greedy.ids[n] as usize;
            if mine != token as usize && !differed {
                differed = true;
                let their_five = prompt["top5"][n].as_array().expect("top5");
                let in_theirs = their_five.iter().any(|p| p[0].as_u64() == Some(mine as u64));
                if !in_theirs || !top5(ours).contains(&(token as usize)) {
                    report.outside_top5 += 1;
                }
            }
        }
        report.mean_abs_dlogprob.push(sum / steps as f64);
        report.hf_bf16.push(prompt["hf_bf16"]["mean_abs_dlogprob"].as_f64().expect("hf_bf16"));
    }
    report
}
