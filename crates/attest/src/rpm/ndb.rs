//! RPM's own format, which SUSE uses (`Packages.db`): pages of slots, each of which says where a package's blob lies.

use super::{broken, overlapping};
use crate::files::Unread;

pub(super) const MAGIC: &[u8] = b"RpmP";
const SLOT: &[u8] = b"Slot";
const BLOB: &[u8] = b"BlbS";
const PAGE: usize = 4096;
/// Slots have this size, and blobs begin at its multiples.
const UNIT: usize = 16;

fn le(bytes: &[u8], at: usize) -> Option<usize> {
    usize::try_from(u32::from_le_bytes(bytes.get(at..at.checked_add(4)?)?.try_into().ok()?)).ok()
}

/// The blobs of all packages.
pub(super) fn headers(bytes: &[u8]) -> Result<Vec<Vec<u8>>, Unread> {
    let pages = le(bytes, 12).ok_or_else(|| broken("its header is cut"))?;
    let end = pages.saturating_mul(PAGE).min(bytes.len());
    let (mut found, mut left) = (Vec::new(), bytes.len());
    // The first two slots are the file's header.
    for at in (2 * UNIT..end).step_by(UNIT) {
        if bytes.get(at..at + 4) != Some(SLOT) {
            return Err(broken("a slot is none"));
        }
        let (number, start) = (le(bytes, at + 4).unwrap_or(0), le(bytes, at + 8).unwrap_or(0));
        if start == 0 {
            continue;
        }
        let start = start.saturating_mul(UNIT);
        if bytes.get(start..start.saturating_add(4)) != Some(BLOB) || le(bytes, start + 4) != Some(number) {
            return Err(broken("a package is not where its slot says"));
        }
        let length = le(bytes, start + 12).unwrap_or(usize::MAX);
        let blob = start.checked_add(16).and_then(|start| bytes.get(start..start.checked_add(length)?));
        let blob = blob.ok_or_else(|| broken("a package is cut"))?;
        left = left.checked_sub(blob.len()).ok_or_else(overlapping)?;
        found.push(blob.to_vec());
    }
    Ok(found)
}
