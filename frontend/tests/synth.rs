//! Made-up checkpoints of every configuration among the fixtures that a model can be built of.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use weft_frontend::checkpoint::Checkpoint;
use weft_frontend::models;
use weft_frontend::synth::{Options, SHARD_SIZE, synth};
use weft_ir::dtype::DType;

/// The folders of fixtures that Weft can build.
fn fixtures() -> Vec<(PathBuf, Checkpoint)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../testsuite/fixtures");
    let mut out = Vec::new();
    for kind in ["tiny", "variants"] {
        for entry in std::fs::read_dir(root.join(kind)).expect("lists") {
            let path = entry.expect("lists").path();
            if let Ok(checkpoint) = Checkpoint::open(&path)
                && models::build(&checkpoint, DType::BF16).is_ok()
            {
                out.push((path, checkpoint));
            }
        }
    }
    out
}

/// Shapes by name, without what some files leave out before it, and without biases of heads.
fn shapes(checkpoint: &Checkpoint) -> BTreeMap<String, Vec<usize>> {
    let asked = models::asked(checkpoint, DType::BF16).expect("builds");
    let bare = |name: &str| {
        let prefixes = ["bert.", "roberta.", "model.", "transformer."];
        prefixes.iter().find_map(|p| name.strip_prefix(p)).unwrap_or(name).to_owned()
    };
    let old = |name: String| name.replace(".gamma", ".weight").replace(".beta", ".bias");
    asked.into_iter().map(|a| (old(bare(&a.name)), a.shape)).collect()
}

#[test]
fn every_family_can_be_made_and_built() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let fixtures = fixtures();
    let mut families: Vec<&str> = fixtures.iter().map(|(_, c)| c.config().model_type.as_str()).collect();
    families.sort_unstable();
    families.dedup();
    assert!(families.len() >= 20, "{families:?}");
    for (path, real) in &fixtures {
        let out = dir.path().join(path.file_name().expect("a name"));
        let options = Options {
            seed: 3,
            dtype: Some(DType::BF16),
            shard_size: SHARD_SIZE,
            force: false,
            ignore: Vec::new(),
        };
        let made = synth(path, &out, &options, &mut |_, _| {});
        let summary = made.unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        let made = Checkpoint::open(&out).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        assert_eq!(made.tensors().count(), summary.tensors, "{}", path.display());
        assert_eq!(shapes(&made), shapes(real), "{}", path.display());
        assert!(made.config().quantization.is_none());
    }
}
