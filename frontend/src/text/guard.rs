//! Work that a checkpoint's own code (a chat template) directs, within bounds of memory and time.
//!
//! The template engine counts instructions, but one of them may double a string, so forty fill any memory. Here the
//! work runs in a thread of its own while this one watches the process's resident memory. What goes beyond is given
//! up: the thread is left to its instructions' bound, and the caller has an error to end the process with.

use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

/// Growth of the process that is allowed.
const MEMORY: u64 = 96 << 20;
/// Time that is allowed.
const TIME: Duration = Duration::from_secs(3);
/// Time between two looks.
const LOOK: Duration = Duration::from_millis(1);
/// Room for values within values, which are dropped by recursion; only what is touched takes memory.
const STACK: usize = 512 << 20;

/// Why work was given up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stopped {
    /// Too much memory.
    Memory,
    /// Too much time.
    Time,
    /// The thread could not be started, or panicked.
    Failed,
}

impl Stopped {
    /// As an error says it.
    pub fn problem(self) -> String {
        match self {
            Stopped::Memory => format!("takes more than {} MiB of memory", MEMORY >> 20),
            Stopped::Time => format!("takes longer than {} seconds", TIME.as_secs()),
            Stopped::Failed => "the template engine gave up".to_owned(),
        }
    }
}

/// The result of work, or why it was given up.
pub(super) fn run<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, Stopped> {
    let (send, result) = mpsc::channel();
    let before = resident();
    let begin = Instant::now();
    let thread = std::thread::Builder::new().name("chat template".to_owned()).stack_size(STACK);
    // The receiver is gone only when the work was given up.
    thread.spawn(move || drop(send.send(work()))).map_err(|_| Stopped::Failed)?;
    loop {
        match result.recv_timeout(LOOK) {
            Ok(value) => return Ok(value),
            Err(RecvTimeoutError::Disconnected) => return Err(Stopped::Failed),
            Err(RecvTimeoutError::Timeout) if begin.elapsed() > TIME => return Err(Stopped::Time),
            Err(RecvTimeoutError::Timeout) => {
                if resident().zip(before).is_some_and(|(now, then)| now > then + MEMORY) {
                    return Err(Stopped::Memory);
                }
            }
        }
    }
}

/// Resident memory of the process, without mapped files, in bytes, where the system says it.
fn resident() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|l| l.strip_prefix("RssAnon:"))?;
    line.trim().trim_end_matches("kB").trim().parse::<u64>().ok().map(|kib| kib << 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_come_back_and_panics_are_said() {
        assert_eq!(run(|| 3), Ok(3));
        assert_eq!(run(|| -> u8 { panic!("within a template") }), Err(Stopped::Failed));
        memory_is_bounded();
    }

    // Not beside another test: the memory that is measured is the process's.
    fn memory_is_bounded() {
        let begin = Instant::now();
        let stopped = run(|| {
            let mut text = String::from("0123456789");
            for _ in 0..26 {
                text = format!("{text}{text}");
            }
            std::thread::sleep(Duration::from_millis(200));
            text.len()
        });
        assert_eq!(stopped, Err(Stopped::Memory));
        assert!(begin.elapsed() < TIME);
    }
}
