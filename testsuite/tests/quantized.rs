//! Safetensors checkpoints with weights in fewer bits: they give what the same weights, decoded beforehand, give.

use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView, serialize_to_file};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use weft_frontend::checkpoint::Checkpoint;
use weft_frontend::models::{self, blocks::ModelBuilder};
use weft_ir::decode::decode_f32;
use weft_ir::dtype::DType;
use weft_ir::reference::{self, Precision, States, StepInputs};
use weft_ir::shape::Bindings;
use weft_runtime::exec::{CpuModel, CpuOptions};
use weft_testsuite::fixture::{Bytes, Fixture, folder};
use weft_testsuite::golden::ids;

/// Type, extents and bytes.
type Tensor = (Dtype, Vec<usize>, Vec<u8>);

fn write(dir: &Path, quantization: Option<Value>, tensors: &BTreeMap<String, Tensor>) {
    let text = std::fs::read(folder().join("tiny/llama/config.json")).expect("reads");
    let mut config: serde_json::Map<String, Value> = serde_json::from_slice(&text).expect("JSON");
    if let Some(q) = quantization {
        config.insert("quantization_config".to_owned(), q);
    }
    std::fs::write(dir.join("config.json"), serde_json::to_vec(&config).expect("JSON")).expect("writes");
    let view = |(n, (d, s, b)): (&String, &Tensor)| {
        (n.clone(), TensorView::new(*d, s.clone(), b.clone().leak()).expect("a tensor"))
    };
    let views: BTreeMap<String, TensorView<'_>> = tensors.iter().map(view).collect();
    serialize_to_file(views, None, &dir.join("model.safetensors")).expect("writes");
}

fn f32s(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}

/// The 256 values of E4M3, from the golden.
fn e4m3() -> Vec<f32> {
    let bytes = std::fs::read(folder().join("encodings/golden.safetensors")).expect("reads");
    let file = SafeTensors::deserialize(&bytes).expect("a file");
    let every = file.tensor("e4m3.every").expect("codes");
    every.data().as_chunks::<4>().0.iter().map(|&b| f32::from_le_bytes(b)).collect()
}

/// The tiny llama, with its projections in E4M3 by blocks of `rows` × `columns`: stored so, and decoded.
fn fp8(rows: usize, columns: usize) -> [BTreeMap<String, Tensor>; 2] {
    let codes = e4m3();
    let source = Fixture::open("llama");
    let (mut stored, mut plain) = (BTreeMap::new(), BTreeMap::new());
    for t in source.checkpoint.tensors() {
        let mut values = vec![0.0; t.elements().expect("elements")];
        let bytes = source.checkpoint.bytes(&t.name).expect("bytes");
        decode_f32(t.encoding.expect("type"), bytes, &mut values).expect("decodes");
        if !t.name.contains("_proj.") {
            let whole = (Dtype::F32, t.shape.clone(), f32s(&values));
            stored.insert(t.name.clone(), whole.clone());
            plain.insert(t.name.clone(), whole);
            continue;
        }
        let (r, c) = (t.shape[0], t.shape[1]);
        let (down, across) = (r.div_ceil(rows), c.div_ceil(columns));
        let mut scales = vec![0f32; down * across];
        for (i, v) in values.iter().enumerate() {
            let s = &mut scales[i / c / rows * across + i % c / columns];
            *s = s.max(v.abs() / 448.0);
        }
        let mut elements = Vec::new();
        for (i, v) in values.iter_mut().enumerate() {
            let s = scales[i / c / rows * across + i % c / columns];
            let near = |code: &u8| (codes[usize::from(*code)] - *v / s).abs();
            let code = (0..=255u8).filter(|c| codes[usize::from(*c)].is_finite());
            let code = code.min_by(|a, b| near(a).total_cmp(&near(b))).expect("a code");
            *v = codes[usize::from(code)] * s;
            elements.push(code);
        }
        plain.insert(t.name.clone(), (Dtype::F32, t.shape.clone(), f32s(&values)));
        stored.insert(t.name.clone(), (Dtype::F8_E4M3, t.shape.clone(), elements));
        stored.insert(format!("{}_scale_inv", t.name), (Dtype::F32, vec![down, across], f32s(&scales)));
    }
    [stored, plain]
}

