//! Where things that were fetched lie.

use std::path::PathBuf;

/// Folder of a workspace that `cargo xtask demo` keeps NVRTC in.
const NVRTC: &str = ".weft/nvrtc";

/// Folders to look for NVRTC in, besides `WEFT_NVRTC` and the system's: `.weft/nvrtc` of the current folder
/// and of those above it.
pub fn nvrtc_folders() -> Vec<PathBuf> {
    let Ok(here) = std::env::current_dir() else { return Vec::new() };
    here.ancestors().map(|folder| folder.join(NVRTC)).filter(|folder| folder.is_dir()).collect()
}
