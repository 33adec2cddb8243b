//! The walk that checks a kernel statement by statement.

use super::check::{Declared, Use, Verifier};
use super::fault::FaultKind;
use super::fold::fold;
use super::uniform::Agreement;
use crate::dtype::DType;
use crate::ids::VarId;
use crate::kernel::{Access, CacheHint, Expr, MatrixCount, Mem, ParamKind, Stmt, Unroll};

impl Verifier<'_> {
    pub(super) fn stmt(&mut self, s: &Stmt, agreement: Agreement, top: bool) {
        match s {
            Stmt::Comment(_)
            | Stmt::GridDependencyLaunch
            | Stmt::CpAsyncCommit
            | Stmt::CpAsyncWait { pending: _ }
            | Stmt::AsyncProxyFence
            | Stmt::Fence => {}
            Stmt::Sleep { nanoseconds } => self.typed(nanoseconds, agreement, DType::U32, "duration"),
            Stmt::Let { var, value, mutable } => {
                let dtype = self.kernel.var(*var).map(|v| v.dtype);
                match dtype {
                    Some(want) => self.typed(value, agreement, want, "initial value"),
                    None => {
                        self.expr(value, agreement);
                    }
                }
                let as_ = match (mutable, self.is_static(value)) {
                    (true, _) => Declared::Mutable,
                    (false, true) => Declared::Static,
                    (false, false) => Declared::Fixed,
                };
                self.declare(*var, as_, false);
            }
            Stmt::DeclareArray { var, init } => {
                if let (Some(e), Some(v)) = (init, self.kernel.var(*var)) {
                    self.typed(e, agreement, v.dtype, "initial value");
                }
                self.declare(*var, Declared::Mutable, true);
            }
            Stmt::Assign { var, value } => {
                self.in_scope(*var);
                match self.kernel.var(*var).map(|v| (v.dtype, v.len)) {
                    Some((want, None)) => self.typed(value, agreement, want, "assigned value"),
                    Some((_, Some(_))) => self.type_fault("a whole register array is assigned"),
                    None => self.type_fault(format!("no variable {var}")),
                }
                let declared = self.scope.get(var.index()).copied().flatten();
                if matches!(declared, Some(Declared::Fixed | Declared::Static)) {
                    let name = self.name(*var);
                    self.fault(FaultKind::Immutable(name));
                }
            }
            Stmt::AssignElem { var, index, value } => {
                if let Some(v) = self.kernel.var(*var) {
                    self.registers(*var, index, agreement, 1, v.dtype);
                    self.typed(value, agreement, v.dtype, "assigned value");
                } else {
                    self.type_fault(format!("no variable {var}"));
                }
            }
            Stmt::Store { mem, index, value } => {
                self.index(index, agreement);
                self.touch(*mem, Use::Write, Some((index, 1)));
                match self.kernel.mem_dtype(*mem) {
                    Some(want) => self.typed(value, agreement, want, "stored value"),
                    None => {
                        self.expr(value, agreement);
                    }
                }
            }
            Stmt::LoadVec { dst, dst_at, mem, index, lanes, hint } => {
                match self.words_of(*dst, *mem, *lanes) {
                    Some(words) => {
                        self.index(index, agreement);
                        self.touch(*mem, Use::Read, Some((index, *lanes)));
                        self.width(DType::U32, words);
                        self.registers(*dst, dst_at, agreement, words, DType::U32);
                    }
                    None => self.vector(*mem, Use::Read, index, (*dst, dst_at), *lanes, agreement),
                }
                if *hint == CacheHint::Streaming && !self.is_constant(*mem) {
                    self.fault(FaultKind::Access("streaming load from memory that is not Constant".into()));
                }
            }
            Stmt::StoreVec { mem, index, src, src_at, lanes } => {
                self.vector(*mem, Use::Write, index, (*src, src_at), *lanes, agreement);
            }
            Stmt::PrefetchL2 { mem, index, elements } => {
                self.index(index, agreement);
                self.touch(*mem, Use::Ahead, Some((index, *elements)));
                let bytes =
                    self.kernel.mem_dtype(*mem).map_or(0, |d| d.size() as u32).saturating_mul(*elements);
                if matches!(mem, Mem::Shared(_)) || bytes == 0 || !bytes.is_multiple_of(16) {
                    self.fault(FaultKind::VectorWidth(bytes));
                }
            }
            Stmt::For { var, start, end, step, unroll, body } => {
                self.for_loop(*var, [start, end, step], *unroll, body, agreement);
            }
            Stmt::If { cond, then, otherwise } => {
                self.typed(cond, agreement, DType::Bool, "condition");
                let inner = agreement.max(self.uniformity.of(cond));
                self.block(then, inner, false);
                self.block(otherwise, inner, false);
            }
            Stmt::Barrier => self.collective("block barrier", agreement, Agreement::Block),
            Stmt::WarpBarrier => self.collective("warp barrier", agreement, Agreement::Warp),
            Stmt::GridDependencyWait => {
                if !top {
                    self.fault(FaultKind::ConditionalDependencyWait);
                }
                self.waited = true;
            }
            Stmt::Mma { dtype, acc, acc_at, a, a_at, b, b_at } => {
                self.collective("mma", agreement, Agreement::Warp);
                if !dtype.is_half() {
                    self.type_fault(format!("mma of {dtype}"));
                }
                self.registers(*acc, acc_at, agreement, 4, DType::F32);
                self.registers(*a, a_at, agreement, 4, DType::U32);
                self.registers(*b, b_at, agreement, 2, DType::U32);
            }
            Stmt::Wgmma { dtype, acc, columns, a, a_at, b, b_at, k } => {
                self.wgmma(*dtype, (*acc, *columns), [(*a, a_at), (*b, b_at)], *k, agreement);
            }
            Stmt::WgmmaFence => self.collective("fence of wgmma", agreement, Agreement::Block),
            Stmt::WgmmaCommit => self.collective("group of wgmma", agreement, Agreement::Block),
            Stmt::WgmmaWait { pending: _, acc } => self.wgmma_wait(*acc, agreement),
            Stmt::LdMatrix { dst, dst_at, shared, index, count, transpose: _ } => {
                self.collective("ldmatrix", agreement, Agreement::Warp);
                let registers = MatrixCount::count(*count);
                self.registers(*dst, dst_at, agreement, registers, DType::U32);
                self.index(index, agreement);
                self.touch(Mem::Shared(*shared), Use::Read, Some((index, 8)));
                if let Some(d) = self.kernel.mem_dtype(Mem::Shared(*shared))
                    && !d.is_half()
                {
                    self.type_fault(format!("ldmatrix of {d}"));
                }
            }
            Stmt::CpAsync { shared, shared_index, global, global_index, bytes, valid } => {
                self.copy_async(Mem::Shared(*shared), shared_index, *global, global_index, *bytes, agreement);
                if let Some(v) = valid {
                    self.typed(v, agreement, DType::Bool, "condition of a copy");
                }
            }
            Stmt::SetCondition { condition, value } => {
                self.typed(value, agreement, DType::U32, "value of a condition");
                let param = self.kernel.params.get(condition.index());
                if !param.is_some_and(|p| p.kind == ParamKind::Condition) {
                    self.type_fault(format!("{condition} is no condition"));
                }
                if self.has_wait && !self.waited {
                    self.fault(FaultKind::BeforeDependencyWait("the condition".into()));
                }
            }
            Stmt::AtomicAdd { mem, index, value, old } => {
                self.index(index, agreement);
                self.touch(*mem, Use::Update, Some((index, 1)));
                match self.kernel.mem_dtype(*mem) {
                    Some(want @ (DType::I32 | DType::U32)) => {
                        self.typed(value, agreement, want, "addend");
                        if let Some(var) = old {
                            if self.kernel.var(*var).is_some_and(|v| v.dtype != want) {
                                self.type_fault("old value of an atomic has another type");
                            }
                            self.declare(*var, Declared::Fixed, false);
                        }
                    }
                    other => self.type_fault(format!("atomic add on {other:?}, must be i32 or u32")),
                }
            }
            Stmt::LastBlock { counter, index, expected, last } => {
                self.last_block(*counter, index, expected, *last, agreement);
            }
            Stmt::ClusterBarrier => self.cluster_barrier(top),
            Stmt::ExpectBytes { signal, bytes } => self.expect_bytes(*signal, bytes, agreement),
            Stmt::Send { to, index, src, src_at, lanes, rank, signal } => {
                self.send((*to, index), (*src, src_at), *lanes, (rank, *signal), agreement);
            }
            Stmt::AwaitBytes { signal } => self.await_bytes(*signal, top),
            Stmt::MakeRing { ring } => self.make_ring(*ring, top),
            Stmt::FillStage { ring, stage, bytes, tiles } => {
                self.fill_stage(*ring, stage, *bytes, tiles, agreement);
            }
            Stmt::AwaitStage { ring, stage, round } => self.await_stage(*ring, stage, round, agreement),
        }
    }

    fn last_block(&mut self, counter: Mem, index: &Expr, expected: &Expr, last: VarId, agreement: Agreement) {
        self.collective("arrival of a block", agreement, Agreement::Block);
        self.index(index, agreement);
        self.touch(counter, Use::Update, Some((index, 1)));
        if matches!(counter, Mem::Shared(_)) || self.kernel.mem_dtype(counter) != Some(DType::U32) {
            self.type_fault("blocks are counted in global memory of u32");
        }
        self.typed(expected, agreement, DType::U32, "number of blocks");
        if *expected == Expr::uint(0) {
            self.type_fault("a counter expects no blocks");
        }
        for (operand, what) in [(index, "index of a counter"), (expected, "number of blocks")] {
            if self.uniformity.of(operand) > Agreement::Block {
                self.fault(FaultKind::Disagreement(what));
            }
        }
        if self.kernel.var(last).is_some_and(|v| v.dtype != DType::Bool) {
            self.type_fault("whether a block is the last is a bool");
        }
        self.declare(last, Declared::Fixed, false);
    }

    /// Registers that so many 16-bit elements fill, where they are loaded as words for tensor cores.
    fn words_of(&self, dst: VarId, mem: Mem, lanes: u32) -> Option<u32> {
        let words = self.kernel.var(dst).is_some_and(|v| v.dtype == DType::U32);
        let half = self.kernel.mem_dtype(mem).is_some_and(DType::is_half);
        (words && half).then_some(lanes / 2)
    }

    fn is_constant(&self, mem: Mem) -> bool {
        match mem {
            Mem::Shared(_) => false,
            Mem::Global(p) => {
                self.kernel.params.get(p.index()).is_some_and(|p| {
                    matches!(p.kind, ParamKind::Pointer { dtype: _, access: Access::Constant })
                })
            }
        }
    }

    fn vector(
        &mut self,
        mem: Mem,
        how: Use,
        index: &Expr,
        registers: (VarId, &Expr),
        lanes: u32,
        agreement: Agreement,
    ) {
        self.index(index, agreement);
        self.touch(mem, how, Some((index, lanes)));
        self.whole_words(mem);
        if let Some(dtype) = self.kernel.mem_dtype(mem) {
            self.width(dtype, lanes);
            self.registers(registers.0, registers.1, agreement, lanes, dtype);
        }
    }

    /// The host's words are read and written one by one.
    fn whole_words(&mut self, mem: Mem) {
        let Mem::Global(p) = mem else { return };
        let kind = self.kernel.params.get(p.index()).map(|p| p.kind);
        if let Some(ParamKind::Pointer { dtype: _, access: Access::FromHost | Access::ToHost }) = kind {
            self.fault(FaultKind::Access("host memory is accessed as vectors".into()));
        }
    }

    fn copy_async(&mut self, to: Mem, to_at: &Expr, from: Mem, from_at: &Expr, bytes: u32, a: Agreement) {
        self.index(to_at, a);
        self.index(from_at, a);
        self.touch(from, Use::Read, None);
        self.whole_words(from);
        if !matches!(bytes, 4 | 8 | 16) {
            self.fault(FaultKind::VectorWidth(bytes));
        }
        if matches!(from, Mem::Shared(_)) {
            self.type_fault("asynchronous copy from shared memory");
        }
        match (self.kernel.mem_dtype(to), self.kernel.mem_dtype(from)) {
            (Some(t), Some(f)) if t == f => {
                self.touch(to, Use::Write, Some((to_at, bytes / t.size() as u32)));
            }
            (t, f) => self.type_fault(format!("asynchronous copy from {f:?} to {t:?}")),
        }
    }

    fn for_loop(
        &mut self,
        var: VarId,
        range: [&Expr; 3],
        unroll: Unroll,
        body: &[Stmt],
        agreement: Agreement,
    ) {
        let mut inner = agreement;
        for e in range {
            self.typed(e, agreement, DType::I32, "loop bound");
            inner = inner.max(self.uniformity.of(e));
        }
        if self.kernel.var(var).is_some_and(|v| v.dtype != DType::I32) {
            self.type_fault("loop variable is not i32");
        }
        if fold(range[2]).is_some_and(|step| step <= 0) {
            self.type_fault("step of a loop is not positive");
        }
        let constant = range.iter().all(|e| self.is_static(e));
        if unroll == Unroll::Full && !constant {
            let name = self.name(var);
            self.fault(FaultKind::Unroll(name));
        }
        let scope = self.scope.clone();
        let as_ = if unroll == Unroll::Full { Declared::Static } else { Declared::Fixed };
        self.declare(var, as_, false);
        self.block(body, inner, false);
        self.scope = scope;
    }
}
