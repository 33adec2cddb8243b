//! Words, numbers and names of a line of text, with the places of what is wrong.

use crate::ids::NodeId;
use thiserror::Error;

/// Largest extent, position, or axis that the text form takes.
const LARGEST: u64 = 1 << 40;

/// Why text is not a graph.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("line {line}, column {column}: expected {expected}, found {found}")]
pub struct ParseError {
    /// Line, from 1.
    pub line: usize,
    /// Column, from 1, in characters.
    pub column: usize,
    /// What would have been right.
    pub expected: String,
    /// What is there.
    pub found: String,
}

/// A line being read.
pub(super) struct Line {
    pub chars: Vec<char>,
    pub at: usize,
    pub line: usize,
}

pub(super) type Parsed<T> = Result<T, ParseError>;

impl Line {
    /// `[item, item, …]`.
    pub(super) fn list<T>(&mut self, close: &str, item: impl Fn(&mut Line) -> Parsed<T>) -> Parsed<Vec<T>> {
        self.token("[")?;
        let mut items = Vec::new();
        self.spaces();
        if self.eat(close) {
            return Ok(items);
        }
        loop {
            items.push(item(self)?);
            self.spaces();
            if self.eat(close) {
                return Ok(items);
            }
            if !self.eat(",") {
                return Err(self.error(format!("\",\" or {close:?}")));
            }
        }
    }

    pub(super) fn size(&mut self) -> Parsed<usize> {
        self.spaces();
        let start = self.at;
        let digits = self.take(|c| c.is_ascii_digit());
        let number = digits.parse::<u64>().ok().filter(|&n| n <= LARGEST);
        let number = number.and_then(|n| usize::try_from(n).ok());
        number.ok_or_else(|| self.error_at(start, format!("a number up to {LARGEST}")))
    }

    pub(super) fn id(&mut self) -> Parsed<NodeId> {
        self.spaces();
        let start = self.at;
        let digits = if self.eat("%") { self.take(|c| c.is_ascii_digit()) } else { String::new() };
        digits.parse().map(NodeId).map_err(|_| self.error_at(start, "a value (%12)".into()))
    }

    pub(super) fn quoted(&mut self) -> Parsed<String> {
        self.spaces();
        if !self.eat("\"") {
            return Err(self.error("a name in quotes".into()));
        }
        let mut out = String::new();
        while let Some(c) = self.next() {
            match c {
                '"' => return Ok(out),
                '\\' => out.push(self.escape()?),
                c => out.push(c),
            }
        }
        Err(self.error("a closing quote".into()))
    }

    pub(super) fn escape(&mut self) -> Parsed<char> {
        let start = self.at;
        match self.next() {
            Some(c @ ('"' | '\\')) => return Ok(c),
            Some('u') if self.eat("{") => {
                let digits = self.take(|c| c.is_ascii_hexdigit());
                let code = u32::from_str_radix(&digits, 16).ok().and_then(char::from_u32);
                if let (Some(c), true) = (code, self.eat("}")) {
                    return Ok(c);
                }
            }
            Some(_) | None => {}
        }
        Err(self.error_at(start, "an escape: \\\", \\\\ or \\u{a}".into()))
    }

    pub(super) fn token(&mut self, token: &str) -> Parsed<()> {
        self.spaces();
        if self.eat(token) { Ok(()) } else { Err(self.error(format!("{token:?}"))) }
    }

    pub(super) fn end(&mut self) -> Parsed<()> {
        self.spaces();
        if self.at_end() { Ok(()) } else { Err(self.error("the end of the line".into())) }
    }

    /// Whether only a comment follows.
    pub(super) fn at_end(&self) -> bool {
        self.at >= self.chars.len() || self.chars[self.at..].starts_with(&['/', '/'])
    }

    pub(super) fn word(&mut self) -> String {
        self.take(|c| c.is_ascii_alphanumeric() || c == '_' || c == '.')
    }

    pub(super) fn take(&mut self, wanted: impl Fn(char) -> bool) -> String {
        let start = self.at;
        while self.peek().is_some_and(&wanted) {
            self.at += 1;
        }
        self.chars[start..self.at].iter().collect()
    }

    pub(super) fn eat(&mut self, token: &str) -> bool {
        let n = token.chars().count();
        let found = self.chars[self.at..].iter().copied().take(n).eq(token.chars());
        self.at += if found { n } else { 0 };
        found
    }

    pub(super) fn spaces(&mut self) {
        self.take(char::is_whitespace);
    }

    pub(super) fn peek(&self) -> Option<char> {
        self.chars.get(self.at).copied()
    }

    pub(super) fn next(&mut self) -> Option<char> {
        let c = self.peek()?;
        self.at += 1;
        Some(c)
    }

    pub(super) fn error(&self, expected: String) -> ParseError {
        self.error_at(self.at, expected)
    }

    pub(super) fn error_at(&self, at: usize, expected: String) -> ParseError {
        let rest: String = self.chars[at.min(self.chars.len())..].iter().take(24).collect();
        let found = if rest.is_empty() { "the end of the line".into() } else { format!("{rest:?}") };
        ParseError { line: self.line, column: at + 1, expected, found }
    }
}
