//! Rules: what they find, what they must not find, and that the graph they give is equal to the graph before.

use std::collections::BTreeMap;
use weft_ir::dtype::DType;
use weft_ir::graph::{Graph, GraphBuilder, Input, Op, ValueType};
use weft_ir::ids::NodeId;
use weft_ir::reference::{Precision, States, StepInputs, load, step};
use weft_ir::scalar::{Binary, Reduce, Unary};
use weft_ir::shape::{Bindings, Dim, Sym};
use weft_ir::target::Target;
use weft_passes::eqsat::{self, CostModel, Report, rules};
use weft_passes::{Products, Selection};

const BIND: Bindings = Bindings { tokens: 5, seqs: 2, rows: 2, context: 8, slots: 16 };
const T: Dim = Dim::Sym(Sym::Tokens);

fn model(products: Products) -> CostModel {
    let profile = Target::parse("sm_90").expect("sm_90").profile;
    CostModel { bind: BIND, profile, products }
}

/// The graph for one cost model.
fn run(graph: &Graph, model: CostModel, selection: &Selection) -> (Graph, Report) {
    let made = eqsat::run(graph, &[model], selection).unwrap_or_else(|e| panic!("{e}"));
    made.into_iter().next().expect("a graph")
}

/// A small model's parts.
struct Parts {
    g: GraphBuilder,
    weights: BTreeMap<String, Vec<u8>>,
    seed: u64,
}

impl Parts {
    fn new() -> Self {
        Parts { g: GraphBuilder::new(), weights: BTreeMap::new(), seed: 1 }
    }

    fn weight(&mut self, name: &str, shape: &[usize]) -> NodeId {
        let mut next = || {
            self.seed = self.seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            ((self.seed >> 40) as f32 / (1u64 << 24) as f32 - 0.5) * 0.5
        };
        let values: Vec<f32> = (0..shape.iter().product()).map(|_| next()).collect();
        self.weights.insert(name.into(), values.iter().flat_map(|v| v.to_le_bytes()).collect());
        let shape = shape.iter().map(|&n| Dim::Const(n)).collect();
        self.g.weight(name, ValueType::plain(DType::F32, shape))
    }

    fn tokens(&mut self, width: usize) -> NodeId {
        let table = self.weight("embed", &[11, width]);
        let ids = self.g.input(Input::TokenIds);
        self.g.gather(table, ids)
    }

    fn linear(&mut self, x: NodeId, name: &str, n: usize) -> NodeId {
        let k = self.g.shape(x)[1].as_const().expect("width");
        let w = self.weight(name, &[n, k]);
        self.g.matmul_t(x, w, DType::F32)
    }

    fn rms_norm(&mut self, x: NodeId, width: usize) -> NodeId {
        let square = self.g.binary(Binary::Mul, x, x);
        let mean = self.g.reduce(Reduce::Mean, square);
        let eps = self.g.scalar_like(1e-5, mean);
        let mean = self.g.binary(Binary::Add, mean, eps);
        let scale = self.g.unary(Unary::Rsqrt, mean);
        let y = self.g.binary(Binary::Mul, x, scale);
        let w = self.weight("norm", &[width]);
        let w = self.g.reshape(w, vec![Dim::Const(1), Dim::Const(width)]);
        let y = self.g.binary(Binary::Mul, y, w);
        // A model's norm rounds to the type of its weights, which rules look for.
        self.g.add(Op::Cast(DType::F32), &[y])
    }

    /// x [t, heads · d], rotated by halves with tables made of positions.
    fn rotate(&mut self, x: NodeId, heads: usize, d: usize) -> NodeId {
        let half = d / 2;
        let x = self.g.reshape(x, vec![T, Dim::Const(heads), Dim::Const(d)]);
        let p = self.g.input(Input::Positions);
        let p = self.g.cast(p, DType::F32);
        let p = self.g.reshape(p, vec![T, Dim::Const(1), Dim::Const(1)]);
        let f = self.g.constant(
            (0..half).map(|i| 0.3 / (i + 1) as f32).collect(),
            vec![Dim::Const(1), Dim::Const(1), Dim::Const(half)],
        );
        let angle = self.g.binary(Binary::Mul, p, f);
        let (cos, sin) = (self.g.unary(Unary::Cos, angle), self.g.unary(Unary::Sin, angle));
        let (a, b) = (self.g.slice(x, 2, 0, half), self.g.slice(x, 2, half, half));
        let mul = |g: &mut GraphBuilder, x, y| g.binary(Binary::Mul, x, y);
        let (ac, bs) = (mul(&mut self.g, a, cos), mul(&mut self.g, b, sin));
        let (bc, s) = (mul(&mut self.g, b, cos), mul(&mut self.g, a, sin));
        let low = self.g.binary(Binary::Sub, ac, bs);
        let high = self.g.binary(Binary::Add, bc, s);
        self.g.concat(&[low, high], 2)
    }

