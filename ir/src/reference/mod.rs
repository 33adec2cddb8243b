//! The CPU reference: what every op means, and an interpreter for `--device cpu`.
//!
//! Tensors hold floats as one number type ([`Real`]: `f64` for the oracle, `f32` otherwise), whatever
//! their stored type; [`Precision::Rounded`] rounds each op's result to its stored type. Results do not
//! depend on the number of threads.

pub mod advance;
mod attention;
pub mod elementwise;
mod error;
pub mod graph;
pub mod index;
mod lanes;
mod layout;
pub mod matmul;
pub mod movement;
pub mod plan;
mod precision;
mod products;
pub mod reduce;
pub mod routed;
mod run;
pub mod sample;
mod scalar;
mod state;
mod steps;
mod store;
mod tensor;
mod vector;
mod weights;
mod work;

pub use error::{OpError, ReferenceError};
pub use graph::{Loaded, load, step};
pub use layout::Layout;
pub use plan::{LoadedPlan, load_plan, run_advance, run_dispatch, step_plan};
pub use precision::{Precision, Real};
pub use state::{Outputs, States, StepInputs};
pub use tensor::{Data, Kind, Tensor};
pub use weights::{WeightBytes, scaled_weight, weight};
