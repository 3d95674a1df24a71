//! The table `Packages` of an SQLite database (file format 3): enough of the format to walk one table's tree. A database
//! whose last changes are in a log beside it (`-wal`) is read without them: package managers fold the log in when they
//! end.

use super::{broken, overlapping};
use crate::files::Unread;

pub(super) const MAGIC: &[u8] = b"SQLite format 3\0";

/// Trees deeper than this are none.
const DEPTH: usize = 32;

struct Pages<'a> {
    bytes: &'a [u8],
    size: usize,
    /// The page's size less what is reserved at its end.
    usable: usize,
    /// How many pages may still be looked at: a sound tree has each page once.
    left: std::cell::Cell<usize>,
    /// How many bytes the records may still have that are looked at.
    left_bytes: std::cell::Cell<usize>,
}

/// A value of a record.
enum Value<'a> {
    Number(i64),
    Text(&'a [u8]),
    Blob(&'a [u8]),
    Other,
}

/// The blobs of the table's records.
pub(super) fn headers(bytes: &[u8]) -> Result<Vec<Vec<u8>>, Unread> {
    let size = match be(bytes, 16, 2) {
        Some(1) => 65536,
        Some(size) if size >= 512 => size,
        _ => return Err(broken("its pages have no size")),
    };
    let reserved = usize::from(bytes.get(20).copied().unwrap_or(0));
    let usable = size.checked_sub(reserved).filter(|usable| *usable >= 480);
    let usable = usable.ok_or_else(|| broken("its pages are too small"))?;
    let left = std::cell::Cell::new(2 * bytes.len() / size);
    let pages = Pages { bytes, size, usable, left, left_bytes: std::cell::Cell::new(bytes.len()) };
    let mut root = None;
    pages.walk(1, 0, &mut |record| {
        if let [_, Value::Text(b"Packages"), _, Value::Number(page), ..] = values(record).as_slice() {
            root = usize::try_from(*page).ok();
        }
    })?;
    let root = root.ok_or_else(|| broken("it has no table of packages"))?;
    let mut found = Vec::new();
    pages.walk(root, 0, &mut |record| {
        if let Some(Value::Blob(blob)) = values(record).into_iter().nth(1) {
            found.push(blob.to_vec());
        }
    })?;
    Ok(found)
}

fn be(bytes: &[u8], at: usize, length: usize) -> Option<usize> {
    Some(bytes.get(at..at + length)?.iter().fold(0, |value, byte| value << 8 | usize::from(*byte)))
}

/// Up to eight bytes of seven bits, and a ninth of eight.
fn varint(bytes: &[u8], at: &mut usize) -> Option<u64> {
    let mut value = 0u64;
    for place in 0..9 {
        let byte = *bytes.get(*at)?;
        *at += 1;
        if place == 8 {
            return Some(value << 8 | u64::from(byte));
        }
        value = value << 7 | u64::from(byte & 0x7f);
        if byte & 0x80 == 0 {
            break;
        }
    }
    Some(value)
}

fn values(record: &[u8]) -> Vec<Value<'_>> {
    let mut at = 0;
    let Some(end) = varint(record, &mut at).and_then(|end| usize::try_from(end).ok()) else {
        return Vec::new();
    };
    let (mut data, mut found) = (end, Vec::new());
    while at < end {
        let Some(kind) = varint(record, &mut at) else { break };
        let length = match kind {
            0 | 8 | 9 => 0,
            1..=4 => kind,
            5 => 6,
            6 | 7 => 8,
            _ => kind.saturating_sub(12) / 2,
        };
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        let Some(bytes) = data.checked_add(length).and_then(|end| record.get(data..end)) else { break };
        data += length;
        found.push(match kind {
            1..=6 => Value::Number(bytes.iter().fold(0, |value, byte| value << 8 | i64::from(*byte))),
            8 => Value::Number(0),
            9 => Value::Number(1),
            _ if kind >= 12 && kind % 2 == 0 => Value::Blob(bytes),
            _ if kind >= 13 => Value::Text(bytes),
            _ => Value::Other,
        });
    }
    found
}

impl Pages<'_> {
    fn page(&self, number: usize) -> Result<&[u8], Unread> {
        let start = number.checked_sub(1).and_then(|before| before.checked_mul(self.size));
        let page = start.and_then(|start| self.bytes.get(start..start.checked_add(self.size)?));
        page.ok_or_else(|| broken("it refers to a page that it has not"))
    }

    /// Gives every record of the table tree at page `number`.
    fn walk(&self, number: usize, depth: usize, each: &mut dyn FnMut(&[u8])) -> Result<(), Unread> {
        let page = self.page(number)?;
        // The first page begins with the file's own header.
        let header = if number == 1 { 100 } else { 0 };
        let cut = || broken("a page is cut");
        let cells = be(page, header + 3, 2).ok_or_else(cut)?;
        let (kind, first) = match page[header] {
            5 => (5, header + 12),
            13 => (13, header + 8),
            _ => return Err(broken("a page of a table is of another kind")),
        };
        let left = self.left.get().checked_sub(1);
        self.left.set(left.unwrap_or(0));
        if depth > DEPTH || left.is_none() {
            return Err(broken("a tree leads on and on"));
        }
        for cell in 0..cells {
            let mut at = be(page, first + 2 * cell, 2).ok_or_else(cut)?;
            if kind == 5 {
                self.walk(be(page, at, 4).ok_or_else(cut)?, depth + 1, each)?;
                continue;
            }
            let length =
                varint(page, &mut at).and_then(|length| usize::try_from(length).ok()).ok_or_else(cut)?;
            varint(page, &mut at).ok_or_else(cut)?;
            each(&self.payload(page, at, length)?);
        }
        if kind == 5 {
            self.walk(be(page, header + 8, 4).ok_or_else(cut)?, depth + 1, each)?;
        }
        Ok(())
    }

    /// A record, whose end may lie on other pages ("Cell Payload Overflow Pages").
    fn payload(&self, page: &[u8], at: usize, length: usize) -> Result<Vec<u8>, Unread> {
        let cut = || broken("a record is cut");
        if length > self.bytes.len() {
            return Err(cut());
        }
        self.left_bytes.set(self.left_bytes.get().checked_sub(length).ok_or_else(overlapping)?);
        let most = self.usable - 35;
        let local = if length <= most {
            length
        } else {
            let least = (self.usable - 12) * 32 / 255 - 23;
            let wanted = least + (length - least) % (self.usable - 4);
            if wanted <= most { wanted } else { least }
        };
        let mut record = page.get(at..at + local).ok_or_else(cut)?.to_vec();
        let mut next = if local < length { be(page, at + local, 4).ok_or_else(cut)? } else { 0 };
        while record.len() < length {
            let page = self.page(next)?;
            next = be(page, 0, 4).ok_or_else(cut)?;
            let piece = (length - record.len()).min(self.usable - 4);
            record.extend(page.get(4..4 + piece).ok_or_else(cut)?);
        }
        Ok(record)
    }
}
