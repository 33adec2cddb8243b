//! What the passes work on: from the graph to the parts of a plan, each there once its pass has run.

use super::variant::{Variant, variants};
use super::{Error, Form};
use crate::context::Options;
use crate::fusion::{self, BodyContracts, Contract};
use crate::memory_plan::Arena;
use crate::products::Products;
use crate::provenance::{self, Provenance};
use crate::schedule::{Bucket, Chosen};
use crate::{
    attention_projection, attention_prologue, eqsat, generation, launch, lower, memory_plan, schedule,
    siblings,
};
use rayon::prelude::*;
use std::collections::{BTreeMap, BTreeSet};
use weft_ir::graph::Graph;
use weft_ir::plan::{Body, Buffer, Dispatch, Entry, Generation, KernelSpec, Plan, Role, Work};
use weft_ir::shape::Bindings;
use weft_ir::verify;

/// State of a compilation. Lists of the later passes are empty until they have run.
pub(super) struct Ir<'g> {
    /// The graph as built.
    graph: &'g Graph,
    buckets: Vec<Bucket>,
    /// Forms of the step, as rewritten.
    variants: Vec<Variant>,
    /// For each of them, the sites of the fusions.
    sites: Vec<fusion::Sites>,
    /// Buffers, works and dispatches of all forms, and what became of each one's nodes.
    lowered: lower::Lowered,
    placed: Vec<lower::Placed>,
    /// For each form, what became of the rows of its attentions, of the projections behind them, and of its sibling
    /// loops.
    prologues: Vec<Contract>,
    projections: Vec<Contract>,
    loops: Vec<Contract>,
    /// The form that a generation repeats, and what goes from one of its steps to the next.
    advance: Option<(Vec<usize>, Dispatch)>,
    kernels: Vec<KernelSpec>,
    /// For each bucket, its kernels and its arena.
    chosen: Vec<Chosen>,
    arenas: Vec<Arena>,
    /// Dispatches with their launches.
    bodies: Vec<Body>,
    generation: Option<Generation>,
    options: Options,
}

fn lines<T: std::fmt::Display>(faults: &[T]) -> String {
    faults.iter().map(|f| format!("  {f}")).collect::<Vec<_>>().join("\n")
}

