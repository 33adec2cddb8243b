//! A kernel as CUDA C: file layout, names and indentation.

use super::expr::type_name;
use super::helpers::Helper;
use super::namer::{Namer, identifier};
use std::collections::BTreeSet;
use weft_ir::dtype::DType;
use weft_ir::ids::{ParamId, RingId, SignalId, VarId};
use weft_ir::kernel::{Access, Kernel, Mem, ParamKind, Stmt};
use weft_ir::verify::kernel::TypeError;

/// A kernel that has no text. The verifier finds these faults first.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WriteError {
    /// An expression without a type.
    #[error("{0}")]
    Type(#[from] TypeError),
    /// A variable used outside the block that declares it.
    #[error("variable {0} is used where it is not declared")]
    NotDeclared(VarId),
    /// A parameter or shared array that the kernel does not have.
    #[error("no such array or parameter: {0}")]
    Unknown(String),
    /// A vector access that is not 4, 8 or 16 bytes.
    #[error("vector access of {0} bytes")]
    VectorWidth(u32),
    /// A `wgmma` that no helper prints.
    #[error("wgmma of {0} columns")]
    Columns(u32),
}

/// The kernel as one CUDA C file.
pub fn write(kernel: &Kernel) -> Result<String, WriteError> {
    let mut writer = Writer::new(kernel);
    writer.kernel()?;
    let doc = header(kernel);
    let doc = if doc.is_empty() { doc } else { doc + "\n" };
    Ok(format!("{doc}{}{}", prelude(&writer.helpers), writer.out))
}

/// Several kernels as one CUDA C file that shares its helpers.
pub fn write_module(kernels: &[&Kernel]) -> Result<String, WriteError> {
    let mut helpers = BTreeSet::new();
    let mut texts = Vec::new();
    for kernel in kernels {
        let mut writer = Writer::new(kernel);
        writer.kernel()?;
        texts.push(header(kernel) + &writer.out);
        helpers.append(&mut writer.helpers);
    }
    Ok(prelude(&helpers) + &texts.join("\n"))
}

/// First line of a statement as C, with variables under their hints: for messages.
pub fn describe(kernel: &Kernel, stmt: &Stmt) -> String {
    let mut writer = Writer::new(kernel);
    writer.vars = kernel.vars.iter().map(|v| Some(identifier(&v.name))).collect();
    writer.out.clear();
    match writer.stmt(stmt) {
        Ok(()) => {
            let line = writer.out.lines().map(str::trim).find(|l| !l.starts_with("#pragma"));
            line.unwrap_or_default().to_string()
        }
        Err(e) => format!("({e})"),
    }
}

fn prelude(helpers: &BTreeSet<Helper>) -> String {
    helpers.iter().map(|h| h.source() + "\n\n").collect()
}

fn header(kernel: &Kernel) -> String {
    kernel.doc.iter().flat_map(|d| d.split('\n')).map(|line| comment_line("", line)).collect()
}

fn comment_line(indent: &str, text: &str) -> String {
    // A backslash at the end would continue the comment.
    let text = text.trim_end_matches(|c: char| c == '\\' || c.is_whitespace());
    let gap = if text.is_empty() { "" } else { " " };
    format!("{indent}//{gap}{text}\n")
}

/// Text of one kernel while it is written.
pub(super) struct Writer<'k> {
    pub(super) kernel: &'k Kernel,
    pub(super) helpers: BTreeSet<Helper>,
    namer: Namer,
    params: Vec<String>,
    shared: Vec<String>,
    signals: Vec<String>,
    rings: Vec<String>,
    vars: Vec<Option<String>>,
    vectors: BTreeSet<VarId>,
    depth: usize,
    out: String,
}

