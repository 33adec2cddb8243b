//! A kernel being built for a work: parameters, index arithmetic, blocks of statements, stores.

use weft_ir::dtype::DType;
use weft_ir::ids::SharedId;
use weft_ir::kernel::build::KernelBuilder;
use weft_ir::kernel::{Access, Const, Expr, Mem, Stmt, Unroll};
use weft_ir::plan::{Advance, BufferKind, Compute, KernelSpec, Operand, Plan, Scalar, Store, Work};
use weft_ir::shape::{Dim, Shape, Sym};

/// A kernel being built for a work: its parameters and helpers.
pub(crate) struct Body<'a> {
    pub k: KernelBuilder,
    pub spec: &'a KernelSpec,
    pub work: &'a Work,
    pub reads: Vec<Mem>,
    pub writes: Vec<Mem>,
    pub plan: &'a Plan,
    /// Results of the steps so far: in shared memory, of this type and shape.
    pub locals: Vec<(SharedId, DType, Vec<usize>)>,
    /// Arrays of partial results, in the order of the spec's scratch.
    pub partials: Vec<Mem>,
    counters: Option<Mem>,
    syms: Vec<(Sym, Expr)>,
}

/// Values of the free parts of a scalar expression at one point.
#[derive(Clone, Default)]
pub(crate) struct Point {
    /// Coordinates, i32.
    pub coords: Vec<Expr>,
    /// Results of reduction stages, f32.
    pub reduced: Vec<Expr>,
    /// Accumulators, f32.
    pub acc: Vec<Expr>,
    /// Loads that were made already, and their values.
    pub loaded: Vec<(Scalar, Expr)>,
}

impl Point {
    pub fn at(coords: Vec<Expr>) -> Point {
        Point { coords, ..Point::default() }
    }

    pub fn with_acc(coords: Vec<Expr>, acc: Expr) -> Point {
        Point { coords, acc: vec![acc], ..Point::default() }
    }
}

/// How a kernel uses an array that it reads.
fn read_access(work: &Work, at: usize, operand: &Operand) -> Access {
    match &work.compute {
        Compute::Advance(_) if on_host(&Advance::reads(), at) => Access::FromHost,
        Compute::Attention(a) if a.settled && [a.keys, a.values].iter().any(|o| o.index() == at) => {
            Access::Settled
        }
        _ if operand.constant => Access::Constant,
        _ => Access::Read,
    }
}

/// How a kernel uses an array that it writes.
fn write_access(work: &Work, at: usize) -> Access {
    match &work.compute {
        Compute::Advance(_) if on_host(&Advance::writes(), at) => Access::ToHost,
        Compute::Advance(_) => Access::ReadWrite,
        // Tokens are drawn from the logits that the same kernel stores.
        Compute::MatMul(m) if m.draw.as_ref().is_some_and(|d| usize::from(d.logits) == at) => {
            Access::ReadWrite
        }
        _ => Access::Write,
    }
}

fn on_host(kinds: &[BufferKind], at: usize) -> bool {
    matches!(kinds.get(at), Some(BufferKind::Control(c)) if c.on_host())
}

impl<'a> Body<'a> {
    pub fn new(plan: &'a Plan, spec: &'a KernelSpec, work: &'a Work) -> Self {
        let mut k = KernelBuilder::new(&spec.name, spec.threads);
        let mut read = |(i, o): (usize, &Operand)| {
            let access = read_access(work, i, o);
            match (spec.tile_rows(work, i), o.shape.last()) {
                (Some(rows), Some(Dim::Const(columns))) => {
                    k.matrix(&o.name, o.dtype, access, (*columns as u32, rows))
                }
                _ => k.pointer(&o.name, o.dtype, access),
            }
        };
        let reads = work.reads.iter().enumerate().map(&mut read).collect();
        let write = |(i, o): (usize, &Operand)| k.pointer(&o.name, o.dtype, write_access(work, i));
        let writes = work.writes.iter().enumerate().map(write).collect();
        let syms = work.syms().into_iter().map(|s| (s, k.scalar(s.name(), DType::I32))).collect();
        let shared = spec.scratch.iter().flat_map(|s| &s.partials);
        let partials = shared.map(|p| k.pointer(&p.name, p.dtype, Access::ReadWrite)).collect();
        let counters = spec.scratch.as_ref().map(|_| k.pointer("counters", DType::U32, Access::ReadWrite));
        Body { k, spec, work, reads, writes, locals: Vec::new(), partials, counters, plan, syms }
    }

