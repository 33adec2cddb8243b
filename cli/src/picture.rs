//! Pictures of a part of a graph, as SVG: boxes with op and type, one colour for each kernel, weights dashed.
//!
//! `layout-rs` places the boxes and routes the edges; what is drawn is written here, so that equal graphs give
//! equal bytes.

use layout::adt::dag::NodeHandle;
use layout::core::base::Orientation;
use layout::core::color::Color;
use layout::core::format::{ClipHandle, RenderBackend};
use layout::core::geometry::{Point, Position};
use layout::core::style::StyleAttr;
use layout::std_shapes::shapes::{Arrow, Element, ShapeKind};
use layout::topo::layout::VisualGraph;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use weft_ir::graph::{Graph, Op, line, type_text};
use weft_ir::ids::NodeId;

const FONT: usize = 12;
/// Width of a character of the font, and height of a line.
const CELL: (f64, f64) = (7.3, 15.0);
/// Free space around a box.
const HALO: (f64, f64) = (14.0, 26.0);
const MARGIN: f64 = 20.0;

/// What to draw.
#[derive(Debug)]
pub struct Picture<'a> {
    /// Line above it.
    pub title: String,
    /// The graph.
    pub graph: &'a Graph,
    /// The layer that is drawn, as the start of the nodes' scopes.
    pub layer: &'a str,
    /// Kernels with the nodes that each computes; empty before there are any.
    pub kernels: Vec<(String, Vec<NodeId>)>,
}

/// The first layer of a graph: the scope up to its number (`model.layers.0`), or nothing.
pub fn first_layer(graph: &Graph) -> Option<String> {
    let number = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
    graph.nodes.iter().find_map(|node| {
        let parts: Vec<&str> = node.scope.split('.').collect();
        let at = parts.iter().position(|p| number(p))?;
        Some(parts[..=at].join("."))
    })
}

/// A box: its text and its SVG attributes.
struct Box {
    text: String,
    attributes: String,
}

/// Draws a picture.
pub fn svg(picture: &Picture<'_>) -> String {
    let graph = picture.graph;
    let load = graph.load_time();
    let inside = |id: &NodeId| {
        let scope = graph.node(*id).scope.strip_prefix(picture.layer);
        let source = matches!(graph.node(*id).op, Op::Input(_) | Op::State { .. });
        !load[id.index()] && !source && scope.is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
    };
    let literal = literals(graph);
    let drawn: BTreeSet<NodeId> = graph.ids().filter(|id| inside(id) && !literal.contains(id)).collect();
    let mut visual = VisualGraph::new(Orientation::TopToBottom);
    let handles: BTreeMap<NodeId, NodeHandle> =
        drawn.iter().map(|&id| (id, add(&mut visual, node(picture, id)))).collect();
    for (id, to) in &handles {
        let inputs: BTreeSet<NodeId> = graph.node(*id).inputs.iter().copied().collect();
        for input in inputs {
            // Literals and what comes from outside are drawn for each user: no edge crosses the picture.
            let from = match handles.get(&input) {
                Some(from) => *from,
                None if load[input.index()] => add(&mut visual, weight(graph, input)),
                None if literal.contains(&input) => add(&mut visual, constant(graph, input)),
                None => add(&mut visual, outside(graph, input)),
            };
            let look = StyleAttr::new(Color::fast("black"), 1, None, 0, FONT);
            visual.add_edge(Arrow { look, ..Arrow::simple("") }, from, *to);
        }
    }
    let mut canvas = Canvas::default();
    visual.do_it(false, false, false, &mut canvas);
    let legend =
        picture.kernels.iter().enumerate().filter(|(_, (_, nodes))| nodes.iter().any(|n| drawn.contains(n)));
    let legend: Vec<(String, String)> = legend.map(|(i, (name, _))| (colour(i), name.clone())).collect();
    canvas.finish(&picture.title, &legend)
}

