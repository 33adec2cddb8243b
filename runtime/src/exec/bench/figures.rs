//! Figures of repeated measurements.

use serde::{Deserialize, Serialize};

/// Median and range of samples.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Spread {
    /// The middle one; of an even number, the mean of the middle two.
    pub median: f64,
    /// The lowest.
    pub lowest: f64,
    /// The highest.
    pub highest: f64,
}

impl Spread {
    /// Of samples in any order; `None` without samples, or when one is not a number.
    pub fn of(samples: &[f64]) -> Option<Spread> {
        if samples.iter().any(|s| s.is_nan()) {
            return None;
        }
        let mut sorted = samples.to_vec();
        sorted.sort_by(f64::total_cmp);
        let (lowest, highest) = (*sorted.first()?, *sorted.last()?);
        let middle = sorted.len() / 2;
        let upper = *sorted.get(middle)?;
        let median =
            if sorted.len() % 2 == 1 { upper } else { (sorted.get(middle.wrapping_sub(1))? + upper) / 2.0 };
        Some(Spread { median, lowest, highest })
    }

    /// All three times a factor that is not negative.
    #[must_use]
    pub fn times(self, factor: f64) -> Spread {
        Spread { median: self.median * factor, lowest: self.lowest * factor, highest: self.highest * factor }
    }
}

/// Bytes a second; 0 where there is no time.
pub fn rate(bytes: u64, seconds: f64) -> f64 {
    ratio(bytes as f64, seconds)
}

/// a / b; 0 where b is not above 0.
pub fn ratio(a: f64, b: f64) -> f64 {
    if b > 0.0 { a / b } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::{Spread, rate};

    #[test]
    fn medians_of_odd_even_and_no_samples() {
        let spread = |s: &[f64]| Spread::of(s);
        assert_eq!(spread(&[3.0, 1.0, 2.0]), Some(Spread { median: 2.0, lowest: 1.0, highest: 3.0 }));
        assert_eq!(spread(&[4.0, 1.0, 2.0, 9.0]), Some(Spread { median: 3.0, lowest: 1.0, highest: 9.0 }));
        assert_eq!(spread(&[5.0]), Some(Spread { median: 5.0, lowest: 5.0, highest: 5.0 }));
        assert_eq!((spread(&[]), spread(&[1.0, f64::NAN])), (None, None));
    }

    #[test]
    fn rates() {
        assert_eq!(rate(4_500_000_000_000, 1.0), 4.5e12);
        assert_eq!(rate(1, 0.0), 0.0);
    }
}
