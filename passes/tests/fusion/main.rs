//! Fusions: what their patterns find, and near misses that they must not ([`near_misses`] has one of each).

mod maker;
mod near_misses;

use maker::{Maker, WIDTH};
use weft_ir::dtype::DType;
use weft_ir::graph::{Input, Op};
use weft_ir::ids::NodeId;
use weft_ir::scalar::{Binary, Reduce, Unary};

#[test]
fn an_rms_norm_is_scaled_by_its_own_rows() {
    let of = |other: bool, op: Reduce, f: Unary| {
        let mut m = Maker::new();
        let (x, z) = (m.rows("x"), m.rows("z"));
        let y = m.scaled_by(x, [x, if other { z } else { x }], op, f);
        m.sites(y, "rms-norm")
    };
    assert_eq!(of(false, Reduce::Mean, Unary::Rsqrt), 1);
    assert_eq!(of(false, Reduce::Mean, Unary::Sqrt), 0, "√ in place of 1/√");
    assert_eq!(of(true, Reduce::Mean, Unary::Rsqrt), 0, "the product of two values is no square");
    assert_eq!(of(false, Reduce::Max, Unary::Rsqrt), 0, "a largest element is no mean");
}

#[test]
fn a_layer_norm_takes_its_own_mean_off() {
    let centred = |other: bool| {
        let mut m = Maker::new();
        let (x, z) = (m.rows("x"), m.rows("z"));
        let mean = m.g.reduce(Reduce::Mean, if other { z } else { x });
        let c = m.bin(Binary::Sub, x, mean);
        let y = m.scaled(c, c);
        m.sites(y, "layer-norm")
    };
    assert_eq!((centred(false), centred(true)), (1, 0));
}

#[test]
fn a_bias_is_a_weight() {
    let biased = |weight: bool| {
        let mut m = Maker::new();
        let x = m.rows("x");
        let y = m.linear(x, "w", 8);
        let b = match weight {
            true => m.weight("b", &[1, 8]),
            false => {
                let all = m.linear(x, "b", 8);
                m.g.reduce(Reduce::Mean, all)
            }
        };
        let y = m.bin(Binary::Add, y, b);
        m.sites(y, "linear-bias")
    };
    assert_eq!((biased(true), biased(false)), (1, 0));
}

#[test]
fn activations_are_told_from_what_looks_like_them() {
    let of = |make: &dyn Fn(&mut Maker, NodeId) -> NodeId| {
        let mut m = Maker::new();
        let x = m.rows("x");
        let y = m.linear(x, "w", 8);
        let y = make(&mut m, y);
        m.sites(y, "linear-activation")
    };
    let squared_relu = |m: &mut Maker, y: NodeId| {
        let zero = m.g.scalar_like(0.0, y);
        let r = m.bin(Binary::Max, y, zero);
        m.bin(Binary::Mul, r, r)
    };
    assert_eq!(of(&|m, y| m.g.unary(Unary::Silu, y)), 1);
    assert_eq!(of(&squared_relu), 1);
    let gelu = |m: &mut Maker, y: NodeId, of: NodeId| {
        let e = m.g.unary(Unary::Erf, of);
        let one = m.g.scalar_like(1.0, e);
        let e = m.bin(Binary::Add, e, one);
        let half = m.g.scalar_like(0.5, y);
        let y = m.bin(Binary::Mul, y, half);
        m.bin(Binary::Mul, y, e)
    };
    assert_eq!(of(&|m, y| gelu(m, y, y)), 1);
    // The gate of another value.
    assert_eq!(
        of(&|m, y| {
            let z = m.rows("z");
            let z = m.linear(z, "v", 8);
            gelu(m, y, z)
        }),
        0
    );
    assert_eq!(of(&|m, y| m.g.unary(Unary::Tanh, y)), 0);
    assert_eq!(of(&|m, y| m.bin(Binary::Mul, y, y)), 0);
}

#[test]
fn gate_and_up_are_two_values() {
    let gated = |same: bool| {
        let mut m = Maker::new();
        let x = m.rows("x");
        let (gate, up) = (m.linear(x, "gate", 8), m.linear(x, "up", 8));
        let f = m.g.unary(Unary::Silu, gate);
        let y = m.bin(Binary::Mul, f, if same { gate } else { up });
        m.sites(y, "gated-activation")
    };
    assert_eq!((gated(false), gated(true)), (1, 0));
}

#[test]
fn a_residual_has_the_products_shape() {
    let mut m = Maker::new();
    let x = m.rows("x");
    let y = m.linear(x, "w", WIDTH);
    let y = m.bin(Binary::Add, x, y);
    assert_eq!(m.sites(y, "residual"), 1);

    let mut m = Maker::new();
    let x = m.rows("x");
    let y = m.linear(x, "w", WIDTH);
    let mean = m.g.reduce(Reduce::Mean, x);
    let y = m.bin(Binary::Add, y, mean);
    assert_eq!(m.sites(y, "residual"), 0);
}

#[test]
fn a_rotation_turns_both_halves_by_one_angle() {
    let of = |change: &str| {
        let mut m = Maker::new();
        let x = m.rows("x");
        let y = m.linear(x, "w", WIDTH);
        let y = m.rotated(y, change);
        m.sites(y, "rope")
    };
    assert_eq!(of(""), 1);
    for change in ["halves", "angle", "signs"] {
        assert_eq!(of(change), 0, "{change}");
    }
    // Not of a projection.
    let mut m = Maker::new();
    let x = m.rows("x");
    let y = m.rotated(x, "");
    assert_eq!(m.sites(y, "rope"), 0);
}

#[test]
fn attention_normalises_elementwise_scores() {
    let of = |change: &str, fusion: &str| {
        let mut m = Maker::new();
        let y = m.attention(change);
        m.sites(y, fusion)
    };
    assert_eq!((of("", "attention"), of("", "attention-epilogue")), (1, 0));
    assert_eq!((of("soft-cap", "attention"), of("soft-cap", "attention-epilogue")), (1, 1));
    for change in ["exp", "sum"] {
        assert_eq!(of(change, "attention"), 0, "{change}");
    }
}

#[test]
fn linears_of_one_input_are_one_site() {
    let of = |other: bool| {
        let mut m = Maker::new();
        let (x, z) = (m.rows("x"), m.rows("z"));
        let (a, b) = (m.linear(x, "a", 8), m.linear(if other { z } else { x }, "b", 8));
        let y = m.g.concat(&[a, b], 1);
        m.sites(y, "merge-linears")
    };
    assert_eq!((of(false), of(true)), (1, 0));
}

#[test]
fn casts_of_integers_are_not_counted() {
    let mut m = Maker::new();
    let p = m.g.input(Input::Positions);
    let p = m.g.cast(p, DType::F32);
    let y = m.g.unary(Unary::Cos, p);
    assert_eq!(m.sites(y, "fold-cast"), 0);

    let mut m = Maker::new();
    let x = m.rows("x");
    let y = m.g.add(Op::Cast(DType::BF16), &[x]);
    let y = m.g.add(Op::Cast(DType::F32), &[y]);
    let y = m.g.unary(Unary::Cos, y);
    assert_eq!(m.sites(y, "fold-cast"), 2);
}

/// The patterns name ops as the graph does.
#[test]
fn fusions_have_names_of_their_own() {
    let mut names: Vec<&str> = weft_passes::fusion::all().iter().map(|f| f.name).collect();
    let all = names.len();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), all);
}
