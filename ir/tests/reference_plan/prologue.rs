//! Attention that makes its queries and the key of each token itself.

use crate::maker::*;
use crate::{close, numbers, weights};
use weft_ir::dtype::DType;
use weft_ir::graph::Input;
use weft_ir::ids::OperandId;
use weft_ir::plan::*;
use weft_ir::reference::{Precision, States, StepInputs, load_plan, step_plan};
use weft_ir::scalar::{Binary, Compare, Reduce, Unary};
use weft_ir::shape::Bindings;
use weft_ir::verify;

/// One token of one sequence.
const ONE: Bindings = Bindings { tokens: 1, ..BIND };

/// x · w / √(Σ x²) of a row [t, h, e] of operand x.
fn normed(x: u32, w: u32) -> MadeRow {
    let element = || load_at(x, &[at(0), at(1), at(2)]);
    let square = op(Binary::Mul, element(), element());
    let scaled = op(Binary::Mul, element(), load_at(w, &[at(2)]));
    let value = op(Binary::Mul, scaled, Scalar::unary(Unary::Rsqrt, Scalar::Reduced(0)));
    MadeRow { stages: vec![Stage { op: Reduce::Sum, value: square }], value }
}

/// Two query heads of four elements for one head of keys; the step's inputs are weights.
fn plan() -> Plan {
    let mut m = Maker::new();
    let (slots, positions) = (m.input(Input::Slots), m.input(Input::Positions));
    let (q, k, w) = (m.weight("q", &[1, 2, 4]), m.weight("k", &[1, 1, 4]), m.weight("w", &[4]));
    let v = m.weight("v", &[6, 1, 2]);
    let keys = m.buffer(DType::F32, &[SLOTS, c(1), c(4)], BufferKind::State("keys".into()));
    let out = m.output(DType::F32, &[TOKENS, c(2), c(2)], "out");
    let slot = load_at(4, &[at(0)]);
    let keep = Store {
        output: 1,
        index: vec![slot.clone(), at(1), at(2)],
        value: Scalar::Acc(0),
        guard: Some(Scalar::Compare(Compare::Le, Box::new(Scalar::Int(0)), Box::new(slot))),
    };
    let attention = Attention {
        settled: true,
        prologue: Some(AttentionPrologue { query: normed(0, 6), key: normed(5, 6), dtype: DType::F32, keep }),
        projection: None,
        ..attention(1, 4, 2, op(Binary::Add, Scalar::Int(1), at(1)))
    };
    m.dispatch(Compute::Attention(attention), &[q, keys, v, positions, slots, k, w], &[out, keys]);
    let mut plan = m.plan();
    plan.works[0].in_place = vec![(1, OperandId(1))];
    // Those of a step's tokens.
    for (buffer, operand) in [(q, 0), (k, 5)] {
        plan.buffers[buffer.index()].shape[0] = TOKENS;
        plan.works[0].reads[operand].shape[0] = TOKENS;
    }
    plan
}

