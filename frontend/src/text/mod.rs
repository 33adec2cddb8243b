//! Text: strings to token ids and back, chat templates, and pieces of a stream.

pub mod chat;
mod gguf_vocab;
pub mod stream;
pub mod tokenizer;
