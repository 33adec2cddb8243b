//! The kernel verifier: every kind of fault, and patterns that must pass.

use weft_ir::dtype::DType;
use weft_ir::ids::{SignalId, VarId};
use weft_ir::kernel::build::KernelBuilder;
use weft_ir::kernel::*;
use weft_ir::verify::kernel::{Facts, FaultKind, expr_type, verify};

struct Arrays {
    weights: Mem,
    x: Mem,
    out: Mem,
    tile: Mem,
}

/// A kernel of 128 threads with a constant, a read, a written and a shared array.
fn kernel(fill: impl FnOnce(&mut KernelBuilder, &Arrays)) -> Kernel {
    let mut b = KernelBuilder::new("k", 128);
    let weights = b.pointer("weights", DType::BF16, Access::Constant);
    let x = b.pointer("x", DType::F32, Access::Read);
    let out = b.pointer("out", DType::F32, Access::Write);
    let tile = Mem::Shared(b.shared("tile", DType::F32, 64));
    fill(&mut b, &Arrays { weights, x, out, tile });
    b.finish()
}

fn faults(fill: impl FnOnce(&mut KernelBuilder, &Arrays)) -> Vec<FaultKind> {
    verify(&kernel(fill)).err().unwrap_or_default().into_iter().map(|f| f.kind).collect()
}

fn facts(fill: impl FnOnce(&mut KernelBuilder, &Arrays)) -> Facts {
    verify(&kernel(fill)).unwrap_or_else(|f| panic!("{f:?}"))
}

fn tid() -> Expr {
    Expr::ThreadIdx
}

fn zero() -> Expr {
    Expr::int(0)
}

fn load_vec(dst: VarId, mem: Mem, lanes: u32, hint: CacheHint) -> Stmt {
    Stmt::LoadVec { dst, dst_at: zero(), mem, index: zero(), lanes, hint }
}

#[test]
fn all_faults_are_collected_with_their_statements() {
    let k = kernel(|b, m| {
        b.store(m.out, zero(), Expr::int(1));
        b.comment("between");
        b.store(m.x, zero(), Expr::float(1.0));
    });
    let found = verify(&k).expect_err("two faults");
    assert_eq!(found.iter().map(|f| f.statement).collect::<Vec<_>>(), [Some(0), Some(2)]);
    assert_eq!(found[0].to_string(), "statement 0: stored value is i32, must be f32");
    assert_eq!(found[1].to_string(), "statement 2: `x` is written but declared Read");
}

#[test]
fn types() {
    let k = kernel(|_, _| {});
    let add = Expr::Binary(BinaryOp::Add, Box::new(Expr::int(1)), Box::new(Expr::float(1.0)));
    assert!(expr_type(&k, &add).is_err());
    assert_eq!(expr_type(&k, &tid().lt(zero()).select(Expr::uint(1), Expr::uint(2))), Ok(DType::U32));
    assert!(expr_type(&k, &Expr::load(Mem::Global(weft_ir::ids::ParamId::new(9)), zero())).is_err());
    assert!(expr_type(&k, &Expr::Math(MathFn::Fma, vec![Expr::float(1.0)])).is_err());
    assert!(expr_type(&k, &Expr::Bitcast(DType::I64, Box::new(Expr::float(1.0)))).is_err());
}

#[test]
fn scopes_and_mutability() {
    let found = faults(|b, _| {
        let mut inner = Expr::int(0);
        b.if_then(tid().lt(Expr::int(4)), |b| inner = b.let_("inner", DType::I32, Expr::int(1)));
        b.let_("outer", DType::I32, inner);
    });
    assert!(matches!(&found[..], [FaultKind::Scope(m)] if m.contains("inner")), "{found:?}");
    let found = faults(|b, _| {
        b.let_("fixed", DType::I32, Expr::int(1));
        b.assign(VarId::new(0), Expr::int(2));
    });
    assert_eq!(found, [FaultKind::Immutable("fixed".into())]);
}

#[test]
fn literal_indices() {
    let found = faults(|b, m| {
        b.store(m.tile, Expr::int(64), Expr::float(0.0));
        let r = b.array("r", DType::F32, 4, Some(Expr::float(0.0)));
        b.assign_elem(r, Expr::int(-1), Expr::float(0.0));
        b.push(Stmt::StoreVec { mem: m.tile, index: zero(), src: r, src_at: Expr::int(1), lanes: 4 });
    });
    let range = |array: &str, index, len| FaultKind::OutOfRange { array: array.into(), index, len };
    assert_eq!(found, [range("tile", 64, 64), range("r", -1, 4), range("r", 4, 4)]);
}

