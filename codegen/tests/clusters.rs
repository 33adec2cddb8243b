//! Clusters of blocks that send each other data: text, the emulator, and what both find wrong with them.

use weft_codegen::cuda::write;
use weft_codegen::emulator::{Arg, Fault, FaultKind, Launch, Memory, Order, run_in_order};
use weft_ir::dtype::DType;
use weft_ir::kernel::build::KernelBuilder;
use weft_ir::kernel::*;
use weft_ir::verify::kernel::verify;

/// Blocks of a cluster.
const BLOCKS: i64 = 4;

/// What is wrong with a kernel of [`exchange`].
#[derive(Clone, Copy, PartialEq, Eq)]
enum Planted {
    Nothing,
    /// One block does not send.
    Silent,
    /// Every block sends to itself once more.
    Again,
    /// A block beyond the cluster is sent to.
    Beyond,
    /// What arrives is read before it is awaited.
    Early,
    /// Two elements are sent to an odd place.
    Odd,
}

/// Each thread of a block of a cluster sends x[block, thread] + [0, 1] to the block `thread % 4`, and
/// out[block, thread] is the sum of all that the block got.
fn exchange(planted: Planted) -> Kernel {
    let mut b = KernelBuilder::new("exchange", 32);
    b.doc("out[block, :] = sum of what the blocks of its cluster have for it");
    b.cluster(BLOCKS as u32);
    let x = b.pointer("x", DType::F32, Access::Read);
    let out = b.pointer("out", DType::F32, Access::Write);
    let got = b.shared("got", DType::F32, 64);
    let arrived = b.signal("arrived");
    b.push(Stmt::ExpectBytes { signal: arrived, bytes: Expr::int(64 * 4) });
    b.push(Stmt::ClusterBarrier);
    b.push(Stmt::GridDependencyWait);
    let block = Expr::BlockIdx(Axis::X) * BLOCKS + Expr::BlockIdx(Axis::Z);
    let block = b.let_("block", DType::I32, block);
    let pair = b.array("pair", DType::F32, 2, Some(Expr::load(x, block.clone() * 32 + Expr::ThreadIdx)));
    b.assign_elem(pair, Expr::int(1), Expr::elem(pair, Expr::int(0)) + Expr::float(1.0));
    let rank = match planted {
        Planted::Beyond => Expr::ThreadIdx % (BLOCKS + 1),
        _ => Expr::ThreadIdx % BLOCKS,
    };
    let own = Expr::BlockIdx(Axis::Z);
    let place = own.clone() * 16 + Expr::ThreadIdx / BLOCKS * 2;
    let place = if planted == Planted::Odd { place + 1 } else { place };
    let send = |rank: Expr| Stmt::Send {
        to: got,
        index: place.clone(),
        src: pair,
        src_at: Expr::int(0),
        lanes: 2,
        rank,
        signal: arrived,
    };
    let speaks = match planted {
        Planted::Silent => own.clone().lt(Expr::int(BLOCKS - 1)),
        _ => own.clone().lt(Expr::int(BLOCKS)),
    };
    b.if_then(speaks, |b| {
        b.push(send(rank));
        if planted == Planted::Again {
            b.push(send(own));
        }
    });
    let sum = b.let_mut("sum", DType::F32, Expr::float(0.0));
    if planted == Planted::Early {
        b.assign(sum, Expr::load(Mem::Shared(got), Expr::ThreadIdx));
    }
    b.push(Stmt::AwaitBytes { signal: arrived });
    b.for_loop("i", (Expr::int(0), Expr::int(64), Expr::int(1)), Unroll::Never, |b, i| {
        b.assign(sum, Expr::Var(sum) + Expr::load(Mem::Shared(got), i));
    });
    b.store(out, block * 32 + Expr::ThreadIdx, sum.into());
    b.finish()
}

/// Two clusters.
fn run_exchange(planted: Planted, order: Order) -> Result<Vec<f32>, Fault> {
    let mut m = Memory::new();
    let x: Vec<f32> = (0..256).map(|i| i as f32).collect();
    let (x, out) = (m.floats(DType::F32, &x), m.uninitialised(DType::F32, 256));
    let launch = Launch { grid: [2, 1, 4], args: [x, out].map(Arg::Buffer).to_vec() };
    run_in_order(&exchange(planted), &launch, &mut m, order)?;
    Ok(m.read_floats(out).into_iter().map(|v| v.expect("written")).collect())
}

#[test]
fn exchange_text() {
    insta::assert_snapshot!("exchange", write(&exchange(Planted::Nothing)).expect("writes"));
}

#[test]
fn blocks_of_a_cluster_get_what_all_have_for_them() {
    let facts = verify(&exchange(Planted::Nothing)).expect("verifies");
    assert!(facts.clusters);
    for order in [Order::Forward, Order::Backward] {
        let out = run_exchange(Planted::Nothing, order).expect("runs");
        for (i, got) in out.iter().enumerate() {
            let (cluster, rank) = (i / 128, i / 32 % 4);
            let sent = (0..128).filter(|t| t % 4 == rank).map(|t| 2 * (cluster * 128 + t) + 1);
            assert_eq!(*got, sent.sum::<usize>() as f32, "element {i}");
        }
    }
}

#[test]
fn what_is_sent_is_checked() {
    let fault = |planted| {
        let faults =
            [Order::Forward, Order::Backward].map(|o| run_exchange(planted, o).expect_err("a fault"));
        faults.map(|f| f.kind)
    };
    for kind in fault(Planted::Silent) {
        let signal = "arrived".to_string();
        assert_eq!(kind, FaultKind::SignalBytes { signal, expected: 256, sent: 192 });
    }
    for kind in fault(Planted::Again) {
        let signal = "arrived".to_string();
        assert_eq!(kind, FaultKind::SignalBytes { signal, expected: 256, sent: 4 * 32 * 8 / 4 + 32 * 8 });
    }
    for kind in fault(Planted::Beyond) {
        assert_eq!(kind, FaultKind::NoSuchBlock { rank: 4, blocks: 4 });
    }
    for kind in fault(Planted::Early) {
        assert!(matches!(&kind, FaultKind::Uninitialised { array, .. } if array == "got"), "{kind}");
    }
    for kind in fault(Planted::Odd) {
        assert!(matches!(&kind, FaultKind::Misaligned { array, bytes: 8, .. } if array == "got"), "{kind}");
    }
}

#[test]
fn an_element_is_free_until_its_data_is_awaited() {
    let mut kernel = exchange(Planted::Nothing);
    let got = Mem::Shared(weft_ir::ids::SharedId::new(0));
    let store = Stmt::Store { mem: got, index: Expr::ThreadIdx, value: Expr::float(1.0) };
    let at = kernel.body.iter().position(|s| matches!(s, Stmt::AwaitBytes { .. })).expect("a wait");
    kernel.body.insert(at, store);
    let mut m = Memory::new();
    let (x, out) = (m.zeros(DType::F32, 256), m.uninitialised(DType::F32, 256));
    let launch = Launch { grid: [2, 1, 4], args: [x, out].map(Arg::Buffer).to_vec() };
    let fault = run_in_order(&kernel, &launch, &mut m, Order::Forward).expect_err("used too early");
    assert!(matches!(&fault.kind, FaultKind::UsedBeforeArrival { array, .. } if array == "got"), "{fault}");
    let launch = Launch { grid: [2, 1, 6], ..launch };
    let fault = run_in_order(&exchange(Planted::Nothing), &launch, &mut m, Order::Forward);
    assert!(fault.expect_err("half a cluster").to_string().contains("6 blocks along z in clusters of 4"));
}
