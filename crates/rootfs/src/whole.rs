//! What a file of an archive holds, its holes included.

use std::io::{self, Read};

use crate::Entry;

/// A file's bytes as they are once it is unpacked: where a sparse file has holes, zeros.
pub struct Whole<'a> {
    stored: &'a mut dyn Read,
    /// The piece that is being read or comes next: its offset and length.
    piece: Option<(u64, u64)>,
    later: &'a [(u64, u64)],
    size: u64,
    at: u64,
}

impl<'a> Whole<'a> {
    /// Of `entry`, whose bytes are `stored`. The length is the entry's size, whatever is stored: a hole takes no room in
    /// an archive, and can be as long as its header says.
    pub fn new(entry: &'a Entry, stored: &'a mut dyn Read) -> Self {
        let (piece, later) = match entry.pieces.as_deref() {
            None => (Some((0, entry.size)), [].as_slice()),
            Some([first, later @ ..]) => (Some(*first), later),
            Some([]) => (None, [].as_slice()),
        };
        Self { stored, piece, later, size: entry.size, at: 0 }
    }
}

impl Read for Whole<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.piece.is_some_and(|(start, length)| self.at >= start + length) {
            self.piece = self.later.split_off_first().copied();
        }
        let fits = |count: u64| usize::try_from(count).unwrap_or(usize::MAX).min(buffer.len());
        let count = match self.piece {
            Some((start, length)) if self.at >= start => {
                let count = fits(start + length - self.at);
                self.stored.read(&mut buffer[..count])?
            }
            next => {
                let end = next.map_or(self.size, |(start, _)| start);
                let count = fits(end.saturating_sub(self.at));
                buffer[..count].fill(0);
                count
            }
        };
        self.at += count as u64;
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{EntryKind, Kind, Timestamp};

    fn read(pieces: Option<Vec<(u64, u64)>>, size: u64, mut stored: &[u8]) -> Vec<u8> {
        let entry = Entry {
            path: b"f".to_vec(),
            link: Vec::new(),
            kind: EntryKind::New(Kind::File),
            mode: 0o644,
            uid: 0,
            gid: 0,
            mtime: Timestamp { secs: 0, nanos: 0 },
            rdev: (0, 0),
            xattrs: Vec::new(),
            size,
            pieces,
        };
        let mut bytes = Vec::new();
        Whole::new(&entry, &mut stored).read_to_end(&mut bytes).unwrap();
        bytes
    }

    #[test]
    fn the_holes_of_a_sparse_file_are_zeros() {
        assert_eq!(read(Some(vec![(2, 3), (7, 1)]), 10, b"abcd"), b"\0\0abc\0\0d\0\0");
        assert_eq!(read(Some(vec![(0, 2), (2, 0), (2, 1)]), 3, b"abc"), b"abc");
        assert_eq!(read(Some(vec![]), 3, b""), b"\0\0\0");
        assert_eq!(read(None, 4, b"abcd"), b"abcd");
    }
}
