//! What a checkpoint file says of one stored tensor, whatever the file's format.

use crate::error::{Error, Result};
use std::path::Path;
use weft_ir::dtype::Encoding;

/// Encodings that tensors may have, as errors list them.
pub const SUPPORTED_TYPES: &str = "f32, f16, bf16, i64, i32, u32, bool; in GGUF q4_0, q4_1, q5_0, \
     q5_1, q8_0, q2_k, q3_k, q4_k, q5_k, q6_k, iq4_nl, mxfp4; in safetensors the e4m3 and mxfp4 tensors of a checkpoint \
     whose quantization_config says fp8 or mxfp4";

/// One tensor of a checkpoint, as its file's header describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorInfo {
    /// Name in its file.
    pub name: String,
    /// Dimensions, outermost first (row-major), in elements.
    pub shape: Vec<usize>,
    /// How it is stored; `None` for a type that Weft does not read.
    pub encoding: Option<Encoding>,
    /// The type as the file names it.
    pub stored_type: String,
    /// Index into the checkpoint's list of files.
    pub file: usize,
    /// First byte, from the start of the file.
    pub offset: usize,
    /// Bytes it takes; 0 when the type is unknown.
    pub bytes: usize,
}

impl TensorInfo {
    /// Number of elements; `None` when it overflows.
    pub fn elements(&self) -> Option<usize> {
        elements(&self.shape)
    }

    /// The encoding, or an error that names the file, the tensor and what is supported.
    pub(crate) fn require_encoding(&self, path: &Path) -> Result<Encoding> {
        self.encoding.ok_or_else(|| {
            let field = format!("type of tensor {:?}", self.name);
            Error::unsupported(path, field, &self.stored_type, SUPPORTED_TYPES)
        })
    }

    /// The tensor's part of its mapped file.
    pub(crate) fn slice<'a>(&self, path: &Path, file: &'a [u8]) -> Result<&'a [u8]> {
        self.require_encoding(path)?;
        let end = self.offset.checked_add(self.bytes);
        end.and_then(|end| file.get(self.offset..end)).ok_or_else(|| {
            let field = format!("tensor {:?}", self.name);
            Error::damaged(path, field, "lies outside the file")
        })
    }
}

/// Product of the dimensions; `None` when it overflows.
pub(crate) fn elements(shape: &[usize]) -> Option<usize> {
    shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d))
}
