//! Sampling behind the head, in the head's kernel: greedy rows, draws with every filter, penalties, rows that
//! are no numbers. Each kernel on the emulator against the definition, and through NVRTC without spills.

use weft_ir::dtype::DType;
use weft_ir::graph::Input;
use weft_ir::plan::{BufferKind, Draw, DrawPenalties, MatMul, Scalar};
use weft_ir::reference::StepInputs;
use weft_ir::sampling::{Params, Penalties, penalize_row, sample_row};
use weft_ir::scalar::{Binary, Compare};
use weft_ir::shape::{Dim, Sym};
use weft_testsuite::product::{Maker, at, load_at, op, store};

const ROWS: Dim = Dim::Sym(Sym::Rows);

/// Slots of a sequence.
const CONTEXT: usize = 16;

/// What the rows of a step ask for.
struct Asked {
    temperature: f32,
    top_k: i32,
    top_p: f32,
    min_p: f32,
    repetition: f32,
    presence: f32,
}

const GREEDY: Asked =
    Asked { temperature: 0.0, top_k: 0, top_p: 1.0, min_p: 0.0, repetition: 1.0, presence: 0.0 };

/// One of several kinds for each row.
fn asked(row: usize) -> Asked {
    match row % 8 {
        0 => GREEDY,
        1 => Asked { temperature: 0.8, ..GREEDY },
        2 => Asked { repetition: 1.7, ..GREEDY },
        3 => Asked { temperature: 1.2, top_k: 5, ..GREEDY },
        4 => Asked { temperature: 1.0, top_p: 0.7, presence: 0.9, ..GREEDY },
        5 => Asked { presence: -2.0, repetition: 0.6, ..GREEDY },
        6 => Asked { temperature: 0.5, min_p: 0.2, ..GREEDY },
        _ => Asked { temperature: 1.5, top_k: 20, top_p: 0.9, min_p: 0.05, repetition: 1.3, presence: 0.4 },
    }
}

/// The position of a row's token.
fn position(row: usize) -> usize {
    (5 * row + 2) % CONTEXT
}

/// The tokens of a row's sequence: some twice, some that are in no vocabulary.
fn history(row: usize) -> Vec<i32> {
    (row * CONTEXT..(row + 1) * CONTEXT).map(|i| (i * 7 % 40) as i32 - 1).collect()
}

/// Fails unless the tokens are those of the definition for the very logits that the kernel stored.
fn check_drawn(mk: &Maker, m: &MatMul, rows: usize) {
    let (logits, tokens) = mk.drawn(m, rows);
    let i = &mk.inputs;
    for (r, (row, token)) in logits.chunks(m.n).zip(tokens).enumerate() {
        let mut row = row.to_vec();
        if m.draw.as_ref().is_some_and(|d| d.penalties.is_some()) {
            let penalties =
                Penalties { repetition: i.repetition_penalty[r], presence: i.presence_penalty[r] };
            penalize_row(&mut row, &history(r)[..=position(r)], i.prompt_lengths[r] as usize, &penalties);
        }
        let params = Params {
            temperature: i.temperature[r],
            top_k: i.top_k[r],
            top_p: i.top_p[r],
            min_p: i.min_p[r],
            seed: i.seed[r],
        };
        let wanted = sample_row(&row, position(r) as i32, &params);
        assert_eq!(token, wanted, "row {r} of {} tokens, {params:?}", m.n);
    }
}

