//! The list of passes: from a graph to a plan.

use crate::context::{Context, Options};
use crate::eqsat::{self, CostModel};
use crate::memory_plan::Arena;
use crate::products::Products;
use crate::provenance::{self, Provenance};
use crate::{fusion, generation, launch, lower, memory_plan, schedule, siblings};
use rayon::prelude::*;
use std::collections::BTreeSet;
use std::sync::Arc;
use weft_ir::graph::Graph;
use weft_ir::ids::NodeId;
use weft_ir::plan::{Body, Dispatch, Entry, KernelSpec, Plan, Role};
use weft_ir::verify;

/// Why a graph did not compile.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The graph that a builder made is not valid.
    #[error("the graph is not valid:\n{0}")]
    Graph(String),
    /// No rule lowers it.
    #[error("cannot lower the graph: {0}")]
    Lower(String),
    /// A pass made an invalid plan: a fault of Weft.
    #[error("the plan is not valid, which is a fault of Weft; please report it:\n{0}")]
    Plan(String),
}

/// A plan, and how it was made.
#[derive(Debug)]
pub struct Compiled {
    /// The plan.
    pub plan: Plan,
    /// Times and dumps.
    pub context: Context,
    /// Where each work came from.
    pub provenance: Provenance,
    /// For each body of the plan, the form of the step that it came from.
    pub forms: Vec<Form>,
}

/// A form of the step: a graph, and what became of its nodes.
#[derive(Debug)]
pub struct Form {
    /// `decode`, `short` (prefill and scoring steps of few tokens), `prefill` (the other steps of a decoder),
    /// `encode`, or `all`.
    pub name: &'static str,
    /// The graph as it was lowered.
    pub graph: Graph,
    /// For each dispatch of the body, the nodes that it computes.
    pub dispatches: Vec<Vec<NodeId>>,
}

fn lines<T: std::fmt::Display>(faults: &[T]) -> String {
    faults.iter().map(|f| format!("  {f}")).collect::<Vec<_>>().join("\n")
}

/// A form of the step: the graph that serves some buckets.
struct Variant {
    graph: Graph,
    /// How its products are made; none below level 2, where one form serves all.
    products: Option<Products>,
    /// For each node, the node of the graph as built with the same value.
    origins: Vec<Option<NodeId>>,
    histories: Vec<Option<Arc<eqsat::History>>>,
}

impl Variant {
    fn name(&self) -> &'static str {
        match (self.graph.is_encoder(), self.products) {
            (true, _) => Products::Tiles.name(true),
            (false, Some(products)) => products.name(false),
            (false, None) => "all",
        }
    }

    /// Name of the dump after rewriting.
    fn dump_name(&self) -> &'static str {
        match (self.graph.is_encoder(), self.products) {
            (true, _) => "eqsat-encode",
            (false, Some(Products::Streams)) => "eqsat-decode",
            (false, Some(Products::ShortTiles)) => "eqsat-short",
            (false, Some(Products::Tiles)) => "eqsat-prefill",
            (false, None) => "eqsat",
        }
    }

    /// Whether it is the form of a bucket.
    fn serves(&self, bucket: &schedule::Bucket, o: &Options) -> bool {
        self.products.is_none_or(|products| products == Products::of(bucket, o))
    }

    /// Whether its steps are chains of launches rather than of work.
    fn few_tokens(&self) -> bool {
        self.products.is_some_and(Products::compute_left)
    }
}

/// The graph optimised for each form of the step that there are buckets of; below level 2 it is one and the same.
fn variants(
    c: &Context,
    graph: &Graph,
    buckets: &[schedule::Bucket],
) -> Result<(Vec<Variant>, Vec<eqsat::Report>), Error> {
    let o = &c.options;
    if o.opt_level < 2 {
        let origins = graph.ids().map(Some).collect();
        let all = Variant { graph: graph.clone(), products: None, origins, histories: Vec::new() };
        return Ok((vec![all], Vec::new()));
    }
    let model = |products| {
        let largest = buckets.iter().rev().find(|b| Products::of(b, o) == products)?;
        Some(CostModel { bind: largest.bind, profile: o.target.profile, products })
    };
    let models: Vec<CostModel> = Products::ALL.into_iter().filter_map(model).collect();
    let rewritten = eqsat::run(graph, &models, &o.selection).map_err(Error::Lower)?;
    let mut variants = Vec::new();
    let mut reports = Vec::new();
    for (model, (graph, report)) in models.into_iter().zip(rewritten) {
        let (origins, histories) = (report.origins.clone(), report.histories.clone());
        variants.push(Variant { graph, products: Some(model.products), origins, histories });
        reports.push(report);
    }
    Ok((variants, reports))
}

