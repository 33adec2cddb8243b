//! A kernel made ready to run: typed expressions, variables in slots, numbered statements.

use super::value;
use weft_ir::dtype::DType;
use weft_ir::kernel::{
    Axis, BinaryOp, CompareOp, Expr, Kernel, MathFn, MatrixCount, Mem, ParamKind, ShuffleMode, Stmt,
    TileCopy, UnaryOp,
};
use weft_ir::verify::kernel::{TypeError, expr_type};

/// A typed expression.
#[derive(Debug)]
pub(super) struct Node {
    pub(super) dtype: DType,
    pub(super) kind: NodeKind,
}

/// What an expression computes. Memory operands are positions in the machine's list of arrays.
#[derive(Debug)]
pub(super) enum NodeKind {
    Const(u64),
    Var(usize),
    Elem(usize, Box<Node>),
    Param(usize),
    ThreadIdx,
    BlockIdx(Axis),
    GridDim(Axis),
    Unary(UnaryOp, Box<Node>),
    Binary(BinaryOp, Box<Node>, Box<Node>),
    Logical { and: bool, a: Box<Node>, b: Box<Node> },
    Compare(CompareOp, Box<Node>, Box<Node>),
    Select(Box<Node>, Box<Node>, Box<Node>),
    Cast(Box<Node>),
    Bitcast(Box<Node>),
    Math(MathFn, Vec<Node>),
    Load(usize, Box<Node>),
    Shuffle(ShuffleMode, Box<Node>, Box<Node>),
    Pack2(DType, Box<Node>, Box<Node>),
}

/// A statement and its number in program order.
#[derive(Debug)]
pub(super) struct Line {
    pub(super) number: usize,
    pub(super) op: Op,
}

/// Registers of an instruction: array slot and first element.
#[derive(Debug)]
pub(super) struct Registers {
    pub(super) slot: usize,
    pub(super) at: Node,
}

/// What a statement does.
#[derive(Debug)]
pub(super) enum Op {
    Nothing,
    Set { slot: usize, value: Node },
    DeclareArray { slot: usize, init: Option<Node> },
    SetElem { slot: usize, index: Node, value: Node },
    Store { mem: usize, index: Node, value: Node },
    LoadVec { to: Registers, mem: usize, index: Node, lanes: u32 },
    StoreVec { mem: usize, index: Node, from: Registers, lanes: u32 },
    Prefetch { mem: usize, index: Node, elements: u32 },
    For { slot: usize, start: Node, end: Node, step: Node, body: Vec<Line> },
    If { cond: Node, then: Vec<Line>, otherwise: Vec<Line> },
    Barrier,
    WarpBarrier,
    DependencyWait,
    Mma { dtype: DType, acc: Registers, a: Registers, b: Registers },
    Product { dtype: DType, acc: usize, columns: u32, a: (usize, Node), b: (usize, Node), k: u32 },
    FenceProducts,
    ShowToProducts,
    CommitProducts,
    AwaitProducts(usize),
    LdMatrix { to: Registers, mem: usize, index: Node, count: MatrixCount, transpose: bool },
    Copy { to: usize, to_at: Node, from: usize, from_at: Node, bytes: u32, valid: Option<Node> },
    CopyCommit,
    CopyWait(usize),
    Atomic { mem: usize, index: Node, value: Node, old: Option<usize> },
    Fence,
    LastBlock { counter: usize, index: Node, expected: Node, last: usize },
    SetCondition { mem: usize, value: Node },
    ClusterBarrier,
    ExpectBytes { signal: usize, bytes: Node },
    Send { to: usize, index: Node, from: Registers, lanes: u32, rank: Node, signal: usize },
    AwaitBytes { signal: usize },
    MakeRing { ring: usize },
    FillStage { ring: usize, stage: Node, bytes: u32, tiles: Vec<Tile> },
    AwaitStage { ring: usize, stage: Node, round: Node },
}

/// A tile that is copied: its place in shared memory and in the matrix, and their shapes.
#[derive(Debug)]
pub(super) struct Tile {
    pub(super) to: usize,
    pub(super) to_row: Node,
    pub(super) from: usize,
    pub(super) row: Node,
    pub(super) column: Node,
    pub(super) rows: u32,
    pub(super) columns: u32,
}

/// A kernel ready to run.
#[derive(Debug)]
pub(super) struct Program {
    pub(super) body: Vec<Line>,
    pub(super) has_wait: bool,
    pub(super) has_fence: bool,
}

/// Prepares a kernel.
pub(super) fn compile(kernel: &Kernel) -> Result<Program, TypeError> {
    let (mut has_wait, mut has_fence) = (false, false);
    kernel.visit(&mut |s| {
        has_wait |= matches!(s, Stmt::GridDependencyWait);
        has_fence |= matches!(s, Stmt::Fence | Stmt::LastBlock { .. });
    });
    let body = Compiler { kernel, number: 0 }.block(&kernel.body)?;
    Ok(Program { body, has_wait, has_fence })
}