/// A head [n, k] whose logits are scaled, so that softmax has something to choose from.
fn head(rows: usize, (n, k): (usize, usize), from: usize, penalised: bool) -> (Maker, MatMul) {
    let mut mk = Maker::default();
    let x = mk.floats("x", DType::BF16, &[rows, k], 1.0);
    let b = mk.floats("w", DType::BF16, &[n, k], 0.4);
    let asked: Vec<Asked> = (0..rows).map(|r| asked(from + r)).collect();
    let position = mk.ints("position", (0..rows).map(|r| position(r) as i32).collect());
    let of = |f: &dyn Fn(&Asked) -> f32| asked.iter().map(f).collect::<Vec<f32>>();
    mk.inputs = StepInputs {
        temperature: of(&|a| a.temperature),
        top_k: asked.iter().map(|a| a.top_k).collect(),
        top_p: of(&|a| a.top_p),
        min_p: of(&|a| a.min_p),
        seed: (0..rows as u32).map(|r| 77 + r).collect(),
        prompt_lengths: (0..rows).map(|r| (r % 4) as i32).collect(),
        repetition_penalty: of(&|a| a.repetition),
        presence_penalty: of(&|a| a.presence),
        ..StepInputs::default()
    };
    let parameters = [Input::Temperature, Input::TopK, Input::TopP, Input::MinP, Input::Seed];
    let parameters = parameters.map(|i| mk.input(i));
    let penalties = penalised.then(|| {
        let history = mk.ints("history", (0..rows).flat_map(history).collect());
        let base = op(Binary::Mul, at(0), Scalar::Int(CONTEXT as i64));
        let costs = [Input::PromptLengths, Input::RepetitionPenalty, Input::PresencePenalty];
        DrawPenalties { history, base, parameters: costs.map(|i| mk.input(i)) }
    });
    mk.write("logits", DType::F32, vec![ROWS, Dim::Const(n)], BufferKind::Output("logits".into()));
    mk.write("tokens", DType::I32, vec![ROWS], BufferKind::Output("tokens".into()));
    let draw = Draw { logits: 0, tokens: 1, position: load_at(position, &[at(0)]), parameters, penalties };
    let stores = vec![store(0, &[at(0), at(1)], Scalar::Acc(0), None)];
    let a = load_at(x, &[at(0), at(1)]);
    let draw = Some(draw);
    (mk, MatMul { m: ROWS, n, group: 1, k, a, b, stages: vec![], row: None, stores, draw })
}

#[test]
fn tokens_are_those_of_the_definition() {
    for (n, k) in [(37, 80), (300, 64), (1031, 33)] {
        for penalised in [false, true] {
            for (rows, from) in [(1, 0), (1, 1), (1, 2), (1, 7), (2, 3), (3, 5), (8, 0), (11, 2)] {
                let (mk, m) = head(rows, (n, k), from, penalised);
                mk.check(&m, rows, &|_| {});
            }
        }
    }
}

/// Blocks, teams and columns in other numbers.
#[test]
fn any_schedule_gives_the_same_tokens() {
    use weft_ir::plan::Schedule;
    let (mk, m) = head(2, (300, 64), 0, true);
    for (new_warps, new_blocks, new_columns) in [(1, 1, 1), (2, 7, 2), (8, 3, 4), (4, 40, 1)] {
        mk.check(&m, 2, &|schedule| match schedule {
            Schedule::Gemv { warps, blocks, columns, split, .. } => {
                (*warps, *blocks, *columns) = (new_warps, new_blocks, new_columns);
                *split = (*split).min(new_warps);
            }
            other => panic!("{other:?}"),
        });
    }
}

/// Tiles of other sizes, whose warps share k and columns in other ways.
#[test]
fn any_tile_gives_the_same_tokens() {
    use weft_ir::plan::Schedule;
    let (mk, m) = head(5, (300, 64), 0, true);
    for (columns, depth, [n, k], ahead) in
        [(16, 64, [1, 1], 1), (32, 32, [1, 2], 2), (64, 64, [2, 4], 1), (128, 16, [4, 1], 3)]
    {
        mk.check(&m, 5, &|schedule| match schedule {
            Schedule::Gemm { tile_m: 16, tile_n, tile_k, warps_m: 1, warps_n, warps_k, stages } => {
                (*tile_n, *tile_k, *warps_n, *warps_k, *stages) = (columns, depth, n, k, ahead);
            }
            other => panic!("{other:?}"),
        });
    }
}

#[test]
fn a_row_that_holds_nan_has_no_token() {
    for rows in [2, 4] {
        nan_has_no_token(rows);
    }
}

fn nan_has_no_token(rows: usize) {
    let (mk, mut m) = head(rows, (70, 64), 0, true);
    // The second row is 0 · ∞.
    let second = Scalar::Compare(Compare::Le, Box::new(Scalar::Int(1)), Box::new(at(0)));
    let (yes, no) = (Box::new(Scalar::Float(f32::INFINITY)), Box::new(Scalar::Float(1.0)));
    let scale = Scalar::Select(Box::new(second), yes, no);
    let zero = op(Binary::Mul, scale, Scalar::Float(0.0));
    m.stores[0].value = op(Binary::Add, Scalar::Acc(0), zero);
    let tokens = mk.tokens(&m, rows);
    assert!(tokens[0] >= 0 && tokens[1..].iter().all(|t| *t == -1), "{tokens:?}");
}

