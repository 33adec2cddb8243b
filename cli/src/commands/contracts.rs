//! Fusion contracts: what `weft compile` says of each fusion's sites, and `--require`.

use crate::errors::{Error, Result};
use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt;
use weft_passes::fusion::{BodyContracts, Contract};

/// `--require [BODY:]FUSION=all|N`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Requirement {
    /// Form of the step; the first one (decode steps, or an encoder's) when none is given.
    body: Option<String>,
    fusion: String,
    least: Least,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Least {
    All,
    Sites(usize),
}

impl Requirement {
    /// Reads `attention=all`, `rope=60`, `prefill:residual=all`.
    ///
    /// # Errors
    /// What is wrong, with the known names.
    pub fn parse(text: &str) -> Result<Requirement, String> {
        let (name, least) = text.split_once('=').ok_or("give FUSION=all or FUSION=N")?;
        let (body, fusion) = match name.split_once(':') {
            Some((body, fusion)) => (Some(body.to_string()), fusion),
            None => (None, name),
        };
        let bodies = weft_passes::products::FORMS;
        if let Some(body) = body.as_deref().filter(|b| !bodies.contains(b)) {
            return Err(format!("'{body}' is no form of the step; there are {}", bodies.join(", ")));
        }
        let known = weft_passes::contract_names();
        if !known.contains(&fusion) {
            return Err(format!("known fusions: {}", known.join(", ")));
        }
        let least = match least {
            "all" => Least::All,
            n => Least::Sites(n.parse().map_err(|_| format!("'{n}' is neither 'all' nor a number"))?),
        };
        Ok(Requirement { body, fusion: fusion.into(), least })
    }

    /// Why it does not hold; `None` where it does.
    fn fault(&self, all: &[BodyContracts]) -> Option<String> {
        let body = match &self.body {
            Some(name) => all.iter().find(|b| b.body == name),
            None => all.first(),
        };
        let Some(body) = body else {
            return Some(match &self.body {
                Some(name) => format!("{}: the plan has no {name} steps", self.fusion),
                None => format!("{}: fusions are found at --opt-level 2 only", self.fusion),
            });
        };
        let c = body.contracts.iter().find(|c| c.fusion == self.fusion)?;
        let holds = match self.least {
            Least::All => c.matched == c.candidates && c.candidates > 0,
            Least::Sites(n) => c.matched >= n,
        };
        if holds {
            return None;
        }
        let wanted = match self.least {
            Least::All => "all".into(),
            Least::Sites(n) => n.to_string(),
        };
        let (name, matched, sites) = (&self.fusion, c.matched, c.candidates);
        let mut text = format!("{name}={wanted}: {matched} of {sites} sites in {} steps", body.body);
        if sites == 0 {
            text.push_str("\n  the model has no site of it");
        }
        for (why, at) in reasons(c) {
            text.push_str(&format!("\n  {why}: {}", places(&at)));
        }
        Some(text)
    }
}

/// Checks all requirements.
///
/// # Errors
/// Those that do not hold, with the sites that did not fuse and why.
pub fn check(required: &[Requirement], all: &[BodyContracts]) -> Result<()> {
    let faults: Vec<String> = required.iter().filter_map(|r| r.fault(all)).collect();
    if faults.is_empty() {
        return Ok(());
    }
    Err(Error::failed(format!("--require does not hold; no bundle was written\n{}", faults.join("\n"))))
}

/// Places of sites that did not fuse, by reason.
fn reasons(c: &Contract) -> BTreeMap<&str, Vec<&str>> {
    let mut reasons: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for miss in &c.misses {
        reasons.entry(&miss.why).or_default().push(&miss.scope);
    }
    reasons
}

/// The first places and how many more there are.
fn places(at: &[&str]) -> String {
    let few = at.iter().take(2).map(|s| if s.is_empty() { "the model" } else { s }).collect::<Vec<_>>();
    match at.len() - few.len() {
        0 => few.join(", "),
        more => format!("{} and {more} more", few.join(", ")),
    }
}

