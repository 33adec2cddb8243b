//! `weft inspect`: the kernels of a bundle.

mod code;
mod explain;
mod kernels;

use crate::args::InspectArgs;
use crate::bundle;
use crate::errors::{Error, Result};
use weft_ir::plan::{Entry, Plan, Role};
use weft_ir::target::Target;

/// Lists the kernels of an entry, prints one, or explains one.
pub fn run(args: &InspectArgs) -> Result<()> {
    if !bundle::is_bundle(&args.bundle) {
        let path = args.bundle.display();
        return Err(Error::input(format!("{path}: not a bundle; make one with weft compile")));
    }
    let bundle = bundle::read(&args.bundle)?;
    match (&args.kernel, &args.explain) {
        (Some(kernel), _) => code::run(&bundle, kernel, args.emit),
        (None, Some(kernel)) => explain::run(&args.bundle, &bundle, kernel, args.json),
        (None, None) => kernels::run(args, &bundle),
    }
}

fn target(plan: &Plan) -> Result<&'static Target> {
    Target::parse(&plan.target).map_err(|e| Error::input(format!("plan.ron: target: {e}")))
}

/// The entry of a name; without one, decode of one sequence, else the first.
fn entry<'a>(plan: &'a Plan, name: Option<&str>) -> Result<&'a Entry> {
    let names = || plan.entries.iter().map(|e| e.name.as_str()).collect::<Vec<_>>().join(", ");
    let found = match name {
        Some(name) => plan.entries.iter().find(|e| e.name == name),
        None => {
            let single = |e: &&Entry| e.role == Role::Decode && e.bind.tokens == 1;
            plan.entries.iter().find(single).or(plan.entries.first())
        }
    };
    let wanted = name.unwrap_or("the first");
    found.ok_or_else(|| Error::input(format!("--entry {wanted}: not in the bundle, which has {}", names())))
}

/// Position of a kernel in the plan.
fn kernel(plan: &Plan, name: &str) -> Result<usize> {
    plan.kernels.iter().position(|k| k.name == name).ok_or_else(|| {
        let mut near: Vec<(f64, &str)> = plan
            .kernels
            .iter()
            .map(|k| (nearness(name, &k.name), k.name.as_str()))
            .filter(|(score, _)| *score > 0.6)
            .collect();
        near.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(b.1)));
        let near: Vec<&str> = near.iter().take(3).map(|(_, n)| *n).collect();
        let hint = match near[..] {
            [] => "weft inspect BUNDLE lists them".to_owned(),
            _ => format!("the nearest are {}", near.join(", ")),
        };
        Error::input(format!("{name}: the bundle has no such kernel; {hint}"))
    })
}

/// How near two kernel names are: 1 and more where all words of one are in the other.
fn nearness(wanted: &str, name: &str) -> f64 {
    let all = wanted.split('_').all(|w| name.split('_').any(|n| n == w));
    strsim::jaro_winkler(wanted, name) + f64::from(u8::from(all))
}

/// A scope without what leads to the layer: `self_attn.q_proj`.
fn short_scope(scope: &str) -> &str {
    let mut end = 0;
    for part in scope.split('.') {
        end += part.len() + 1;
        if !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit()) {
            return scope.get(end..).filter(|s| !s.is_empty()).unwrap_or(scope);
        }
    }
    scope
}

#[cfg(test)]
mod tests {
    use super::short_scope;

    #[test]
    fn a_short_scope_is_what_follows_the_layer() {
        assert_eq!(short_scope("model.layers.12.mlp.gate_proj"), "mlp.gate_proj");
        assert_eq!(short_scope("model.norm"), "model.norm");
        assert_eq!(short_scope("h.0"), "h.0");
    }
}
