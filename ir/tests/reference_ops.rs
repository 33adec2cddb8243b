//! The reference: each op against values worked out by hand, through the interpreter.

use std::collections::BTreeMap;
use weft_ir::graph::{Graph, parse};
use weft_ir::reference::{
    OpError, Outputs, Precision, Real, ReferenceError, States, StepInputs, Tensor, load, step,
};
use weft_ir::shape::Bindings;

const BIND: Bindings = Bindings { tokens: 2, seqs: 1, rows: 1, context: 4, slots: 8 };

fn graph(text: &str) -> Graph {
    parse(text).unwrap_or_else(|e| panic!("{e}\n{text}"))
}

fn run<R: Real>(text: &str, precision: Precision, inputs: &StepInputs) -> Result<Outputs<R>, ReferenceError> {
    let g = graph(text);
    let loaded = load::<R>(&g, &BTreeMap::new(), precision)?;
    step(&g, &loaded, &BIND, inputs, &mut States::zeros(&g, &BIND))
}

/// The one output "x" of lines that need no input.
fn x(lines: &str) -> Tensor<f64> {
    let last = lines.lines().count() - 1;
    let text = format!("{lines}\noutput \"x\" = %{last}\n");
    run::<f64>(&text, Precision::F64, &StepInputs::default()).unwrap().get("x").unwrap().clone()
}

fn reals(lines: &str) -> Vec<f64> {
    x(lines).to_reals().unwrap()
}

fn close(a: &[f64], b: &[f64]) {
    assert_eq!(a.len(), b.len(), "{a:?} and {b:?}");
    for (x, y) in a.iter().zip(b) {
        assert!((x - y).abs() < 1e-12 || x == y, "{a:?} and {b:?}");
    }
}

#[test]
fn unary_ops() {
    let of = |op: &str| reals(&format!("%0 = constant [0.5, 2.0] -> f32[2]\n%1 = {op} %0 -> f32[2]"));
    close(&of("neg"), &[-0.5, -2.0]);
    close(&of("exp"), &[0.5f64.exp(), 2f64.exp()]);
    close(&of("log"), &[-std::f64::consts::LN_2, std::f64::consts::LN_2]);
    close(&of("sqrt"), &[0.5f64.sqrt(), 2f64.sqrt()]);
    close(&of("rsqrt"), &[2f64.sqrt(), 0.5f64.sqrt()]);
    close(&of("recip"), &[2.0, 0.5]);
    close(&of("sin"), &[0.479425538604203, 0.9092974268256817]);
    close(&of("cos"), &[0.8775825618903728, -0.4161468365471424]);
    close(&of("tanh"), &[0.46211715726000973, 0.9640275800758169]);
    close(&of("erf"), &[0.5204998778130465, 0.9953222650189527]);
    close(&of("sigmoid"), &[0.6224593312018546, 0.8807970779778823]);
    close(&of("silu"), &[0.3112296656009273, 1.7615941559557646]);
    close(&of("abs"), &[0.5, 2.0]);
    let ints = x("%0 = constant [-3, 4] -> i32[2]\n%1 = neg %0 -> i32[2]\n%2 = abs %1 -> i32[2]");
    assert_eq!(ints.to_ints().unwrap(), [3, 4]);
}

#[test]
fn binary_and_compare_and_select() {
    let of = |op: &str| {
        let head = "%0 = constant [7.0, -2.0] -> f32[2]\n%1 = constant [2.0, 3.0] -> f32[2]";
        reals(&format!("{head}\n%2 = {op} %0, %1 -> f32[2]"))
    };
    close(&of("add"), &[9.0, 1.0]);
    close(&of("sub"), &[5.0, -5.0]);
    close(&of("mul"), &[14.0, -6.0]);
    close(&of("div"), &[3.5, -2.0 / 3.0]);
    close(&of("min"), &[2.0, -2.0]);
    close(&of("max"), &[7.0, 3.0]);
    close(&of("pow"), &[49.0, -8.0]);
    let int = |op: &str| {
        let head = "%0 = constant [7, -7, 5] -> i32[3]\n%1 = constant [2, 2, 0] -> i32[3]";
        x(&format!("{head}\n%2 = {op} %0, %1 -> i32[3]")).to_ints().unwrap()
    };
    assert_eq!(int("div"), [3, -3, 0]);
    assert_eq!(int("rem"), [1, -1, 0]);
    assert_eq!(int("min"), [2, -7, 0]);
    assert_eq!(int("mul"), [14, -14, 0]);
    let bits = |op: &str| {
        let head = "%0 = constant [1.0, 2.0, 0x7fc00000] -> f32[3]\n%1 = constant [1.0, 3.0, 1.0] -> f32[3]";
        x(&format!("{head}\n%2 = {op} %0, %1 -> bool[3]")).to_bools().unwrap()
    };
    assert_eq!(bits("eq"), [true, false, false]);
    assert_eq!(bits("lt"), [false, true, false]);
    assert_eq!(bits("le"), [true, true, false]);
    let logic = "%0 = constant [1, 2] -> i32[2]\n%1 = constant [1, 1] -> i32[2]\n%2 = eq %0, %1 -> bool[2]\n\
                 %3 = not %2 -> bool[2]\n%4 = or %2, %3 -> bool[2]\n%5 = and %2, %4 -> bool[2]\n\
                 %6 = select %5, %0, %1 -> i32[2]\n%7 = select %3, %0, %6 -> i32[2]";
    assert_eq!(x(logic).to_ints().unwrap(), [1, 2]);
}

