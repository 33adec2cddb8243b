//! The text form of graphs: exact round trips, and errors that say where and what.

use proptest::prelude::*;
use weft_ir::dtype::{DType, Encoding};
use weft_ir::graph::{Graph, GraphBuilder, Input, Literal, Op, ValueType, parse};
use weft_ir::scalar::{Binary, Compare, Reduce, Unary};
use weft_ir::shape::{Dim, Sym};
use weft_ir::verify::graph::verify;

fn round_trip(graph: &Graph) {
    let text = graph.to_string();
    match parse(&text) {
        Ok(back) => {
            // Debug text tells NaN bits and −0 apart less well than bits do: compare both.
            assert_eq!(format!("{back:?}"), format!("{graph:?}"), "\n{text}");
            assert_eq!(back.to_string(), text);
        }
        Err(e) => panic!("{e}\n{text}"),
    }
}

/// A graph with every op.
fn every_op() -> Graph {
    let mut g = GraphBuilder::new();
    let plain = |d, s: &[usize]| ValueType::plain(d, s.iter().map(|&n| Dim::Const(n)).collect());
    let ids = g.input(Input::TokenIds);
    let slots = g.input(Input::Slots);
    let table = g.weight("model.embed \"x\"\\\n", plain(DType::BF16, &[10, 4]));
    let packed =
        g.weight("q", ValueType { encoding: Encoding::Q4_0, shape: vec![Dim::Const(6), Dim::Const(32)] });
    g.enter("model");
    g.enter("embed // \"no comment\"");
    let x = g.gather(table, ids);
    g.leave();
    g.leave();
    let state = g.state("k", ValueType::plain(DType::BF16, vec![Dim::Sym(Sym::Slots), Dim::Const(4)]));
    let next = g.scatter(state, x, slots);
    let rows = g.gather(next, slots);
    let both = g.concat(&[x, rows], 1);
    let part = g.slice(both, 1, 2, 4);
    let decoded = g.decode(packed);
    let flat = g.reshape(decoded, vec![Dim::Const(48), Dim::Const(4)]);
    let y = g.cast(part, DType::F32);
    let odd = g.constant(
        vec![f32::from_bits(0x7fc0_0001), -0.0, f32::INFINITY, 1e-45],
        vec![Dim::Const(1), 4.into()],
    );
    let z = g.binary(Binary::Mul, y, odd);
    let z = g.unary(Unary::Silu, z);
    let w = g.softmax(z);
    let best = g.top_k(w, 2);
    let experts = g.constant(vec![0.5; 24], [3, 2, 4].map(Dim::Const).to_vec());
    let wide = g.reshape(w, vec![Dim::Sym(Sym::Tokens), Dim::Const(1), Dim::Const(4)]);
    let routed = g.routed_matmul(wide, experts, best, DType::BF16);
    let m = g.reduce(Reduce::Mean, w);
    let lt = g.compare(Compare::Lt, w, m);
    let picked = g.select(lt, w, z);
    let product = g.matmul_t(picked, flat, DType::F32);
    let turned = g.transpose(flat, &[1, 0]);
    let again = g.matmul(picked, turned, DType::BF16);
    let count = g.iota(0, vec![Dim::Sym(Sym::Tokens)]);
    let ints = g.add(Op::Constant { literal: Literal::I32(vec![-7]), shape: vec![Dim::Const(1)] }, &[]);
    let ints = g.binary(Binary::Add, count, ints);
    let outs = g.input(Input::OutputRows);
    let logits = g.gather(product, outs);
    let position = g.gather(ints, outs);
    let rest = [Input::Temperature, Input::TopK, Input::TopP, Input::MinP, Input::Seed].map(|i| g.input(i));
    let costs = [Input::PromptLengths, Input::RepetitionPenalty, Input::PresencePenalty].map(|i| g.input(i));
    let mut operands = vec![logits, count, position, position];
    operands.extend(costs);
    let penalised = g.add(Op::Penalize, &operands);
    let mut operands = vec![penalised, position];
    operands.extend(rest);
    let tokens = g.add(Op::Sample, &operands);
    g.output("logits", logits);
    g.output("again", again);
    g.output("routed", routed);
    g.output("tokens", tokens);
    g.state_out("k", next);
    g.finish().unwrap()
}

