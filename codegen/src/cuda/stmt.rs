//! Statements as C.

use super::expr::type_name;
use super::helpers::Helper;
use super::writer::{WriteError, Writer};
use weft_ir::dtype::DType;
use weft_ir::ids::{RingId, VarId};
use weft_ir::kernel::{BinaryOp, CacheHint, Const, Expr, Mem, SWIZZLED_ROW, Stmt, Unroll};

impl Writer<'_> {
    /// Statements of a block, without its braces.
    pub(super) fn stmts(&mut self, stmts: &[Stmt]) -> Result<(), WriteError> {
        for (i, s) in stmts.iter().enumerate() {
            // A comment opens a paragraph.
            let after_comment = i > 0 && matches!(stmts[i - 1], Stmt::Comment(_));
            if i > 0 && matches!(s, Stmt::Comment(_)) && !after_comment {
                self.blank();
            }
            self.stmt(s)?;
        }
        Ok(())
    }

    fn block(&mut self, head: &str, stmts: &[Stmt]) -> Result<(), WriteError> {
        self.line(&format!("{head} {{"));
        self.enter();
        let done = self.stmts(stmts);
        self.leave();
        done
    }

    /// One statement.
    pub(super) fn stmt(&mut self, s: &Stmt) -> Result<(), WriteError> {
        match s {
            Stmt::Comment(text) => {
                self.comment(text);
                Ok(())
            }
            Stmt::Let { var, value, mutable } => {
                let value = match self.kernel.var(*var).map(|v| v.dtype) {
                    Some(DType::I32) => self.converted(value)?,
                    _ => self.expr(value)?,
                };
                let (dtype, name) = self.declare(*var)?;
                let qualifier = if *mutable { "" } else { "const " };
                self.line(&format!("{qualifier}{} {name} = {value};", type_name(dtype)));
                Ok(())
            }
            Stmt::DeclareArray { var, init } => self.declare_array(*var, init.as_ref()),
            Stmt::Assign { var, value } => {
                let line = self.assignment(*var, value)?;
                self.line(&line);
                Ok(())
            }
            Stmt::AssignElem { var, index, value } => {
                let (name, index, value) = (self.var_name(*var)?, self.index(index)?, self.expr(value)?);
                self.line(&format!("{name}[{index}] = {value};"));
                Ok(())
            }
            Stmt::Store { mem, index, value } => {
                let (name, index, value) = (self.mem_name(*mem)?, self.index(index)?, self.expr(value)?);
                self.line(&format!("{name}[{index}] = {value};"));
                Ok(())
            }
            Stmt::LoadVec { dst, dst_at, mem, index, lanes, hint } => {
                let (vector, once) = self.vector(*mem, *lanes)?;
                let array = self.var_name(*dst)?;
                let to = self.address(&array, dst_at)?;
                let from = self.mem_address(*mem, index)?;
                let value = match hint {
                    CacheHint::Default => format!("*reinterpret_cast<const {vector}*>({from})"),
                    CacheHint::Streaming | CacheHint::Settled => format!("{}({from})", self.helper(once)),
                };
                self.line(&format!("*reinterpret_cast<{vector}*>({to}) = {value};"));
                Ok(())
            }
            Stmt::StoreVec { mem, index, src, src_at, lanes } => {
                let (vector, _) = self.vector(*mem, *lanes)?;
                let to = self.mem_address(*mem, index)?;
                let array = self.var_name(*src)?;
                let from = self.address(&array, src_at)?;
                self.line(&format!(
                    "*reinterpret_cast<{vector}*>({to}) = *reinterpret_cast<const {vector}*>({from});"
                ));
                Ok(())
            }
            Stmt::PrefetchL2 { mem, index, elements } => {
                let bytes = self.kernel.mem_dtype(*mem).map_or(0, DType::size) as u32 * elements;
                let args = [self.mem_address(*mem, index)?, bytes.to_string()];
                self.intrinsic(Helper::PrefetchL2, &args)
            }
            Stmt::For { var, start, end, step, unroll, body } => {
                self.for_loop(*var, [start, end, step], *unroll, body)
            }
            Stmt::If { cond, then, otherwise } => {
                let cond = self.expr(cond)?;
                self.block(&format!("if ({cond})"), then)?;
                self.otherwise(otherwise)
            }
            Stmt::Barrier => self.simple("__syncthreads()"),
            Stmt::WarpBarrier => self.simple("__syncwarp()"),
            Stmt::Fence => self.simple("__threadfence()"),
            Stmt::Sleep { nanoseconds } => {
                let duration = self.expr(nanoseconds)?;
                self.simple(&format!("__nanosleep({duration})"))
            }
            Stmt::SetCondition { condition, value } => {
                let args = [self.param_name(*condition)?, self.expr(value)?];
                self.intrinsic(Helper::SetCondition, &args)
            }
            Stmt::GridDependencyWait => self.intrinsic(Helper::GridDependencyWait, &[]),
            Stmt::GridDependencyLaunch => self.intrinsic(Helper::GridDependencyLaunch, &[]),
            Stmt::Mma { dtype, acc, acc_at, a, a_at, b, b_at } => {
                let helper = if *dtype == DType::F16 { Helper::MmaF16 } else { Helper::MmaBf16 };
                let mut args = Vec::new();
                for (array, at) in [(acc, acc_at), (a, a_at), (b, b_at)] {
                    let name = self.var_name(*array)?;
                    args.push(self.address(&name, at)?);
                }
                self.intrinsic(helper, &args)
            }
            Stmt::Wgmma { dtype, acc, columns, a, a_at, b, b_at, k } => {
                let helper = Helper::wgmma(*columns, *dtype).ok_or(WriteError::Columns(*columns))?;
                let args = [
                    self.var_name(*acc)?,
                    self.mem_address(Mem::Shared(*a), a_at)?,
                    self.mem_address(Mem::Shared(*b), b_at)?,
                    k.to_string(),
                ];
                self.intrinsic(helper, &args)
            }
            Stmt::WgmmaFence => self.intrinsic(Helper::WgmmaFence, &[]),
            Stmt::WgmmaCommit => self.intrinsic(Helper::WgmmaCommit, &[]),
            Stmt::WgmmaWait { pending, acc } => {
                let len = self.kernel.var(*acc).and_then(|v| v.len).ok_or(WriteError::NotDeclared(*acc))?;
                let (name, acc) = (self.helper(Helper::WgmmaWait), self.var_name(*acc)?);
                self.simple(&format!("{name}<{pending}, {len}>({acc})"))
            }
            Stmt::AsyncProxyFence => self.intrinsic(Helper::AsyncProxyFence, &[]),
            Stmt::LdMatrix { dst, dst_at, shared, index, count, transpose } => {
                let array = self.var_name(*dst)?;
                let args = [self.address(&array, dst_at)?, self.mem_address(Mem::Shared(*shared), index)?];
                self.intrinsic(Helper::ld_matrix(*count, *transpose), &args)
            }
            Stmt::CpAsync { shared, shared_index, global, global_index, bytes, valid } => {
                let mut args = vec![
                    self.mem_address(Mem::Shared(*shared), shared_index)?,
                    self.mem_address(*global, global_index)?,
                ];
                let helper = match (bytes, valid.is_some()) {
                    (4, false) => Helper::CopyAsync4,
                    (8, false) => Helper::CopyAsync8,
                    (16, false) => Helper::CopyAsync16,
                    (4, true) => Helper::CopyAsyncOrZero4,
                    (8, true) => Helper::CopyAsyncOrZero8,
                    (16, true) => Helper::CopyAsyncOrZero16,
                    (_, _) => return Err(WriteError::VectorWidth(*bytes)),
                };
                if let Some(valid) = valid {
                    args.push(self.expr(valid)?);
                }
                self.intrinsic(helper, &args)
            }
            Stmt::CpAsyncCommit => self.intrinsic(Helper::CopyAsyncCommit, &[]),
            Stmt::CpAsyncWait { pending } => {
                let name = self.helper(Helper::CopyAsyncWait);
                self.simple(&format!("{name}<{pending}>()"))
            }
            Stmt::AtomicAdd { mem, index, value, old } => {
                let array = self.mem_name(*mem)?;
                let (index, value) = (self.index(index)?, self.expr(value)?);
                let call = format!("atomicAdd(&{array}[{index}], {value});");
                match old {
                    None => self.line(&call),
                    Some(var) => {
                        let (dtype, name) = self.declare(*var)?;
                        self.line(&format!("const {} {name} = {call}", type_name(dtype)));
                    }
                }
                Ok(())
            }
            Stmt::LastBlock { counter, index, expected, last } => {
                let (counter, expected) = (self.mem_address(*counter, index)?, self.expr(expected)?);
                let helper = self.helper(Helper::LastBlock);
                let (dtype, name) = self.declare(*last)?;
                self.line(&format!("const {} {name} = {helper}({counter}, {expected});", type_name(dtype)));
                Ok(())
            }
            Stmt::MakeRing { ring } => {
                let stages = self.kernel.ring(*ring).map_or(0, |r| r.stages);
                let args = [self.ring_name(*ring)?, stages.to_string()];
                self.intrinsic(Helper::MakeRing, &args)
            }
            Stmt::FillStage { ring, stage, bytes, tiles } => {
                let stage = self.stage_address(*ring, stage)?;
                self.line("if (threadIdx.x == 0) {");
                self.enter();
                if *bytes > 0 {
                    self.intrinsic(Helper::BeginFilling, &[stage.clone(), bytes.to_string()])?;
                }
                for tile in tiles {
                    let first = tile.to_row.clone() * i64::from(SWIZZLED_ROW);
                    let args = [
                        self.mem_address(Mem::Shared(tile.to), &first)?,
                        self.mem_name(tile.from)?,
                        self.expr(&tile.column)?,
                        self.expr(&tile.row)?,
                        stage.clone(),
                    ];
                    self.intrinsic(Helper::CopyTile, &args)?;
                }
                self.leave();
                self.line("}");
                Ok(())
            }
            Stmt::AwaitStage { ring, stage, round } => {
                let parity = self.expr(&(round.clone() % 2))?;
                let args = [self.stage_address(*ring, stage)?, parity];
                self.intrinsic(Helper::AwaitStage, &args)
            }
            Stmt::ClusterBarrier => self.intrinsic(Helper::ClusterBarrier, &[]),
            Stmt::ExpectBytes { signal, bytes } => {
                let args = [self.signal_address(*signal)?, self.expr(bytes)?];
                self.intrinsic(Helper::ExpectBytes, &args)
            }
            Stmt::Send { to, index, src, src_at, lanes, rank, signal } => {
                let (vector, _) = self.vector(Mem::Shared(*to), *lanes)?;
                let helper = match lanes {
                    1 => Helper::Send4,
                    2 => Helper::Send8,
                    _ => Helper::Send16,
                };
                let array = self.var_name(*src)?;
                let from = self.address(&array, src_at)?;
                let args = [
                    self.mem_address(Mem::Shared(*to), index)?,
                    format!("*reinterpret_cast<const {vector}*>({from})"),
                    self.expr(rank)?,
                    self.signal_address(*signal)?,
                ];
                self.intrinsic(helper, &args)
            }
            Stmt::AwaitBytes { signal } => {
                let args = [self.signal_address(*signal)?];
                self.intrinsic(Helper::AwaitBytes, &args)
            }
        }
    }

    fn stage_address(&mut self, ring: RingId, stage: &Expr) -> Result<String, WriteError> {
        let name = self.ring_name(ring)?;
        self.address(&name, stage)
    }

    fn simple(&mut self, call: &str) -> Result<(), WriteError> {
        self.line(&format!("{call};"));
        Ok(())
    }

    fn intrinsic(&mut self, helper: Helper, args: &[String]) -> Result<(), WriteError> {
        let name = self.helper(helper);
        self.simple(&format!("{name}({})", args.join(", ")))
    }

    fn otherwise(&mut self, stmts: &[Stmt]) -> Result<(), WriteError> {
        match stmts {
            [] => self.line("}"),
            [Stmt::If { cond, then, otherwise }] => {
                let cond = self.expr(cond)?;
                self.block(&format!("}} else if ({cond})"), then)?;
                return self.otherwise(otherwise);
            }
            [_, ..] => {
                self.block("} else", stmts)?;
                self.line("}");
            }
        }
        Ok(())
    }

    /// `x = x + y` as `x += y`, where C has the operator.
    fn assignment(&mut self, var: VarId, value: &Expr) -> Result<String, WriteError> {
        let name = self.var_name(var)?;
        if let Expr::Binary(op, a, b) = value
            && **a == Expr::Var(var)
            && let Some(sign) = compound(*op)
        {
            return Ok(format!("{name} {sign} {};", self.expr(b)?));
        }
        Ok(format!("{name} = {};", self.expr(value)?))
    }

    /// Vector type of an access, and the helper that reads it once.
    fn vector(&self, mem: Mem, lanes: u32) -> Result<(&'static str, Helper), WriteError> {
        let size = self.kernel.mem_dtype(mem).map_or(0, |d| d.size() as u32);
        match size * lanes {
            4 => Ok(("unsigned", Helper::LoadOnce4)),
            8 => Ok(("uint2", Helper::LoadOnce8)),
            16 => Ok(("uint4", Helper::LoadOnce16)),
            other => Err(WriteError::VectorWidth(other)),
        }
    }

    fn declare_array(&mut self, var: VarId, init: Option<&Expr>) -> Result<(), WriteError> {
        let init = match init {
            None => None,
            Some(e) => Some((is_zero(e), self.expr(e)?)),
        };
        let len = self.kernel.var(var).and_then(|v| v.len).ok_or(WriteError::NotDeclared(var))?;
        let align = if self.is_vector(var) { "__align__(16) " } else { "" };
        let (dtype, name) = self.declare(var)?;
        let declaration = format!("{align}{} {name}[{len}]", type_name(dtype));
        match init {
            None => self.line(&format!("{declaration};")),
            Some((true, _)) => self.line(&format!("{declaration} = {{}};")),
            Some((false, value)) => {
                self.line(&format!("{declaration};"));
                self.enter();
                let i = self.fresh("i");
                self.leave();
                self.line("#pragma unroll");
                self.line(&format!("for (int {i} = 0; {i} < {len}; ++{i}) {{"));
                self.enter();
                self.line(&format!("{name}[{i}] = {value};"));
                self.leave();
                self.line("}");
            }
        }
        Ok(())
    }

    fn for_loop(
        &mut self,
        var: VarId,
        [start, end, step]: [&Expr; 3],
        unroll: Unroll,
        body: &[Stmt],
    ) -> Result<(), WriteError> {
        match unroll {
            Unroll::Full => self.line("#pragma unroll"),
            Unroll::By(n) => self.line(&format!("#pragma unroll {n}")),
            Unroll::Never => self.line("#pragma unroll 1"),
        }
        let start = self.expr(start)?;
        self.open_scope();
        let (dtype, i) = self.declare(var)?;
        let end = self.bound(end)?;
        let advance = match step.as_int() {
            Some(1) => format!("++{i}"),
            _ => format!("{i} += {}", self.expr(step)?),
        };
        let head = format!("for ({} {i} = {start}; {i} < {end}; {advance})", type_name(dtype));
        let done = self.block(&head, body);
        self.close_scope();
        self.line("}");
        done
    }
}

