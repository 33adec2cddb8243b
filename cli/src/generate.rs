//! Generation: prompts through prefill steps, then a token a sequence and step until each answer ends. A stop
//! string spans tokens, so it is the host that finds it and ends the row.
//!
//! Prompts run as one ragged batch, in waves of as many sequences as the plan holds.

use crate::args::LaunchArg;
use crate::batch::{Piece, chunks, inputs, sampled, step};
use crate::errors::{Error, Result};
use serde::Serialize;
use std::time::{Duration, Instant};
use weft_frontend::checkpoint::Checkpoint;
use weft_frontend::text::chat::ChatTemplate;
use weft_frontend::text::stream::StreamDecoder;
use weft_frontend::text::tokenizer::Tokenizer;
use weft_ir::generation::End;
use weft_ir::plan::Role;
use weft_ir::sampling::{Params, Penalties};
use weft_runtime::exec::{Executor, Generate, Next, step_by_step};

/// Tokens that end a turn in the chat formats in use, where a vocabulary has them.
const END_OF_TURN: &[&str] = &["<|im_end|>", "<|eot_id|>", "<|end|>", "<end_of_turn>", "<|endoftext|>"];

/// Which tokens end an answer: those of the configuration, and those that end a turn.
pub fn stop_tokens(checkpoint: &Checkpoint, tokenizer: &Tokenizer, chat: Option<&ChatTemplate>) -> Vec<u32> {
    let mut ids = checkpoint.config().eos_token_ids.clone();
    let named = chat.and_then(|c| c.special_token("eos_token")).into_iter();
    ids.extend(named.chain(END_OF_TURN.iter().copied()).filter_map(|t| tokenizer.token_id(t)));
    ids.sort_unstable();
    ids.dedup();
    ids
}

/// A prompt.
#[derive(Clone, Debug)]
pub struct Request {
    /// Its tokens.
    pub ids: Vec<u32>,
    /// How to choose tokens.
    pub params: Params,
    /// What tokens that occurred cost.
    pub penalties: Penalties,
}

/// When to end an answer.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Most tokens of an answer.
    pub max_new_tokens: usize,
    /// Tokens that end it.
    pub stop_tokens: Vec<u32>,
    /// Texts that end it.
    pub stop_strings: Vec<String>,
    /// How its steps are launched.
    pub launch: LaunchArg,
}

/// Why an answer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Finish {
    /// A stop token.
    StopToken,
    /// A stop string.
    StopString,
    /// The most tokens asked for.
    Length,
    /// The context is full.
    ContextFull,
}

/// An answer.
#[derive(Clone, Debug, Serialize)]
pub struct Answer {
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Tokens of the answer, without the stop token.
    pub token_ids: Vec<u32>,
    /// Text of the answer.
    pub text: String,
    /// Why it ended.
    pub finish: Finish,
}

/// How long it took.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Timing {
    /// Tokens of prompts.
    pub prompt_tokens: usize,
    /// Seconds in prefill steps.
    pub prefill_seconds: f64,
    /// Tokens that decode steps made.
    pub decode_tokens: usize,
    /// Seconds in decode steps.
    pub decode_seconds: f64,
    /// Seconds to the first token of the first prompt.
    pub first_token_seconds: f64,
}

/// An answer in the making.
struct Running {
    sequence: usize,
    params: Params,
    penalties: Penalties,
    /// The newest token, not yet in the cache, and its position.
    last: u32,
    position: usize,
    decoder: StreamDecoder,
    prompt_tokens: usize,
    ids: Vec<u32>,
    text: String,
    finish: Option<Finish>,
}

