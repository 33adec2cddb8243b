//! Writes a checkpoint's tensors as llama.cpp's converter does.

use std::collections::BTreeMap;
use std::path::Path;
use weft_frontend::checkpoint::Checkpoint;
use weft_frontend::config::{Norm, PositionKind, QkNorm};
use weft_ir::decode::decode_f32;
use weft_testsuite::gguf::{Meta, Names, Tensor, apart, permuted, transposed, write};

type Tensors = BTreeMap<String, Tensor>;

/// A Hugging Face folder's tensors.
pub fn tensors(checkpoint: &Checkpoint) -> Tensors {
    let read = |t: &weft_frontend::tensor::TensorInfo| {
        let mut values = vec![0.0; t.elements().expect("elements")];
        let bytes = checkpoint.bytes(&t.name).expect("bytes");
        decode_f32(t.encoding.expect("type"), bytes, &mut values).expect("decodes");
        (t.name.clone(), (t.shape.clone(), values))
    };
    checkpoint.tensors().map(read).collect()
}

/// Writes a checkpoint's tensors as the converter does.
pub fn convert(
    hf: &Checkpoint,
    arch: &'static str,
    more: &[(&str, Meta)],
    factors: &[(&str, Vec<f32>)],
    to: &Path,
) {
    let c = hf.config();
    let size = |n: usize| Meta::Size(n as u32);
    let layer_norm = matches!(c.norm, Norm::Layer { .. });
    let eps = if layer_norm { "attention.layer_norm_epsilon" } else { "attention.layer_norm_rms_epsilon" };
    let mut meta = vec![("general.architecture".to_owned(), Meta::Text(arch))];
    let sizes = [
        ("block_count", size(c.layers)),
        ("context_length", size(c.max_position)),
        ("embedding_length", size(c.hidden_size)),
        ("feed_forward_length", size(c.intermediate_size)),
        ("attention.head_count", size(c.heads)),
        ("attention.head_count_kv", size(c.kv_heads)),
        (eps, Meta::Number(c.norm_eps as f32)),
    ];
    let rotary = [
        ("rope.freq_base", Meta::Number(c.rope.theta as f32)),
        ("rope.dimension_count", size(c.rope.dim)),
        ("attention.key_length", size(c.head_dim)),
        ("attention.value_length", size(c.head_dim)),
    ];
    let rotary = rotary.into_iter().filter(|_| c.positions == PositionKind::Rotary);
    let own = more.iter().map(|(k, v)| (*k, v.clone()));
    let usual = sizes.into_iter().chain(rotary).filter(|(k, _)| more.iter().all(|(other, _)| other != k));
    meta.extend(usual.chain(own).map(|(k, v)| (format!("{arch}.{k}"), v)));
    // RoBERTa's files are BERT's.
    let names = Names::of(if arch == "bert" { "bert" } else { &c.model_type });
    let whole = more.iter().all(|(key, _)| *key != "attention.key_length_mla");
    let gemma = arch.starts_with("gemma");
    let mut out: BTreeMap<String, Tensor> = BTreeMap::new();
    let mut stacks: BTreeMap<String, Vec<(String, Tensor)>> = BTreeMap::new();
    for (name, mut t) in tensors(hf) {
        if gemma && name.ends_with("norm.weight") {
            t.1.iter_mut().for_each(|v| *v += 1.0);
        }
        // The metadata has no query_pre_attn_scalar; llama.cpp scales by the width of a head. The fixtures' own is 64
        // for heads of 32, so their queries are stored smaller by the root of a half.
        let queries = if c.qk_norm == QkNorm::None { "q_proj.weight" } else { "q_norm.weight" };
        if gemma && name.ends_with(queries) {
            t.1.iter_mut().for_each(|v| *v *= 0.5f32.sqrt());
        }
        if arch == "bert" && name.starts_with("pooler.") {
            continue;
        }
        if arch == "bert" && name.contains("position_embeddings") {
            let width = t.0[1];
            t.1.drain(..c.position_offset * width);
            t.0[0] = t.1.len() / width;
        }
        if arch == "deepseek2"
            && !(whole && name.contains("kv_b_proj"))
            && let Some(stored) = deepseek(&name, &t, hf)
        {
            out.extend(stored.into_iter().map(|(name, t)| (names.get(&name), t)));
            continue;
        }
        if arch == "gpt-oss"
            && let Some(stored) = gpt_oss(&name, &t)
        {
            out.extend(stored.into_iter().map(|(name, t)| (names.get(&name), t)));
            continue;
        }
        // StableLM's norms of heads are stacked.
        if let Some((stem, row)) = name.split_once(".norms.") {
            let row: usize = row.split('.').next().and_then(|n| n.parse().ok()).expect("a row");
            let stacked = out.entry(names.get(&format!("{stem}.weight"))).or_default();
            let d = t.1.len();
            stacked.1.resize(stacked.1.len().max((row + 1) * d), 0.0);
            stacked.1[row * d..(row + 1) * d].copy_from_slice(&t.1);
            stacked.0 = vec![stacked.1.len() / d, d];
            continue;
        }
        // Experts are stacked, one name for all (`Model.modify_tensors`).
        if let Some((stem, rest)) = name.split_once(".experts.") {
            let (_, part) = rest.split_once('.').expect("a part");
            stacks.entry(names.get(&format!("{stem}.experts.{part}"))).or_default().push((name.clone(), t));
            continue;
        }
        let (q, k) = (name.contains("q_proj"), name.contains("k_proj"));
        let t = match arch {
            "llama" | "mixtral" | "granite" | "smollm3" if q => permuted(&t, c.heads),
            "llama" | "granite" | "smollm3" if k => permuted(&t, c.kv_heads),
            "gpt2" if name.contains(".c_") && name.ends_with("weight") => transposed(&t),
            "gptneox" | "bloom" | "falcon" if name.contains("query_key_value") => {
                apart(&t, c.heads, c.kv_heads)
            }
            _ => t,
        };
        out.insert(names.get(&name), t);
    }
    for (name, all) in stacks {
        // Fewer than ten, so their names are in the order of their numbers.
        assert!(all.len() < 10);
        let shape = [&[all.len()], all[0].1.0.as_slice()].concat();
        out.insert(name, (shape, all.iter().flat_map(|(_, t)| t.1.clone()).collect()));
    }
    out.extend(factors.iter().map(|(n, v)| ((*n).to_owned(), (vec![v.len()], v.clone()))));
    write(to, &meta, &out.into_iter().collect::<Vec<_>>());
}

