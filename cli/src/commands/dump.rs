//! `weft compile --dump-passes`: the IR after each pass, and one layer before and after as pictures.

use crate::errors::{Error, Result};
use crate::model::Model;
use crate::picture::{Picture, first_layer, svg};
use std::fs;
use std::path::Path;
use weft_passes::context::DUMPS;
use weft_passes::products::FORMS;

/// Writes `01-build.txt`, …, and where the model has layers, `layer-built.svg` and for each form of the step
/// `layer-decode.svg`, …. Those of an earlier run are removed first, and nothing else.
///
/// # Errors
/// A folder that cannot be read or written.
pub fn write(folder: &Path, model: &Model) -> Result<()> {
    fs::create_dir_all(folder).map_err(|e| Error::io(folder, "create", &e))?;
    clear(folder)?;
    let put = |name: String, text: &str| {
        let path = folder.join(name);
        fs::write(&path, text).map_err(|e| Error::io(&path, "write", &e))
    };
    for (i, (pass, text)) in model.context.dumps.iter().enumerate() {
        put(format!("{:02}-{pass}.txt", i + 1), text)?;
    }
    let Some(layer) = first_layer(&model.graph) else { return Ok(()) };
    let built = Picture {
        title: format!("{layer}: as built"),
        graph: &model.graph,
        layer: &layer,
        kernels: Vec::new(),
    };
    put("layer-built.svg".into(), &svg(&built))?;
    for (form, body) in model.forms.iter().zip(&model.plan.bodies) {
        let name =
            |work: u32| model.plan.works.get(work as usize).map(|w| w.name.clone()).unwrap_or_default();
        // What other layers compute again (slots, masks) is theirs.
        let inside = |scope: &str| scope.strip_prefix(layer.as_str()).is_some_and(|s| s.starts_with('.'));
        let kernels = body.dispatches.iter().zip(&form.dispatches).filter(|(d, _)| inside(&d.scope));
        let lowered = Picture {
            title: format!("{layer}: after eqsat and lowering ({}); a colour is a kernel", form.name),
            graph: &form.graph,
            layer: &layer,
            kernels: kernels.map(|(d, nodes)| (name(d.work), nodes.clone())).collect(),
        };
        put(format!("layer-{}.svg", form.name), &svg(&lowered))?;
    }
    Ok(())
}

/// Removes what an earlier run wrote: it may have had other passes, or another form of the step.
fn clear(folder: &Path) -> Result<()> {
    let entries = fs::read_dir(folder).map_err(|e| Error::io(folder, "read", &e))?;
    for entry in entries {
        let entry = entry.map_err(|e| Error::io(folder, "read", &e))?;
        if entry.file_name().to_str().is_some_and(is_own) {
            let path = entry.path();
            fs::remove_file(&path).map_err(|e| Error::io(&path, "remove", &e))?;
        }
    }
    Ok(())
}

/// Whether a file's name is one that dumps have.
fn is_own(name: &str) -> bool {
    let numbered = |(number, pass): (&str, &str)| {
        number.len() == 2 && number.bytes().all(|b| b.is_ascii_digit()) && DUMPS.contains(&pass)
    };
    let text = name.strip_suffix(".txt").and_then(|stem| stem.split_once('-')).is_some_and(numbered);
    let layer = name.strip_prefix("layer-").and_then(|rest| rest.strip_suffix(".svg"));
    text || layer.is_some_and(|form| ["built", "all"].iter().chain(&FORMS).any(|known| *known == form))
}

#[cfg(test)]
mod tests {
    use super::is_own;

    #[test]
    fn only_the_names_of_dumps_are_own() {
        for own in
            ["01-build.txt", "12-launch.txt", "03-eqsat-short.txt", "layer-built.svg", "layer-encode.svg"]
        {
            assert!(is_own(own), "{own}");
        }
        for other in ["01-notes.txt", "1-build.txt", "001-build.txt", "build.txt", "layer-cake.svg", "x.svg"]
        {
            assert!(!is_own(other), "{other}");
        }
    }
}
