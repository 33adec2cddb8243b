//! Families whose tiny checkpoint has a golden.

use crate::compare::golden;
use weft_testsuite::gguf::Meta;

#[test]
fn families_with_a_golden() {
    let window = |n: u32| ("attention.sliding_window", Meta::Size(n));
    golden("llama", "llama", &[]);
    golden("qwen2", "qwen2", &[]);
    golden("qwen3", "qwen3", &[]);
    golden("gpt2", "gpt2", &[]);
    golden("gpt-neox", "gptneox", &[("use_parallel_residual", Meta::Flag(true))]);
    golden("bloom", "bloom", &[]);
    golden("falcon", "falcon", &[("tensor_data_layout", Meta::Text("jploski"))]);
    golden("olmo2", "olmo2", &[]);
    let experts = |n: u32| [("expert_count", Meta::Size(n)), ("expert_used_count", Meta::Size(2))];
    golden("mixtral", "llama", &experts(4));
    let width = ("expert_feed_forward_length", Meta::Size(48));
    golden("qwen3-moe", "qwen3moe", &[&experts(8)[..], &[width]].concat());
    let yarn = [
        ("rope.scaling.type", Meta::Text("yarn")),
        ("rope.scaling.factor", Meta::Number(32.0)),
        ("rope.scaling.original_context_length", Meta::Size(4096)),
        ("expert_feed_forward_length", Meta::Size(192)),
        // The fixture's context is shorter than what its scaling is for.
        ("context_length", Meta::Size(4096)),
        window(16),
    ];
    golden("gpt-oss", "gpt-oss", &[&experts(4)[..], &yarn].concat());
    let caps = [
        window(16),
        ("attn_logit_softcapping", Meta::Number(50.0)),
        ("final_logit_softcapping", Meta::Number(30.0)),
    ];
    golden("gemma2", "gemma2", &caps);
    let flags = Meta::Flags(vec![true, true, true, false]);
    golden("gemma3", "gemma3", &[window(16), ("attention.sliding_window_pattern", flags)]);
    golden("phi3", "phi3", &[window(0), ("rope.scaling.original_context_length", Meta::Size(4096))]);
}
