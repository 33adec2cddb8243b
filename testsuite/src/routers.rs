//! How near the choices of routers are to ties: where two experts (or groups) are closer than the rounding of a 16-bit
//! run, either is right, and what comes of the other one is far off.

use crate::fixture::{Bytes, Fixture};
use weft_ir::dtype::DType;
use weft_ir::graph::{Graph, Op, Output};
use weft_ir::ids::NodeId;
use weft_ir::reference::{Precision, States, StepInputs, load, step};
use weft_ir::shape::Bindings;

/// A choice of the largest of some scores, for each token: of groups, or of experts.
#[derive(Clone, Debug)]
pub struct Choice {
    /// Where in the model.
    pub scope: String,
    /// How many are taken.
    picks: usize,
    /// How many there are.
    of: usize,
    /// Scores `[tokens, of]`.
    scores: Vec<f32>,
}

impl Choice {
    /// The scores of a token, the largest first.
    fn sorted(&self, token: usize) -> Vec<f32> {
        let mut scores = self.scores[token * self.of..][..self.of].to_vec();
        scores.sort_by(|a, b| b.total_cmp(a));
        scores
    }

    /// By how much the last that is taken beats the first that is not.
    fn margin(&self, token: usize) -> f32 {
        let sorted = self.sorted(token);
        sorted[self.picks - 1] - sorted[self.picks]
    }

    /// What is taken, in order of number.
    fn taken(&self, token: usize) -> Vec<usize> {
        let scores = &self.scores[token * self.of..][..self.of];
        let mut order: Vec<usize> = (0..self.of).collect();
        order.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]).then(a.cmp(&b)));
        order.truncate(self.picks);
        order.sort_unstable();
        order
    }
}

/// The nearest choice of a token's routers.
#[derive(Clone, Debug)]
pub struct Nearest {
    /// Where in the model.
    pub scope: String,
    /// By how much the last that is taken beats the first that is not, in float32.
    pub margin: f32,
    /// How far that router's scores are from float32 when they are rounded: a standard deviation.
    pub noise: f32,
    /// Whether some router takes another in the rounded run.
    pub flips: bool,
}

impl Nearest {
    /// Whether rounding may choose the other: the margin is within [`CLEAR`] of the noise.
    pub fn is_tie(&self) -> bool {
        self.margin < CLEAR * self.noise
    }
}

/// Margins in noise from which on a choice is clear: that of the goldens' generator (`goldens/generate.py`).
pub const CLEAR: f32 = 4.0;

/// Standard deviation of the difference of scores, by its median: a token whose earlier router chose another expert is
/// far off.
fn noise(exact: &Choice, rounded: &Choice) -> f32 {
    let differences = exact.scores.iter().zip(&rounded.scores).map(|(a, b)| (a - b).abs());
    // Scores outside the best groups are 0 in both.
    let mut differences: Vec<f32> = differences.filter(|d| *d > 0.0).collect();
    differences.sort_by(f32::total_cmp);
    differences[differences.len() / 2] / 0.6745
}

/// For each row of a golden, the nearest choice at each of its tokens and those of its continuation: of the graph in
/// float32, beside the same graph with every op rounded to its stored type, `dtype`.
///
/// # Panics
/// When the model does not run or has no router.
pub fn nearest(fixture: &Fixture, dtype: DType) -> Vec<Vec<Nearest>> {
    let exact = choices(fixture, fixture.graph(DType::F32), Precision::F32);
    let rounded = choices(fixture, fixture.graph(dtype), Precision::Rounded);
    assert!(!exact.is_empty() && exact.len() == rounded.len(), "routers of the two graphs");
    let both: Vec<(&Choice, &Choice, f32)> =
        exact.iter().zip(&rounded).map(|(a, b)| (a, b, noise(a, b))).collect();
    let of_token = |t: usize| {
        let clear = |(a, _, noise): &&(&Choice, &Choice, f32)| a.margin(t) / noise;
        let nearest = both.iter().min_by(|a, b| clear(a).total_cmp(&clear(b)));
        let (choice, _, noise) = nearest.expect("a router");
        let flips = both.iter().any(|(a, b, _)| a.taken(t) != b.taken(t));
        Nearest { scope: choice.scope.clone(), margin: choice.margin(t), noise: *noise, flips }
    };
    let rows = tokens(fixture);
    let length = rows[0].len();
    (0..rows.len()).map(|r| (0..length).map(|t| of_token(r * length + t)).collect()).collect()
}

