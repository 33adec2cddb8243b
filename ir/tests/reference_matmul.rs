//! Matrix products of the reference: all paths against the definition, whatever the threads.

use proptest::prelude::*;
use std::time::Instant;
use weft_ir::reference::{Real, Tensor, matmul::matmul, movement};

fn filled<R: Real>(shape: &[usize], seed: u32) -> Tensor<R> {
    let n: usize = shape.iter().product();
    let number =
        |i: u32| f64::from((i.wrapping_mul(2_654_435_761).wrapping_add(seed) >> 16) & 0xff) / 64.0 - 2.0;
    Tensor::real((0..n as u32).map(|i| R::from_f64(number(i))).collect(), shape.to_vec()).unwrap()
}

/// a [batch, m, k] · b [batch, k, n], by the definition.
fn naive(a: &Tensor<f64>, b: &Tensor<f64>, [batch, m, n, k]: [usize; 4]) -> Vec<f64> {
    let (a, b) = (a.to_reals().unwrap(), b.to_reals().unwrap());
    let mut out = Vec::new();
    for x in 0..batch {
        for i in 0..m {
            for j in 0..n {
                out.push((0..k).map(|l| a[(x * m + i) * k + l] * b[(x * k + l) * n + j]).sum());
            }
        }
    }
    out
}

fn same(a: &[f64], b: &[f64]) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(x, y)| (x - y).abs() < 1e-9)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]
    #[test]
    fn every_layout_and_size(
        batch in 1usize..4, m in prop_oneof![1usize..4, 7usize..20], n in 1usize..40, k in 1usize..70,
        transpose_b in any::<bool>(), turn_a in any::<bool>(), turn_b in any::<bool>(), repeat in any::<bool>(),
    ) {
        let swap = |t: &Tensor<f64>| movement::transpose(t, &[0, 2, 1]).unwrap();
        // As [batch, k, n], stored either way.
        let b = if turn_b { swap(&filled(&[batch, n, k], 2)) } else { filled(&[batch, k, n], 2) };
        let a = if turn_a { swap(&filled(&[batch, k, m], 1)) } else { filled(&[batch, m, k], 1) };
        let b = if repeat {
            let one = movement::slice(&b, 2, 0, 1).unwrap();
            movement::broadcast(&one, vec![batch, k, n]).unwrap()
        } else { b };
        let given = if transpose_b { swap(&b) } else { b.clone() };
        let c = matmul(&a, &given, transpose_b).unwrap();
        prop_assert_eq!(c.shape(), &[batch, m, n]);
        prop_assert!(same(&c.to_reals().unwrap(), &naive(&a, &b, [batch, m, n, k])));
    }
}

#[test]
fn large_products_in_both_types() {
    for (m, n, k) in [(1, 3000, 600), (5, 1000, 300), (70, 600, 130), (600, 70, 130)] {
        let (a, b) = (filled::<f64>(&[1, m, k], 3), filled::<f64>(&[1, k, n], 4));
        let wanted = naive(&a, &b, [1, m, n, k]);
        let turned = movement::transpose(&b, &[0, 2, 1]).unwrap().packed();
        assert!(same(&matmul(&a, &turned, true).unwrap().to_reals().unwrap(), &wanted));
        let narrow = |t: &Tensor<f64>| {
            let values = t.to_reals().unwrap().iter().map(|&x| x as f32).collect();
            Tensor::<f32>::real(values, t.shape().to_vec()).unwrap()
        };
        let c = matmul(&narrow(&a), &narrow(&turned), true).unwrap().to_reals().unwrap();
        assert!(c.iter().zip(&wanted).all(|(x, y)| (f64::from(*x) - y).abs() < 1e-3));
    }
}

#[test]
fn results_do_not_depend_on_the_number_of_threads() {
    for m in [1, 8, 40] {
        let (a, b) = (filled::<f32>(&[m, 700], 1), filled::<f32>(&[900, 700], 2));
        let with = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| matmul(&a, &b, true).unwrap().to_reals().unwrap())
        };
        assert_eq!(with(1), with(3));
    }
}

#[test]
fn empty_products() {
    let c = matmul(&filled::<f32>(&[0, 5], 0), &filled(&[3, 5], 0), true).unwrap();
    assert_eq!(c.shape(), [0, 3]);
    let c = matmul(&filled::<f32>(&[2, 0], 0), &filled(&[3, 0], 0), true).unwrap();
    assert_eq!(c.to_reals().unwrap(), [0.0; 6]);
    assert!(matmul(&filled::<f32>(&[2, 4], 0), &filled(&[3, 5], 0), true).is_err());
}

/// `cargo test -p weft-ir --release --test reference_matmul -- --ignored --nocapture`
#[test]
#[ignore = "a measurement"]
fn speed() {
    for (m, n, k) in [
        (1, 49152, 576),
        (1, 1536, 576),
        (1, 576, 1536),
        (2, 49152, 576),
        (3, 49152, 576),
        (4, 49152, 576),
        (8, 49152, 576),
        (12, 49152, 576),
        (256, 1536, 576),
    ] {
        let (a, b) = (filled::<f32>(&[m, k], 1), filled::<f32>(&[n, k], 2));
        let reps = (2e9 / (m * n * k) as f64).clamp(3.0, 2000.0) as usize;
        let start = Instant::now();
        for _ in 0..reps {
            std::hint::black_box(matmul(&a, &b, true).unwrap());
        }
        let s = start.elapsed().as_secs_f64() / reps as f64;
        let (bytes, flops) = ((n * k * 4) as f64, (2 * m * n * k) as f64);
        println!(
            "{m}×{n}×{k}: {:.3} ms, {:.1} GB/s, {:.1} GFLOP/s",
            s * 1e3,
            bytes / s / 1e9,
            flops / s / 1e9
        );
    }
}
