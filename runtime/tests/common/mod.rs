//! What the tests of this crate share.

use std::io::Write;
use std::path::Path;

use weft_runtime::nvrtc::Nvrtc;

/// NVRTC, or `None` when `WEFT_SKIP_NVRTC=1` allows going without.
///
/// # Panics
/// With the remedy, when there is none.
pub fn nvrtc() -> Option<Nvrtc> {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("../.weft/nvrtc");
    match Nvrtc::load(&[workspace]) {
        Ok(nvrtc) => Some(nvrtc),
        Err(error) if std::env::var("WEFT_SKIP_NVRTC").is_ok_and(|value| value == "1") => {
            shout(&format!("SKIPPED: no NVRTC ({error})"));
            None
        }
        Err(error) => panic!("{error}\n(or set WEFT_SKIP_NVRTC=1 to go without these tests)"),
    }
}

/// Writes a line to standard error itself: the test harness hides what passing tests print.
pub fn shout(line: &str) {
    let test = std::thread::current().name().unwrap_or("?").to_owned();
    // Nothing is lost but the line.
    let _ = writeln!(std::io::stderr(), "{test}: {line}");
}