#[test]
fn every_op_round_trips() {
    let graph = every_op();
    verify(&graph).unwrap();
    round_trip(&graph);
}

#[test]
fn text_is_as_documented() {
    let text = "\
%0 = input token_ids -> i32[tokens]
%1 = weight \"model.embed_tokens.weight\" -> bf16[16, 8] @\"model.embed_tokens\"
%2 = gather %1, %0 -> bf16[tokens, 8] @\"model.embed_tokens\"
%3 = matmul.t %2, %1 -> f32[tokens, 16]
%4 = constant [0.5, -inf, 0x7fc00000] -> f32[3]
output \"logits\" = %3
output \"odd\" = %4
";
    let graph = parse(text).unwrap();
    assert_eq!(graph.to_string(), text);
    let spaced = text.replace(" = ", "  =  // not here\n").replace("// not here\n", "").replace(", ", " ,  ");
    let spaced = format!("\n   // a comment\n{spaced}   // the end");
    assert_eq!(parse(&spaced).unwrap().to_string(), text);
}

#[test]
fn errors_say_where_and_what() {
    let head = "%0 = input token_ids -> i32[tokens]\n";
    let cases = [
        ("%1 = inputs", 1, 1, "%0, the next node"),
        ("nodes", 1, 1, "a node"),
        ("%0 = frobnicate -> f32[]", 1, 6, "name of an op"),
        ("%0 = input tokens -> i32[tokens]", 1, 12, "token_ids, positions"),
        ("%0 = input token_ids -> f32[tokens]", 1, 25, "i32[tokens]"),
        ("%0 = input token_ids -> i33[tokens]", 1, 25, "a type"),
        ("%0 = input token_ids -> i32[tokenz]", 1, 29, "an extent"),
        ("%0 = input token_ids -> i32[tokens", 1, 35, "\",\" or \"]\""),
        ("%0 = input token_ids i32[tokens]", 1, 22, "\"->\""),
        ("%0 = input token_ids -> i32[tokens] scope", 1, 37, "end of the line"),
        ("%0 = input token_ids -> i32[tokens] @scope", 1, 38, "quotes"),
        ("%0 = weight \"a -> f32[1]", 1, 25, "closing quote"),
        ("%0 = weight \"a\\n\" -> f32[1]", 1, 16, "escape"),
        ("%0 = weight \"a\" -> f32[99999999999999999999]", 1, 24, "a number up to"),
        ("%0 = constant [1.0, x] -> f32[2]", 1, 21, "f32 literal"),
        ("%0 = constant [1.5] -> i32[1]", 1, 16, "i32 literal"),
        ("%0 = constant [1.5] -> bf16[1]", 1, 24, "f32 or i32"),
        ("%0 = constant [1.5, 2.0] -> f32[3]", 1, 6, "literal elements do not fill"),
        ("%0 = iota -> i32[3]", 1, 11, "\"axis\""),
        ("%0 = softmax %0 -> f32[3]", 1, 14, "defined above"),
        ("output \"x\" = %0", 1, 14, "defined above"),
    ];
    for (text, line, column, expected) in cases {
        let e = parse(text).unwrap_err();
        assert_eq!((e.line, e.column), (line, column), "{text}: {e}");
        assert!(e.expected.contains(expected), "{text}: {e}");
    }
    let more = [
        ("%1 = exp %0 -> i32[tokens]", 6, "exp does not take i32"),
        ("%1 = add %0, -> i32[tokens]", 14, "a value"),
        ("%1 = add %0 -> i32[tokens]", 6, "takes 2 inputs, got 1"),
        ("%1 = transpose %0 perm=[1] -> i32[tokens]", 6, "does not permute"),
        ("%1 = cast %0 -> f32[rows]", 17, "f32[tokens]"),
        ("%1 = gather %0, %7 -> i32[tokens]", 17, "defined above"),
    ];
    for (text, column, expected) in more {
        let e = parse(&format!("{head}{text}\n")).unwrap_err();
        assert_eq!((e.line, e.column), (2, column), "{text}: {e}");
        assert!(e.to_string().contains(expected), "{text}: {e}");
    }
}

