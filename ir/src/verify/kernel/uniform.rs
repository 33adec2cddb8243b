//! Which values differ between threads, as far as the program text shows it.
//!
//! Loads and shuffles count as uniform: what they give cannot be told from the text, and the emulator
//! checks divergence for real. So a fault raised from these classes is never a false alarm about data.

use crate::ids::VarId;
use crate::kernel::{BinaryOp, CompareOp, Const, Expr, Kernel, Stmt};

/// How far the threads of a block agree on a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Agreement {
    /// All threads of the block.
    Block,
    /// All lanes of a warp.
    Warp,
    /// None in particular.
    Thread,
}

/// Agreement on every variable of a kernel.
#[derive(Debug)]
pub struct Uniformity {
    vars: Vec<Agreement>,
    /// Names of `threadIdx.x`: constants initialised with it.
    thread: Vec<bool>,
}

impl Uniformity {
    /// Classifies the variables of a kernel by the data that flows into them.
    pub fn new(kernel: &Kernel) -> Self {
        let count = kernel.vars.len();
        let mut u = Uniformity { vars: vec![Agreement::Block; count], thread: vec![false; count] };
        loop {
            let before = u.vars.clone();
            kernel.visit(&mut |s| u.learn(s));
            if u.vars == before {
                return u;
            }
        }
    }

    fn raise(&mut self, var: VarId, to: Agreement) {
        if let Some(v) = self.vars.get_mut(var.index()) {
            *v = to.max(*v);
        }
    }

    fn learn(&mut self, stmt: &Stmt) {
        match stmt {
            Stmt::Let { var, value, mutable } => {
                self.raise(*var, self.of(value));
                let names_thread = !mutable && self.is_thread(value);
                if let Some(t) = self.thread.get_mut(var.index()) {
                    *t = names_thread;
                }
            }
            Stmt::Assign { var, value } => self.raise(*var, self.of(value)),
            Stmt::DeclareArray { var, init } => {
                let to = init.as_ref().map_or(Agreement::Block, |e| self.of(e));
                self.raise(*var, to);
            }
            Stmt::AssignElem { var, index, value } => {
                self.raise(*var, self.of(index).max(self.of(value)));
            }
            Stmt::For { var, start, end: _, step, unroll: _, body: _ } => {
                self.raise(*var, self.of(start).max(self.of(step)));
            }
            Stmt::Comment(_)
            | Stmt::Store { .. }
            | Stmt::LoadVec { .. }
            | Stmt::StoreVec { .. }
            | Stmt::PrefetchL2 { .. }
            | Stmt::If { .. }
            | Stmt::Barrier
            | Stmt::WarpBarrier
            | Stmt::GridDependencyWait
            | Stmt::GridDependencyLaunch
            | Stmt::Mma { .. }
            | Stmt::Wgmma { .. }
            | Stmt::WgmmaFence
            | Stmt::WgmmaCommit
            | Stmt::WgmmaWait { .. }
            | Stmt::AsyncProxyFence
            | Stmt::LdMatrix { .. }
            | Stmt::CpAsync { .. }
            | Stmt::CpAsyncCommit
            | Stmt::CpAsyncWait { .. }
            | Stmt::AtomicAdd { .. }
            | Stmt::LastBlock { .. }
            | Stmt::Sleep { .. }
            | Stmt::Fence
            | Stmt::ClusterBarrier
            | Stmt::ExpectBytes { .. }
            | Stmt::Send { .. }
            | Stmt::AwaitBytes { .. }
            | Stmt::MakeRing { .. }
            | Stmt::FillStage { .. }
            | Stmt::AwaitStage { .. }
            | Stmt::SetCondition { .. } => {}
        }
    }

    fn join(&self, parts: &[&Expr]) -> Agreement {
        parts.iter().map(|e| self.of(e)).max().unwrap_or(Agreement::Block)
    }

    /// How far the threads of a block agree on an expression.
    pub fn of(&self, e: &Expr) -> Agreement {
        match e {
            Expr::Const(_) | Expr::Param(_) | Expr::BlockIdx(_) | Expr::GridDim(_) => Agreement::Block,
            Expr::ThreadIdx => Agreement::Thread,
            Expr::Var(v) => self.var(*v),
            Expr::Elem(v, index) => self.var(*v).max(self.of(index)),
            Expr::Load(_, _) | Expr::Shuffle(_, _, _) => Agreement::Block,
            Expr::Binary(op, a, b) if self.warp_number(*op, a, b) => Agreement::Warp,
            Expr::Compare(op, a, b) if self.warp_bound(*op, a, b) => Agreement::Warp,
            Expr::Unary(_, _)
            | Expr::Binary(_, _, _)
            | Expr::Compare(_, _, _)
            | Expr::Select(_, _, _)
            | Expr::Cast(_, _)
            | Expr::Bitcast(_, _)
            | Expr::Math(_, _)
            | Expr::Pack2(_, _, _) => self.join(&e.parts()),
        }
    }

    fn is_thread(&self, e: &Expr) -> bool {
        let e = strip_casts(e);
        if let Expr::Var(v) = e {
            self.thread.get(v.index()).copied().unwrap_or(false)
        } else {
            matches!(e, Expr::ThreadIdx)
        }
    }

    /// `threadIdx / 32k` or `threadIdx >> 5+`.
    fn warp_number(&self, op: BinaryOp, a: &Expr, b: &Expr) -> bool {
        self.is_thread(a)
            && literal(b).is_some_and(|b| {
                (op == BinaryOp::Div && b > 0 && b % 32 == 0) || (op == BinaryOp::Shr && b >= 5)
            })
    }

    /// `threadIdx < 32k` or `threadIdx >= 32k`.
    fn warp_bound(&self, op: CompareOp, a: &Expr, b: &Expr) -> bool {
        matches!(op, CompareOp::Lt | CompareOp::Ge)
            && self.is_thread(a)
            && literal(b).is_some_and(|bound| bound % 32 == 0)
    }

    fn var(&self, v: VarId) -> Agreement {
        self.vars.get(v.index()).copied().unwrap_or(Agreement::Block)
    }
}

fn strip_casts(mut e: &Expr) -> &Expr {
    while let Expr::Cast(_, inner) = e {
        e = inner;
    }
    e
}

fn literal(e: &Expr) -> Option<i64> {
    if let Expr::Const(c) = strip_casts(e) { integer(*c) } else { None }
}

fn integer(c: Const) -> Option<i64> {
    match c {
        Const::I32(v) => Some(i64::from(v)),
        Const::U32(v) => Some(i64::from(v)),
        Const::I64(v) => Some(v),
        Const::F32(_) | Const::Bool(_) => None,
    }
}
