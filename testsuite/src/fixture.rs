//! Tiny checkpoints with reference outputs, and their compilation.

use std::path::{Path, PathBuf};
use weft_frontend::checkpoint::Checkpoint;
use weft_frontend::config::MODEL_TYPES;
use weft_ir::dtype::DType;
use weft_ir::graph::Graph;
use weft_ir::plan::Plan;
use weft_ir::reference::WeightBytes;
use weft_ir::target::Target;
use weft_passes::schedule::database::Database;
use weft_passes::{Compiled, Options, Selection};

/// Folder of this crate: where cargo says, so that a test binary also runs in another checkout.
pub fn root() -> PathBuf {
    let at_run = std::env::var_os("CARGO_MANIFEST_DIR").map(PathBuf::from);
    at_run.unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).to_owned())
}

/// Folder of the fixtures.
pub fn folder() -> PathBuf {
    root().join("fixtures")
}

/// A folder of tiny checkpoints.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum List {
    /// One or two a family.
    Tiny,
    /// The same with other settings.
    Variants,
}

impl List {
    /// Its name in [`folder`].
    pub fn folder(self) -> &'static str {
        match self {
            List::Tiny => "tiny",
            List::Variants => "variants",
        }
    }

    /// The folders in it, sorted by name.
    ///
    /// # Panics
    /// When it cannot be read.
    pub fn all(self) -> Vec<PathBuf> {
        let place = folder().join(self.folder());
        let entries = std::fs::read_dir(&place).unwrap_or_else(|e| panic!("{}: {e}", place.display()));
        let paths = entries.map(|e| e.unwrap_or_else(|e| panic!("{}: {e}", place.display())).path());
        let mut folders: Vec<PathBuf> = paths.filter(|path| path.is_dir()).collect();
        folders.sort();
        folders
    }
}

/// Those of a list that have a golden and are of a family that Weft builds.
///
/// # Panics
/// When the list cannot be read.
pub fn checkpoints(list: List) -> Vec<PathBuf> {
    let model_type = |path: &Path| -> Option<String> {
        let text = std::fs::read(path.join("config.json")).ok()?;
        let config: serde_json::Value = serde_json::from_slice(&text).ok()?;
        Some(config["model_type"].as_str()?.to_owned())
    };
    let mut folders = list.all();
    folders.retain(|path| {
        let known = model_type(path).is_some_and(|m| MODEL_TYPES.contains(&m.as_str()));
        known && path.join("golden.safetensors").exists()
    });
    folders
}

/// A tiny checkpoint and what it should give.
pub struct Fixture {
    /// The checkpoint.
    pub checkpoint: Checkpoint,
    folder: PathBuf,
}

/// A golden tensor.
#[derive(Clone, Debug)]
pub struct Golden<T> {
    /// Extents.
    pub shape: Vec<usize>,
    /// Elements, row-major.
    pub values: Vec<T>,
}

/// Bytes of a checkpoint's tensors.
pub struct Bytes<'a>(pub &'a Checkpoint);

impl WeightBytes for Bytes<'_> {
    fn bytes(&self, tensor: &str) -> Option<&[u8]> {
        self.0.bytes(tensor).ok()
    }
}

impl Fixture {
    /// Opens a fixture by its name.
    ///
    /// # Panics
    /// When it is not there.
    pub fn open(name: &str) -> Fixture {
        Fixture::at(folder().join("tiny").join(name))
    }

    /// Opens a fixture by its folder, for sequences as long as its golden's.
    ///
    /// # Panics
    /// When it is not there.
    pub fn at(folder: PathBuf) -> Fixture {
        let checkpoint = Checkpoint::open(&folder).unwrap_or_else(|e| panic!("fixture: {e}"));
        let fixture = Fixture { checkpoint, folder };
        let tokens = fixture.golden_tokens();
        Fixture { checkpoint: fixture.checkpoint.reaching(tokens), ..fixture }
    }