    /// Arrives at a counter of the kernel's scratch that `expected` (u32) blocks share: whether this block is the
    /// last, to which everything that the others stored before is visible. All threads of the block take part.
    pub fn last_block(&mut self, index: Expr, expected: Expr) -> Result<Expr, String> {
        let counters = self.counters.ok_or("the schedule has no counters for its blocks")?;
        Ok(self.k.last_block("is_last", counters, index, expected))
    }

    /// Lets dependents start, then waits for what this kernel depends on, where the kernel does so itself.
    pub fn wait_for_dependencies(&mut self) {
        self.launch_dependents();
        self.wait();
    }

    /// Lets dependents start.
    pub fn launch_dependents(&mut self) {
        if self.spec.programmatic {
            self.k.push(Stmt::GridDependencyLaunch);
        }
    }

    /// Waits for what this kernel depends on; only constants may be read before.
    pub fn wait(&mut self) {
        if self.spec.programmatic {
            self.k.push(Stmt::GridDependencyWait);
        }
    }

    /// Extent as an i32 expression.
    pub fn extent(&self, d: Dim) -> Expr {
        match d {
            Dim::Const(n) => Expr::int(n as i64),
            Dim::Sym(s) => self.sym(s),
        }
    }

    /// Value of a symbol.
    pub(super) fn sym(&self, s: Sym) -> Expr {
        self.syms.iter().find(|(x, _)| *x == s).map(|(_, e)| e.clone()).unwrap_or(Expr::int(0))
    }

    /// Most elements a shape has in any entry of the plan.
    pub fn max_elements(&self, shape: &[Dim]) -> usize {
        self.plan.entries.iter().map(|e| e.bind.elements(shape)).max().unwrap_or(0)
    }

    /// Type of an index into an array of this shape: 64 bits where 32 do not reach.
    pub fn index_type(&self, shape: &[Dim]) -> DType {
        if self.max_elements(shape) > i32::MAX as usize { DType::I64 } else { DType::I32 }
    }

    /// Flat index into an array.
    pub fn flat(&self, shape: &[Dim], at: &[Expr]) -> Expr {
        let wide = self.index_type(shape) == DType::I64;
        let widen = |e: Expr| match (wide, e.as_int()) {
            (false, _) => e,
            (true, Some(v)) => Expr::Const(Const::I64(v)),
            (true, None) => e.cast(DType::I64),
        };
        let mut flat: Option<Expr> = None;
        for (d, x) in shape.iter().zip(at) {
            let x = widen(x.clone());
            flat = Some(match flat {
                None => x,
                Some(f) => f * widen(self.extent(*d)) + x,
            });
        }
        flat.unwrap_or(Expr::int(0))
    }

    /// Coordinates of a flat i32 or i64 index in a domain, as named variables.
    pub fn unflatten(&mut self, flat: Expr, flat_type: DType, domain: &Shape) -> Vec<Expr> {
        let mut coords = Vec::new();
        let mut rest = flat;
        let narrow = |e: Expr| if flat_type == DType::I64 { e.cast(DType::I32) } else { e };
        for (i, d) in domain.iter().enumerate().rev() {
            let extent = match (flat_type, *d) {
                (DType::I64, Dim::Const(n)) => Expr::Const(Const::I64(n as i64)),
                (DType::I64, d) => self.extent(d).cast(DType::I64),
                (_, d) => self.extent(d),
            };
            let c = if i == 0 { rest.clone() } else { rest.clone() % extent.clone() };
            let name = ["i", "j", "k", "l", "m", "n"].get(i).copied().unwrap_or("c");
            coords.push(self.k.let_(name, DType::I32, narrow(c)));
            if i > 0 {
                rest = rest / extent;
            }
        }
        coords.reverse();
        coords
    }

    /// An index plus an offset, of the index's type.
    pub fn flat_offset(&self, shape: &Shape, flat: Expr, offset: Expr) -> Expr {
        match (self.index_type(shape), offset.as_int()) {
            (DType::I64, Some(v)) => flat + Expr::Const(Const::I64(v)),
            (DType::I64, None) => flat + offset.cast(DType::I64),
            _ => flat + offset,
        }
    }

