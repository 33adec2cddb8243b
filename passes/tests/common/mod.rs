//! What tests of whole compilations share.

use weft_ir::dtype::DType;
use weft_ir::target::Target;
use weft_passes::{Options, Selection};

/// Level 2 for an H100 or H200, with the rules of a selection.
pub fn options(selection: Selection) -> Options {
    Options {
        target: Target::parse("sm_90").expect("sm_90"),
        dtype: DType::BF16,
        opt_level: 2,
        max_seq: 128,
        max_batch: 4,
        selection,
        dump: false,
        schedules: Default::default(),
    }
}
