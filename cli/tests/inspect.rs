//! `weft inspect`, and what `weft compile` tells of itself: dumps, pictures, ablation.

mod common;

use common::{command, finish, fixture, weft};
use serde_json::Value;
use std::fs;
use std::io::Write;
use std::path::Path;

const QKV: &str = "q_proj_k_proj_v_proj_gemv_1";

fn folder() -> tempfile::TempDir {
    tempfile::tempdir().expect("a temporary folder")
}

/// Compiles the tiny llama to `b`, without NVRTC.
fn compile(dir: &Path, more: &[&str]) -> common::Run {
    let mut command = command(dir);
    command.arg("compile").arg(fixture("tiny/llama")).args(["--target", "sm_90", "--no-check", "-o", "b"]);
    finish(command.args(more))
}

/// `weft inspect b`, with no NVRTC.
fn inspect(dir: &Path, args: &[&str]) -> common::Run {
    let mut command = command(dir);
    command.env("WEFT_NVRTC", dir.join("nowhere")).env("WEFT_NVDISASM", dir.join("nowhere"));
    finish(command.args(["inspect", "b"]).args(args))
}

/// `weft inspect b` with NVRTC, where there is one.
fn inspect_with_nvrtc(dir: &Path) -> std::process::Command {
    let kept = Path::new(env!("CARGO_MANIFEST_DIR")).join("../.weft/nvrtc");
    let mut command = command(dir);
    if kept.is_dir() && std::env::var_os("WEFT_NVRTC").is_none() {
        command.env("WEFT_NVRTC", &kept);
    }
    command.args(["inspect", "b"]);
    command
}