struct Compiler<'k> {
    kernel: &'k Kernel,
    number: usize,
}

impl Compiler<'_> {
    fn block(&mut self, stmts: &[Stmt]) -> Result<Vec<Line>, TypeError> {
        stmts.iter().map(|s| self.line(s)).collect()
    }

    fn mem(&self, mem: Mem) -> usize {
        match mem {
            Mem::Global(p) => p.index(),
            Mem::Shared(s) => self.kernel.params.len() + s.index(),
        }
    }

    fn boxed(&self, e: &Expr) -> Result<Box<Node>, TypeError> {
        self.node(e).map(Box::new)
    }

    fn node(&self, e: &Expr) -> Result<Node, TypeError> {
        let dtype = expr_type(self.kernel, e)?;
        let kind = match e {
            Expr::Const(c) => NodeKind::Const(value::literal(*c)),
            Expr::Var(v) => NodeKind::Var(v.index()),
            Expr::Elem(v, index) => NodeKind::Elem(v.index(), self.boxed(index)?),
            Expr::Param(p) => NodeKind::Param(p.index()),
            Expr::ThreadIdx => NodeKind::ThreadIdx,
            Expr::BlockIdx(axis) => NodeKind::BlockIdx(*axis),
            Expr::GridDim(axis) => NodeKind::GridDim(*axis),
            Expr::Unary(op, a) => NodeKind::Unary(*op, self.boxed(a)?),
            Expr::Binary(op @ (BinaryOp::And | BinaryOp::Or), a, b) if dtype == DType::Bool => {
                NodeKind::Logical { and: *op == BinaryOp::And, a: self.boxed(a)?, b: self.boxed(b)? }
            }
            Expr::Binary(op, a, b) => NodeKind::Binary(*op, self.boxed(a)?, self.boxed(b)?),
            Expr::Compare(op, a, b) => NodeKind::Compare(*op, self.boxed(a)?, self.boxed(b)?),
            Expr::Select(c, a, b) => NodeKind::Select(self.boxed(c)?, self.boxed(a)?, self.boxed(b)?),
            Expr::Cast(_, a) => NodeKind::Cast(self.boxed(a)?),
            Expr::Bitcast(_, a) => NodeKind::Bitcast(self.boxed(a)?),
            Expr::Math(f, args) => {
                NodeKind::Math(*f, args.iter().map(|a| self.node(a)).collect::<Result<_, _>>()?)
            }
            Expr::Load(mem, index) => NodeKind::Load(self.mem(*mem), self.boxed(index)?),
            Expr::Shuffle(mode, v, lane) => NodeKind::Shuffle(*mode, self.boxed(v)?, self.boxed(lane)?),
            Expr::Pack2(to, a, b) => NodeKind::Pack2(*to, self.boxed(a)?, self.boxed(b)?),
        };
        Ok(Node { dtype, kind })
    }

    fn registers(&self, var: &weft_ir::ids::VarId, at: &Expr) -> Result<Registers, TypeError> {
        Ok(Registers { slot: var.index(), at: self.node(at)? })
    }

    fn tile(&self, t: &TileCopy) -> Result<Tile, TypeError> {
        let kind = match t.from {
            Mem::Global(p) => self.kernel.params.get(p.index()).map(|p| p.kind),
            Mem::Shared(_) => None,
        };
        let (columns, rows) = match kind {
            Some(ParamKind::Matrix { columns, rows, .. }) => (columns, rows),
            _ => (0, 0),
        };
        Ok(Tile {
            to: self.mem(Mem::Shared(t.to)),
            to_row: self.node(&t.to_row)?,
            from: self.mem(t.from),
            row: self.node(&t.row)?,
            column: self.node(&t.column)?,
            rows,
            columns,
        })
    }

    fn line(&mut self, s: &Stmt) -> Result<Line, TypeError> {
        let number = self.number;
        self.number += 1;
        let op = match s {
            Stmt::Comment(_) | Stmt::GridDependencyLaunch | Stmt::Sleep { .. } => Op::Nothing,
            Stmt::Let { var, value, mutable: _ } | Stmt::Assign { var, value } => {
                Op::Set { slot: var.index(), value: self.node(value)? }
            }
            Stmt::DeclareArray { var, init } => {
                let init = init.as_ref().map(|e| self.node(e)).transpose()?;
                Op::DeclareArray { slot: var.index(), init }
            }
            Stmt::AssignElem { var, index, value } => {
                Op::SetElem { slot: var.index(), index: self.node(index)?, value: self.node(value)? }
            }
            Stmt::Store { mem, index, value } => {
                Op::Store { mem: self.mem(*mem), index: self.node(index)?, value: self.node(value)? }
            }
            Stmt::LoadVec { dst, dst_at, mem, index, lanes, hint: _ } => Op::LoadVec {
                to: self.registers(dst, dst_at)?,
                mem: self.mem(*mem),
                index: self.node(index)?,
                lanes: *lanes,
            },
            Stmt::StoreVec { mem, index, src, src_at, lanes } => Op::StoreVec {
                mem: self.mem(*mem),
                index: self.node(index)?,
                from: self.registers(src, src_at)?,
                lanes: *lanes,
            },
            Stmt::PrefetchL2 { mem, index, elements } => {
                Op::Prefetch { mem: self.mem(*mem), index: self.node(index)?, elements: *elements }
            }
            Stmt::For { var, start, end, step, unroll: _, body } => Op::For {
                slot: var.index(),
                start: self.node(start)?,
                end: self.node(end)?,
                step: self.node(step)?,
                body: self.block(body)?,
            },
            Stmt::If { cond, then, otherwise } => {
                Op::If { cond: self.node(cond)?, then: self.block(then)?, otherwise: self.block(otherwise)? }
            }
            Stmt::Barrier => Op::Barrier,
            Stmt::WarpBarrier => Op::WarpBarrier,
            Stmt::GridDependencyWait => Op::DependencyWait,
            Stmt::Mma { dtype, acc, acc_at, a, a_at, b, b_at } => Op::Mma {
                dtype: *dtype,
                acc: self.registers(acc, acc_at)?,
                a: self.registers(a, a_at)?,
                b: self.registers(b, b_at)?,
            },
            Stmt::Wgmma { dtype, acc, columns, a, a_at, b, b_at, k } => Op::Product {
                dtype: *dtype,
                acc: acc.index(),
                columns: *columns,
                a: (self.mem(Mem::Shared(*a)), self.node(a_at)?),
                b: (self.mem(Mem::Shared(*b)), self.node(b_at)?),
                k: *k,
            },
            Stmt::WgmmaFence => Op::FenceProducts,
            Stmt::AsyncProxyFence => Op::ShowToProducts,
            Stmt::WgmmaCommit => Op::CommitProducts,
            Stmt::WgmmaWait { pending, acc: _ } => Op::AwaitProducts(*pending as usize),
            Stmt::LdMatrix { dst, dst_at, shared, index, count, transpose } => Op::LdMatrix {
                to: self.registers(dst, dst_at)?,
                mem: self.mem(Mem::Shared(*shared)),
                index: self.node(index)?,
                count: *count,
                transpose: *transpose,
            },
            Stmt::CpAsync { shared, shared_index, global, global_index, bytes, valid } => Op::Copy {
                to: self.mem(Mem::Shared(*shared)),
                to_at: self.node(shared_index)?,
                from: self.mem(*global),
                from_at: self.node(global_index)?,
                bytes: *bytes,
                valid: valid.as_ref().map(|e| self.node(e)).transpose()?,
            },
            Stmt::CpAsyncCommit => Op::CopyCommit,
            Stmt::CpAsyncWait { pending } => Op::CopyWait(*pending as usize),
            Stmt::AtomicAdd { mem, index, value, old } => Op::Atomic {
                mem: self.mem(*mem),
                index: self.node(index)?,
                value: self.node(value)?,
                old: old.map(|v| v.index()),
            },
            Stmt::Fence => Op::Fence,
            Stmt::LastBlock { counter, index, expected, last } => Op::LastBlock {
                counter: self.mem(*counter),
                index: self.node(index)?,
                expected: self.node(expected)?,
                last: last.index(),
            },
            Stmt::SetCondition { condition, value } => {
                Op::SetCondition { mem: condition.index(), value: self.node(value)? }
            }
            Stmt::ClusterBarrier => Op::ClusterBarrier,
            Stmt::ExpectBytes { signal, bytes } => {
                Op::ExpectBytes { signal: signal.index(), bytes: self.node(bytes)? }
            }
            Stmt::Send { to, index, src, src_at, lanes, rank, signal } => Op::Send {
                to: self.mem(Mem::Shared(*to)),
                index: self.node(index)?,
                from: self.registers(src, src_at)?,
                lanes: *lanes,
                rank: self.node(rank)?,
                signal: signal.index(),
            },
            Stmt::AwaitBytes { signal } => Op::AwaitBytes { signal: signal.index() },
            Stmt::MakeRing { ring } => Op::MakeRing { ring: ring.index() },
            Stmt::FillStage { ring, stage, bytes, tiles } => Op::FillStage {
                ring: ring.index(),
                stage: self.node(stage)?,
                bytes: *bytes,
                tiles: tiles.iter().map(|t| self.tile(t)).collect::<Result<_, _>>()?,
            },
            Stmt::AwaitStage { ring, stage, round } => {
                Op::AwaitStage { ring: ring.index(), stage: self.node(stage)?, round: self.node(round)? }
            }
        };
        Ok(Line { number, op })
    }
}
