//! One build: the planner's questions answered, the plan walked, the image assembled, the outputs written.
//!
//! Start with `BuildRequest`, `build` and `Event`. No choice is made here that the plan could have made, and nothing is
//! printed.

mod copy;
mod image;
mod scratch;
mod users;

pub use copy::{CopyError, Downloaded};
pub use image::{Image, ImageFormat, Layer, assemble};
pub use users::{Identity, identity};