fn json(run: &common::Run) -> Value {
    serde_json::from_str(run.ok()).expect("JSON")
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

#[test]
fn the_table_of_a_decode_step() {
    let dir = folder();
    compile(dir.path(), &[]).ok();
    insta::assert_snapshot!(inspect(dir.path(), &[]).ok());
}

#[test]
fn json_has_the_same_and_adds_up() {
    let dir = folder();
    compile(dir.path(), &[]).ok();
    for entry in ["decode_1", "prefill_64"] {
        let report = json(&inspect(dir.path(), &["--entry", entry, "--json"]));
        assert_eq!(report["entry"], entry);
        let (mut launches, mut bytes, mut flops, mut time) = (0, 0, 0, 0.0);
        for k in list(&report["kernels"]) {
            let n = |field: &str| k[field].as_u64().unwrap_or_else(|| panic!("{field}: {k}"));
            launches += n("launches");
            bytes += n("launches") * (n("bytes_read") + n("bytes_written"));
            flops += n("launches") * n("flops");
            time += n("launches") as f64 * k["estimated_s"].as_f64().expect("a time");
            assert!(k["registers"].is_null() && n("block") > 0 && n("bytes_written") > 0, "{k}");
            assert!(list(&k["entries"]).contains(&entry.into()), "{k}");
        }
        let step = &report["step"];
        assert_eq!(step["launches"], launches);
        assert_eq!((step["bytes"].as_u64(), step["flops"].as_u64()), (Some(bytes), Some(flops)));
        assert!((step["estimated_s"].as_f64().expect("a time") - time).abs() < 1e-12);
        assert!(report["nvrtc_note"].as_str().is_some_and(|note| note.contains("pip install")), "{report}");
    }
    // Each weight of the decode step is read once: 2 layers, 128 wide, 4+2+2 heads of 32, 192 inside, 256 tokens.
    let decode = json(&inspect(dir.path(), &["--json", "--context", "1"]));
    let bytes = decode["step"]["bytes"].as_u64().expect("a number");
    let weights = 2 * (2 * (128 * 256 + 128 * 128 + 3 * 128 * 192) + 256 * 128);
    assert!(bytes > weights && bytes < weights + weights / 10, "{bytes} bytes, {weights} of weights");
    let longer = json(&inspect(dir.path(), &["--json", "--context", "256"]));
    // Keys and values of 255 more tokens: 2 layers of 2 heads of 32 in bf16.
    let more = longer["step"]["bytes"].as_u64().expect("a number") - bytes;
    assert_eq!(more, 255 * 2 * 2 * 2 * 32 * 2);
}

#[test]
fn what_is_not_there_is_named() {
    let dir = folder();
    compile(dir.path(), &[]).ok();
    for option in ["--kernel", "--explain"] {
        let wrong = "q_proj_gemv_1";
        inspect(dir.path(), &[option, wrong]).fails(2, &[wrong, "no such kernel", "nearest", QKV]);
    }
    inspect(dir.path(), &["--entry", "decode_3"]).fails(2, &["decode_3", "decode_1, decode_2"]);
    inspect(dir.path(), &["--context", "100000"]).fails(2, &["--context", "256"]);
    inspect(dir.path(), &["--kernel", QKV, "--emit", "ptx"]).fails(1, &["NVRTC", "pip install"]);
    let sass = inspect(dir.path(), &["--kernel", QKV, "--emit", "sass"]);
    sass.fails(1, &["WEFT_NVDISASM", "pip download", "nvidia-cuda-nvdisasm"]);
    inspect(dir.path(), &["--emit", "ptx"]).fails(2, &["--kernel"]);
    // What prints no code takes no form of it, rather than ignore it.
    for other in [["--explain", QKV], ["--entry", "decode_1"], ["--context", "64"]] {
        let run = inspect(dir.path(), &[&other[..], &["--emit", "sass"]].concat());
        run.fails(2, &["--emit", other[0], "cannot be used with"]);
    }
    inspect(dir.path(), &["--emit", "sass", "--json"]).fails(2, &["--emit", "--json", "cannot be used with"]);
    let llama = fixture("tiny/llama");
    weft(dir.path(), ["inspect".as_ref(), llama.as_os_str()]).fails(2, &["not a bundle", "weft compile"]);
    fs::remove_file(dir.path().join("b/explain.json")).expect("removes");
    inspect(dir.path(), &["--explain", QKV]).fails(2, &["explain.json"]);
}

#[test]
fn code_in_three_forms() {
    let dir = folder();
    compile(dir.path(), &[]).ok();
    let kept = fs::read_to_string(dir.path().join(format!("b/kernels/{QKV}.cu"))).expect("reads");
    assert_eq!(inspect(dir.path(), &["--kernel", QKV]).ok(), kept);
    for line in
        ["// weights: model.layers.0.input_layernorm.weight, model.layers.0.self_attn.q_proj", "// cost: "]
    {
        assert!(kept.contains(line), "{line}: {kept}");
    }
    let ptx = finish(inspect_with_nvrtc(dir.path()).args(["--kernel", QKV, "--emit", "ptx"]));
    if ptx.code != 0 && ptx.stderr.contains("libnvrtc not found") {
        std::io::stderr().write_all(b"SKIPPED: no NVRTC: run cargo xtask test\n").expect("writes");
        return;
    }
    assert!(ptx.ok().contains(&format!(".visible .entry {QKV}(")), "{}", ptx.stdout);
    let report = json(&finish(inspect_with_nvrtc(dir.path()).arg("--json")));
    for k in list(&report["kernels"]) {
        assert!(k["registers"].as_u64().is_some_and(|n| n > 0), "{k}");
        assert_eq!((k["spill_stores"].as_u64(), k["spill_loads"].as_u64()), (Some(0), Some(0)));
    }
    // In place of nvdisasm, a program that says what it was given.
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        let fake = dir.path().join("tools/bin/nvdisasm");
        fs::create_dir_all(fake.parent().expect("a folder")).expect("makes");
        fs::write(&fake, "#!/bin/sh\necho \"$1\"\nhead -c 4 \"$2\" | tail -c 3\n").expect("writes");
        fs::set_permissions(&fake, fs::Permissions::from_mode(0o755)).expect("sets");
        let mut command = inspect_with_nvrtc(dir.path());
        command.env("WEFT_NVDISASM", dir.path().join("tools")).args(["--kernel", QKV, "--emit", "sass"]);
        assert_eq!(finish(&mut command).ok(), "--print-code\nELF");
    }
}

