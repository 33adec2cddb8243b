//! The host's side of a generation against a device that a thread plays.

use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};

use super::*;

const CONTEXT: usize = 20;
const STEPS: usize = 24;

fn first(rows: usize) -> StepInputs {
    StepInputs {
        token_ids: vec![1; rows],
        positions: (0..rows as i32).map(|r| 2 + r).collect(),
        slots: (0..rows as i32).map(|r| r * CONTEXT as i32 + 2 + r).collect(),
        output_rows: (0..rows as i32).collect(),
        ..StepInputs::default()
    }
}

/// The token that a made-up model gives.
fn token(row: usize, position: i32, last: i32) -> i32 {
    (last * 7 + position * 3 + row as i32) % 50
}

/// A device: what it streams, what it is told, and whether it stopped.
struct Played {
    words: Vec<AtomicI32>,
    cancel: Vec<AtomicI32>,
    done: AtomicBool,
}

impl Played {
    fn new(rows: usize) -> Played {
        let words = |n: usize, v| (0..n).map(|_| AtomicI32::new(v)).collect();
        Played { words: words(STEPS * rows, EMPTY), cancel: words(rows, 0), done: AtomicBool::new(false) }
    }

    /// What the loop does; it breaks down before step `breaks`.
    fn run(&self, g: &Generate<'_>, nan: Option<(usize, usize)>, breaks: usize) {
        let rows = self.cancel.len();
        let (mut ids, mut positions) = (g.first.token_ids.clone(), g.first.positions.clone());
        let mut slots = g.first.slots.clone();
        let mut remaining: Vec<i32> = g.limits.iter().map(|&n| n as i32).collect();
        let stop: Vec<i32> = g.stop_tokens.iter().map(|&t| t as i32).collect();
        let rules = Rules { stop_tokens: &stop, context: CONTEXT };
        for step in 0..breaks {
            let mut made: Vec<i32> = (0..rows).map(|r| token(r, positions[r], ids[r])).collect();
            if let Some((at, row)) = nan
                && at == step
            {
                made[row] = -1;
            }
            let cancel: Vec<i32> = self.cancel.iter().map(|c| c.load(Ordering::Acquire)).collect();
            let mut state = Rows {
                token_ids: &mut ids,
                positions: &mut positions,
                slots: &mut slots,
                remaining: &mut remaining,
            };
            let shown = generation::advance(&mut state, &made, &cancel, &rules);
            // Rows appear in no particular order.
            for (r, token) in shown.into_iter().enumerate().rev().filter(|(_, t)| *t != EMPTY) {
                self.words[step * rows + r].store(token, Ordering::Release);
            }
            if !generation::goes_on(&remaining) {
                break;
            }
            std::thread::sleep(Duration::from_micros(30));
        }
        self.done.store(true, Ordering::Release);
    }
}

impl Stream for Played {
    fn token(&self, step: usize, row: usize) -> Result<i32> {
        Ok(self.words[step * self.cancel.len() + row].load(Ordering::Acquire))
    }

    fn cancel(&self, row: usize) -> Result<()> {
        self.cancel[row].store(1, Ordering::Release);
        Ok(())
    }

    fn is_done(&self) -> Result<bool> {
        Ok(self.done.load(Ordering::Acquire))
    }
}

/// The same model, a step at a time.
struct Stepped(Option<(usize, usize)>, usize);

impl Executor for Stepped {
    fn step(&mut self, _: Role, s: &StepInputs, _: bool) -> Result<super::super::StepOutput> {
        let rows = 0..s.token_ids.len();
        let mut tokens: Vec<i32> = rows.map(|r| token(r, s.positions[r], s.token_ids[r])).collect();
        if let Some((at, row)) = self.0
            && at == self.1
        {
            tokens[row] = -1;
        }
        self.1 += 1;
        Ok(super::super::StepOutput { tokens, ..Default::default() })
    }

    fn limits(&self) -> super::super::Limits {
        super::super::Limits {
            max_seq: CONTEXT,
            max_batch: 4,
            prefill_tokens: 0,
            score_tokens: 0,
            encode_tokens: 0,
            vocab: Some(50),
            hidden: None,
        }
    }

    fn device(&self) -> String {
        "test".into()
    }
}

type Told = Vec<(usize, u32)>;

fn both(
    g: &Generate<'_>,
    nan: Option<(usize, usize)>,
    next: &dyn Fn(usize, u32, usize) -> Next,
) -> (Vec<RowTokens>, Told) {
    let mut told = Vec::new();
    let stepped = Stepped(nan, 0).generate(g, &mut |row, id| {
        told.push((row, id));
        next(row, id, told.len())
    });
    let device = Played::new(g.limits.len());
    let mut account = Account::new(g, CONTEXT).expect("an account");
    let mut told_by_loop = Vec::new();
    let followed = std::thread::scope(|s| {
        s.spawn(|| device.run(g, nan, STEPS));
        follow(&device, &mut account, &mut |row, id| {
            told_by_loop.push((row, id));
            next(row, id, told_by_loop.len())
        })
    });
    followed.expect("follows");
    let stepped = stepped.expect("steps");
    assert_eq!(account.finish(), stepped);
    assert_eq!(told_by_loop, told);
    (stepped, told)
}

