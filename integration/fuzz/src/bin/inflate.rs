//! Bytes as a gzip stream, whole and behind a header that is right, read in parts. The first byte says how.

#![no_main]

use std::io::{self, BufRead, Read};

use flate2::bufread::MultiGzDecoder;
use kiln_inflate::{GzipReader, Piece};

/// What is read at most, in bytes.
const MOST: usize = 4 << 20;

/// A header with no fields.
const HEADER: [u8; 10] = [0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 3];

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let Some((how, stream)) = bytes.split_first() else { return };
    if how & 1 == 0 {
        check(stream, *how);
    } else {
        check(&[&HEADER, stream].concat(), *how);
    }
});

fn check(stream: &[u8], how: u8) {
    let expected = read(MultiGzDecoder::new(stream));
    // From one byte at a time to all at once.
    let sizes = [1 + usize::from(how >> 1 & 7), 1 << (how >> 3 & 15), usize::MAX];
    let parts = || Parts { bytes: stream, sizes, turn: usize::from(how) };
    for got in [read(GzipReader::new(stream)), read(GzipReader::new(parts())), read_pieces(parts())] {
        assert_eq!(got.end, expected.end, "{} bytes, {} expected", got.data.len(), expected.data.len());
        if expected.end == End::Damage {
            assert!(got.data.starts_with(&expected.data) || expected.data.starts_with(&got.data));
        } else {
            assert!(got.data == expected.data, "{} bytes, {} expected", got.data.len(), expected.data.len());
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
enum End {
    Whole,
    Damage,
    TooLong,
}

struct Got {
    data: Vec<u8>,
    end: End,
}

/// What there is, or the first [`MOST`] bytes of it.
fn read(mut input: impl Read) -> Got {
    let mut data = Vec::new();
    let result = input.by_ref().take(MOST as u64).read_to_end(&mut data);
    let end = match result {
        Err(_) => End::Damage,
        Ok(MOST) => End::TooLong,
        Ok(_) => End::Whole,
    };
    Got { data, end }
}

/// The same in pieces.
fn read_pieces(input: impl BufRead) -> Got {
    let mut reader = GzipReader::new(input);
    let (mut data, mut spare) = (Vec::new(), Piece::default());
    loop {
        let filled = reader.fill();
        let mut piece = reader.hand_over(spare);
        data.extend_from_slice(piece.unread());
        if data.len() >= MOST {
            data.truncate(MOST);
            return Got { data, end: End::TooLong };
        }
        if filled.is_err() {
            return Got { data, end: End::Damage };
        }
        if piece.unread().is_empty() {
            return Got { data, end: End::Whole };
        }
        piece.consume(usize::MAX);
        spare = piece;
    }
}

/// Gives its bytes in parts of these sizes, in turn.
struct Parts<'a> {
    bytes: &'a [u8],
    sizes: [usize; 3],
    turn: usize,
}

impl BufRead for Parts<'_> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        let size = self.sizes[self.turn % self.sizes.len()];
        Ok(&self.bytes[..self.bytes.len().min(size)])
    }

    fn consume(&mut self, length: usize) {
        self.bytes = &self.bytes[length..];
        self.turn += 1;
    }
}

impl Read for Parts<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.fill_buf()?.read(buffer)?;
        self.consume(length);
        Ok(length)
    }
}