#[test]
fn casts() {
    let text = "%0 = constant [1.9, -1.9, 3e9, 0x7fc00000] -> f32[4]\n%1 = cast %0 -> i32[4]";
    assert_eq!(x(text).to_ints().unwrap(), [1, -1, i32::MAX, 0]);
    let text = "%0 = constant [3, 0, -2] -> i32[3]\n%1 = cast %0 -> bool[3]\n%2 = cast %1 -> f32[3]";
    close(&reals(text), &[1.0, 0.0, 1.0]);
    // In f64 and f32 a 16-bit type rounds nothing.
    close(
        &reals("%0 = constant [1.001] -> f32[1]\n%1 = cast %0 -> bf16[1]\n%2 = cast %1 -> f32[1]"),
        &[f64::from(1.001f32)],
    );
}

#[test]
fn movement() {
    let six = "%0 = constant [0.0, 1.0, 2.0, 3.0, 4.0, 5.0] -> f32[2, 3]";
    let of = |line: &str| reals(&format!("{six}\n{line}"));
    close(&of("%1 = transpose %0 perm=[1, 0] -> f32[3, 2]"), &[0.0, 3.0, 1.0, 4.0, 2.0, 5.0]);
    close(&of("%1 = slice %0 axis=1 start=1 len=2 -> f32[2, 2]"), &[1.0, 2.0, 4.0, 5.0]);
    close(&of("%1 = slice %0 axis=0 start=1 len=1 -> f32[1, 3]"), &[3.0, 4.0, 5.0]);
    let turned = "%1 = transpose %0 perm=[1, 0] -> f32[3, 2]\n%2 = reshape %1 -> f32[2, 3]";
    close(&of(turned), &[0.0, 3.0, 1.0, 4.0, 2.0, 5.0]);
    let part = "%1 = slice %0 axis=1 start=2 len=1 -> f32[2, 1]\n%2 = broadcast %1 -> f32[2, 2]\n\
                %3 = concat %2, %0, %1 axis=1 -> f32[2, 6]";
    close(&of(part), &[2.0, 2.0, 0.0, 1.0, 2.0, 2.0, 5.0, 5.0, 3.0, 4.0, 5.0, 5.0]);
    close(
        &of("%1 = concat %0, %0 axis=0 -> f32[4, 3]\n%2 = slice %1 axis=0 start=1 len=2 -> f32[2, 3]"),
        &[3.0, 4.0, 5.0, 0.0, 1.0, 2.0],
    );
    assert_eq!(x("%0 = iota axis=1 -> i32[2, 3]").to_ints().unwrap(), [0, 1, 2, 0, 1, 2]);
    assert_eq!(x("%0 = iota axis=0 -> i32[tokens, 2]").to_ints().unwrap(), [0, 0, 1, 1]);
    // Views of views: a broadcast, transposed, of a slice.
    let views = "%1 = slice %0 axis=0 start=1 len=1 -> f32[1, 3]\n%2 = broadcast %1 -> f32[2, 3]\n\
                 %3 = transpose %2 perm=[1, 0] -> f32[3, 2]\n%4 = neg %3 -> f32[3, 2]";
    close(&of(views), &[-3.0, -3.0, -4.0, -4.0, -5.0, -5.0]);
}

#[test]
fn reductions() {
    let of = |op: &str| {
        reals(&format!("%0 = constant [1.0, 5.0, -3.0, 2.0] -> f32[2, 2]\n%1 = {op} %0 -> f32[2, 1]"))
    };
    close(&of("sum"), &[6.0, -1.0]);
    close(&of("mean"), &[3.0, -0.5]);
    close(&of("reduce_max"), &[5.0, 2.0]);
    let nan = reals("%0 = constant [1.0, 0x7fc00000, 2.0] -> f32[3]\n%1 = reduce_max %0 -> f32[1]");
    assert!(nan[0].is_nan());
}

