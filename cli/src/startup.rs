//! What lies between the start of the process and the first token.

use serde::Serialize;
use std::fmt;
use std::sync::OnceLock;
use std::time::Instant;
use weft_runtime::exec::LoadReport;

/// When the process began to run.
static BEGAN: OnceLock<Instant> = OnceLock::new();

/// Seconds since the process began to run: since the first call.
pub fn seconds() -> f64 {
    BEGAN.get_or_init(Instant::now).elapsed().as_secs_f64()
}

/// Seconds that came before the first token, by part.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Startup {
    /// From the start of the process to the first token.
    pub first_token_seconds: f64,
    /// Opening the checkpoint or bundle and its tokenizer; the prompts.
    pub open_seconds: f64,
    /// Finding the device.
    pub device_seconds: f64,
    /// Passes and code generation; 0 for a bundle.
    pub plan_seconds: f64,
    /// Kernels and weights.
    pub load_seconds: f64,
    /// Building the graphs of the prompt's step and of the answer.
    pub graph_seconds: f64,
    /// The prompt's step, the first of its kind.
    pub prompt_seconds: f64,
    /// How the plan was brought to the GPU; absent on the CPU.
    pub load: Option<LoadReport>,
}

impl fmt::Display for Startup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "first token after {:.2} s: opening {:.2}, device {:.2}, planning {:.2}, loading {:.2}",
            self.first_token_seconds,
            self.open_seconds,
            self.device_seconds,
            self.plan_seconds,
            self.load_seconds
        )?;
        if let Some(load) = &self.load {
            write!(f, " (weights {}; kernels {:.2} s)", load.upload, load.compile_seconds)?;
        }
        write!(f, ", graphs {:.3}, prompt {:.3}", self.graph_seconds, self.prompt_seconds)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use weft_runtime::exec::UploadReport;

    #[test]
    fn all_parts_are_told() {
        let upload =
            UploadReport { bytes: 16_060_000_000, seconds: 0.8, rate: 20.075e9, threads: 16, filling: 0.75 };
        let load = LoadReport { upload, compile_seconds: 0.0512, ..LoadReport::default() };
        let startup = Startup {
            first_token_seconds: 1.426,
            open_seconds: 0.1,
            device_seconds: 0.2,
            plan_seconds: 0.15,
            load_seconds: 0.95,
            graph_seconds: 0.012,
            prompt_seconds: 0.026,
            load: Some(load),
        };
        assert_eq!(
            startup.to_string(),
            "first token after 1.43 s: opening 0.10, device 0.20, planning 0.15, loading 0.95 (weights 16.06 GB in \
             0.80 s, 20.1 GB/s, 16 threads filling 75%; kernels 0.05 s), graphs 0.012, prompt 0.026"
        );
        assert!(seconds() >= 0.0 && seconds() <= seconds());
    }
}
