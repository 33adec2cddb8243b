//! gpt-oss (OpenAI 2025): attention with sinks and biases, windows on every other layer, YaRN; experts with biases
//! and a limited SwiGLU, stored in two matrices `[experts, in, out]` of which gate and up alternate.

use super::blocks::decoder::PRE;
use super::blocks::experts::{self, Names, Stored};
use super::blocks::{Linear, ModelBuilder, attention, mlp};
use super::llama;
use crate::config::Experts;
use weft_ir::ids::NodeId;
use weft_ir::shape::Dim;

const NAMES: Names = Names { router: "router", expert: ["", "", ""], shared: "" };

/// Adds the model to the builder. Hugging Face tensor names.
pub fn build(m: &mut ModelBuilder<'_>) {
    llama::layers(
        m,
        &PRE,
        |m, h, name, layer, rotaries| {
            attention::grouped_query(m, h, name, &attention::NAMES, layer, rotaries)
        },
        |m, h, prefix, _| {
            let name = format!("{prefix}.mlp");
            match &m.config.experts {
                Some(e) => experts::mixture(m, h, &name, e, &NAMES, true, |m| stored(m, &name, e)),
                None => mlp::gated(m, h, &name),
            }
        },
    );
}

/// The experts' matrices, turned and parted at load.
fn stored(m: &mut ModelBuilder<'_>, name: &str, e: &Experts) -> Stored {
    let (n, h, w) = (e.count, m.config.hidden_size, e.width);
    if m.has(&format!("{name}.experts.gate_proj.bias")) {
        return parted(m, name, [n, h, w]);
    }
    let both = m.turned_weight(&format!("{name}.experts.gate_up_proj"), &[n, h, 2 * w]);
    let biases = m.weight(&format!("{name}.experts.gate_up_proj_bias"), &[n, 2 * w]);
    let dims = |s: &[usize]| s.iter().map(|&n| Dim::Const(n)).collect::<Vec<_>>();
    let both = m.g.reshape(both, dims(&[n, h, w, 2]));
    let biases = m.g.reshape(biases, dims(&[n, w, 2]));
    let turned = |m: &mut ModelBuilder<'_>, x: NodeId| m.g.transpose(x, &[0, 2, 1]);
    let part = |m: &mut ModelBuilder<'_>, i: usize| {
        let weight = m.g.slice(both, 3, i, 1);
        let weight = m.g.reshape(weight, dims(&[n, h, w]));
        let bias = m.g.slice(biases, 2, i, 1);
        Linear { weight: turned(m, weight), bias: Some(m.g.reshape(bias, dims(&[n, w]))) }
    };
    let (gate, up) = (part(m, 0), part(m, 1));
    let down = m.turned_weight(&format!("{name}.experts.down_proj"), &[n, w, h]);
    let bias = m.weight(&format!("{name}.experts.down_proj_bias"), &[n, h]);
    Stored { gate, up, down: Linear { weight: turned(m, down), bias: Some(bias) } }
}

/// The matrices of a GGUF file, which has gate and up apart and all as `[experts, out, in]`.
fn parted(m: &mut ModelBuilder<'_>, name: &str, [n, h, w]: [usize; 3]) -> Stored {
    let mut part = |part: &str, out: usize, inner: usize| Linear {
        weight: m.weight(&format!("{name}.experts.{part}.weight"), &[n, out, inner]),
        bias: Some(m.weight(&format!("{name}.experts.{part}.bias"), &[n, out])),
    };
    Stored { gate: part("gate_proj", w, h), up: part("up_proj", w, h), down: part("down_proj", h, w) }
}
