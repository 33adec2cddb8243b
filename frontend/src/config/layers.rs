//! Each layer's attention: its window, and whether and how it is rotated.

use super::fields::Fields;
use super::spec::{RopeLayers, Spec, Windows};
use super::{LayerAttention, LayerRope};
use crate::error::{Error, Result};

/// Reads the layers' attention; `layers` is checked to be small.
pub(super) fn read(f: &mut Fields, spec: &Spec, layers: usize) -> Result<Vec<LayerAttention>> {
    let rotated = rotated(f, spec, layers)?;
    let (windows, configured) = windows(f, spec, layers, rotated.as_deref())?;
    let rope = |i: usize, window: Option<usize>| {
        let turned = match spec.ropes {
            RopeLayers::All => true,
            RopeLayers::Windowed { or_all } => window.is_some() || (or_all && !configured),
            RopeLayers::Listed => rotated.as_ref().is_none_or(|r| r[i]),
        };
        match (turned, window) {
            (false, _) => LayerRope::None,
            (true, Some(_)) if spec.local_theta.is_some() => LayerRope::Local,
            (true, _) => LayerRope::Global,
        }
    };
    Ok(windows
        .iter()
        .enumerate()
        .map(|(i, &window)| LayerAttention { window, rope: rope(i, window) })
        .collect())
}

/// Whether each layer is rotated, where the file lists it.
fn rotated(f: &mut Fields, spec: &Spec, layers: usize) -> Result<Option<Vec<bool>>> {
    if spec.ropes != RopeLayers::Listed {
        return Ok(None);
    }
    let interval = f.size("no_rope_layer_interval")?.unwrap_or(4);
    let Some(value) = f.take("no_rope_layers") else {
        if interval == 0 {
            return Err(f.malformed("no_rope_layer_interval", "0 is not an interval".to_owned()));
        }
        return Ok(Some((1..=layers).map(|n| !n.is_multiple_of(interval)).collect()));
    };
    let flags: Option<Vec<bool>> = value.as_array().map(|a| a.iter()).and_then(|items| {
        items.map(|v| v.as_bool().or_else(|| v.as_u64().filter(|&n| n < 2).map(|n| n == 1))).collect()
    });
    match flags {
        Some(flags) if flags.len() == layers => Ok(Some(flags)),
        Some(flags) => {
            let problem = format!("{} entries for {layers} layers", flags.len());
            Err(f.malformed("no_rope_layers", problem))
        }
        None => Err(f.mistyped("no_rope_layers", &value, "a list of 0 and 1")),
    }
}

/// The window of each layer, and whether the file gives a window at all.
fn windows(
    f: &mut Fields,
    spec: &Spec,
    layers: usize,
    rotated: Option<&[bool]>,
) -> Result<(Vec<Option<usize>>, bool)> {
    let given = f.map.contains_key("sliding_window");
    let size = |f: &mut Fields, default: Option<usize>| -> Result<Option<usize>> {
        Ok(if given { f.size("sliding_window")? } else { default })
    };
    let (window, of_layers) = match spec.windows {
        Windows::None => {
            refuse_windows(f)?;
            (None, Ok(vec![None; layers]))
        }
        Windows::All(default) => {
            let window = size(f, default)?;
            (window, Ok(vec![window; layers]))
        }
        Windows::Used => {
            let used = f.boolean("use_sliding_window")?.unwrap_or(false);
            let window = size(f, Some(4096))?.filter(|_| used);
            let from = f.size("max_window_layers")?.unwrap_or(28);
            (window, by_type(f, layers, window, |i| i >= from))
        }
        Windows::Alternate(default) => {
            let window = size(f, Some(default))?;
            (window, by_type(f, layers, window, |i| i.is_multiple_of(2)))
        }
        Windows::Pattern(every) => {
            let window = size(f, Some(4096))?;
            let typed = f.map.get("layer_types").is_some_and(|v| !v.is_null());
            f.rename("_sliding_window_pattern", "sliding_window_pattern")?;
            let every = match f.take("sliding_window_pattern").filter(|_| !typed && window.is_some()) {
                None => every,
                Some(v) => match v.as_u64().and_then(|n| usize::try_from(n).ok()).filter(|&n| n > 0) {
                    Some(n) => n,
                    None => return Err(f.mistyped("sliding_window_pattern", &v, "a positive integer")),
                },
            };
            (window, by_type(f, layers, window, |i| !(i + 1).is_multiple_of(every)))
        }
        Windows::Cycle(every) => {
            let window = size(f, None)?;
            let every = match f.size("global_attn_every_n_layers")? {
                Some(0) => {
                    return Err(f.malformed("global_attn_every_n_layers", "0 is not an interval".to_owned()));
                }
                given => given.unwrap_or(every),
            };
            (window, by_type(f, layers, window, |i| !i.is_multiple_of(every)))
        }
        Windows::NoRope => {
            let used = f.boolean("use_sliding_window")?.unwrap_or(false);
            let window = size(f, None)?.filter(|_| used);
            (window, by_type(f, layers, window, |i| rotated.is_some_and(|r| !r[i])))
        }
    };
    Ok((of_layers?, window.is_some()))
}

/// `layer_types`, else as the family's rule says; `window` for those that slide.
fn by_type(
    f: &mut Fields,
    layers: usize,
    window: Option<usize>,
    rule: impl Fn(usize) -> bool,
) -> Result<Vec<Option<usize>>> {
    let Some(value) = f.take("layer_types") else {
        return Ok((0..layers).map(|i| window.filter(|_| rule(i))).collect());
    };
    let Some(types) = value.as_array() else {
        return Err(f.mistyped("layer_types", &value, "a list of kinds"));
    };
    if types.len() != layers {
        let problem = format!("{} entries for {layers} layers", types.len());
        return Err(f.malformed("layer_types", problem));
    }
    let mut out = Vec::with_capacity(layers);
    for (i, kind) in types.iter().enumerate() {
        out.push(match kind.as_str() {
            Some("full_attention") => None,
            Some("sliding_attention") if window.is_some() => window,
            Some("sliding_attention") => {
                return Err(f.malformed("layer_types", format!("layer {i} slides without a sliding_window")));
            }
            _ => {
                let supported = "full_attention, sliding_attention";
                return Err(Error::unsupported(&f.path, format!("layer_types[{i}]"), kind, supported));
            }
        });
    }
    Ok(out)
}

/// Refuses a window in a family whose reference knows none.
fn refuse_windows(f: &mut Fields) -> Result<()> {
    let used = f.boolean("use_sliding_window")?;
    match f.take("sliding_window") {
        Some(window) if used != Some(false) => {
            Err(Error::unsupported(&f.path, "sliding_window", window, "absent, null, or not used"))
        }
        _ if used == Some(true) => {
            Err(Error::unsupported(&f.path, "use_sliding_window", true, "absent or false"))
        }
        _ => Ok(()),
    }
}