    /// Emits stores at a point.
    pub fn stores(&mut self, stores: &[Store], p: &Point) -> Result<(), String> {
        stores.iter().try_for_each(|s| self.guarded_store(s, p))
    }

    fn guarded_store(&mut self, s: &Store, p: &Point) -> Result<(), String> {
        let guard = s.guard.as_ref().map(|g| self.lower(g, p)).transpose()?;
        let mut fault = None;
        let statements = self.block(|b| fault = b.store(s, p).err());
        if let Some(why) = fault {
            return Err(why);
        }
        match guard {
            Some(cond) => self.k.push(Stmt::If { cond, then: statements, otherwise: vec![] }),
            None => statements.into_iter().for_each(|s| self.k.push(s)),
        }
        Ok(())
    }

    /// Emits a store at a point, whatever its guard.
    pub(super) fn store(&mut self, s: &Store, p: &Point) -> Result<(), String> {
        let at: Result<Vec<Expr>, String> = s.index.iter().map(|i| self.lower(i, p)).collect();
        let operand = &self.work.writes[s.output as usize];
        let index = self.flat(&operand.shape, &at?);
        let value = self.lower(&s.value, p)?;
        let value = if operand.dtype.is_half() { value.cast(operand.dtype) } else { value };
        self.k.store(self.writes[s.output as usize], index, value);
        Ok(())
    }

    /// Statements that a closure appends, as a block of their own.
    pub fn block(&mut self, fill: impl FnOnce(&mut Self)) -> Vec<Stmt> {
        self.k.open();
        fill(self);
        self.k.close()
    }

    /// `if (cond) { … }`.
    pub fn if_then(
        &mut self,
        cond: Expr,
        fill: impl FnOnce(&mut Self) -> Result<(), String>,
    ) -> Result<(), String> {
        let mut result = Ok(());
        let then = self.block(|b| result = fill(b));
        self.k.push(Stmt::If { cond, then, otherwise: Vec::new() });
        result
    }

    /// `if (cond) { … } else { … }`.
    pub fn if_else(
        &mut self,
        cond: Expr,
        then: impl FnOnce(&mut Self) -> Result<(), String>,
        otherwise: impl FnOnce(&mut Self) -> Result<(), String>,
    ) -> Result<(), String> {
        let (mut first, mut second) = (Ok(()), Ok(()));
        let then = self.block(|b| first = then(b));
        let otherwise = self.block(|b| second = otherwise(b));
        self.k.push(Stmt::If { cond, then, otherwise });
        first.and(second)
    }

    /// A loop over `range` = (start, end, step).
    pub fn for_loop(
        &mut self,
        name: &str,
        range: (Expr, Expr, Expr),
        unroll: Unroll,
        fill: impl FnOnce(&mut Self, Expr) -> Result<(), String>,
    ) -> Result<(), String> {
        let var = self.k.loop_var(name);
        let mut result = Ok(());
        let body = self.block(|b| result = fill(b, Expr::Var(var)));
        let (start, end, step) = range;
        self.k.push(Stmt::For { var, start, end, step, unroll, body });
        result
    }

    /// Shares out `count` chunks over the block's `threads`, unrolled: each takes every `threads`-th, as `chunk`.
    pub fn each_chunk(
        &mut self,
        (count, threads): (u32, u32),
        take: impl FnOnce(&mut Self, Expr) -> Result<(), String>,
    ) -> Result<(), String> {
        self.unrolled("i", count.div_ceil(threads), |b, i| {
            let chunk = b.k.let_("chunk", DType::I32, i * i64::from(threads) + Expr::ThreadIdx);
            if count.is_multiple_of(threads) {
                take(b, chunk)
            } else {
                b.if_then(chunk.clone().lt(Expr::int(i64::from(count))), |b| take(b, chunk))
            }
        })
    }

    /// A fully unrolled loop over `0..count`.
    pub fn unrolled(
        &mut self,
        name: &str,
        count: u32,
        fill: impl FnOnce(&mut Self, Expr) -> Result<(), String>,
    ) -> Result<(), String> {
        let range = (Expr::int(0), Expr::int(i64::from(count)), Expr::int(1));
        self.for_loop(name, range, Unroll::Full, fill)
    }
}