/// Adds a box of the size of its text.
fn add(visual: &mut VisualGraph, made: Box) -> NodeHandle {
    let widest = made.text.lines().map(|l| l.chars().count()).max().unwrap_or(0) as f64;
    let lines = made.text.lines().count() as f64;
    let size = Point::new(widest * CELL.0 + 14.0, lines * CELL.1 + 8.0);
    let look = StyleAttr::new(Color::fast("black"), 1, None, 0, FONT);
    let shape = ShapeKind::new_box(&made.text);
    let mut element =
        Element::create_with_properties(shape, look, Orientation::TopToBottom, size, made.attributes);
    element.pos = Position::new(Point::zero(), size, Point::zero(), Point::new(HALO.0, HALO.1));
    visual.add_node(element)
}

/// Op and type of a node; filled with the colour of its kernel.
fn node(picture: &Picture<'_>, id: NodeId) -> Box {
    let mut text = format!("{id} {}\n{}", op_text(picture.graph, id), type_text(picture.graph.ty(id)));
    let uses: Vec<usize> = picture
        .kernels
        .iter()
        .enumerate()
        .filter(|(_, (_, nodes))| nodes.contains(&id))
        .map(|(i, _)| i)
        .collect();
    let fill = uses.first().map_or("#ffffff".to_owned(), |i| colour(*i));
    if uses.len() > 1 {
        let _ = write!(text, "\nin {} kernels", uses.len());
    }
    Box { text, attributes: format!("fill=\"{fill}\" stroke=\"#333333\" rx=\"3\"") }
}

/// A value made at load: the tensors it is of.
fn weight(graph: &Graph, id: NodeId) -> Box {
    let mut names: Vec<&str> = Vec::new();
    let mut todo = vec![id];
    while let Some(at) = todo.pop() {
        if let Op::Weight { tensor, .. } = &graph.node(at).op {
            let name = tensor.strip_suffix(".weight").unwrap_or(tensor);
            let name = name.rsplit('.').next().unwrap_or(name);
            if !names.contains(&name) {
                names.push(name);
            }
        }
        todo.extend(graph.node(at).inputs.iter().rev().copied());
    }
    let text = format!("{}\n{}", names.join(" + "), type_text(graph.ty(id)));
    Box { text, attributes: "fill=\"#ffffff\" stroke=\"#333333\" stroke-dasharray=\"5 4\"".into() }
}

/// Values that are one number: literals, and broadcasts and reshapes of them.
fn literals(graph: &Graph) -> BTreeSet<NodeId> {
    let mut out = BTreeSet::new();
    for id in graph.ids() {
        let node = graph.node(id);
        let one = match &node.op {
            Op::Constant { shape, .. } => shape.iter().all(|d| d.as_const() == Some(1)),
            Op::Broadcast(_) | Op::Reshape(_) => node.inputs.iter().all(|x| out.contains(x)),
            Op::Input(_)
            | Op::Weight { .. }
            | Op::State { .. }
            | Op::Iota { .. }
            | Op::Decode
            | Op::Unary(_)
            | Op::Binary(_)
            | Op::Compare(_)
            | Op::Select
            | Op::Cast(_)
            | Op::Transpose(_)
            | Op::Slice { .. }
            | Op::Concat { .. }
            | Op::Reduce(_)
            | Op::Softmax
            | Op::TopK { .. }
            | Op::MatMul { .. }
            | Op::RoutedMatMul { .. }
            | Op::Gather
            | Op::Scatter
            | Op::Penalize
            | Op::Sample => false,
        };
        if one {
            out.insert(id);
        }
    }
    out
}

/// A literal: its number, and the type that it has where it is used.
fn constant(graph: &Graph, id: NodeId) -> Box {
    let mut at = id;
    while let (false, Some(input)) =
        (matches!(graph.node(at).op, Op::Constant { .. }), graph.node(at).inputs.first())
    {
        at = *input;
    }
    let text = format!("{id} {}\n{}", op_text(graph, at), type_text(graph.ty(id)));
    Box { text, attributes: "fill=\"#ffffff\" stroke=\"#bbbbbb\" rx=\"10\"".into() }
}

