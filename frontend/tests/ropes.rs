//! Ropes and windows that a configuration describes twice: the same twice is read, a contradiction is a named error.

mod common;

use common::fixture;
use serde_json::{Map, Value, json};
use std::path::Path;
use weft_frontend::config::{ModelConfig, hf};

/// The configuration of a fixture without ropes and patterns of windows, and with changes; null stays in it.
fn parse(name: &str, changes: Value) -> Result<ModelConfig, String> {
    let text = std::fs::read(fixture(name).join("config.json")).expect("reads");
    let mut config: Map<String, Value> = serde_json::from_slice(&text).expect("JSON");
    for key in [
        "rope_theta",
        "rope_scaling",
        "rope_parameters",
        "rope_local_base_freq",
        "local_rope_theta",
        "layer_types",
        "_sliding_window_pattern",
    ] {
        config.remove(key);
    }
    let Value::Object(mut changes) = changes else { panic!("{changes} is no object") };
    config.append(&mut changes);
    let text = serde_json::to_vec(&config).expect("JSON");
    hf::parse(Path::new("some/config.json"), &text, &[]).map_err(|e| e.to_string())
}

#[track_caller]
fn refused(name: &str, changes: Value, parts: &[&str]) {
    let text = parse(name, changes).expect_err("accepted");
    for part in ["some/config.json"].iter().chain(parts) {
        assert!(text.contains(part), "{part:?} is not in: {text}");
    }
}

#[test]
fn scaling_and_parameters_that_agree_are_read() {
    let linear = json!({"rope_type": "linear", "factor": 2.0, "rope_theta": 5e5});
    let one = parse("tiny/llama", json!({"rope_parameters": linear})).expect("read");
    for both in [
        json!({"rope_parameters": linear, "rope_scaling": {"type": "linear", "factor": 2}, "rope_theta": 5e5}),
        json!({"rope_parameters": linear, "rope_scaling": linear}),
        json!({"rope_parameters": linear, "rope_scaling": null}),
        // transformers goes on to rope_parameters.
        json!({"rope_parameters": linear, "rope_scaling": {}}),
    ] {
        assert_eq!(parse("tiny/llama", both.clone()).expect("read"), one, "{both}");
    }
    let full = json!({"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6});
    let kinds = json!({"full_attention": full, "sliding_attention": {"rope_theta": 1e4}});
    let one = parse("tiny/gemma3", json!({"rope_parameters": kinds})).expect("read");
    let scaling = json!({"type": "linear", "factor": 8.0});
    let both = json!({"rope_parameters": kinds, "rope_scaling": scaling, "rope_local_base_freq": 10000});
    assert_eq!(parse("tiny/gemma3", both).expect("read"), one);
}

#[test]
fn scaling_that_contradicts_parameters_is_an_error() {
    let plain = json!({"rope_type": "default", "rope_theta": 1e4});
    let linear = json!({"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4});
    for (new, old) in [
        (&plain, json!({"rope_type": "linear", "factor": 2.0})),
        (&linear, json!({"rope_type": "default"})),
        (&linear, json!({"rope_type": "linear", "factor": 4.0})),
        (&linear, json!({"rope_type": "dynamic", "factor": 2.0})),
        (&linear, json!({"rope_type": "linear", "factor": 2.0, "rope_theta": 5e5})),
    ] {
        let both = json!({"rope_parameters": new, "rope_scaling": old});
        refused("tiny/llama", both, &["rope_scaling: ", "contradicts rope_parameters = {", "remove the one"]);
    }
    // Without it beside rope_scaling, transformers takes the family's base.
    let theta = json!({"rope_type": "linear", "factor": 2.0, "rope_theta": 5e5});
    let scaling = json!({"rope_type": "linear", "factor": 2.0});
    refused(
        "tiny/llama",
        json!({"rope_parameters": theta, "rope_scaling": scaling}),
        &["contradicts rope_parameters"],
    );
    let kinds = json!({"full_attention": plain, "sliding_attention": plain});
    let both = json!({"rope_parameters": kinds, "rope_scaling": {"type": "linear", "factor": 8.0}});
    refused("tiny/gemma3", both, &["rope_scaling: ", "contradicts rope_parameters"]);
    refused(
        "tiny/llama",
        json!({"rope_parameters": plain, "rope_scaling": "on"}),
        &["rope_scaling: is \"on\""],
    );
}

/// The class's rope, where neither key gives one.
#[test]
fn an_empty_scaling_is_none() {
    let absent = parse("tiny/gpt-oss", json!({})).expect("read");
    assert_eq!(parse("tiny/gpt-oss", json!({"rope_scaling": {}})).expect("read"), absent);
}

#[test]
fn the_base_of_windows_is_given_once() {
    let sliding = |theta: f64| json!({"sliding_attention": {"rope_type": "default", "rope_theta": theta}});
    let both = json!({"rope_parameters": sliding(5e3), "rope_local_base_freq": 5000});
    let local = parse("tiny/gemma3", both).expect("read").local_rope.expect("a rope");
    assert_eq!(local.theta, 5e3);
    refused(
        "tiny/gemma3",
        json!({"rope_parameters": sliding(5e3), "rope_local_base_freq": 1e4}),
        &["rope_parameters.sliding_attention.rope_theta", "5000 contradicts rope_local_base_freq = 10000"],
    );
    let older = "variants/modernbert-older";
    refused(
        older,
        json!({"rope_parameters": sliding(5e3), "local_rope_theta": 1e4}),
        &["5000 contradicts local_rope_theta = 10000"],
    );
    let theta = |changes: Value| parse(older, changes).expect("read").local_rope.expect("a rope").theta;
    assert_eq!(theta(json!({"global_rope_theta": 8e4})), 1e4, "the class's default");
    assert_eq!(theta(json!({"global_rope_theta": 8e4, "local_rope_theta": 7e3})), 7e3);
    assert_eq!(theta(json!({"global_rope_theta": 8e4, "local_rope_theta": null})), 8e4, "the global one");
}

#[test]
fn the_pattern_of_windows_is_given_once() {
    let windows = |changes: Value| parse("tiny/gemma3", changes).expect("read").attention;
    let alone = windows(json!({"sliding_window_pattern": 2}));
    assert_ne!(alone, windows(json!({})), "the pattern says nothing");
    assert_eq!(windows(json!({"_sliding_window_pattern": 2})), alone);
    assert_eq!(windows(json!({"_sliding_window_pattern": 2, "sliding_window_pattern": 2})), alone);
    refused(
        "tiny/gemma3",
        json!({"_sliding_window_pattern": 3, "sliding_window_pattern": 2}),
        &["_sliding_window_pattern", "3 contradicts sliding_window_pattern = 2"],
    );
}
