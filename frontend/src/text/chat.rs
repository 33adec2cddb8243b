//! Chat templates: messages to the text that a model was trained on.
//!
//! Rendered by minijinja as transformers' `chat_template_utils.py` renders with Jinja (see [`super::jinja`]), with the
//! variables that it passes. Templates come with checkpoints, so they run with bounded fuel, memory
//! and time, and have no access to files.

use crate::checkpoint::Checkpoint;
use crate::error::{Error, Result};
use crate::gguf::Gguf;
use crate::read;
use crate::text::{guard, jinja};
use jiff::civil::DateTime;
use minijinja::Environment;
use minijinja::value::Serde;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Instructions that rendering may take: far more than any real conversation needs (some 50 a message).
const FUEL: u64 = 2_000_000;
/// Longest template, in bytes.
const LONGEST: usize = 1 << 20;
/// Name of the template that is used when none is asked for.
const DEFAULT: &str = "default";
/// Special tokens that templates may refer to, and their id's key in GGUF metadata.
const TOKENS: &[(&str, &str)] = &[
    ("bos_token", "tokenizer.ggml.bos_token_id"),
    ("eos_token", "tokenizer.ggml.eos_token_id"),
    ("unk_token", "tokenizer.ggml.unknown_token_id"),
    ("pad_token", "tokenizer.ggml.padding_token_id"),
    ("sep_token", "tokenizer.ggml.seperator_token_id"),
    ("cls_token", "tokenizer.ggml.cls_token_id"),
    ("mask_token", "tokenizer.ggml.mask_token_id"),
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
    now: Option<DateTime>,
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

    /// The templates of a folder: `chat_template.jinja` and `additional_chat_templates/NAME.jinja`, else
    /// `chat_template` (text, or a list of `{name, template}`) in `tokenizer_config.json`, else in
    /// `chat_template.json`; `None` where there is none. Special tokens are those of `tokenizer_config.json`, else of
    /// `special_tokens_map.json`.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Malformed`] for bad JSON; [`Error::Text`] for a template that does not
    /// parse.
    pub fn open_folder(folder: &Path) -> Result<Option<ChatTemplate>> {
        let (jinja, settings) = (folder.join("chat_template.jinja"), folder.join("tokenizer_config.json"));
        let read = |path: &Path| if path.exists() { read_object(path) } else { Ok(Map::new()) };
        let (mut config, tokens) = (read(&settings)?, read(&folder.join("special_tokens_map.json"))?);
        let special = TOKENS.iter().filter_map(|(name, _)| {
            let value = config.get(*name).or_else(|| tokens.get(*name))?;
            let text = value.as_str().or_else(|| value.get("content").and_then(Value::as_str))?;
            Some(((*name).to_owned(), text.to_owned()))
        });
        let special: BTreeMap<String, String> = special.collect();
        if jinja.exists() {
            let mut templates = additional(&folder.join("additional_chat_templates"))?;
            templates.insert(DEFAULT.to_owned(), read_text(&jinja)?);
            return Self::new(&jinja, templates, special).map(Some);
        }
        if config.get("chat_template").is_none_or(Value::is_null) {
            config.extend(read(&folder.join("chat_template.json"))?);
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
        if let Some((name, source)) = templates.iter().find(|(_, source)| source.len() > LONGEST) {
            let problem = format!("has {} bytes, at most {LONGEST} are read", source.len());
            return Err(Error::text(path, field(name), problem, "give another template"));
        }
        let template = ChatTemplate { path: path.to_owned(), templates, special, now: None };
        // The engine computes constant expressions as it parses, so that is within bounds, too.
        let this = template.clone();
        let parsed = guard::run(move || this.environment().map(drop));
        parsed.unwrap_or_else(|stopped| {
            let remedy = "give another template";
            Err(Error::text(path, "chat_template", stopped.problem(), remedy))
        })?;
        Ok(template)
    }

    /// The same with a clock that stands: what `strftime_now` gives is else the local time.
    pub fn at(self, now: DateTime) -> ChatTemplate {
        ChatTemplate { now: Some(now), ..self }
    }

    /// Names of the templates.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.templates.keys().map(String::as_str)
    }

    /// The source of a template.
    pub fn source(&self, name: &str) -> Option<&str> {
        self.templates.get(name).map(String::as_str)
    }

    /// The text of a special token: "bos_token", "eos_token", …
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
        if !self.templates.contains_key(name) {
            let names: Vec<&str> = self.names().collect();
            let problem = format!("no template is named {name:?}");
            return Err(Error::text(
                &self.path,
                "chat_template",
                problem,
                format!("there are: {}", names.join(", ")),
            ));
        }
        // What transformers always passes.
        let absent = ["tools", "documents"].map(|name| (name.to_owned(), Value::Null));
        let mut context: Map<String, Value> = absent.into_iter().collect();
        context.extend(self.special.iter().map(|(k, v)| (k.clone(), Value::String(v.clone()))));
        context.extend(variables.iter().map(|(k, v)| (k.clone(), v.clone())));
        if let Some(Value::Array(messages)) = context.get_mut("messages") {
            messages.iter_mut().for_each(normalise);
        }
        let (this, of) = (self.clone(), name.to_owned());
        let rendered = guard::run(move || {
            let environment = this.environment()?;
            let template = environment.get_template(&of).map_err(|e| this.failed(&of, &e))?;
            template.render(Serde(context)).map_err(|e| this.failed(&of, &e))
        });
        rendered.unwrap_or_else(|stopped| {
            let remedy = "give another template";
            Err(Error::text(&self.path, field(name), stopped.problem(), remedy))
        })
    }

    fn environment(&self) -> Result<Environment<'_>> {
        let mut env = jinja::environment(FUEL, self.now).map_err(|e| self.failed(DEFAULT, &e))?;
        for (name, source) in &self.templates {
            let source = jinja::source(source);
            env.add_template_owned(name.clone(), source).map_err(|e| self.failed(name, &e))?;
        }
        Ok(env)
    }

    fn failed(&self, name: &str, error: &minijinja::Error) -> Error {
        let remedy = "change the messages, or give another template";
        Error::text(&self.path, field(name), error, remedy)
    }
}

