//! Changed JSON that is still JSON.

use crate::random::rng::Rng;
use serde_json::{Value, json};

/// A JSON text with some of its values changed or exchanged with those of another; unreadable ones as they are.
pub fn mutated(text: &[u8], other: &[u8], rng: &mut Rng) -> Vec<u8> {
    let Ok(mut value) = serde_json::from_slice::<Value>(text) else { return text.to_vec() };
    let other: Value = serde_json::from_slice(other).unwrap_or(Value::Null);
    for _ in 0..rng.within(1, 4) {
        let new = any(&other, rng);
        let count = count(&value);
        change(&mut value, &mut rng.below(count), new, rng);
    }
    value.to_string().into_bytes()
}

/// Values that a reader may not expect.
fn any(other: &Value, rng: &mut Rng) -> Value {
    match rng.below(16) {
        0 => Value::Null,
        1 => json!(true),
        2 => json!(0),
        3 => json!(-1),
        4 => json!(rng.below(5000)),
        5 => json!(1u64 << rng.below(64)),
        6 => json!(u64::MAX),
        7 => json!(rng.signed()),
        8 => json!(rng.pick(&[1e308, -1e308, 5e-324, 0.1])),
        9 => json!(""),
        10 => {
            json!(rng.pick(&["a", "▁", "Ġ", "<0x0A>", "BPE", "Unigram", "llama", "../x", "\0", "(((", "🦀"]))
        }
        11 => json!([]),
        12 => json!({}),
        13 => json!("ab".repeat(rng.below(500))),
        _ => {
            let at = rng.below(count(other));
            pick(other, &mut at.clone()).cloned().unwrap_or(Value::Null)
        }
    }
}

/// Values in a value, itself among them.
fn count(value: &Value) -> usize {
    1 + match value {
        Value::Array(items) => items.iter().map(count).sum(),
        Value::Object(map) => map.values().map(count).sum(),
        _ => 0,
    }
}

/// The value at a place, in the order of [`count`].
fn pick<'a>(value: &'a Value, at: &mut usize) -> Option<&'a Value> {
    if *at == 0 {
        return Some(value);
    }
    *at -= 1;
    match value {
        Value::Array(items) => items.iter().find_map(|v| pick(v, at)),
        Value::Object(map) => map.values().find_map(|v| pick(v, at)),
        _ => None,
    }
}

/// Changes the value at a place: replaces it, takes it out, or gives it another key.
fn change(value: &mut Value, at: &mut usize, new: Value, rng: &mut Rng) -> bool {
    if *at == 0 {
        *value = new;
        return true;
    }
    *at -= 1;
    match value {
        Value::Array(items) => {
            if *at < items.len() && rng.chance(40) {
                match rng.below(3) {
                    0 => drop(items.remove(*at)),
                    1 => items.insert(*at, new),
                    _ => items.truncate(*at),
                }
                return true;
            }
            items.iter_mut().any(|v| change(v, at, new.clone(), rng))
        }
        Value::Object(map) => {
            if *at < map.len() && rng.chance(40) {
                let key = map.keys().nth(*at).cloned().unwrap_or_default();
                let old = map.remove(&key).unwrap_or(Value::Null);
                if rng.chance(50) {
                    let other = map.keys().nth(rng.below(map.len())).cloned().unwrap_or_default();
                    map.insert(format!("{other}{}", rng.pick(&["", "_", "x", "s"])), old);
                }
                return true;
            }
            map.values_mut().any(|v| change(v, at, new.clone(), rng))
        }
        _ => false,
    }
}
