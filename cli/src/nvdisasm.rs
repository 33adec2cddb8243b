//! `nvdisasm`, which prints machine code: finding it and running it.

use crate::errors::{Error, Result};
use crate::places;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

const NAME: &str = "nvdisasm";
/// What a user does when there is none.
const REMEDY: &str = "pip download --no-deps nvidia-cuda-nvdisasm && unzip nvidia_cuda_nvdisasm-*.whl -d \
                      .weft/nvdisasm; or set WEFT_NVDISASM to the program";
/// Folders below the one given that a wheel may have put it into.
const DEPTH: usize = 4;

/// Finds nvdisasm: `WEFT_NVDISASM` (the program or a folder), `.weft/nvdisasm` of the workspace or a folder
/// above the current one, `PATH`.
///
/// # Errors
/// Where it was looked for, and the remedy.
pub fn find() -> Result<PathBuf> {
    if let Some(given) = std::env::var_os("WEFT_NVDISASM").filter(|v| !v.is_empty()).map(PathBuf::from) {
        return below(&given, DEPTH).ok_or_else(|| {
            let place = given.display();
            Error::failed(format!("WEFT_NVDISASM={place}: there is no {NAME}; {REMEDY}"))
        });
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let fetched = places::folders(".weft/nvdisasm").into_iter().filter_map(|f| below(&f, DEPTH));
    let installed = std::env::split_paths(&path).map(|f| f.join(NAME)).filter(|f| f.is_file());
    fetched.chain(installed).next().ok_or_else(|| {
        Error::failed(format!("{NAME} not found in WEFT_NVDISASM, .weft/nvdisasm and PATH; {REMEDY}"))
    })
}

/// The program, where `place` is it or a folder that holds it.
fn below(place: &Path, depth: usize) -> Option<PathBuf> {
    if place.is_file() {
        return Some(place.to_owned());
    }
    let direct = place.join(NAME);
    if direct.is_file() {
        return Some(direct);
    }
    let mut folders: Vec<PathBuf> = std::fs::read_dir(place)
        .ok()?
        .filter_map(|e| e.ok())
        .map(|e| e.path())
        .filter(|p| p.is_dir())
        .collect();
    folders.sort();
    folders.iter().filter(|_| depth > 0).find_map(|f| below(f, depth - 1))
}

/// Machine code as text.
///
/// # Errors
/// No nvdisasm, or one that fails.
pub fn disassemble(cubin: &[u8]) -> Result<String> {
    let program = find()?;
    let failed = |why: String| Error::failed(format!("{}: {why}", program.display()));
    let mut file = tempfile::NamedTempFile::new().map_err(|e| failed(format!("no temporary file: {e}")))?;
    file.write_all(cubin).map_err(|e| failed(format!("no temporary file: {e}")))?;
    let output = Command::new(&program)
        .arg("--print-code")
        .arg(file.path())
        .output()
        .map_err(|e| failed(format!("does not start: {e}; is it executable?")))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(failed(format!("{}: {}", output.status, said.trim())));
    }
    String::from_utf8(output.stdout).map_err(|e| failed(format!("its output is not UTF-8: {e}")))
}