    /// Tokens of each sequence of the golden, with its continuation.
    fn golden_tokens(&self) -> usize {
        let Ok(bytes) = std::fs::read(self.folder.join("golden.safetensors")) else { return 0 };
        let all = safetensors::SafeTensors::deserialize(&bytes).expect("golden.safetensors");
        let length = |name| all.tensor(name).map_or(0, |t| t.shape()[1]);
        length("input_ids") + length("greedy_ids")
    }

    /// Its folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Graph of the model.
    ///
    /// # Panics
    /// When it does not build.
    pub fn graph(&self, dtype: DType) -> Graph {
        weft_frontend::models::build(&self.checkpoint, dtype).unwrap_or_else(|e| panic!("{e}"))
    }

    /// What is known of the golden: `golden.json`.
    ///
    /// # Panics
    /// When it is not there.
    pub fn golden_json(&self) -> serde_json::Value {
        let text = std::fs::read_to_string(self.folder.join("golden.json")).expect("golden.json");
        serde_json::from_str(&text).expect("JSON")
    }

    fn golden(&self, name: &str) -> (Vec<usize>, Vec<u8>) {
        let bytes = std::fs::read(self.folder.join("golden.safetensors")).expect("golden.safetensors");
        let all = safetensors::SafeTensors::deserialize(&bytes).expect("golden.safetensors");
        let t = all.tensor(name).expect(name);
        (t.shape().to_vec(), t.data().to_vec())
    }

    /// A golden f32 tensor.
    ///
    /// # Panics
    /// When it is not there.
    pub fn golden_f32(&self, name: &str) -> Golden<f32> {
        let (shape, bytes) = self.golden(name);
        let values = bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
        Golden { shape, values }
    }

    /// A golden i64 tensor, as i32.
    ///
    /// # Panics
    /// When it is not there.
    pub fn golden_ids(&self, name: &str) -> Golden<i32> {
        let (shape, bytes) = self.golden(name);
        let values = bytes.chunks_exact(8).map(|b| i32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
        Golden { shape, values }
    }
}

/// Compiles a graph for a target.
///
/// # Panics
/// When it does not compile.
pub fn compile(
    graph: &Graph,
    target: &str,
    dtype: DType,
    opt_level: u8,
    (max_seq, max_batch): (usize, usize),
) -> Plan {
    compile_with(graph, target, dtype, opt_level, (max_seq, max_batch), Selection::default()).plan
}

/// Compiles a graph for a target, with some rules off.
///
/// # Panics
/// When it does not compile.
pub fn compile_with(
    graph: &Graph,
    target: &str,
    dtype: DType,
    opt_level: u8,
    limits: (usize, usize),
    selection: Selection,
) -> Compiled {
    compile_on(graph, target, dtype, opt_level, limits, selection, Database::default())
}

/// The same with measured schedules.
///
/// # Panics
/// When it does not compile.
pub fn compile_on(
    graph: &Graph,
    target: &str,
    dtype: DType,
    opt_level: u8,
    (max_seq, max_batch): (usize, usize),
    selection: Selection,
    schedules: Database,
) -> Compiled {
    let target = Target::parse(target).unwrap_or_else(|e| panic!("{e}"));
    let options = Options {
        target,
        dtype,
        opt_level,
        max_seq,
        max_batch,
        selection,
        dump: false,
        schedules: std::sync::Arc::new(schedules),
    };
    weft_passes::compile(graph, options).unwrap_or_else(|e| panic!("{e}"))
}

/// ‖a − b‖ / ‖b‖.
pub fn relative_rmse(a: &[f32], b: &[f32]) -> f64 {
    assert_eq!(a.len(), b.len(), "lengths differ");
    let square = |x: f64| x * x;
    let difference: f64 = a.iter().zip(b).map(|(x, y)| square(f64::from(*x) - f64::from(*y))).sum();
    let norm: f64 = b.iter().map(|y| square(f64::from(*y))).sum();
    (difference / norm).sqrt()
}
