//! The behaviour of `kiln-cache` from outside.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking, its helpers too")]

mod images;
mod relay;
mod remote;
