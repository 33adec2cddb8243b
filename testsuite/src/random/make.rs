//! The maker of random graphs: a pool of values, and the recipes that add to it.

use super::rng::Rng;
use super::{attention, blocks, movement, pointwise, routed, state};
use weft_ir::dtype::{DType, Encoding};
use weft_ir::graph::{Graph, GraphBuilder, Input, ValueType};
use weft_ir::ids::NodeId;
use weft_ir::shape::{Dim, Shape, Sym};

/// Token ids are below this; tables that they index have at least so many rows.
pub const IDS: usize = 8;

/// Longest context of a sequence, in tokens.
pub const MAX_SEQ: usize = 8;

/// Most sequences of a step.
pub const MAX_BATCH: usize = 2;

/// Adds values to the pool.
type Recipe = fn(&mut Maker);

/// Recipes and how often they are taken.
const RECIPES: [(Recipe, usize); 18] = [
    (blocks::norm, 14),
    (blocks::linear, 12),
    (blocks::shared_linears, 7),
    (blocks::gated, 8),
    (blocks::residual, 10),
    (blocks::rotary, 5),
    (pointwise::elementwise, 12),
    (pointwise::integers, 5),
    (pointwise::reduction, 8),
    (pointwise::softmax, 6),
    (movement::chain, 12),
    (movement::join, 7),
    (movement::gather, 5),
    (state::cache, 7),
    (state::sample, 3),
    (attention::cached, 14),
    (attention::direct, 6),
    (routed::mixture, 6),
];

/// A graph being made.
pub struct Maker {
    /// Builder of the graph.
    pub g: GraphBuilder,
    /// Choices.
    pub rng: Rng,
    /// Type of activations and most weights.
    pub dtype: DType,
    /// Float values so far, of any shape of at least one axis.
    pub floats: Vec<NodeId>,
    /// Other values that the graph may output.
    pub others: Vec<NodeId>,
    names: usize,
}

/// A constant extent.
pub fn c(n: usize) -> Dim {
    Dim::Const(n)
}

/// The tokens of the step.
pub const TOKENS: Dim = Dim::Sym(Sym::Tokens);

impl Maker {
    fn new(seed: u64) -> Maker {
        let mut rng = Rng::new(seed);
        let dtype = rng.pick(&[DType::BF16, DType::BF16, DType::F16, DType::F32]);
        Maker { g: GraphBuilder::new(), rng, dtype, floats: Vec::new(), others: Vec::new(), names: 0 }
    }

    /// A size of a feature axis.
    pub fn size(&mut self) -> usize {
        self.rng.pick(&[1, 2, 3, 4, 6, 8, 8, 12, 16, 16, 24, 32, 48])
    }

    /// A name that no other weight or state has.
    pub fn name(&mut self, kind: &str) -> String {
        self.names += 1;
        format!("{kind}{}", self.names)
    }

    /// A weight of the model's type, or sometimes one that is stored otherwise and decoded or cast.
    ///
    /// The kind says how its values are chosen (see `data.rs`).
    pub fn weight(&mut self, kind: &str, shape: &[usize]) -> NodeId {
        let name = self.name(kind);
        let dims: Shape = shape.iter().map(|&n| c(n)).collect();
        let blocks = shape.last().is_some_and(|n| n.is_multiple_of(32));
        let stored = match self.rng.below(12) {
            0 if blocks => Encoding::Q8_0,
            1 if blocks => self.rng.pick(&[Encoding::Q4_0, Encoding::Q4_1]),
            2 => Encoding::Plain(DType::F32),
            3 => Encoding::Plain(DType::F16),
            _ => Encoding::Plain(self.dtype),
        };
        let w = self.g.weight(&name, ValueType { encoding: stored, shape: dims });
        let w = if matches!(stored, Encoding::Plain(_)) { w } else { self.g.decode(w) };
        self.g.cast(w, self.dtype)
    }

    /// A weight along the last axis of a value, in f32, ready to be broadcast.
    pub fn along(&mut self, kind: &str, like: NodeId) -> NodeId {
        let shape = self.g.shape(like);
        let n = shape.last().and_then(|d| d.as_const()).unwrap_or(1);
        let w = self.weight(kind, &[n]);
        let mut line = vec![c(1); shape.len()];
        if let Some(last) = line.last_mut() {
            *last = c(n);
        }
        let w = self.g.reshape(w, line);
        self.g.cast(w, DType::F32)
    }

    /// A step input over tokens as i32 of a shape with one symbolic axis, or another.
    pub fn input_as(&mut self, input: Input, shape: Shape) -> NodeId {
        let x = self.g.input(input);
        self.g.reshape(x, shape)
    }

