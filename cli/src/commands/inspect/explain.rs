//! Where one kernel came from.

use crate::bundle::{self, Bundle};
use crate::commands::print_json;
use crate::errors::{Error, Result};
use serde::Serialize;
use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::io::Write as _;
use std::path::Path;
use weft_ir::bundle::EXPLAIN;
use weft_ir::plan::Entry;
use weft_passes::provenance::{RuleUse, Site, WorkSource};

/// A kernel and where it came from.
#[derive(Clone, Debug, Serialize)]
struct Explained<'a> {
    kernel: &'a str,
    schedule: String,
    fallback: Option<&'a str>,
    /// Entries that launch it.
    entries: Vec<&'a str>,
    #[serde(flatten)]
    source: &'a WorkSource,
}

/// Explains a kernel.
pub fn run(path: &Path, bundle: &Bundle, name: &str, json: bool) -> Result<()> {
    let plan = &bundle.plan;
    let at = super::kernel(plan, name)?;
    let spec = &plan.kernels[at];
    let provenance = bundle::read_explain(path)?;
    let work = plan.works.get(spec.work as usize).map(|w| w.name.as_str());
    let source = provenance.works.get(spec.work as usize).filter(|w| Some(w.work.as_str()) == work);
    let source = source.ok_or_else(|| {
        let file = path.join(EXPLAIN);
        Error::input(format!("{}: not that of this plan; compile the model again", file.display()))
    })?;
    let used: Vec<&Entry> =
        plan.entries.iter().filter(|e| e.kernels.values().any(|k| k.index() == at)).collect();
    let explained = Explained {
        kernel: name,
        schedule: format!("{:?}, {}", spec.schedule, spec.source.name()),
        fallback: spec.fallback.as_deref(),
        entries: used.iter().map(|e| e.name.as_str()).collect(),
        source,
    };
    if json {
        return print_json(&explained);
    }
    // Sites of the body that the kernel is launched from, not of other forms of the step.
    let bodies: BTreeSet<u32> = used.iter().take(1).map(|e| e.body).collect();
    let sites: Vec<&Site> = source.sites.iter().filter(|s| bodies.contains(&s.body)).collect();
    std::io::stdout().lock().write_all(text(&explained, &sites).as_bytes())?;
    Ok(())
}

fn text(e: &Explained<'_>, sites: &[&Site]) -> String {
    let mut out = String::new();
    // Writing to a string does not fail.
    let _ = writeln!(out, "{} computes {} in {}", e.kernel, e.source.work, e.entries.join(", "));
    let _ = writeln!(out, "schedule      {}", e.schedule);
    if let Some(why) = e.fallback {
        let _ = writeln!(out, "fallback      {why}");
    }
    if let [first, .., last] = sites {
        let _ = writeln!(out, "sites         {}, × {} (to {})", first.scope, sites.len(), last.scope);
    } else if let [one] = sites {
        let _ = writeln!(out, "site          {}", one.scope);
    }
    let rules = |used: &[RuleUse]| list(used.iter().map(|r| format!("{} ({})", r.rule, r.numerics)));
    let _ = writeln!(out, "fusions       {}", rules(&e.source.fusions));
    let _ = writeln!(out, "lowering      {}", rules(&e.source.lowering));
    rewrites(&mut out, e.source);
    if let Some(first) = sites.first() {
        let made = match first.made {
            0 => String::new(),
            n => format!("; {n} values were not in it: rules made them"),
        };
        let _ = writeln!(out, "built graph   nodes {}{made}", ranges(&first.built));
        weights(&mut out, sites);
    }
    let _ = writeln!(
        out,
        "ops of the first site: the node of the built graph with the same value (new: rules made it), the node as \
         it was lowered"
    );
    let mut scope = "";
    for op in &e.source.ops {
        if op.scope != scope {
            scope = &op.scope;
            let _ = writeln!(out, "  {scope}");
        }
        let built = op.built.map_or("new".to_owned(), |n| format!("%{n}"));
        let text = op.text.rsplit_once(" @\"").map_or(op.text.as_str(), |(text, _)| text);
        let _ = writeln!(out, "  {built:>6}  {text}");
        if !op.weights.is_empty() {
            let _ = writeln!(out, "          from {}", op.weights.join(", "));
        }
    }
    out
}

