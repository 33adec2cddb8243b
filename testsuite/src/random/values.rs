//! Results of runs, and how far they are from each other.

use super::data::{Steps, Weights};
use weft_ir::dtype::DType;
use weft_ir::graph::Graph;
use weft_ir::plan::Plan;
use weft_ir::reference::{Data, Precision, Real, Tensor, load, load_plan, step, step_plan};

/// A result.
#[derive(Clone, Debug)]
pub struct Value {
    /// Step, and the name of the output or the state.
    pub name: String,
    /// Stored type.
    pub dtype: DType,
    /// Extents.
    pub shape: Vec<usize>,
    /// Elements, row-major.
    pub elements: Vec<f64>,
}

fn value<R: Real>(name: String, dtype: DType, t: &Tensor<R>) -> Result<Value, String> {
    let fault = |e| format!("{name}: {e}");
    let elements = match t.data() {
        Data::Real(_) => t.to_reals().map_err(fault)?.into_iter().map(R::to_f64).collect(),
        Data::Int(_) => t.to_ints().map_err(fault)?.into_iter().map(f64::from).collect(),
        Data::U32(_) => t.to_u32s().map_err(fault)?.into_iter().map(f64::from).collect(),
        Data::Bool(_) => t.to_bools().map_err(fault)?.into_iter().map(|b| f64::from(u8::from(b))).collect(),
    };
    Ok(Value { name, dtype, shape: t.shape().to_vec(), elements })
}

/// Runs the steps by the graph interpreter.
///
/// # Errors
/// What the interpreter says.
pub fn run_graph<R: Real>(
    graph: &Graph,
    weights: &Weights,
    steps: &Steps,
    precision: Precision,
) -> Result<Vec<Value>, String> {
    let loaded = load::<R>(graph, weights, precision).map_err(|e| e.to_string())?;
    let mut states = steps.states::<R>(graph);
    let mut out = Vec::new();
    for (i, (bind, inputs)) in steps.steps.iter().enumerate() {
        let got = step(graph, &loaded, bind, inputs, &mut states).map_err(|e| format!("step {i}: {e}"))?;
        collect(graph, i, &mut out, |name| got.get(name), |name| states.get(name))?;
    }
    Ok(out)
}

/// Runs the steps by the plan interpreter, by one of the plan's bodies.
///
/// # Errors
/// What the interpreter says, or an output that the plan does not give.
pub fn run_plan<R: Real>(
    graph: &Graph,
    (plan, body): (&Plan, usize),
    weights: &Weights,
    steps: &Steps,
    precision: Precision,
) -> Result<Vec<Value>, String> {
    let loaded = load_plan::<R>(plan, weights, precision).map_err(|e| e.to_string())?;
    let mut states = steps.states::<R>(graph);
    let mut out = Vec::new();
    for (i, (bind, inputs)) in steps.steps.iter().enumerate() {
        let got = step_plan(plan, &loaded, body, bind, inputs, &mut states)
            .map_err(|e| format!("step {i}: {e}"))?;
        collect(graph, i, &mut out, |name| got.get(name), |name| states.get(name))?;
    }
    Ok(out)
}

fn collect<'a, R: Real>(
    graph: &Graph,
    i: usize,
    out: &mut Vec<Value>,
    output: impl Fn(&str) -> Option<&'a Tensor<R>>,
    state: impl Fn(&str) -> Option<&'a Tensor<R>>,
) -> Result<(), String> {
    for o in &graph.outputs {
        let t = output(&o.name).ok_or_else(|| format!("step {i} gives no output {:?}", o.name))?;
        out.push(value(format!("step {i}, output {}", o.name), graph.ty(o.value).dtype(), t)?);
    }
    for s in &graph.state_out {
        let t = state(&s.name).ok_or_else(|| format!("step {i} loses the state {:?}", s.name))?;
        out.push(value(format!("step {i}, state {}", s.name), graph.ty(s.value).dtype(), t)?);
    }
    Ok(())
}

/// Root mean square of the differences where both are finite, and elements where only one is, or where
/// both are not but differ.
pub fn distance(a: &Value, b: &Value) -> (f64, usize) {
    if a.shape != b.shape {
        return (f64::INFINITY, a.elements.len().max(1));
    }
    let (mut sum, mut other) = (0.0, 0);
    for (x, y) in a.elements.iter().zip(&b.elements) {
        match (x.is_finite(), y.is_finite()) {
            (true, true) => sum += (x - y) * (x - y),
            (false, false) if x == y || (x.is_nan() && y.is_nan()) => {}
            _ => other += 1,
        }
    }
    ((sum / a.elements.len().max(1) as f64).sqrt(), other)
}

/// Root mean square of the finite elements.
pub fn size(a: &Value) -> f64 {
    let sum: f64 = a.elements.iter().filter(|x| x.is_finite()).map(|x| x * x).sum();
    (sum / a.elements.len().max(1) as f64).sqrt()
}
