//! Expressions as C, with as few parentheses as precedence allows.

use super::helpers::Helper;
use super::writer::{WriteError, Writer};
use weft_ir::dtype::DType;
use weft_ir::kernel::{Axis, BinaryOp, CompareOp, Const, Expr, MathFn, Mem, ShuffleMode, UnaryOp};
use weft_ir::verify::kernel::expr_type;

/// Precedence levels of C, loosest first.
mod level {
    pub const ANY: u8 = 0;
    pub const TERNARY: u8 = 1;
    pub const OR: u8 = 2;
    pub const AND: u8 = 3;
    pub const BIT_OR: u8 = 4;
    pub const BIT_XOR: u8 = 5;
    pub const BIT_AND: u8 = 6;
    pub const EQUALITY: u8 = 7;
    pub const RELATION: u8 = 8;
    pub const SHIFT: u8 = 9;
    pub const SUM: u8 = 10;
    pub const PRODUCT: u8 = 11;
    pub const UNARY: u8 = 12;
    pub const POSTFIX: u8 = 13;
}

/// C name of an element type.
pub(super) fn type_name(dtype: DType) -> &'static str {
    match dtype {
        DType::F32 => "float",
        DType::F16 => "f16",
        DType::BF16 => "bf16",
        DType::I64 => "long long",
        DType::I32 => "int",
        DType::U32 => "unsigned",
        DType::Bool => "bool",
    }
}

/// Text and the precedence of its outermost operator.
struct Text(String, u8);

impl Text {
    fn at_least(self, level: u8) -> String {
        if self.1 < level { format!("({})", self.0) } else { self.0 }
    }
}

fn postfix(s: String) -> Text {
    Text(s, level::POSTFIX)
}

