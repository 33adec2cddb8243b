//! On a machine without a driver every entry point says so by name, and nothing panics. With a driver these tests
//! check what is there instead.

use weft_runtime::Error;
use weft_runtime::doctor::{Report, Status};
use weft_runtime::sys::context::Context;
use weft_runtime::sys::driver::Driver;

/// The error of a machine that lacks something, in full.
fn check_missing(error: &Error) {
    let text = error.to_string();
    assert!(error.is_missing(), "{text}");
    assert!(text.contains("--device cpu"), "no remedy in: {text}");
}

#[test]
fn a_missing_driver_is_an_error_with_a_remedy() {
    match Driver::probe() {
        Ok(()) => assert!(Driver::init().map_or_else(|error| error.is_missing(), |_| true)),
        Err(error) => {
            check_missing(&error);
            // Every way in, and again: the first answer is remembered.
            for _ in 0..2 {
                check_missing(&Driver::init().expect_err("no driver"));
                check_missing(&Context::open(0).expect_err("no driver"));
            }
            if matches!(error, Error::NoDriver { .. }) {
                assert!(error.to_string().starts_with("no NVIDIA driver: libcuda.so.1 not found"), "{error}");
            }
        }
    }
}

#[test]
fn threads_may_ask_at_the_same_time() {
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| Driver::init().is_ok());
        }
    });
}

#[test]
fn the_doctor_reports_what_is_there_and_what_is_not() {
    let folder = tempfile::tempdir().expect("a folder");
    let report = Report::gather(&[], Some(folder.path()));
    for part in ["driver", "gpu", "nvrtc", "cache"] {
        assert!(report.checks.iter().any(|check| check.part == part), "no {part} in\n{report}");
    }
    for check in &report.checks {
        assert_eq!(check.status == Status::Missing, check.remedy.is_some(), "{check:?}");
        assert!(!check.detail.is_empty(), "{check:?}");
    }
    assert_eq!(report.driver.is_some(), Driver::init().is_ok());
    assert!(report.cache.is_some());
    assert!(!report.can_run() || !report.gpus.is_empty());
    let json = serde_json::to_value(&report).expect("serialises");
    assert_eq!(json["checks"].as_array().map(Vec::len), Some(report.checks.len()));
    assert_eq!(json["cache"]["size"]["entries"], 0);
    let table = report.to_string();
    assert!(table.contains("driver") && table.contains("cache   ok"), "{table}");
    println!("{table}");
}

#[test]
fn a_cache_folder_that_is_a_file_is_reported() {
    let file = tempfile::NamedTempFile::new().expect("a file");
    let report = Report::gather(&[], Some(file.path()));
    let cache = report.checks.iter().find(|check| check.part == "cache").expect("a line");
    assert_eq!(cache.status, Status::Missing);
    assert!(cache.remedy.as_deref().is_some_and(|remedy| remedy.contains("WEFT_CACHE_DIR")), "{cache:?}");
}
