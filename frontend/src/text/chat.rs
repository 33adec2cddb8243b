//! Chat templates: messages to the text that a model was trained on.
//!
//! Rendered by minijinja with the settings of transformers' `chat_template_utils.py`: `trim_blocks`,
//! `lstrip_blocks`, loop controls, Python's string methods, `raise_exception`, `strftime_now` and a
//! `tojson` that writes as Python's `json.dumps(ensure_ascii=False)` does. Templates come with
//! checkpoints, so they run with bounded fuel and have no access to files.

use crate::checkpoint::Checkpoint;
use crate::error::{Error, Result};
use crate::gguf::Gguf;
use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Serde, Value as Jinja};
use minijinja::{Environment, ErrorKind};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Instructions that rendering may take: far more than any real conversation needs.
const FUEL: u64 = 50_000_000;
/// Name of the template that is used when none is asked for.
const DEFAULT: &str = "default";
/// Special tokens that templates may refer to, and their id's key in GGUF metadata.
const TOKENS: &[(&str, &str)] = &[
    ("bos_token", "tokenizer.ggml.bos_token_id"),
    ("eos_token", "tokenizer.ggml.eos_token_id"),
    ("unk_token", "tokenizer.ggml.unknown_token_id"),
    ("pad_token", "tokenizer.ggml.padding_token_id"),
];

/// One turn of a conversation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// "system", "user" or "assistant"; templates may know more.
    pub role: String,
    /// Text of the turn.
    pub content: String,
}

impl Message {
    /// A message of a role.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Message {
        Message { role: role.into(), content: content.into() }
    }
}

/// A model's chat templates, by name, and the special tokens that they refer to.
#[derive(Clone, Debug)]
pub struct ChatTemplate {
    path: PathBuf,
    templates: BTreeMap<String, String>,
    special: BTreeMap<String, String>,
}

impl ChatTemplate {
    /// The checkpoint's chat template, where it has one.
    ///
    /// # Errors
    /// As [`Self::open_folder`]; for GGUF [`Error::Malformed`] when a key has the wrong type.
    pub fn open(checkpoint: &Checkpoint) -> Result<Option<ChatTemplate>> {
        match checkpoint.gguf() {
            Some(file) => Self::from_gguf(file),
            None => Self::open_folder(checkpoint.root()),
        }
    }

    /// The template of a folder: `chat_template.jinja`, else `chat_template` (text, or a list of
    /// `{name, template}`) in `tokenizer_config.json`; `None` where there is neither.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Malformed`] for bad JSON; [`Error::Text`] for a template that does not
    /// parse.
    pub fn open_folder(folder: &Path) -> Result<Option<ChatTemplate>> {
        let (jinja, settings) = (folder.join("chat_template.jinja"), folder.join("tokenizer_config.json"));
        let config = if settings.exists() { read_object(&settings)? } else { Map::new() };
        let special = TOKENS.iter().filter_map(|(name, _)| {
            let value = config.get(*name)?;
            let text = value.as_str().or_else(|| value.get("content").and_then(Value::as_str))?;
            Some(((*name).to_owned(), text.to_owned()))
        });
        let special: BTreeMap<String, String> = special.collect();
        if jinja.exists() {
            let source = std::fs::read_to_string(&jinja).map_err(|e| Error::io(&jinja, "read", e))?;
            return Self::new(&jinja, [(DEFAULT.to_owned(), source)].into(), special).map(Some);
        }
        let templates = match config.get("chat_template") {
            None | Some(Value::Null) => return Ok(None),
            Some(Value::String(source)) => [(DEFAULT.to_owned(), source.clone())].into(),
            Some(Value::Array(list)) => {
                list.iter().map(named).collect::<Option<BTreeMap<_, _>>>().ok_or_else(|| {
                    let problem = "is a list with an entry that is not {name, template}";
                    Error::malformed(
                        &settings,
                        "chat_template",
                        problem,
                        "give a template or a list of named ones",
                    )
                })?
            }
            Some(_) => {
                let problem = "is neither text nor a list";
                let remedy = "give a template or a list of named ones";
                return Err(Error::malformed(&settings, "chat_template", problem, remedy));
            }
        };
        Self::new(&settings, templates, special).map(Some)
    }

