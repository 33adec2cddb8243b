//! Steps of an encoder: whole sequences one behind the other, and what their values must stay below.

use std::collections::BTreeMap;

use weft_ir::dtype::DType;
use weft_ir::graph::{Graph, GraphBuilder, Input, ValueType};
use weft_ir::plan::Role;
use weft_ir::reference::{StepInputs, WeightBytes};
use weft_ir::scalar::Binary;
use weft_ir::shape::{Dim, Sym};
use weft_runtime::exec::bucket::{graph_bounds, graph_inputs, graph_widths};
use weft_runtime::exec::check::{Sizes, check};
use weft_runtime::exec::{CpuModel, CpuOptions, Executor};

/// Embeddings of token, position and type, plus the length of the token's sequence.
fn graph() -> Graph {
    let mut g = GraphBuilder::new();
    let mut table = |name: &str, rows: usize, input| {
        let w = g.weight(name, ValueType::plain(DType::F32, vec![Dim::Const(rows), Dim::Const(2)]));
        let index = g.input(input);
        g.gather(w, index)
    };
    let ids = table("ids", 8, Input::TokenIds);
    let positions = table("positions", 5, Input::Positions);
    let types = table("types", 2, Input::TokenTypes);
    let (base, lengths) = (g.input(Input::SlotBase), g.input(Input::Lengths));
    let own = g.binary(Binary::Sub, lengths, base);
    let sequence = g.input(Input::Sequences);
    let own = g.gather(own, sequence);
    let own = g.reshape(own, vec![Sym::Tokens.into(), Dim::Const(1)]);
    let own = g.cast(own, DType::F32);
    let sum = g.binary(Binary::Add, ids, positions);
    let sum = g.binary(Binary::Add, sum, types);
    let sum = g.binary(Binary::Add, sum, own);
    g.output("last_hidden_state", sum);
    g.finish().expect("a graph")
}

struct Tables(BTreeMap<&'static str, Vec<u8>>);

impl WeightBytes for Tables {
    fn bytes(&self, tensor: &str) -> Option<&[u8]> {
        self.0.get(tensor).map(Vec::as_slice)
    }
}

fn tables() -> Tables {
    let table = |rows: usize, scale: f32| {
        (0..rows * 2).flat_map(|i| ((i / 2) as f32 * scale).to_le_bytes()).collect::<Vec<u8>>()
    };
    Tables(BTreeMap::from([
        ("ids", table(8, 1.0)),
        ("positions", table(5, 10.0)),
        ("types", table(2, 100.0)),
    ]))
}

fn step() -> StepInputs {
    StepInputs {
        token_ids: vec![7, 1, 2],
        positions: vec![0, 0, 4],
        sequences: vec![0, 1, 1],
        token_types: vec![0, 1, 0],
        slot_base: vec![0, 1],
        lengths: vec![1, 2],
        ..StepInputs::default()
    }
}

#[test]
fn hidden_states_are_those_of_the_steps_tokens() {
    let graph = graph();
    assert!(graph.is_encoder());
    assert_eq!(graph_widths(&graph).expect("widths"), (None, Some(2)));
    let options = CpuOptions { max_seq: 6, max_batch: 2, ..CpuOptions::default() };
    let mut model = CpuModel::graph(graph, &tables(), &options).expect("loads");
    let limits = model.limits();
    assert_eq!((limits.vocab, limits.hidden, limits.encode_tokens), (None, Some(2), 64));
    let out = model.step(Role::Encode, &step(), false).expect("a step");
    assert_eq!(out.hidden, [8.0, 8.0, 102.0, 102.0, 43.0, 43.0]);
    assert!(out.logits.is_empty() && out.tokens.is_empty());
    for role in [Role::Decode, Role::Prefill, Role::Score] {
        let error = model.step(role, &step(), false).err().map(|e| e.to_string()).expect("refused");
        assert!(error.contains("(0 tokens)"), "{error}");
    }
    let error = model.step(Role::Encode, &StepInputs::default(), true).expect_err("empty").to_string();
    assert!(error.contains("the step has no tokens"), "{error}");
}

#[test]
fn values_stay_in_their_tables_and_sequences_in_the_step() {
    let graph = graph();
    let used = graph_inputs(&graph);
    let bounds = graph_bounds(&graph, None, (6, 2, 12));
    assert_eq!((bounds.vocab, bounds.positions, bounds.token_types), (8, 5, 2));
    assert_eq!(
        check(Role::Encode, &step(), &used, &bounds).expect("good"),
        Sizes { tokens: 3, rows: 0, context: 2 }
    );
    type Change = fn(&mut StepInputs);
    let cases: [(&str, Change); 13] = [
        ("token_ids: element 0 is 8, outside 0..8", |s| s.token_ids[0] = 8),
        ("positions: element 2 is 5, outside 0..5", |s| s.positions[2] = 5),
        ("token_types: element 1 is 2, outside 0..2", |s| s.token_types[1] = 2),
        ("token_types: it has 2 elements, and the step 3", |s| s.token_types.truncate(2)),
        ("lengths: it has 0 elements; 1 to 2 sequences fit", |s| s.lengths.clear()),
        ("lengths: it has 3 elements", |s| s.lengths.push(1)),
        ("slot_base: it has 1 elements, and lengths 2", |s| s.slot_base.truncate(1)),
        ("lengths: element 0 is 0", |s| s.lengths[0] = 0),
        ("lengths: element 1 is 7", |s| s.lengths[1] = 7),
        ("slot_base: element 1 is 0, and the sequences before it end at 1", |s| s.slot_base[1] = 0),
        ("sequences: 3 tokens from 1 on are not all of sequence 1", |s| s.lengths[1] = 3),
        ("sequences: 1 tokens from 0 on are not all of sequence 0", |s| s.sequences[0] = 1),
        ("lengths: together 2, and the step has 3 tokens", |s| s.lengths[1] = 1),
    ];
    for (wanted, change) in cases {
        let mut inputs = step();
        change(&mut inputs);
        let error = check(Role::Encode, &inputs, &used, &bounds).expect_err(wanted).to_string();
        assert!(error.contains(wanted), "{error} lacks {wanted}");
    }
}
