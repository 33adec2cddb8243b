use super::Text;
use weft_runtime::exec::bench::figures::Spread;
use weft_runtime::exec::bench::{KernelTime, Report, report::Prompt, report::Rated};
use weft_runtime::exec::{LoadReport, UploadReport};

fn spread(median: f64) -> Spread {
    Spread { median, lowest: median * 0.99, highest: median * 1.01 }
}

fn rated(median: f64, bytes: u64, chain: f64) -> Rated {
    Rated { seconds: spread(median), rate: bytes as f64 / median, of_chain: median / chain }
}

fn report() -> Report {
    let kernel = |name: &str, launches, bytes: u64, seconds| KernelTime {
        name: name.into(),
        scope: "model.layers.0.mlp.down_proj".into(),
        launches,
        bytes,
        flops: bytes,
        seconds: spread(seconds),
        rate: bytes as f64 / seconds,
        of_ceiling: bytes as f64 / seconds / 4.0e12,
        in_l2: name == "argmax_row",
        one_place: name == "argmax_row",
    };
    Report {
        estimated: false,
        device: "NVIDIA H200".into(),
        target: "sm_90".into(),
        dtype: "bf16".into(),
        entry: "decode_1".into(),
        batch: 1,
        context: 1024,
        tokens: 256,
        runs: 5,
        counted_context: 1152,
        kernels: vec![
            kernel("down_proj_gemv_1", 16, 33_554_432, 9.0e-6),
            kernel("argmax_row", 1, 256_000, 4.0e-6),
        ],
        launches: 17,
        bytes: 537_126_912,
        kernels_s: 148.0e-6,
        token: Some(rated(160.0e-6, 537_126_912, 134.0e-6)),
        step: rated(150.0e-6, 537_126_912, 134.0e-6),
        chain: rated(134.0e-6, 537_126_912, 134.0e-6),
        prompt: Some(Prompt { tokens: 16, seconds: spread(420.0e-6), of_step: 2.8 }),
        mode: Some("a graph launch a token, each from the host".into()),
        compared_tokens: 256,
    }
}

#[test]
fn measured_text() {
    let report = report();
    let upload = UploadReport { bytes: 537_000_000, seconds: 0.05, rate: 10.74e9, threads: 16, filling: 0.4 };
    let load = LoadReport { upload, compile_seconds: 0.03, seconds: 0.25, ..LoadReport::default() };
    insta::assert_snapshot!(
        "bench_measured",
        Text { model: "llama.weft".into(), report: &report, load: Some(load) }.to_string()
    );
}

#[test]
fn estimated_text() {
    let mut report = report();
    report.estimated = true;
    report.token = None;
    report.mode = None;
    for kernel in &mut report.kernels {
        (kernel.in_l2, kernel.one_place) = (false, false);
        kernel.seconds =
            Spread { lowest: kernel.seconds.median, highest: kernel.seconds.median, ..kernel.seconds };
    }
    let text = Text { model: "llama.weft".into(), report: &report, load: None }.to_string();
    assert!(text.contains("ESTIMATED") && text.contains("nothing was measured") && text.contains("est. µs"));
    assert!(text.contains("first token of a prompt of 16 tokens") && !text.contains("loaded in"), "{text}");
    assert!(!text.contains("measured on") && !text.contains("a token "), "{text}");
}
