//! Schedules that were measured: a readable text, one a line, that `weft tune` writes and compiling looks into.
//!
//! A key is what decides the speed of a schedule and is the same in every decode bucket: so a row's sums have the
//! same order in all of them that stream. Rows of the bucket and the length of the context are not in it, but noted.

use super::GEMV_ROWS;
use super::adapt::adapted;
use super::candidates::{few, legal};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use weft_ir::dtype::DType;
use weft_ir::kernel::MAX_CLUSTER;
use weft_ir::plan::{Compute, FirstLoads, Schedule, ScheduleSource, Work};
use weft_ir::shape::Bindings;
use weft_ir::target::Target;

/// The database that comes with Weft.
const SHIPPED: &str = include_str!("../../schedules/h200.ron");
/// How much larger or smaller a product may be for its neighbour's schedule to be taken: the product over its extents.
/// Farther away the estimate is nearer to what tuning finds (docs/performance.md, ten shapes that were never tuned).
const PRODUCT_REACH: f64 = 1.5;
/// The same of an attention.
const ATTENTION_REACH: f64 = 8.0;
/// How much farther a shape of fewer keys is than one of as many times more: its keys may take a round more here.
const SHORTER: f64 = 1.75;
/// How far attention that makes its rows is from one that reads them: what it waits for differs.
const OTHER_ROWS: f64 = 0.5;
/// Most bytes of a row that are brought to L2 ahead.
const MOST_AHEAD: u32 = 1 << 20;
/// Longest context that anything is measured with.
const MOST_CONTEXT: usize = 1 << 40;

/// Shape of a work, by family.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Shape {
    /// A skinny product.
    Gemv {
        /// Rows of the right operand.
        columns: usize,
        /// Length of the products.
        k: usize,
        /// Rows of the right operand of a point.
        group: usize,
        /// Whether the left operand is computed.
        computed: bool,
    },
    /// Attention of few tokens.
    AttentionRow {
        /// Heads of keys and values.
        kv_heads: usize,
        /// Query heads for each.
        group: usize,
        /// Elements of a key.
        head_dim: usize,
        /// Elements of a value.
        value_dim: usize,
        /// Keys that a token sees of the longest context, up to an eighth of a power of two.
        keys: usize,
        /// Whether it makes its queries and own keys itself.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        made: bool,
        /// Columns of the projection that it makes of its outputs, 0 where it does not.
        #[serde(default, skip_serializing_if = "none")]
        projected: usize,
    },
}

fn none(columns: &usize) -> bool {
    *columns == 0
}

/// What a schedule was measured for.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Key {
    /// Target: `sm_90`.
    pub target: String,
    /// Device profile: `H200`.
    pub device: String,
    /// Type of what is streamed: the right operand, the keys.
    pub dtype: DType,
    /// Shape.
    pub shape: Shape,
}

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

/// The key of a work in a decode bucket; `None` for works that are not tuned.
pub fn key(work: &Work, bind: &Bindings, target: &Target, device: &str) -> Option<Key> {
    let (shape, streamed) = match &work.compute {
        Compute::MatMul(m) if m.row.is_none() => {
            let computed = m.plain_left().is_none() || !m.stages.is_empty();
            (Shape::Gemv { columns: m.columns(), k: m.k, group: m.group, computed }, m.b)
        }
        Compute::Attention(a) if few(a, bind) => {
            let (kv_heads, group, head_dim, value_dim) = (a.kv_heads, a.group, a.head_dim, a.value_dim);
            let keys = rounded(a.visible(bind.context));
            let made = a.prologue.is_some();
            let projected = a.projection.as_ref().map_or(0, |p| p.columns);
            (Shape::AttentionRow { kv_heads, group, head_dim, value_dim, keys, made, projected }, a.keys)
        }
        Compute::Loop(_)
        | Compute::MatMul(_)
        | Compute::Attention(_)
        | Compute::Steps(_)
        | Compute::Routed(_)
        | Compute::Grouping(_)
        | Compute::Penalize(_)
        | Compute::Sample(_)
        | Compute::Advance(_) => return None,
    };
    let dtype = work.reads.get(streamed.index())?.dtype;
    Some(Key { target: target.name.into(), device: device.into(), dtype, shape })
}