#[test]
fn softmax() {
    let p = reals(
        "%0 = constant [1.0, 2.0, -inf, 1000.0, 1000.0, -inf] -> f32[2, 3]\n%1 = softmax %0 -> f32[2, 3]",
    );
    let e = 1.0 / (1.0 + 1f64.exp());
    close(&p, &[e, 1.0 - e, 0.0, 0.5, 0.5, 0.0]);
    let none = reals("%0 = constant [-inf, -inf] -> f32[1, 2]\n%1 = softmax %0 -> f32[1, 2]");
    assert_eq!(none, [0.0, 0.0]);
    let nan = reals("%0 = constant [0.0, 0x7fc00000] -> f32[1, 2]\n%1 = softmax %0 -> f32[1, 2]");
    assert!(nan.iter().all(|x| x.is_nan()));
}

#[test]
fn top_k() {
    // The first of equal ones, −∞ where nothing else is left, NaN as −∞.
    let rows = "%0 = constant [1.0, 3.0, 3.0, 2.0, -inf, 0x7fc00000, -inf, 5.0] -> f32[2, 4]";
    let picks = x(&format!("{rows}\n%1 = top_k %0 k=3 -> i32[2, 3]"));
    assert_eq!(picks.to_ints().unwrap(), [1, 2, 3, 3, 0, 1]);
}

#[test]
fn routed_matmul() {
    let text = |a: &str, shape: &str| {
        format!(
            "%0 = constant {a} -> f32[{shape}]
%1 = constant [1.0, 0.0, 0.0, 1.0, 2.0, 2.0, -1.0, 1.0] -> f32[2, 2, 2]
%2 = constant [1, 0, 1, 1] -> i32[2, 2]
%3 = routed_matmul %0, %1, %2 -> f32[2, 2, 2]"
        )
    };
    let one = reals(&text("[1.0, 2.0, 3.0, 4.0]", "2, 1, 2"));
    assert_eq!(one, [6.0, 1.0, 1.0, 2.0, 14.0, 1.0, 14.0, 1.0]);
    let each = reals(&text("[1.0, 2.0, 5.0, 6.0, 3.0, 4.0, 0.0, 1.0]", "2, 2, 2"));
    assert_eq!(each, [6.0, 1.0, 5.0, 6.0, 14.0, 1.0, 2.0, 1.0]);
    let outside = text("[1.0, 2.0, 3.0, 4.0]", "2, 1, 2").replace("[1, 0, 1, 1]", "[1, 0, 2, 1]");
    let why = run::<f64>(&format!("{outside}\noutput \"x\" = %3\n"), Precision::F64, &StepInputs::default());
    assert!(why.unwrap_err().to_string().contains('2'));
}

#[test]
fn gather_and_scatter() {
    let text = "\
%0 = input slots -> i32[tokens]
%1 = state \"k\" -> f32[slots, 2]
%2 = constant [1.0, 2.0, 3.0, 4.0] -> f32[2, 2]
%3 = input token_ids -> i32[tokens]
%4 = gather %2, %3 -> f32[tokens, 2]
%5 = scatter %1, %4, %0 -> f32[slots, 2]
%6 = input positions -> i32[tokens]
%7 = gather %5, %6 -> f32[tokens, 2] @\"model.read\"
output \"x\" = %7
state \"k\" = %5
";
    let g = graph(text);
    let loaded = load::<f32>(&g, &BTreeMap::new(), Precision::F32).unwrap();
    let mut states = States::zeros(&g, &BIND);
    let before = pointer(states.get("k").unwrap());
    let inputs = |ids: [i32; 2], slots: [i32; 2], positions: [i32; 2]| StepInputs {
        token_ids: ids.to_vec(),
        slots: slots.to_vec(),
        positions: positions.to_vec(),
        ..StepInputs::default()
    };
    let out = step(&g, &loaded, &BIND, &inputs([1, 0], [5, -1], [5, 0]), &mut states).unwrap();
    assert_eq!(out.get("x").unwrap().to_reals().unwrap(), [3.0, 4.0, 0.0, 0.0]);
    // Of equal slots the last row stays.
    let out = step(&g, &loaded, &BIND, &inputs([1, 0], [7, 7], [7, 5]), &mut states).unwrap();
    assert_eq!(out.get("x").unwrap().to_reals().unwrap(), [1.0, 2.0, 3.0, 4.0]);
    assert_eq!(pointer(states.get("k").unwrap()), before, "the cache was copied");

    // Errors name the node, its scope and the index, and leave states in place.
    for (bad, node) in [
        (inputs([1, 2], [0, 1], [0, 0]), "%4 (gather)"),
        (inputs([-1, 0], [0, 1], [0, 0]), "%4 (gather)"),
        (inputs([0, 0], [0, 8], [0, 0]), "%5 (scatter)"),
        (inputs([0, 0], [-1, -5], [0, 8]), "%7 (gather) in \"model.read\""),
    ] {
        let e = step(&g, &loaded, &BIND, &bad, &mut states).unwrap_err();
        assert!(e.to_string().starts_with(node), "{e}");
        assert!(matches!(e, ReferenceError::Node { error: OpError::Index { .. }, .. }));
        assert_eq!(&states.get("k").unwrap().to_reals().unwrap()[10..12], [3.0, 4.0]);
        assert_eq!(pointer(states.get("k").unwrap()), before);
    }
    // A state that someone else holds is not changed under them.
    let held = states.get("k").unwrap().clone();
    step(&g, &loaded, &BIND, &inputs([0, 0], [0, 0], [0, 0]), &mut states).unwrap();
    assert_eq!(&held.to_reals().unwrap()[..2], [0.0, 0.0]);
    assert_eq!(&states.get("k").unwrap().to_reals().unwrap()[..2], [1.0, 2.0]);
}