/// Sites of the fusions; below level 1 nothing is fused.
fn find_sites(variants: &[Variant], o: &Options) -> Result<Vec<fusion::Sites>, String> {
    let find = |v: &Variant| match o.opt_level {
        0 => Ok(fusion::Sites::default()),
        _ => fusion::find(&v.graph, &o.selection),
    };
    let found: Vec<_> = variants.par_iter().map(find).collect();
    found.into_iter().collect()
}

/// A plan of what was lowered.
fn assemble(
    o: &Options,
    lowered: &lower::Lowered,
    (kernels, bodies, entries): (Vec<KernelSpec>, Vec<Body>, Vec<Entry>),
) -> Plan {
    Plan {
        target: o.target.name.into(),
        dtype: o.dtype,
        opt_level: o.opt_level,
        max_seq: o.max_seq,
        max_batch: o.max_batch,
        buffers: lowered.buffers.clone(),
        works: lowered.works.clone(),
        kernels,
        bodies,
        entries,
        generation: None,
    }
}

/// The bodies before launches are known.
fn unlaunched(lowered: &lower::Lowered) -> Vec<Body> {
    let body = |d: &Vec<_>| Body { dispatches: d.clone(), launches: Vec::new() };
    lowered.bodies.iter().map(body).collect()
}

/// A plan as dumps show it.
fn text(plan: &Plan) -> String {
    plan.to_ron().unwrap_or_else(|e| e.to_string())
}

/// What was lowered, as dumps before `schedule` show it.
fn unscheduled(o: &Options, lowered: &lower::Lowered) -> String {
    text(&assemble(o, lowered, (Vec::new(), unlaunched(lowered), Vec::new())))
}