/// Whether a step (row, step) of a golden's continuation can be judged in a 16-bit type: no router of the token before it
/// is at a near tie.
///
/// # Panics
/// As [`nearest`].
pub fn judged(fixture: &Fixture, dtype: DType) -> impl Fn(usize, usize) -> bool + use<> {
    let last = fixture.golden_ids("input_ids").shape[1] - 1;
    let rows = nearest(fixture, dtype);
    move |row, step| !rows[row][last + step].is_tie()
}

/// Tokens of a golden's rows, with those of the continuation.
fn tokens(fixture: &Fixture) -> Vec<Vec<i32>> {
    let (ids, more) = (fixture.golden_ids("input_ids"), fixture.golden_ids("greedy_ids"));
    let rows = ids.values.chunks(ids.shape[1]).zip(more.values.chunks(more.shape[1]));
    rows.map(|(a, b)| [a, b].concat()).collect()
}

/// All choices of a graph for the golden's tokens, in one step.
fn choices(fixture: &Fixture, mut graph: Graph, precision: Precision) -> Vec<Choice> {
    // Of a group's two best only the values are used: no choice.
    let chooses = |id: &NodeId| {
        let node = graph.node(*id);
        matches!(node.op, Op::TopK { .. }) && node.ty.shape.len() == 2
    };
    let found: Vec<NodeId> = graph.ids().filter(chooses).collect();
    let name = |id: NodeId| format!("scores.{id}");
    for &id in &found {
        let value = graph.node(id).inputs[0];
        graph.outputs.push(Output { name: name(id), value });
    }
    let rows = tokens(fixture);
    let (count, length) = (rows.len(), rows[0].len());
    let total = count * length;
    let each = |f: fn(usize, usize, usize) -> usize| -> Vec<i32> {
        (0..total).map(|i| f(i / length, i % length, length) as i32).collect()
    };
    let inputs = StepInputs {
        token_ids: rows.concat(),
        positions: each(|_, t, _| t),
        sequences: each(|r, _, _| r),
        slots: each(|r, t, n| r * n + t),
        slot_base: (0..count).map(|r| (r * length) as i32).collect(),
        output_rows: vec![0],
        temperature: vec![0.0],
        top_k: vec![0],
        top_p: vec![1.0],
        min_p: vec![0.0],
        seed: vec![0],
        repetition_penalty: vec![1.0],
        presence_penalty: vec![0.0],
        prompt_lengths: vec![0],
        lengths: vec![],
        token_types: vec![],
        prompts: vec![length as i32; total],
    };
    let bind = Bindings { tokens: total, seqs: count, rows: 1, context: length, slots: total };
    let loaded = load::<f32>(&graph, &Bytes(&fixture.checkpoint), precision).expect("a graph");
    let mut states = States::zeros(&graph, &bind);
    let outputs = step(&graph, &loaded, &bind, &inputs, &mut states).unwrap_or_else(|e| panic!("{e}"));
    let choice = |id: &NodeId| {
        let node = graph.node(*id);
        let Op::TopK { k: picks } = node.op else { return None };
        let of = graph.ty(node.inputs[0]).shape[1].as_const()?;
        let scores = outputs.get(&name(*id))?.to_reals().ok()?;
        (picks < of).then(|| Choice { scope: node.scope.clone(), picks, of, scores })
    };
    found.iter().filter_map(choice).collect()
}