#[test]
fn a_kernel_is_explained() {
    let dir = folder();
    compile(dir.path(), &["--dump-passes", "dump"]).ok();
    let run = inspect(dir.path(), &["--explain", QKV]);
    let parts = [
        "model.layers.0.self_attn.q_proj.weight",
        "model.layers.0.self_attn.k_proj.weight",
        "model.layers.0.self_attn.v_proj.weight",
        "× 2 (to model.layers.1.self_attn.q_proj+k_proj+v_proj)",
        "merge-linears (exact)",
        "norm-prologue (full)",
        "cache-write (exact)",
        "cache-write-epilogue (exact)",
        "matmul.t",
    ];
    for part in parts {
        assert!(run.ok().contains(part), "{part}: {}", run.stdout);
    }
    // The nodes that it names have the same type, in the built graph and in the lowered one.
    let explained = json(&inspect(dir.path(), &["--explain", QKV, "--json"]));
    let text = |name: &str| fs::read_to_string(dir.path().join("dump").join(name)).expect("a dump");
    let (built, lowered) = (text("01-build.txt"), text("02-eqsat-decode.txt"));
    let (built, lowered): (Vec<&str>, Vec<&str>) = (built.lines().collect(), lowered.lines().collect());
    let ty = |line: &str| line.rsplit_once(" -> ").map(|(_, ty)| ty.split(" @").next().map(str::to_owned));
    let mut named = 0;
    for op in list(&explained["ops"]) {
        let line = op["text"].as_str().expect("a line");
        assert!(lowered.contains(&line), "{line}");
        if let Some(id) = op["built"].as_u64() {
            let same = built.iter().find(|l| l.starts_with(&format!("%{id} = "))).expect("the node");
            assert_eq!(ty(same), ty(line), "{same}\n{line}");
            named += 1;
        }
    }
    assert!(named > 20, "{named} nodes of the built graph");
    let sites: Vec<&Value> = list(&explained["sites"]).iter().collect();
    assert_eq!(sites.len(), 2);
    let all =
        |site: &Value| list(&site["weights"]).iter().any(|w| w == "model.layers.1.self_attn.v_proj.weight");
    assert!(!all(sites[0]) && all(sites[1]), "{sites:?}");
}