impl Writer<'_> {
    /// An expression where any operator may stand.
    pub(super) fn expr(&mut self, e: &Expr) -> Result<String, WriteError> {
        self.expr_in(e, level::ANY)
    }

    /// An expression as the initialiser of an int, which converts to its type by itself. Sums and products
    /// are the same bits in unsigned arithmetic, so thread and block indices need no cast there.
    pub(super) fn converted(&mut self, e: &Expr) -> Result<String, WriteError> {
        Ok(self.modular(e)?.at_least(level::ANY))
    }

    fn modular(&mut self, e: &Expr) -> Result<Text, WriteError> {
        let (sign, own, a, b) = match e {
            Expr::ThreadIdx | Expr::BlockIdx(_) | Expr::GridDim(_) => return Ok(postfix(builtin(e))),
            Expr::Binary(BinaryOp::Add, a, b) => ("+", level::SUM, a, b),
            Expr::Binary(BinaryOp::Sub, a, b) => ("-", level::SUM, a, b),
            Expr::Binary(BinaryOp::Mul, a, b) => ("*", level::PRODUCT, a, b),
            Expr::Const(_)
            | Expr::Var(_)
            | Expr::Elem(_, _)
            | Expr::Param(_)
            | Expr::Unary(_, _)
            | Expr::Binary(_, _, _)
            | Expr::Compare(_, _, _)
            | Expr::Select(_, _, _)
            | Expr::Cast(_, _)
            | Expr::Bitcast(_, _)
            | Expr::Math(_, _)
            | Expr::Load(_, _)
            | Expr::Shuffle(_, _, _)
            | Expr::Pack2(_, _, _) => return self.text(e),
        };
        if expr_type(self.kernel, e)? != DType::I32 {
            return self.text(e);
        }
        let (left, right) = (self.modular(a)?.at_least(own), self.modular(b)?.at_least(own + 1));
        Ok(Text(format!("{left} {sign} {right}"), own))
    }

    /// An index into an array: never negative, so a bare thread or block index needs no cast.
    pub(super) fn index(&mut self, e: &Expr) -> Result<String, WriteError> {
        let bare = builtin(e);
        if bare.is_empty() { self.expr(e) } else { Ok(bare) }
    }

    /// An expression as the right side of `<`.
    pub(super) fn bound(&mut self, e: &Expr) -> Result<String, WriteError> {
        self.expr_in(e, level::SHIFT)
    }

    fn expr_in(&mut self, e: &Expr, level: u8) -> Result<String, WriteError> {
        Ok(self.text(e)?.at_least(level))
    }

    fn call(&mut self, function: &str, args: &[&Expr]) -> Result<Text, WriteError> {
        let args = args.iter().map(|a| self.expr(a)).collect::<Result<Vec<_>, _>>()?;
        Ok(postfix(format!("{function}({})", args.join(", "))))
    }

    fn text(&mut self, e: &Expr) -> Result<Text, WriteError> {
        match e {
            Expr::Const(c) => Ok(constant(*c)),
            Expr::Var(v) => self.var_name(*v).map(postfix),
            Expr::Elem(v, index) => {
                let name = self.var_name(*v)?;
                Ok(postfix(format!("{name}[{}]", self.index(index)?)))
            }
            Expr::Param(p) => self.param_name(*p).map(postfix),
            Expr::ThreadIdx | Expr::BlockIdx(_) | Expr::GridDim(_) => {
                Ok(Text(format!("(int){}", builtin(e)), level::UNARY))
            }
            Expr::Unary(op, a) => {
                let sign = match op {
                    UnaryOp::Neg => "-",
                    UnaryOp::Not => "!",
                    UnaryOp::BitNot => "~",
                };
                let inner = self.expr_in(a, level::UNARY)?;
                // `--x` would be a decrement.
                let inner = if sign == "-" && inner.starts_with('-') { format!("({inner})") } else { inner };
                Ok(Text(format!("{sign}{inner}"), level::UNARY))
            }
            Expr::Binary(op, a, b) => self.binary(*op, a, b),
            Expr::Compare(op, a, b) => {
                let (sign, own) = match op {
                    CompareOp::Eq => ("==", level::EQUALITY),
                    CompareOp::Ne => ("!=", level::EQUALITY),
                    CompareOp::Lt => ("<", level::RELATION),
                    CompareOp::Le => ("<=", level::RELATION),
                    CompareOp::Gt => (">", level::RELATION),
                    CompareOp::Ge => (">=", level::RELATION),
                };
                self.infix(sign, own, a, b)
            }
            Expr::Select(c, a, b) => {
                let c = self.expr_in(c, level::OR)?;
                let a = self.expr_in(a, level::TERNARY)?;
                let b = self.expr_in(b, level::TERNARY)?;
                Ok(Text(format!("{c} ? {a} : {b}"), level::TERNARY))
            }
            Expr::Cast(to, a) => self.cast(*to, a),
            Expr::Bitcast(to, a) => {
                let from = expr_type(self.kernel, a)?;
                let function = match (from, to) {
                    (DType::F32, DType::I32) => "__float_as_int",
                    (DType::F32, DType::U32) => "__float_as_uint",
                    (DType::I32, DType::F32) => "__int_as_float",
                    (DType::U32, DType::F32) => "__uint_as_float",
                    (_, _) if from == *to => return self.text(a),
                    (_, _) => {
                        let inner = self.expr_in(a, level::UNARY)?;
                        return Ok(Text(format!("({}){inner}", type_name(*to)), level::UNARY));
                    }
                };
                self.call(function, &[a])
            }
            Expr::Math(f, args) => {
                let name = match f {
                    MathFn::Exp2Approx => self.helper(Helper::Exp2Approx),
                    f => math_name(*f),
                };
                self.call(name, &args.iter().collect::<Vec<_>>())
            }
            Expr::Load(mem, index) => {
                let array = self.mem_name(*mem)?;
                Ok(postfix(format!("{array}[{}]", self.index(index)?)))
            }
            Expr::Shuffle(mode, value, lane) => {
                let function = match mode {
                    ShuffleMode::Xor => "__shfl_xor_sync",
                    ShuffleMode::Down => "__shfl_down_sync",
                    ShuffleMode::Up => "__shfl_up_sync",
                    ShuffleMode::Index => "__shfl_sync",
                };
                let (value, lane) = (self.expr(value)?, self.expr(lane)?);
                Ok(postfix(format!("{function}(0xffffffffu, {value}, {lane})")))
            }
            Expr::Pack2(to, a, b) => {
                let helper = if *to == DType::F16 { Helper::PackF16 } else { Helper::PackBf16 };
                let name = self.helper(helper);
                self.call(name, &[a, b])
            }
        }
    }

    fn infix(&mut self, sign: &str, own: u8, a: &Expr, b: &Expr) -> Result<Text, WriteError> {
        let left = self.expr_in(a, own)?;
        let right = self.expr_in(b, own + 1)?;
        Ok(Text(format!("{left} {sign} {right}"), own))
    }

    fn binary(&mut self, op: BinaryOp, a: &Expr, b: &Expr) -> Result<Text, WriteError> {
        let dtype = expr_type(self.kernel, a)?;
        let logical = dtype == DType::Bool;
        match op {
            BinaryOp::Add => self.infix("+", level::SUM, a, b),
            BinaryOp::Sub => self.infix("-", level::SUM, a, b),
            BinaryOp::Mul => self.infix("*", level::PRODUCT, a, b),
            BinaryOp::Div => self.infix("/", level::PRODUCT, a, b),
            BinaryOp::Rem => self.infix("%", level::PRODUCT, a, b),
            BinaryOp::Min => self.call(if dtype == DType::F32 { "fminf" } else { "min" }, &[a, b]),
            BinaryOp::Max => self.call(if dtype == DType::F32 { "fmaxf" } else { "max" }, &[a, b]),
            BinaryOp::And if logical => self.logical("&&", level::AND, a, b),
            BinaryOp::Or if logical => self.logical("||", level::OR, a, b),
            BinaryOp::And => self.infix("&", level::BIT_AND, a, b),
            BinaryOp::Or => self.infix("|", level::BIT_OR, a, b),
            BinaryOp::Xor => self.infix("^", level::BIT_XOR, a, b),
            BinaryOp::Shl => self.infix("<<", level::SHIFT, a, b),
            BinaryOp::Shr => self.infix(">>", level::SHIFT, a, b),
            BinaryOp::MulHi => self.call("__umulhi", &[a, b]),
        }
    }

    /// Logical operators associate: no parentheses on either side.
    fn logical(&mut self, sign: &str, own: u8, a: &Expr, b: &Expr) -> Result<Text, WriteError> {
        let (left, right) = (self.expr_in(a, own)?, self.expr_in(b, own)?);
        Ok(Text(format!("{left} {sign} {right}"), own))
    }

    fn cast(&mut self, to: DType, a: &Expr) -> Result<Text, WriteError> {
        let from = expr_type(self.kernel, a)?;
        if from == to {
            return self.text(a);
        }
        // 16-bit floats convert to and from float only.
        let value = match from {
            DType::BF16 => {
                let name = self.helper(Helper::Bf16ToFloat);
                self.call(name, &[a])?
            }
            DType::F16 => {
                let name = self.helper(Helper::F16ToFloat);
                self.call(name, &[a])?
            }
            DType::I32 if !builtin(a).is_empty() => postfix(builtin(a)),
            DType::F32 | DType::I64 | DType::I32 | DType::U32 | DType::Bool => self.text(a)?,
        };
        let is_float = from.is_float();
        let (helper, value) = match to {
            DType::BF16 => (Helper::FloatToBf16, value),
            DType::F16 => (Helper::FloatToF16, value),
            DType::F32 if is_float => return Ok(value),
            DType::Bool => {
                let zero = if is_float { "0.0f" } else { "0" };
                return Ok(Text(format!("{} != {zero}", value.at_least(level::EQUALITY)), level::EQUALITY));
            }
            DType::F32 | DType::I64 | DType::I32 | DType::U32 => {
                let value = value.at_least(level::UNARY);
                return Ok(Text(format!("({}){value}", type_name(to)), level::UNARY));
            }
        };
        let argument = if is_float { value.0 } else { format!("(float){}", value.at_least(level::UNARY)) };
        Ok(postfix(format!("{}({argument})", self.helper(helper))))
    }

    /// Address of an element of an array: the bare name for element 0.
    pub(super) fn address(&mut self, array: &str, index: &Expr) -> Result<String, WriteError> {
        if index.as_int() == Some(0) {
            return Ok(array.to_string());
        }
        Ok(format!("&{array}[{}]", self.index(index)?))
    }

    /// Address of an element of memory.
    pub(super) fn mem_address(&mut self, mem: Mem, index: &Expr) -> Result<String, WriteError> {
        let name = self.mem_name(mem)?;
        self.address(&name, index)
    }
}