fn logits(dir: &Path, level: Option<u8>) -> Vec<f32> {
    let checkpoint = Checkpoint::open(dir).expect("opens");
    let weights = Bytes(&checkpoint);
    let options = CpuOptions { max_seq: 64, max_batch: 2, ..CpuOptions::default() };
    let dtype = if level.is_some() { DType::BF16 } else { DType::F32 };
    let graph = models::build(&checkpoint, dtype).expect("builds");
    let mut model = match level {
        None => CpuModel::graph(graph, &weights, &options).expect("loads"),
        Some(level) => {
            let plan = weft_testsuite::compile(&graph, "sm_90", dtype, level, (64, 2));
            CpuModel::plan(Arc::new(plan), &weights, Precision::Rounded).expect("loads")
        }
    };
    let rows = vec![(3..15).collect::<Vec<u32>>(), (40..52).collect()];
    let input = weft::tensors::Input { ids: ids(rows), continued: None };
    weft::score::score(&mut model, &input, 0, &mut |_, _| {}).unwrap_or_else(|e| panic!("{e}")).logits
}

/// Blocks that divide the matrices, and blocks that do not.
#[test]
fn fp8_in_blocks() {
    for (rows, columns) in [(64, 64), (24, 40), (128, 128)] {
        let [stored, plain] = fp8(rows, columns);
        let config = json!({
            "quant_method": "fp8", "activation_scheme": "dynamic", "fmt": "e4m3", "weight_block_size": [rows, columns]
        });
        let (a, b) = (tempfile::tempdir().expect("folder"), tempfile::tempdir().expect("folder"));
        write(a.path(), Some(config), &stored);
        write(b.path(), None, &plain);
        assert_eq!(logits(a.path(), None), logits(b.path(), None), "graph, {rows} x {columns}");
        assert_eq!(logits(a.path(), Some(2)), logits(b.path(), Some(2)), "plan, {rows} x {columns}");
        let checkpoint = Checkpoint::open(a.path()).expect("opens");
        let graph = models::build(&checkpoint, DType::BF16).expect("builds");
        let again = weft_ir::graph::parse(&graph.to_string()).expect("parses");
        assert_eq!(again, graph);
        assert!(graph.to_string().contains(&format!("e4m3_{rows}x{columns}[")));
    }
}

/// gpt-oss's experts: bytes of two elements, the low nibble first, and axes the other way round than unquantised.
#[test]
fn mxfp4_experts() {
    let (experts, rows, groups) = (2, 3, 2);
    let levels = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0];
    let blocks: Vec<u8> = (0..experts * rows * groups * 16).map(|i| (i * 37 + 11) as u8).collect();
    let scales: Vec<u8> = (0..experts * rows * groups).map(|i| 120 + i as u8).collect();
    let value = |e: usize, r: usize, c: usize| {
        let group = (e * rows + r) * groups + c / 32;
        let byte = blocks[group * 16 + c % 32 / 2];
        let nibble = if c.is_multiple_of(2) { byte & 15 } else { byte >> 4 };
        let sign = if nibble & 8 == 0 { 1.0 } else { -1.0 };
        sign * levels[usize::from(nibble & 7)] * (f32::from(scales[group]) - 127.0).exp2()
    };
    let mut tensors = BTreeMap::new();
    let name = "model.layers.0.mlp.experts.down_proj";
    tensors.insert(format!("{name}_blocks"), (Dtype::U8, vec![experts, rows, groups, 16], blocks.clone()));
    tensors.insert(format!("{name}_scales"), (Dtype::U8, vec![experts, rows, groups], scales.clone()));
    let dir = tempfile::tempdir().expect("folder");
    write(dir.path(), Some(json!({"quant_method": "mxfp4"})), &tensors);
    let checkpoint = Checkpoint::open(dir.path()).expect("opens");
    let width = groups * 32;
    assert!(checkpoint.has(name));
    assert_eq!(checkpoint.source(name).expect("found").shape, [experts, width, rows]);
    let mut m = ModelBuilder::new(&checkpoint, DType::F32);
    let w = m.weight(name, &[experts, width, rows]);
    m.g.output("w", w);
    let graph = m.finish().expect("a graph");
    let loaded = reference::load::<f32>(&graph, &Bytes(&checkpoint), Precision::F32).expect("loads");
    let none = Bindings { tokens: 0, seqs: 0, rows: 0, context: 0, slots: 0 };
    let inputs = StepInputs::default();
    let out = reference::step(&graph, &loaded, &none, &inputs, &mut States::new()).expect("a step");
    let tensor = out.get("w").expect("a value").to_reals().expect("reals");
    let wanted = (0..experts * width * rows).map(|i| value(i / (width * rows), i % rows, i / rows % width));
    assert_eq!(tensor, wanted.collect::<Vec<f32>>());
    assert!(checkpoint.unused(&[name.to_owned()]).is_empty());
}

