//! Text: strings to token ids and back, chat templates, and pieces of a stream.

pub mod chat;
mod gguf_spm;
mod gguf_vocab;
mod gguf_wordpiece;
mod guard;
mod jinja;
mod python_json;
mod quiet;
pub mod stream;
pub mod tokenizer;
