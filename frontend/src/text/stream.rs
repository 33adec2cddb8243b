//! Text of a generation as it comes: whole characters only, and nothing of a stop string.
//!
//! Byte-level tokens may split a character, and a stop string may begin anywhere in one token and end in
//! another. [`StreamDecoder`] holds text back until neither can be.

use crate::error::Result;
use crate::text::tokenizer::Tokenizer;

/// A token's text ends with at most this many U+FFFD for a character that may still be completed.
const MAX_OPEN: usize = 3;
/// Tokens after which the window is cut even without a clean border (only bytes that are not text).
const MAX_WINDOW: usize = 128;

/// What a token added to the text.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Piece {
    /// Text to append; often empty.
    pub text: String,
    /// The stop string that ended the text, if one did; it is not part of it.
    pub stopped: Option<String>,
}

/// Turns token ids into pieces of text, one token at a time.
#[derive(Clone, Debug)]
pub struct StreamDecoder {
    tokenizer: Tokenizer,
    skip_special: bool,
    stops: Vec<String>,
    /// Tokens still decoded together; the first `context` of them only for what precedes.
    window: Vec<u32>,
    context: usize,
    /// Bytes of the window's text that were taken already.
    taken: usize,
    /// Text that may be the beginning of a stop string.
    held: String,
    stopped: Option<String>,
}

impl StreamDecoder {
    /// A decoder for one generation. `skip_special` leaves special tokens out; empty stop strings are
    /// ignored.
    pub fn new(tokenizer: &Tokenizer, skip_special: bool, stops: Vec<String>) -> StreamDecoder {
        StreamDecoder {
            tokenizer: tokenizer.clone(),
            skip_special,
            stops: stops.into_iter().filter(|s| !s.is_empty()).collect(),
            window: Vec::new(),
            context: 0,
            taken: 0,
            held: String::new(),
            stopped: None,
        }
    }

    /// Takes the next token. After a stop string every piece is empty.
    ///
    /// # Errors
    /// [`crate::error::Error::Text`] for an id outside the vocabulary.
    pub fn push(&mut self, id: u32) -> Result<Piece> {
        if self.stopped.is_some() {
            return Ok(self.piece(String::new()));
        }
        self.window.push(id);
        let text = self.tokenizer.decode(&self.window, self.skip_special)?;
        let closed = match self.window.len() < MAX_WINDOW {
            true => without_open_end(&text, self.open_bytes()),
            false => text.as_str(),
        };
        let new = closed.get(self.taken..).unwrap_or_default().to_owned();
        self.taken = self.taken.max(closed.len());
        if closed.len() == text.len() {
            self.cut_window()?;
        }
        Ok(self.release(&new))
    }

    /// Ends the stream: what was held back, an incomplete character as U+FFFD.
    ///
    /// # Errors
    /// As [`Self::push`].
    pub fn finish(&mut self) -> Result<Piece> {
        if self.stopped.is_some() {
            return Ok(self.piece(String::new()));
        }
        let text = self.tokenizer.decode(&self.window, self.skip_special)?;
        let new = text.get(self.taken..).unwrap_or_default().to_owned();
        self.taken = text.len();
        let mut piece = self.release(&new);
        if self.stopped.is_none() {
            piece.text.push_str(&std::mem::take(&mut self.held));
        }
        Ok(piece)
    }

    /// Replacement characters at the window's end that may stand for the beginning of a character: where bytes are
    /// tokens (`<0x0A>`), the decoder replaces each of a run whose last character is not complete.
    fn open_bytes(&self) -> usize {
        let is_byte = |id: u32| self.tokenizer.token_text(id).is_some_and(|t| is_byte(&t));
        self.window.iter().rev().take_while(|&&id| is_byte(id)).count().max(MAX_OPEN)
    }

    /// Keeps only the tokens since the last clean border, as the context of what follows (decoders may
    /// treat the first token of a text in another way).
    fn cut_window(&mut self) -> Result<()> {
        self.window.drain(..self.context.min(self.window.len()));
        self.context = self.window.len();
        self.taken = self.tokenizer.decode(&self.window, self.skip_special)?.len();
        Ok(())
    }

    /// Adds text to what is held back, and lets go what cannot be part of a stop string.
    fn release(&mut self, new: &str) -> Piece {
        self.held.push_str(new);
        let first = self.stops.iter().filter_map(|s| Some((self.held.find(s.as_str())?, s)));
        if let Some((at, stop)) = first.min_by_key(|(at, s)| (*at, std::cmp::Reverse(s.len()))) {
            self.stopped = Some(stop.clone());
            self.held.truncate(at);
            let text = std::mem::take(&mut self.held);
            return self.piece(text);
        }
        let keep = self.stops.iter().map(|s| overlap(&self.held, s)).max().unwrap_or(0);
        let kept = self.held.split_off(self.held.len() - keep);
        let text = std::mem::replace(&mut self.held, kept);
        self.piece(text)
    }

    fn piece(&self, text: String) -> Piece {
        Piece { text, stopped: self.stopped.clone() }
    }
}

/// Whether a token is a byte as SentencePiece spells it.
fn is_byte(token: &str) -> bool {
    token.len() == 6 && token.starts_with("<0x") && token.ends_with('>')
}

/// The text without replacement characters at its end, up to so many, that more bytes could turn into a character.
fn without_open_end(text: &str, most: usize) -> &str {
    let mut closed = text;
    for _ in 0..most {
        closed = closed.strip_suffix('\u{FFFD}').unwrap_or(closed);
    }
    closed
}

/// Bytes of the longest end of `text` that `stop` begins with, less than all of it.
fn overlap(text: &str, stop: &str) -> usize {
    let ends = stop.char_indices().map(|(i, _)| i).rev();
    ends.into_iter().find(|&n| stop.get(..n).is_some_and(|head| text.ends_with(head))).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overlap_is_the_longest_proper_prefix() {
        assert_eq!(overlap("abc<|", "<|end|>"), 2);
        assert_eq!(overlap("aab", "aabaac"), 3);
        assert_eq!(overlap("xaa", "aaa"), 2);
        assert_eq!(overlap("x", "y"), 0);
        assert_eq!(overlap("caf\u{e9}", "\u{e9}t\u{e9}"), 2);
    }

    #[test]
    fn an_open_end_is_cut() {
        assert_eq!(without_open_end("a\u{FFFD}", 3), "a");
        assert_eq!(without_open_end("a\u{FFFD}\u{FFFD}\u{FFFD}\u{FFFD}", 3), "a\u{FFFD}");
        assert_eq!(without_open_end("\u{FFFD}a", 3), "\u{FFFD}a");
    }
}