fn pointer(t: &Tensor<f32>) -> *const f32 {
    match t.data() {
        weft_ir::reference::Data::Real(v) => v.as_ptr(),
        _ => panic!("not floats"),
    }
}

#[test]
fn inputs_and_states_are_checked() {
    let text = "%0 = input token_ids -> i32[tokens]\noutput \"x\" = %0\n";
    let e = run::<f32>(text, Precision::F32, &StepInputs::default()).unwrap_err();
    assert_eq!(e.to_string(), "input token_ids: expected 2 elements (tokens = 2), got 0");
    let e = run::<f64>(text, Precision::F32, &StepInputs::default()).unwrap_err();
    assert_eq!(e, ReferenceError::Precision(Precision::F32));

    let g = graph("%0 = state \"k\" -> f32[slots]\nstate \"k\" = %0\n");
    let loaded = load::<f32>(&g, &BTreeMap::new(), Precision::F32).unwrap();
    let mut states = States::new();
    let e = step(&g, &loaded, &BIND, &StepInputs::default(), &mut states).unwrap_err();
    assert!(e.to_string().contains("state \"k\": it is missing"), "{e}");
    states.put("k", Tensor::real(vec![0.0; 3], vec![3]).unwrap());
    let e = step(&g, &loaded, &BIND, &StepInputs::default(), &mut states).unwrap_err();
    assert!(e.to_string().contains("shape [3], expected [8]"), "{e}");
    assert!(states.get("k").is_some());
}

#[test]
fn bad_graphs_are_errors() {
    let mut g = graph("%0 = constant [1.0] -> f32[1]\n%1 = exp %0 -> f32[1]\noutput \"x\" = %1\n");
    g.nodes[1].inputs.clear();
    assert!(matches!(load::<f32>(&g, &BTreeMap::new(), Precision::F32), Err(ReferenceError::Faults(_))));
    let g = graph("%0 = weight \"w\" -> f32[1] @\"model\"\noutput \"x\" = %0\n");
    let e = load::<f32>(&g, &BTreeMap::new(), Precision::F32).unwrap_err();
    assert_eq!(e.to_string(), "%0 (weight) in \"model\": the weights have no tensor \"w\"");
}

