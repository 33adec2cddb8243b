//! The least that a kernel can do with bytes: read them all once, and add them up so that no load can be left out.
//!
//! `weft bench` launches it with the byte counts of a plan's own kernels, one behind the other: what such a *chain*
//! takes is what reading memory in so many launches costs, whatever is computed. The shape is the one that streams
//! fastest (`docs/performance.md`): two blocks of 512 threads an SM, eight 16-byte loads of each thread in flight,
//! the first of them before the dependency wait.

use crate::cuda;
use crate::emit::Emitted;
use crate::error::Error;
use weft_ir::dtype::DType;
use weft_ir::kernel::build::KernelBuilder;
use weft_ir::kernel::{Access, Axis, CacheHint, Const, Expr, Kernel, Stmt, Unroll};
use weft_ir::verify;

/// Name of the kernel.
pub const STREAM: &str = "stream_sum";
/// Threads of a block.
pub const STREAM_THREADS: u32 = 512;
/// Blocks on each multiprocessor, when there are bytes enough for all.
pub const STREAM_BLOCKS_PER_SM: u32 = 2;
/// Bytes of one load. Byte counts are multiples of it.
pub const STREAM_VECTOR: u64 = 16;
/// Loads that each thread keeps in flight.
const LOADS: u32 = 8;
/// Elements of a load.
const LANES: i64 = 4;

/// Size and scalar arguments of a launch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StreamLaunch {
    /// Blocks along x.
    pub blocks: u32,
    /// Third argument: 16-byte vectors to read.
    pub vectors: i32,
    /// Fourth argument: times that a thread takes eight vectors.
    pub rounds: i32,
}

/// The launch that reads so many bytes (rounded up to whole vectors, at least one) on a GPU of so many
/// multiprocessors; `None` beyond 32 GiB, which the kernel cannot count.
pub fn stream_launch(bytes: u64, sms: u32) -> Option<StreamLaunch> {
    let vectors = bytes.div_ceil(STREAM_VECTOR).max(1);
    let most = u64::from(STREAM_BLOCKS_PER_SM * sms.max(1));
    let blocks = vectors.div_ceil(u64::from(STREAM_THREADS)).min(most);
    let rounds = vectors.div_ceil(blocks * u64::from(STREAM_THREADS * LOADS));
    Some(StreamLaunch {
        blocks: blocks as u32,
        vectors: i32::try_from(vectors).ok()?,
        rounds: i32::try_from(rounds).ok()?,
    })
}

/// Number of u32 sums that a launch of so many blocks writes: one for each warp.
pub fn stream_sums(blocks: u32) -> usize {
    (blocks * STREAM_THREADS / 32) as usize
}

/// Builds the kernel. Parameters: `data` (u32, a whole number of vectors, 16-byte aligned), `sums` (u32, one for each
/// warp), `vectors`, `rounds` (i32). The sums wrap around.
pub fn stream(programmatic: bool) -> Kernel {
    let mut b = KernelBuilder::new(STREAM, STREAM_THREADS);
    b.doc("Reads `vectors` times 16 bytes once; sums[warp] = sum of what the warp read, as u32.");
    b.min_blocks(STREAM_BLOCKS_PER_SM);
    let data = b.pointer("data", DType::U32, Access::Constant);
    let sums = b.pointer("sums", DType::U32, Access::Write);
    let vectors = b.scalar("vectors", DType::I32);
    let rounds = b.scalar("rounds", DType::I32);
    if programmatic {
        b.push(Stmt::GridDependencyLaunch);
    }
    let thread = Expr::BlockIdx(Axis::X) * i64::from(STREAM_THREADS) + Expr::ThreadIdx;
    let thread = b.let_("thread", DType::I64, thread.cast(DType::I64));
    let threads = Expr::GridDim(Axis::X) * i64::from(STREAM_THREADS);
    let threads = b.let_("threads", DType::I64, threads.cast(DType::I64));
    let w = b.array("w", DType::U32, LOADS * LANES as u32, None);
    let long = |v: i64| Expr::Const(Const::I64(v));
    let load = |b: &mut KernelBuilder, first: Expr, d: Expr| {
        let at = thread.clone() + (first + d.clone().cast(DType::I64)) * threads.clone();
        let at = b.let_("at", DType::I64, at);
        let slot = d * LANES;
        b.if_else(
            at.clone().lt(vectors.clone().cast(DType::I64)),
            |b| {
                let (index, dst_at, hint) = (at * long(LANES), slot.clone(), CacheHint::Streaming);
                b.push(Stmt::LoadVec { dst: w, dst_at, mem: data, index, lanes: LANES as u32, hint });
            },
            |b| {
                b.unrolled("e", LANES as u32, |b, e| b.assign_elem(w, slot.clone() + e, Expr::uint(0)));
            },
        );
    };
    b.unrolled("d", LOADS, |b, d| load(b, long(0), d));
    if programmatic {
        b.push(Stmt::GridDependencyWait);
    }
    let sum = b.let_mut("sum", DType::U32, Expr::uint(0));
    b.for_loop("round", (Expr::int(0), rounds, Expr::int(1)), Unroll::Never, |b, round| {
        let next = (round + 1).cast(DType::I64) * long(i64::from(LOADS));
        let next = b.let_("next", DType::I64, next);
        b.unrolled("d", LOADS, |b, d| {
            b.unrolled("e", LANES as u32, |b, e| {
                b.assign(sum, Expr::Var(sum) + Expr::elem(w, d.clone() * LANES + e));
            });
            load(b, next, d);
        });
    });
    for mask in [16, 8, 4, 2, 1] {
        b.assign(sum, Expr::Var(sum) + Expr::Var(sum).shuffle_xor(mask));
    }
    let lane = b.let_("lane", DType::I32, Expr::ThreadIdx % 32);
    b.if_then(lane.eq_(Expr::int(0)), |b| {
        let warp = Expr::BlockIdx(Axis::X) * i64::from(STREAM_THREADS / 32) + Expr::ThreadIdx / 32;
        b.store(sums, warp, sum.into());
    });
    b.finish()
}

/// The kernel, verified and printed.
///
/// # Errors
/// A fault of Weft, or text that cannot be written.
pub fn emit_stream(programmatic: bool) -> Result<Emitted, Error> {
    let kernel = stream(programmatic);
    verify::kernel::verify(&kernel).map_err(|faults| Error::Invalid {
        kernel: STREAM.into(),
        faults: faults.iter().map(|f| format!("  {f}")).collect::<Vec<_>>().join("\n"),
    })?;
    let source =
        cuda::write(&kernel).map_err(|e| Error::Write { kernel: STREAM.into(), why: e.to_string() })?;
    Ok(Emitted { name: STREAM.into(), kernel, source, dynamic_shared: 0 })
}
