//! What is decompressed at a time.

use std::io::{self, Read};
use std::ops::Range;

use crate::WINDOW;
use crate::deflate::ROOM;

/// The memory of a piece. Its length is part of its type: the innermost loop compares with a constant.
pub(crate) type Buffer = [u8; BUFFER];

/// How long it is, in bytes.
pub(crate) const BUFFER: usize = WINDOW + Piece::SIZE;

/// Decompressed bytes. In front of them, its memory holds those that may be repeated in them.
#[derive(Debug)]
pub struct Piece {
    /// None until it is needed.
    buffer: Option<Box<Buffer>>,
    /// The bytes that are not read yet: from here to there.
    read: usize,
    end: usize,
}

impl Default for Piece {
    fn default() -> Self {
        Self { buffer: None, read: WINDOW, end: WINDOW }
    }
}

impl Piece {
    /// How much it holds at most, in bytes.
    pub const SIZE: usize = 256 << 10;

    /// Fills it with what `input` gives, in place of what it holds.
    ///
    /// What came before a failure is in it.
    pub fn read_from(&mut self, input: &mut impl Read) -> io::Result<()> {
        (self.read, self.end) = (WINDOW, WINDOW);
        while !self.is_full() {
            let end = self.end;
            match input.read(&mut self.buffer()[end..]) {
                Ok(0) => break,
                Ok(length) => self.end += length,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// The bytes that are not read yet.
    pub fn unread(&self) -> &[u8] {
        self.bytes(self.read..self.end)
    }

    /// Says that the first `length` of them are read.
    pub fn consume(&mut self, length: usize) {
        self.read = self.end.min(self.read.saturating_add(length));
    }

    /// Whether the next symbol might not fit.
    pub(crate) fn is_full(&self) -> bool {
        self.end + ROOM > BUFFER
    }

    /// Where the next byte goes.
    pub(crate) fn end(&self) -> usize {
        self.end
    }

    /// All of the memory.
    pub(crate) fn buffer(&mut self) -> &mut Buffer {
        self.buffer.get_or_insert_with(|| {
            // A vector comes zeroed from the allocator. A box would be made on the stack, and copied.
            vec![0; BUFFER].into_boxed_slice().try_into().expect("it was made that long")
        })
    }

    /// Some of the memory.
    fn bytes(&self, range: Range<usize>) -> &[u8] {
        self.buffer.as_ref().and_then(|buffer| buffer.get(range)).unwrap_or_default()
    }

    /// Says that it ends at `end` now. Gives what is new.
    pub(crate) fn grow(&mut self, end: usize) -> &[u8] {
        let before = std::mem::replace(&mut self.end, end);
        self.bytes(before..end)
    }

    /// The last bytes, as far as they may be repeated: not those before `floor`.
    pub(crate) fn repeatable(&self, floor: usize) -> &[u8] {
        self.bytes(floor.max(self.end - WINDOW)..self.end)
    }

    /// Begins anew, behind `before`. Gives where that stands.
    pub(crate) fn begin(&mut self, before: &[u8]) -> usize {
        let floor = WINDOW - before.len();
        self.buffer()[floor..WINDOW].copy_from_slice(before);
        (self.read, self.end) = (WINDOW, WINDOW);
        floor
    }

    /// Begins anew, behind its own last bytes, as far as they may be repeated. Gives where those stand.
    pub(crate) fn begin_again(&mut self, floor: usize) -> usize {
        let before = floor.max(self.end - WINDOW)..self.end;
        let floor = WINDOW - before.len();
        self.buffer().copy_within(before, floor);
        (self.read, self.end) = (WINDOW, WINDOW);
        floor
    }
}
