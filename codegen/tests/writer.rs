//! The text of hand-built kernels.

mod kernels;

use kernels::*;
use weft_codegen::cuda::{WriteError, write, write_module};
use weft_ir::dtype::DType;
use weft_ir::kernel::build::KernelBuilder;
use weft_ir::kernel::*;

#[test]
fn vector_add_text() {
    insta::assert_snapshot!("vector_add", write(&vector_add(256)).expect("writes"));
}

#[test]
fn block_sum_text() {
    insta::assert_snapshot!("block_sum", write(&block_sum(128, true)).expect("writes"));
}

#[test]
fn mma_tile_text() {
    insta::assert_snapshot!("mma_tile", write(&mma_tile(DType::BF16)).expect("writes"));
}

#[test]
fn pipeline_text() {
    insta::assert_snapshot!("pipeline", write(&pipeline(true, true)).expect("writes"));
}

#[test]
fn intrinsics_text() {
    insta::assert_snapshot!("intrinsics", write(&intrinsics()).expect("writes"));
}

#[test]
fn modules_share_helpers() {
    let (a, b) = (vector_add(64), mma_tile(DType::BF16));
    let text = write_module(&[&a, &b]).expect("writes");
    assert_eq!(text.matches("struct __align__(2) bf16").count(), 1);
    assert_eq!(text.matches("extern \"C\" __global__").count(), 2);
    assert_eq!(text, write_module(&[&a, &b]).expect("writes"));
}

/// The one line that a `let` of an expression prints.
fn line(dtype: DType, fill: impl FnOnce(&mut KernelBuilder) -> Expr) -> String {
    let mut b = KernelBuilder::new("k", 32);
    let e = fill(&mut b);
    b.let_("int", dtype, e);
    let text = write(&b.finish()).expect("writes");
    let found = text.lines().find(|l| l.contains("int_2 = ")).expect("a line").trim();
    found.split_once(" = ").expect("an initialiser").1.trim_end_matches(';').to_string()
}

fn bin(op: BinaryOp, a: Expr, b: Expr) -> Expr {
    Expr::Binary(op, Box::new(a), Box::new(b))
}

#[test]
fn parentheses_follow_precedence() {
    let t = || Expr::ThreadIdx;
    let u = || Expr::BlockIdx(Axis::X);
    let cases = [
        ((t() + u()) * t(), "(threadIdx.x + blockIdx.x) * threadIdx.x"),
        (t() + u() * t(), "threadIdx.x + blockIdx.x * threadIdx.x"),
        (t() - (u() - t()), "threadIdx.x - (blockIdx.x - threadIdx.x)"),
        ((t() - (u() - t())) / 2, "((int)threadIdx.x - ((int)blockIdx.x - (int)threadIdx.x)) / 2"),
        ((t() + 1) * ((t() + 1) % 4), "(threadIdx.x + 1) * (((int)threadIdx.x + 1) % 4)"),
        (t() - Expr::int(-3), "threadIdx.x - -3"),
        (Expr::Unary(UnaryOp::Neg, Box::new(Expr::int(-3))), "-(-3)"),
        (
            bin(BinaryOp::Xor, t() % 8, bin(BinaryOp::Shr, t(), Expr::int(3))),
            "(int)threadIdx.x % 8 ^ (int)threadIdx.x >> 3",
        ),
        (bin(BinaryOp::And, t(), Expr::int(7)) + 1, "((int)threadIdx.x & 7) + 1"),
        (
            t().lt(u()).select(t(), u()) + 1,
            "((int)threadIdx.x < (int)blockIdx.x ? (int)threadIdx.x : (int)blockIdx.x) + 1",
        ),
    ];
    for (e, expected) in cases {
        assert_eq!(line(DType::I32, |_| e), expected);
    }
    let logical = t().lt(u()).and(bin(BinaryOp::Or, t().ge(u()), t().eq_(u())));
    let expected = "(int)threadIdx.x < (int)blockIdx.x && \
                    ((int)threadIdx.x >= (int)blockIdx.x || (int)threadIdx.x == (int)blockIdx.x)";
    assert_eq!(line(DType::Bool, |_| logical), expected);
}

#[test]
fn literals_are_exact() {
    let cases = [
        (1.0, "1.0f"),
        (0.1, "0.1f"),
        (-1e-5, "-1e-5f"),
        (3.402_823_5e38, "3.4028235e38f"),
        (-0.0, "-0.0f"),
        (f32::INFINITY, "__int_as_float(0x7f800000)"),
        (f32::NEG_INFINITY, "-__int_as_float(0x7f800000)"),
    ];
    for (v, expected) in cases {
        assert_eq!(line(DType::F32, |_| Expr::float(v)), expected);
    }
    assert_eq!(line(DType::I32, |_| Expr::int(i64::from(i32::MIN))), "-2147483647 - 1");
    assert_eq!(line(DType::I64, |_| Expr::Const(Const::I64(1 << 40))), "1099511627776LL");
    assert_eq!(line(DType::U32, |_| Expr::uint(u32::MAX)), "4294967295u");
}

#[test]
fn large_shared_memory_is_dynamic() {
    let mut b = KernelBuilder::new("big", 32);
    let a = Mem::Shared(b.shared("a", DType::F32, 8192));
    let c = Mem::Shared(b.shared("c", DType::BF16, 16384));
    b.store(a, Expr::ThreadIdx, Expr::float(0.0));
    b.store(c, Expr::ThreadIdx, Expr::float(0.0).cast(DType::BF16));
    let kernel = b.finish();
    let text = write(&kernel).expect("writes");
    assert!(text.contains("extern __shared__ __align__(16) unsigned char smem[];"));
    assert!(text.contains("bf16* const c = reinterpret_cast<bf16*>(smem + 32768);"), "{text}");
    assert_eq!(kernel.dynamic_shared(), 65536);
}

#[test]
fn undeclared_variables_have_no_text() {
    let mut b = KernelBuilder::new("bad", 32);
    let inner = b.block(|b| {
        b.let_("v", DType::I32, Expr::int(1));
    });
    drop(inner);
    b.let_("w", DType::I32, Expr::Var(weft_ir::ids::VarId::new(0)));
    assert!(matches!(write(&b.finish()), Err(WriteError::NotDeclared(_))));
}
