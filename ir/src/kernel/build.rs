//! Construction of kernel IR: operators on expressions and a builder with nested blocks.

use super::*;

impl Expr {
    /// An i32 literal.
    pub fn int(v: i64) -> Expr {
        Expr::Const(Const::I32(v as i32))
    }

    /// A u32 literal.
    pub fn uint(v: u32) -> Expr {
        Expr::Const(Const::U32(v))
    }

    /// An f32 literal.
    pub fn float(v: f32) -> Expr {
        Expr::Const(Const::F32(v))
    }

    /// The value of an i32 literal.
    pub fn as_int(&self) -> Option<i64> {
        match self {
            Expr::Const(Const::I32(v)) => Some(i64::from(*v)),
            _ => None,
        }
    }

    fn bin(op: BinaryOp, a: Expr, b: Expr) -> Expr {
        Expr::Binary(op, Box::new(a), Box::new(b))
    }

    /// Comparison.
    pub fn cmp(op: CompareOp, a: Expr, b: Expr) -> Expr {
        Expr::Compare(op, Box::new(a), Box::new(b))
    }

    /// `self < b`.
    pub fn lt(self, b: Expr) -> Expr {
        Expr::cmp(CompareOp::Lt, self, b)
    }

    /// `self >= b`.
    pub fn ge(self, b: Expr) -> Expr {
        Expr::cmp(CompareOp::Ge, self, b)
    }

    /// `self == b`.
    pub fn eq_(self, b: Expr) -> Expr {
        Expr::cmp(CompareOp::Eq, self, b)
    }

    /// `self && b`.
    pub fn and(self, b: Expr) -> Expr {
        match (&self, &b) {
            (Expr::Const(Const::Bool(true)), _) => b,
            (_, Expr::Const(Const::Bool(true))) => self,
            _ => Expr::bin(BinaryOp::And, self, b),
        }
    }

    /// `self ? a : b`.
    pub fn select(self, a: Expr, b: Expr) -> Expr {
        Expr::Select(Box::new(self), Box::new(a), Box::new(b))
    }

    /// Conversion to a type.
    pub fn cast(self, dtype: DType) -> Expr {
        Expr::Cast(dtype, Box::new(self))
    }

    /// Bitwise exclusive or.
    pub fn xor(self, b: Expr) -> Expr {
        Expr::bin(BinaryOp::Xor, self, b)
    }

    /// Smaller of two.
    pub fn min(self, b: Expr) -> Expr {
        Expr::bin(BinaryOp::Min, self, b)
    }

    /// Larger of two.
    pub fn max(self, b: Expr) -> Expr {
        Expr::bin(BinaryOp::Max, self, b)
    }

    /// Math function of one argument.
    pub fn math(f: MathFn, a: Expr) -> Expr {
        Expr::Math(f, vec![a])
    }

    /// `fmaf(a, b, c)`.
    pub fn fma(a: Expr, b: Expr, c: Expr) -> Expr {
        Expr::Math(MathFn::Fma, vec![a, b, c])
    }

    /// `__shfl_xor_sync`.
    pub fn shuffle_xor(self, mask: i64) -> Expr {
        Expr::Shuffle(ShuffleMode::Xor, Box::new(self), Box::new(Expr::int(mask)))
    }

    /// Element of a register array.
    pub fn elem(array: VarId, index: Expr) -> Expr {
        Expr::Elem(array, Box::new(index))
    }

    /// Element of memory.
    pub fn load(mem: Mem, index: Expr) -> Expr {
        Expr::Load(mem, Box::new(index))
    }
}

/// Integer arithmetic folds constants, so that printed indices are short.
fn fold(op: BinaryOp, a: Expr, b: Expr) -> Expr {
    if let (Some(x), Some(y)) = (a.as_int(), b.as_int()) {
        let v = match op {
            BinaryOp::Add => x.checked_add(y),
            BinaryOp::Sub => x.checked_sub(y),
            BinaryOp::Mul => x.checked_mul(y),
            BinaryOp::Div => x.checked_div(y),
            BinaryOp::Rem => x.checked_rem(y),
            _ => None,
        };
        if let Some(v) = v.filter(|v| i32::try_from(*v).is_ok()) {
            return Expr::int(v);
        }
    }
    match (op, a.as_int(), b.as_int()) {
        (BinaryOp::Add | BinaryOp::Sub, _, Some(0)) | (BinaryOp::Mul | BinaryOp::Div, _, Some(1)) => a,
        (BinaryOp::Add, Some(0), _) | (BinaryOp::Mul, Some(1), _) => b,
        (BinaryOp::Mul, Some(0), _) | (BinaryOp::Mul, _, Some(0)) | (BinaryOp::Rem, _, Some(1)) => {
            Expr::int(0)
        }
        (BinaryOp::Div, Some(0), _) => Expr::int(0),
        _ => Expr::bin(op, a, b),
    }
}