    /// A new value [rows, n] of the model's type that comes from nothing before.
    pub fn source(&mut self) -> NodeId {
        let n = self.size();
        let x = match self.rng.below(8) {
            0 => {
                // Waves of the positions.
                let p = self.input_as(Input::Positions, vec![TOKENS, c(1)]);
                let p = self.g.cast(p, DType::F32);
                let f: Vec<f32> = (0..n).map(|i| 0.9f32.powi(i as i32)).collect();
                let f = self.g.constant(f, vec![c(1), c(n)]);
                let angle = self.g.binary(weft_ir::scalar::Binary::Mul, p, f);
                let wave = self.rng.pick(&[weft_ir::scalar::Unary::Sin, weft_ir::scalar::Unary::Cos]);
                self.g.unary(wave, angle)
            }
            1 => {
                // Rows of a table, a constant number of them.
                let rows = self.rng.within(1, 6);
                let table = self.weight("table", &[IDS, n]);
                let at = self.g.iota(0, vec![c(rows)]);
                self.g.gather(table, at)
            }
            2 => {
                let table = self.weight("table", &[IDS, n]);
                let s = self.g.input(Input::Sequences);
                self.g.gather(table, s)
            }
            _ => {
                let rows = self.rng.within(IDS, IDS + 5);
                let table = self.weight("table", &[rows, n]);
                let ids = self.g.input(Input::TokenIds);
                self.g.gather(table, ids)
            }
        };
        self.g.cast(x, self.dtype)
    }

    /// A float value of the pool, of any shape.
    pub fn any(&mut self) -> NodeId {
        if self.floats.is_empty() || self.rng.chance(8) {
            let x = self.source();
            self.floats.push(x);
            return x;
        }
        // Recent ones more often, so that graphs are deep.
        let n = self.floats.len();
        let back = self.rng.below(n).min(self.rng.below(n));
        self.floats[n - 1 - back]
    }

    /// A value [rows, n] with a known n.
    pub fn matrix(&mut self) -> NodeId {
        for _ in 0..6 {
            let x = self.any();
            let shape = self.g.shape(x);
            if shape.len() == 2 && shape[1].as_const().is_some() {
                return x;
            }
        }
        let x = self.source();
        self.floats.push(x);
        x
    }

    /// A value [tokens, n].
    pub fn token_matrix(&mut self) -> NodeId {
        for _ in 0..8 {
            let x = self.matrix();
            if self.g.shape(x)[0] == TOKENS {
                return x;
            }
        }
        let n = self.size();
        let table = self.weight("table", &[IDS, n]);
        let ids = self.g.input(Input::TokenIds);
        let x = self.g.gather(table, ids);
        self.floats.push(x);
        x
    }

    /// Elements of a shape, symbols at their largest.
    pub fn elements(&self, shape: &[Dim]) -> usize {
        shape.iter().map(|d| d.as_const().unwrap_or(2 * MAX_SEQ)).product()
    }

    /// Adds a float value to the pool.
    pub fn keep(&mut self, x: NodeId) {
        if !self.floats.contains(&x) {
            self.floats.push(x);
        }
    }

    /// The type that scores, norms and sums are computed in, mostly.
    pub fn wide(&mut self) -> DType {
        if self.rng.chance(85) { DType::F32 } else { self.dtype }
    }
}

/// The graph of a seed.
///
/// # Panics
/// When a recipe makes what does not fit: a fault of the generator.
pub fn graph(seed: u64) -> Graph {
    let mut m = Maker::new(seed);
    let total: usize = RECIPES.iter().map(|r| r.1).sum();
    for i in 0..m.rng.within(1, 6) {
        let mut at = m.rng.below(total);
        let chosen = RECIPES.iter().position(|r| {
            let here = at < r.1;
            at = at.saturating_sub(r.1);
            here
        });
        m.g.enter(format!("part.{i}"));
        RECIPES[chosen.unwrap_or(0)].0(&mut m);
        m.g.leave();
    }
    finish(m, seed)
}

fn finish(mut m: Maker, seed: u64) -> Graph {
    // The last value, and some others.
    let mut values: Vec<NodeId> = m.floats.last().copied().into_iter().collect();
    for _ in 0..m.rng.below(3) {
        let x = m.any();
        values.push(x);
    }
    if !m.others.is_empty() && m.rng.chance(60) {
        let x = m.others[m.rng.below(m.others.len())];
        values.push(x);
    }
    let mut named = Vec::new();
    for x in values {
        if !named.contains(&x) || m.rng.chance(20) {
            // Twice the same value is a valid graph, too.
            m.g.output(&format!("y{}", named.len()), x);
            named.push(x);
        }
    }
    m.g.finish().unwrap_or_else(|why| panic!("seed {seed}: {why}"))
}