/// Answers prompts; `text` is told each new piece of text, with its prompt's position in the list.
///
/// # Errors
/// A prompt that is empty or does not fit, a step that fails, or what `text` reports.
pub fn generate(
    executor: &mut dyn Executor,
    tokenizer: &Tokenizer,
    requests: &[Request],
    limits: &Limits,
    text: &mut dyn FnMut(usize, &str) -> Result<()>,
) -> Result<(Vec<Answer>, Timing)> {
    let most = executor.limits();
    for (i, r) in requests.iter().enumerate() {
        check_length(i, r.ids.len(), most.max_seq)?;
    }
    let (mut answers, mut timing) = (Vec::new(), Timing::default());
    let start = Instant::now();
    let width = most.max_batch.max(1);
    for (w, wave) in requests.chunks(width).enumerate() {
        let first = w * width;
        let mut tell = |sequence: usize, piece: &str| {
            if piece.is_empty() { Ok(()) } else { text(first + sequence, piece) }
        };
        let before = Instant::now();
        let mut running = prefill(executor, tokenizer, wave, limits, &mut tell)?;
        timing.prefill_seconds += before.elapsed().as_secs_f64();
        timing.prompt_tokens += wave.iter().map(|r| r.ids.len()).sum::<usize>();
        if w == 0 {
            timing.first_token_seconds = start.elapsed().as_secs_f64();
        }
        let before = Instant::now();
        timing.decode_tokens += decode(executor, limits, &mut running, most.max_seq, &mut tell)?;
        timing.decode_seconds += before.elapsed().as_secs_f64();
        answers.extend(running.into_iter().map(|r| Answer {
            prompt_tokens: r.prompt_tokens,
            token_ids: r.ids,
            text: r.text,
            finish: r.finish.unwrap_or(Finish::Length),
        }));
    }
    Ok((answers, timing))
}

/// Whether a prompt has tokens, and room for an answer.
///
/// # Errors
/// Naming the prompt, the figures and the remedy.
pub fn check_length(prompt: usize, tokens: usize, max_seq: usize) -> Result<()> {
    if tokens == 0 {
        return Err(Error::input(format!("prompt {}: it has no tokens; give some text", prompt + 1)));
    }
    if tokens > max_seq {
        return Err(Error::input(format!(
            "prompt {}: {tokens} tokens do not fit in --max-seq {max_seq}; shorten it, or raise --max-seq",
            prompt + 1
        )));
    }
    Ok(())
}

type Tell<'a> = &'a mut dyn FnMut(usize, &str) -> Result<()>;

fn prefill(
    executor: &mut dyn Executor,
    tokenizer: &Tokenizer,
    wave: &[Request],
    limits: &Limits,
    tell: Tell<'_>,
) -> Result<Vec<Running>> {
    let most = executor.limits();
    let lengths: Vec<usize> = wave.iter().map(|r| r.ids.len()).collect();
    let mut running: Vec<Running> = Vec::with_capacity(wave.len());
    for chunk_list in chunks(&lengths, most.prefill_tokens) {
        let pieces: Vec<Piece<'_>> = chunk_list
            .iter()
            .map(|c| Piece {
                sequence: c.sequence,
                start: c.start,
                ids: &wave[c.sequence].ids[c.start..c.start + c.len],
                params: wave[c.sequence].params,
                penalties: wave[c.sequence].penalties,
                prompt: wave[c.sequence].ids.len(),
            })
            .collect();
        let out = step(executor, Role::Prefill, &pieces, false)?;
        for (c, &token) in chunk_list.iter().zip(&out.tokens) {
            let request = &wave[c.sequence];
            let length = request.ids.len();
            if c.start + c.len < length {
                continue; // The rest of the prompt comes in the next step.
            }
            let mut r = Running {
                sequence: c.sequence,
                params: request.params,
                penalties: request.penalties,
                last: sampled(token, c.sequence, length - 1)?,
                position: length,
                decoder: StreamDecoder::new(tokenizer, true, limits.stop_strings.clone()),
                prompt_tokens: length,
                ids: Vec::new(),
                text: String::new(),
                finish: None,
            };
            r.take(limits, most.max_seq, tell)?;
            running.push(r);
        }
    }
    Ok(running)
}

