//! Verifier of kernel IR: types, scopes, access, widths, unrolling, convergence and the grid dependency.
//!
//! All faults are collected. What a program text cannot show (bounds of computed indices, races,
//! initialisation, divergence that depends on data) is left to the emulator.

mod types;
mod uniform;

pub use types::{TypeError, expr_type};

use crate::dtype::DType;
use crate::ids::VarId;
use crate::kernel::{
    Access, BinaryOp, CacheHint, Const, Expr, Kernel, MatrixCount, Mem, ParamKind, Stmt, UnaryOp, Unroll,
};
use types::index_type;
use uniform::{Agreement, Uniformity};

/// What a kernel needs and uses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// Bytes of all shared arrays.
    pub shared_bytes: u32,
    /// Bytes of dynamic shared memory the launch must ask for (0: the arrays are static).
    pub dynamic_shared: u32,
    /// Uses `mma.sync`.
    pub mma: bool,
    /// Uses `ldmatrix`.
    pub ldmatrix: bool,
    /// Uses `cp.async`.
    pub cp_async: bool,
    /// Uses `griddepcontrol` (programmatic dependent launch).
    pub pdl: bool,
    /// Uses atomics.
    pub atomics: bool,
    /// Bytes of the widest vector access (0: none).
    pub max_vector_bytes: u32,
}

/// A fault of a kernel.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}{kind}", place(.statement))]
pub struct Fault {
    /// Number of the statement in program order (see [`Kernel::statement`]); `None` for the header.
    pub statement: Option<usize>,
    /// What is wrong.
    pub kind: FaultKind,
}

fn place(statement: &Option<usize>) -> String {
    statement.map_or_else(String::new, |n| format!("statement {n}: "))
}

/// Kinds of faults.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FaultKind {
    /// Name, block size or shared arrays that no kernel can have.
    #[error("{0}")]
    Header(String),
    /// Types that do not fit.
    #[error("{0}")]
    Type(String),
    /// A variable used outside the block that declares it, or declared twice.
    #[error("{0}")]
    Scope(String),
    /// Assignment to a constant or loop variable.
    #[error("`{0}` is assigned but not mutable")]
    Immutable(String),
    /// An access that the parameter does not allow.
    #[error("{0}")]
    Access(String),
    /// A literal index outside its array.
    #[error("index {index} is outside `{array}` of {len} elements")]
    OutOfRange {
        /// Name of the array.
        array: String,
        /// First or last index touched.
        index: i64,
        /// Elements of the array.
        len: u32,
    },
    /// A register array indexed by something unrolling does not make constant.
    #[error("register array `{0}` is indexed by a value that is not constant after unrolling")]
    DynamicIndex(String),
    /// A vector access or asynchronous copy that is not 4, 8 or 16 bytes of whole elements.
    #[error("vector access of {0} bytes, must be 4, 8 or 16")]
    VectorWidth(u32),
    /// A fully unrolled loop with bounds that are not constant.
    #[error("loop over `{0}` is unrolled in full but its bounds are not constant")]
    Unroll(String),
    /// A barrier or collective in a branch or loop that threads take differently.
    #[error("{0} under a condition that differs between threads")]
    Divergent(&'static str),
    /// Non-constant global memory touched before the dependency wait.
    #[error("`{0}` is accessed before the grid dependency wait")]
    BeforeDependencyWait(String),
    /// A dependency wait that some path may skip.
    #[error("grid dependency wait inside a branch or loop")]
    ConditionalDependencyWait,
}

impl FaultKind {
    /// Whether the kernel has no meaning (ill-typed or ill-scoped), rather than a wrong one that an
    /// emulator can run and observe.
    pub fn is_structural(&self) -> bool {
        match self {
            FaultKind::Header(_)
            | FaultKind::Type(_)
            | FaultKind::Scope(_)
            | FaultKind::Immutable(_)
            | FaultKind::Access(_)
            | FaultKind::VectorWidth(_) => true,
            FaultKind::OutOfRange { .. }
            | FaultKind::DynamicIndex(_)
            | FaultKind::Unroll(_)
            | FaultKind::Divergent(_)
            | FaultKind::BeforeDependencyWait(_)
            | FaultKind::ConditionalDependencyWait => false,
        }
    }
}

/// Largest shared memory of any target, in bytes.
const MAX_SHARED: u64 = 227 * 1024;

/// Checks a kernel; gives its facts, or every fault found.
pub fn verify(kernel: &Kernel) -> Result<Facts, Vec<Fault>> {
    let mut v = Verifier::new(kernel);
    v.header();
    v.block(&kernel.body, Agreement::Block, true);
    if v.faults.is_empty() { Ok(facts(kernel)) } else { Err(v.faults) }
}

