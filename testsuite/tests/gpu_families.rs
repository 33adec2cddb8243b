//! Every tiny checkpoint and every variant against Hugging Face's golden on the GPU, in the golden's 16-bit type: one
//! test a checkpoint, `LIST::NAME`. Those of `fixtures/tiny` at levels 0 and 2, those of `fixtures/variants` at 2.
//!
//! What is judged, of a decoder: the relative rmse of `logits`, and of `greedy_logits` on the golden's own tokens, each
//! at most [`MOST`] times the golden's yardstick, which is that of Hugging Face's 16-bit `logits` (there is none of
//! `greedy_logits`); and at the first greedy token of a row that differs, each choice in the other's top five. In
//! [`NEAR_TIES`] the steps of the continuation whose routers are at a near tie are left out of the latter two. Of an
//! encoder: the relative rmse of `last_hidden_state` where the mask is 1.
//!
//! Without a GPU all are ignored, after saying so.
//! `cargo test --release -p weft-testsuite --test gpu_families`

use libtest_mimic::{Arguments, Failed, Trial};
use std::path::PathBuf;
use std::sync::Arc;
use weft_frontend::models::{Kind, family};
use weft_ir::dtype::DType;
use weft_testsuite::fixture::{Fixture, List, checkpoints, compile};
use weft_testsuite::{encoder, golden, gpu, routers};

const MAX_BATCH: usize = 2;
/// How many times further than Hugging Face's own 16-bit run a model may be, and one with routed experts: a choice
/// at a near tie goes either way.
const MOST: (f64, f64) = (1.5, 2.0);
/// Checkpoints of which a 16-bit run takes other experts in the continuation, where float32's choice is within the
/// rounding: Hugging Face's own does, and is not in the golden's top five there. `near_ties` finds these steps on the
/// CPU (7 of 48), and shows that rounding chooses others nowhere else.
const NEAR_TIES: &[&str] = &["tiny/deepseek-v3"];

fn main() {
    let arguments = Arguments::from_args();
    let arch = if arguments.list { None } else { gpu::device().map(|d| d.arch()) };
    let lists = [(List::Tiny, &[0, 2][..], 64), (List::Variants, &[2][..], 32)];
    let mut trials = Vec::new();
    for (list, levels, max_seq) in lists {
        let folders = checkpoints(list);
        assert!(folders.len() > 1, "no checkpoints in {}", list.folder());
        for path in folders {
            let name = format!("{}::{}", list.folder(), path.file_name().expect("a name").to_string_lossy());
            let arch = arch.clone();
            let ignored = arch.is_none();
            let test = move || agrees(&arch.ok_or("no GPU")?, path, levels, max_seq);
            trials.push(Trial::test(name, test).with_ignored_flag(ignored));
        }
    }
    libtest_mimic::run(&arguments, trials).exit();
}

/// The golden's outputs, at each level. All figures are printed, and those of a failure are in its message.
fn agrees(arch: &str, path: PathBuf, levels: &[u8], max_seq: usize) -> Result<(), Failed> {
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let fixture = Fixture::at(path);
    let reports: Vec<(bool, String)> =
        levels.iter().map(|&level| at_level(arch, &fixture, level, max_seq)).collect::<Result<_, _>>()?;
    for (_, report) in &reports {
        println!("{name} {report}");
    }
    let failed: Vec<&str> = reports.iter().filter(|(close, _)| !close).map(|(_, r)| r.as_str()).collect();
    if failed.is_empty() { Ok(()) } else { Err(failed.join("\n").into()) }
}

/// Whether the outputs are close enough at a level, and how close.
fn at_level(arch: &str, fixture: &Fixture, level: u8, max_seq: usize) -> Result<(bool, String), Failed> {
    let checkpoint = &fixture.checkpoint;
    let hf = &fixture.golden_json()["hf_16bit"];
    let dtype = match hf["dtype"].as_str() {
        Some("bfloat16") => DType::BF16,
        Some("float16") => DType::F16,
        other => return Err(format!("golden.json: hf_16bit.dtype is {other:?}").into()),
    };
    let hf = hf["rel_rmse"].as_f64().ok_or("golden.json: no hf_16bit.rel_rmse")?;
    let most = hf * if checkpoint.config().experts.is_some() { MOST.1 } else { MOST.0 };
    let (kind, _) = family(checkpoint).map_err(|e| e.to_string())?;
    let graph = weft_frontend::models::build(checkpoint, dtype).map_err(|e| e.to_string())?;
    let plan = Arc::new(compile(&graph, arch, dtype, level, (max_seq, MAX_BATCH)));
    let mut model = gpu::load(&plan, checkpoint, false);
    let (close, said) = match kind {
        Kind::Decoder => {
            let ties = NEAR_TIES.iter().any(|name| fixture.folder().ends_with(name));
            let r = match ties {
                true => golden::tiny_at(fixture, &mut model, &routers::judged(fixture, dtype)),
                false => golden::tiny(fixture, &mut model),
            };
            (r.logits <= most && r.greedy_logits <= most && r.outside_top5 == 0, format!("{r:?}"))
        }
        Kind::Encoder => {
            let distance = encoder::tiny(fixture, &mut model);
            (distance <= most, format!("relative rmse {distance}, hf_16bit: {hf}"))
        }
    };
    Ok((close, format!("level {level} in {dtype}: {said}, at most {most}")))
}
