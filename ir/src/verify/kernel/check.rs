//! What the walk over a kernel knows: declared variables, what was waited for, faults; and its checks of expressions,
//! indices and accesses. [`super::statements`] has the statements.

use super::cluster::Signals;
use super::fault::{Fault, FaultKind};
use super::fold::fold;
use super::rings::Rings;
use super::types::{TypeError, expr_type, index_type};
use super::uniform::{Agreement, Uniformity};
use crate::dtype::DType;
use crate::ids::VarId;
use crate::kernel::{Access, Expr, Kernel, Mem, ParamKind, Stmt};

/// Largest shared memory of any target, in bytes.
const MAX_SHARED: u64 = 227 * 1024;

/// How a declared variable may be used.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Declared {
    /// Assignable.
    Mutable,
    /// A value that unrolling does not make constant.
    Fixed,
    /// A constant, or the variable of a fully unrolled loop.
    Static,
}

/// The walk over a kernel.
pub(super) struct Verifier<'k> {
    pub(super) kernel: &'k Kernel,
    pub(super) uniformity: Uniformity,
    pub(super) has_wait: bool,
    pub(super) waited: bool,
    pub(super) scope: Vec<Option<Declared>>,
    pub(super) signals: Signals,
    pub(super) rings: Rings,
    number: usize,
    at: Option<usize>,
    pub(super) faults: Vec<Fault>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Use {
    /// Brought nearer: no value is seen.
    Ahead,
    Read,
    /// A tile is read.
    Tile,
    Write,
    Update,
}

impl<'k> Verifier<'k> {
    pub(super) fn new(kernel: &'k Kernel) -> Self {
        let mut has_wait = false;
        kernel.visit(&mut |s| has_wait |= matches!(s, Stmt::GridDependencyWait));
        Verifier {
            kernel,
            uniformity: Uniformity::new(kernel),
            has_wait,
            waited: false,
            scope: vec![None; kernel.vars.len()],
            signals: Signals::new(kernel),
            rings: Rings::new(kernel),
            number: 0,
            at: None,
            faults: Vec::new(),
        }
    }

    pub(super) fn fault(&mut self, kind: FaultKind) {
        self.faults.push(Fault { statement: self.at, kind });
    }

    pub(super) fn type_fault(&mut self, message: impl Into<String>) {
        self.fault(FaultKind::Type(message.into()));
    }

    pub(super) fn name(&self, var: VarId) -> String {
        self.kernel.var(var).map_or_else(|| var.to_string(), |v| v.name.clone())
    }

    pub(super) fn header(&mut self) {
        let k = self.kernel;
        let head = k.name.chars().next().is_some_and(|c| c.is_ascii_alphabetic() || c == '_');
        if !head || !k.name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_') {
            self.fault(FaultKind::Header(format!("`{}` is not a C identifier", k.name)));
        }
        if k.threads == 0 || k.threads > 1024 || !k.threads.is_multiple_of(32) {
            self.fault(FaultKind::Header(format!(
                "{} threads a block, must be 32 to 1024 in 32s",
                k.threads
            )));
        }
        let total: u64 = k.shared.iter().map(|s| (u64::from(s.len) * s.dtype.size() as u64 + 15) & !15).sum();
        if total > MAX_SHARED {
            self.fault(FaultKind::Header(format!("{total} bytes of shared memory, at most {MAX_SHARED}")));
        }
        self.cluster_header();
        self.rings_header();
        for v in &k.vars {
            if v.len == Some(0) {
                self.fault(FaultKind::Header(format!("register array `{}` is empty", v.name)));
            }
        }
    }

    pub(super) fn block(&mut self, stmts: &[Stmt], agreement: Agreement, top: bool) {
        let scope = self.scope.clone();
        for s in stmts {
            self.at = Some(self.number);
            self.number += 1;
            self.stmt(s, agreement, top);
        }
        self.scope = scope;
    }

    pub(super) fn declare(&mut self, var: VarId, as_: Declared, array: bool) {
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

    pub(super) fn in_scope(&mut self, var: VarId) {
        if self.scope.get(var.index()).copied().flatten().is_none() {
            let name = self.name(var);
            self.fault(FaultKind::Scope(format!("`{name}` is used where it is not declared")));
        }
    }

    /// Checks an expression and gives its type when it has one.
    pub(super) fn expr(&mut self, e: &Expr, agreement: Agreement) -> Option<DType> {
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

    pub(super) fn typed(&mut self, e: &Expr, agreement: Agreement, want: DType, role: &str) {
        if let Some(got) = self.expr(e, agreement)
            && got != want
        {
            self.type_fault(format!("{role} is {got}, must be {want}"));
        }
    }

    pub(super) fn index(&mut self, e: &Expr, agreement: Agreement) {
        if self.expr(e, agreement).is_some()
            && let Err(TypeError(m)) = index_type(self.kernel, e)
        {
            self.type_fault(m);
        }
    }

    pub(super) fn collective(&mut self, what: &'static str, agreement: Agreement, needed: Agreement) {
        if agreement > needed {
            self.fault(FaultKind::Divergent(what));
        }
    }

    /// Checks a use of memory; `at` is the first element and their number.
    pub(super) fn touch(&mut self, mem: Mem, how: Use, at: Option<(&Expr, u32)>) {
        match mem {
            Mem::Global(p) => {
                let Some(param) = self.kernel.params.get(p.index()) else {
                    return self.type_fault(format!("no parameter {p}"));
                };
                let name = param.name.clone();
                let access = match param.kind {
                    ParamKind::Pointer { dtype: _, access } if how != Use::Tile => access,
                    ParamKind::Matrix { access, .. } if how == Use::Tile => access,
                    ParamKind::Pointer { .. } => {
                        return self.type_fault(format!("a tile of `{name}`, which is no matrix"));
                    }
                    ParamKind::Matrix { .. } | ParamKind::Scalar(_) | ParamKind::Condition => {
                        return self.type_fault(format!("`{name}` is no array but used as one"));
                    }
                };
                let allowed = match access {
                    Access::Constant | Access::Read | Access::Settled | Access::FromHost => {
                        matches!(how, Use::Ahead | Use::Read | Use::Tile)
                    }
                    Access::Write | Access::ToHost => how == Use::Write,
                    Access::ReadWrite => true,
                };
                if !allowed {
                    let verb = match how {
                        Use::Ahead => "prefetched",
                        Use::Read | Use::Tile => "read",
                        Use::Write => "written",
                        Use::Update => "updated",
                    };
                    self.fault(FaultKind::Access(format!("`{name}` is {verb} but declared {access:?}")));
                }
                let any_time = how == Use::Ahead
                    || matches!(access, Access::Constant | Access::Settled | Access::FromHost);
                if self.has_wait && !self.waited && !any_time {
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

    pub(super) fn is_static(&self, e: &Expr) -> bool {
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
    pub(super) fn registers(&mut self, var: VarId, at: &Expr, agreement: Agreement, count: u32, want: DType) {
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

    pub(super) fn width(&mut self, dtype: DType, lanes: u32) {
        let bytes = (dtype.size() as u32).saturating_mul(lanes);
        if !matches!(bytes, 4 | 8 | 16) {
            self.fault(FaultKind::VectorWidth(bytes));
        }
    }
}
