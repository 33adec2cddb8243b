//! A CPU emulator of kernel IR: runs a launch block by block, all threads of a block in lockstep, and
//! stops at the first fault: bounds, alignment, initialisation, races, divergence, copies in flight, the
//! grid dependency, integer overflow.
//!
//! Lockstep hides no race: every access is checked against what the program orders (`race.rs` says by what). Warp
//! shuffles, `mma` and `ldmatrix` gather their lanes but, as on the GPU, order no memory: that takes a
//! `WarpBarrier` or a `Barrier`.

mod arrivals;
mod cluster;
mod copies;
mod expr;
mod fault;
mod fragments;
mod machine;
mod memory;
mod program;
mod race;
mod rings;
mod stmt;
mod value;
mod warpgroup;

pub use fault::{Fault, FaultKind, Place, Rival};
pub use memory::{Buffer, Memory};

use machine::Machine;
use weft_ir::dtype::DType;
use weft_ir::kernel::{Access, Kernel, ParamKind};
use weft_ir::verify::kernel::verify;

/// A launch of a kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Launch {
    /// Blocks along x, y and z.
    pub grid: [u32; 3],
    /// Arguments, one a parameter.
    pub args: Vec<Arg>,
}

/// An argument of a launch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arg {
    /// A buffer of the memory, by index; for a condition, a u32 that it is written to.
    Buffer(usize),
    /// Bits of a scalar (see the constructors).
    Scalar(u64),
}

impl Arg {
    /// An i32 argument.
    pub fn i32(v: i32) -> Arg {
        Arg::Scalar(u64::from(v as u32))
    }

    /// A u32 argument.
    pub fn u32(v: u32) -> Arg {
        Arg::Scalar(u64::from(v))
    }

    /// An i64 argument.
    pub fn i64(v: i64) -> Arg {
        Arg::Scalar(v as u64)
    }

    /// An f32 argument.
    pub fn f32(v: f32) -> Arg {
        Arg::Scalar(u64::from(v.to_bits()))
    }
}

/// What a launch did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Statements executed, counted for each thread.
    pub statements: u64,
    /// Block barriers, counted for each block.
    pub barriers: u64,
    /// Bytes loaded from global memory.
    pub bytes_loaded: u64,
    /// Bytes stored to global memory.
    pub bytes_stored: u64,
}

/// In which order the blocks of a launch run, one after the other. What a kernel computes may not depend on it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Order {
    /// The first block first; x runs fastest.
    #[default]
    Forward,
    /// The last block first.
    Backward,
}

/// Runs a launch. After a fault the memory holds what was stored up to there.
///
/// # Errors
/// The first fault.
pub fn run(kernel: &Kernel, launch: &Launch, memory: &mut Memory) -> Result<Stats, Fault> {
    run_in_order(kernel, launch, memory, Order::Forward)
}

/// Runs a launch with its blocks in an order.
///
/// # Errors
/// The first fault.
pub fn run_in_order(
    kernel: &Kernel,
    launch: &Launch,
    memory: &mut Memory,
    order: Order,
) -> Result<Stats, Fault> {
    let invalid = |message: String| {
        let place = Place {
            kernel: kernel.name.clone(),
            statement: 0,
            text: String::new(),
            block: [0; 3],
            thread: 0,
        };
        Fault { place: Box::new(place), kind: FaultKind::Invalid(message) }
    };
    let structural: Vec<String> = verify(kernel)
        .err()
        .unwrap_or_default()
        .into_iter()
        .filter(|f| f.kind.is_structural())
        .map(|f| f.to_string())
        .collect();
    if !structural.is_empty() {
        return Err(invalid(structural.join("; ")));
    }
    check_args(kernel, launch, memory).map_err(invalid)?;
    let program = program::compile(kernel).map_err(|e| invalid(e.to_string()))?;
    let buffers = std::mem::take(&mut memory.buffers);
    let count = buffers.len();
    let mut machine = Machine::new(kernel, launch, &program, buffers);
    let result = machine.run(&program, order);
    let stats = machine.stats;
    memory.buffers = machine.into_buffers(count);
    result.map(|()| stats)
}

fn check_args(kernel: &Kernel, launch: &Launch, memory: &Memory) -> Result<(), String> {
    if kernel.params.len() != launch.args.len() {
        return Err(format!("{} arguments for {} parameters", launch.args.len(), kernel.params.len()));
    }
    let cluster = kernel.cluster.unwrap_or(1).max(1);
    if !launch.grid[2].is_multiple_of(cluster) {
        return Err(format!("{} blocks along z in clusters of {cluster}", launch.grid[2]));
    }
    let (mut constant, mut written) = (Vec::new(), Vec::new());
    for (param, arg) in kernel.params.iter().zip(&launch.args) {
        match (param.kind, arg) {
            (ParamKind::Scalar(dtype), Arg::Scalar(bits)) => {
                let size = dtype.size().min(8);
                if dtype != DType::I64 && bits >> (8 * size) != 0 {
                    return Err(format!("argument `{}` has more bits than {dtype}", param.name));
                }
            }
            (
                ParamKind::Pointer { dtype: _, access } | ParamKind::Matrix { access, .. },
                Arg::Buffer(index),
            ) => {
                if *index >= memory.buffers.len() {
                    return Err(format!("argument `{}`: no buffer {index}", param.name));
                }
                match access {
                    Access::Constant | Access::FromHost => constant.push(*index),
                    Access::Read | Access::Settled => {}
                    Access::Write | Access::ReadWrite | Access::ToHost => written.push(*index),
                }
            }
            (ParamKind::Condition, Arg::Buffer(index)) => {
                if !memory.buffers.get(*index).is_some_and(|b| b.dtype == DType::U32 && b.len() == 1) {
                    return Err(format!("argument `{}`: buffer {index} is not one u32", param.name));
                }
                written.push(*index);
            }
            (ParamKind::Scalar(_), Arg::Buffer(_))
            | (ParamKind::Pointer { .. } | ParamKind::Matrix { .. } | ParamKind::Condition, Arg::Scalar(_)) =>
            {
                return Err(format!("argument `{}` is not what the parameter is", param.name));
            }
        }
    }
    match constant.iter().find(|c| written.contains(c)) {
        Some(index) => Err(format!("buffer {index} is constant and written in one launch")),
        None => Ok(()),
    }
}