    /// The template in a GGUF file's metadata; `None` where there is none.
    ///
    /// # Errors
    /// [`Error::Malformed`] for a key of the wrong type, [`Error::Text`] for a template that does not
    /// parse.
    pub fn from_gguf(file: &Gguf) -> Result<Option<ChatTemplate>> {
        let prefix = "tokenizer.chat_template";
        let mut templates = BTreeMap::new();
        for key in file.keys().filter(|k| *k == prefix || k.starts_with("tokenizer.chat_template.")) {
            let name = key.strip_prefix("tokenizer.chat_template.").unwrap_or(DEFAULT);
            templates.insert(name.to_owned(), file.text(key)?.unwrap_or_default().to_owned());
        }
        if templates.is_empty() {
            return Ok(None);
        }
        let tokens = file.strings("tokenizer.ggml.tokens")?.unwrap_or_default();
        let mut special = BTreeMap::new();
        for (name, key) in TOKENS {
            let id = file.unsigned(key)?.and_then(|id| usize::try_from(id).ok());
            if let Some(token) = id.and_then(|id| tokens.get(id)) {
                special.insert((*name).to_owned(), token.clone());
            }
        }
        Self::new(file.path(), templates, special).map(Some)
    }

    /// Templates by name ("default" is the one that [`Self::render`] takes) and special tokens by name
    /// ("bos_token", …); `path` is for errors.
    ///
    /// # Errors
    /// [`Error::Text`] when a template does not parse.
    pub fn new(
        path: &Path,
        templates: BTreeMap<String, String>,
        special: BTreeMap<String, String>,
    ) -> Result<ChatTemplate> {
        let template = ChatTemplate { path: path.to_owned(), templates, special };
        template.environment()?;
        Ok(template)
    }

    /// Names of the templates.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.templates.keys().map(String::as_str)
    }

    /// The source of a template.
    pub fn source(&self, name: &str) -> Option<&str> {
        self.templates.get(name).map(String::as_str)
    }

    /// The text of a special token: "bos_token", "eos_token", "unk_token" or "pad_token".
    pub fn special_token(&self, name: &str) -> Option<&str> {
        self.special.get(name).map(String::as_str)
    }

    /// The conversation as text; `add_generation_prompt` opens the assistant's next turn.
    ///
    /// # Errors
    /// [`Error::Text`] with the template's own message (`raise_exception`) or what went wrong in it.
    pub fn render(&self, messages: &[Message], add_generation_prompt: bool) -> Result<String> {
        let messages: Vec<Value> =
            messages.iter().map(|m| serde_json::json!({"role": m.role, "content": m.content})).collect();
        let mut context = Map::new();
        context.insert("messages".into(), Value::Array(messages));
        context.insert("add_generation_prompt".into(), Value::Bool(add_generation_prompt));
        self.render_named(DEFAULT, &context)
    }

    /// A template of a name, with any variables (`messages`, `tools`, …); the special tokens are added.
    ///
    /// # Errors
    /// As [`Self::render`]; also when there is no template of the name.
    pub fn render_named(&self, name: &str, variables: &Map<String, Value>) -> Result<String> {
        let environment = self.environment()?;
        let Ok(template) = environment.get_template(name) else {
            let names: Vec<&str> = self.names().collect();
            let problem = format!("no template is named {name:?}");
            return Err(Error::text(
                &self.path,
                "chat_template",
                problem,
                format!("there are: {}", names.join(", ")),
            ));
        };
        let mut context: Map<String, Value> =
            self.special.iter().map(|(k, v)| (k.clone(), Value::String(v.clone()))).collect();
        context.extend(variables.iter().map(|(k, v)| (k.clone(), v.clone())));
        template.render(Serde(context)).map_err(|e| self.failed(name, &e))
    }

    fn environment(&self) -> Result<Environment<'_>> {
        let mut env = Environment::new();
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        env.set_syntax(syntax.map_err(|e| self.failed(DEFAULT, &e))?);
        env.set_fuel(Some(FUEL));
        env.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
        env.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        env.add_filter("tojson", to_json);
        env.add_function("raise_exception", raise_exception);
        env.add_function("strftime_now", strftime_now);
        for (name, source) in &self.templates {
            let source = without_generation_tags(source);
            env.add_template_owned(name.clone(), source).map_err(|e| self.failed(name, &e))?;
        }
        Ok(env)
    }

    fn failed(&self, name: &str, error: &minijinja::Error) -> Error {
        let field = match name {
            DEFAULT => "chat_template".to_owned(),
            name => format!("chat_template {name:?}"),
        };
        let remedy = "change the messages, or give another template";
        Error::text(&self.path, field, error, remedy)
    }
}