/// What the converter makes of DeepSeek's matrices of keys, which it turns, and of values, and of the routers' biases
/// (`DeepseekV2Model.modify_tensors`).
fn deepseek(name: &str, (_, values): &Tensor, hf: &Checkpoint) -> Option<Vec<(String, Tensor)>> {
    if let Some(stem) = name.strip_suffix("_bias") {
        return Some(vec![(format!("{stem}.bias"), (vec![values.len()], values.clone()))]);
    }
    let stem = name.strip_suffix("kv_b_proj.weight")?;
    let (heads, l) = (hf.config().heads, hf.config().latent.expect("latent attention"));
    let of = l.plain + l.value;
    let row = |h: usize, i: usize| values[(h * of + i) * l.kv_rank..][..l.kv_rank].to_vec();
    let turned = |h: usize| (0..l.kv_rank).flat_map(move |r| (0..l.plain).map(move |i| row(h, i)[r]));
    let keys = (0..heads).flat_map(turned).collect();
    let kept = |h: usize| (l.plain..of).flat_map(move |i| row(h, i));
    let values = (0..heads).flat_map(kept).collect();
    Some(vec![
        (format!("{stem}k_b_proj.weight"), (vec![heads, l.kv_rank, l.plain], keys)),
        (format!("{stem}v_b_proj.weight"), (vec![heads, l.value, l.kv_rank], values)),
    ])
}

/// What the converter makes of gpt-oss's experts (gate and up of even and odd columns, matrices turned) and sinks
/// (`GptOssModel.modify_tensors`).
fn gpt_oss(name: &str, (shape, values): &Tensor) -> Option<Vec<(String, Tensor)>> {
    if name.ends_with(".sinks") {
        return Some(vec![(format!("{name}.weight"), (shape.clone(), values.clone()))]);
    }
    let (stem, part) = name.split_once(".experts.")?;
    let is_bias = part.ends_with("_bias");
    let (matrix, kind) = (part.trim_end_matches("_bias"), if is_bias { "bias" } else { "weight" });
    let (experts, columns) = (shape[0], *shape.last().expect("columns"));
    let rows = values.len() / experts / columns;
    // Columns `from, from + step, …` of each expert as rows.
    let turned = |to: &str, from: usize, step: usize| {
        let of = |e: usize, c: usize| (0..rows).map(move |r| values[(e * rows + r) * columns + c]);
        let chosen = (0..experts).flat_map(|e| (from..columns).step_by(step).flat_map(move |c| of(e, c)));
        let mut shape = vec![experts, columns / step];
        if !is_bias {
            shape.push(rows);
        }
        (format!("{stem}.experts.{to}.{kind}"), (shape, chosen.collect()))
    };
    Some(match matrix {
        "gate_up_proj" => vec![turned("gate_proj", 0, 2), turned("up_proj", 1, 2)],
        other => vec![turned(other, 0, 1)],
    })
}
