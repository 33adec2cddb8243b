//! Sampling: known answers of the random bits, the distribution drawn, and the filters' edges.

use weft_ir::sampling::{
    Params, Penalties, gumbel, key, penalize_row, philox4x32_10, sample_row, uniform, uniform_of_bits,
};

const HOT: Params = Params { temperature: 1.0, top_k: 0, top_p: 1.0, min_p: 0.0, seed: 7 };

/// The known-answer vectors of Random123 (`kat_vectors`, philox4x32 10).
#[test]
fn philox_known_answers() {
    let zero = philox4x32_10([0; 4], [0; 2]);
    assert_eq!(zero, [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
    let ones = philox4x32_10([u32::MAX; 4], [u32::MAX; 2]);
    assert_eq!(ones, [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]);
    let pi = philox4x32_10([0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344], [0xa409_3822, 0x299f_31d0]);
    assert_eq!(pi, [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1]);
}

#[test]
fn uniform_numbers_are_inside_the_open_interval_and_gumbels_finite() {
    for bits in [0, 1, 255, 256, u32::MAX - 256, u32::MAX - 255, u32::MAX] {
        let u = uniform_of_bits(bits);
        assert!(u > 0.0 && u < 1.0, "{bits:x}: {u}");
        assert!(gumbel(u).is_finite());
    }
    let word = philox4x32_10([2, 5, 0, 0], [9, 0x5745_4654])[3];
    assert_eq!(uniform(9, 5, 11), uniform_of_bits(word));
}

#[test]
fn keys_are_ordered_as_numbers() {
    let sorted = [f32::NEG_INFINITY, -1e30, -1.0, -1e-40, 0.0, 1e-40, 0.5, 1.0, 1e30, f32::INFINITY];
    assert!(sorted.windows(2).all(|w| key(w[0]) < key(w[1])));
    assert_eq!(key(-0.0), key(0.0));
}

#[test]
fn greedy_takes_the_first_of_the_largest() {
    assert_eq!(sample_row(&[0.5, 2.0, -1.0, 2.0], 3, &Params::GREEDY), 1);
    assert_eq!(sample_row(&[-0.0, 0.0], 0, &Params::GREEDY), 0);
    assert_eq!(sample_row(&[f32::NEG_INFINITY; 3], 0, &Params::GREEDY), 0);
    let nan = Params { temperature: f32::NAN, ..HOT };
    assert_eq!(sample_row(&[0.0, 1.0], 0, &nan), 1);
}

#[test]
fn nan_and_nothing_are_noticed() {
    assert_eq!(sample_row(&[0.0, f32::NAN, 9.0], 0, &HOT), -1);
    assert_eq!(sample_row(&[0.0, f32::NAN, 9.0], 0, &Params::GREEDY), -1);
    assert_eq!(sample_row(&[], 0, &HOT), -1);
}

/// χ² of draws over positions against the probabilities wanted (zero probability: never drawn).
fn chi_square(logits: &[f32], params: &Params, wanted: &[f64], draws: usize) -> f64 {
    let mut seen = vec![0usize; logits.len()];
    for position in 0..draws {
        seen[sample_row(logits, position as i32, params) as usize] += 1;
    }
    let mut chi = 0.0;
    for (&n, &p) in seen.iter().zip(wanted) {
        if p == 0.0 {
            assert_eq!(n, 0, "drew a token that is not kept: {seen:?}");
        } else {
            let e = p * draws as f64;
            chi += (n as f64 - e).powi(2) / e;
        }
    }
    chi
}

fn softmax(logits: &[f32], temperature: f64, kept: &[usize]) -> Vec<f64> {
    let mut p: Vec<f64> = logits.iter().map(|&l| (f64::from(l) / temperature).exp()).collect();
    for (i, p) in p.iter_mut().enumerate() {
        if !kept.contains(&i) {
            *p = 0.0;
        }
    }
    let sum: f64 = p.iter().sum();
    p.iter().map(|p| p / sum).collect()
}

#[test]
fn draws_follow_the_softmax() {
    let logits = [0.0, 1.0, -1.0, 2.0, 0.3, -2.5, 1.7];
    let all: Vec<usize> = (0..7).collect();
    // 99.9th percentile of χ² with 6 degrees of freedom: 22.46.
    for (seed, temperature) in [(1, 1.0), (2, 0.7), (u32::MAX, 2.0)] {
        let params = Params { temperature, seed, ..HOT };
        let chi = chi_square(&logits, &params, &softmax(&logits, f64::from(temperature), &all), 40_000);
        assert!(chi < 22.46, "temperature {temperature}: χ² = {chi}");
    }
}

#[test]
fn filtered_draws_follow_the_renormalised_softmax() {
    let logits = [0.0, 1.0, -1.0, 2.0, 0.3, -2.5, 1.7];
    let cases: [(Params, &[usize]); 4] = [
        (Params { top_k: 3, ..HOT }, &[1, 3, 6]),
        // Probabilities in order: 3: 0.40, 6: 0.30, 1: 0.15, …
        (Params { top_p: 0.6, ..HOT }, &[3, 6]),
        // Within a factor 0.3 of the most likely: l ≥ 2 − 1.204.
        (Params { min_p: 0.3, ..HOT }, &[1, 3, 6]),
        // Of the three kept by k, 2 reach 80 % of their mass.
        (Params { top_k: 3, top_p: 0.8, min_p: 0.01, ..HOT }, &[3, 6]),
    ];
    for (params, kept) in cases {
        let chi = chi_square(&logits, &params, &softmax(&logits, 1.0, kept), 20_000);
        // 99.9th percentile with 2 degrees of freedom.
        assert!(chi < 13.82, "{params:?}: χ² = {chi}");
    }
}

#[test]
fn draws_depend_on_seed_and_position_alone() {
    let logits: Vec<f32> = (0..50).map(|i| (i % 7) as f32 * 0.3).collect();
    let draw = |seed, position| sample_row(&logits, position, &Params { seed, ..HOT });
    assert_eq!(draw(1, 10), draw(1, 10));
    assert!((0..20).any(|p| draw(1, p) != draw(2, p)));
    assert!((0..20).any(|p| draw(1, p) != draw(1, p + 20)));
}

#[test]
fn edges_of_the_filters() {
    let logits = [1.0, 3.0, 3.0, 2.0];
    let draws = |params: Params| -> Vec<i32> {
        let mut seen: Vec<i32> = (0..400).map(|p| sample_row(&logits, p, &params)).collect();
        seen.sort_unstable();
        seen.dedup();
        seen
    };
    // Ties with the smallest kept are kept; 0, negative and too large k keep all.
    assert_eq!(draws(Params { top_k: 1, ..HOT }), [1, 2]);
    for top_k in [0, -1, 4, 5, i32::MAX] {
        assert_eq!(draws(Params { top_k, ..HOT }), [0, 1, 2, 3]);
    }
    // No mass wanted: the most likely remain; all mass wanted: all remain, even negligible ones.
    for top_p in [0.0, -1.0, 1e-30] {
        assert_eq!(draws(Params { top_p, ..HOT }), [1, 2]);
    }
    assert_eq!(draws(Params { top_p: 1.0, temperature: 4.0, ..HOT }), [0, 1, 2, 3]);
    // A share beyond all keeps the most likely.
    for min_p in [1.0, 2.0, f32::INFINITY] {
        assert_eq!(draws(Params { min_p, ..HOT }), [1, 2]);
    }
    assert_eq!(draws(Params { min_p: 0.0, ..HOT }), [0, 1, 2, 3]);
}

#[test]
fn infinities() {
    let params = Params { top_p: 0.9, min_p: 0.1, top_k: 3, ..HOT };
    let inf = f32::INFINITY;
    for position in 0..50 {
        assert_eq!(sample_row(&[0.0, inf, 2.0, 1.0], position, &params), 1);
        assert_eq!(sample_row(&[-inf, -inf, 2.0, -inf], position, &params), 2);
        assert_eq!(sample_row(&[-inf, -inf], position, &params), 0);
        // A tiny temperature overflows to infinities.
        assert_eq!(sample_row(&[-3.0, 2.0, -1.0], position, &Params { temperature: 1e-40, ..HOT }), 1);
    }
}

#[test]
fn penalties_count_each_token_once() {
    let row = [2.0, -1.0, 0.5, 4.0, -0.0];
    // Token 1 is in the prompt twice, token 3 in the prompt and in the answer, token 0 in the answer alone.
    let past = [1, 1, 3, 3, 0, -1, 9];
    let after = |repetition, presence| {
        let mut row = row;
        penalize_row(&mut row, &past, 3, &Penalties { repetition, presence });
        row
    };
    assert_eq!(after(1.0, 0.0), row);
    // What transformers' RepetitionPenaltyLogitsProcessor gives with a penalty of 2.
    assert_eq!(after(2.0, 0.0), [1.0, -2.0, 0.5, 2.0, -0.0]);
    assert_eq!(after(1.0, 0.75), [1.25, -1.0, 0.5, 3.25, -0.0]);
    assert_eq!(after(2.0, 0.75), [0.25, -2.0, 0.5, 1.25, -0.0]);
    assert_eq!(after(0.5, -1.0), [5.0, -0.5, 0.5, 9.0, -0.0]);
}
