//! How sentence-transformers makes one embedding of a text: `modules.json`, `N_Pooling/config.json`,
//! `sentence_bert_config.json` and `config_sentence_transformers.json` beside a checkpoint; `pooling_type` in a GGUF
//! file.

use super::fields::Fields;
use super::keys::is_empty;
use crate::checkpoint::Checkpoint;
use crate::error::{Error, Result};
use crate::gguf::Gguf;
use crate::read;
use serde::Serialize;
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::{Component, Path};

/// What one embedding is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum PoolingMode {
    /// The mean of the tokens' hidden states.
    Mean,
    /// The first token's hidden state.
    Cls,
    /// The largest value of each element.
    Max,
    /// The last token's hidden state.
    LastToken,
}

/// From the hidden states of a text to its embedding.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Pooling {
    /// What the embedding is made of.
    pub mode: PoolingMode,
    /// Whether it is divided by its length.
    pub normalize: bool,
    /// What is put before a text: the checkpoint's default prompt.
    pub prompt: Option<String>,
    /// The checkpoint's prompts, by name.
    #[serde(skip)]
    pub prompts: BTreeMap<String, String>,
    /// Whether a prompt's tokens are pooled, too.
    #[serde(skip)]
    pub include_prompt: bool,
    /// Whether the text is put in lower case before the tokenizer sees it.
    pub lower_case: bool,
    /// Most tokens of a text, special ones included; further ones are cut off.
    pub max_tokens: Option<usize>,
}

/// Keys of `N_Pooling/config.json`, and the mode of each that is supported.
const MODES: &[(&str, Option<PoolingMode>)] = &[
    ("pooling_mode_mean_tokens", Some(PoolingMode::Mean)),
    ("pooling_mode_cls_token", Some(PoolingMode::Cls)),
    ("pooling_mode_max_tokens", Some(PoolingMode::Max)),
    ("pooling_mode_mean_sqrt_len_tokens", None),
    ("pooling_mode_weightedmean_tokens", None),
    ("pooling_mode_lasttoken", Some(PoolingMode::LastToken)),
];

/// Key of a GGUF file, behind its architecture.
pub(super) const GGUF_KEY: &str = "pooling_type";

/// The values of [`GGUF_KEY`] that are supported, and their modes (`enum llama_pooling_type`).
const GGUF_MODES: &[(u64, PoolingMode)] =
    &[(1, PoolingMode::Mean), (2, PoolingMode::Cls), (3, PoolingMode::LastToken)];

impl Pooling {
    /// What a checkpoint's files say; `None` when they say nothing.
    ///
    /// # Errors
    /// As [`Pooling::open`]; [`Error::Unsupported`] also for a GGUF file's.
    pub fn of(checkpoint: &Checkpoint) -> Result<Option<Pooling>> {
        match checkpoint.gguf() {
            Some(file) => Self::of_gguf(file),
            None => Self::open(checkpoint.root()),
        }
    }

    /// A GGUF file's. llama.cpp divides embeddings by their length, whatever the file.
    fn of_gguf(file: &Gguf) -> Result<Option<Pooling>> {
        let Some(arch) = file.text("general.architecture")? else { return Ok(None) };
        let key = format!("{arch}.{GGUF_KEY}");
        let Some(kind) = file.unsigned(&key)? else { return Ok(None) };
        let Some((_, mode)) = GGUF_MODES.iter().find(|(k, _)| *k == kind) else {
            let supported = "1 (mean), 2 (cls), 3 (last)";
            return Err(Error::unsupported(file.path(), key, kind, supported));
        };
        Ok(Some(Pooling { mode: *mode, normalize: true, ..Pooling::default() }))
    }

    /// Reads the files of a checkpoint's folder; `None` when it has no `modules.json`.
    ///
    /// # Errors
    /// As [`Pooling::read`]; [`Error::Io`] for files that cannot be read.
    pub fn open(folder: &Path) -> Result<Option<Pooling>> {
        Self::read(folder, &|path| match path.exists() {
            true => read::bounded(path, read::SETTINGS).map(Some),
            false => Ok(None),
        })
    }

