//! The only edges allowed between crates, and where unsafe code and FFI may live.

use cargo_metadata::{DependencyKind, MetadataCommand};
use std::collections::BTreeSet;
use std::path::Path;

const ALLOWED: &[(&str, &[&str])] = &[
    ("weft-ir", &[]),
    ("weft-passes", &["weft-ir"]),
    ("weft-codegen", &["weft-ir"]),
    ("weft-frontend", &["weft-ir"]),
    ("weft-runtime", &["weft-ir"]),
    ("weft", &["weft-ir", "weft-passes", "weft-codegen", "weft-frontend", "weft-runtime"]),
    ("weft-testsuite", &["weft", "weft-ir", "weft-passes", "weft-codegen", "weft-frontend", "weft-runtime"]),
    ("xtask", &["weft", "weft-ir", "weft-passes", "weft-codegen", "weft-frontend", "weft-runtime"]),
];

/// Libraries that belong to one crate alone.
const PRIVATE: &[(&str, &str)] = &[
    ("cudarc", "weft-runtime"),
    ("memmap2", "weft-frontend"),
    ("petgraph", "weft-ir"),
    ("egg", "weft-passes"),
];

#[test]
fn crates_depend_on_what_the_architecture_allows() {
    let metadata = MetadataCommand::new().no_deps().exec().expect("cargo metadata");
    let ours: BTreeSet<&str> = ALLOWED.iter().map(|(name, _)| *name).collect();
    for package in &metadata.packages {
        let name = package.name.as_str();
        let (_, allowed) = ALLOWED
            .iter()
            .find(|(n, _)| *n == name)
            .unwrap_or_else(|| panic!("crate {name} is not in the architecture"));
        for d in &package.dependencies {
            let d_name = d.name.as_str();
            assert!(
                !ours.contains(d_name) || allowed.contains(&d_name),
                "{name} must not depend on {d_name} ({:?})",
                d.kind
            );
            for (library, owner) in PRIVATE {
                let elsewhere = d_name == *library && name != *owner && d.kind == DependencyKind::Normal;
                assert!(!elsewhere, "{library} belongs to {owner}, not {name}");
            }
        }
    }
}

fn sources(folder: &Path, found: &mut Vec<std::path::PathBuf>) {
    for entry in std::fs::read_dir(folder).expect("folder") {
        let path = entry.expect("entry").path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|e| e == "rs") {
            found.push(path);
        }
    }
}

#[test]
fn unsafe_code_is_where_the_architecture_puts_it() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("workspace");
    let mut found = Vec::new();
    for member in ["ir", "passes", "codegen", "runtime", "frontend", "cli", "xtask", "testsuite"] {
        sources(&root.join(member), &mut found);
    }
    for path in found {
        let relative =
            path.strip_prefix(root).expect("in the workspace").to_string_lossy().replace('\\', "/");
        let may = relative.starts_with("runtime/src/sys/") || relative == "frontend/src/mmap.rs";
        let text = std::fs::read_to_string(&path).expect("source");
        let allows = text.contains(concat!("allow(", "unsafe_code)"));
        assert!(may || !allows, "{relative} allows unsafe code");
    }
}
