//! The advance that follows decode steps: where a plan has one, what it waits for, and what the verifier finds.

use weft_ir::dtype::DType;
use weft_ir::graph::{Graph, GraphBuilder, Input, Op, ValueType};
use weft_ir::ids::BufferId;
use weft_ir::plan::{Advance, BufferKind, Compute, EdgeKind, Plan, Role, Schedule};
use weft_ir::shape::{Dim, Sym};
use weft_ir::target::Target;
use weft_ir::verify;
use weft_passes::{Options, Selection, compile};

/// A decoder without attention: logits of the token's row of a table, which is also kept in a cache.
fn decoder(samples: bool) -> Graph {
    let mut g = GraphBuilder::new();
    let table = g.weight("table", ValueType::plain(DType::F32, vec![Dim::Const(8), Dim::Const(4)]));
    let ids = g.input(Input::TokenIds);
    let x = g.gather(table, ids);
    let cache = g.state("cache", ValueType::plain(DType::F32, vec![Sym::Slots.into(), Dim::Const(4)]));
    let slots = g.input(Input::Slots);
    let cache = g.scatter(cache, x, slots);
    g.state_out("cache", cache);
    let rows = g.input(Input::OutputRows);
    let h = g.gather(x, rows);
    let logits = g.matmul_t(h, table, DType::F32);
    g.output("logits", logits);
    if samples {
        let positions = g.input(Input::Positions);
        let position = g.gather(positions, rows);
        let mut drawn = vec![logits, position];
        let parameters = [Input::Temperature, Input::TopK, Input::TopP, Input::MinP, Input::Seed];
        drawn.extend(parameters.map(|p| g.input(p)));
        let tokens = g.add(Op::Sample, &drawn);
        g.output("tokens", tokens);
    }
    g.finish().expect("a graph")
}

fn plan(graph: &Graph, target: &str, opt_level: u8) -> Plan {
    plan_in(graph, target, opt_level, DType::F32)
}

fn plan_in(graph: &Graph, target: &str, opt_level: u8, dtype: DType) -> Plan {
    let target = Target::parse(target).expect("a target");
    let selection = Selection::default();
    let options = Options {
        target,
        dtype,
        opt_level,
        max_seq: 16,
        max_batch: 3,
        selection,
        schedules: Default::default(),
        dump: false,
    };
    compile(graph, options).unwrap_or_else(|e| panic!("{e}")).plan
}

#[test]
fn plans_that_sample_have_an_advance_behind_the_decode_body() {
    for (target, level, dtype, kind) in [
        ("sm_90", 2, DType::F32, EdgeKind::Programmatic),
        ("sm_90", 2, DType::BF16, EdgeKind::Programmatic),
        ("sm_90", 0, DType::BF16, EdgeKind::Programmatic),
        ("sm_80", 2, DType::F32, EdgeKind::Full),
    ] {
        let plan = plan_in(&decoder(true), target, level, dtype);
        let g = plan.generation.as_ref().expect("a generation");
        let decode = plan.entries.iter().filter(|e| e.role == Role::Decode);
        for entry in decode {
            assert!(g.after(entry.body).is_some());
            let spec = &plan.kernels[entry.kernels[&g.advance.work].index()];
            assert_eq!((&spec.schedule, spec.threads), (&Schedule::AdvanceRows { threads: 32 }, 32));
        }
        assert!(
            plan.entries
                .iter()
                .filter(|e| e.role != Role::Decode)
                .all(|e| !e.kernels.contains_key(&g.advance.work))
        );
        let kinds = |list: &[BufferId]| list.iter().map(|b| plan.buffer(*b).kind.clone()).collect::<Vec<_>>();
        assert_eq!(kinds(&g.advance.reads), Advance::reads());
        assert_eq!(kinds(&g.advance.writes), Advance::writes());
        assert!(
            matches!(plan.works[g.advance.work as usize].compute, Compute::Advance(a) if a.context == 16)
        );
        // The last launch that draws is waited for, and no launch twice.
        // Decode steps of more sequences are another body where they take tensor cores.
        assert_eq!(g.bodies.len(), if level == 2 && dtype == DType::BF16 { 2 } else { 1 });
        for of in &g.bodies {
            let body = &plan.bodies[of.body as usize];
            let draws = body.dispatches.iter().position(|d| d.writes.contains(&g.advance.reads[0]));
            let draws = draws.expect("tokens");
            assert!(of.after.iter().any(|(d, k)| d.index() == draws && *k == kind), "{:?}", of.after);
            assert!(body.dispatches.iter().all(|d| d.work != g.advance.work), "a step goes without it");
        }
        assert_eq!(Plan::from_ron(&plan.to_ron().expect("RON")).expect("a plan"), plan);
    }
    assert_eq!(plan(&decoder(false), "sm_90", 2).generation, None);
}

#[test]
fn the_verifier_finds_what_is_wrong_with_a_generation() {
    let good = plan(&decoder(true), "sm_90", 2);
    let why = |change: &dyn Fn(&mut Plan)| {
        let mut bad = good.clone();
        change(&mut bad);
        let faults = verify::plan::verify(&bad).err().unwrap_or_default();
        faults.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
    };
    fn of(plan: &mut Plan) -> &mut weft_ir::plan::Generation {
        plan.generation.as_mut().expect("a generation")
    }
    assert_eq!(why(&|_| {}), "");
    assert!(why(&|p| of(p).bodies[0].after.clear()).contains("has no path from launch"));
    assert!(why(&|p| of(p).advance.reads.swap(0, 2)).contains("not on the buffers"));
    assert!(why(&|p| of(p).bodies[0].body = 9).contains("its body does not exist"));
    assert!(why(&|p| of(p).advance.work = 0).contains("its work is no advance"));
    let kernel = why(&|p| {
        let work = of(p).advance.work;
        p.entries.iter_mut().for_each(|e| e.kernels.retain(|w, _| *w != work));
    });
    assert!(kernel.contains("the advance has no kernel"), "{kernel}");
    let stream = why(&|p| {
        let is = |k: &BufferKind| matches!(k, BufferKind::Control(weft_ir::plan::Control::Stream));
        p.buffers.iter_mut().filter(|b| is(&b.kind)).for_each(|b| b.shape.truncate(1));
    });
    assert!(stream.contains("stream's type"), "{stream}");
    assert!(why(&|p| p.max_seq = 17).contains("an advance of"), "another context");
    let wide = why(&|p| {
        let decode = p.entries.iter_mut().find(|e| e.role == Role::Decode).expect("decode");
        (decode.bind.tokens, decode.bind.rows) = (33, 33);
    });
    assert!(wide.contains("a thread a row"), "{wide}");
}