impl<'k> Writer<'k> {
    fn new(kernel: &'k Kernel) -> Self {
        let taken = Helper::ALL.iter().map(|h| h.name()).chain([kernel.name.as_str()]);
        let mut namer = Namer::new(taken);
        let params = kernel.params.iter().map(|p| namer.name(&p.name)).collect();
        let shared = kernel.shared.iter().map(|s| namer.name(&s.name)).collect();
        let signals = kernel.signals.iter().map(|s| namer.name(s)).collect();
        let rings = kernel.rings.iter().map(|r| namer.name(&r.name)).collect();
        let mut vectors = BTreeSet::new();
        kernel.visit(&mut |s| {
            if let Stmt::LoadVec { dst: array, .. }
            | Stmt::StoreVec { src: array, .. }
            | Stmt::Send { src: array, .. } = s
            {
                vectors.insert(*array);
            }
        });
        Writer {
            kernel,
            helpers: BTreeSet::new(),
            namer,
            params,
            shared,
            signals,
            rings,
            vars: vec![None; kernel.vars.len()],
            vectors,
            depth: 0,
            out: String::new(),
        }
    }

    fn kernel(&mut self) -> Result<(), WriteError> {
        let k = self.kernel;
        let bounds = k.min_blocks.map_or_else(|| k.threads.to_string(), |b| format!("{}, {b}", k.threads));
        let params: Vec<String> = (0..k.params.len()).map(|i| self.param(i)).collect();
        let params = match params.is_empty() {
            true => String::new(),
            false => format!("\n    {}", params.join(",\n    ")),
        };
        let cluster = k.cluster.map_or(String::new(), |n| format!("__cluster_dims__(1, 1, {n}) "));
        self.line(&format!(
            "extern \"C\" __global__ void {cluster}__launch_bounds__({bounds}) {}({params}) {{",
            k.name
        ));
        self.enter();
        self.shared_arrays();
        self.stmts(&k.body)?;
        self.leave();
        self.line("}");
        Ok(())
    }

    /// A parameter. Under programmatic dependent launch another grid may still write what this one
    /// only reads, so only constant and written arrays are `__restrict__` there: together with `const`
    /// it would let the compiler read through the non-coherent path. Where blocks join, one reads what others
    /// wrote, so written arrays lose it as well.
    fn param(&mut self, index: usize) -> String {
        let name = self.params[index].clone();
        match self.kernel.params[index].kind {
            ParamKind::Scalar(dtype) => format!("const {} {name}", self.type_of(dtype)),
            ParamKind::Matrix { .. } => {
                format!("const __grid_constant__ {} {name}", self.helper(Helper::TensorMap))
            }
            ParamKind::Condition => format!("const unsigned long long {name}"),
            ParamKind::Pointer { dtype, access } => {
                let ty = self.type_of(dtype);
                let (mut waits, mut joins) = (false, false);
                self.kernel.visit(&mut |s| {
                    waits |= matches!(s, Stmt::GridDependencyWait);
                    joins |= matches!(s, Stmt::LastBlock { .. });
                });
                match access {
                    Access::Read | Access::Settled if waits => format!("const {ty}* {name}"),
                    Access::Constant | Access::Read | Access::Settled => {
                        format!("const {ty}* __restrict__ {name}")
                    }
                    Access::ReadWrite if joins => format!("{ty}* {name}"),
                    Access::Write | Access::ReadWrite => format!("{ty}* __restrict__ {name}"),
                    Access::FromHost => format!("const volatile {ty}* {name}"),
                    Access::ToHost => format!("volatile {ty}* {name}"),
                }
            }
        }
    }

