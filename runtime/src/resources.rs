//! Reads what ptxas reports of each kernel (`--ptxas-options=-v`) out of NVRTC's log.

use serde::{Deserialize, Serialize};

/// What one kernel takes, as ptxas reports it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resources {
    /// The kernel's name in the cubin.
    pub kernel: String,
    /// Registers a thread.
    pub registers: u32,
    /// Named barriers a block.
    pub barriers: u32,
    /// Stack frame a thread, in bytes.
    pub stack: u32,
    /// Spilled stores a thread, in bytes.
    pub spill_stores: u32,
    /// Spilled loads a thread, in bytes.
    pub spill_loads: u32,
    /// Static shared memory a block, in bytes.
    pub shared: u32,
}

/// What a log says.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogReport {
    /// One entry a kernel, in the order of their names.
    pub kernels: Vec<Resources>,
    /// Warnings of ptxas, and its performance remarks (`C7510`: wgmma is serialised…), one line each.
    pub ptxas_warnings: Vec<String>,
}

impl LogReport {
    /// Reads a log. Lines it does not know are passed over.
    pub fn parse(log: &str) -> LogReport {
        let mut report = LogReport::default();
        let mut current: Option<Resources> = None;
        // "Function properties" also come for functions that were not inlined: only the kernel's own count.
        let mut own_properties = false;
        for line in log.lines() {
            let Some(rest) = line.strip_prefix("ptxas") else {
                if own_properties && line.contains("bytes stack frame") {
                    read_stack(line, current.as_mut());
                }
                continue;
            };
            if let Some(name) = quoted_after(rest, "Compiling entry function '") {
                report.kernels.extend(current.take());
                current = Some(Resources { kernel: name.to_owned(), ..Resources::default() });
                own_properties = false;
            } else if let Some((_, name)) = rest.split_once("Function properties for ") {
                own_properties = current.as_ref().is_some_and(|kernel| kernel.kernel == name.trim());
            } else if rest.contains("bytes stack frame") {
                if own_properties {
                    read_stack(rest, current.as_mut());
                }
            } else if let Some((_, used)) = rest.split_once(": Used ") {
                if let Some(kernel) = &mut current {
                    kernel.registers = number_before(used, "registers").unwrap_or(0);
                    kernel.barriers = number_before(used, "barriers").unwrap_or(0);
                    kernel.shared = number_before(used, "bytes smem").unwrap_or(0);
                }
            } else if is_warning(rest) {
                report.ptxas_warnings.push(line.trim().to_owned());
            }
        }
        report.kernels.extend(current);
        report.kernels.sort_by(|a, b| a.kernel.cmp(&b.kernel));
        report
    }

    /// What is said of one kernel.
    pub fn kernel(&self, name: &str) -> Option<&Resources> {
        self.kernels.iter().find(|kernel| kernel.kernel == name)
    }
}

fn read_stack(line: &str, kernel: Option<&mut Resources>) {
    if let Some(kernel) = kernel {
        kernel.stack = number_before(line, "bytes stack frame").unwrap_or(0);
        kernel.spill_stores = number_before(line, "bytes spill stores").unwrap_or(0);
        kernel.spill_loads = number_before(line, "bytes spill loads").unwrap_or(0);
    }
}

/// True for `ptxas warning : …` and for numbered remarks such as `ptxas info : (C7510) Potential Performance Loss`.
fn is_warning(rest: &str) -> bool {
    let rest = rest.trim_start();
    let numbered = rest.split_once("(C").is_some_and(|(_, tail)| {
        tail.split_once(')')
            .is_some_and(|(code, _)| !code.is_empty() && code.bytes().all(|b| b.is_ascii_digit()))
    });
    numbered
        || (rest.contains("warning")
            && rest.split_once(':').is_some_and(|(head, _)| head.contains("warning")))
}

/// The text between a marker, which ends in a quote, and the next quote.
fn quoted_after<'a>(text: &'a str, marker: &str) -> Option<&'a str> {
    text.split_once(marker)?.1.split_once('\'').map(|(name, _)| name)
}

/// The number that stands just before a word.
fn number_before(text: &str, word: &str) -> Option<u32> {
    text.split_once(word)?.0.trim_end().rsplit(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOG: &str = "\
k.cu(3): warning #177-D: variable \"unused\" was declared but never referenced

ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function 'b' for 'sm_90a'
ptxas info    : (C7510) Potential Performance Loss: wgmma.mma_async instructions are serialized due to insufficient
ptxas info    : Function properties for helper
ptxas         .     64 bytes stack frame, 8 bytes spill stores, 8 bytes spill loads
ptxas info    : Function properties for b
ptxas         .     0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 8 registers, used 0 barriers
ptxas info    : Compiling entry function 'a' for 'sm_90a'
ptxas warning : Value of threads per SM for entry a is out of range
ptxas info    : Function properties for a
ptxas         .     2288 bytes stack frame, 2380 bytes spill stores, 2792 bytes spill loads
ptxas info    : Used 32 registers, used 1 barriers, 2288 bytes cumulative stack size, 256 bytes smem, 400 bytes cmem[0]
";

    #[test]
    fn reads_every_kernel_and_warning() {
        let report = LogReport::parse(LOG);
        let a = Resources {
            kernel: "a".into(),
            registers: 32,
            barriers: 1,
            stack: 2288,
            spill_stores: 2380,
            spill_loads: 2792,
            shared: 256,
        };
        let b = Resources { kernel: "b".into(), registers: 8, ..Resources::default() };
        assert_eq!(report.kernels, [a.clone(), b]);
        assert_eq!(report.kernel("a"), Some(&a));
        assert_eq!(report.ptxas_warnings.len(), 2, "{:?}", report.ptxas_warnings);
        assert!(report.ptxas_warnings[0].contains("C7510"));
    }

    #[test]
    fn an_empty_or_foreign_log_says_nothing() {
        assert_eq!(LogReport::parse(""), LogReport::default());
        assert_eq!(
            LogReport::parse("bytes stack frame, Used registers\nptxas fatal : x"),
            LogReport::default()
        );
    }
}
