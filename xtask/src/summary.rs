//! What a command did, step by step, and how long it took.

use std::time::Duration;

/// A step that ran.
pub struct Ran {
    /// Its name.
    pub name: String,
    /// How long it took.
    pub time: Duration,
    /// Whether it failed.
    pub failed: bool,
}

/// A line for each step, and one for all.
pub fn text(steps: &[Ran]) -> String {
    let width = steps.iter().map(|s| s.name.chars().count()).max().unwrap_or(0);
    let mut out = String::new();
    for Ran { name, time, failed } in steps {
        let verdict = if *failed { "FAILED" } else { "ok" };
        out.push_str(&format!("{name:<width$} {:>8.1} s  {verdict}\n", time.as_secs_f64()));
    }
    let seconds: f64 = steps.iter().map(|s| s.time.as_secs_f64()).sum();
    match steps.iter().filter(|s| s.failed).count() {
        0 => out.push_str(&format!("all {} steps passed in {seconds:.0} s\n", steps.len())),
        n => out.push_str(&format!("{n} of {} steps failed, {seconds:.0} s\n", steps.len())),
    }
    out
}

#[cfg(test)]
mod tests {
    use super::{Ran, text};
    use std::time::Duration;

    #[test]
    fn every_step_has_a_line_and_failures_are_counted() {
        let step =
            |name: &str, ms, failed| Ran { name: name.into(), time: Duration::from_millis(ms), failed };
        let steps = [step("a", 1200, false), step("long name", 300, true)];
        let all = "a              1.2 s  ok\nlong name      0.3 s  FAILED\n1 of 2 steps failed, 2 s\n";
        assert_eq!(text(&steps), all);
        assert!(text(&steps[..1]).ends_with("all 1 steps passed in 1 s\n"));
    }
}
