//! `weft compile --dump-passes`: the IR after each pass, and one layer before and after as pictures.

use crate::errors::{Error, Result};
use crate::model::Model;
use crate::picture::{Picture, first_layer, svg};
use std::fs;
use std::path::Path;

/// Writes `01-build.txt`, …, and where the model has layers, `layer-built.svg` and for each form of the step
/// `layer-decode.svg`, ….
///
/// # Errors
/// A folder that cannot be written.
pub fn write(folder: &Path, model: &Model) -> Result<()> {
    fs::create_dir_all(folder).map_err(|e| Error::io(folder, "create", &e))?;
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