    fn swiglu(&mut self, gate: NodeId, up: NodeId) -> NodeId {
        let gate = self.g.unary(Unary::Silu, gate);
        self.g.binary(Binary::Mul, gate, up)
    }

    /// Optimises for all forms of the step, and checks that outputs stay what they were; the result is that for decode.
    fn check(mut self, outputs: &[NodeId]) -> (Graph, Report) {
        for (i, o) in outputs.iter().enumerate() {
            self.g.output(&format!("y{i}"), *o);
        }
        let graph = self.g.finish().unwrap_or_else(|e| panic!("{e}"));
        let before = evaluate(&graph, &self.weights);
        let mut decode = None;
        let models = Products::ALL.map(model);
        let made = eqsat::run(&graph, &models, &Selection::default()).unwrap_or_else(|e| panic!("{e}"));
        for (model, (after, report)) in models.iter().zip(made) {
            weft_ir::verify::graph::verify(&after).unwrap_or_else(|f| panic!("{f:?}"));
            close(&before, &evaluate(&after, &self.weights));
            same_origins(&graph, &after, &report, &self.weights);
            assert!(report.limited.is_empty());
            if model.products == Products::Streams {
                decode = Some((after, report));
            }
        }
        decode.expect("all were run")
    }
}

/// Each node that is said to be a node of the graph before has its value.
fn same_origins(before: &Graph, after: &Graph, report: &Report, weights: &BTreeMap<String, Vec<u8>>) {
    assert_eq!(report.origins.len(), after.nodes.len());
    let load = after.load_time();
    let compared = |id: &NodeId| {
        let source = matches!(after.node(*id).op, Op::Input(_) | Op::State { .. });
        !source && !load[id.index()] && after.ty(*id).dtype().is_float()
    };
    let pairs = after.ids().filter(compared).filter_map(|id| Some((id, report.origins[id.index()]?)));
    let pairs: Vec<(NodeId, NodeId)> = pairs.collect();
    assert!(!pairs.is_empty());
    let mut graphs = [before.clone(), after.clone()];
    for g in &mut graphs {
        g.outputs.clear();
    }
    for (i, (new, old)) in pairs.into_iter().enumerate() {
        for (g, value) in graphs.iter_mut().zip([old, new]) {
            g.outputs.push(weft_ir::graph::Output { name: format!("node {i}"), value });
        }
    }
    let [old, new] = graphs.map(|g| evaluate(&g, weights));
    close(&old, &new);
}

fn evaluate(graph: &Graph, weights: &BTreeMap<String, Vec<u8>>) -> Vec<Vec<f64>> {
    let loaded = load::<f64>(graph, weights, Precision::F64).unwrap_or_else(|e| panic!("{e}"));
    let inputs = StepInputs {
        token_ids: vec![3, 1, 4, 1, 5],
        positions: vec![0, 1, 2, 0, 1],
        slots: vec![0, 1, 2, 8, 9],
        ..StepInputs::default()
    };
    let out = step(graph, &loaded, &BIND, &inputs, &mut States::zeros(graph, &BIND))
        .unwrap_or_else(|e| panic!("{e}"));
    out.iter().map(|(_, t)| t.to_reals().expect("floats")).collect()
}

fn close(a: &[Vec<f64>], b: &[Vec<f64>]) {
    assert_eq!(a.len(), b.len());
    for (x, y) in a.iter().flatten().zip(b.iter().flatten()) {
        assert!((x - y).abs() <= 1e-12 * x.abs().max(1.0), "{x} and {y}");
    }
}

fn products(graph: &Graph) -> usize {
    graph.nodes.iter().filter(|n| matches!(n.op, Op::MatMul { .. })).count()
}

fn sites(report: &Report, rule: &str) -> usize {
    report.applied.get(rule).copied().unwrap_or(0)
}

#[test]
fn linears_of_one_input_become_one() {
    let mut p = Parts::new();
    let x = p.tokens(16);
    let outputs = [p.linear(x, "a", 8), p.linear(x, "b", 4), p.linear(x, "c", 12)];
    let (graph, report) = p.check(&outputs);
    assert!(sites(&report, "merge-linears") > 0);
    assert_eq!(products(&graph), 1);
}