/// What is wrong with quantised tensors is said when the checkpoint is opened.
#[test]
fn misfits_are_named() {
    let fp8_config = |size: Value| json!({"quant_method": "fp8", "weight_block_size": size});
    let bad = |q: Value, change: &dyn Fn(&mut BTreeMap<String, Tensor>), parts: &[&str]| {
        let [mut stored, _] = fp8(64, 64);
        change(&mut stored);
        let dir = tempfile::tempdir().expect("folder");
        write(dir.path(), Some(q), &stored);
        let text = Checkpoint::open(dir.path()).expect_err("refuses").to_string();
        for part in parts {
            assert!(text.contains(part), "{part:?} is not in: {text}");
        }
    };
    let good = || fp8_config(json!([64, 64]));
    let up = "model.layers.1.mlp.up_proj.weight";
    let scale = "model.layers.1.mlp.up_proj.weight_scale_inv";
    bad(good(), &|t| drop(t.remove(scale)), &["model.safetensors", scale, up, "needs its scales"]);
    bad(fp8_config(json!([64, 32])), &|_| (), &["weight_scale_inv", "its shape is", "have ["]);
    bad(
        good(),
        &|t| t.get_mut(scale).expect("there").0 = Dtype::I32,
        &[scale, "I32", "F32, F16, BF16, F8_E8M0"],
    );
    bad(json!({"quant_method": "mxfp4"}), &|_| (), &["config.json", "Mxfp4", "no tensor is stored so"]);
    for method in ["gptq", "awq", "bitsandbytes", "compressed-tensors", "hqq", "fbgemm_fp8", "torchao"] {
        let parts = ["config.json", &format!("quantization_config.quant_method = {method}"), "mxfp4", "GGUF"];
        bad(json!({"quant_method": method}), &|_| (), &parts);
    }
    bad(json!({"bits": 4}), &|_| (), &["quantization_config.quant_method is missing", "fp8"]);
    bad(json!("fp8"), &|_| (), &["quantization_config", "not an object"]);
    bad(json!({"quant_method": "fp8"}), &|_| (), &["weight_block_size is missing"]);
    for size in
        [json!([64]), json!([0, 64]), json!([64, -1]), json!(64), json!([64.5, 64]), json!([1u64 << 33, 1])]
    {
        bad(fp8_config(size), &|_| (), &["quantization_config.weight_block_size", "two positive integers"]);
    }
    let other = |key: &str, value: Value| {
        let mut q = good();
        q[key] = value;
        q
    };
    bad(other("activation_scheme", json!("static")), &|_| (), &["activation_scheme = static", "dynamic"]);
    bad(other("fmt", json!("e5m2")), &|_| (), &["quantization_config.fmt = e5m2"]);
    bad(other("kv_cache_scheme", json!({"bits": 8})), &|_| (), &["quantization_config.kv_cache_scheme"]);
    let blocks = |t: &mut BTreeMap<String, Tensor>| {
        t.insert("x_blocks".to_owned(), (Dtype::U8, vec![2, 15], vec![0; 30]));
    };
    bad(json!({"quant_method": "mxfp4"}), &blocks, &["x_blocks", "is not [..., rows, groups, 16]"]);
}
