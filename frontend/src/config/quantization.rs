//! `quantization_config`: how a checkpoint stores weights in fewer bits.
//!
//! Read are transformers' `FineGrainedFP8Config` (DeepSeek V3: `quant_method` "fp8" with `weight_block_size`) and
//! `Mxfp4Config` (gpt-oss). Only weights are meant: activations stay in the model's type, more exact than the
//! quantised ones that the former's kernels take.

use super::fields::Fields;
use crate::error::{Error, Result};
use serde::Serialize;
use serde_json::Value;

/// How weights are stored in fewer bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum Quantization {
    /// E4M3 elements; for each block of rows and columns a factor, in `…weight_scale_inv`.
    Fp8 {
        /// Rows of a block.
        rows: u32,
        /// Columns of a block.
        columns: u32,
    },
    /// E2M1 elements in `…_blocks`, for 32 of them an E8M0 factor in `…_scales`.
    Mxfp4,
}

/// What is supported, as errors list it.
const SUPPORTED: &str = "fp8 with weight_block_size (DeepSeek), mxfp4 (gpt-oss)";

/// Reads `quantization_config`, where there is one.
pub(super) fn read(f: &mut Fields) -> Result<Option<Quantization>> {
    let map = match f.take("quantization_config") {
        None => return Ok(None),
        Some(Value::Object(map)) => map,
        Some(other) => return Err(f.mistyped("quantization_config", &other, "an object")),
    };
    let mut q = Fields { path: f.path.clone(), prefix: "quantization_config.".to_owned(), map };
    // Which layers were left alone, the tensors themselves say.
    for harmless in ["modules_to_not_convert", "ignored_layers", "dequantize"] {
        q.take(harmless);
    }
    let Some(method) = q.text("quant_method")? else {
        let remedy = format!("it says how the weights are stored: {SUPPORTED}");
        return Err(Error::missing(&q.path, q.name("quant_method"), remedy));
    };
    let found = match method.as_str() {
        "fp8" => fp8(&mut q)?,
        "mxfp4" => Quantization::Mxfp4,
        _ => {
            let supported =
                format!("{SUPPORTED}; give the model's unquantised checkpoint, or a GGUF file of it");
            return Err(Error::unsupported(&q.path, q.name("quant_method"), method, supported));
        }
    };
    match q.map.iter().find(|(_, v)| !v.is_null() && *v != &Value::Bool(false)) {
        None => Ok(Some(found)),
        Some((key, value)) => {
            let supported = format!("the settings of {method} that Weft knows; absent");
            Err(Error::unsupported(&q.path, q.name(key), value, supported))
        }
    }
}

fn fp8(q: &mut Fields) -> Result<Quantization> {
    let only = |q: &mut Fields, key: &str, known: &[&str]| -> Result<()> {
        match q.text(key)?.filter(|v| !known.contains(&v.as_str())) {
            None => Ok(()),
            Some(other) => Err(Error::unsupported(&q.path, q.name(key), other, known.join(", "))),
        }
    };
    only(q, "activation_scheme", &["dynamic"])?;
    only(q, "fmt", &["e4m3"])?;
    // How the factors were rounded when they were made.
    only(q, "scale_fmt", &["float", "ue8m0"])?;
    let Some(size) = q.take("weight_block_size") else {
        let remedy = "a factor for a whole tensor is not supported: give the model's unquantised checkpoint";
        return Err(Error::missing(&q.path, q.name("weight_block_size"), remedy));
    };
    let side = |v: &Value| v.as_u64().and_then(|n| u32::try_from(n).ok()).filter(|&n| n > 0);
    match size.as_array().map(Vec::as_slice) {
        Some([rows, columns]) if side(rows).is_some() && side(columns).is_some() => {
            Ok(Quantization::Fp8 { rows: side(rows).unwrap_or(1), columns: side(columns).unwrap_or(1) })
        }
        _ => Err(q.mistyped("weight_block_size", &size, "two positive integers, [rows, columns]")),
    }
}