fn facts(kernel: &Kernel) -> Facts {
    let mut f = Facts {
        shared_bytes: kernel.shared_layout().1,
        dynamic_shared: kernel.dynamic_shared(),
        ..Facts::default()
    };
    let bytes = |mem: &Mem, lanes: &u32| kernel.mem_dtype(*mem).map_or(0, |d| d.size() as u32 * lanes);
    kernel.visit(&mut |s| match s {
        Stmt::Mma { .. } => f.mma = true,
        Stmt::LdMatrix { .. } => f.ldmatrix = true,
        Stmt::CpAsync { .. } | Stmt::CpAsyncCommit | Stmt::CpAsyncWait { .. } => f.cp_async = true,
        Stmt::GridDependencyWait | Stmt::GridDependencyLaunch => f.pdl = true,
        Stmt::AtomicAdd { .. } => f.atomics = true,
        Stmt::LoadVec { mem, lanes, .. } | Stmt::StoreVec { mem, lanes, .. } => {
            f.max_vector_bytes = f.max_vector_bytes.max(bytes(mem, lanes));
        }
        Stmt::Comment(_)
        | Stmt::Let { .. }
        | Stmt::DeclareArray { .. }
        | Stmt::Assign { .. }
        | Stmt::AssignElem { .. }
        | Stmt::Store { .. }
        | Stmt::For { .. }
        | Stmt::If { .. }
        | Stmt::Barrier
        | Stmt::WarpBarrier
        | Stmt::Fence => {}
    });
    f
}

/// How a declared variable may be used.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Declared {
    /// Assignable.
    Mutable,
    /// A value that unrolling does not make constant.
    Fixed,
    /// A constant, or the variable of a fully unrolled loop.
    Static,
}

struct Verifier<'k> {
    kernel: &'k Kernel,
    uniformity: Uniformity,
    has_wait: bool,
    waited: bool,
    scope: Vec<Option<Declared>>,
    number: usize,
    at: Option<usize>,
    faults: Vec<Fault>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Use {
    Read,
    Write,
    Update,
}

impl<'k> Verifier<'k> {
    fn new(kernel: &'k Kernel) -> Self {
        let mut has_wait = false;
        kernel.visit(&mut |s| has_wait |= matches!(s, Stmt::GridDependencyWait));
        Verifier {
            kernel,
            uniformity: Uniformity::new(kernel),
            has_wait,
            waited: false,
            scope: vec![None; kernel.vars.len()],
            number: 0,
            at: None,
            faults: Vec::new(),
        }
    }

    fn fault(&mut self, kind: FaultKind) {
        self.faults.push(Fault { statement: self.at, kind });
    }

    fn type_fault(&mut self, message: impl Into<String>) {
        self.fault(FaultKind::Type(message.into()));
    }

    fn name(&self, var: VarId) -> String {
        self.kernel.var(var).map_or_else(|| var.to_string(), |v| v.name.clone())
    }