/// Keys up to a whole number of eighths of a power of two. Attention takes keys in rounds of all its blocks: what takes
/// 1280 in one round is the fastest where there are no more, and not where there are 2048.
pub fn rounded(keys: usize) -> usize {
    keys.next_multiple_of((keys.next_power_of_two() / 8).max(1))
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
        | Schedule::AttentionTile { .. }
        | Schedule::RowSteps { .. }
        | Schedule::RoutedGemv { .. }
        | Schedule::RoutedGemm { .. }
        | Schedule::GroupPairs { .. }
        | Schedule::AdvanceRows { .. }
        | Schedule::SampleRow { .. } => Err("schedules of this family are not measured".into()),
    }
}

impl Shape {
    /// Largest ratio of extents to another shape whose schedule is taken over.
    fn reach(&self) -> f64 {
        match self {
            Shape::Gemv { .. } => PRODUCT_REACH,
            Shape::AttentionRow { .. } => ATTENTION_REACH,
        }
    }

    /// How far another shape is, as the logarithm of the ratio of extents; `None` when nothing can be taken over.
    fn distance(&self, other: &Shape) -> Option<f64> {
        let apart = |a: usize, b: usize| (a.max(1) as f64 / b.max(1) as f64).ln().abs();
        match (self, other) {
            (
                Shape::Gemv { columns, k, group, computed },
                Shape::Gemv { columns: c, k: other_k, group: g, computed: p },
            ) if group == g && computed == p => Some(apart(*columns, *c) + apart(*k, *other_k)),
            (
                Shape::AttentionRow { kv_heads, group, head_dim, value_dim, keys, made, projected },
                Shape::AttentionRow {
                    kv_heads: h,
                    group: g,
                    head_dim: d,
                    value_dim: v,
                    keys: n,
                    made: m,
                    projected: p,
                },
            ) if none(projected) == none(p) => {
                let heads = apart(*kv_heads, *h) + apart(*group, *g);
                let sizes = apart(*head_dim, *d) + apart(*value_dim, *v);
                let other = if made == m { 0.0 } else { OTHER_ROWS };
                // Splits follow the context anyway.
                let context = apart(*keys, *n) * if n < keys { SHORTER } else { 1.0 };
                Some(heads + sizes + context / 8.0 + other + apart(*projected, *p))
            }
            (Shape::Gemv { .. }, _) | (Shape::AttentionRow { .. }, _) => None,
        }
    }
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
            let key = Key { target: l.target, device: l.device, dtype: l.dtype, shape: l.shape };
            let (ns, estimated_ns, tried) = (l.ns, l.estimated_ns, l.tried);
            let (schedule, of, context, step) = (l.schedule, l.of, l.context, l.step);
            let text = format!("{} {} {:?}", key.device, key.dtype, key.shape);
            possible(&schedule).map_err(|why| format!("{text}: {why}"))?;
            if context > MOST_CONTEXT {
                return Err(format!("{text}: context: {context}, at most {MOST_CONTEXT}"));
            }
            let measured = Measured { schedule, ns, estimated_ns, tried, of, context, step };
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

    /// Adds an entry, or replaces it.
    pub fn insert(&mut self, key: Key, measured: Measured) {
        self.entries.insert(key, measured);
    }

    /// Takes over all entries of another, which replace those of equal key.
    pub fn merge(&mut self, other: Database) {
        self.entries.extend(other.entries);
    }

    /// The schedule of a work: as measured for its shape, else that of the nearest measured shape of the same family
    /// and type, scaled; `None` when there is none near, or none that is legal here.
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
        let mut near: Vec<(f64, &Measured)> = near
            .into_iter()
            .filter_map(|(k, m)| Some((wanted.shape.distance(&k.shape)?, m)))
            .filter(|(distance, _)| *distance <= wanted.shape.reach().ln())
            .collect();
        // Stable: of equal distances the lower key's.
        near.sort_by(|a, b| a.0.total_cmp(&b.0));
        near.into_iter().find_map(|(distance, m)| {
            let schedule = adapted(work, bind, m, distance == 0.0, target)?;
            legal(work, &schedule, target).ok()?;
            let source = if distance == 0.0 { ScheduleSource::Measured } else { ScheduleSource::Neighbour };
            Some((schedule, source))
        })
    }
}
