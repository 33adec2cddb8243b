//! `weft doctor`.

use super::print_json;
use crate::args::DoctorArgs;
use crate::errors::Result;
use crate::places;
use std::io::Write;
use weft_runtime::doctor::Report;

/// Prints what there is. What is missing is a finding, not a failure: `--device cpu` needs none of it.
pub fn run(args: &DoctorArgs) -> Result<()> {
    let report = Report::gather(&places::nvrtc_folders(), None);
    if args.json {
        return print_json(&report);
    }
    let mut out = std::io::stdout().lock();
    write!(out, "{report}")?;
    let yes = |b: bool| if b { "yes" } else { "no" };
    writeln!(out, "checks kernels with NVRTC: {}", yes(report.can_compile()))?;
    writeln!(out, "runs on a GPU:             {}", yes(report.can_run()))?;
    writeln!(out, "runs on the CPU:           yes")?;
    Ok(())
}