#[test]
fn register_arrays_need_constant_indices() {
    let found = faults(|b, m| {
        let r = b.array("r", DType::F32, 4, Some(Expr::float(0.0)));
        b.unrolled("i", 2, |b, i| {
            let twice = b.let_("twice", DType::I32, i * 2);
            b.assign_elem(r, twice, Expr::float(1.0));
        });
        b.for_loop("j", (zero(), Expr::int(4), Expr::int(1)), Unroll::Never, |b, j| {
            b.assign_elem(r, j, Expr::float(1.0));
        });
        b.store(m.out, tid(), Expr::elem(r, tid() % 4));
    });
    assert_eq!(found, vec![FaultKind::DynamicIndex("r".into()); 2]);
}

#[test]
fn widths_unrolling_and_hints() {
    let found = faults(|b, m| {
        let r = b.array("r", DType::F32, 8, None);
        b.push(load_vec(r, m.x, 3, CacheHint::Default));
        b.push(load_vec(r, m.x, 4, CacheHint::Streaming));
        b.for_loop("i", (zero(), tid(), Expr::int(1)), Unroll::Full, |_, _| {});
    });
    assert!(
        matches!(&found[..], [FaultKind::VectorWidth(12), FaultKind::Access(_), FaultKind::Unroll(i)] if i == "i"),
        "{found:?}"
    );
}

#[test]
fn barriers_must_converge() {
    let found = faults(|b, _| {
        let lane = b.let_("lane", DType::I32, tid() % 32);
        let warp = b.let_("warp", DType::I32, tid() / 32);
        b.if_then(lane.lt(Expr::int(4)), |b| {
            b.push(Stmt::WarpBarrier);
            b.let_("v", DType::F32, Expr::float(1.0).shuffle_xor(1));
        });
        b.if_then(warp.eq_(zero()), |b| b.push(Stmt::Barrier));
    });
    let names = ["warp barrier", "warp shuffle", "block barrier"];
    assert_eq!(found, names.map(FaultKind::Divergent));
}

#[test]
fn warp_uniform_branches_may_hold_collectives() {
    facts(|b, m| {
        let t = b.let_("tid", DType::I32, tid());
        let warp = b.let_("warp", DType::I32, t.clone() / 32);
        b.if_then(warp.eq_(zero()), |b| {
            b.let_("v", DType::F32, Expr::float(1.0).shuffle_xor(1));
        });
        b.if_then(t.lt(Expr::int(64)), |b| b.push(Stmt::WarpBarrier));
        b.if_then(Expr::load(m.tile, zero()).lt(Expr::float(0.0)), |b| b.push(Stmt::Barrier));
    });
}

#[test]
fn prefetches_are_of_whole_pieces_that_are_read_also_before_the_wait() {
    let ahead = |mem, elements| Stmt::PrefetchL2 { mem, index: zero(), elements };
    let found = facts(|b, m| {
        b.push(ahead(m.weights, 64));
        b.push(Stmt::GridDependencyWait);
    });
    assert!(found.bulk && found.pdl);
    // bf16: 8 elements are 16 bytes.
    assert_eq!(faults(|b, m| b.push(ahead(m.weights, 7))), [FaultKind::VectorWidth(14)]);
    assert_eq!(faults(|b, m| b.push(ahead(m.weights, 0))), [FaultKind::VectorWidth(0)]);
    assert_eq!(faults(|b, m| b.push(ahead(m.tile, 4))), [FaultKind::VectorWidth(16)]);
    // No value is seen: what an earlier kernel may still write comes nearer, too.
    let early = faults(|b, m| {
        b.push(ahead(m.x, 4));
        b.push(Stmt::GridDependencyWait);
    });
    assert_eq!(early, []);
    let written = faults(|b, m| b.push(ahead(m.out, 4)));
    assert_eq!(written, [FaultKind::Access("`out` is prefetched but declared Write".into())]);
}

#[test]
fn dependency_wait_comes_first_and_always() {
    let early = faults(|b, m| {
        b.let_("w", DType::BF16, Expr::load(m.weights, zero()));
        b.let_("v", DType::F32, Expr::load(m.x, zero()));
        b.push(Stmt::GridDependencyWait);
        b.store(m.out, tid(), Expr::float(0.0));
    });
    assert_eq!(early, [FaultKind::BeforeDependencyWait("x".into())]);
    let conditional = faults(|b, _| {
        b.if_then(Expr::BlockIdx(Axis::X).eq_(zero()), |b| b.push(Stmt::GridDependencyWait));
    });
    assert_eq!(conditional, [FaultKind::ConditionalDependencyWait]);
}