fn read_object(path: &Path) -> Result<Map<String, Value>> {
    let text = std::fs::read(path).map_err(|e| Error::io(path, "read", e))?;
    serde_json::from_slice(&text).map_err(|e| Error::malformed(path, "JSON", e, "correct the file's JSON"))
}

/// An entry of a list of named templates.
fn named(entry: &Value) -> Option<(String, String)> {
    Some((entry.get("name")?.as_str()?.to_owned(), entry.get("template")?.as_str()?.to_owned()))
}

/// Python's `json.dumps` separators; indentation is serde_json's, which is the same.
struct PythonStyle;

impl serde_json::ser::Formatter for PythonStyle {
    fn begin_array_value<W: ?Sized + std::io::Write>(
        &mut self,
        w: &mut W,
        first: bool,
    ) -> std::io::Result<()> {
        w.write_all(if first { b"" } else { b", " })
    }

    fn begin_object_key<W: ?Sized + std::io::Write>(
        &mut self,
        w: &mut W,
        first: bool,
    ) -> std::io::Result<()> {
        w.write_all(if first { b"" } else { b", " })
    }

    fn begin_object_value<W: ?Sized + std::io::Write>(&mut self, w: &mut W) -> std::io::Result<()> {
        w.write_all(b": ")
    }
}

/// `tojson(indent=…)`, without HTML escapes.
fn to_json(value: Jinja, kwargs: Kwargs) -> Result<String, minijinja::Error> {
    let indent: Option<usize> = kwargs.get("indent")?;
    let _: Option<bool> = kwargs.get("ensure_ascii")?;
    kwargs.assert_all_used()?;
    let mut out = Vec::new();
    let written = match indent {
        None => value.serialize(&mut serde_json::Serializer::with_formatter(&mut out, PythonStyle)),
        Some(n) => {
            let spaces = vec![b' '; n.min(64)];
            let style = serde_json::ser::PrettyFormatter::with_indent(&spaces);
            value.serialize(&mut serde_json::Serializer::with_formatter(&mut out, style))
        }
    };
    let bad = |e: &dyn std::fmt::Display| minijinja::Error::new(ErrorKind::BadSerialization, e.to_string());
    written.map_err(|e| bad(&e))?;
    String::from_utf8(out).map_err(|e| bad(&e))
}

fn raise_exception(message: String) -> Result<String, minijinja::Error> {
    Err(minijinja::Error::new(ErrorKind::InvalidOperation, message))
}

/// The local time in a `strftime` format.
fn strftime_now(format: &str) -> Result<String, minijinja::Error> {
    let now = jiff::Zoned::now();
    jiff::fmt::strtime::format(format, &now).map_err(|e| {
        minijinja::Error::new(ErrorKind::InvalidOperation, format!("strftime_now({format:?}): {e}"))
    })
}

/// `{% generation %}` marks the assistant's words for training and prints its body: it becomes an `if`
/// that holds, with the same whitespace marks.
fn without_generation_tags(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(start) = rest.find("{%") {
        let (before, tag) = rest.split_at(start);
        out.push_str(before);
        let Some(end) = tag.find("%}") else {
            rest = tag;
            break;
        };
        let (tag, after) = tag.split_at(end + 2);
        let word = tag.trim_matches(|c: char| c.is_whitespace() || "{}%-+".contains(c));
        match word {
            "generation" => out.push_str(&tag.replace("generation", "if true")),
            "endgeneration" => out.push_str(&tag.replace("endgeneration", "endif")),
            _ => out.push_str(tag),
        }
        rest = after;
    }
    out.push_str(rest);
    out
}