/// The template of a name, as errors call it.
fn field(name: &str) -> String {
    match name {
        DEFAULT => "chat_template".to_owned(),
        name => format!("chat_template {name:?}"),
    }
}

fn read_text(path: &Path) -> Result<String> {
    read::bounded_text(path, read::TEMPLATES)
}

/// The templates of a folder by name; none where there is no folder.
fn additional(folder: &Path) -> Result<BTreeMap<String, String>> {
    let mut out = BTreeMap::new();
    if !folder.exists() {
        return Ok(out);
    }
    let entries = std::fs::read_dir(folder).map_err(|e| Error::io(folder, "read", e))?;
    for entry in entries {
        let path = entry.map_err(|e| Error::io(folder, "read", e))?.path();
        if let (Some("jinja"), Some(name)) =
            (path.extension().and_then(|e| e.to_str()), path.file_stem().and_then(|n| n.to_str()))
        {
            out.insert(name.to_owned(), read_text(&path)?);
        }
    }
    Ok(out)
}

fn read_object(path: &Path) -> Result<Map<String, Value>> {
    let text = read::bounded(path, read::TEMPLATES)?;
    serde_json::from_slice(&text).map_err(|e| Error::malformed(path, "JSON", e, "correct the file's JSON"))
}

/// A message as templates see it: without keys that are null, and its reasoning under the names that templates
/// read, whichever it came by (`chat_template_utils.py`).
fn normalise(message: &mut Value) {
    let Value::Object(map) = message else { return };
    map.retain(|_, v| !v.is_null());
    let reasoning = ["reasoning_content", "thinking", "reasoning"].iter().find_map(|k| map.get(*k)).cloned();
    if let Some(reasoning) = reasoning {
        map.entry("thinking").or_insert_with(|| reasoning.clone());
        map.insert("reasoning_content".to_owned(), reasoning);
    }
}

/// An entry of a list of named templates.
fn named(entry: &Value) -> Option<(String, String)> {
    Some((entry.get("name")?.as_str()?.to_owned(), entry.get("template")?.as_str()?.to_owned()))
}