#[test]
fn weights_are_decoded_and_folded_at_load() {
    let text = "\
%0 = weight \"q\" -> q8_0[2, 32]
%1 = decode %0 -> f32[2, 32]
%2 = weight \"h\" -> bf16[2, 32]
%3 = cast %2 -> f32[2, 32]
%4 = add %1, %3 -> f32[2, 32]
%5 = transpose %4 perm=[1, 0] -> f32[32, 2]
%6 = slice %5 axis=0 start=1 len=2 -> f32[2, 2]
%7 = weight \"i\" -> i64[2]
%8 = gather %6, %9 -> f32[2, 2]
";
    // The i64 weight needs a cast to be an index.
    let text = text.replace("%8 = gather %6, %9", "%8 = cast %7 -> i32[2]\n%9 = gather %6, %8")
        + "output \"x\" = %9\n";
    let mut weights: BTreeMap<String, Vec<u8>> = BTreeMap::new();
    let mut q = Vec::new();
    for row in 0..2u8 {
        q.extend(half::f16::from_f32(0.5).to_le_bytes());
        q.extend((0..32).map(|i| i + 32 * row));
    }
    weights.insert("q".into(), q);
    let h = (0..64).flat_map(|_| half::bf16::from_f32(100.0).to_le_bytes()).collect();
    weights.insert("h".into(), h);
    weights.insert("i".into(), [1i64, 0].iter().flat_map(|i| i.to_le_bytes()).collect());
    let g = graph(&text);
    let loaded = load::<f32>(&g, &weights, Precision::F32).unwrap();
    let out = step(&g, &loaded, &BIND, &StepInputs::default(), &mut States::new()).unwrap();
    // Elements (1, 2) and (0, 1) along the first axis of the transpose.
    assert_eq!(out.get("x").unwrap().to_reals().unwrap(), [101.0, 117.0, 100.5, 116.5]);

    weights.insert("i".into(), [1i64 << 40, 0].iter().flat_map(|i| i.to_le_bytes()).collect());
    let e = load::<f32>(&g, &weights, Precision::F32).unwrap_err();
    assert!(e.to_string().contains("beyond 32 bits"), "{e}");
    weights.insert("q".into(), vec![0; 67]);
    let e = load::<f32>(&g, &weights, Precision::F32).unwrap_err();
    assert!(e.to_string().contains("do not take 67 bytes"), "{e}");
}

#[test]
fn rounded_rounds_each_op_to_its_type() {
    let text = "\
%0 = constant [1.0, 3.0] -> f32[2]
%1 = cast %0 -> bf16[2]
%2 = constant [0.00390625, 0.01] -> f32[2]
%3 = cast %2 -> bf16[2]
%4 = add %1, %3 -> bf16[2]
%5 = cast %4 -> f32[2]
%6 = constant [70000.0, 0.1] -> f32[2]
%7 = cast %6 -> f16[2]
%8 = cast %7 -> f32[2]
output \"sum\" = %5
output \"half\" = %8
";
    let out = run::<f32>(text, Precision::Rounded, &StepInputs::default()).unwrap();
    // 1 + 2⁻⁸ lies between 1 and 1 + 2⁻⁷: ties to even. 3.01 rounds to 3.015625.
    assert_eq!(out.get("sum").unwrap().to_reals().unwrap(), [1.0, 3.015625]);
    assert_eq!(out.get("half").unwrap().to_reals().unwrap(), [f32::INFINITY, 0.099975586]);
    let plain = run::<f32>(text, Precision::F32, &StepInputs::default()).unwrap();
    assert_eq!(plain.get("sum").unwrap().to_reals().unwrap(), [1.0 + 0.00390625, 3.01]);
}

#[test]
fn sampling_and_its_inputs() {
    let text = "\
%0 = constant [0.0, 4.0, 1.0] -> f32[1, 3]
%1 = constant [2, 0] -> i32[2]
%2 = input output_rows -> i32[rows]
%3 = gather %1, %2 -> i32[rows]
%4 = gather %0, %2 -> f32[rows, 3]
%5 = input temperature -> f32[rows]
%6 = input top_k -> i32[rows]
%7 = input top_p -> f32[rows]
%8 = input min_p -> f32[rows]
%9 = input seed -> u32[rows]
%10 = sample %4, %3, %5, %6, %7, %8, %9 -> i32[rows]
output \"tokens\" = %10
";
    let mut inputs = StepInputs {
        output_rows: vec![0],
        temperature: vec![0.0],
        top_k: vec![0],
        top_p: vec![1.0],
        min_p: vec![0.0],
        seed: vec![3],
        ..StepInputs::default()
    };
    let token = |inputs: &StepInputs| {
        run::<f32>(text, Precision::F32, inputs).map(|o| o.get("tokens").unwrap().to_ints().unwrap()[0])
    };
    assert_eq!(token(&inputs).unwrap(), 1);
    inputs.temperature[0] = 100.0;
    let params = weft_ir::sampling::Params { temperature: 100.0, top_k: 0, top_p: 1.0, min_p: 0.0, seed: 3 };
    assert_eq!(token(&inputs).unwrap(), weft_ir::sampling::sample_row(&[0.0, 4.0, 1.0], 2, &params));
    let nan = text.replace("4.0", "0x7fc00000");
    let e = run::<f32>(&nan, Precision::F32, &inputs).unwrap_err();
    assert!(e.to_string().contains("row 0 of the logits holds NaN"), "{e}");
}