/// Small graphs of elementwise, movement and product ops on `[tokens, n]` values.
fn graphs() -> impl Strategy<Value = Graph> {
    let float = any::<u32>().prop_map(f32::from_bits);
    let step = (0u8..12, any::<prop::sample::Index>(), any::<prop::sample::Index>());
    (prop::collection::vec(float, 1..5), prop::collection::vec(step, 1..25), "\\PC{0,12}").prop_map(
        |(literal, steps, scope)| {
            let mut g = GraphBuilder::new();
            let n = literal.len();
            let constant = g.constant(literal, vec![Dim::Const(1), Dim::Const(n)]);
            let wide = vec![Dim::Sym(Sym::Tokens), Dim::Const(n)];
            let mut values = vec![g.broadcast(constant, wide)];
            for (kind, a, b) in steps {
                let (a, b) = (*a.get(&values), *b.get(&values));
                g.enter(scope.clone());
                let new = match kind {
                    0 => g.unary(Unary::Exp, a),
                    1 => g.unary(Unary::Neg, a),
                    2 => g.binary(Binary::Add, a, b),
                    3 => g.binary(Binary::Pow, a, b),
                    4 => {
                        let c = g.compare(Compare::Le, a, b);
                        g.select(c, b, a)
                    }
                    5 => {
                        let t = g.transpose(a, &[1, 0]);
                        g.transpose(t, &[1, 0])
                    }
                    6 => {
                        let m = g.reduce(Reduce::Sum, a);
                        g.binary(Binary::Div, a, m)
                    }
                    7 => g.softmax(a),
                    8 => {
                        let m = g.matmul_t(a, constant, DType::F32);
                        g.binary(Binary::Mul, m, b)
                    }
                    9 => {
                        let c = g.concat(&[a, b], 1);
                        g.slice(c, 1, n / 2, n)
                    }
                    10 => g.reshape(a, vec![Dim::Sym(Sym::Tokens), Dim::Const(1), Dim::Const(n)]),
                    _ => {
                        let h = g.cast(a, DType::F16);
                        g.cast(h, DType::F32)
                    }
                };
                g.leave();
                let new = if g.shape(new).len() == 3 { g.reshape(new, g.shape(a)) } else { new };
                values.push(new);
            }
            for (i, &v) in values.iter().enumerate().skip(1).step_by(3) {
                g.output(&format!("out \"{i}\""), v);
            }
            g.finish().unwrap()
        },
    )
}

proptest! {
    #[test]
    fn generated_graphs_round_trip(graph in graphs()) {
        round_trip(&graph);
        prop_assert!(verify(&graph).is_ok());
    }

    #[test]
    fn damaged_text_never_panics(at in any::<prop::sample::Index>(), with in "\\PC{0,3}", cut in 0usize..4) {
        let text = every_op().to_string();
        let mut chars: Vec<char> = text.chars().collect();
        let at = at.index(chars.len());
        let end = (at + cut).min(chars.len());
        chars.splice(at..end, with.chars());
        let _ = parse(&chars.iter().collect::<String>());
    }

    #[test]
    fn any_text_never_panics(text in "\\PC{0,80}") {
        let _ = parse(&text);
        let _ = parse(&format!("%0 = {text}"));
    }
}
