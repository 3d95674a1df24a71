//! A hash table of Berkeley DB (`Packages` of RPM before 4.16): its pages are walked, no key is looked up. Both orders of
//! bytes are read.

use super::{broken, overlapping};
use crate::files::Unread;

const MAGIC: u32 = 0x0006_1561;
/// A page's own header.
const HEADER: usize = 26;
/// Kinds of pages: hash tables, old and new, and what overflows.
const HASH: [u8; 2] = [2, 13];
const OVERFLOW: u8 = 7;
/// Kinds of items: as they are, and on pages of their own.
const INLINE: u8 = 1;
const OFF_PAGE: u8 = 3;

/// Whether this is such a database.
pub(super) fn is_one(bytes: &[u8]) -> bool {
    Reader::open(bytes).is_some()
}

struct Reader<'a> {
    bytes: &'a [u8],
    big_endian: bool,
    size: usize,
}

impl<'a> Reader<'a> {
    fn open(bytes: &'a [u8]) -> Option<Self> {
        let magic: [u8; 4] = bytes.get(12..16)?.try_into().ok()?;
        let big_endian = match (u32::from_le_bytes(magic), u32::from_be_bytes(magic)) {
            (MAGIC, _) => false,
            (_, MAGIC) => true,
            _ => return None,
        };
        let mut reader = Self { bytes, big_endian, size: 0 };
        reader.size = reader.word(bytes, 20).filter(|size| (512..=65536).contains(size))?;
        Some(reader)
    }

    fn word(&self, bytes: &[u8], at: usize) -> Option<usize> {
        let four: [u8; 4] = bytes.get(at..at.checked_add(4)?)?.try_into().ok()?;
        let value = if self.big_endian { u32::from_be_bytes(four) } else { u32::from_le_bytes(four) };
        usize::try_from(value).ok()
    }

    fn half(&self, bytes: &[u8], at: usize) -> Option<usize> {
        let two: [u8; 2] = bytes.get(at..at.checked_add(2)?)?.try_into().ok()?;
        Some(usize::from(if self.big_endian { u16::from_be_bytes(two) } else { u16::from_le_bytes(two) }))
    }

    fn page(&self, number: usize) -> Option<&'a [u8]> {
        let start = number.checked_mul(self.size)?;
        self.bytes.get(start..start.checked_add(self.size)?)
    }

    /// The values on a page of a hash table: every second item. `found` takes them as long as they come to no more than the
    /// database.
    fn values(&self, page: &[u8], found: &mut Found) -> Option<()> {
        let count = self.half(page, 20)?;
        for item in (1..count).step_by(2) {
            let at = self.half(page, HEADER + 2 * item)?;
            match *page.get(at)? {
                OFF_PAGE => {
                    let (first, length) = (self.word(page, at + 4)?, self.word(page, at + 8)?);
                    if found.has_room(length) {
                        found.values.push(self.overflow(first, length)?);
                    }
                }
                INLINE => {
                    // Items lie one before the other, from the page's end.
                    let end = self.half(page, HEADER + 2 * (item - 1))?;
                    let value = page.get(at + 1..end)?;
                    // A counter stands among the packages.
                    if value.len() > 8 && found.has_room(value.len()) {
                        found.values.push(value.to_vec());
                    }
                }
                _ => {}
            }
        }
        Some(())
    }

    fn overflow(&self, first: usize, length: usize) -> Option<Vec<u8>> {
        if length > self.bytes.len() {
            return None;
        }
        let mut value = Vec::new();
        let mut next = first;
        while value.len() < length {
            let page = self.page(next).filter(|page| page[25] == OVERFLOW)?;
            let here = self.half(page, 22).filter(|here| *here > 0)?;
            value.extend(page.get(HEADER..HEADER + here)?);
            next = self.word(page, 16)?;
        }
        (value.len() == length).then_some(value)
    }
}

/// The blobs of all packages.
pub(super) fn headers(bytes: &[u8]) -> Result<Vec<Vec<u8>>, Unread> {
    let reader = Reader::open(bytes).ok_or_else(|| broken("its first page is cut"))?;
    let last = reader.word(bytes, 32).unwrap_or(0);
    let mut found = Found { values: Vec::new(), left: Some(bytes.len()) };
    for number in 1..=last {
        let Some(page) = reader.page(number) else { return Err(broken("it lacks pages at its end")) };
        if HASH.contains(&page[25]) {
            reader.values(page, &mut found).ok_or_else(|| broken("a page is cut"))?;
            found.left.ok_or_else(overlapping)?;
        }
    }
    Ok(found.values)
}

/// The values that were found.
struct Found {
    values: Vec<Vec<u8>>,
    /// How many bytes the next ones may have; `None` once they had more.
    left: Option<usize>,
}

impl Found {
    /// Whether so many bytes more may be taken. Counts them.
    fn has_room(&mut self, length: usize) -> bool {
        self.left = self.left.and_then(|left| left.checked_sub(length));
        self.left.is_some()
    }
}
