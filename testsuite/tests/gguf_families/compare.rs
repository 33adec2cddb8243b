//! A folder and the GGUF file made of it agree.

use crate::convert::convert;
use weft_frontend::checkpoint::Checkpoint;
use weft_ir::dtype::DType;
use weft_runtime::exec::{CpuModel, CpuOptions};
use weft_testsuite::fixture::{Bytes, Fixture, relative_rmse};
use weft_testsuite::gguf::Meta;
use weft_testsuite::golden::{ids, tiny};

fn model(checkpoint: &Checkpoint) -> CpuModel {
    let options = CpuOptions { max_seq: 64, max_batch: 2, ..CpuOptions::default() };
    let graph = weft_frontend::models::build(checkpoint, DType::F32).unwrap_or_else(|e| panic!("{e}"));
    CpuModel::graph(graph, &Bytes(checkpoint), &options).unwrap_or_else(|e| panic!("{e}"))
}

fn logits(checkpoint: &Checkpoint) -> Vec<f32> {
    let rows = vec![(3..31).collect::<Vec<u32>>(), (20..48).rev().collect()];
    let input = weft::tensors::Input { ids: ids(rows), continued: None };
    let out = weft::score::score(&mut model(checkpoint), &input, 0, &mut |_, _| {});
    out.unwrap_or_else(|e| panic!("{e}")).logits
}

/// A folder and its GGUF file agree.
pub fn agree(hf: &Checkpoint, arch: &'static str, more: &[(&str, Meta)]) {
    agree_with(hf, arch, more, &[]);
}

/// With tensors of rope factors.
pub fn agree_with(hf: &Checkpoint, arch: &'static str, more: &[(&str, Meta)], factors: &[(&str, Vec<f32>)]) {
    let dir = tempfile::tempdir().expect("folder");
    let path = dir.path().join("model.gguf");
    convert(hf, arch, more, factors, &path);
    let gguf = Checkpoint::open(&path).unwrap_or_else(|e| panic!("{e}"));
    let gguf = gguf.reaching(hf.config().max_position);
    assert!(gguf.config().unknown.is_empty(), "{:?}", gguf.config().unknown);
    let graph = weft_frontend::models::build(&gguf, DType::F32).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(gguf.unused(&weft::model::used_tensors(&graph)), Vec::<String>::new());
    let (wanted, found) = (logits(hf), logits(&gguf));
    let distance = relative_rmse(&found, &wanted);
    assert!(wanted.iter().any(|&x| x.abs() > 0.01) && distance <= 2e-6, "{arch}: {distance}");
}

/// A tiny checkpoint with a golden: it gives that, too.
pub fn golden(name: &str, arch: &'static str, more: &[(&str, Meta)]) {
    let source = Fixture::open(name);
    agree(&source.checkpoint, arch, more);
    let dir = tempfile::tempdir().expect("folder");
    convert(&source.checkpoint, arch, more, &[], &dir.path().join("model.gguf"));
    let folder = weft_testsuite::fixture::folder().join("tiny").join(name);
    for file in ["golden.safetensors", "golden.json"] {
        std::fs::copy(folder.join(file), dir.path().join(file)).expect("copies");
    }
    let fixture = Fixture::open(dir.path().to_str().expect("a path"));
    let report = tiny(&fixture, &mut model(&fixture.checkpoint));
    assert!(report.logits <= 1e-4 && report.greedy_logits <= 1e-4, "{name}: {report:?}");
}