#[test]
fn linears_of_different_inputs_stay_apart() {
    let mut p = Parts::new();
    let x = p.tokens(16);
    let other = p.g.unary(Unary::Tanh, x);
    let outputs = [p.linear(x, "a", 8), p.linear(other, "b", 8)];
    let (graph, report) = p.check(&outputs);
    assert_eq!(sites(&report, "merge-linears"), 0);
    assert_eq!(products(&graph), 2);
}

#[test]
fn a_product_with_a_computed_right_side_is_no_linear_layer() {
    let mut p = Parts::new();
    let x = p.tokens(16);
    let w = p.weight("w", &[8, 16]);
    let scale = p.g.scalar_like(2.0, w);
    let computed = p.g.binary(Binary::Mul, w, scale);
    let plain = p.linear(x, "a", 8);
    let y = p.g.matmul_t(x, computed, DType::F32);
    let (graph, _) = p.check(&[plain, y]);
    assert_eq!(products(&graph), 2);
}

#[test]
fn rotary_halves_are_paired_in_merged_projections() {
    let mut p = Parts::new();
    let x = p.tokens(16);
    let (q, k, v) = (p.linear(x, "q", 32), p.linear(x, "k", 16), p.linear(x, "v", 16));
    let (q, k) = (p.rotate(q, 4, 8), p.rotate(k, 2, 8));
    let (graph, report) = p.check(&[q, k, v]);
    assert!(sites(&report, "pair-rotary-halves") >= 2);
    assert_eq!(products(&graph), 1);
}

#[test]
fn quarters_are_no_halves() {
    let mut p = Parts::new();
    let x = p.tokens(16);
    let q = p.linear(x, "q", 32);
    let q = p.g.reshape(q, vec![T, Dim::Const(4), Dim::Const(8)]);
    let (a, b) = (p.g.slice(q, 2, 0, 2), p.g.slice(q, 2, 4, 2));
    let y = p.g.binary(Binary::Add, a, b);
    let (_, report) = p.check(&[y]);
    assert_eq!(sites(&report, "pair-rotary-halves"), 0);
}

#[test]
fn gate_and_up_are_paired() {
    let mut p = Parts::new();
    let x = p.tokens(16);
    let (gate, up) = (p.linear(x, "gate", 24), p.linear(x, "up", 24));
    let y = p.swiglu(gate, up);
    let (graph, report) = p.check(&[y]);
    assert!(sites(&report, "pair-gate-up") > 0);
    assert_eq!(products(&graph), 1);
}

/// Parallel attention and MLP have one input: one product of all, gate and up in pairs within it.
#[test]
fn gate_and_up_are_paired_beside_other_products() {
    let mut p = Parts::new();
    let x = p.tokens(16);
    let (q, k) = (p.linear(x, "q", 32), p.linear(x, "k", 16));
    let (gate, up) = (p.linear(x, "gate", 24), p.linear(x, "up", 24));
    let y = p.swiglu(gate, up);
    let (graph, report) = p.check(&[q, k, y]);
    assert!(sites(&report, "pair-gate-up") > 0);
    assert_eq!(products(&graph), 1);
    // Columns 2i and 2i + 1 of the pairs, moved as rows of the weight: at load.
    let paired = |n: &weft_ir::graph::Node| matches!(&n.op, Op::Transpose(perm) if perm[..] == [1, 0, 2]);
    assert!(graph.nodes.iter().any(paired));
}

/// A gate of one column for an expert of all tokens makes the number of columns odd: a row more keeps them pairs.
#[test]
fn an_odd_number_of_columns_is_made_even() {
    let mut p = Parts::new();
    let x = p.tokens(16);
    let (gate, up, one) = (p.linear(x, "gate", 24), p.linear(x, "up", 24), p.linear(x, "z", 1));
    let y = p.swiglu(gate, up);
    let (graph, _) = p.check(&[y, one]);
    assert_eq!(products(&graph), 1);
    let product = graph.nodes.iter().find(|n| matches!(n.op, Op::MatMul { .. })).expect("a product");
    assert_eq!(product.ty.shape[1], Dim::Const(50));
}

#[test]
fn gate_and_up_with_biases_are_paired() {
    let mut p = Parts::new();
    let x = p.tokens(16);
    let biased = |p: &mut Parts, name: &str| {
        let y = p.linear(x, name, 24);
        let b = p.weight(&format!("{name}.bias"), &[1, 24]);
        p.g.binary(Binary::Add, y, b)
    };
    let (gate, up) = (biased(&mut p, "gate"), biased(&mut p, "up"));
    let y = p.swiglu(gate, up);
    let (graph, report) = p.check(&[y]);
    assert!(sites(&report, "pair-gate-up") > 0);
    assert_eq!(products(&graph), 1);
}

