//! Every folder of `fixtures/variants` is a test: a tiny checkpoint with settings that its family's fixture in
//! `fixtures/tiny` does not have, against Hugging Face's golden on the CPU in f32: the graph itself, and the plan with
//! all fusions. `goldens/generate.py` makes them.
//!
//! A folder with `refused.json` (`{"field": …, "value": …}`) instead of a golden is a configuration that Weft does not
//! support: reading it must be an error that names both.

use libtest_mimic::{Arguments, Failed, Trial};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use weft_frontend::config::{MODEL_TYPES, hf};
use weft_frontend::models::{FAMILIES, Kind};
use weft_ir::dtype::DType;
use weft_ir::reference::Precision;
use weft_runtime::exec::{CpuModel, CpuOptions, Executor};
use weft_testsuite::fixture::{Bytes, Fixture, List, compile};
use weft_testsuite::{emulated_decoder, encoder, golden};

/// Longest context: 26 tokens of an encoder's row.
const MAX_SEQ: usize = 32;
const MAX_BATCH: usize = 2;
/// Relative rmse that float32 in another order of sums keeps below.
const CLOSE: f64 = 1e-4;
/// Families with variants but no builder yet: ignored until [`MODEL_TYPES`] has them.
const AWAITED: &[&str] = &["deepseek_v2", "glm4_moe", "granitemoe", "olmoe"];

/// Sizes that no tile divides, and ways to number heads.
const USUALLY_EMULATED: &[&str] = &["gemma2-odd", "gpt2-odd", "llama-odd"];

fn main() {
    let arguments = Arguments::from_args();
    libtest_mimic::run(&arguments, trials()).exit();
}

fn trials() -> Vec<Trial> {
    let folders = List::Variants.all();
    assert!(folders.len() > 1, "no variants");
    folders.into_iter().flat_map(|path| [Some(trial(path.clone())), emulated(path)]).flatten().collect()
}

fn trial(path: PathBuf) -> Trial {
    let name = path.file_name().expect("a name").to_string_lossy().into_owned();
    let awaited = is_awaited(&model_type(&path));
    let refused = path.join("refused.json").exists();
    let test = move || if refused { refuses(&path) } else { agrees(path) };
    Trial::test(name, test).with_ignored_flag(awaited)
}

/// A decoder's kernels at level 2 on the emulator. All of them take minutes (`--include-ignored`). A configuration that
/// cannot be read, and is not one to refuse, is a trial that fails.
fn emulated(path: PathBuf) -> Option<Trial> {
    let name = path.file_name().expect("a name").to_string_lossy().into_owned();
    let model_type = model_type(&path);
    if is_awaited(&model_type) || path.join("refused.json").exists() {
        return None;
    }
    let config = match hf::read(&path, &[]) {
        Ok(config) => config,
        Err(e) => {
            let unread = move || Err(Failed::from(e.to_string()));
            return Some(Trial::test(format!("emulated::{name}"), unread));
        }
    };
    let decodes = FAMILIES.iter().any(|f| f.model_type == config.model_type);
    let test = move || {
        emulated_decoder::decoder(&Fixture::at(path), 2);
        Ok(())
    };
    let usual = USUALLY_EMULATED.contains(&name.as_str());
    decodes.then(|| Trial::test(format!("emulated::{name}"), test).with_ignored_flag(!usual))
}

fn model_type(path: &Path) -> String {
    json(&path.join("config.json"))["model_type"].as_str().expect("model_type").to_owned()
}

fn is_awaited(model_type: &str) -> bool {
    AWAITED.contains(&model_type) && !MODEL_TYPES.contains(&model_type)
}

fn json(path: &Path) -> serde_json::Value {
    let text = std::fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    serde_json::from_slice(&text).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// The error names what it refuses.
fn refuses(path: &Path) -> Result<(), Failed> {
    let expected = json(&path.join("refused.json"));
    let Err(error) = hf::read(path, &[]) else { return Err("it was read".into()) };
    let said = error.to_string();
    for part in ["field", "value"].map(|key| expected[key].as_str().expect("text")) {
        if !said.contains(part) {
            return Err(format!("{part:?} is not in: {said}").into());
        }
    }
    Ok(())
}

/// The golden's outputs, at level 0 and at level 2.
fn agrees(path: PathBuf) -> Result<(), Failed> {
    let fixture = Fixture::at(path);
    let weights = Bytes(&fixture.checkpoint);
    let unknown = &fixture.checkpoint.config().unknown;
    if !unknown.is_empty() {
        return Err(format!("keys that Weft does not know: {unknown:?}").into());
    }
    let (kind, _) = weft_frontend::models::family(&fixture.checkpoint).map_err(|e| e.to_string())?;
    let graph = weft_frontend::models::build(&fixture.checkpoint, DType::F32).map_err(|e| e.to_string())?;
    let options = CpuOptions { max_seq: MAX_SEQ, max_batch: MAX_BATCH, ..CpuOptions::default() };
    let plain = CpuModel::graph(graph.clone(), &weights, &options).map_err(|e| e.to_string())?;
    compare(&fixture, kind, 0, plain)?;
    let plan = Arc::new(compile(&graph, "sm_90", DType::F32, 2, (MAX_SEQ, MAX_BATCH)));
    let fused = CpuModel::plan(plan, &weights, Precision::F32).map_err(|e| e.to_string())?;
    compare(&fixture, kind, 2, fused)
}

fn compare(fixture: &Fixture, kind: Kind, level: u8, mut model: impl Executor) -> Result<(), Failed> {
    let (close, report) = match kind {
        Kind::Decoder => {
            let report = golden::tiny(fixture, &mut model);
            let close = report.logits <= CLOSE && report.greedy_logits <= CLOSE && report.wrong_tokens == 0;
            (close, format!("{report:?}"))
        }
        Kind::Encoder => {
            let distance = encoder::tiny(fixture, &mut model);
            (distance <= CLOSE, format!("relative rmse {distance:e}"))
        }
    };
    if close { Ok(()) } else { Err(format!("level {level}: {report}").into()) }
}