/// Equal logits: the smallest id, whichever block made it.
#[test]
fn the_first_of_equal_logits_is_chosen() {
    let (mk, mut m) = head(3, (500, 64), 0, false);
    let tied = |m: &mut MatMul, from: i64| {
        let late = Scalar::Compare(Compare::Le, Box::new(Scalar::Int(from)), Box::new(at(1)));
        let (yes, no) = (Box::new(Scalar::Float(3.0)), Box::new(Scalar::Float(-1.0)));
        m.stores[0].value = Scalar::Select(Box::new(late), yes, no);
    };
    for from in [0, 1, 63, 64, 257, 499] {
        tied(&mut m, from);
        assert_eq!(mk.tokens(&m, 3)[0], from as i32);
    }
}

/// From one token to the vocabularies of GPT-2 (odd: no vectors) and Llama 3, every filter, with penalties and without.
#[test]
fn vocabularies_of_any_size() {
    for (n, k) in [(1, 8), (2, 8), (31, 8), (513, 8), (2052, 8)] {
        for penalised in [false, true] {
            let (mk, m) = head(8, (n, k), 0, penalised);
            check_drawn(&mk, &m, 8);
        }
    }
    for n in [50_257, 128_256] {
        for (from, penalised) in [(3, false), (7, true)] {
            let (mk, m) = head(1, (n, 8), from, penalised);
            check_drawn(&mk, &m, 1);
        }
    }
}

/// More tokens are as large as the k-th than are collected.
#[test]
fn equal_logits() {
    for n in [37, 512, 513, 3000] {
        let (mk, mut m) = head(8, (n, 8), 0, false);
        m.stores[0].value = Scalar::Float(1.5);
        check_drawn(&mk, &m, 8);
        // Two values: the higher ones are few, or many.
        for high in [1, 7, 600] {
            let below = Scalar::Compare(Compare::Lt, Box::new(at(1)), Box::new(Scalar::Int(high)));
            let (yes, no) = (Box::new(Scalar::Float(2.0)), Box::new(Scalar::Float(-0.0)));
            m.stores[0].value = Scalar::Select(Box::new(below), yes, no);
            check_drawn(&mk, &m, 8);
        }
    }
}

/// Fewer tokens that can be drawn than top-k asks for, all in few threads' hands; none at all; and one that is infinite.
#[test]
fn infinite_logits() {
    let (mk, mut m) = head(8, (3000, 8), 0, true);
    for finite in [0, 1, 40] {
        let below = Scalar::Compare(Compare::Lt, Box::new(at(1)), Box::new(Scalar::Int(finite)));
        let (yes, no) = (Box::new(Scalar::Acc(0)), Box::new(Scalar::Float(f32::NEG_INFINITY)));
        m.stores[0].value = Scalar::Select(Box::new(below), yes, no);
        check_drawn(&mk, &m, 8);
    }
    let one = Scalar::Compare(Compare::Eq, Box::new(at(1)), Box::new(Scalar::Int(1234)));
    let (yes, no) = (Box::new(Scalar::Float(f32::INFINITY)), Box::new(Scalar::Acc(0)));
    m.stores[0].value = Scalar::Select(Box::new(one), yes, no);
    check_drawn(&mk, &m, 8);
}

/// The nucleus of a flat row is most of it, that of a steep one some tokens: searched for, and read from the few.
#[test]
fn flat_and_steep_rows() {
    for scale in [0.01, 1.0, 8.0, 200.0] {
        for n in [700, 5000] {
            let (mk, mut m) = head(8, (n, 8), 0, false);
            m.stores[0].value = op(Binary::Mul, Scalar::Acc(0), Scalar::Float(scale));
            check_drawn(&mk, &m, 8);
        }
    }
}

/// Every rank at which the few are enough, and those beyond.
#[test]
fn any_number_of_tokens_may_be_kept() {
    for top_k in [1, 31, 63, 64, 128, 129, 2047] {
        for (top_p, min_p) in [(1.0, 0.0), (0.95, 0.01)] {
            let (mut mk, m) = head(2, (2048, 8), 3, false);
            mk.inputs.top_k = vec![top_k, top_k + 1];
            (mk.inputs.top_p, mk.inputs.min_p) = (vec![top_p; 2], vec![min_p; 2]);
            mk.inputs.temperature = vec![0.7, 1.9];
            check_drawn(&mk, &m, 2);
        }
    }
}
