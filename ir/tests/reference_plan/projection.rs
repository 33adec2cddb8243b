//! Attention that projects its outputs.

use crate::maker::*;
use crate::{close, numbers, weights};
use weft_ir::dtype::DType;
use weft_ir::graph::Input;
use weft_ir::ids::OperandId;
use weft_ir::plan::*;
use weft_ir::reference::{Precision, States, StepInputs, load_plan, step_plan};
use weft_ir::scalar::Binary;
use weft_ir::shape::Bindings;
use weft_ir::verify;

/// One token of one sequence.
const ONE: Bindings = Bindings { tokens: 1, ..BIND };

/// Two heads of keys with two query heads each, of three elements, projected to five columns: twice the outputs are.
fn plan() -> Plan {
    let mut m = Maker::new();
    let positions = m.input(Input::Positions);
    let (q, keys) = (m.weight("q", &[1, 4, 4]), m.weight("k", &[6, 2, 4]));
    let (v, w) = (m.weight("v", &[6, 2, 3]), m.weight("w", &[5, 12]));
    let out = m.output(DType::F32, &[TOKENS, c(2), c(5)], "out");
    let value = op(Binary::Mul, Scalar::Acc(0), Scalar::Float(2.0));
    let attention = Attention {
        projection: Some(Box::new(AttentionProjection { weight: OperandId(4), columns: 5, value })),
        ..attention(2, 4, 3, op(Binary::Add, Scalar::Int(1), at(1)))
    };
    m.dispatch(Compute::Attention(attention), &[q, keys, v, positions, w], &[out]);
    let mut plan = m.plan();
    plan.buffers[q.index()].shape[0] = TOKENS;
    plan.works[0].reads[0].shape[0] = TOKENS;
    plan
}

#[test]
fn each_head_of_keys_adds_its_part() {
    let (q, k, v, w) = (numbers(16, 1), numbers(48, 2), numbers(36, 3), numbers(60, 4));
    let tensors = [("q", q.clone()), ("k", k.clone()), ("v", v.clone()), ("w", w.clone())];
    let plan = plan();
    let loaded = load_plan::<f64>(&plan, &weights(&tensors), Precision::F64).unwrap();
    // The keys of slots 1, 2 and 3.
    let mut outputs = Vec::new();
    for h in 0..4 {
        let row = |s: usize| &k[(s * 2 + h / 2) * 4..][..4];
        let score = |s: usize| -> f64 {
            let pairs = q[4 * h..].iter().zip(row(s));
            pairs.map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>().exp()
        };
        let weights: Vec<f64> = (1..4).map(score).collect();
        let total: f64 = weights.iter().sum();
        for e in 0..3 {
            let value = |i: usize| f64::from(v[((i + 1) * 2 + h / 2) * 3 + e]);
            outputs.push((0..3).map(|i| weights[i] * value(i)).sum::<f64>() / total);
        }
    }
    let part = |head: usize, column: usize| -> f64 {
        (6 * head..6 * head + 6).map(|i| 2.0 * outputs[i] * f64::from(w[12 * column + i])).sum()
    };
    let want: Vec<f64> =
        (0..2).flat_map(|head| (0..5).map(move |j| (head, j))).map(|(h, j)| part(h, j)).collect();
    let inputs = StepInputs { positions: vec![2], ..StepInputs::default() };
    let mut states = States::zeros_of_plan(&plan, &ONE);
    let made = step_plan(&plan, &loaded, 0, &ONE, &inputs, &mut states).unwrap();
    close(&made.get("out").unwrap().to_reals().unwrap(), &want);
}

#[test]
fn a_projection_that_is_wrong_is_named() {
    let faults = |change: &dyn Fn(&mut Work, &mut AttentionProjection)| {
        let mut plan = plan();
        let mut work = plan.works[0].clone();
        let Compute::Attention(mut a) = work.compute.clone() else { panic!() };
        let mut p = a.projection.take().expect("a projection");
        change(&mut work, &mut p);
        a.projection = Some(p);
        plan.works[0] = Work { compute: Compute::Attention(a), ..work };
        match verify::plan::verify(&plan) {
            Ok(()) => String::new(),
            Err(faults) => faults.iter().map(|f| f.to_string()).collect::<Vec<_>>().join("\n"),
        }
    };
    let right = faults(&|_, _| {});
    let weight = "the weight of a projection is no array of floats";
    assert!(!right.contains(weight), "{right}");
    assert!(faults(&|_, p| p.columns = 6).contains(weight));
    assert!(faults(&|_, p| p.weight = OperandId(9)).contains(weight));
    assert!(faults(&|w, _| w.reads[4].dtype = DType::I32).contains(weight));
    assert!(faults(&|_, p| p.value = Scalar::Acc(1)).contains("accumulator 1 of an attention"));
    assert!(faults(&|_, p| p.value = Scalar::Reduced(0)).contains("stage 0 of an attention"));
    // Whatever takes keys of one token: only a cluster that has all of them.
    let with = |schedule: Schedule| {
        let mut plan = plan();
        let one = Extent { dims: Vec::new(), per: 1 };
        plan.kernels = vec![KernelSpec {
            name: "attention".into(),
            work: 0,
            schedule,
            source: ScheduleSource::Estimated,
            grid: [one.clone(), one.clone(), one],
            threads: 128,
            scratch: None,
            programmatic: true,
            fallback: None,
        }];
        match verify::plan::verify(&plan) {
            Ok(()) => String::new(),
            Err(faults) => faults.iter().map(|f| f.to_string()).collect::<Vec<_>>().join("\n"),
        }
    };
    let group = |heads, splits, cluster| Schedule::AttentionGroup {
        warps: 4,
        heads,
        depth: 1,
        splits,
        cluster,
        late: false,
    };
    let why = "only a cluster on tensor cores that has all keys and query heads";
    assert!(!with(group(2, 8, 8)).contains(why));
    for wrong in [
        group(1, 8, 8),
        group(2, 8, 4),
        group(2, 1, 1),
        Schedule::AttentionRow { warps: 4, heads: 2, depth: 1, splits: 8, cluster: 8, late: false },
        Schedule::AttentionTile { tile_q: 64, tile_k: 64, stages: 2 },
    ] {
        assert!(with(wrong.clone()).contains(why), "{wrong:?}");
    }
}
