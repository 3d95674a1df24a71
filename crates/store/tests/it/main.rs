//! The behaviour of `kiln-store` from outside.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking, its helpers too")]

mod archives;
mod blobs;
mod images;
mod kill;
mod layouts;
mod pruning;
mod sharing;

/// Between fork and exec a child holds copies of this process's locks. Tests that look at locks hold this for reading,
/// the one that starts processes for writing.
static STARTING: std::sync::RwLock<()> = std::sync::RwLock::new(());

/// While this is held, no process is started.
fn undisturbed() -> std::sync::RwLockReadGuard<'static, ()> {
    STARTING.read().unwrap_or_else(std::sync::PoisonError::into_inner)
}
