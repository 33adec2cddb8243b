//! Schedules that were measured: a readable text, one a line, that `weft tune` writes and compiling looks into.

use super::GEMV_ROWS;
use super::adapt::adapted;
use super::candidates::legal;
use super::key::Beside;
use serde::{Deserialize, Serialize};
use std::cmp::Ordering;
use std::collections::BTreeMap;
use weft_ir::dtype::DType;
use weft_ir::kernel::MAX_CLUSTER;
use weft_ir::plan::{FirstLoads, Schedule, ScheduleSource, Work};
use weft_ir::shape::Bindings;
use weft_ir::target::Target;

pub use super::key::{Key, Shape, key, rounded};

/// The database that comes with Weft.
const SHIPPED: &str = include_str!("../../schedules/h200.ron");
/// Most bytes of a row that are brought to L2 ahead.
const MOST_AHEAD: u32 = 1 << 20;
/// Longest context that anything is measured with.
const MOST_CONTEXT: usize = 1 << 40;

/// A measured schedule.
#[derive(Clone, Debug, PartialEq)]
pub struct Measured {
    /// The fastest.
    pub schedule: Schedule,
    /// Median of a launch, in nanoseconds.
    pub ns: u64,
    /// The same of the schedule that the estimate chooses.
    pub estimated_ns: u64,
    /// Candidates that were measured.
    pub tried: usize,
    /// Candidates that there were.
    pub of: usize,
    /// Context it was measured with, in tokens.
    pub context: usize,
    /// What decided where both were timed in steps: the times of these.
    pub step: Option<StepTimes>,
}

/// Medians of a whole step, in nanoseconds, in turns beside the same other kernels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StepTimes {
    /// With the schedule.
    pub ns: u64,
    /// With the one that the estimate chooses.
    pub estimated_ns: u64,
}

/// A line of the text.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    target: String,
    device: String,
    dtype: DType,
    shape: Shape,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    longest: Option<usize>,
    schedule: Schedule,
    ns: u64,
    estimated_ns: u64,
    tried: usize,
    of: usize,
    context: usize,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    step: Option<StepTimes>,
}

/// Measured schedules by key.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Database {
    entries: BTreeMap<Key, Measured>,
}

/// Whether a schedule's figures are such as a kernel may have; what is legal for a work, [`legal`] says.
///
/// # Errors
/// The first that is not.
fn possible(schedule: &Schedule) -> Result<(), String> {
    let within = |name: &str, n: u32, most: u32| match (1..=most).contains(&n) {
        true => Ok(()),
        false => Err(format!("{name}: {n}, from 1 to {most} is possible")),
    };
    match schedule {
        Schedule::Gemv {
            rows,
            warps,
            lanes,
            split,
            columns,
            depth,
            blocks,
            staged: _,
            resident,
            behind,
            ahead,
            late: _,
        } => {
            within("rows", *rows, GEMV_ROWS as u32)?;
            within("warps", *warps, 32)?;
            within("lanes", *lanes, 32)?;
            within("split", *split, 32)?;
            within("columns", *columns, 1024)?;
            within("depth", *depth, 64)?;
            within("blocks", *blocks, 1 << 20)?;
            within("resident", *resident, 64)?;
            FirstLoads::new(*columns, *depth, *behind).map_err(|why| format!("behind: {why}"))?;
            match *ahead {
                0..=MOST_AHEAD => Ok(()),
                n => Err(format!("ahead: {n}, at most {MOST_AHEAD} bytes are possible")),
            }
        }
        Schedule::AttentionRow { warps, heads, depth, splits, cluster, late: _ }
        | Schedule::AttentionGroup { warps, heads, depth, splits, cluster, late: _ } => {
            within("warps", *warps, 32)?;
            within("heads", *heads, 1024)?;
            within("depth", *depth, 64)?;
            within("cluster", *cluster, MAX_CLUSTER)?;
            within("splits", *splits, 1 << 16)
        }
        Schedule::Elementwise { .. }
        | Schedule::WarpRow { .. }
        | Schedule::BlockRow { .. }
        | Schedule::Gemm { .. }
        | Schedule::WarpgroupGemm { .. }
        | Schedule::AttentionTile { .. }
        | Schedule::RowSteps { .. }
        | Schedule::RoutedGemv { .. }
        | Schedule::RoutedGemm { .. }
        | Schedule::GroupPairs { .. }
        | Schedule::AdvanceRows { .. }
        | Schedule::SampleRow { .. } => Err("schedules of this family are not measured".into()),
    }
}

/// Which of two is nearer.
fn order(beside: &Beside, other: &Beside) -> Ordering {
    beside.partial_cmp(other).unwrap_or(Ordering::Equal)
}

impl Database {
    /// The database that comes with Weft; empty, with a line that says why, were it damaged (a test reads it).
    pub fn shipped() -> Result<Database, String> {
        Database::parse(SHIPPED).map_err(|why| format!("the schedules that come with Weft: {why}"))
    }

