//! `weft embed`.

use super::print_json;
use crate::args::EmbedArgs;
use crate::encode::{Sequence, encode, pool};
use crate::engine::{Request, Source};
use crate::errors::{Error, Result};
use crate::progress;
use serde::Serialize;
use std::borrow::Cow;
use std::io::{IsTerminal, Read, Write};
use std::time::Instant;
use weft_frontend::config::pooling::Pooling;
use weft_frontend::text::tokenizer::Tokenizer;

#[derive(Serialize)]
struct Output<'a> {
    device: String,
    pooling: &'a Pooling,
    dimensions: usize,
    seconds: f64,
    embeddings: Vec<Embedding<'a>>,
}

#[derive(Serialize)]
struct Embedding<'a> {
    text: &'a str,
    tokens: usize,
    embedding: Vec<f32>,
}

/// Embeds texts.
pub fn run(args: &EmbedArgs) -> Result<()> {
    let source = Source::open(&args.model, &args.build)?.embedding()?;
    let pooling = Pooling::of(source.checkpoint())?.unwrap_or_else(|| {
        eprintln!("pooling: the mean, not normalised (the checkpoint has no modules.json or pooling_type, which would say)");
        Pooling::default()
    });
    let pooling = match &args.prompt_name {
        Some(name) => {
            pooling.prompted(name).map_err(|why| Error::input(format!("--prompt-name {name}: {why}")))?
        }
        None => pooling,
    };
    let tokenizer = Tokenizer::open(source.checkpoint())?;
    let texts = texts(args)?;
    let longest = source.max_seq(&args.build);
    let sequences =
        tokens(&tokenizer, &texts, &pooling, pooling.max_tokens.map_or(longest, |n| n.min(longest)))?;
    let request = Request { device: args.device, build: &args.build, sequences: texts.len() };
    let mut executor = source.load(request)?;
    let (bar, start) = (progress::count("tokens"), Instant::now());
    let hidden = encode(executor.as_mut(), &sequences, &mut |done, all| progress::tell(&bar, done, all));
    bar.finish_and_clear();
    let (hidden, seconds) = (hidden?, start.elapsed().as_secs_f64());
    let dimensions = executor.limits().hidden.unwrap_or_default();
    let embeddings = texts.iter().zip(&sequences).zip(&hidden).map(|((text, s), hidden)| Embedding {
        text,
        tokens: s.ids.len(),
        embedding: pool(hidden, dimensions, &pooling),
    });
    let embeddings: Vec<Embedding<'_>> = embeddings.collect();
    if args.json {
        let device = executor.device();
        return print_json(&Output { device, pooling: &pooling, dimensions, seconds, embeddings });
    }
    let mut out = std::io::stdout().lock();
    for e in &embeddings {
        let values: Vec<String> = e.embedding.iter().map(f32::to_string).collect();
        writeln!(out, "{}", values.join(" "))?;
    }
    out.flush()?;
    eprintln!("{}: {} texts in {seconds:.2} s", executor.device(), texts.len());
    Ok(())
}

/// The texts, or the lines of stdin.
fn texts(args: &EmbedArgs) -> Result<Vec<String>> {
    if !args.texts.is_empty() {
        return Ok(args.texts.clone());
    }
    let mut stdin = std::io::stdin();
    if stdin.is_terminal() {
        return Err(Error::input("no text: give it as an argument, or one a line through stdin"));
    }
    let mut all = String::new();
    stdin.read_to_string(&mut all).map_err(|e| Error::input(format!("stdin: cannot read texts: {e}")))?;
    let lines: Vec<String> = all.lines().map(str::to_owned).collect();
    if lines.is_empty() {
        return Err(Error::input("no text: stdin is empty; give one a line, or arguments"));
    }
    Ok(lines)
}

/// Token ids of each text, cut off where they are too many.
fn tokens(tokenizer: &Tokenizer, texts: &[String], pooling: &Pooling, most: usize) -> Result<Vec<Sequence>> {
    let mut cut = None;
    let mut count = 0;
    let mut out = Vec::with_capacity(texts.len());
    for (i, text) in texts.iter().enumerate() {
        let mut text = Cow::from(text);
        if let Some(prompt) = &pooling.prompt {
            text.to_mut().insert_str(0, prompt);
        }
        if pooling.lower_case {
            text = text.to_lowercase().into();
        }
        let text = text.as_ref();
        let mut ids = tokenizer.encode(text, true)?;
        if ids.len() > most {
            count += 1;
            let short = match cut.take() {
                Some(short) => short,
                None => tokenizer.truncated(most)?,
            };
            ids = cut.insert(short).encode(text, true)?;
        }
        if ids.is_empty() {
            return Err(Error::input(format!("text {}: it has no tokens; give another", i + 1)));
        }
        out.push(Sequence::plain(ids));
    }
    if count > 0 {
        eprintln!("warning: {count} texts were cut off at {most} tokens, as the model takes no more");
    }
    Ok(out)
}
