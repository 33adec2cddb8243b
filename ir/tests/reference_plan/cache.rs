//! Attention over a cache.

use crate::maker::*;
use crate::{close, numbers, run, weights};
use weft_ir::dtype::DType;
use weft_ir::graph::Input;
use weft_ir::plan::*;
use weft_ir::reference::{OpError, Precision, ReferenceError, States, StepInputs, load_plan, step_plan};
use weft_ir::scalar::{Binary, Compare};

/// Attention over a cache that the step writes, within a window.
fn cache_plan(window: Option<usize>) -> Plan {
    let mut m = Maker::new();
    let (slots, positions) = (m.input(Input::Slots), m.input(Input::Positions));
    let (k, v) = (m.weight("k", &[3, 1, 4]), m.weight("v", &[3, 1, 2]));
    let q = m.weight("q", &[3, 2, 4]);
    let keys = m.buffer(DType::F32, &[SLOTS, c(1), c(4)], BufferKind::State("keys".into()));
    let values = m.buffer(DType::F32, &[SLOTS, c(1), c(2)], BufferKind::State("values".into()));
    let out = m.output(DType::F32, &[TOKENS, c(4)], "out");
    for (from, to, n) in [(k, keys, 4), (v, values, 2)] {
        let slot = load_at(1, &[at(0)]);
        let guard = Scalar::Compare(Compare::Le, Box::new(Scalar::Int(0)), Box::new(slot.clone()));
        let s = Store {
            output: 0,
            index: vec![slot, at(1), at(2)],
            value: load_at(0, &[at(0), at(1), at(2)]),
            guard: Some(guard),
        };
        m.dispatch(elementwise(&[TOKENS, c(1), c(n)], vec![s]), &[from, slots, to], &[to]);
    }
    let attention = Attention {
        score: op(Binary::Mul, Scalar::Acc(0), Scalar::Float(0.5)),
        window,
        stores: vec![store(
            0,
            &[at(0), op(Binary::Add, op(Binary::Mul, at(1), Scalar::Int(2)), at(2))],
            Scalar::Acc(0),
        )],
        // The sequence begins at slot 1.
        ..attention(1, 4, 2, op(Binary::Add, at(1), Scalar::Int(1)))
    };
    m.dispatch(Compute::Attention(attention), &[q, keys, values, positions], &[out]);
    m.plan()
}

/// What three tokens in reverse order of their positions get, each from the last `window` keys up to its own.
fn expected(q: &[f32], k: &[f32], v: &[f32], window: usize) -> Vec<f64> {
    let mut want = Vec::new();
    for t in 0..3 {
        for h in 0..2 {
            // Position p was written by token 2 − p.
            let tokens: Vec<usize> = (0..=2 - t).rev().take(window).map(|p| 2 - p).collect();
            let score = |u: usize| {
                (0..4).map(|i| f64::from(q[(t * 2 + h) * 4 + i]) * f64::from(k[u * 4 + i])).sum::<f64>() * 0.5
            };
            let weights: Vec<f64> = tokens.iter().map(|&u| score(u).exp()).collect();
            let sum: f64 = weights.iter().sum();
            for e in 0..2 {
                want.push(
                    tokens.iter().zip(&weights).map(|(&u, w)| w * f64::from(v[u * 2 + e])).sum::<f64>() / sum,
                );
            }
        }
    }
    want
}

#[test]
fn attention_over_a_cache_written_in_place() {
    let plan = cache_plan(None);
    let (q, k, v) = (numbers(24, 1), numbers(12, 2), numbers(6, 3));
    let tensors = [("q", q.clone()), ("k", k.clone()), ("v", v.clone())];
    // Tokens in reverse order of their positions; each attends to those up to itself.
    let inputs = StepInputs { slots: vec![3, 2, 1], positions: vec![2, 1, 0], ..StepInputs::default() };
    let mut states = States::zeros_of_plan(&plan, &BIND);
    let got = run(&plan, &tensors, &inputs, &mut states, "out");
    close(&got, &expected(&q, &k, &v, 3));
    // Slot 0 and those beyond were not written.
    let keys = states.get("keys").unwrap().to_reals().unwrap();
    assert!(keys[..4].iter().chain(&keys[16..]).all(|&x| x == 0.0));
    assert_eq!(keys[4], f64::from(k[8]));
    // A negative slot writes nothing, and one beyond is an error that keeps the states.
    let loaded = load_plan::<f64>(&plan, &weights(&tensors), Precision::F64).unwrap();
    let mut fresh = States::zeros_of_plan(&plan, &BIND);
    let negative = StepInputs { slots: vec![-1; 3], ..inputs.clone() };
    step_plan(&plan, &loaded, 0, &BIND, &negative, &mut fresh).unwrap();
    assert!(fresh.get("keys").unwrap().to_reals().unwrap().iter().all(|&x| x == 0.0));
    let beyond = StepInputs { slots: vec![6; 3], ..inputs };
    let e = step_plan(&plan, &loaded, 0, &BIND, &beyond, &mut fresh).unwrap_err();
    assert!(matches!(e, ReferenceError::Dispatch { error: OpError::Index { index: 6, .. }, .. }), "{e}");
    assert!(e.to_string().contains("work_0") && e.to_string().contains("model.test"));
    assert!(fresh.get("keys").is_some() && fresh.get("values").is_some());
}

/// Slots of hidden keys need not exist.
#[test]
fn a_window_reads_the_last_keys() {
    let (q, k, v) = (numbers(24, 1), numbers(12, 2), numbers(6, 3));
    let tensors = [("q", q.clone()), ("k", k.clone()), ("v", v.clone())];
    let inputs = StepInputs { slots: vec![3, 2, 1], positions: vec![2, 1, 0], ..StepInputs::default() };
    for window in [1, 2, 3, 50] {
        let plan = cache_plan(Some(window));
        let mut states = States::zeros_of_plan(&plan, &BIND);
        close(&run(&plan, &tensors, &inputs, &mut states, "out"), &expected(&q, &k, &v, window));
    }
    let mut plan = cache_plan(Some(1));
    for work in &mut plan.works {
        if let Compute::Attention(a) = &mut work.compute {
            // The keys of the only token that sees one begin at the first slot.
            a.slot = op(Binary::Sub, at(1), Scalar::Int(2));
        }
    }
    let far = StepInputs { slots: vec![0, -1, -1], positions: vec![2, 2, 2], ..StepInputs::default() };
    let mut states = States::zeros_of_plan(&plan, &BIND);
    let got = run(&plan, &tensors, &far, &mut states, "out");
    let own: Vec<f64> = (0..12).map(|i| f64::from(v[i % 2])).collect();
    close(&got, &own);
}

#[test]
fn a_window_has_keys() {
    let what = |plan: &Plan| {
        let faults = weft_ir::verify::plan::verify(plan).err().unwrap_or_default();
        faults.iter().map(|f| f.to_string()).collect::<String>()
    };
    assert!(what(&cache_plan(Some(0))).contains("a window without keys"));
    assert!(!what(&cache_plan(Some(1))).contains("window"));
}