    fn shared_arrays(&mut self) {
        let kernel = self.kernel;
        let dynamic = kernel.dynamic_shared() > 0;
        if dynamic {
            self.line(&format!(
                "extern __shared__ __align__({}) unsigned char smem[];",
                kernel.shared_align()
            ));
        }
        let (offsets, _) = kernel.shared_layout();
        for (i, (array, offset)) in kernel.shared.iter().zip(offsets).enumerate() {
            let (ty, name) = (self.type_of(array.dtype), self.shared[i].clone());
            let line = match (dynamic, offset) {
                (true, 0) => format!("{ty}* const {name} = reinterpret_cast<{ty}*>(smem);"),
                (true, at) => format!("{ty}* const {name} = reinterpret_cast<{ty}*>(smem + {at});"),
                (false, _) => format!("__shared__ __align__({}) {ty} {name}[{}];", array.align, array.len),
            };
            self.line(&line);
        }
        for name in self.signals.clone() {
            self.line(&format!("__shared__ unsigned long long {name};"));
        }
        for (name, ring) in self.rings.clone().iter().zip(&kernel.rings) {
            self.line(&format!("__shared__ unsigned long long {name}[{}];", ring.stages));
        }
        if !kernel.shared.is_empty() || !kernel.signals.is_empty() || !kernel.rings.is_empty() {
            self.blank();
        }
    }

    fn type_of(&mut self, dtype: DType) -> &'static str {
        if let Some(storage) = Helper::storage(dtype) {
            self.helper(storage);
        }
        type_name(dtype)
    }

    /// Name of a helper, which is emitted with all it needs.
    pub(super) fn helper(&mut self, helper: Helper) -> &'static str {
        self.helpers.insert(helper);
        self.helpers.extend(helper.needs());
        helper.name()
    }

    /// Declares a variable in the current scope.
    pub(super) fn declare(&mut self, var: VarId) -> Result<(DType, String), WriteError> {
        let v = self.kernel.var(var).ok_or(WriteError::NotDeclared(var))?;
        self.type_of(v.dtype);
        let name = self.namer.name(&v.name);
        if let Some(slot) = self.vars.get_mut(var.index()) {
            *slot = Some(name.clone());
        }
        Ok((v.dtype, name))
    }

    pub(super) fn fresh(&mut self, hint: &str) -> String {
        self.namer.name(hint)
    }

    pub(super) fn var_name(&self, var: VarId) -> Result<String, WriteError> {
        self.vars.get(var.index()).cloned().flatten().ok_or(WriteError::NotDeclared(var))
    }

    pub(super) fn param_name(&self, p: ParamId) -> Result<String, WriteError> {
        self.params.get(p.index()).cloned().ok_or_else(|| WriteError::Unknown(p.to_string()))
    }

    pub(super) fn mem_name(&self, mem: Mem) -> Result<String, WriteError> {
        match mem {
            Mem::Global(p) => self.param_name(p),
            Mem::Shared(s) => {
                self.shared.get(s.index()).cloned().ok_or_else(|| WriteError::Unknown(s.to_string()))
            }
        }
    }

    pub(super) fn signal_address(&self, s: SignalId) -> Result<String, WriteError> {
        let name = self.signals.get(s.index()).ok_or_else(|| WriteError::Unknown(s.to_string()))?;
        Ok(format!("&{name}"))
    }

    pub(super) fn ring_name(&self, r: RingId) -> Result<String, WriteError> {
        self.rings.get(r.index()).cloned().ok_or_else(|| WriteError::Unknown(r.to_string()))
    }

    /// Whether a register array is accessed as vectors and so must be aligned.
    pub(super) fn is_vector(&self, var: VarId) -> bool {
        self.vectors.contains(&var)
    }

    pub(super) fn open_scope(&mut self) {
        self.namer.enter();
    }

    pub(super) fn close_scope(&mut self) {
        self.namer.leave();
    }

    /// Opens an indented scope.
    pub(super) fn enter(&mut self) {
        self.namer.enter();
        self.depth += 1;
    }

    /// Closes an indented scope.
    pub(super) fn leave(&mut self) {
        self.namer.leave();
        self.depth -= 1;
    }

    pub(super) fn line(&mut self, text: &str) {
        self.out.push_str(&"    ".repeat(self.depth));
        self.out.push_str(text);
        self.out.push('\n');
    }

    pub(super) fn blank(&mut self) {
        self.out.push('\n');
    }

    pub(super) fn comment(&mut self, text: &str) {
        let indent = "    ".repeat(self.depth);
        text.split('\n').for_each(|line| self.out.push_str(&comment_line(&indent, line)));
    }
}