#[test]
fn a_loop_and_steps_tell_the_same() {
    let first = first(3);
    let g = Generate { first: &first, limits: &[9, 100, 4], stop_tokens: &[] };
    let (rows, told) = both(&g, None, &|_, _, _| Next::Go);
    assert_eq!(rows.iter().map(|r| r.end).collect::<Vec<_>>(), [End::Length, End::ContextFull, End::Length]);
    // Sequence 1 begins at position 3.
    assert_eq!(rows.iter().map(|r| r.tokens.len()).collect::<Vec<_>>(), [9, CONTEXT - 3, 4]);
    assert_eq!(told[..4].iter().map(|t| t.0).collect::<Vec<_>>(), [0, 1, 2, 0]);

    // A stop token ends its row with itself, and no number ends a row without a token.
    let stop = rows[1].tokens[5];
    let g = Generate { first: &first, limits: &[9, 100, 9], stop_tokens: &[stop] };
    let (rows, _) = both(&g, Some((2, 2)), &|_, _, _| Next::Go);
    assert_eq!(rows[1].end, End::StopToken);
    assert_eq!(rows[1].tokens.last(), Some(&stop));
    assert_eq!((rows[2].end, rows[2].tokens.len()), (End::NotNumbers, 2));
}

#[test]
fn rows_that_the_host_ends_leave_the_others_alone() {
    let first = first(3);
    let g = Generate { first: &first, limits: &[12; 3], stop_tokens: &[] };
    let (all, _) = both(&g, None, &|_, _, _| Next::Go);
    let (rows, _) = both(&g, None, &|row, _, n| if row == 1 && n > 6 { Next::EndRow } else { Next::Go });
    assert_eq!(rows[1], RowTokens { tokens: all[1].tokens[..3].to_vec(), end: End::Cancelled });
    assert_eq!((&rows[0], &rows[2]), (&all[0], &all[2]));
    let (rows, told) = both(&g, None, &|_, _, n| if n == 8 { Next::EndAll } else { Next::Go });
    assert_eq!(told.len(), 8);
    assert!(rows.iter().all(|r| r.end == End::Cancelled), "{rows:?}");
    assert_eq!(rows.iter().map(|r| r.tokens.len()).collect::<Vec<_>>(), [3, 3, 2]);
}

#[test]
fn a_device_that_breaks_down_is_found_out() {
    let first = first(2);
    let g = Generate { first: &first, limits: &[9, 9], stop_tokens: &[] };
    let device = Played::new(2);
    let mut account = Account::new(&g, CONTEXT).expect("an account");
    device.run(&g, None, 3);
    let error = follow(&device, &mut account, &mut |_, _| Next::Go).expect_err("no fourth step");
    assert!(error.to_string().contains("it ended before step 3 of row 0; run with --launch step"), "{error}");
}

#[test]
fn generations_that_cannot_be_are_refused() {
    let good = first(2);
    let g = |first| Generate { first, limits: &[3, 3], stop_tokens: &[] };
    let why = |g: &Generate<'_>| Account::new(g, CONTEXT).err().map(|e| e.to_string()).unwrap_or_default();
    assert_eq!(why(&g(&good)), "");
    let bad = [
        ("output_rows", StepInputs { output_rows: vec![1], ..good.clone() }),
        ("positions", StepInputs { positions: vec![1], ..good.clone() }),
        ("slots", StepInputs { slots: vec![1, -1], ..good.clone() }),
    ];
    for (input, first) in &bad {
        assert!(why(&g(first)).contains(input), "{input}");
    }
    assert!(why(&Generate { limits: &[3, 0], ..g(&good) }).contains("limits [3, 0]"));
    assert!(why(&Generate { limits: &[3], ..g(&good) }).contains("limits [3]"));
    assert!(why(&Generate { stop_tokens: &[1; 64], ..g(&good) }).contains("64 stop tokens; at most 63"));
    let far = Generate { limits: &[usize::MAX, 1], ..g(&good) };
    assert_eq!(Account::new(&far, CONTEXT).expect("an account").reach(), (CONTEXT - 2, CONTEXT));
}

#[test]
fn a_driver_without_conditional_nodes_is_named_with_the_remedy() {
    use crate::sys::driver::CudaVersion;
    let check = |major, minor| super::super::check_driver(CudaVersion { major, minor });
    assert!(check(12, 4).is_ok() && check(13, 0).is_ok());
    let error = check(12, 3).expect_err("too old").to_string();
    for text in ["conditional graph nodes", "12.4", "12.3", "--launch step"] {
        assert!(error.contains(text), "{error}");
    }
}