/// A fusion in the summary.
#[derive(Clone, Debug, Serialize)]
pub struct FusionRow {
    fusion: &'static str,
    numerics: &'static str,
    enabled: bool,
    /// By form of the step.
    steps: BTreeMap<&'static str, Sites>,
}

#[derive(Clone, Debug, Serialize)]
struct Sites {
    matched: usize,
    candidates: usize,
    /// Matched sites at which another fusion stands for this one.
    instead: BTreeMap<&'static str, usize>,
    misses: Vec<MissRow>,
}

#[derive(Clone, Debug, Serialize)]
struct MissRow {
    why: String,
    sites: usize,
    first: String,
}

/// The table's rows.
pub fn rows(all: &[BodyContracts]) -> Vec<FusionRow> {
    let Some(first) = all.first() else { return Vec::new() };
    let row = |(i, c): (usize, &Contract)| FusionRow {
        fusion: c.fusion,
        numerics: c.numerics.name(),
        enabled: c.enabled,
        steps: all.iter().filter_map(|b| Some((b.body, sites(b.contracts.get(i)?)))).collect(),
    };
    first.contracts.iter().enumerate().map(row).collect()
}

fn sites(c: &Contract) -> Sites {
    let miss = |(why, at): (&str, Vec<&str>)| MissRow {
        why: why.into(),
        sites: at.len(),
        first: at.first().map_or_else(String::new, |s| (*s).to_string()),
    };
    Sites {
        matched: c.matched,
        candidates: c.candidates,
        instead: c.instead.clone(),
        misses: reasons(c).into_iter().map(miss).collect(),
    }
}

/// Writes the table: a line a fusion that has sites, with those that did not fuse below it.
pub fn write(f: &mut fmt::Formatter<'_>, rows: &[FusionRow]) -> fmt::Result {
    let Some(first) = rows.first() else { return Ok(()) };
    let bodies: Vec<&str> = first.steps.keys().copied().collect();
    let heads: Vec<String> = bodies.iter().map(|b| format!("{b:>9}")).collect();
    writeln!(f, "  fusion               numerics     {}  sites in one kernel / sites", heads.join(" "))?;
    for row in rows.iter().filter(|r| r.steps.values().any(|s| s.candidates > 0)) {
        let cells: Vec<String> =
            row.steps.values().map(|s| format!("{:>9}", format!("{}/{}", s.matched, s.candidates))).collect();
        let off = if row.enabled { "" } else { "  (off)" };
        writeln!(f, "  {:<20} {:<12} {}{off}", row.fusion, row.numerics, cells.join(" "))?;
        for (body, s) in &row.steps {
            for (other, n) in &s.instead {
                writeln!(f, "    {body}: {n} by {other} instead")?;
            }
            for m in s.misses.iter().filter(|_| row.enabled) {
                let place = if m.first.is_empty() { "the model" } else { &m.first };
                let more = if m.sites > 1 { format!(" and {} more", m.sites - 1) } else { String::new() };
                writeln!(f, "    {body}: not {place}{more}: {}", m.why)?;
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{Least, Requirement};

    #[test]
    fn requirements_are_read() {
        let r = Requirement::parse("attention=all").expect("reads");
        assert_eq!((r.body, r.least), (None, Least::All));
        let r = Requirement::parse("prefill:rope=60").expect("reads");
        assert_eq!((r.body.as_deref(), r.least), (Some("prefill"), Least::Sites(60)));
        for (text, said) in [
            ("attention", "FUSION=all"),
            ("attention=most", "neither 'all' nor a number"),
            ("atention=all", "known fusions: rms-norm"),
            ("train:attention=all", "there are decode, batch, short, prefill, encode"),
        ] {
            let why = Requirement::parse(text).expect_err(text);
            assert!(why.contains(said), "{why}");
        }
    }
}