    /// Reads the text.
    ///
    /// # Errors
    /// Line, column and what is wrong there; a figure that no kernel has; two lines for one key.
    pub fn parse(text: &str) -> Result<Database, String> {
        let lines: Vec<Line> = ron::from_str(text).map_err(|e| e.to_string())?;
        let mut database = Database::default();
        for l in lines {
            let (shape, longest) = (l.shape, l.longest);
            let key = Key { target: l.target, device: l.device, dtype: l.dtype, shape, longest };
            let (ns, estimated_ns, tried) = (l.ns, l.estimated_ns, l.tried);
            let (schedule, of, context, step) = (l.schedule, l.of, l.context, l.step);
            let text = format!("{} {} {:?}{}", key.device, key.dtype, key.shape, key.within());
            possible(&schedule).map_err(|why| format!("{text}: {why}"))?;
            for (name, tokens) in [("context", context), ("longest", longest.unwrap_or_default())] {
                if tokens > MOST_CONTEXT {
                    return Err(format!("{text}: {name}: {tokens}, at most {MOST_CONTEXT}"));
                }
            }
            let measured = Measured { schedule, ns, estimated_ns, tried, of, context, step };
            if let Some(longest) = longest
                && (longest != rounded(longest) || !matches!(key.shape, Shape::Gemv { .. }))
            {
                let nearest = rounded(longest);
                return Err(format!("{text}: longest: {longest}, only of a product, and as {nearest}"));
            }
            if database.entries.insert(key, measured).is_some() {
                return Err(format!("two lines for {text}: leave one"));
            }
        }
        Ok(database)
    }

    /// The text: a header, then a line for each entry, in the order of the keys.
    ///
    /// # Errors
    /// A value that RON cannot express.
    pub fn text(&self) -> Result<String, String> {
        let header = SHIPPED.split("[\n").next().unwrap_or_default();
        let mut out = String::new();
        // The header of an empty database says so.
        for line in header.lines() {
            out.push_str(line.strip_suffix(" Empty: none was measured yet.").unwrap_or(line));
            out.push('\n');
        }
        out.push_str("[\n");
        let config = || ron::ser::PrettyConfig::new().depth_limit(0);
        for (key, m) in &self.entries {
            let line = Line {
                target: key.target.clone(),
                device: key.device.clone(),
                dtype: key.dtype,
                shape: key.shape.clone(),
                longest: key.longest,
                schedule: m.schedule.clone(),
                ns: m.ns,
                estimated_ns: m.estimated_ns,
                tried: m.tried,
                of: m.of,
                context: m.context,
                step: m.step,
            };
            let line = ron::ser::to_string_pretty(&line, config()).map_err(|e| e.to_string())?;
            out.push_str(&format!("  {line},\n"));
        }
        out.push_str("]\n");
        Ok(out)
    }

    /// Number of entries.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there is no entry.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// All entries, in the order of their keys.
    pub fn iter(&self) -> impl Iterator<Item = (&Key, &Measured)> {
        self.entries.iter()
    }

    /// The entry of a key.
    pub fn get(&self, key: &Key) -> Option<&Measured> {
        self.entries.get(key)
    }

    /// The entry of a key, else that of its shape for any longest context: what compiling takes as measured.
    pub fn known(&self, key: &Key) -> Option<&Measured> {
        self.get(key).or_else(|| self.get(&key.for_any()))
    }

    /// What is known, else the entry of its shape for the nearest longest context: what compiling takes.
    pub fn taken(&self, key: &Key) -> Option<&Measured> {
        let any = key.for_any();
        let of_shape = self.entries.iter().filter(|(k, _)| k.for_any() == any);
        let nearest = of_shape.min_by(|(a, _), (b, _)| order(&key.beside(a), &key.beside(b)));
        nearest.map(|(_, measured)| measured)
    }

    /// Adds an entry, or replaces it.
    pub fn insert(&mut self, key: Key, measured: Measured) {
        self.entries.insert(key, measured);
    }

    /// Takes over all entries of another, which replace those of equal key.
    pub fn merge(&mut self, other: Database) {
        self.entries.extend(other.entries);
    }

    /// The schedule of a work: as measured for its shape, else that of the nearest measured shape of the same family
    /// and type, scaled; `None` when there is none near, or none that is legal here. Of equal shapes that with the plan's
    /// longest context goes first, then that for any, then the nearest other.
    pub fn find(&self, work: &Work, bind: &Bindings, target: &Target) -> Option<(Schedule, ScheduleSource)> {
        if self.is_empty() {
            return None;
        }
        let wanted = key(work, bind, target, target.profile.name)?;
        let near = self.entries.iter().filter(|(k, _)| k.target == wanted.target && k.dtype == wanted.dtype);
        // Figures of the target's usual GPU, if there are any; else of another of the family.
        let mut near: Vec<(&Key, &Measured)> = near.collect();
        if near.iter().any(|(k, _)| k.device == wanted.device) {
            near.retain(|(k, _)| k.device == wanted.device);
        }
        let mut near: Vec<(f64, Beside, &Measured)> = near
            .into_iter()
            .filter_map(|(k, m)| Some((wanted.shape.distance(&k.shape)?, wanted.beside(k), m)))
            .filter(|(distance, ..)| *distance <= wanted.shape.reach().ln())
            .collect();
        // Stable: of equal distances the lower key's.
        near.sort_by(|a, b| a.0.total_cmp(&b.0).then_with(|| order(&a.1, &b.1)));
        near.into_iter().find_map(|(distance, beside, m)| {
            let same = distance == 0.0;
            let schedule = adapted(work, bind, m, same, target)?;
            legal(work, &schedule, target).ok()?;
            let measured = same && matches!(beside, Beside::Same | Beside::Any);
            Some((schedule, if measured { ScheduleSource::Measured } else { ScheduleSource::Neighbour }))
        })
    }
}
