//! Weft's checkpoint formats, model builders and text.
//!
//! A checkpoint (a Hugging Face folder, a `.safetensors` file or a `.gguf` file) is opened by
//! [`checkpoint::Checkpoint`], which normalises its [`config::ModelConfig`] and answers for tensors by
//! their Hugging Face names. `text` turns strings into token ids and back. Nothing is guessed: a file,
//! field or value that is not understood is an [`error::Error`] that names it and says what is supported.

mod base;
pub mod checkpoint;
pub mod config;
pub mod convert;
mod derived;
mod duplicates;
pub mod error;
pub mod gguf;
pub mod mmap;
pub mod models;
mod quantized;
pub mod read;
pub mod safetensors;
pub mod synth;
pub mod tensor;
pub mod text;