/// A value from outside the layer.
fn outside(graph: &Graph, id: NodeId) -> Box {
    let node = graph.node(id);
    let what = match &node.op {
        Op::Input(_) | Op::State { .. } => op_text(graph, id),
        _ if node.scope.is_empty() => format!("{id} {}", op_text(graph, id)),
        _ => format!("{id} of {}", node.scope),
    };
    let text = format!("{what}\n{}", type_text(graph.ty(id)));
    Box { text, attributes: "fill=\"#eeeeee\" stroke=\"#999999\" rx=\"10\"".into() }
}

/// Op and attributes: a node's line without ids and type.
fn op_text(graph: &Graph, id: NodeId) -> String {
    let line = line(graph, id);
    let op = line.split_once(" = ").map_or(line.as_str(), |(_, rest)| rest);
    let op = op.rsplit_once(" -> ").map_or(op, |(op, _)| op);
    let words: Vec<&str> = op.split(' ').filter(|w| !w.starts_with('%')).collect();
    words.join(" ")
}

/// Distinct light colours: hues a golden angle apart.
fn colour(i: usize) -> String {
    let hue = (i as f64 * 137.508 + 20.0) % 360.0;
    let light = if i.is_multiple_of(2) { 0.78 } else { 0.86 };
    let chroma = (1.0 - (2.0 * light - 1.0_f64).abs()) * 0.75;
    let channel = |offset: f64| {
        let k = (offset + hue / 30.0) % 12.0;
        let part = (k - 3.0).min(9.0 - k).clamp(-1.0, 1.0);
        ((light - chroma / 2.0 * part) * 255.0).round() as u8
    };
    format!("#{:02x}{:02x}{:02x}", channel(0.0), channel(8.0), channel(4.0))
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// SVG as it is drawn. Edges are kept apart, so that boxes lie over them.
#[derive(Default)]
struct Canvas {
    edges: String,
    boxes: String,
    size: (f64, f64),
    clips: usize,
}

impl Canvas {
    fn reach(&mut self, p: Point) {
        self.size = (self.size.0.max(p.x), self.size.1.max(p.y));
    }

    fn finish(self, title: &str, legend: &[(String, String)]) -> String {
        let top = MARGIN + CELL.1 * (legend.len() as f64 + 2.0);
        let widest = legend.iter().map(|(_, name)| name.chars().count()).max().unwrap_or(0);
        let text_width = widest.max(title.chars().count()) as f64 * CELL.0 + 40.0;
        let (width, height) = (self.size.0.max(text_width) + MARGIN, self.size.1 + top + MARGIN);
        let mut out = String::new();
        // Writing to a string does not fail.
        let _ = writeln!(
            out,
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width:.0}\" height=\"{height:.0}\" viewBox=\"0 0 \
             {width:.0} {height:.0}\" font-family=\"monospace\" font-size=\"{FONT}\">"
        );
        let _ = writeln!(
            out,
            "<defs><marker id=\"end\" markerWidth=\"8\" markerHeight=\"6\" refX=\"8\" refY=\"3\" orient=\"auto\">\
             <polygon points=\"0 0, 8 3, 0 6\" fill=\"#555555\"/></marker></defs>"
        );
        let _ = writeln!(out, "<rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>");
        let _ = writeln!(out, "<text x=\"{MARGIN}\" y=\"{MARGIN}\">{}</text>", escaped(title));
        for (i, (fill, name)) in legend.iter().enumerate() {
            let y = MARGIN + CELL.1 * (i as f64 + 1.0);
            let _ = writeln!(
                out,
                "<rect x=\"{MARGIN}\" y=\"{:.1}\" width=\"11\" height=\"11\" fill=\"{fill}\" stroke=\"#333333\"/>\
                 <text x=\"{:.1}\" y=\"{y:.1}\">{}</text>",
                y - 10.0,
                MARGIN + 18.0,
                escaped(name)
            );
        }
        let _ = writeln!(
            out,
            "<g transform=\"translate(0 {top:.1})\">\n{}{}</g>\n</svg>",
            self.edges, self.boxes
        );
        out
    }
}

