//! The fusions, by family.

mod attention;
mod experts;
mod linear;
mod loops;
mod norm;

use super::{Fusion, Site, Vars, View};

pub(crate) use experts::ROUTER;
pub(crate) use norm::NORM_LINEAR;

/// All fusions, in the order of reports.
pub fn all() -> Vec<Fusion> {
    vec![
        norm::RMS_NORM,
        norm::LAYER_NORM,
        norm::RESIDUAL_NORM,
        norm::NORM_LINEAR,
        linear::MERGED,
        linear::BIAS,
        linear::ACTIVATION,
        linear::GATED,
        linear::RESIDUAL,
        attention::ROPE,
        attention::CACHE_WRITE,
        attention::ATTENTION,
        attention::SCORES,
        attention::LATENT,
        experts::ROUTER,
        experts::EXPERTS,
        linear::HEAD_SAMPLE,
        loops::ELEMENTWISE,
        loops::CAST,
    ]
}
