//! Gzip members (RFC 1952), one after the other.

use std::io::{self, BufRead, Read};

use crate::deflate::{Inflater, Run, Stop};
use crate::header;
use crate::piece::Piece;
use crate::{Damage, WINDOW, cut};

/// Decompresses a gzip stream of any number of members, and checks the sum and the length at the end of each.
///
/// Reading fails with [`InvalidData`](io::ErrorKind::InvalidData) where the stream is damaged, with
/// [`UnexpectedEof`](io::ErrorKind::UnexpectedEof) where it is cut, and as the input does. What was decompressed before is
/// read before. Anything but another member after the last is damage, as for Go's reader.
pub struct GzipReader<R> {
    input: R,
    inflater: Box<Inflater>,
    part: Part,
    piece: Piece,
    /// Where in the piece the bytes begin that this member may repeat.
    floor: usize,
    /// Of the member so far; `None` if it isn't wanted.
    sum: Option<crc32fast::Hasher>,
    /// How long the member is, modulo 2^32.
    length: u32,
}

/// What comes next.
enum Part {
    /// The first header.
    First,
    /// Another header, or the end.
    Next,
    Body,
    /// The checksum and the length, of which these bytes are known.
    Trailer(Vec<u8>),
    Over,
    Damaged(Damage),
}

impl<R: BufRead> GzipReader<R> {
    /// Reads what `input` holds, from the header on.
    pub fn new(input: R) -> Self {
        Self {
            input,
            inflater: Box::new(Inflater::new()),
            part: Part::First,
            piece: Piece::default(),
            floor: WINDOW,
            sum: Some(crc32fast::Hasher::new()),
            length: 0,
        }
    }

    /// Leaves the sums unchecked: for who compares a digest of the stream. The lengths are still checked.
    #[must_use]
    pub fn without_sums(mut self) -> Self {
        self.sum = None;
        self
    }

    /// The input. When the stream was read to its end, so was the input.
    pub fn into_inner(self) -> R {
        self.input
    }

    /// Decompresses until the piece that is being made is full, or the stream has ended.
    ///
    /// Fails as reading does, whatever the piece holds.
    pub fn fill(&mut self) -> io::Result<()> {
        self.make_room();
        while !self.piece.is_full() && self.step()? {}
        Ok(())
    }

    /// Takes the piece that is being made away, and begins another in the memory of `spare`.
    pub fn hand_over(&mut self, mut spare: Piece) -> Piece {
        self.floor = spare.begin(self.piece.repeatable(self.floor));
        std::mem::replace(&mut self.piece, spare)
    }

    /// Begins the piece anew if it is full and read.
    fn make_room(&mut self) {
        if self.piece.is_full() && self.piece.unread().is_empty() {
            self.floor = self.piece.begin_again(self.floor);
        }
    }

    /// Goes on a little. Whether there may be more.
    fn step(&mut self) -> io::Result<bool> {
        match &mut self.part {
            Part::Next if self.input.fill_buf()?.is_empty() => self.part = Part::Over,
            Part::First | Part::Next => {
                header::pass(&mut self.input)?;
                self.inflater.restart();
                self.floor = self.piece.end();
                self.length = 0;
                self.part = Part::Body;
            }
            Part::Body => self.body()?,
            Part::Trailer(known) => {
                let input = self.input.fill_buf()?;
                if input.is_empty() {
                    return Err(cut());
                }
                let now = input.len().min(8 - known.len());
                known.extend_from_slice(&input[..now]);
                self.input.consume(now);
                if known.len() == 8 {
                    let sum = self.sum.as_mut().map(|sum| std::mem::take(sum).finalize());
                    let right = sum.is_none_or(|sum| known[..4] == sum.to_le_bytes())
                        && known[4..] == self.length.to_le_bytes();
                    self.part = if right { Part::Next } else { Part::Damaged(Damage::Checksum) };
                }
            }
            Part::Over => return Ok(false),
            Part::Damaged(damage) => return Err((*damage).into()),
        }
        Ok(true)
    }

    /// Inflates what the input has at hand.
    fn body(&mut self) -> io::Result<()> {
        let input = self.input.fill_buf()?;
        let (there, before) = (input.len(), self.piece.end());
        let mut run = Run { input, out: self.piece.buffer(), at: before, floor: self.floor };
        let stop = self.inflater.run(&mut run);
        let (used, end) = (there - run.input.len(), run.at);
        self.input.consume(used);
        let new = self.piece.grow(end);
        if let Some(sum) = &mut self.sum {
            sum.update(new);
        }
        self.length = self.length.wrapping_add(new.len().try_into().map_err(io::Error::other)?);
        match stop {
            Ok(Stop::Input) if there == 0 && end == before => return Err(cut()),
            Ok(Stop::Input | Stop::Full) => {}
            Ok(Stop::Over) => self.part = Part::Trailer(self.inflater.beyond().collect()),
            Err(damage) => self.part = Part::Damaged(damage),
        }
        Ok(())
    }
}

impl<R: BufRead> BufRead for GzipReader<R> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        self.make_room();
        while self.piece.unread().is_empty() && self.step()? {}
        Ok(self.piece.unread())
    }

    fn consume(&mut self, length: usize) {
        self.piece.consume(length);
    }
}

impl<R: BufRead> Read for GzipReader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut there = self.fill_buf()?;
        let length = there.read(buffer)?;
        self.consume(length);
        Ok(length)
    }
}
