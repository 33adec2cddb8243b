//! Every kernel of the tiny llama's plan runs on the emulator, at both ends of the optimisation levels, and
//! matches the reference on the same inputs; the run as a whole matches Hugging Face.

use weft_ir::dtype::DType;
use weft_testsuite::emulate::{Emulated, ragged};
use weft_testsuite::fixture::{Fixture, compile, relative_rmse};

const MAX_SEQ: usize = 48;

fn check(name: &str, opt_level: u8) {
    let fixture = Fixture::open(name);
    let graph = fixture.graph(DType::BF16);
    let plan = compile(&graph, "sm_90", DType::BF16, opt_level, (MAX_SEQ, 2));
    let entry = |name: &str| plan.entries.iter().find(|e| e.name == name).expect(name);
    let ids = fixture.golden_ids("input_ids");
    let logits = fixture.golden_f32("logits");
    let (length, vocab) = (ids.shape[1], logits.shape[2]);
    let row = |r: usize| &ids.values[r * length..(r + 1) * length];

    let mut run = Emulated::new(&plan, &fixture.checkpoint);
    let mut distances = Vec::new();
    let compare = |run: &Emulated<'_>, rows: &[(usize, usize)]| {
        let got = run.output("logits");
        for (i, &(r, t)) in rows.iter().enumerate() {
            let golden = &logits.values[(r * length + t) * vocab..][..vocab];
            let distance = relative_rmse(&got[i * vocab..][..vocab], golden);
            assert!(distance < 0.06, "{name} row {r} token {t}: {distance}");
        }
    };
    // Two sequences of 20 and 30 tokens, then one token each.
    let score = entry("score_64");
    let inputs = ragged(score, &[(&row(0)[..20], 0), (&row(1)[..30], 0)], MAX_SEQ, true);
    distances.extend(run.step("score_64", &inputs));
    let rows: Vec<(usize, usize)> = (0..20).map(|t| (0, t)).chain((0..30).map(|t| (1, t))).collect();
    compare(&run, &rows);
    let decode = entry("decode_2");
    let inputs = ragged(decode, &[(&row(0)[20..21], 20), (&row(1)[30..31], 30)], MAX_SEQ, true);
    distances.extend(run.step("decode_2", &inputs));
    compare(&run, &[(0, 20), (1, 30)]);
    let prefill = entry("prefill_16");
    let inputs = ragged(prefill, &[(&row(0)[21..26], 21), (&row(1)[31..40], 31)], MAX_SEQ, false);
    distances.extend(run.step("prefill_16", &inputs));
    compare(&run, &[(0, 25), (1, 39)]);

    let far: Vec<_> = distances.iter().filter(|d| !d.is_close()).collect();
    assert!(far.is_empty(), "{} of {} kernels are too far: {far:#?}", far.len(), distances.len());
}

#[test]
fn llama_unfused() {
    check("llama", 0);
}

#[test]
fn llama_fused() {
    check("llama", 2);
}

#[test]
fn llama_rope3_tied_fused() {
    check("llama-rope3-tied", 2);
}
