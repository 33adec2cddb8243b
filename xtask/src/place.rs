//! Where things are in the workspace.

use std::path::{Path, PathBuf};

/// The workspace's root: that of the cargo that runs this, which another checkout may have built.
pub fn root() -> PathBuf {
    let built = || env!("CARGO_MANIFEST_DIR").into();
    let here = std::env::var_os("CARGO_MANIFEST_DIR").map_or_else(built, PathBuf::from);
    here.parent().unwrap_or(&here).to_owned()
}

/// Folder of what was fetched; git ignores it.
pub fn fetched() -> PathBuf {
    root().join(".weft")
}

/// Folder of NVRTC, when it was fetched.
pub fn nvrtc() -> PathBuf {
    fetched().join("nvrtc")
}

/// Folder of the demo's model.
pub fn model() -> PathBuf {
    fetched().join("models/smollm2-135m-instruct")
}

/// The model as it is fetched.
pub fn gguf() -> PathBuf {
    model().join("SmolLM2-135M-Instruct.Q4_1.gguf")
}

/// Folder of the encoder that the tests embed texts with.
pub fn encoder() -> PathBuf {
    fetched().join("models/all-minilm-l6-v2")
}

/// A path as the user sees it: relative to the root.
pub fn shown(path: &Path) -> String {
    path.strip_prefix(root()).unwrap_or(path).display().to_string()
}
