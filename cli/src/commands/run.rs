//! `weft run`.

use super::print_json;
use crate::args::{LaunchArg, RunArgs};
use crate::engine::{Request, Source, Warm};
use crate::errors::{Error, Result};
use crate::generate::{self, Answer, Limits, Timing, check_length, generate, stop_tokens};
use crate::startup::{self, Startup};
use serde::Serialize;
use std::io::{IsTerminal, Read, Write};
use weft_frontend::checkpoint::Task;
use weft_frontend::models::Kind;
use weft_frontend::text::chat::{ChatTemplate, Message};
use weft_frontend::text::tokenizer::Tokenizer;
use weft_ir::sampling::{Params, Penalties};

/// What `--json` prints.
#[derive(Serialize)]
struct Output<'a> {
    device: String,
    load_seconds: f64,
    startup: Startup,
    timing: Timing,
    answers: Vec<PromptAnswer<'a>>,
}

#[derive(Serialize)]
struct PromptAnswer<'a> {
    prompt: &'a str,
    #[serde(flatten)]
    answer: &'a Answer,
}

/// Answers prompts.
pub fn run(args: &RunArgs) -> Result<()> {
    let source = Source::open(&args.model, &args.build)?;
    if source.kind()? == Kind::Encoder {
        let (path, kind) = (args.model.display(), &source.checkpoint().config().model_type);
        let what = match source.checkpoint().task() {
            Task::Generate => format!("{kind} is an encoder, which answers nothing"),
            Task::Embed => "compiled for hidden states, and answers nothing".to_owned(),
        };
        return Err(Error::input(format!("{path}: {what}; weft embed takes it")));
    }
    // A tokenizer takes as long to read as a GPU to wake up.
    let _warm = Warm::up(args.device);
    let tokenizer = Tokenizer::open(source.checkpoint())?;
    let chat = chat_template(args, &source)?;
    let prompts = prompts(args)?;
    let mut requests = Vec::with_capacity(prompts.len());
    for (i, prompt) in prompts.iter().enumerate() {
        let ids = match &chat {
            Some(chat) => tokenizer.encode(&chat.render(&messages(args, prompt), true)?, false)?,
            None => tokenizer.encode(prompt, true)?,
        };
        check_length(i, ids.len(), source.max_seq(&args.build))?;
        let (repetition, presence) = (args.sampling.repetition_penalty, args.sampling.presence_penalty);
        let penalties = Penalties { repetition, presence };
        requests.push(generate::Request { ids, params: params(args, i), penalties });
    }
    let limits = Limits {
        max_new_tokens: args.max_new_tokens,
        stop_tokens: stop_tokens(source.checkpoint(), &tokenizer, chat.as_ref()),
        stop_strings: args.stop.clone(),
        launch: args.launch,
    };
    let request = Request { device: args.device, build: &args.build, sequences: requests.len() };
    let (mut executor, mut startup) = source.load_timed(request)?;
    let load_seconds = startup.device_seconds + startup.plan_seconds + startup.load_seconds;
    let before = startup::seconds();
    let tokens = requests.iter().map(|r| r.ids.len()).sum();
    executor.ready_for(tokens, requests.len(), args.launch == LaunchArg::Loop)?;
    startup.graph_seconds = startup::seconds() - before;
    let streamed = prompts.len() == 1 && !args.json;
    let mut say = |_: usize, text: &str| {
        if streamed {
            let mut out = std::io::stdout().lock();
            out.write_all(text.as_bytes())?;
            out.flush()?;
        }
        Ok(())
    };
    let loaded = startup::seconds();
    let (answers, timing) = generate(executor.as_mut(), &tokenizer, &requests, &limits, &mut say)?;
    startup.prompt_seconds = timing.first_token_seconds;
    startup.first_token_seconds = loaded + timing.first_token_seconds;
    if args.json {
        let pairs = prompts.iter().zip(&answers);
        let answers = pairs.map(|(prompt, answer)| PromptAnswer { prompt, answer }).collect();
        return print_json(&Output { device: executor.device(), load_seconds, startup, timing, answers });
    }
    let mut out = std::io::stdout().lock();
    if streamed {
        writeln!(out)?;
    } else {
        for (i, (prompt, answer)) in prompts.iter().zip(&answers).enumerate() {
            let blank = if i == 0 { "" } else { "\n" };
            writeln!(out, "{blank}==> {}\n{}", prompt.lines().next().unwrap_or_default(), answer.text)?;
        }
    }
    out.flush()?;
    eprintln!("{}: {startup}", executor.device());
    eprintln!("{}", timing.text());
    Ok(())
}

/// The chat template, where one is to be applied.
fn chat_template(args: &RunArgs, source: &Source) -> Result<Option<ChatTemplate>> {
    if args.no_chat {
        return Ok(None);
    }
    let chat = ChatTemplate::open(source.checkpoint())?;
    let option = if args.chat { "--chat" } else { "--system" };
    if chat.is_none() && (args.chat || args.system.is_some()) {
        return Err(Error::input(format!(
            "{}: the model has no chat template (tokenizer_config.json: chat_template), which {option} needs; \
             leave the option out",
            args.model.display()
        )));
    }
    Ok(chat)
}

/// The prompts, or all of stdin as one.
fn prompts(args: &RunArgs) -> Result<Vec<String>> {
    if !args.prompts.is_empty() {
        return Ok(args.prompts.clone());
    }
    let mut stdin = std::io::stdin();
    if stdin.is_terminal() {
        return Err(Error::input("no prompt: give it as an argument, or through stdin"));
    }
    let mut text = String::new();
    stdin.read_to_string(&mut text).map_err(|e| Error::input(format!("stdin: cannot read a prompt: {e}")))?;
    // The last newline is the shell's, not the prompt's.
    let text = text.strip_suffix('\n').unwrap_or(&text);
    if text.is_empty() {
        return Err(Error::input("no prompt: stdin is empty; give it as an argument, or through stdin"));
    }
    Ok(vec![text.to_owned()])
}

fn messages(args: &RunArgs, prompt: &str) -> Vec<Message> {
    let system = args.system.iter().map(|text| Message::new("system", text));
    system.chain([Message::new("user", prompt)]).collect()
}

fn params(args: &RunArgs, prompt: usize) -> Params {
    let s = &args.sampling;
    Params {
        temperature: s.temperature,
        top_k: s.top_k,
        top_p: s.top_p,
        min_p: s.min_p,
        seed: s.seed.wrapping_add(prompt as u32),
    }
}