/// Compiles a graph.
///
/// # Errors
/// An invalid graph, or one that the rules cannot lower.
pub fn compile(graph: &Graph, options: Options) -> Result<Compiled, Error> {
    let mut context = Context::new(options);
    let c = &mut context;
    c.timed("verify-graph", |_| verify::graph::verify(graph)).map_err(|f| Error::Graph(lines(&f)))?;
    c.dump("build", || graph.to_string());
    let o = c.options.clone();
    let buckets = match graph.is_encoder() {
        true => schedule::encoder_buckets(o.max_seq, o.max_batch, o.opt_level),
        false => schedule::buckets(o.max_seq, o.max_batch, o.opt_level),
    };
    let (variants, reports) = c.timed("eqsat", |c| variants(c, graph, &buckets))?;
    c.reports = reports;
    for v in &variants {
        verify::graph::verify(&v.graph).map_err(|f| Error::Graph(lines(&f)))?;
        c.dump_changed(v.dump_name(), "build", || v.graph.to_string());
    }
    let sites = c.timed("fusions", |_| find_sites(&variants, &o)).map_err(Error::Lower)?;
    let (mut lowered, mut placed) = c
        .timed("lower", |c| {
            let all = variants.iter().zip(&sites).map(|(v, sites)| lower::Variant {
                graph: &v.graph,
                products: v.products.unwrap_or(Products::Tiles),
                sites,
            });
            let all: Vec<_> = all.collect();
            lower::run(c, &all)
        })
        .map_err(Error::Lower)?;
    c.dump("lower", || unscheduled(&o, &lowered));
    if o.opt_level >= 2 {
        let loops: Vec<fusion::Contract> = c.timed("siblings", |_| {
            let each = placed.iter_mut().enumerate().map(|(i, placed)| match variants[i].few_tokens() {
                true => siblings::run(&mut lowered, i, placed, &o.selection),
                false => siblings::nowhere(&o.selection),
            });
            each.collect()
        });
        c.dump_changed("siblings", "lower", || unscheduled(&o, &lowered));
        c.contracts = c.timed("contracts", |_| {
            let of = variants.iter().zip(&sites).zip(&placed).zip(loops);
            of.map(|(((v, s), p), loops)| fusion::BodyContracts {
                body: v.name(),
                contracts: fusion::contracts(&v.graph, s, &o.selection, &p.dispatches, &p.forms)
                    .into_iter()
                    .chain([loops])
                    .collect(),
            })
            .collect()
        });
    }
    let decode =
        variants.iter().position(|v| !v.graph.is_encoder() && v.products.is_none_or(Products::stream));
    let rows = buckets.iter().filter(|b| b.role == Role::Decode).map(|b| b.bind.rows).max();
    let decode = decode.filter(|_| rows.is_some_and(|n| n <= generation::MOST_ROWS));
    let advance = c.timed("generation", |_| {
        let lower::Lowered { buffers, works, bodies } = &mut lowered;
        decode.and_then(|d| Some((d, generation::advance(buffers, works, &bodies[d], o.max_seq)?)))
    });
    let lowered = lowered;
    let last = if o.opt_level >= 2 { "siblings" } else { "lower" };
    c.dump_changed("generation", last, || unscheduled(&o, &lowered));
    let provenance = {
        let of = variants.iter().zip(&sites).zip(&placed);
        let bodies: Vec<provenance::Body<'_>> = of
            .map(|((v, sites), placed)| provenance::Body {
                placed,
                origins: &v.origins,
                histories: &v.histories,
                sites,
            })
            .collect();
        provenance::gather(&lowered, &bodies, &o.selection)
    };
    let forms = variants.iter().zip(placed).map(|(v, p)| Form {
        name: v.name(),
        graph: p.graph,
        dispatches: p.dispatches,
    });
    let forms: Vec<Form> = forms.collect();
    let plan = |kernels, bodies, entries| assemble(&o, &lowered, (kernels, bodies, entries));
    let body_of = |b: &schedule::Bucket| variants.iter().position(|v| v.serves(b, &o)).unwrap_or(0);
    let (kernels, chosen) = c.timed("schedule", |_| {
        let uses = |body: usize| -> BTreeSet<u32> { lowered.bodies[body].iter().map(|d| d.work).collect() };
        let uses: Vec<BTreeSet<u32>> = (0..lowered.bodies.len()).map(uses).collect();
        let advances = |b: &schedule::Bucket, w| {
            b.role == Role::Decode && advance.as_ref().is_some_and(|(_, d)| d.work == w)
        };
        let used = |b: &schedule::Bucket, w| uses[body_of(b)].contains(&w) || advances(b, w);
        schedule::run(&lowered.works, &buckets, &used, (o.target, &o.schedules))
    });
    let entries = |arenas: Vec<Arena>| -> Vec<Entry> {
        let entry = |((bucket, kernels), arena): ((&schedule::Bucket, &schedule::Chosen), Arena)| Entry {
            name: bucket.name.clone(),
            role: bucket.role,
            bind: bucket.bind,
            body: body_of(bucket) as u32,
            kernels: kernels.clone(),
            arena: arena.placements,
            scratch: arena.scratch,
            arena_bytes: arena.bytes,
            unshared_bytes: arena.unshared_bytes,
        };
        buckets.iter().zip(&chosen).zip(arenas).map(entry).collect()
    };
    let unplaced = || entries(vec![Arena::default(); buckets.len()]);
    c.dump("schedule", || text(&plan(kernels.clone(), unlaunched(&lowered), unplaced())));
    let arenas: Vec<Arena> = c.timed("memory-plan", |_| {
        let run = |(b, chosen): (&schedule::Bucket, &schedule::Chosen)| {
            let spec = |d: &Dispatch| chosen.get(&d.work).and_then(|k| kernels.get(k.index()));
            let scratch = |d: &Dispatch| spec(d).and_then(|k| k.scratch.as_ref());
            memory_plan::run(&lowered.buffers, &lowered.bodies[body_of(b)], &b.bind, &scratch)
        };
        buckets.iter().zip(&chosen).map(run).collect()
    });
    c.dump_changed("memory-plan", "schedule", || {
        text(&plan(kernels.clone(), unlaunched(&lowered), entries(arenas.clone())))
    });
    let bodies: Vec<Body> = c.timed("launch", |_| {
        let body = |(i, dispatches): (usize, &Vec<_>)| {
            let programmatic = vec![o.target.features.programmatic_launch; dispatches.len()];
            let mine = buckets.iter().zip(&arenas).filter(|(b, _)| body_of(b) == i).map(|(_, a)| a);
            let launches = launch::run(dispatches, &mine.collect::<Vec<_>>(), &programmatic);
            Body { dispatches: dispatches.clone(), launches }
        };
        lowered.bodies.iter().enumerate().map(body).collect()
    });
    let mut plan = plan(kernels, bodies, entries(arenas));
    plan.generation = advance.map(|(body, advance)| {
        let programmatic = o.target.features.programmatic_launch;
        generation::run(body, &lowered.bodies[body], advance, programmatic)
    });
    c.timed("verify-plan", |_| verify::plan::verify(&plan)).map_err(|f| Error::Plan(lines(&f)))?;
    c.dump_changed("launch", "memory-plan", || text(&plan));
    Ok(Compiled { plan, context, provenance, forms })
}
