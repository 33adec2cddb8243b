//! Writes a checkpoint of a public shape without weights, as a sparse file: for measuring compilation.
//!
//! `sparse SHAPE FOLDER`; SHAPE: smollm2, llama1b, llama8b. Then `weft compile FOLDER --target sm_90`.

use std::path::Path;
use std::process::ExitCode;
use weft_testsuite::synthetic::{LLAMA_1B, LLAMA_8B, SMOLLM2};

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [shape, folder] = &args[..] else {
        eprintln!("usage: sparse smollm2|llama1b|llama8b FOLDER");
        return ExitCode::from(2);
    };
    let sizes = match shape.as_str() {
        "smollm2" => SMOLLM2,
        "llama1b" => LLAMA_1B,
        "llama8b" => LLAMA_8B,
        other => {
            eprintln!("{other}: unknown shape; there are smollm2, llama1b, llama8b");
            return ExitCode::from(2);
        }
    };
    let folder = Path::new(folder);
    match std::fs::create_dir_all(folder).and_then(|()| sizes.write(folder)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("{}: {e}", folder.display());
            ExitCode::FAILURE
        }
    }
}
