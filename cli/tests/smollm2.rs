//! A real model, end to end on the CPU: prompts through chat template, tokenizer, plan and sampling to the
//! tokens that Hugging Face chose. Skipped where the model was not fetched.

mod common;
#[path = "../../frontend/tests/common/mod.rs"]
mod gguf;

use common::{command, finish, fixture};
use serde_json::Value;
use std::fs;

/// Tokens to compare for each prompt.
const TOKENS: usize = 24;
/// Differences between the golden's two best log-probabilities under which either token is right.
const MARGIN: f64 = 0.01;

#[test]
fn four_prompts_get_the_golden_answers() {
    let Some(model) = gguf::smollm2() else { return };
    let golden = fs::read(fixture("text/smollm2-135m-instruct.json")).expect("reads");
    let golden: Value = serde_json::from_slice(&golden).expect("JSON");
    let golden = golden.as_array().expect("a list of prompts");
    let dir = tempfile::tempdir().expect("a temporary folder");
    let mut run = command(dir.path());
    run.arg("run").arg(model);
    run.args(golden.iter().filter_map(|g| g["prompt"].as_str()));
    run.args(["--device", "cpu", "--max-seq", "512", "--json", "--max-new-tokens", &TOKENS.to_string()]);
    let run = finish(&mut run);
    let out: Value = serde_json::from_str(run.ok()).expect("JSON");
    let answers = out["answers"].as_array().expect("answers");
    assert_eq!(answers.len(), golden.len());
    for (golden, answer) in golden.iter().zip(answers) {
        let prompt = &golden["prompt"];
        let prompt_tokens = golden["input_ids"].as_array().map(Vec::len);
        assert_eq!(answer["prompt_tokens"].as_u64(), prompt_tokens.map(|n| n as u64), "{prompt}");
        let wanted = golden["greedy_ids"].as_array().expect("ids");
        let got = answer["token_ids"].as_array().expect("ids");
        let mut compared = 0;
        for (step, (wanted, got)) in wanted.iter().zip(got).take(TOKENS).enumerate() {
            if wanted != got {
                let best = |i: usize| golden["top5"][step][i][1].as_f64().expect("a log-probability");
                assert!(best(0) - best(1) <= MARGIN, "{prompt}, step {step}: {got} instead of {wanted}");
                break; // Either token is right, and what follows differs.
            }
            compared += 1;
        }
        assert!(compared >= 4, "{prompt}: only {compared} tokens could be compared");
    }
}