/// Compound assignment of an operator.
fn compound(op: BinaryOp) -> Option<&'static str> {
    match op {
        BinaryOp::Add => Some("+="),
        BinaryOp::Sub => Some("-="),
        BinaryOp::Mul => Some("*="),
        BinaryOp::Div
        | BinaryOp::Rem
        | BinaryOp::Min
        | BinaryOp::Max
        | BinaryOp::And
        | BinaryOp::Or
        | BinaryOp::Xor
        | BinaryOp::Shl
        | BinaryOp::Shr
        | BinaryOp::MulHi => None,
    }
}

/// Whether all bits of the value are zero.
fn is_zero(e: &Expr) -> bool {
    match e {
        Expr::Const(Const::F32(v)) => v.to_bits() == 0,
        Expr::Const(Const::I32(v)) => *v == 0,
        Expr::Const(Const::U32(v)) => *v == 0,
        Expr::Const(Const::I64(v)) => *v == 0,
        Expr::Const(Const::Bool(v)) => !v,
        Expr::Cast(_, inner) => is_zero(inner),
        Expr::Var(_)
        | Expr::Elem(_, _)
        | Expr::Param(_)
        | Expr::ThreadIdx
        | Expr::BlockIdx(_)
        | Expr::GridDim(_)
        | Expr::Unary(_, _)
        | Expr::Binary(_, _, _)
        | Expr::Compare(_, _, _)
        | Expr::Select(_, _, _)
        | Expr::Bitcast(_, _)
        | Expr::Math(_, _)
        | Expr::Load(_, _)
        | Expr::Shuffle(_, _, _)
        | Expr::Pack2(_, _, _) => false,
    }
}
