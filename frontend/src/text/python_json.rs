//! JSON as Python's `json.dumps` writes it.

use serde::Serialize;
use serde_json::Value;
use serde_json::ser::{Formatter, Serializer};
use std::io::{Result, Write};

/// How it is written.
#[derive(Clone, Debug)]
pub struct Style {
    /// Between items.
    pub item: String,
    /// Between a key and its value.
    pub key: String,
    /// Characters of one level; `None`: all on one line.
    pub indent: Option<String>,
    /// Whether what is not ASCII is escaped.
    pub ensure_ascii: bool,
    /// Whether keys are sorted.
    pub sort_keys: bool,
}

impl Style {
    /// Python's separators: a line end takes the place of the space after an item.
    pub fn new(indent: Option<usize>) -> Style {
        Style {
            item: if indent.is_some() { "," } else { ", " }.to_owned(),
            key: ": ".to_owned(),
            // A template is not to fill the memory by one number.
            indent: indent.map(|n| " ".repeat(n.min(64))),
            ensure_ascii: false,
            sort_keys: false,
        }
    }
}

/// The text of a value.
///
/// # Errors
/// None: a value has a text.
pub fn to_text(mut value: Value, style: &Style) -> serde_json::Result<String> {
    if style.sort_keys {
        value.sort_all_objects();
    }
    let mut out = Vec::new();
    let formatter = Python { style, depth: 0, has_value: false };
    value.serialize(&mut Serializer::with_formatter(&mut out, formatter))?;
    String::from_utf8(out).map_err(serde::ser::Error::custom)
}

struct Python<'a> {
    style: &'a Style,
    depth: usize,
    has_value: bool,
}

impl Python<'_> {
    fn line<W: ?Sized + Write>(&self, w: &mut W) -> Result<()> {
        let Some(indent) = &self.style.indent else { return Ok(()) };
        w.write_all(b"\n")?;
        (0..self.depth).try_for_each(|_| w.write_all(indent.as_bytes()))
    }

    fn open<W: ?Sized + Write>(&mut self, w: &mut W, bracket: &[u8]) -> Result<()> {
        self.depth += 1;
        self.has_value = false;
        w.write_all(bracket)
    }

    fn close<W: ?Sized + Write>(&mut self, w: &mut W, bracket: &[u8]) -> Result<()> {
        self.depth -= 1;
        if self.has_value {
            self.line(w)?;
        }
        self.has_value = true;
        w.write_all(bracket)
    }

    fn item<W: ?Sized + Write>(&self, w: &mut W, first: bool) -> Result<()> {
        if !first {
            w.write_all(self.style.item.as_bytes())?;
        }
        self.line(w)
    }
}

impl Formatter for Python<'_> {
    fn begin_array<W: ?Sized + Write>(&mut self, w: &mut W) -> Result<()> {
        self.open(w, b"[")
    }

    fn end_array<W: ?Sized + Write>(&mut self, w: &mut W) -> Result<()> {
        self.close(w, b"]")
    }

    fn begin_array_value<W: ?Sized + Write>(&mut self, w: &mut W, first: bool) -> Result<()> {
        self.item(w, first)
    }

    fn end_array_value<W: ?Sized + Write>(&mut self, _: &mut W) -> Result<()> {
        self.has_value = true;
        Ok(())
    }

    fn begin_object<W: ?Sized + Write>(&mut self, w: &mut W) -> Result<()> {
        self.open(w, b"{")
    }

    fn end_object<W: ?Sized + Write>(&mut self, w: &mut W) -> Result<()> {
        self.close(w, b"}")
    }

    fn begin_object_key<W: ?Sized + Write>(&mut self, w: &mut W, first: bool) -> Result<()> {
        self.item(w, first)
    }

    fn begin_object_value<W: ?Sized + Write>(&mut self, w: &mut W) -> Result<()> {
        w.write_all(self.style.key.as_bytes())
    }

    fn end_object_value<W: ?Sized + Write>(&mut self, _: &mut W) -> Result<()> {
        self.has_value = true;
        Ok(())
    }

    fn write_f64<W: ?Sized + Write>(&mut self, w: &mut W, value: f64) -> Result<()> {
        w.write_all(float(value).as_bytes())
    }

    fn write_string_fragment<W: ?Sized + Write>(&mut self, w: &mut W, fragment: &str) -> Result<()> {
        if !self.style.ensure_ascii {
            return w.write_all(fragment.as_bytes());
        }
        for c in fragment.chars() {
            if (' '..='~').contains(&c) {
                write!(w, "{c}")?;
                continue;
            }
            let mut units = [0; 2];
            for unit in c.encode_utf16(&mut units) {
                write!(w, "\\u{unit:04x}")?;
            }
        }
        Ok(())
    }
}

/// Python's `repr` of a finite float: the fewest digits that give it back; an exponent below 10⁻⁴ and from 10¹⁶ on.
fn float(value: f64) -> String {
    let plain = value.to_string();
    let scientific = format!("{value:e}");
    let Some((digits, exponent)) = scientific.split_once('e') else { return plain };
    let Ok(exponent) = exponent.parse::<i32>() else { return plain };
    if value == 0.0 || (-4..16).contains(&exponent) {
        return if plain.contains('.') { plain } else { format!("{plain}.0") };
    }
    let sign = if exponent < 0 { '-' } else { '+' };
    format!("{digits}e{sign}{:02}", exponent.unsigned_abs())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn text_is_pythons() {
        let value =
            json!({"b": [1, 2.0, -0.0, 1e16, 1.5e-7, 0.0001, true, null], "a": {}, "é": "🦀\u{7f}\n\"/"});
        let text = |style: &Style| to_text(value.clone(), style).unwrap();
        let plain = "{\"b\": [1, 2.0, -0.0, 1e+16, 1.5e-07, 0.0001, true, null], \"a\": {}, \"é\": \"🦀\u{7f}\\n\\\"/\"}";
        assert_eq!(text(&Style::new(None)), plain);
        let ascii = Style { ensure_ascii: true, sort_keys: true, ..Style::new(None) };
        let end = "null], \"\\u00e9\": \"\\ud83e\\udd80\\u007f\\n\\\"/\"}";
        assert!(
            text(&ascii).starts_with("{\"a\": {}, \"b\": [1") && text(&ascii).ends_with(end),
            "{}",
            text(&ascii)
        );
        let two = to_text(json!([[], [1], {"a": [2, {}]}]), &Style::new(Some(1))).unwrap();
        assert_eq!(two, "[\n [],\n [\n  1\n ],\n {\n  \"a\": [\n   2,\n   {}\n  ]\n }\n]");
        let tight = Style { item: ",".into(), key: ":".into(), ..Style::new(None) };
        assert_eq!(to_text(json!({"a": [1, 2]}), &tight).unwrap(), "{\"a\":[1,2]}");
        assert_eq!(to_text(json!([1]), &Style::new(Some(0))).unwrap(), "[\n1\n]");
    }
}
