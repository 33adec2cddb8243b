//! Jinja as transformers sets it up for chat templates (`chat_template_utils.py`), in minijinja: `trim_blocks`,
//! `lstrip_blocks`, loop controls, Python's methods, `raise_exception`, `strftime_now`, and `tojson` as Python's
//! `json.dumps` writes.
//!
//! Known differences: None can be iterated (Python: an error), lazy results of `map` and `select` can be written as JSON
//! (an error), and a text added to a `safe` one is not escaped for HTML.

use super::python_json::{Style, to_text};
use jiff::civil::DateTime;
use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Value, ValueKind};
use minijinja::{Environment, Error, ErrorKind};

/// An environment without templates; `now` is the time, where it is not the clock's.
///
/// # Errors
/// None: the syntax is well-formed.
pub fn environment(fuel: u64, now: Option<DateTime>) -> Result<Environment<'static>, Error> {
    let mut env = Environment::new();
    env.set_syntax(SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build()?);
    env.set_fuel(Some(fuel));
    env.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
    env.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    env.add_filter("tojson", to_json);
    env.add_filter("length", length);
    env.add_filter("count", length);
    env.add_test("iterable", is_iterable);
    env.add_function("raise_exception", raise_exception);
    env.add_function("strftime_now", move |format: &str| strftime_now(format, now));
    Ok(env)
}

/// `tojson(ensure_ascii=False, indent=None, separators=None, sort_keys=False)`, without HTML escapes.
fn to_json(value: Value, kwargs: Kwargs) -> Result<String, Error> {
    let bad = |why: String| Error::new(ErrorKind::BadSerialization, why);
    let mut style = Style {
        ensure_ascii: kwargs.get::<Option<bool>>("ensure_ascii")?.unwrap_or(false),
        sort_keys: kwargs.get::<Option<bool>>("sort_keys")?.unwrap_or(false),
        ..Style::new(kwargs.get("indent")?)
    };
    if let Some(separators) = kwargs.get::<Option<Vec<String>>>("separators")? {
        let [item, key] = <[String; 2]>::try_from(separators)
            .map_err(|s| bad(format!("tojson takes two separators, not {}", s.len())))?;
        (style.item, style.key) = (item, key);
    }
    kwargs.assert_all_used()?;
    if value.is_undefined() {
        return Err(bad("an undefined value is not JSON".to_owned()));
    }
    let value = serde_json::to_value(&value).map_err(|e| bad(e.to_string()))?;
    to_text(value, &style).map_err(|e| bad(e.to_string()))
}

/// Jinja's `length`: an undefined value has none.
fn length(value: &Value) -> Result<usize, Error> {
    if value.is_undefined() {
        return Ok(0);
    }
    value.len().ok_or_else(|| {
        Error::new(ErrorKind::InvalidOperation, format!("cannot calculate length of {}", value.kind()))
    })
}

/// Python's: None is not, an undefined value is.
fn is_iterable(value: &Value) -> bool {
    value.kind() != ValueKind::None && value.try_iter().is_ok()
}

fn raise_exception(message: String) -> Result<String, Error> {
    Err(Error::new(ErrorKind::InvalidOperation, message))
}

/// The local time, or `now`, in a `strftime` format.
fn strftime_now(format: &str, now: Option<DateTime>) -> Result<String, Error> {
    let now = now.unwrap_or_else(|| jiff::Zoned::now().datetime());
    jiff::fmt::strtime::format(format, now)
        .map_err(|e| Error::new(ErrorKind::InvalidOperation, format!("strftime_now({format:?}): {e}")))
}

/// A template's source as minijinja is to read it:
/// - line ends are `\n`, as Jinja makes them;
/// - `{% generation %}` marks the assistant's words for training and prints its body: it becomes an `if` that holds,
///   with the same whitespace marks;
/// - after `{% raw %}` a line end stays, as Jinja's `trim_blocks` leaves it.
pub fn source(source: &str) -> String {
    let source = source.replace("\r\n", "\n").replace('\r', "\n");
    let mut out = String::with_capacity(source.len());
    let mut rest = source.as_str();
    while let Some(start) = rest.find("{%") {
        let (before, tag) = rest.split_at(start);
        out.push_str(before);
        let Some(end) = tag.find("%}") else {
            rest = tag;
            break;
        };
        let (tag, after) = tag.split_at(end + 2);
        rest = after;
        let word = tag.trim_matches(|c: char| c.is_whitespace() || "{}%-+".contains(c));
        match word {
            "generation" => out.push_str(&tag.replace("generation", "if true")),
            "endgeneration" => out.push_str(&tag.replace("endgeneration", "endif")),
            "raw" => {
                let kept = tag.strip_suffix("%}").filter(|t| !t.ends_with('-'));
                out.push_str(&kept.map_or_else(|| tag.to_owned(), |t| format!("{t}+%}}")));
                // Nothing is a tag up to the end of it.
                let body = rest.find("endraw").unwrap_or(rest.len());
                let body = rest[..body].rfind("{%").unwrap_or(body);
                out.push_str(&rest[..body]);
                rest = &rest[body..];
            }
            _ => out.push_str(tag),
        }
    }
    out.push_str(rest);
    out
}