#[test]
fn rows_are_made_and_the_own_key_is_kept() {
    let (q, k, v) = (numbers(8, 1), numbers(4, 2), numbers(12, 3));
    let w = vec![0.5, 2.0, -1.0, 1.5];
    let old = [3.0, -1.0, 0.5, 2.0];
    let tensors = [("q", q.clone()), ("k", k.clone()), ("v", v.clone()), ("w", w.clone())];
    let plan = plan();
    let loaded = load_plan::<f64>(&plan, &weights(&tensors), Precision::F64).unwrap();
    let mut states = States::zeros_of_plan(&plan, &ONE);
    let before: Vec<f64> = (0..24).map(|i| if (4..8).contains(&i) { old[i - 4] } else { 7.0 }).collect();
    states.put("keys", weft_ir::reference::Tensor::real(before.clone(), vec![6, 1, 4]).unwrap());
    let made = |x: &[f32]| -> Vec<f64> {
        let scale = x.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt();
        x.iter().zip(&w).map(|(x, w)| f64::from(*x) * f64::from(*w) / scale).collect()
    };
    let own = made(&k);
    // The second token of a sequence that begins at slot 1: the first key is there, the second is its own.
    let mut want = Vec::new();
    for h in 0..2 {
        let query = made(&q[4 * h..4 * h + 4]);
        let dot = |key: &[f64]| query.iter().zip(key).map(|(a, b)| a * b).sum::<f64>().exp();
        let weights = [dot(&old), dot(&own)];
        let value = |j: usize, e: usize| f64::from(v[2 * (j + 1) + e]);
        let mixed = |e| (weights[0] * value(0, e) + weights[1] * value(1, e)) / (weights[0] + weights[1]);
        want.extend([mixed(0), mixed(1)]);
    }
    let inputs = StepInputs { slots: vec![2], positions: vec![1], ..StepInputs::default() };
    let outputs = step_plan(&plan, &loaded, 0, &ONE, &inputs, &mut states).unwrap();
    close(&outputs.get("out").unwrap().to_reals().unwrap(), &want);
    let kept = states.get("keys").unwrap().to_reals().unwrap();
    close(&kept[8..12], &own);
    assert_eq!((&kept[..8], &kept[12..]), (&before[..8], &before[12..]));
    // Padding keeps none, and attends to its own all the same.
    let padding = StepInputs { slots: vec![-1], ..inputs };
    let again = step_plan(&plan, &loaded, 0, &ONE, &padding, &mut states).unwrap();
    close(&again.get("out").unwrap().to_reals().unwrap(), &want);
    assert_eq!(states.get("keys").unwrap().to_reals().unwrap(), kept);
}

#[test]
fn a_prologue_that_is_wrong_is_named() {
    let faults = |change: &dyn Fn(&mut Work, &mut Attention)| {
        let mut plan = plan();
        let Compute::Attention(mut a) = plan.works[0].compute.clone() else { panic!("an attention") };
        change(&mut plan.works[0], &mut a);
        plan.works[0].compute = Compute::Attention(a);
        // The body of a plan made by hand has no launches.
        let all = verify::plan::verify(&plan).err().unwrap_or_default();
        all.iter().map(ToString::to_string).filter(|f| !f.contains("launches")).collect::<String>()
    };
    fn prologue(a: &mut Attention) -> &mut AttentionPrologue {
        a.prologue.as_mut().expect("a prologue")
    }
    assert_eq!(faults(&|_, _| {}), "");
    assert!(faults(&|_, a| a.settled = false).contains("the others are not there before"));
    assert!(faults(&|_, a| a.slot = at(1)).contains("the others are not there before"));
    assert!(faults(&|_, a| a.values = a.keys).contains("values are their first elements"));
    assert!(faults(&|w, _| w.in_place.clear()).contains("another array than that of keys"));
    assert!(faults(&|_, a| prologue(a).keep.output = 0).contains("another array than that of keys"));
    assert!(
        faults(&|_, a| prologue(a).query.value = Scalar::Acc(0))
            .contains("accumulator 0 in a row of queries")
    );
    assert!(
        faults(&|_, a| prologue(a).key.stages.clear()).contains("stage 0 of 0 is not known in a row of keys")
    );
    assert!(faults(&|_, a| a.head_dim = 0).contains("rows of 0 elements"));
    assert!(faults(&|_, a| a.head_dim = usize::MAX).contains("not of 1 to 1024"));
    assert!(faults(&|_, a| a.group = usize::MAX).contains("other rows than those of queries and keys"));
    assert!(faults(&|_, a| a.kv_heads = 2).contains("other rows than those of queries and keys"));
    assert!(faults(&|_, a| prologue(a).dtype = DType::I32).contains("queries of type i32"));
    assert!(faults(&|w, _| w.in_place[0].1 = OperandId(2)).contains("output 1 is not the buffer of operand"));
}