macro_rules! operator {
    ($trait:ident, $fn:ident, $op:ident) => {
        impl std::ops::$trait for Expr {
            type Output = Expr;
            fn $fn(self, rhs: Expr) -> Expr {
                fold(BinaryOp::$op, self, rhs)
            }
        }
        impl std::ops::$trait<i64> for Expr {
            type Output = Expr;
            fn $fn(self, rhs: i64) -> Expr {
                fold(BinaryOp::$op, self, Expr::int(rhs))
            }
        }
    };
}
operator!(Add, add, Add);
operator!(Sub, sub, Sub);
operator!(Mul, mul, Mul);
operator!(Div, div, Div);
operator!(Rem, rem, Rem);

impl From<VarId> for Expr {
    fn from(v: VarId) -> Expr {
        Expr::Var(v)
    }
}

/// Builds a kernel: declares parameters, shared arrays and variables, and collects statements in nested
/// blocks opened by [`KernelBuilder::for_loop`] and [`KernelBuilder::if_then`].
#[derive(Debug)]
pub struct KernelBuilder {
    kernel: Kernel,
    blocks: Vec<Vec<Stmt>>,
}

impl KernelBuilder {
    /// A kernel of this name and block size.
    pub fn new(name: impl Into<String>, threads: u32) -> Self {
        let kernel = Kernel {
            name: name.into(),
            doc: Vec::new(),
            params: Vec::new(),
            shared: Vec::new(),
            signals: Vec::new(),
            rings: Vec::new(),
            vars: Vec::new(),
            threads,
            min_blocks: None,
            cluster: None,
            body: Vec::new(),
        };
        KernelBuilder { kernel, blocks: vec![Vec::new()] }
    }

    /// Adds a line to the header comment.
    pub fn doc(&mut self, line: impl Into<String>) {
        self.kernel.doc.push(line.into());
    }

    /// Declares a pointer parameter.
    pub fn pointer(&mut self, name: &str, dtype: DType, access: Access) -> Mem {
        self.kernel.params.push(Param { name: name.into(), kind: ParamKind::Pointer { dtype, access } });
        Mem::Global(ParamId::new(self.kernel.params.len() - 1))
    }

    /// Declares a matrix with rows of `columns` elements, of which tiles of `rows` rows are copied.
    pub fn matrix(&mut self, name: &str, dtype: DType, access: Access, (columns, rows): (u32, u32)) -> Mem {
        let kind = ParamKind::Matrix { dtype, access, columns, rows };
        self.kernel.params.push(Param { name: name.into(), kind });
        Mem::Global(ParamId::new(self.kernel.params.len() - 1))
    }

    /// Declares a scalar parameter.
    pub fn scalar(&mut self, name: &str, dtype: DType) -> Expr {
        self.kernel.params.push(Param { name: name.into(), kind: ParamKind::Scalar(dtype) });
        Expr::Param(ParamId::new(self.kernel.params.len() - 1))
    }

    /// Declares the handle of a graph's condition.
    pub fn condition(&mut self, name: &str) -> ParamId {
        self.kernel.params.push(Param { name: name.into(), kind: ParamKind::Condition });
        ParamId::new(self.kernel.params.len() - 1)
    }

    /// Declares a shared array.
    pub fn shared(&mut self, name: &str, dtype: DType, len: u32) -> SharedId {
        self.aligned(name, dtype, len, 16)
    }

    /// Declares a shared array of swizzled rows ([`Stmt::Wgmma`]).
    pub fn swizzled(&mut self, name: &str, dtype: DType, rows: u32) -> SharedId {
        self.aligned(name, dtype, rows * SWIZZLED_ROW, SWIZZLED)
    }

    fn aligned(&mut self, name: &str, dtype: DType, len: u32, align: u32) -> SharedId {
        self.kernel.shared.push(SharedArray { name: name.into(), dtype, len, align });
        SharedId::new(self.kernel.shared.len() - 1)
    }

    /// Declares a signal of the block.
    pub fn signal(&mut self, name: &str) -> SignalId {
        self.kernel.signals.push(name.into());
        SignalId::new(self.kernel.signals.len() - 1)
    }

    /// Declares a ring of stages.
    pub fn ring(&mut self, name: &str, stages: u32) -> RingId {
        self.kernel.rings.push(Ring { name: name.into(), stages });
        RingId::new(self.kernel.rings.len() - 1)
    }

    fn new_var(&mut self, name: &str, dtype: DType, len: Option<u32>) -> VarId {
        self.kernel.vars.push(Var { name: name.into(), dtype, len });
        VarId::new(self.kernel.vars.len() - 1)
    }

    /// Appends a statement.
    pub fn push(&mut self, stmt: Stmt) {
        if let Some(block) = self.blocks.last_mut() {
            block.push(stmt);
        }
    }

    /// Appends a comment.
    pub fn comment(&mut self, line: impl Into<String>) {
        self.push(Stmt::Comment(line.into()));
    }

