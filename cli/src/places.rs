//! Where things that were fetched lie.

use std::path::{Path, PathBuf};

/// Folder of a workspace that `cargo xtask` keeps NVRTC in.
const NVRTC: &str = ".weft/nvrtc";

/// Folders to look for NVRTC in, besides `WEFT_NVRTC` and the system's: `.weft/nvrtc` in the folders above
/// this binary (which lies in a workspace's `target`), then in the current folder and those above it.
pub fn nvrtc_folders() -> Vec<PathBuf> {
    folders(NVRTC)
}

/// Folders of a relative path in the folders above this binary, then in the current folder and those above it.
pub fn folders(name: &str) -> Vec<PathBuf> {
    let binary = std::env::current_exe().ok().and_then(|exe| exe.parent().map(Path::to_owned));
    let mut folders: Vec<PathBuf> = Vec::new();
    for start in binary.into_iter().chain(std::env::current_dir().ok()) {
        for folder in start.ancestors().map(|folder| folder.join(name)).filter(|folder| folder.is_dir()) {
            if !folders.contains(&folder) {
                folders.push(folder);
            }
        }
    }
    folders
}
