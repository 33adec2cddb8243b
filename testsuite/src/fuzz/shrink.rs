//! Smaller inputs that still fail.

/// Most trials.
const TRIALS: usize = 2000;

/// Takes parts away as long as the rest `fails`: halves, then quarters, down to single bytes (delta debugging, Zeller &
/// Hildebrandt 2002).
pub fn shrink(mut input: Vec<u8>, mut fails: impl FnMut(&[u8]) -> bool) -> Vec<u8> {
    let mut part = input.len().div_ceil(2);
    let mut trials = 0;
    while part > 0 && trials < TRIALS {
        let mut at = 0;
        let mut shorter = false;
        while at < input.len() && trials < TRIALS {
            let end = (at + part).min(input.len());
            let rest = [&input[..at], &input[end..]].concat();
            trials += 1;
            if fails(&rest) {
                input = rest;
                shorter = true;
            } else {
                at = end;
            }
        }
        part = if shorter && part > 1 { part.min(input.len()) } else { part / 2 };
    }
    input
}

#[cfg(test)]
mod tests {
    use super::shrink;

    #[test]
    fn only_what_fails_is_left() {
        let input: Vec<u8> = (0..200).collect();
        assert_eq!(shrink(input, |x| x.contains(&17) && x.contains(&150)), [17, 150]);
        assert!(shrink(vec![1, 2, 3], |_| true).is_empty());
    }
}
