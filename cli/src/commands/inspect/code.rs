//! One kernel as code.

use super::target;
use crate::args::EmitArg;
use crate::bundle::Bundle;
use crate::errors::{Error, Result};
use crate::{nvdisasm, nvrtc};
use std::io::Write;

/// Prints a kernel as CUDA C, PTX or machine code.
pub fn run(bundle: &Bundle, name: &str, emit: EmitArg) -> Result<()> {
    let at = super::kernel(&bundle.plan, name)?;
    let source = bundle.sources.get(at).map_or("", String::as_str);
    let target = target(&bundle.plan)?;
    let needs = |why: String| Error::failed(format!("--emit {} needs NVRTC: {why}", emit.name()));
    let text = match emit {
        EmitArg::Cuda => source.to_owned(),
        EmitArg::Ptx => nvrtc::load(target).map_err(needs)?.ptx(source, name, target.nvrtc_arch, &[])?,
        EmitArg::Sass => {
            // Before the compilation, which takes longer.
            nvdisasm::find()?;
            let built = nvrtc::compile(std::iter::once((name, source)), target)?.map_err(needs)?;
            let cubin = built.kernels.first().map(|b| b.compiled.cubin.as_slice()).unwrap_or_default();
            nvdisasm::disassemble(cubin)?
        }
    };
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes())?;
    Ok(())
}

impl EmitArg {
    fn name(self) -> &'static str {
        match self {
            EmitArg::Cuda => "cuda",
            EmitArg::Ptx => "ptx",
            EmitArg::Sass => "sass",
        }
    }
}
