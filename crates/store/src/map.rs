//! Memory maps: the one place of this crate with `unsafe` in it.
//!
//! A blob is mapped window by window, so that a reader's memory stays bounded whatever the blob's size. Where mapping
//! doesn't work (some network file systems), the reader falls back to reading.

use std::fs::File;

use memmap2::{Advice, Mmap, MmapOptions};

/// How much of a blob is mapped at a time, in bytes.
pub(crate) const WINDOW: usize = 4 << 20;

/// Maps `len` bytes of `file` from `offset` on, or gives `None` if that can't be done: read the file then.
///
/// Contract: `file` is a named blob. Nobody writes to those again (they are written under another name, renamed, and
/// only ever replaced or unlinked), which is what makes the bytes behind the slice hold still.
#[expect(unsafe_code, reason = "a file's bytes as a slice can't be had otherwise")]
pub(crate) fn window(file: &File, offset: u64, len: usize) -> Option<Mmap> {
    // A page beyond the end of the file would raise SIGBUS.
    let end = offset.checked_add(len as u64)?;
    if len == 0 || file.metadata().ok()?.len() < end {
        return None;
    }
    // SAFETY: the mapping is only sound while nobody changes or truncates the file. Named blobs are never written to
    // again: `writer` commits them by rename, and `prune` unlinks them, which leaves a mapping intact. Whoever breaks
    // the volume by other means changes bytes that are verified after they were copied out, by the digest.
    let map = unsafe { MmapOptions::new().offset(offset).len(len).map(file) }.ok()?;
    // A hint; without it reading is only slower.
    let _ = map.advise(Advice::Sequential);
    Some(map)
}