impl<'g> Ir<'g> {
    /// A graph, before any pass.
    pub fn new(graph: &'g Graph, options: &Options) -> Ir<'g> {
        let (seq, batch, level) = (options.max_seq, options.max_batch, options.opt_level);
        let buckets = match graph.is_encoder() {
            true => schedule::encoder_buckets(seq, batch, level),
            false => schedule::buckets(seq, batch, level),
        };
        Ir {
            graph,
            buckets,
            variants: Vec::new(),
            sites: Vec::new(),
            lowered: lower::Lowered::default(),
            placed: Vec::new(),
            prologues: Vec::new(),
            projections: Vec::new(),
            loops: Vec::new(),
            advance: None,
            kernels: Vec::new(),
            chosen: Vec::new(),
            arenas: Vec::new(),
            bodies: Vec::new(),
            generation: None,
            options: options.clone(),
        }
    }

    /// Whether the graph as built is valid.
    pub fn verify_graph(&self) -> Result<(), Error> {
        verify::graph::verify(self.graph).map_err(|f| Error::Graph(lines(&f)))?;
        Ok(())
    }

    /// Equality saturation, for each form of the step.
    pub fn rewrite(&mut self) -> Result<Vec<eqsat::Report>, Error> {
        let (variants, reports) = variants(self.graph, &self.buckets, &self.options).map_err(Error::Lower)?;
        self.variants = variants;
        for v in &self.variants {
            verify::graph::verify(&v.graph).map_err(|f| Error::Graph(lines(&f)))?;
        }
        Ok(reports)
    }

    /// Sites of the fusions; below level 1 nothing is fused. Forms whose graphs are equal have the same.
    pub fn find_fusions(&mut self) -> Result<(), Error> {
        if self.options.opt_level == 0 {
            self.sites = vec![fusion::Sites::default(); self.variants.len()];
            return Ok(());
        }
        let first = |v: &Variant| self.variants.iter().position(|w| w.graph == v.graph);
        let first: Vec<usize> = self.variants.iter().filter_map(first).collect();
        let distinct: BTreeSet<usize> = first.iter().copied().collect();
        let distinct: Vec<usize> = distinct.into_iter().collect();
        let find = |&i: &usize| Ok((i, fusion::find(&self.variants[i].graph, &self.options.selection)?));
        let found: Result<BTreeMap<usize, fusion::Sites>, String> = distinct.par_iter().map(find).collect();
        let found = found.map_err(Error::Lower)?;
        self.sites = first.iter().map(|i| found[i].clone()).collect();
        Ok(())
    }

    /// Graphs become buffers, works and dispatches.
    pub fn lower(&mut self) -> Result<(), Error> {
        let all = self.variants.iter().zip(&self.sites).map(|(v, sites)| {
            let products = v.products.unwrap_or(Products::Tiles);
            lower::Variant { graph: &v.graph, products, sites }
        });
        let all: Vec<_> = all.collect();
        (self.lowered, self.placed) = lower::run(&self.options, &all).map_err(Error::Lower)?;
        Ok(())
    }

    /// Loops that make the rows of an attention become a part of it.
    pub fn make_prologues(&mut self) {
        let selection = &self.options.selection;
        let each = self.placed.iter_mut().enumerate();
        let each = each.map(|(i, p)| attention_prologue::run(&mut self.lowered, i, p, selection));
        self.prologues = each.collect();
    }

    /// Projections behind the attentions of steps that stream become a part of these.
    pub fn make_projections(&mut self) {
        let mut made = Vec::new();
        for (i, v) in self.variants.iter().enumerate() {
            let mine = self.buckets.iter().filter(|b| self.body_of(b) == i);
            let binds: Vec<Bindings> = mine.map(|b| b.bind).collect();
            let (selection, on) = (&self.options.selection, (&binds[..], self.options.target));
            made.push(match v.products {
                Some(Products::Streams) => {
                    attention_projection::run(&mut self.lowered, i, &mut self.placed[i], on, selection)
                }
                Some(Products::Batches | Products::ShortTiles | Products::Tiles) | None => {
                    attention_projection::nowhere(selection)
                }
            });
        }
        self.projections = made;
    }

    /// Independent loops of steps of few tokens become one.
    pub fn merge_siblings(&mut self) {
        let selection = &self.options.selection;
        let each = self.placed.iter_mut().zip(&self.variants).enumerate();
        let each = each.map(|(i, (placed, v))| match v.few_tokens() {
            true => siblings::run(&mut self.lowered, i, placed, selection),
            false => siblings::nowhere(selection),
        });
        self.loops = each.collect();
    }

    /// What became of the fusions, for each form of the step.
    pub fn contracts(&self) -> Vec<BodyContracts> {
        let of = self.variants.iter().zip(&self.sites).zip(&self.placed);
        let each = |(i, ((v, s), p)): (usize, ((&Variant, _), &lower::Placed))| {
            let selection = &self.options.selection;
            let how = (&p.forms, &p.projected[..]);
            let fusions = fusion::contracts(&v.graph, s, selection, &p.dispatches, how);
            let merged = [&self.prologues, &self.projections, &self.loops].map(|of| of[i].clone());
            BodyContracts { body: v.name(), contracts: fusions.into_iter().chain(merged).collect() }
        };
        of.enumerate().map(each).collect()
    }

    /// What goes from one decode step to the next on the device, where a plan samples few rows.
    pub fn add_advance(&mut self) {
        let decodes = |v: &Variant| !v.graph.is_encoder() && v.products.is_none_or(Products::decode);
        let rows = self.buckets.iter().filter(|b| b.role == Role::Decode).map(|b| b.bind.rows).max();
        let few = rows.is_some_and(|n| n <= generation::MOST_ROWS);
        let lower::Lowered { buffers, works, bodies } = &mut self.lowered;
        let of = self.variants.iter().enumerate().filter(|(_, v)| few && decodes(v)).map(|(i, _)| i);
        let of: Vec<usize> = of.collect();
        let decode: Vec<&[Dispatch]> = of.iter().map(|i| &bodies[*i][..]).collect();
        let advance = generation::advance(buffers, works, &decode, self.options.max_seq);
        self.advance = advance.map(|dispatch| (of, dispatch));
    }

    /// A schedule for each work in each bucket that uses it.
    pub fn schedule(&mut self) {
        let works = |body: &Vec<Dispatch>| -> BTreeSet<u32> { body.iter().map(|d| d.work).collect() };
        let uses: Vec<BTreeSet<u32>> = self.lowered.bodies.iter().map(works).collect();
        let advances =
            |b: &Bucket, w| b.role == Role::Decode && self.advance.as_ref().is_some_and(|(_, d)| d.work == w);
        let used = |b: &Bucket, w| uses[self.body_of(b)].contains(&w) || advances(b, w);
        let on = (self.options.target, &*self.options.schedules);
        (self.kernels, self.chosen) = schedule::run(&self.lowered.works, &self.buckets, &used, on);
    }

    /// An arena for each bucket.
    pub fn place(&mut self) {
        let place = |(b, chosen): (&Bucket, &Chosen)| {
            let spec = |d: &Dispatch| chosen.get(&d.work).and_then(|k| self.kernels.get(k.index()));
            let scratch = |d: &Dispatch| spec(d).and_then(|k| k.scratch.as_ref());
            let dispatches = &self.lowered.bodies[self.body_of(b)];
            memory_plan::run(&self.lowered.buffers, dispatches, &b.bind, &scratch)
        };
        self.arenas = self.buckets.iter().zip(&self.chosen).map(place).collect();
    }

    /// The edges between dispatches, and from one step of a generation to the next.
    pub fn launch(&mut self) {
        let programmatic = self.options.target.features.programmatic_launch;
        let body = |(i, dispatches): (usize, &Vec<Dispatch>)| {
            let mine = self.buckets.iter().zip(&self.arenas).filter(|(b, _)| self.body_of(b) == i);
            let mine: Vec<&Arena> = mine.map(|(_, arena)| arena).collect();
            let launches = launch::run(dispatches, &mine, &vec![programmatic; dispatches.len()]);
            Body { dispatches: dispatches.clone(), launches }
        };
        self.bodies = self.lowered.bodies.iter().enumerate().map(body).collect();
        self.generation = self
            .advance
            .clone()
            .map(|(of, advance)| generation::run(&of, &self.lowered.bodies, advance, programmatic));
    }

    /// Whether the plan is valid.
    pub fn verify_plan(&self) -> Result<(), Error> {
        verify::plan::verify(&self.plan()).map_err(|f| Error::Plan(lines(&f)))
    }

    /// Where each work came from.
    pub fn provenance(&self) -> Provenance {
        let of = self.variants.iter().zip(&self.sites).zip(&self.placed);
        let body = |((v, sites), placed)| {
            let v: &Variant = v;
            provenance::Body { placed, origins: &v.origins, histories: &v.histories, sites }
        };
        let bodies: Vec<_> = of.map(body).collect();
        provenance::gather(&self.lowered, &bodies, &self.options.selection)
    }

    /// The rewritten graphs, with the names of their dumps.
    pub fn graphs(&self) -> impl Iterator<Item = (&'static str, &Graph)> {
        self.variants.iter().map(|v| (v.dump_name(), &v.graph))
    }

    /// The plan as text, as far as it is known.
    pub fn text(&self) -> String {
        self.plan().to_ron().unwrap_or_else(|e| e.to_string())
    }

    /// The plan, and the forms of the step that its bodies are. Nothing of a deep model's plan is copied for it.
    pub fn finish(mut self) -> (Plan, Vec<Form>) {
        let parts = Parts {
            buffers: std::mem::take(&mut self.lowered.buffers),
            works: std::mem::take(&mut self.lowered.works),
            kernels: std::mem::take(&mut self.kernels),
            bodies: std::mem::take(&mut self.bodies),
            chosen: std::mem::take(&mut self.chosen),
            arenas: std::mem::take(&mut self.arenas),
            generation: self.generation.take(),
        };
        let plan = self.assemble(parts);
        let form = |(v, p): (&Variant, lower::Placed)| Form {
            name: v.name(),
            graph: p.graph,
            dispatches: p.dispatches,
        };
        (plan, self.variants.iter().zip(self.placed).map(form).collect())
    }

    /// The form of a bucket's steps.
    fn body_of(&self, bucket: &Bucket) -> usize {
        self.variants.iter().position(|v| v.serves(bucket, &self.options)).unwrap_or(0)
    }

    /// The plan as far as it is known: without arenas, launches or kernels before their passes.
    fn plan(&self) -> Plan {
        let unlaunched = |d: &Vec<Dispatch>| Body { dispatches: d.clone(), launches: Vec::new() };
        let bodies = match self.bodies.is_empty() {
            true => self.lowered.bodies.iter().map(unlaunched).collect(),
            false => self.bodies.clone(),
        };
        self.assemble(Parts {
            buffers: self.lowered.buffers.clone(),
            works: self.lowered.works.clone(),
            kernels: self.kernels.clone(),
            bodies,
            chosen: self.chosen.clone(),
            arenas: self.arenas.clone(),
            generation: self.generation.clone(),
        })
    }

    fn assemble(&self, parts: Parts) -> Plan {
        let arenas = parts.arenas.into_iter().chain(std::iter::repeat_with(Arena::default));
        let entry = |((bucket, kernels), arena): ((&Bucket, Chosen), Arena)| Entry {
            name: bucket.name.clone(),
            role: bucket.role,
            bind: bucket.bind,
            body: self.body_of(bucket) as u32,
            kernels,
            arena: arena.placements,
            scratch: arena.scratch,
            arena_bytes: arena.bytes,
            unshared_bytes: arena.unshared_bytes,
        };
        let o = &self.options;
        Plan {
            target: o.target.name.into(),
            dtype: o.dtype,
            opt_level: o.opt_level,
            max_seq: o.max_seq,
            max_batch: o.max_batch,
            entries: self.buckets.iter().zip(parts.chosen).zip(arenas).map(entry).collect(),
            buffers: parts.buffers,
            works: parts.works,
            kernels: parts.kernels,
            bodies: parts.bodies,
            generation: parts.generation,
        }
    }
}

/// What passes made of a plan.
struct Parts {
    buffers: Vec<Buffer>,
    works: Vec<Work>,
    kernels: Vec<KernelSpec>,
    bodies: Vec<Body>,
    chosen: Vec<Chosen>,
    arenas: Vec<Arena>,
    generation: Option<Generation>,
}