    fn header(&mut self) {
        let k = self.kernel;
        let head = k.name.chars().next().is_some_and(|c| c.is_ascii_alphabetic() || c == '_');
        if !head || !k.name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_') {
            self.fault(FaultKind::Header(format!("`{}` is not a C identifier", k.name)));
        }
        if k.threads == 0 || k.threads > 1024 || k.threads % 32 != 0 {
            self.fault(FaultKind::Header(format!(
                "{} threads a block, must be 32 to 1024 in 32s",
                k.threads
            )));
        }
        let total: u64 = k.shared.iter().map(|s| (u64::from(s.len) * s.dtype.size() as u64 + 15) & !15).sum();
        if total > MAX_SHARED {
            self.fault(FaultKind::Header(format!("{total} bytes of shared memory, at most {MAX_SHARED}")));
        }
        for v in &k.vars {
            if v.len == Some(0) {
                self.fault(FaultKind::Header(format!("register array `{}` is empty", v.name)));
            }
        }
    }

    fn block(&mut self, stmts: &[Stmt], agreement: Agreement, top: bool) {
        let scope = self.scope.clone();
        for s in stmts {
            self.at = Some(self.number);
            self.number += 1;
            self.stmt(s, agreement, top);
        }
        self.scope = scope;
    }

    fn declare(&mut self, var: VarId, as_: Declared, array: bool) {
        let name = self.name(var);
        match (self.kernel.var(var), self.scope.get(var.index())) {
            (None, _) | (_, None) => self.type_fault(format!("no variable {var}")),
            (Some(_), Some(Some(_))) => self.fault(FaultKind::Scope(format!("`{name}` is declared twice"))),
            (Some(v), Some(None)) if v.len.is_some() != array => {
                self.type_fault(format!("`{name}` is declared as what it is not (scalar or array)"));
            }
            (Some(_), Some(None)) => {}
        }
        if let Some(slot) = self.scope.get_mut(var.index()) {
            *slot = Some(as_);
        }
    }

    fn in_scope(&mut self, var: VarId) {
        if self.scope.get(var.index()).copied().flatten().is_none() {
            let name = self.name(var);
            self.fault(FaultKind::Scope(format!("`{name}` is used where it is not declared")));
        }
    }

    /// Checks an expression and gives its type when it has one.
    fn expr(&mut self, e: &Expr, agreement: Agreement) -> Option<DType> {
        e.visit(&mut |part| match part {
            Expr::Var(v) => self.in_scope(*v),
            Expr::Elem(v, index) => {
                self.in_scope(*v);
                self.register_index(*v, index, 1);
            }
            Expr::Load(mem, index) => self.touch(*mem, Use::Read, Some((index, 1))),
            Expr::Shuffle(_, _, _) => self.collective("warp shuffle", agreement, Agreement::Warp),
            Expr::Const(_)
            | Expr::Param(_)
            | Expr::ThreadIdx
            | Expr::BlockIdx(_)
            | Expr::GridDim(_)
            | Expr::Unary(_, _)
            | Expr::Binary(_, _, _)
            | Expr::Compare(_, _, _)
            | Expr::Select(_, _, _)
            | Expr::Cast(_, _)
            | Expr::Bitcast(_, _)
            | Expr::Math(_, _)
            | Expr::Pack2(_, _, _) => {}
        });
        expr_type(self.kernel, e).map_err(|TypeError(m)| self.type_fault(m)).ok()
    }

    fn typed(&mut self, e: &Expr, agreement: Agreement, want: DType, role: &str) {
        if let Some(got) = self.expr(e, agreement)
            && got != want
        {
            self.type_fault(format!("{role} is {got}, must be {want}"));
        }
    }

    fn index(&mut self, e: &Expr, agreement: Agreement) {
        if self.expr(e, agreement).is_some()
            && let Err(TypeError(m)) = index_type(self.kernel, e)
        {
            self.type_fault(m);
        }
    }

    fn collective(&mut self, what: &'static str, agreement: Agreement, needed: Agreement) {
        if agreement > needed {
            self.fault(FaultKind::Divergent(what));
        }
    }

    /// Checks a use of memory; `at` is the first element and their number.
    fn touch(&mut self, mem: Mem, how: Use, at: Option<(&Expr, u32)>) {
        match mem {
            Mem::Global(p) => {
                let Some(param) = self.kernel.params.get(p.index()) else {
                    return self.type_fault(format!("no parameter {p}"));
                };
                let name = param.name.clone();
                let ParamKind::Pointer { dtype: _, access } = param.kind else {
                    return self.type_fault(format!("scalar `{name}` used as an array"));
                };
                let allowed = match access {
                    Access::Constant | Access::Read => how == Use::Read,
                    Access::Write => how == Use::Write,
                    Access::ReadWrite => true,
                };
                if !allowed {
                    let verb = match how {
                        Use::Read => "read",
                        Use::Write => "written",
                        Use::Update => "updated",
                    };
                    self.fault(FaultKind::Access(format!("`{name}` is {verb} but declared {access:?}")));
                }
                if self.has_wait && !self.waited && access != Access::Constant {
                    self.fault(FaultKind::BeforeDependencyWait(name));
                }
            }
            Mem::Shared(s) => match self.kernel.shared_array(s) {
                None => self.type_fault(format!("no shared array {s}")),
                Some(array) => {
                    if let Some((index, count)) = at {
                        let (name, len) = (array.name.clone(), array.len);
                        self.range(name, len, index, count);
                    }
                }
            },
        }
    }

    fn range(&mut self, array: String, len: u32, index: &Expr, count: u32) {
        if let Some(first) = fold(index) {
            let last = first + i64::from(count) - 1;
            if first < 0 {
                self.fault(FaultKind::OutOfRange { array, index: first, len });
            } else if last >= i64::from(len) {
                self.fault(FaultKind::OutOfRange { array, index: last, len });
            }
        }
    }

    fn is_static(&self, e: &Expr) -> bool {
        let leaf = match e {
            Expr::Const(_) => true,
            Expr::Var(v) => self.scope.get(v.index()).copied().flatten() == Some(Declared::Static),
            Expr::Elem(_, _)
            | Expr::Param(_)
            | Expr::ThreadIdx
            | Expr::BlockIdx(_)
            | Expr::GridDim(_)
            | Expr::Load(_, _)
            | Expr::Shuffle(_, _, _) => false,
            Expr::Unary(_, _)
            | Expr::Binary(_, _, _)
            | Expr::Compare(_, _, _)
            | Expr::Select(_, _, _)
            | Expr::Cast(_, _)
            | Expr::Bitcast(_, _)
            | Expr::Math(_, _)
            | Expr::Pack2(_, _, _) => true,
        };
        leaf && e.parts().into_iter().all(|p| self.is_static(p))
    }

    fn register_index(&mut self, var: VarId, index: &Expr, count: u32) {
        let name = self.name(var);
        if !self.is_static(index) {
            self.fault(FaultKind::DynamicIndex(name));
        } else if let Some(len) = self.kernel.var(var).and_then(|v| v.len) {
            self.range(name, len, index, count);
        }
    }

    /// Checks `count` elements of a register array that an instruction uses.
    fn registers(&mut self, var: VarId, at: &Expr, agreement: Agreement, count: u32, want: DType) {
        self.in_scope(var);
        self.index(at, agreement);
        self.register_index(var, at, count);
        let name = self.name(var);
        match self.kernel.var(var).map(|v| (v.dtype, v.len.is_some())) {
            None => self.type_fault(format!("no variable {var}")),
            Some((_, false)) => self.type_fault(format!("scalar `{name}` used as an array")),
            Some((got, true)) if got != want => {
                self.type_fault(format!("register array `{name}` is {got}, must be {want}"));
            }
            Some((_, true)) => {}
        }
    }

    fn width(&mut self, dtype: DType, lanes: u32) {
        let bytes = (dtype.size() as u32).saturating_mul(lanes);
        if !matches!(bytes, 4 | 8 | 16) {
            self.fault(FaultKind::VectorWidth(bytes));
        }
    }

    fn stmt(&mut self, s: &Stmt, agreement: Agreement, top: bool) {
        match s {
            Stmt::Comment(_)
            | Stmt::GridDependencyLaunch
            | Stmt::CpAsyncCommit
            | Stmt::CpAsyncWait { pending: _ }
            | Stmt::Fence => {}
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
                self.vector(*mem, Use::Read, index, (*dst, dst_at), *lanes, agreement);
                if *hint == CacheHint::Streaming && !self.is_constant(*mem) {
                    self.fault(FaultKind::Access("streaming load from memory that is not Constant".into()));
                }
            }
            Stmt::StoreVec { mem, index, src, src_at, lanes } => {
                self.vector(*mem, Use::Write, index, (*src, src_at), *lanes, agreement);
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
        }
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
        if let Some(dtype) = self.kernel.mem_dtype(mem) {
            self.width(dtype, lanes);
            self.registers(registers.0, registers.1, agreement, lanes, dtype);
        }
    }

    fn copy_async(&mut self, to: Mem, to_at: &Expr, from: Mem, from_at: &Expr, bytes: u32, a: Agreement) {
        self.index(to_at, a);
        self.index(from_at, a);
        self.touch(from, Use::Read, None);
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

/// Value of an integer expression of literals.
fn fold(e: &Expr) -> Option<i64> {
    match e {
        Expr::Const(Const::I32(v)) => Some(i64::from(*v)),
        Expr::Const(Const::U32(v)) => Some(i64::from(*v)),
        Expr::Const(Const::I64(v)) => Some(*v),
        Expr::Unary(UnaryOp::Neg, a) => fold(a)?.checked_neg(),
        Expr::Binary(op, a, b) => {
            let (a, b) = (fold(a)?, fold(b)?);
            match op {
                BinaryOp::Add => a.checked_add(b),
                BinaryOp::Sub => a.checked_sub(b),
                BinaryOp::Mul => a.checked_mul(b),
                BinaryOp::Div => a.checked_div(b),
                BinaryOp::Rem => a.checked_rem(b),
                BinaryOp::Min => Some(a.min(b)),
                BinaryOp::Max => Some(a.max(b)),
                BinaryOp::And
                | BinaryOp::Or
                | BinaryOp::Xor
                | BinaryOp::Shl
                | BinaryOp::Shr
                | BinaryOp::MulHi => None,
            }
        }
        Expr::Unary(UnaryOp::Not | UnaryOp::BitNot, _)
        | Expr::Const(Const::F32(_) | Const::Bool(_))
        | Expr::Var(_)
        | Expr::Elem(_, _)
        | Expr::Param(_)
        | Expr::ThreadIdx
        | Expr::BlockIdx(_)
        | Expr::GridDim(_)
        | Expr::Compare(_, _, _)
        | Expr::Select(_, _, _)
        | Expr::Cast(_, _)
        | Expr::Bitcast(_, _)
        | Expr::Math(_, _)
        | Expr::Load(_, _)
        | Expr::Shuffle(_, _, _)
        | Expr::Pack2(_, _, _) => None,
    }
}