fn list(names: impl Iterator<Item = String>) -> String {
    let names: Vec<String> = names.collect();
    if names.is_empty() { "none".into() } else { names.join(", ") }
}

fn rewrites(out: &mut String, source: &WorkSource) {
    for r in &source.rewrites {
        let _ = writeln!(out, "rewrite       {} ({}) at {}", r.rule, r.numerics, r.site);
        let _ = writeln!(out, "              from {}\n              to   {}", r.before, r.after);
    }
    for a in &source.alternatives {
        let (cost, chosen) = (a.cost_s * 1e6, a.chosen_cost_s * 1e6);
        let instead = match chosen > 0.0 {
            true => format!("what was chosen takes {chosen:.2}"),
            false => "what was chosen takes nothing more: others paid for its product".into(),
        };
        let _ = writeln!(out, "not chosen    {}\n              {cost:.2} µs; {instead}", a.what);
    }
}

/// Weights of the first site, and how many others read weights of their own.
fn weights(out: &mut String, sites: &[&Site]) {
    let Some(first) = sites.first().filter(|s| !s.weights.is_empty()) else { return };
    for (i, name) in first.weights.iter().enumerate() {
        let _ = writeln!(out, "{:<13} {name}", if i == 0 { "weights" } else { "" });
    }
    let distinct: BTreeSet<&[String]> = sites.iter().map(|s| s.weights.as_slice()).collect();
    if distinct.len() > 1 {
        let _ = writeln!(out, "{:<13} × {}: each site has its own", "", distinct.len());
    }
}

/// `%3–%7, %9`.
fn ranges(ids: &[u32]) -> String {
    let mut parts: Vec<(u32, u32)> = Vec::new();
    for &id in ids {
        match parts.last_mut() {
            Some((_, to)) if *to + 1 == id => *to = id,
            _ => parts.push((id, id)),
        }
    }
    let text = |&(from, to): &(u32, u32)| match to - from {
        0 => format!("%{from}"),
        _ => format!("%{from}–%{to}"),
    };
    if parts.is_empty() { "none".into() } else { parts.iter().map(text).collect::<Vec<_>>().join(", ") }
}

#[cfg(test)]
mod tests {
    use super::{ranges, rewrites};
    use weft_passes::provenance::{Alternative, Rewrite, WorkSource};

    #[test]
    fn neighbouring_ids_are_one_range() {
        assert_eq!(ranges(&[3, 4, 5, 9, 11, 12]), "%3–%5, %9, %11–%12");
        assert_eq!(ranges(&[]), "none");
    }

    #[test]
    fn rewrites_and_what_was_not_chosen_are_lines() {
        let text = |s: &str| s.to_owned();
        let rewrite = Rewrite {
            rule: text("merge-linears"),
            numerics: text("exact"),
            site: text("model.layers.0.self_attn"),
            before: text("3 products"),
            after: text("1 product"),
        };
        let alternative = Alternative { what: text("3 products"), cost_s: 5e-6, chosen_cost_s: 3.5e-6 };
        let source =
            WorkSource { rewrites: vec![rewrite], alternatives: vec![alternative], ..WorkSource::default() };
        let mut out = String::new();
        rewrites(&mut out, &source);
        let lines: Vec<&str> = out.lines().collect();
        assert_eq!(
            lines,
            [
                "rewrite       merge-linears (exact) at model.layers.0.self_attn",
                "              from 3 products",
                "              to   1 product",
                "not chosen    3 products",
                "              5.00 µs; what was chosen takes 3.50",
            ]
        );
    }
}
