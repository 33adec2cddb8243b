//! Activations by their Hugging Face names.

use serde::Serialize;

/// Activation of the MLP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum Activation {
    /// x · sigmoid(x) (Elfwing et al. 2017).
    Silu,
    /// x · Φ(x), by the error function (Hendrycks & Gimpel 2016).
    Gelu,
    /// Gelu by its approximation with tanh.
    GeluTanh,
    /// x · sigmoid(1.702 x).
    QuickGelu,
    /// max(x, 0).
    Relu,
    /// max(x, 0)² (So et al. 2021).
    Relu2,
}

/// Names, as `transformers/activations.py` has them; the first of each activation is its own.
const NAMES: &[(&str, Activation)] = &[
    ("silu", Activation::Silu),
    ("swish", Activation::Silu),
    ("gelu", Activation::Gelu),
    ("gelu_python", Activation::Gelu),
    ("gelu_pytorch_tanh", Activation::GeluTanh),
    ("gelu_new", Activation::GeluTanh),
    ("gelu_fast", Activation::GeluTanh),
    ("gelu_python_tanh", Activation::GeluTanh),
    ("quick_gelu", Activation::QuickGelu),
    ("relu", Activation::Relu),
    ("relu2", Activation::Relu2),
];

impl Activation {
    /// The names that [`Activation::parse`] knows, as errors list them.
    pub const SUPPORTED: &'static str =
        "silu, gelu, gelu_new, gelu_pytorch_tanh, gelu_fast, quick_gelu, relu, relu2";

    /// The activation of this Hugging Face name.
    pub fn parse(name: &str) -> Option<Activation> {
        NAMES.iter().find(|(n, _)| *n == name).map(|&(_, a)| a)
    }

    /// Its Hugging Face name.
    pub fn name(self) -> &'static str {
        NAMES.iter().find(|(_, a)| *a == self).map_or("silu", |&(n, _)| n)
    }
}
