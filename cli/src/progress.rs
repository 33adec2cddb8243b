//! Progress bars on stderr; silent where stderr is not a terminal.

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

/// A bar that counts bytes.
pub fn bytes(what: &'static str) -> ProgressBar {
    bar(what, "{msg} [{bar:30}] {bytes}/{total_bytes} {bytes_per_sec}")
}

/// A bar that counts things.
pub fn count(what: &'static str) -> ProgressBar {
    bar(what, "{msg} [{bar:30}] {pos}/{len}")
}

fn bar(what: &'static str, template: &str) -> ProgressBar {
    // stderr's draw target draws nothing when stderr is not a terminal.
    let bar = ProgressBar::with_draw_target(Some(0), ProgressDrawTarget::stderr());
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style.progress_chars("=> "));
    }
    bar.set_message(what);
    bar
}

/// Two bars that run at the same time, one below the other.
pub fn together(one: ProgressBar, other: ProgressBar) -> (ProgressBar, ProgressBar) {
    let both = MultiProgress::with_draw_target(ProgressDrawTarget::stderr());
    (both.add(one), both.add(other))
}

/// Tells a bar how far the work has come.
pub fn tell(bar: &ProgressBar, done: u64, total: u64) {
    bar.set_length(total);
    bar.set_position(done);
}
