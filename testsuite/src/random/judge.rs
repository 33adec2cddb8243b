//! Whether a plan computes what its graph does.
//!
//! A result in f64 may differ by 1e-9 of its size. In f32, and rounding to stored types, it may be twice as far from f64
//! as the graph is in the same precision, with a floor of one unit in the last place: the rule of every kernel. A result
//! that is farther is looked at again:
//! - Where measured noise of the roundings' size moves it by more than that unit (cancellation, jumps; [`super::noise`]),
//!   it is held to what the noise does, or else to the plain rule over several inputs, as the next.
//! - Where it does not, the plain rule is the only one, but a result of a few elements is far or close by chance, and so
//!   is the graph's own: the rule holds of the root mean square over several inputs.
//!
//! [`Judged`] says which.

use super::check::{Judged, Stage};
use super::data::{Steps, Weights, weights};
use super::noise::{noisy, roundoff};
use super::values::{Value, distance, run_graph, run_plan, size};
use weft_ir::dtype::DType;
use weft_ir::graph::Graph;
use weft_ir::plan::Plan;
use weft_ir::reference::Precision;

/// Unit of noise that stands for f64 itself.
const TINY: f64 = 1.0 / (1u64 << 50) as f64;
/// Inputs that a result is looked at with that is far on one of them.
const INPUTS: u64 = 16;

/// A graph with its data and its own results.
pub(super) struct About<'a> {
    graph: &'a Graph,
    weights: Weights,
    steps: Steps,
    data: u64,
    oracle: Vec<Value>,
    f32: Vec<Value>,
    rounded: Vec<Value>,
}

/// How far a result is from f64, and what it is held to.
#[derive(Clone, Copy)]
struct Gap {
    /// Root mean square of the differences, and elements that are not finite where f64's are, or the other way round.
    far: f64,
    odd: usize,
    /// The same of the graph in this precision.
    own_far: f64,
    own_odd: usize,
    /// One unit in the last place.
    floor: f64,
}

impl Gap {
    /// By the rule of every kernel.
    fn is_close(&self) -> bool {
        self.odd <= self.own_odd && self.far <= (2.0 * self.own_far).max(self.floor)
    }
}

type Wrong = (Stage, String);

impl<'a> About<'a> {
    /// # Errors
    /// What the interpreter says.
    pub(super) fn new(graph: &'a Graph, data: u64) -> Result<Self, String> {
        let (weights, steps) = (weights(graph, data), Steps::new(data));
        let oracle = run_graph::<f64>(graph, &weights, &steps, Precision::F64)?;
        let f32 = run_graph::<f32>(graph, &weights, &steps, Precision::F32)?;
        let rounded = run_graph::<f32>(graph, &weights, &steps, Precision::Rounded)?;
        Ok(About { graph, weights, steps, data, oracle, f32, rounded })
    }

    pub(super) fn weights(&self) -> &Weights {
        &self.weights
    }

    /// Compares a plan with the graph; by which rule.
    ///
    /// # Errors
    /// Where it is another, and in what.
    pub(super) fn compare(&self, plan: &Plan) -> Result<Judged, Wrong> {
        let body = |body: usize| {
            let of_body = |(stage, what)| (stage, format!("body {body}: {what}"));
            self.compare_body((plan, body)).map_err(of_body)
        };
        (0..plan.bodies.len()).try_fold(Judged::Plain, |judged, i| Ok(judged.max(body(i)?)))
    }

    fn compare_body(&self, plan: (&Plan, usize)) -> Result<Judged, Wrong> {
        let stages = [Stage::F64, Stage::F32, Stage::Rounded];
        stages.into_iter().try_fold(Judged::Plain, |judged, stage| Ok(judged.max(self.close(stage, plan)?)))
    }

