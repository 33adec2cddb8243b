//! Token ids of a text, and the text of token ids.
//!
//! A thin layer over the `tokenizers` crate, with Weft's errors: read from a `tokenizer.json`, or built
//! from the vocabulary inside a GGUF file.

use crate::checkpoint::Checkpoint;
use crate::error::{Error, Result};
use crate::gguf::Gguf;
use crate::read;
use crate::text::{gguf_vocab, quiet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A tokenizer. Cloning is cheap.
#[derive(Clone, Debug)]
pub struct Tokenizer {
    inner: Arc<tokenizers::Tokenizer>,
    path: PathBuf,
}

impl Tokenizer {
    /// The checkpoint's tokenizer: a GGUF file's own vocabulary, else the folder's `tokenizer.json`.
    ///
    /// # Errors
    /// As [`Self::open_folder`]; for GGUF also [`Error::Unsupported`] when its kind of vocabulary or
    /// pre-tokenizer is not known.
    pub fn open(checkpoint: &Checkpoint) -> Result<Tokenizer> {
        match checkpoint.gguf() {
            Some(file) => Self::from_gguf(file),
            None => Self::open_folder(checkpoint.root()),
        }
    }

    /// The `tokenizer.json` of a folder.
    ///
    /// # Errors
    /// [`Error::MissingField`] when there is none; [`Error::Text`] when it cannot be read.
    pub fn open_folder(folder: &Path) -> Result<Tokenizer> {
        let path = folder.join("tokenizer.json");
        if !path.exists() {
            let remedy = "add the model's tokenizer.json, or give token ids instead of text";
            return Err(Error::missing(&path, "the file", remedy));
        }
        Self::from_file(&path)
    }

    /// The vocabulary inside a GGUF file.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn from_gguf(file: &Gguf) -> Result<Tokenizer> {
        let json = gguf_vocab::tokenizer_json(file)?;
        let text =
            serde_json::to_vec(&json).map_err(|e| Error::damaged(file.path(), "tokenizer.ggml.tokens", e))?;
        Self::parse(file.path(), "tokenizer.ggml", &text)
    }

    /// The text of a `tokenizer.json`; `path` is for errors.
    ///
    /// # Errors
    /// [`Error::Text`] when it is none.
    pub fn from_bytes(path: &Path, text: &[u8]) -> Result<Tokenizer> {
        Self::parse(path, "tokenizer.json", text)
    }

    /// Any `tokenizer.json`.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Text`] when the file is not one.
    pub fn from_file(path: &Path) -> Result<Tokenizer> {
        let text = read::bounded(path, read::TOKENIZER)?;
        Self::parse(path, "tokenizer.json", &text)
    }

    fn parse(path: &Path, field: &str, text: &[u8]) -> Result<Tokenizer> {
        let refused = |e: String| Error::text(path, field, e, "the file must hold a Hugging Face tokenizer");
        let read = quiet::catch(|| tokenizers::Tokenizer::from_bytes(text)).map_err(refused)?;
        let mut inner = read.map_err(|e| refused(e.to_string()))?;
        // Some files keep the padding and truncation of their training.
        inner.with_padding(None);
        inner.with_truncation(None).map_err(|e| Error::text(path, "truncation", e, "remove it"))?;
        Ok(Tokenizer { inner: Arc::new(inner), path: path.to_owned() })
    }

    /// This tokenizer with texts cut off at `most` tokens, special ones included.
    ///
    /// # Errors
    /// [`Error::Text`] when the special tokens alone are more.
    pub fn truncated(&self, most: usize) -> Result<Tokenizer> {
        let mut inner = (*self.inner).clone();
        let params = tokenizers::TruncationParams { max_length: most, ..Default::default() };
        inner.with_truncation(Some(params)).map_err(|e| {
            Error::text(&self.path, "truncation", e, "allow more tokens: the special ones must fit")
        })?;
        Ok(Tokenizer { inner: Arc::new(inner), path: self.path.clone() })
    }

    /// The file that the tokenizer came from.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Token ids of a text. Special tokens written in the text are recognised; `add_special` adds those
    /// that every text gets (not wanted after a chat template, which writes them itself).
    ///
    /// # Errors
    /// [`Error::Text`] when the text has parts that the vocabulary cannot express.
    pub fn encode(&self, text: &str, add_special: bool) -> Result<Vec<u32>> {
        let refused =
            |e: String| Error::text(&self.path, "encode", e, "the vocabulary cannot express this text");
        let encoding = quiet::catch(|| self.inner.encode_fast(text, add_special)).map_err(refused)?;
        let encoding = encoding.map_err(|e| refused(e.to_string()))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// The text of token ids; bytes that are not UTF-8 become U+FFFD. `skip_special` leaves special
    /// tokens out.
    ///
    /// # Errors
    /// [`Error::Text`] for an id outside the vocabulary.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String> {
        if let Some(id) = ids.iter().find(|&&id| self.inner.id_to_token(id).is_none()) {
            let remedy = "the model's vocabulary and the tokenizer do not fit together";
            return Err(Error::text(&self.path, "decode", format!("no token has the id {id}"), remedy));
        }
        let refused =
            |e: String| Error::text(&self.path, "decode", e, "the tokenizer's decoder refused the tokens");
        let text = quiet::catch(|| self.inner.decode(ids, skip_special)).map_err(refused)?;
        text.map_err(|e| refused(e.to_string()))
    }

    /// The token of an id as the vocabulary spells it (byte-level: `Ġ` for a space).
    pub fn token_text(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }

    /// The id of a token as the vocabulary spells it.
    pub fn token_id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// Number of tokens, with the added ones.
    pub fn vocab_size(&self) -> usize {
        self.inner.get_vocab_size(true)
    }

    /// Writes a `tokenizer.json`.
    ///
    /// # Errors
    /// [`Error::Io`] when the file cannot be written.
    pub fn save(&self, path: &Path) -> Result<()> {
        let text = self.inner.to_string(false);
        let text =
            text.map_err(|e| Error::text(&self.path, "tokenizer", e, "it cannot be written as JSON"))?;
        std::fs::write(path, text).map_err(|e| Error::io(path, "write", e))
    }
}
