//! The files of sentence-transformers.

use super::{Cases, case, sparse, whole, with_file, write};
use serde_json::{Value, json};

const M: &str = "modules.json";
const P: &str = "1_Pooling/config.json";
const C: &str = "config_sentence_transformers.json";
const S: &str = "sentence_bert_config.json";

/// Modules of which the second, a pooling, is in the folder `place`.
fn modules(place: &str) -> Value {
    json!([
        {"type": "sentence_transformers.models.Transformer", "path": ""},
        {"type": "sentence_transformers.models.Pooling", "path": place},
    ])
}

/// A whole set of files with these two.
fn with(
    all: &mut Cases,
    name: &'static str,
    parts: &'static [&'static str],
    modules: Value,
    pooling: Value,
    transformer: Value,
) {
    case(all, name, parts, move |folder| {
        whole(folder);
        std::fs::create_dir(folder.join("1_Pooling")).unwrap();
        for (file, value) in [(M, &modules), (P, &pooling), (S, &transformer)] {
            write(folder, file, value.to_string());
        }
        folder.to_owned()
    });
}

pub(super) fn pooling(all: &mut Cases) {
    let mean = || json!({"pooling_mode_mean_tokens": true});
    let usual = || json!({"max_seq_length": 128});
    case(all, "modules of a terabyte", &[M, "size", "at most"], |folder| {
        whole(folder);
        sparse(&folder.join(M), 1 << 40);
        folder.to_owned()
    });
    with_file(all, "modules nested deep", &[M, "JSON"], M, || "[".repeat(1 << 20).into_bytes());
    with_file(all, "modules not UTF-8", &[M, "JSON"], M, || b"[{\"type\": \"\xFF\"}]".to_vec());
    with_file(all, "modules that are numbers", &[M, "[0]", "not an object"], M, || {
        format!("[{}1]", "1,".repeat(1 << 20)).into_bytes()
    });
    with(
        all,
        "fifty thousand transformers",
        &[M, "[1].type"],
        json!(vec![modules("")[0].clone(); 50_000]),
        mean(),
        usual(),
    );
    with(all, "a module without its type", &[M, "[0].type"], json!([{"path": ""}]), mean(), usual());
    with(all, "no pooling among the modules", &[M, "Pooling"], json!([]), mean(), usual());
    with(all, "a pooling outside", &[M, "[1].path", "../x"], modules("../x"), mean(), usual());
    with(all, "a pooling at the root", &[M, "[1].path", "/etc"], modules("/etc"), mean(), usual());
    with(
        all,
        "a pooling that is not there",
        &["2_Pooling/config.json"],
        modules("2_Pooling"),
        mean(),
        usual(),
    );
    case(all, "a pooling that is a folder", &[P, "not a regular file"], |folder| {
        whole(folder);
        write(folder, M, modules("1_Pooling").to_string());
        std::fs::create_dir_all(folder.join(P)).unwrap();
        folder.to_owned()
    });
    let mode = |all: &mut Cases, name, parts, value: Value| {
        with(all, name, parts, modules("1_Pooling"), value, usual());
    };
    mode(all, "a pooling that is no object", &[P], json!([1, 2]));
    mode(
        all,
        "a mode that is a number",
        &[P, "pooling_mode_mean_tokens"],
        json!({"pooling_mode_mean_tokens": 7}),
    );
    mode(
        all,
        "a mode of another kind",
        &[P, "pooling_mode", "attention"],
        json!({"pooling_mode": "attention"}),
    );
    mode(all, "no mode", &[P, "a pooling mode"], json!({"pooling_mode_mean_tokens": false}));
    mode(
        all,
        "a pooling with a key of its own",
        &[P, "warp", "unknown"],
        json!({"pooling_mode": "cls", "warp": 9}),
    );
    let prompts = |all: &mut Cases, name, parts, value: Value| {
        case(all, name, parts, move |folder| {
            whole(folder);
            std::fs::create_dir(folder.join("1_Pooling")).unwrap();
            for (file, value) in
                [(M, modules("1_Pooling")), (P, json!({"pooling_mode": "mean"})), (C, value.clone())]
            {
                write(folder, file, value.to_string());
            }
            folder.to_owned()
        });
    };
    prompts(all, "prompts that are no object", &[C, "JSON"], json!([1, 2]));
    prompts(
        all,
        "a prompt that is a number",
        &[C, "default_prompt_name", "7, not text"],
        json!({"default_prompt_name": "a", "prompts": {"a": 7}}),
    );
    prompts(
        all,
        "a prompt among numbers",
        &[C, "default_prompt_name"],
        json!({"default_prompt_name": "a", "prompts": [1]}),
    );
    case(all, "prompts of a terabyte", &[C, "size", "at most"], |folder| {
        whole(folder);
        std::fs::create_dir(folder.join("1_Pooling")).unwrap();
        write(folder, M, modules("1_Pooling").to_string());
        write(folder, P, json!({"pooling_mode": "mean"}).to_string());
        sparse(&folder.join(C), 1 << 40);
        folder.to_owned()
    });
    let length = |all: &mut Cases, name, parts, value: Value| {
        with(all, name, parts, modules("1_Pooling"), mean(), json!({"max_seq_length": value}));
    };
    length(all, "texts of no token", &[S, "max_seq_length", "no token"], json!(0));
    length(all, "texts of fewer tokens", &[S, "max_seq_length"], json!(-1));
    length(all, "texts of too many tokens", &[S, "max_seq_length"], json!(1e30));
    length(all, "texts of half a token", &[S, "max_seq_length"], json!(0.5));
}
