//! Random numbers of a draw: Philox by seed, position and token, and the Gumbel numbers made of them.

use super::Body;
use super::sampling::{Request, bin};
use weft_ir::dtype::DType;
use weft_ir::ids::VarId;
use weft_ir::kernel::{BinaryOp, Expr, MathFn, UnaryOp, Unroll};
use weft_ir::sampling;

/// Gumbel number of a seed, a position and a token (`sampling::gumbel` of `sampling::uniform`).
pub(super) fn gumbel(b: &mut Body<'_>, q: &Request, id: &Expr) -> Result<Expr, String> {
    let words = random_words(b, (id.clone() / 4).cast(DType::U32), q, None)?;
    let which = b.k.let_("word", DType::I32, id.clone() % 4);
    Ok(gumbel_of_bits(word(&words, &which)))
}

/// One of four words.
pub(super) fn word(words: &[VarId; 4], which: &Expr) -> Expr {
    let of = |i: usize, rest: Expr| which.clone().eq_(Expr::int(i as i64)).select(words[i].into(), rest);
    of(0, of(1, of(2, words[3].into())))
}

/// Random bits of four tokens (`sampling::bits`), unless they are not wanted.
pub(super) fn random_words(
    b: &mut Body<'_>,
    quad: Expr,
    q: &Request,
    wanted: Option<&Expr>,
) -> Result<[VarId; 4], String> {
    let start = [quad, q.position.clone().cast(DType::U32), Expr::uint(0), Expr::uint(0)];
    let mut i = 0;
    let c = start.map(|v| {
        i += 1;
        b.k.let_mut(&format!("c{}", i - 1), DType::U32, v)
    });
    match wanted {
        None => philox(b, q, c)?,
        Some(wanted) => b.if_then(wanted.clone(), |b| philox(b, q, c))?,
    }
    Ok(c)
}

fn philox(b: &mut Body<'_>, q: &Request, c: [VarId; 4]) -> Result<(), String> {
    let k0 = b.k.let_mut("k0", DType::U32, q.seed.clone());
    let k1 = b.k.let_mut("k1", DType::U32, Expr::uint(sampling::KEY));
    b.k.comment("Philox4x32-10 (Salmon et al. 2011).");
    let rounds = (Expr::int(0), Expr::int(10), Expr::int(1));
    b.for_loop("round", rounds, Unroll::Never, |b, _| {
        let var = |i: usize| Expr::Var(c[i]);
        let (m0, m1) = (Expr::uint(0xD251_1F53), Expr::uint(0xCD9E_8D57));
        let hi0 = b.k.let_("hi0", DType::U32, bin(BinaryOp::MulHi, m0.clone(), var(0)));
        let lo0 = b.k.let_("lo0", DType::U32, bin(BinaryOp::Mul, m0, var(0)));
        let hi1 = b.k.let_("hi1", DType::U32, bin(BinaryOp::MulHi, m1.clone(), var(2)));
        let lo1 = b.k.let_("lo1", DType::U32, bin(BinaryOp::Mul, m1, var(2)));
        let xor = |x, y, z| bin(BinaryOp::Xor, bin(BinaryOp::Xor, x, y), z);
        b.k.assign(c[0], xor(hi1, var(1), k0.into()));
        b.k.assign(c[1], lo1);
        b.k.assign(c[2], xor(hi0, var(3), k1.into()));
        b.k.assign(c[3], lo0);
        b.k.assign(k0, bin(BinaryOp::Add, k0.into(), Expr::uint(0x9E37_79B9)));
        b.k.assign(k1, bin(BinaryOp::Add, k1.into(), Expr::uint(0xBB67_AE85)));
        Ok(())
    })
}

/// Gumbel number of random bits.
pub(super) fn gumbel_of_bits(bits: Expr) -> Expr {
    let whole = bin(BinaryOp::Shr, bits, Expr::uint(8)).cast(DType::F32);
    let scale = 1.0 / 16_777_216.0_f32;
    let u = ((whole + Expr::float(0.5)) * Expr::float(scale)).min(Expr::float(1.0 - scale));
    let neg = |e| Expr::Unary(UnaryOp::Neg, Box::new(e));
    let log = |e| Expr::math(MathFn::Log, e);
    neg(log(neg(log(u))))
}