/// Gate and up of two inputs are two products.
#[test]
fn gate_and_up_of_two_inputs_are_not_paired() {
    let mut p = Parts::new();
    let x = p.tokens(16);
    let square = p.g.binary(Binary::Mul, x, x);
    let (gate, up) = (p.linear(x, "gate", 24), p.linear(square, "up", 24));
    let y = p.swiglu(gate, up);
    let (_, report) = p.check(&[y]);
    assert_eq!(sites(&report, "pair-gate-up"), 0);
}

#[test]
fn gate_and_up_of_different_widths_are_not_paired() {
    let mut p = Parts::new();
    let x = p.tokens(16);
    let (gate, up) = (p.linear(x, "gate", 24), p.linear(x, "up", 32));
    let up = p.g.slice(up, 1, 0, 24);
    let y = p.swiglu(gate, up);
    let (_, report) = p.check(&[y]);
    assert_eq!(sites(&report, "pair-gate-up"), 0);
}

#[test]
fn a_norms_scale_moves_behind_the_product_in_decode() {
    let mut p = Parts::new();
    let x = p.tokens(16);
    let h = p.rms_norm(x, 16);
    let y = p.linear(h, "w", 24);
    let (graph, report) = p.check(&[y]);
    assert!(sites(&report, "norm-prologue") > 0);
    // The left operand no longer depends on the reduction.
    let product = graph.nodes.iter().find(|n| matches!(n.op, Op::MatMul { .. })).expect("a product");
    assert!(!reduces(&graph, product.inputs[0]));
}

fn reduces(graph: &Graph, id: NodeId) -> bool {
    let n = graph.node(id);
    matches!(n.op, Op::Reduce(_)) || n.inputs.iter().any(|i| reduces(graph, *i))
}

#[test]
fn a_scale_of_each_element_stays_where_it_is() {
    let mut p = Parts::new();
    let x = p.tokens(16);
    let scale = p.g.unary(Unary::Tanh, x);
    let y = p.g.binary(Binary::Mul, x, scale);
    let w = p.weight("norm", &[1, 16]);
    let y = p.g.binary(Binary::Mul, y, w);
    let y = p.linear(y, "w", 8);
    let (_, report) = p.check(&[y]);
    assert_eq!(sites(&report, "norm-prologue"), 0);
}

/// How a latent attention's graph differs from the one that the rule is about.
#[derive(Clone, Copy, PartialEq)]
enum Latent {
    Plain,
    /// Each head has rotated elements of its own.
    OwnTail,
    /// Two queries for each key.
    Grouped,
    /// The matrices are computed by the step.
    Computed,
    /// Keys stand as columns.
    Turned,
}

/// Attention to a cache of rows [slots, 1, rank + shared], of which keys and values are products.
fn latent(p: &mut Parts, kind: Latent, [heads, d, rank, shared]: [usize; 4]) -> NodeId {
    let (slots, c) = (Dim::Sym(Sym::Slots), Dim::Const);
    let x = p.tokens(16);
    let group = if kind == Latent::Grouped { 2 } else { 1 };
    let q = p.linear(x, "q", heads * group * (d + shared));
    let q = p.g.reshape(q, vec![T, c(heads), c(group), c(d + shared)]);
    let row = p.linear(x, "row", rank + shared);
    let row = p.g.reshape(row, vec![T, c(1), c(rank + shared)]);
    let state = p.g.state("cache", ValueType::plain(DType::F32, vec![slots, c(1), c(rank + shared)]));
    let at = p.g.input(Input::Slots);
    let cache = p.g.scatter(state, row, at);
    p.g.state_out("cache", cache);
    let narrow = p.g.slice(cache, 2, 0, rank);
    let narrow = p.g.reshape(narrow, vec![slots, c(rank)]);
    let part = |p: &mut Parts, name: &str, n: usize| {
        let mut w = p.weight(name, &[heads * n, rank]);
        if kind == Latent::Computed {
            w = p.g.unary(Unary::Tanh, w);
        }
        let y = p.g.matmul_t(narrow, w, DType::F32);
        p.g.reshape(y, vec![slots, c(heads), c(n)])
    };
    let (keys, values) = (part(p, "k", d), part(p, "v", d));
    let tail = match kind {
        Latent::OwnTail => p.g.slice(values, 2, 0, shared),
        _ => {
            let tail = p.g.slice(cache, 2, rank, shared);
            p.g.broadcast(tail, vec![slots, c(heads), c(shared)])
        }
    };
    let keys = p.g.concat(&[keys, tail], 2);
    let j = p.g.iota(1, vec![T, Dim::Sym(Sym::Context)]);
    let read = |p: &mut Parts, rows: NodeId| {
        let rows = p.g.gather(rows, j);
        p.g.transpose(rows, &[0, 2, 1, 3])
    };
    let (keys, values) = (read(p, keys), read(p, values));
    let scores = if kind == Latent::Turned {
        let keys = p.g.transpose(keys, &[0, 1, 3, 2]);
        p.g.matmul(q, keys, DType::F32)
    } else {
        p.g.matmul_t(q, keys, DType::F32)
    };
    let weights = p.g.softmax(scores);
    p.g.matmul(weights, values, DType::F32)
}