#[test]
fn passes_are_dumped_as_text_and_pictures() {
    let dir = folder();
    compile(dir.path(), &["--dump-passes", "one"]).ok();
    // Of what is in the folder, only an earlier run's dumps go: those of a level with fewer passes.
    compile(dir.path(), &["--dump-passes", "two", "--opt-level", "0"]).ok();
    fs::write(dir.path().join("two/01-notes.txt"), "mine").expect("writes");
    compile(dir.path(), &["--dump-passes", "two"]).ok();
    compile(dir.path(), &["--dump-passes", "plain", "--opt-level", "0"]).ok();
    let names = |folder: &str| {
        let files = fs::read_dir(dir.path().join(folder)).expect("a folder");
        let mut names: Vec<String> =
            files.map(|f| f.expect("an entry").file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        names
    };
    let read =
        |folder: &str, name: &str| fs::read_to_string(dir.path().join(folder).join(name)).expect("reads");
    let expected = [
        "01-build.txt",
        "02-eqsat-decode.txt",
        "03-eqsat-batch.txt",
        "04-eqsat-short.txt",
        "05-eqsat-prefill.txt",
        "06-lower.txt",
        "07-prologues.txt",
        "08-projections.txt",
        "09-siblings.txt",
        "10-generation.txt",
        "11-schedule.txt",
        "12-memory-plan.txt",
        "13-launch.txt",
        "layer-batch.svg",
        "layer-built.svg",
        "layer-decode.svg",
        "layer-prefill.svg",
        "layer-short.svg",
    ];
    assert_eq!(names("one"), expected);
    let others: Vec<String> = names("two").into_iter().filter(|n| !expected.contains(&n.as_str())).collect();
    assert_eq!(others, ["01-notes.txt"]);
    assert_eq!(names("two").len(), expected.len() + 1);
    for name in expected {
        assert_eq!(read("one", name), read("two", name), "{name} differs from run to run");
    }
    assert_eq!(read("plain", "02-eqsat.txt"), "(unchanged)\n");
    // What siblings merged is there apart before it, and the advance after its pass only.
    let siblings = weft::passes::siblings::NAME;
    let has = |name: &str| (read("one", name).contains(siblings), read("one", name).contains("\"advance\""));
    assert_eq!(has("06-lower.txt"), (false, false));
    assert_eq!(has("09-siblings.txt"), (true, false));
    assert_eq!(has("10-generation.txt"), (true, true));
    assert_eq!(
        fs::read_to_string(dir.path().join("b/plan.ron")).expect("reads"),
        read("plain", "07-launch.txt")
    );
    let (built, decode) = (read("one", "layer-built.svg"), read("one", "layer-decode.svg"));
    // 9 weights a layer, which merging makes 6.
    let dashed = |svg: &str| svg.matches("stroke-dasharray").count();
    assert_eq!((dashed(&built), dashed(&decode)), (9, 6));
    assert!(built.contains(">v_proj</text>") && built.contains("softmax</text>"), "{built}");
    assert!(decode.contains(">q_proj + k_proj + v_proj</text>"), "{decode}");
    // The five kernels of a layer and the one that brings its input to f32, each with a colour of its own.
    let colours: std::collections::BTreeSet<&str> = decode
        .lines()
        .filter(|l| l.contains("width=\"11\""))
        .filter_map(|l| l.split("fill=\"").nth(1)?.get(..7))
        .collect();
    assert_eq!(colours.len(), 6, "{colours:?}");
    assert!(colours.iter().all(|c| decode.matches(c).count() > 1), "{colours:?}");
}

#[test]
fn ablation_says_what_each_rule_brings() {
    let dir = folder();
    let table = compile(dir.path(), &["--ablate", "--opt-level", "1"]);
    for text in [
        "without",
        "decode_1: kernels",
        "(all rules)",
        "merge-linears",
        "no difference without",
        "layer-norm",
        "not measured",
    ] {
        assert!(table.ok().contains(text), "{text}: {}", table.stdout);
    }
    let run = json(&compile(dir.path(), &["--ablate", "--json", "--max-batch", "1", "--disable", "rope"]));
    let ablation = &run["ablation"];
    let names: Vec<&str> = list(&ablation["without"]).iter().filter_map(|w| w["rule"].as_str()).collect();
    let expected: Vec<&str> = weft::passes::names().into_iter().filter(|n| *n != "rope").collect();
    assert_eq!(names, expected);
    let all = list(&ablation["with_all"]);
    assert_eq!(
        all.iter().filter_map(|s| s["entry"].as_str()).collect::<Vec<_>>(),
        ["decode_1", "prefill_256"]
    );
    let of = |rule: &str, field: &str| {
        let rule = list(&ablation["without"]).iter().find(|w| w["rule"] == rule).expect("a row");
        rule["steps"][0][field].as_f64().expect("a number")
    };
    // Three products in place of one in each layer, and two in place of one.
    assert!(of("merge-linears", "dispatches_more") >= 6.0);
    assert!(of("merge-linears", "estimated_s_more") > 0.0 && of("attention", "bytes_more") > 0.0);
    // The tiny llama has no LayerNorm.
    assert_eq!((of("layer-norm", "dispatches_more"), of("layer-norm", "estimated_s_more")), (0.0, 0.0));
    compile(dir.path(), &["--ablate", "--opt-level", "0"]).fails(2, &["--ablate", "--opt-level"]);
}