/// A built-in variable, which C has as an unsigned; empty for other expressions.
fn builtin(e: &Expr) -> String {
    match e {
        Expr::ThreadIdx => "threadIdx.x".into(),
        Expr::BlockIdx(axis) => format!("blockIdx.{}", axis_name(*axis)),
        Expr::GridDim(axis) => format!("gridDim.{}", axis_name(*axis)),
        Expr::Const(_)
        | Expr::Var(_)
        | Expr::Elem(_, _)
        | Expr::Param(_)
        | Expr::Unary(_, _)
        | Expr::Binary(_, _, _)
        | Expr::Compare(_, _, _)
        | Expr::Select(_, _, _)
        | Expr::Cast(_, _)
        | Expr::Bitcast(_, _)
        | Expr::Math(_, _)
        | Expr::Load(_, _)
        | Expr::Shuffle(_, _, _)
        | Expr::Pack2(_, _, _) => String::new(),
    }
}

fn axis_name(axis: Axis) -> &'static str {
    match axis {
        Axis::X => "x",
        Axis::Y => "y",
        Axis::Z => "z",
    }
}

fn math_name(f: MathFn) -> &'static str {
    match f {
        MathFn::Exp => "expf",
        MathFn::Exp2 => "exp2f",
        MathFn::Exp2Approx => Helper::Exp2Approx.name(),
        MathFn::Log => "logf",
        MathFn::Sqrt => "sqrtf",
        MathFn::Rsqrt => "rsqrtf",
        MathFn::Sin => "sinf",
        MathFn::Cos => "cosf",
        MathFn::Tanh => "tanhf",
        MathFn::Erf => "erff",
        MathFn::Abs => "fabsf",
        MathFn::Pow => "powf",
        MathFn::Fma => "fmaf",
    }
}

fn constant(c: Const) -> Text {
    let signed = |text: String, negative: bool| {
        let level = if negative { level::UNARY } else { level::POSTFIX };
        Text(text, level)
    };
    match c {
        // Shortest decimal that reads back as the same bits.
        Const::F32(v) if v.is_finite() => signed(format!("{v:?}f"), v.is_sign_negative()),
        Const::F32(v) if v.is_infinite() && v > 0.0 => postfix("__int_as_float(0x7f800000)".into()),
        Const::F32(v) if v.is_infinite() => signed("-__int_as_float(0x7f800000)".into(), true),
        Const::F32(v) => postfix(format!("__uint_as_float({:#010x}u)", v.to_bits())),
        Const::I32(i32::MIN) => Text("-2147483647 - 1".into(), level::SUM),
        Const::I32(v) => signed(v.to_string(), v < 0),
        Const::U32(v) => postfix(format!("{v}u")),
        Const::I64(i64::MIN) => Text("-9223372036854775807LL - 1".into(), level::SUM),
        Const::I64(v) => signed(format!("{v}LL"), v < 0),
        Const::Bool(v) => postfix(v.to_string()),
    }
}
