//! Tensors of safetensors checkpoints that are stored in fewer bits, as `quantization_config` says: which tensors they
//! are, and which hold their scales. Here their entries get the [`Encoding`] that the file's own type cannot say; from
//! there on they are weights like others.

use crate::config::Quantization;
use crate::error::{Error, Result};
use crate::safetensors::SafetensorsSet;
use crate::tensor::TensorInfo;
use std::path::Path;
use weft_ir::dtype::{Coded, Encoding};

/// Elements that share a scale in MXFP4.
const GROUP: usize = 32;

/// The name of the scales of a stored tensor of scaled elements.
pub(crate) fn scales_of(tensor: &str) -> String {
    match tensor.strip_suffix("_blocks") {
        Some(stem) => format!("{stem}_scales"),
        None => format!("{tensor}_scale_inv"),
    }
}

/// The stored name of a weight's elements where they are MXFP4.
pub(crate) fn blocks_of(weight: &str) -> String {
    format!("{weight}_blocks")
}

/// Gives the quantised tensors of a set and their scales the encodings that they have.
///
/// # Errors
/// [`Error::MissingTensor`] for elements without scales; [`Error::Malformed`] for scales of another shape or type.
pub(crate) fn mark(set: &mut SafetensorsSet, config: &Path, quantization: Quantization) -> Result<()> {
    let is_elements = |t: &&TensorInfo| match quantization {
        Quantization::Fp8 { .. } => t.stored_type == "F8_E4M3",
        Quantization::Mxfp4 => t.stored_type == "U8" && t.name.ends_with("_blocks"),
    };
    let names: Vec<String> = set.tensors().filter(is_elements).map(|t| t.name.clone()).collect();
    if names.is_empty() {
        let problem = format!("says {quantization:?}, but no tensor is stored so");
        let remedy = "use the configuration and weights of the same model";
        return Err(Error::malformed(config, "quantization_config", problem, remedy));
    }
    for name in names {
        let path = set.path_of(&name);
        let Some(mut elements) = set.tensor(&name).cloned() else { continue };
        elements.encoding = Some(match quantization {
            Quantization::Fp8 { rows, columns } => Encoding::Scaled { of: Coded::E4M3, rows, columns },
            Quantization::Mxfp4 => {
                elements.shape = unpacked(&path, &elements)?;
                Encoding::Scaled { of: Coded::E2M1, rows: 1, columns: GROUP as u32 }
            }
        });
        let mut scales = scales(set, &path, &elements)?;
        if quantization == Quantization::Mxfp4 {
            // The shape that the encoding asks for has the groups as columns, and so has the file's.
            scales.encoding = Some(Encoding::E8M0);
        }
        set.replace(elements);
        set.replace(scales);
    }
    Ok(())
}

/// The shape of MXFP4 elements `[…, rows, groups, 16]` of bytes: `[…, rows, 32 · groups]`.
fn unpacked(path: &Path, t: &TensorInfo) -> Result<Vec<usize>> {
    match t.shape.as_slice() {
        [outer @ .., rows, groups, bytes] if *bytes == GROUP / 2 && groups.checked_mul(GROUP).is_some() => {
            Ok(outer.iter().copied().chain([*rows, groups * GROUP]).collect())
        }
        other => {
            let problem = format!("shape {other:?} is not [..., rows, groups, {}] of MXFP4", GROUP / 2);
            Err(Error::damaged(path, format!("tensor {:?}", t.name), problem))
        }
    }
}

/// The tensor of scales of these elements, checked to be of the right shape and type.
fn scales(set: &SafetensorsSet, path: &Path, elements: &TensorInfo) -> Result<TensorInfo> {
    let name = scales_of(&elements.name);
    let Some(scales) = set.tensor(&name) else {
        let remedy = format!("tensor {:?} is stored in fewer bits and needs its scales", elements.name);
        return Err(Error::MissingTensor { path: path.to_owned(), tensor: name, remedy });
    };
    let field = || format!("tensor {name:?}");
    let path = set.path_of(&name);
    let byte = elements.encoding.is_some_and(|e| matches!(e, Encoding::Scaled { of: Coded::E2M1, .. }));
    let fits = match scales.encoding {
        None => byte && scales.stored_type == "U8",
        Some(e) => !byte && e.value_type().is_float(),
    };
    if !fits {
        let supported = if byte { "U8 (E8M0)" } else { "F32, F16, BF16, F8_E8M0" };
        return Err(Error::unsupported(
            &path,
            format!("type of {}", field()),
            &scales.stored_type,
            supported,
        ));
    }
    match elements.encoding.and_then(|e| e.scales(&elements.shape)) {
        Some(wanted) if wanted == scales.shape => Ok(scales.clone()),
        wanted => {
            let wanted = wanted.map_or("a matrix's".to_owned(), |w| format!("{w:?}"));
            let (is, of, shape) = (&scales.shape, &elements.name, &elements.shape);
            let problem = format!("its shape is {is:?}, the scales of {of:?} {shape:?} have {wanted}");
            Err(Error::damaged(&path, field(), problem))
        }
    }
}