    /// As [`Pooling::open`], of the bytes of files by their paths, `None` for those that are not there.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for a module or mode that Weft does not have; [`Error::Malformed`] or
    /// [`Error::MissingField`] for files that cannot be used; what reading gives.
    pub fn read(folder: &Path, bytes: &dyn Fn(&Path) -> Result<Option<Vec<u8>>>) -> Result<Option<Pooling>> {
        let path = folder.join("modules.json");
        let Some(text) = bytes(&path)? else { return Ok(None) };
        let list = match serde_json::from_slice(&text) {
            Ok(Value::Array(list)) => list,
            Ok(_) => return Err(Error::malformed(&path, "JSON", "not a list", "give a list of modules")),
            Err(e) => return Err(Error::malformed(&path, "JSON", e, "correct the file's JSON")),
        };
        let (mut mode, mut normalize) = (None, false);
        let mut without_prompt = None;
        let mut pools_prompt = true;
        for (i, module) in list.into_iter().enumerate() {
            let Value::Object(map) = module else {
                return Err(Error::malformed(&path, format!("[{i}]"), "not an object", "give a module"));
            };
            let mut f = Fields { path: path.clone(), prefix: format!("[{i}]."), map };
            let kind = f.text("type")?.ok_or_else(|| f.absent("type"))?;
            let place = f.text("path")?.unwrap_or_default();
            match (kind.rsplit('.').next().unwrap_or(&kind), i, mode) {
                ("Transformer", 0, _) => {}
                ("Pooling", _, None) if !is_inside(&place) => {
                    let problem = format!("{place:?} is not a folder within the checkpoint");
                    return Err(f.malformed("path", problem));
                }
                ("Pooling", _, None) => {
                    let path = folder.join(place).join("config.json");
                    let text = bytes(&path)?;
                    let text = text.ok_or_else(|| {
                        Error::missing(&path, "the file", "take it over from the model, with modules.json")
                    })?;
                    let (found, include_prompt) = read_mode(&path, &text)?;
                    mode = Some(found);
                    pools_prompt = include_prompt;
                    without_prompt = (!include_prompt).then_some(path);
                }
                ("Normalize", _, Some(_)) => normalize = true,
                _ => {
                    let supported = "a Transformer, a Pooling and perhaps a Normalize, in this order";
                    return Err(Error::unsupported(&path, f.name("type"), kind, supported));
                }
            }
        }
        let Some(mode) = mode else {
            return Err(Error::missing(&path, "a module of type Pooling", "token embeddings are not pooled"));
        };
        let path = folder.join("sentence_bert_config.json");
        let (max_tokens, lower_case) = match bytes(&path)? {
            Some(text) => read_transformer(&path, &text)?,
            None => (None, false),
        };
        let path = folder.join("config_sentence_transformers.json");
        let (prompt, prompts) =
            bytes(&path)?.map_or_else(|| Ok(Default::default()), |text| read_prompts(&path, &text))?;
        if let (Some(path), Some(_)) = (without_prompt, &prompt) {
            let supported =
                "absent or true, where config_sentence_transformers.json has a default_prompt_name";
            return Err(Error::unsupported(&path, "include_prompt", false, supported));
        }
        let prompt = prompt.filter(|prompt| !prompt.is_empty());
        let include_prompt = pools_prompt;
        Ok(Some(Pooling { mode, normalize, prompt, prompts, include_prompt, lower_case, max_tokens }))
    }

    /// The same, with the prompt of this name before a text.
    ///
    /// # Errors
    /// Why not: no prompt has this name, or a prompt's tokens would not be pooled, which Weft does not do.
    pub fn prompted(mut self, name: &str) -> std::result::Result<Pooling, String> {
        let Some(prompt) = self.prompts.get(name) else {
            let known: Vec<&str> = self.prompts.keys().map(String::as_str).collect();
            return Err(match known.is_empty() {
                true => "the checkpoint has no prompts in config_sentence_transformers.json".into(),
                false => format!("the checkpoint's prompts are {}", known.join(", ")),
            });
        };
        if !self.include_prompt {
            return Err("the pooling's include_prompt is false, which Weft does not do with a prompt".into());
        }
        self.prompt = Some(prompt.clone()).filter(|prompt| !prompt.is_empty());
        Ok(self)
    }
}

impl Default for Pooling {
    /// What sentence-transformers takes for a checkpoint without its files: the mean, as it is.
    fn default() -> Pooling {
        Pooling {
            mode: PoolingMode::Mean,
            normalize: false,
            prompt: None,
            prompts: BTreeMap::new(),
            include_prompt: true,
            lower_case: false,
            max_tokens: None,
        }
    }
}

/// Whether a path stays in the folder that it is taken from.
fn is_inside(place: &str) -> bool {
    Path::new(place).components().all(|c| matches!(c, Component::Normal(_) | Component::CurDir))
}

