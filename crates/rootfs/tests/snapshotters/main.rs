//! One suite that every snapshotter runs: whatever a step does, the layers stacked equal the tree, and the same change
//! gives the same bytes on every rung. Needs root, as a builder in a pod has it; overlayfs is mounted for real.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking, its helpers too")]

mod bench;
mod cases;
mod model;
mod racy;
mod random;
mod stages;