#[test]
fn blocks_arrive_together_at_counters_of_their_own() {
    let mut b = KernelBuilder::new("k", 64);
    let counters = b.pointer("counters", DType::U32, Access::ReadWrite);
    b.last_block("good", counters, Expr::BlockIdx(Axis::X), Expr::uint(3));
    assert!(verify(&b.finish()).expect("verifies").atomics);
    let found = |fill: &dyn Fn(&mut KernelBuilder, Mem)| {
        let mut b = KernelBuilder::new("k", 64);
        let counters = b.pointer("counters", DType::U32, Access::ReadWrite);
        fill(&mut b, counters);
        let faults = verify(&b.finish()).expect_err("a fault");
        faults.into_iter().map(|f| f.kind).collect::<Vec<_>>()
    };
    let divergent = found(&|b, c| {
        b.if_then(tid().lt(Expr::int(32)), |b| {
            b.last_block("last", c, zero(), Expr::uint(2));
        });
    });
    assert_eq!(divergent, [FaultKind::Divergent("arrival of a block")]);
    let differs = found(&|b, c| {
        b.last_block("last", c, tid(), Expr::uint(2));
        b.last_block("other", c, zero(), tid().cast(DType::U32));
    });
    let differs_in = |what| FaultKind::Disagreement(what);
    assert_eq!(differs, [differs_in("index of a counter"), differs_in("number of blocks")]);
    let typed = |fill: &dyn Fn(&mut KernelBuilder, Mem)| {
        let kinds = found(fill);
        assert!(matches!(kinds[..], [FaultKind::Type(_)]), "{kinds:?}");
    };
    typed(&|b, c| {
        b.last_block("last", c, zero(), Expr::int(2));
    });
    typed(&|b, c| {
        b.last_block("last", c, zero(), Expr::uint(0));
    });
    typed(&|b, _| {
        let shared = Mem::Shared(b.shared("own", DType::U32, 1));
        b.last_block("last", shared, zero(), Expr::uint(2));
    });
    typed(&|b, _| {
        let floats = b.pointer("floats", DType::F32, Access::ReadWrite);
        b.last_block("last", floats, zero(), Expr::uint(2));
    });
    let read = faults(|b, m| {
        b.last_block("last", m.x, zero(), Expr::uint(2));
    });
    assert!(matches!(read[0], FaultKind::Access(_)), "{read:?}");
    // Behind the arrival all threads agree on who is last.
    let mut b = KernelBuilder::new("k", 64);
    let counters = b.pointer("counters", DType::U32, Access::ReadWrite);
    let last = b.last_block("last", counters, zero(), Expr::uint(2));
    b.if_then(last, |b| b.push(Stmt::Barrier));
    verify(&b.finish()).expect("verifies");
}

#[test]
fn headers() {
    let mut k = kernel(|b, _| {
        b.shared("huge", DType::F32, 1 << 20);
    });
    k.name = "not a name".into();
    k.threads = 33;
    let found = verify(&k).expect_err("three faults");
    assert_eq!(found.iter().filter(|f| matches!(f.kind, FaultKind::Header(_))).count(), 3);
}

#[test]
fn facts_say_what_is_used() {
    let found = facts(|b, m| {
        let r = b.array("r", DType::F32, 4, None);
        b.push(Stmt::GridDependencyWait);
        b.push(load_vec(r, m.x, 4, CacheHint::Default));
        b.push(Stmt::CpAsyncCommit);
    });
    let expected =
        Facts { shared_bytes: 256, cp_async: true, pdl: true, max_vector_bytes: 16, ..Facts::default() };
    assert_eq!(found, expected);
}