/// Decode steps until all answers ended; gives the number of tokens made.
fn decode(
    executor: &mut dyn Executor,
    limits: &Limits,
    running: &mut [Running],
    max_seq: usize,
    tell: Tell<'_>,
) -> Result<usize> {
    let active: Vec<usize> = (0..running.len()).filter(|&i| running[i].finish.is_none()).collect();
    if active.is_empty() {
        return Ok(0);
    }
    let pieces: Vec<Piece<'_>> = active
        .iter()
        .map(|&i| {
            let r = &running[i];
            let ids = std::slice::from_ref(&r.last);
            let (sequence, start, prompt) = (r.sequence, r.position, r.prompt_tokens);
            Piece { sequence, start, ids, params: r.params, penalties: r.penalties, prompt }
        })
        .collect();
    let first = inputs(executor, Role::Decode, &pieces);
    let most: Vec<usize> = active.iter().map(|&i| limits.max_new_tokens - running[i].ids.len()).collect();
    let g = Generate { first: &first, limits: &most, stop_tokens: &limits.stop_tokens };
    let (mut made, mut failed) = (0, None);
    let mut on_token = |row: usize, id: u32| {
        made += 1;
        let r = &mut running[active[row]];
        (r.last, r.position) = (id, r.position + 1);
        match r.take(limits, max_seq, tell) {
            Ok(()) if r.finish.is_some() => Next::EndRow,
            Ok(()) => Next::Go,
            Err(e) => {
                failed = Some(e);
                Next::EndAll
            }
        }
    };
    let rows = match limits.launch {
        LaunchArg::Loop => executor.generate(&g, &mut on_token),
        LaunchArg::Step => step_by_step(executor, &g, &mut on_token),
    }?;
    if let Some(e) = failed {
        return Err(e);
    }
    for (row, &i) in rows.iter().zip(&active) {
        if row.end == End::NotNumbers {
            sampled(-1, running[i].sequence, running[i].position)?;
        }
    }
    Ok(made)
}

impl Running {
    /// Takes the newest token: adds its text, and finds whether the answer ends.
    fn take(&mut self, limits: &Limits, max_seq: usize, tell: Tell<'_>) -> Result<()> {
        if limits.stop_tokens.contains(&self.last) {
            return self.end(Finish::StopToken, tell);
        }
        self.ids.push(self.last);
        let piece = self.decoder.push(self.last)?;
        self.say(&piece.text, tell)?;
        if piece.stopped.is_some() {
            self.finish = Some(Finish::StopString);
        } else if self.ids.len() >= limits.max_new_tokens {
            self.end(Finish::Length, tell)?;
        } else if self.position >= max_seq {
            self.end(Finish::ContextFull, tell)?;
        }
        Ok(())
    }

    /// Ends the answer with the text that was held back.
    fn end(&mut self, finish: Finish, tell: Tell<'_>) -> Result<()> {
        let piece = self.decoder.finish()?;
        self.say(&piece.text, tell)?;
        self.finish = Some(if piece.stopped.is_some() { Finish::StopString } else { finish });
        Ok(())
    }

    fn say(&mut self, text: &str, tell: Tell<'_>) -> Result<()> {
        self.text.push_str(text);
        tell(self.sequence, text)
    }
}

impl Timing {
    /// In words.
    pub fn text(&self) -> String {
        let rate = |n: usize, s: f64| if s > 0.0 { n as f64 / s } else { 0.0 };
        let (p, d) =
            (Duration::from_secs_f64(self.prefill_seconds), Duration::from_secs_f64(self.decode_seconds));
        let mut text = format!(
            "prompt: {} tokens in {p:.3?} ({:.0} tokens/s)",
            self.prompt_tokens,
            rate(self.prompt_tokens, self.prefill_seconds)
        );
        if self.decode_tokens > 0 {
            text.push_str(&format!(
                "; answer: {} tokens in {d:.3?} ({:.1} tokens/s)",
                self.decode_tokens,
                rate(self.decode_tokens, self.decode_seconds)
            ));
        }
        text
    }
}