    fn run(&self, stage: Stage, plan: (&Plan, usize)) -> Result<Vec<Value>, Wrong> {
        let (graph, weights, steps) = (self.graph, &self.weights, &self.steps);
        let got = match stage {
            Stage::F32 => run_plan::<f32>(graph, plan, weights, steps, Precision::F32),
            Stage::Rounded => run_plan::<f32>(graph, plan, weights, steps, Precision::Rounded),
            _ => run_plan::<f64>(graph, plan, weights, steps, Precision::F64),
        };
        got.map_err(|e| (Stage::Run, e))
    }

    /// How far a result is from f64, and how far the graph's own is.
    fn gap(&self, stage: Stage, i: usize, value: &Value) -> Gap {
        let oracle = &self.oracle[i];
        let own = match stage {
            Stage::F32 => &self.f32,
            Stage::Rounded => &self.rounded,
            _ => &self.oracle,
        };
        let (far, odd) = distance(value, oracle);
        let (own_far, own_odd) = distance(&own[i], oracle);
        let ulp = match stage {
            Stage::F32 => 2.0 * roundoff(DType::F32),
            Stage::Rounded => 2.0 * roundoff(oracle.dtype),
            _ => 1e-9,
        };
        let exact = !oracle.dtype.is_float();
        let floor = if exact { 0.0 } else { ulp * size(oracle).max(1e-6) };
        Gap { far, odd, own_far, own_odd, floor }
    }

    /// Compares a plan's results with f64.
    fn close(&self, stage: Stage, plan: (&Plan, usize)) -> Result<Judged, Wrong> {
        // What roundings can do is looked at only where something is far.
        let mut shaken: Option<Vec<Vec<Value>>> = None;
        let mut judged = Judged::Plain;
        for (i, value) in self.run(stage, plan)?.iter().enumerate() {
            let oracle = &self.oracle[i];
            let gap = self.gap(stage, i, value);
            if gap.is_close() {
                continue;
            }
            let runs = match &shaken {
                Some(runs) => runs,
                None => shaken.insert(self.shaken(stage)?),
            };
            let moved: Vec<(f64, usize)> = runs.iter().map(|run| distance(&run[i], oracle)).collect();
            let most = moved.iter().map(|m| m.0).fold(0.0, f64::max);
            let most_odd = moved.iter().map(|m| m.1).max().unwrap_or(0);
            let Gap { far, odd, own_far, own_odd, floor } = gap;
            let by_noise = far <= (2.0 * most).max(2.0 * own_far).max(floor)
                && (odd == 0 || odd <= 2 * most_odd.max(own_odd));
            // Without amplification the plain rule is the only one.
            let rule = if most > floor || most_odd > 0 { Judged::ByNoise } else { Judged::OnAverage };
            if by_noise && (rule == Judged::ByNoise || self.close_on_average(stage, i, plan, gap)?) {
                judged = judged.max(rule);
                continue;
            }
            // Elements that are one number by chance move together, which noise of each does not.
            if rule == Judged::ByNoise && self.close_on_average(stage, i, plan, gap)? {
                judged = judged.max(Judged::OnAverage);
                continue;
            }
            let at = first_difference(value, oracle);
            return Err((
                stage,
                format!(
                    "{}: rmse {far:.3e}, {odd} not finite; the graph's own {own_far:.3e}, {own_odd}; roundings \
                     give {most:.3e}; size {:.3e}; {at}",
                    value.name,
                    size(oracle)
                ),
            ));
        }
        Ok(judged)
    }

