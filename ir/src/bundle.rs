//! The bundle: what `weft compile` writes and `weft run` reads back.
//!
//! A folder with `manifest.json` (this), `plan.ron`, `explain.json` and `kernels/*.cu`. Weights stay in the checkpoint,
//! which the manifest names; their files' sizes tell whether it is still the same checkpoint.

use serde::{Deserialize, Serialize};

/// File name of the manifest.
pub const MANIFEST: &str = "manifest.json";
/// File name of the plan.
pub const PLAN: &str = "plan.ron";
/// File name of what `weft inspect --explain` tells.
pub const EXPLAIN: &str = "explain.json";
/// Folder of the kernels.
pub const KERNELS: &str = "kernels";
/// Version of this layout; a bundle of another version is refused.
pub const VERSION: u32 = 3;

/// A file of the checkpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceFile {
    /// Absolute path when the bundle was written.
    pub path: String,
    /// Size in bytes.
    pub bytes: u64,
}

/// An emitted kernel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KernelFile {
    /// Function name, as in the plan.
    pub name: String,
    /// File, relative to the bundle.
    pub file: String,
    /// Dynamic shared memory of a block in bytes; 0 when it is static.
    pub dynamic_shared: u32,
}

/// Manifest of a bundle.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// Layout version: [`VERSION`].
    pub version: u32,
    /// Version of Weft that wrote it.
    pub weft: String,
    /// Target GPU family.
    pub target: String,
    /// `model_type` of the checkpoint's configuration.
    pub model_type: String,
    /// Path of the checkpoint, as given to `weft compile`, made absolute.
    pub checkpoint: String,
    /// Its weight files.
    pub sources: Vec<SourceFile>,
    /// Entries of the vocabulary.
    pub vocab_size: usize,
    /// Token ids that end a generation.
    pub eos_token_ids: Vec<u32>,
    /// Keys of the checkpoint's configuration that Weft does not know and that the user said to pass over.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ignored_keys: Vec<String>,
    /// What the names of tensors begin with that Weft does not read and that the user said to pass over.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ignored_tensors: Vec<String>,
    /// Whether it was compiled for hidden states (`--task embed`), though the model is a decoder.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub embeds: bool,
    /// Kernels, in the plan's order.
    pub kernels: Vec<KernelFile>,
}