/// The mode, and whether a prompt's tokens are pooled, too.
fn read_mode(path: &Path, text: &[u8]) -> Result<(PoolingMode, bool)> {
    let mut f = Fields::parse(path, text)?;
    let include_prompt = f.boolean("include_prompt")?.unwrap_or(true);
    let flagged = flagged(&mut f)?;
    // Newer files name the mode.
    let named = f.text("pooling_mode")?;
    // The width of a hidden state, by its two names.
    refuse_unknown(f, &["embedding_dimension", "word_embedding_dimension"])?;
    let mode = match (named, flagged) {
        (None, Some((_, mode))) => mode,
        (None, None) => {
            let remedy = "set pooling_mode_mean_tokens to true";
            return Err(Error::missing(path, "a pooling mode", remedy));
        }
        (Some(name), flagged) => {
            let mode = match name.as_str() {
                "mean" => PoolingMode::Mean,
                "cls" => PoolingMode::Cls,
                "max" => PoolingMode::Max,
                "lasttoken" => PoolingMode::LastToken,
                _ => return Err(Error::unsupported(path, "pooling_mode", name, "mean, cls, max, lasttoken")),
            };
            if let Some((key, _)) = flagged.filter(|(_, flagged)| *flagged != mode) {
                let problem = format!("{name} contradicts {key} = true");
                return Err(Error::malformed(path, "pooling_mode", problem, "keep one of the two"));
            }
            mode
        }
    };
    Ok((mode, include_prompt))
}

/// The mode that is set to true, and its key.
fn flagged(f: &mut Fields) -> Result<Option<(&'static str, PoolingMode)>> {
    let mut chosen = None;
    for (key, mode) in MODES {
        if f.boolean(key)? != Some(true) {
            continue;
        }
        match (mode, chosen) {
            (Some(mode), None) => chosen = Some((*key, *mode)),
            (None, _) => {
                let supported = "one of pooling_mode_mean_tokens, pooling_mode_cls_token, pooling_mode_max_tokens, \
                     pooling_mode_lasttoken";
                return Err(Error::unsupported(&f.path, *key, true, supported));
            }
            (Some(_), Some(_)) => {
                return Err(Error::unsupported(&f.path, *key, true, "one mode: several are joined"));
            }
        }
    }
    Ok(chosen)
}

/// The prompt that is put before every text, where the file asks for one, and all prompts that are text.
fn read_prompts(path: &Path, text: &[u8]) -> Result<(Option<String>, BTreeMap<String, String>)> {
    let mut f = Fields::parse(path, text)?;
    let name = f.text("default_prompt_name")?;
    let prompts = f.take("prompts");
    refuse_unknown(f, &["__version__", "model_type", "similarity_fn_name"])?;
    let all = prompts.as_ref().and_then(Value::as_object).into_iter().flatten();
    let named = all.filter_map(|(name, prompt)| Some((name.clone(), prompt.as_str()?.to_owned())));
    let named: BTreeMap<String, String> = named.collect();
    let Some(name) = name else { return Ok((None, named)) };
    match prompts.as_ref().and_then(|all| all.get(&name)) {
        Some(Value::String(prompt)) => Ok((Some(prompt.clone()), named)),
        found => {
            let found = found.map_or("not there".to_owned(), |value| format!("{value}, not text"));
            let problem = format!("{name:?}, which in prompts is {found}");
            let remedy = "add it to prompts, or set default_prompt_name to null";
            Err(Error::malformed(path, "default_prompt_name", problem, remedy))
        }
    }
}

/// Refuses keys that nobody read, but for empty ones and these.
fn refuse_unknown(f: Fields, harmless: &[&str]) -> Result<()> {
    let neutral = |value: &Value| value.is_null() || is_empty(value);
    match f.map.iter().find(|(key, value)| !harmless.contains(&key.as_str()) && !neutral(value)) {
        None => Ok(()),
        Some((key, value)) => {
            let problem = format!("{value} is unknown to Weft, and embeddings may depend on it");
            Err(Error::malformed(&f.path, key, problem, "where they do not, remove the key"))
        }
    }
}

/// Most tokens, and whether texts are put in lower case.
fn read_transformer(path: &Path, text: &[u8]) -> Result<(Option<usize>, bool)> {
    let mut f = Fields::parse(path, text)?;
    let most = f.size("max_seq_length")?;
    if most == Some(0) {
        return Err(f.malformed("max_seq_length", "0 leaves no token of a text".into()));
    }
    Ok((most, f.boolean("do_lower_case")?.unwrap_or(false)))
}