fn routed(graph: &Graph) -> usize {
    graph.nodes.iter().filter(|n| matches!(n.op, Op::RoutedMatMul { .. })).count()
}

/// Products with a row for each slot.
fn expansions(graph: &Graph) -> usize {
    let all = |n: &&weft_ir::graph::Node| {
        matches!(n.op, Op::MatMul { .. }) && n.ty.shape.first() == Some(&Dim::Sym(Sym::Slots))
    };
    graph.nodes.iter().filter(all).count()
}

#[test]
fn latent_keys_and_values_are_not_expanded_for_one_token() {
    let mut p = Parts::new();
    let y = latent(&mut p, Latent::Plain, [4, 8, 16, 4]);
    p.g.output("y", y);
    let graph = p.g.finish().expect("a graph");
    let forms = |products: Products, tokens: usize, context: usize| {
        let bind = Bindings { tokens, seqs: 1, rows: 1, context, slots: context };
        let model = CostModel { bind, ..model(products) };
        let (after, report) = run(&graph, model, &Selection::default());
        weft_ir::verify::graph::verify(&after).unwrap_or_else(|f| panic!("{f:?}"));
        close(&evaluate(&graph, &p.weights), &evaluate(&after, &p.weights));
        assert!(sites(&report, "absorb-latent") >= 2);
        (routed(&after), expansions(&after))
    };
    // One token and many rows; many tokens, for which the rows are made once.
    assert_eq!(forms(Products::Streams, 1, 100_000), (2, 0));
    assert_eq!(forms(Products::Tiles, 4096, 4096), (0, 2));
}

#[test]
fn what_is_not_one_matrix_a_head_of_the_same_rows_stays() {
    for (kind, values) in
        [(Latent::OwnTail, 1), (Latent::Grouped, 0), (Latent::Computed, 0), (Latent::Turned, 1)]
    {
        let mut p = Parts::new();
        let y = latent(&mut p, kind, [2, 4, 8, 4]);
        let (_, report) = p.check(&[y]);
        assert_eq!(sites(&report, "absorb-latent"), values);
    }
}

#[test]
fn a_disabled_rule_is_not_applied() {
    for rule in rules::all() {
        let mut p = Parts::new();
        let x = p.tokens(16);
        let h = p.rms_norm(x, 16);
        let (q, k) = (p.linear(h, "q", 32), p.linear(h, "k", 16));
        let q = p.rotate(q, 4, 8);
        let q = p.g.reshape(q, vec![T, Dim::Const(32)]);
        let (gate, up) = (p.linear(q, "gate", 24), k);
        p.g.output("gate", gate);
        p.g.output("up", up);
        let graph = p.g.finish().expect("graph");
        let (after, report) = run(&graph, model(Products::Streams), &Selection::without(&[rule.name]));
        assert_eq!(sites(&report, rule.name), 0);
        close(&evaluate(&graph, &p.weights), &evaluate(&after, &p.weights));
    }
}

#[test]
fn equal_layers_are_saturated_once() {
    let mut p = Parts::new();
    let mut x = p.tokens(16);
    for layer in 0..6 {
        p.g.enter(format!("model.layers.{layer}"));
        let (gate, up) = (p.linear(x, &format!("g{layer}"), 16), p.linear(x, &format!("u{layer}"), 16));
        x = p.swiglu(gate, up);
        p.g.leave();
    }
    let (graph, report) = p.check(&[x]);
    assert_eq!(products(&graph), 6);
    assert!(report.segments >= 6 && report.distinct <= 3, "{report:?}");
}

#[test]
fn rules_have_names_of_their_own() {
    let mut names: Vec<&str> = rules::all().iter().map(|r| r.name).collect();
    let all = names.len();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), all);
}