    /// Whether a result is close by the plain rule on the mean of several inputs. In f64 there is no chance: nothing is
    /// rounded there.
    fn close_on_average(
        &self,
        stage: Stage,
        i: usize,
        plan: (&Plan, usize),
        first: Gap,
    ) -> Result<bool, Wrong> {
        if stage == Stage::F64 {
            return Ok(false);
        }
        let mut all = vec![first];
        for more in 1..INPUTS {
            let data = self.data.wrapping_add(more << 32);
            let about = About::new(self.graph, data).map_err(|e| (Stage::Reference, e))?;
            let values = about.run(stage, plan)?;
            all.push(about.gap(stage, i, &values[i]));
        }
        let mean = |of: &dyn Fn(&Gap) -> f64| {
            (all.iter().map(|g| of(g) * of(g)).sum::<f64>() / all.len() as f64).sqrt()
        };
        let together = Gap {
            far: mean(&|g| g.far),
            odd: all.iter().map(|g| g.odd).sum(),
            own_far: mean(&|g| g.own_far),
            own_odd: all.iter().map(|g| g.own_odd).sum(),
            floor: mean(&|g| g.floor),
        };
        Ok(together.is_close())
    }

    /// The graph's results with noise.
    fn shaken(&self, stage: Stage) -> Result<Vec<Vec<Value>>, Wrong> {
        let unit = |d: DType| match stage {
            Stage::F32 => roundoff(DType::F32),
            Stage::Rounded => roundoff(d),
            _ => TINY,
        };
        let one = |phase: usize| {
            let graph = noisy(self.graph, &unit, phase);
            run_graph::<f64>(&graph, &self.weights, &self.steps, Precision::F64)
        };
        // A result may have one element: few runs would be close by chance.
        (0..12).map(one).collect::<Result<_, String>>().map_err(|e| (Stage::Reference, e))
    }
}

/// Where two results differ most.
fn first_difference(a: &Value, b: &Value) -> String {
    if a.shape != b.shape {
        return format!("shape {:?}, expected {:?}", a.shape, b.shape);
    }
    let gap = |i: &usize| {
        let d = (a.elements[*i] - b.elements[*i]).abs();
        if d.is_nan() && a.elements[*i].to_bits() != b.elements[*i].to_bits() { f64::INFINITY } else { d }
    };
    let worst = (0..a.elements.len()).max_by(|x, y| gap(x).total_cmp(&gap(y)));
    worst.map_or(String::new(), |i| {
        format!("element {i} of {:?} is {}, expected {}", a.shape, a.elements[i], b.elements[i])
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::root;
    use crate::random::options;
    use weft_ir::graph::parse;

    /// A graph of few elements with `more` before its output.
    fn graph(more: &str, output: usize) -> Graph {
        let path = root().join("regressions/few_elements.graph");
        let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        let text = text.replace("output \"y\" = %21", &format!("{more}output \"y\" = %{output}"));
        parse(&text).unwrap_or_else(|e| panic!("{e}"))
    }

    /// One rounding more than the graph has, of a sum that is some times as large as the result, is more than twice as far:
    /// on some inputs close by chance, on none far by chance.
    #[test]
    fn a_rounding_too_many_is_not_excused_by_chance() {
        let coarse = "%22 = constant [2.5] -> f32[1, 1]\n\
                      %23 = cast %22 -> f16[1, 1]\n\
                      %24 = broadcast %23 -> f16[tokens, 2]\n\
                      %25 = add %21, %24 -> f16[tokens, 2]\n\
                      %26 = sub %25, %24 -> f16[tokens, 2]\n";
        let (graph, coarse) = (graph("", 21), graph(coarse, 26));
        let compiled = weft_passes::compile(&coarse, options(0)).unwrap_or_else(|e| panic!("{e}"));
        let judge = |data| About::new(&graph, data).unwrap_or_else(|e| panic!("{e}")).compare(&compiled.plan);
        let all: Vec<Result<Judged, Wrong>> = (0..200).map(judge).collect();
        let count = |of: &dyn Fn(&Result<Judged, Wrong>) -> bool| all.iter().filter(|r| of(r)).count();
        let refused = count(&|r| matches!(r, Err((Stage::Rounded, _))));
        assert!(refused > 120, "{refused} of 200 are refused");
        assert_eq!(count(&|r| matches!(r, Ok(Judged::OnAverage))), 0);
    }
}