/// A kernel that reads a word of the host before the wait, and writes one and a condition behind it.
#[test]
fn host_memory_and_conditions() {
    let steered = |fill: &dyn Fn(&mut KernelBuilder, Mem, Mem, weft_ir::ids::ParamId)| {
        let mut b = KernelBuilder::new("k", 32);
        let from = b.pointer("from", DType::I32, Access::FromHost);
        let to = b.pointer("to", DType::I32, Access::ToHost);
        let condition = b.condition("loop");
        fill(&mut b, from, to, condition);
        verify(&b.finish()).map_err(|f| f.into_iter().map(|f| f.to_string()).collect::<Vec<_>>().join("; "))
    };
    let set = |condition, value| Stmt::SetCondition { condition, value };
    let facts = steered(&|b, from, to, condition| {
        let word = b.let_("word", DType::I32, Expr::load(from, zero()));
        b.push(Stmt::GridDependencyWait);
        b.store(to, tid(), word);
        b.push(set(condition, Expr::uint(1)));
    });
    assert!(facts.expect("a kernel").condition);
    let why = |fill: &dyn Fn(&mut KernelBuilder, Mem, Mem, weft_ir::ids::ParamId)| {
        steered(fill).expect_err("a fault")
    };
    assert!(why(&|b, from, _, _| b.store(from, zero(), zero())).contains("`from` is written"));
    let read = |b: &mut KernelBuilder, to: Mem| {
        b.let_("x", DType::I32, Expr::load(to, zero()));
    };
    assert!(why(&|b, _, to, _| read(b, to)).contains("`to` is read"));
    let early = why(&|b, _, to, condition| {
        b.store(to, zero(), zero());
        b.push(set(condition, Expr::uint(1)));
        b.push(Stmt::GridDependencyWait);
    });
    assert!(
        early.contains("`to` is accessed before") && early.contains("`the condition` is accessed before")
    );
    assert!(why(&|b, _, _, condition| b.push(set(condition, zero()))).contains("is i32, must be u32"));
    let no_condition = why(&|b, _, _, _| b.push(set(weft_ir::ids::ParamId::new(0), Expr::uint(1))));
    assert!(no_condition.contains("is no condition"), "{no_condition}");
    let vectors = why(&|b, from, _, _| {
        let array = b.array("four", DType::I32, 4, None);
        b.push(load_vec(array, from, 4, CacheHint::Default));
    });
    assert!(vectors.contains("host memory is accessed as vectors"), "{vectors}");
}

/// A kernel of clusters, from its statements on a signal and a shared array.
fn clustered(cluster: Option<u32>, fill: impl FnOnce(&mut KernelBuilder, SignalId)) -> String {
    let mut b = KernelBuilder::new("k", 32);
    if let Some(blocks) = cluster {
        b.cluster(blocks);
    }
    let signal = b.signal("arrived");
    fill(&mut b, signal);
    let faults = verify(&b.finish()).err().unwrap_or_default();
    faults.into_iter().map(|f| f.to_string()).collect::<Vec<_>>().join("; ")
}

#[test]
fn signals_are_made_then_used_then_awaited() {
    let expect = |signal| Stmt::ExpectBytes { signal, bytes: Expr::int(4) };
    let send = |b: &mut KernelBuilder, signal| {
        let to = b.shared("got", DType::F32, 32);
        let src = b.array("value", DType::F32, 1, Some(Expr::float(1.0)));
        let (src_at, rank) = (zero(), zero());
        b.push(Stmt::Send { to, index: tid(), src, src_at, lanes: 1, rank, signal });
    };
    let fine = clustered(Some(2), |b, signal| {
        b.push(expect(signal));
        b.push(Stmt::ClusterBarrier);
        send(b, signal);
        b.push(Stmt::AwaitBytes { signal });
    });
    assert_eq!(fine, "");
    let early = clustered(Some(2), |b, signal| {
        b.push(expect(signal));
        send(b, signal);
        b.push(Stmt::ClusterBarrier);
        b.push(Stmt::AwaitBytes { signal });
    });
    assert!(early.contains("`arrived` is sent to before a cluster barrier"), "{early}");
    let never = clustered(Some(2), |b, signal| {
        b.push(expect(signal));
        b.push(Stmt::ClusterBarrier);
        send(b, signal);
    });
    assert!(never.contains("`arrived` is never awaited"), "{never}");
    let unmade = clustered(Some(2), |b, signal| b.push(Stmt::AwaitBytes { signal }));
    assert!(unmade.contains("`arrived` is awaited without"), "{unmade}");
    let branch = clustered(Some(2), |b, signal| {
        b.push(expect(signal));
        b.if_then(Expr::BlockIdx(Axis::Z).lt(Expr::int(1)), |b| b.push(Stmt::ClusterBarrier));
        b.push(Stmt::AwaitBytes { signal });
    });
    assert!(branch.contains("cluster barrier inside a branch or loop"), "{branch}");
    let many = clustered(Some(16), |_, _| ());
    assert!(many.contains("clusters of 16 blocks, must be 1 to 8"), "{many}");
    let none = clustered(None, |b, _| b.push(Stmt::ClusterBarrier));
    assert!(none.contains("signals in a kernel whose blocks form no clusters"), "{none}");
    let lanes = clustered(Some(2), |b, signal| {
        b.push(Stmt::ExpectBytes { signal, bytes: tid() });
        b.push(Stmt::ClusterBarrier);
        b.push(Stmt::AwaitBytes { signal });
    });
    assert!(lanes.contains("bytes of a signal differs between the threads"), "{lanes}");
}
