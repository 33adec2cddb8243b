//! Forms of the step as graphs: one for each way that products are made.

use crate::context::Options;
use crate::eqsat::{self, CostModel};
use crate::products::Products;
use crate::schedule::Bucket;
use std::sync::Arc;
use weft_ir::graph::Graph;
use weft_ir::ids::NodeId;

/// A form of the step: the graph that serves some buckets.
pub(super) struct Variant {
    /// The graph.
    pub graph: Graph,
    /// How its products are made; none below level 2, where one form serves all.
    pub products: Option<Products>,
    /// For each node, the node of the graph as built with the same value.
    pub origins: Vec<Option<NodeId>>,
    /// For each node, how it came about.
    pub histories: Vec<Option<Arc<eqsat::History>>>,
}

impl Variant {
    /// Name in tables.
    pub fn name(&self) -> &'static str {
        match (self.graph.is_encoder(), self.products) {
            (true, _) => Products::Tiles.name(true),
            (false, Some(products)) => products.name(false),
            (false, None) => "all",
        }
    }

    /// Name of the dump after rewriting.
    pub fn dump_name(&self) -> &'static str {
        match (self.graph.is_encoder(), self.products) {
            (true, _) => "eqsat-encode",
            (false, Some(Products::Streams)) => "eqsat-decode",
            (false, Some(Products::Batches)) => "eqsat-batch",
            (false, Some(Products::ShortTiles)) => "eqsat-short",
            (false, Some(Products::Tiles)) => "eqsat-prefill",
            (false, None) => "eqsat",
        }
    }

    /// Whether it is the form of a bucket.
    pub fn serves(&self, bucket: &Bucket, o: &Options) -> bool {
        self.products.is_none_or(|products| products == Products::of(bucket, o))
    }

    /// Whether its steps are chains of launches rather than of work.
    pub fn few_tokens(&self) -> bool {
        self.products.is_some_and(Products::compute_left)
    }
}

/// The graph optimised for each form of the step that there are buckets of; below level 2 it is one and the same.
pub(super) fn variants(
    graph: &Graph,
    buckets: &[Bucket],
    o: &Options,
) -> Result<(Vec<Variant>, Vec<eqsat::Report>), String> {
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
    let rewritten = eqsat::run(graph, &models, &o.selection)?;
    let mut variants = Vec::new();
    let mut reports = Vec::new();
    for (model, (graph, report)) in models.into_iter().zip(rewritten) {
        let (origins, histories) = (report.origins.clone(), report.histories.clone());
        variants.push(Variant { graph, products: Some(model.products), origins, histories });
        reports.push(report);
    }
    Ok((variants, reports))
}
