//! What the tests share: running the binary, fixtures, and safetensors files.
#![allow(dead_code)]

use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// A path under the workspace's `testsuite/fixtures`.
pub fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../testsuite/fixtures").join(name)
}

/// What a run of the binary gave.
pub struct Run {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

impl Run {
    /// Asserts the exit code, and that stderr has all of these.
    #[track_caller]
    pub fn fails(&self, code: i32, says: &[&str]) {
        assert_eq!(self.code, code, "stderr: {}", self.stderr);
        for text in says {
            assert!(self.stderr.contains(text), "{text:?} is not in: {}", self.stderr);
        }
    }

    /// Asserts success; gives stdout.
    #[track_caller]
    pub fn ok(&self) -> &str {
        assert_eq!(self.code, 0, "stderr: {}", self.stderr);
        &self.stdout
    }
}

/// The binary, to be run in a folder, with a cache of its own there and an empty stdin.
pub fn command(folder: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_weft"));
    command.current_dir(folder).env("WEFT_CACHE_DIR", folder.join("cache")).stdin(Stdio::null());
    command
}

/// Runs a command.
pub fn finish(command: &mut Command) -> Run {
    let output = command.output().expect("the binary starts");
    Run {
        code: output.status.code().expect("not ended by a signal"),
        stdout: String::from_utf8(output.stdout).expect("stdout is UTF-8"),
        stderr: String::from_utf8(output.stderr).expect("stderr is UTF-8"),
    }
}

/// Runs the binary in a folder.
pub fn weft<S: AsRef<std::ffi::OsStr>>(folder: &Path, args: impl IntoIterator<Item = S>) -> Run {
    finish(command(folder).args(args))
}

/// Writes a safetensors file.
pub fn write(path: &Path, tensors: &[(&str, Dtype, &[usize], Vec<u8>)]) {
    let views = tensors.iter().map(|(name, dtype, shape, data)| {
        (*name, TensorView::new(*dtype, shape.to_vec(), data).expect("data fit the shape"))
    });
    safetensors::serialize_to_file(views.collect::<Vec<_>>(), None, path).expect("can be written");
}

/// The bytes of i64 values.
pub fn longs(values: &[i64]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}

/// The values of an i64 tensor, and its shape.
pub fn read_longs(file: &[u8], name: &str) -> (Vec<i64>, Vec<usize>) {
    let file = SafeTensors::deserialize(file).expect("a safetensors file");
    let tensor = file.tensor(name).expect("the tensor is there");
    assert_eq!(tensor.dtype(), Dtype::I64);
    let values = tensor.data().as_chunks::<8>().0.iter().map(|&b| i64::from_le_bytes(b)).collect();
    (values, tensor.shape().to_vec())
}

/// The values of an f32 tensor, and its shape.
pub fn read_floats(file: &[u8], name: &str) -> (Vec<f32>, Vec<usize>) {
    let file = SafeTensors::deserialize(file).expect("a safetensors file");
    let tensor = file.tensor(name).expect("the tensor is there");
    assert_eq!(tensor.dtype(), Dtype::F32);
    let values = tensor.data().as_chunks::<4>().0.iter().map(|&b| f32::from_le_bytes(b)).collect();
    (values, tensor.shape().to_vec())
}

/// Root mean square of the difference, relative to that of the expected values.
pub fn relative_rmse(got: &[f32], expected: &[f32]) -> f64 {
    assert_eq!(got.len(), expected.len());
    let square = |x: f64| x * x;
    let difference: f64 = got.iter().zip(expected).map(|(g, e)| square(f64::from(*g) - f64::from(*e))).sum();
    (difference / expected.iter().map(|e| square(f64::from(*e))).sum::<f64>()).sqrt()
}