    /// Declares a constant variable with a value.
    pub fn let_(&mut self, name: &str, dtype: DType, value: Expr) -> Expr {
        let var = self.new_var(name, dtype, None);
        self.push(Stmt::Let { var, value, mutable: false });
        Expr::Var(var)
    }

    /// Declares a mutable variable with a value.
    pub fn let_mut(&mut self, name: &str, dtype: DType, value: Expr) -> VarId {
        let var = self.new_var(name, dtype, None);
        self.push(Stmt::Let { var, value, mutable: true });
        var
    }

    /// Declares a register array.
    pub fn array(&mut self, name: &str, dtype: DType, len: u32, init: Option<Expr>) -> VarId {
        let var = self.new_var(name, dtype, Some(len));
        self.push(Stmt::DeclareArray { var, init });
        var
    }

    /// Assigns a variable.
    pub fn assign(&mut self, var: VarId, value: Expr) {
        self.push(Stmt::Assign { var, value });
    }

    /// Assigns an element of a register array.
    pub fn assign_elem(&mut self, var: VarId, index: Expr, value: Expr) {
        self.push(Stmt::AssignElem { var, index, value });
    }

    /// Stores one element.
    pub fn store(&mut self, mem: Mem, index: Expr, value: Expr) {
        self.push(Stmt::Store { mem, index, value });
    }

    /// `atomicAdd` on an i32 or u32 element; gives the old value.
    pub fn atomic_add(&mut self, name: &str, mem: Mem, index: Expr, value: Expr) -> Expr {
        let dtype = self.mem_dtype(mem).unwrap_or(DType::I32);
        let old = self.new_var(name, dtype, None);
        self.push(Stmt::AtomicAdd { mem, index, value, old: Some(old) });
        Expr::Var(old)
    }

    /// Arrives at a counter that `expected` blocks share (see [`Stmt::LastBlock`]): whether this block is the last.
    pub fn last_block(&mut self, name: &str, counter: Mem, index: Expr, expected: Expr) -> Expr {
        let last = self.new_var(name, DType::Bool, None);
        self.push(Stmt::LastBlock { counter, index, expected, last });
        Expr::Var(last)
    }

    /// A loop; the closure fills its body and receives the variable.
    pub fn for_loop(
        &mut self,
        name: &str,
        range: (Expr, Expr, Expr),
        unroll: Unroll,
        fill: impl FnOnce(&mut Self, Expr),
    ) {
        let var = self.new_var(name, DType::I32, None);
        let body = self.block(|b| fill(b, Expr::Var(var)));
        let (start, end, step) = range;
        self.push(Stmt::For { var, start, end, step, unroll, body });
    }

    /// A fully unrolled loop over `0..count`.
    pub fn unrolled(&mut self, name: &str, count: u32, fill: impl FnOnce(&mut Self, Expr)) {
        let range = (Expr::int(0), Expr::int(i64::from(count)), Expr::int(1));
        self.for_loop(name, range, Unroll::Full, fill);
    }

    /// A conditional without an else branch.
    pub fn if_then(&mut self, cond: Expr, fill: impl FnOnce(&mut Self)) {
        let then = self.block(fill);
        self.push(Stmt::If { cond, then, otherwise: Vec::new() });
    }

    /// A conditional with both branches.
    pub fn if_else(&mut self, cond: Expr, then: impl FnOnce(&mut Self), otherwise: impl FnOnce(&mut Self)) {
        let then = self.block(then);
        let otherwise = self.block(otherwise);
        self.push(Stmt::If { cond, then, otherwise });
    }

    /// Statements that a closure appends, as a block of their own.
    pub fn block(&mut self, fill: impl FnOnce(&mut Self)) -> Vec<Stmt> {
        self.blocks.push(Vec::new());
        fill(self);
        self.blocks.pop().unwrap_or_default()
    }

    /// Opens a block of statements, for [`KernelBuilder::close`].
    pub fn open(&mut self) {
        self.blocks.push(Vec::new());
    }

    /// Closes the innermost open block and returns its statements.
    pub fn close(&mut self) -> Vec<Stmt> {
        self.blocks.pop().unwrap_or_default()
    }

    /// Declares the i32 variable of a loop that the caller pushes.
    pub fn loop_var(&mut self, name: &str) -> VarId {
        self.new_var(name, DType::I32, None)
    }

    /// Element type of a memory operand.
    pub fn mem_dtype(&self, mem: Mem) -> Option<DType> {
        self.kernel.mem_dtype(mem)
    }

    /// Sets the wished number of blocks an SM.
    pub fn min_blocks(&mut self, blocks: u32) {
        self.kernel.min_blocks = Some(blocks);
    }

    /// Joins so many blocks along z to clusters.
    pub fn cluster(&mut self, blocks: u32) {
        self.kernel.cluster = Some(blocks);
    }

    /// The finished kernel.
    pub fn finish(mut self) -> Kernel {
        self.kernel.body = self.blocks.pop().unwrap_or_default();
        self.kernel
    }
}