impl RenderBackend for Canvas {
    fn draw_rect(
        &mut self,
        xy: Point,
        size: Point,
        _look: &StyleAttr,
        properties: Option<String>,
        _clip: Option<ClipHandle>,
    ) {
        self.reach(Point::new(xy.x + size.x, xy.y + size.y));
        let attributes = properties.unwrap_or_else(|| "fill=\"none\" stroke=\"#333333\"".into());
        let (x, y, w, h) = (xy.x, xy.y, size.x, size.y);
        let _ = writeln!(
            self.boxes,
            "<rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{w:.1}\" height=\"{h:.1}\" {attributes}/>"
        );
    }

    fn draw_line(&mut self, start: Point, stop: Point, _look: &StyleAttr, _properties: Option<String>) {
        self.reach(start);
        self.reach(stop);
        let _ = writeln!(
            self.edges,
            "<line x1=\"{:.1}\" y1=\"{:.1}\" x2=\"{:.1}\" y2=\"{:.1}\" stroke=\"#555555\"/>",
            start.x, start.y, stop.x, stop.y
        );
    }

    fn draw_circle(&mut self, xy: Point, size: Point, _look: &StyleAttr, _properties: Option<String>) {
        self.reach(Point::new(xy.x + size.x / 2.0, xy.y + size.y / 2.0));
        let _ = writeln!(
            self.boxes,
            "<ellipse cx=\"{:.1}\" cy=\"{:.1}\" rx=\"{:.1}\" ry=\"{:.1}\" fill=\"none\" stroke=\"#333333\"/>",
            xy.x,
            xy.y,
            size.x / 2.0,
            size.y / 2.0
        );
    }

    fn draw_text(&mut self, xy: Point, text: &str, _look: &StyleAttr) {
        let lines: Vec<&str> = text.lines().collect();
        let top = xy.y - lines.len() as f64 * CELL.1 / 2.0 + CELL.1 * 0.75;
        for (i, line) in lines.iter().enumerate() {
            let y = top + i as f64 * CELL.1;
            let text = escaped(line);
            let _ = writeln!(
                self.boxes,
                "<text x=\"{:.1}\" y=\"{y:.1}\" text-anchor=\"middle\">{text}</text>",
                xy.x
            );
        }
    }

    fn draw_arrow(
        &mut self,
        path: &[(Point, Point)],
        _dashed: bool,
        _head: (bool, bool),
        _look: &StyleAttr,
        _properties: Option<String>,
        _text: &str,
    ) {
        let [first, second, rest @ ..] = path else { return };
        path.iter().for_each(|(a, b)| {
            self.reach(*a);
            self.reach(*b);
        });
        let _ = write!(
            self.edges,
            "<path fill=\"none\" stroke=\"#555555\" marker-end=\"url(#end)\" d=\"M {:.1} {:.1} C {:.1} {:.1}, {:.1} \
             {:.1}, {:.1} {:.1}",
            first.0.x, first.0.y, first.1.x, first.1.y, second.0.x, second.0.y, second.1.x, second.1.y
        );
        for (a, b) in rest {
            let _ = write!(self.edges, " S {:.1} {:.1}, {:.1} {:.1}", a.x, a.y, b.x, b.y);
        }
        let _ = writeln!(self.edges, "\"/>");
    }

    fn create_clip(&mut self, _xy: Point, _size: Point, _rounded: usize) -> ClipHandle {
        // Only records are clipped, and there are none.
        self.clips += 1;
        self.clips - 1
    }
}
