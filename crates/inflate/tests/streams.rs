//! Streams of other compressors are read as flate2 reads them, however they arrive, and damage is found.

#![expect(clippy::unwrap_used, reason = "what compresses the data of these tests does not fail")]

use std::io::{self, BufRead, Read, Write};

use flate2::Compression;
use kiln_inflate::{GzipReader, Piece};
use proptest::prelude::*;

/// Gives its bytes in pieces of these lengths, again and again.
struct Parts<'a> {
    bytes: &'a [u8],
    sizes: Vec<usize>,
    turn: usize,
}

impl<'a> Parts<'a> {
    fn new(bytes: &'a [u8], sizes: &[usize]) -> Self {
        Self { bytes, sizes: sizes.to_vec(), turn: 0 }
    }
}

impl BufRead for Parts<'_> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        let size = self.sizes.get(self.turn % self.sizes.len().max(1)).copied().unwrap_or(usize::MAX);
        Ok(&self.bytes[..self.bytes.len().min(size)])
    }

    fn consume(&mut self, length: usize) {
        self.bytes = &self.bytes[length..];
        self.turn += 1;
    }
}

impl Read for Parts<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let there = self.fill_buf()?;
        let length = buffer.len().min(there.len());
        buffer[..length].copy_from_slice(&there[..length]);
        self.consume(length);
        Ok(length)
    }
}

/// What is read, and whether the end was reached.
fn read(bytes: &[u8], sizes: &[usize]) -> (Vec<u8>, bool) {
    let mut out = Vec::new();
    let whole = GzipReader::new(Parts::new(bytes, sizes)).read_to_end(&mut out).is_ok();
    (out, whole)
}

/// The same in pieces.
fn read_pieces(bytes: &[u8], sizes: &[usize]) -> (Vec<u8>, bool) {
    let mut reader = GzipReader::new(Parts::new(bytes, sizes));
    let (mut out, mut spare) = (Vec::new(), Piece::default());
    loop {
        let filled = reader.fill();
        let mut piece = reader.hand_over(spare);
        out.extend_from_slice(piece.unread());
        if filled.is_err() || piece.unread().is_empty() {
            return (out, filled.is_ok());
        }
        piece.consume(usize::MAX);
        spare = piece;
    }
}

fn read_by_flate2(bytes: &[u8]) -> (Vec<u8>, bool) {
    let mut out = Vec::new();
    let whole = flate2::bufread::MultiGzDecoder::new(bytes).read_to_end(&mut out).is_ok();
    (out, whole)
}

fn gzip(data: &[u8], level: u32) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), Compression::new(level));
    encoder.write_all(data).unwrap();
    encoder.finish().unwrap()
}

fn by_libdeflate(data: &[u8], level: i32) -> Vec<u8> {
    let level = libdeflater::CompressionLvl::new(level).unwrap();
    let mut compressor = libdeflater::Compressor::new(level);
    let mut out = vec![0; compressor.gzip_compress_bound(data.len())];
    let length = compressor.gzip_compress(data, &mut out).unwrap();
    out.truncate(length);
    out
}

/// Data that has everything: noise, text that repeats near and far, long runs.
fn data() -> impl Strategy<Value = Vec<u8>> {
    let part = prop_oneof![
        proptest::collection::vec(any::<u8>(), 0..3000),
        proptest::collection::vec(proptest::sample::select(b"abcdefgh \n".as_slice()), 0..5000),
        (any::<u8>(), 0_usize..70_000).prop_map(|(byte, times)| vec![byte; times]),
        (proptest::collection::vec(any::<u8>(), 1..40), 0_usize..2000)
            .prop_map(|(bytes, times)| bytes.repeat(times)),
        (0_u32..40_000)
            .prop_map(|count| (0..count).flat_map(|number| (number * number).to_le_bytes()).collect()),
    ];
    proptest::collection::vec(part, 0..8).prop_map(|parts| parts.concat())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn what_was_compressed_comes_back(
        data in data(),
        level in 0_u32..10,
        sizes in proptest::collection::vec(1_usize..5000, 1..4),
    ) {
        for bytes in [gzip(&data, level), by_libdeflate(&data, level.cast_signed() + 1)] {
            prop_assert!(read(&bytes, &[]) == (data.clone(), true));
            prop_assert!(read(&bytes, &sizes) == (data.clone(), true));
            prop_assert!(read_pieces(&bytes, &sizes) == (data.clone(), true));
        }
    }

    #[test]
    fn damage_is_found_where_flate2_finds_it(
        data in proptest::collection::vec(proptest::sample::select(b"abcd".as_slice()), 0..2000),
        level in 0_u32..10,
        places in proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>()), 1..4),
        cut in any::<proptest::sample::Index>(),
        is_cut: bool,
        sizes in proptest::collection::vec(1_usize..60, 1..4),
    ) {
        let mut bytes = gzip(&data, level);
        for (place, byte) in places {
            // Of the header only what decides.
            let at = place.index(bytes.len());
            if at == 3 || at >= 10 {
                bytes[at] ^= byte;
            }
        }
        if is_cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        let (expected, whole) = read_by_flate2(&bytes);
        for (got, got_whole) in [read(&bytes, &[]), read(&bytes, &sizes), read_pieces(&bytes, &sizes)] {
            prop_assert_eq!(got_whole, whole);
            if whole {
                prop_assert!(got == expected);
            }
        }
    }

    #[test]
    fn any_bytes_after_a_header_are_read_as_flate2_reads_them(
        bytes in proptest::collection::vec(any::<u8>(), 0..400),
    ) {
        let all = [&[0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 3], bytes.as_slice()].concat();
        let (expected, whole) = read_by_flate2(&all);
        let (got, got_whole) = read(&all, &[7]);
        prop_assert_eq!(got_whole, whole);
        prop_assert!(got.starts_with(&expected) || expected.starts_with(&got));
    }
}

#[test]
fn members_are_read_one_after_the_other() {
    let data = vec![b'x'; 300_000];
    let all = [gzip(b"first", 6), gzip(b"", 6), gzip(&data, 1), by_libdeflate(b"last", 12)].concat();
    let expected = [b"first".as_slice(), &data, b"last"].concat();
    for sizes in [vec![], vec![1], vec![3, 1000]] {
        assert_eq!(read(&all, &sizes), (expected.clone(), true));
        assert_eq!(read_pieces(&all, &sizes), (expected.clone(), true));
    }
}

#[test]
fn a_match_does_not_reach_into_the_member_before() {
    // A block with fixed codes: a match of three bytes, one back, then the end.
    let body = [0x03, 0x02, 0x00];
    let empty_sum = [0; 8];
    let match_first = [&[0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 3], body.as_slice(), &empty_sum].concat();
    let error = GzipReader::new(match_first.as_slice()).read_to_end(&mut Vec::new()).unwrap_err();
    assert_eq!(error.to_string(), "the gzip stream is damaged: a match begins before the first byte");
    let mut out = Vec::new();
    let both = [gzip(b"before", 6), match_first].concat();
    assert!(GzipReader::new(both.as_slice()).read_to_end(&mut out).is_err());
    assert_eq!(out, b"before");
}

#[test]
fn every_field_of_a_header_is_passed_over() {
    let data = b"with a long header";
    for sum_is_right in [true, false] {
        let mut header = vec![0x1f, 0x8b, 8, 0b1_1110, 1, 2, 3, 4, 0, 3];
        header.extend([5, 0, 1, 2, 3, 4, 5]);
        header.extend(b"name\0comment\0");
        let sum = crc32(&header) & 0xffff;
        header.extend_from_slice(&(sum ^ u32::from(!sum_is_right)).to_le_bytes()[..2]);
        let all = [header, gzip(data, 6)[10..].to_vec()].concat();
        let expected = if sum_is_right { data.to_vec() } else { Vec::new() };
        assert_eq!(read(&all, &[1]), (expected, sum_is_right));
    }
}

fn crc32(bytes: &[u8]) -> u32 {
    let mut crc = flate2::Crc::new();
    crc.update(bytes);
    crc.sum()
}

#[test]
fn what_is_wrong_is_said() {
    let good = gzip(&b"something that is long enough".repeat(10), 6);
    let said = |bytes: &[u8]| {
        let error = GzipReader::new(bytes).read_to_end(&mut Vec::new()).unwrap_err();
        (error.kind(), error.to_string())
    };
    let damaged = |why: &str| (io::ErrorKind::InvalidData, format!("the gzip stream is damaged: {why}"));
    for cut in [&good[..good.len() - 1], &good[..20], &good[..5], b""] {
        assert_eq!(said(cut), (io::ErrorKind::UnexpectedEof, "the gzip stream ends too early".to_owned()));
    }
    assert_eq!(said(b"not gzip at all"), damaged("this is no header of a gzip stream"));
    let mut wrong = good.clone();
    *wrong.last_mut().unwrap() ^= 1;
    assert_eq!(said(&wrong), damaged("the checksum at the end is wrong"));
    let garbage = [good, vec![0; 12]].concat();
    assert_eq!(said(&garbage), damaged("this is no header of a gzip stream"));
    let header = [0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 3];
    assert_eq!(said(&[&header, [7].as_slice()].concat()), damaged("a block is of an unknown kind"));
    let stored = [1, 5, 0, 0, 0];
    assert_eq!(
        said(&[header.as_slice(), &stored].concat()),
        damaged("the length of a stored block is wrong")
    );
}

#[test]
fn without_sums_the_length_is_still_compared() {
    let good = gzip(b"one", 6);
    let read = |sum: u8, length: u8| {
        let mut bytes = [good.clone(), good.clone()].concat();
        bytes[good.len() - 8] ^= sum;
        bytes[good.len() - 4] ^= length;
        let mut out = String::new();
        GzipReader::new(bytes.as_slice()).without_sums().read_to_string(&mut out).map(|_| out)
    };
    assert_eq!(read(0, 0).unwrap(), "oneone");
    assert_eq!(read(1, 0).unwrap(), "oneone");
    assert!(read(0, 1).unwrap_err().to_string().contains("the checksum at the end is wrong"));
}

/// A reader that fails in between.
struct Fails<'a>(&'a [u8]);

impl BufRead for Fails<'_> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.0.is_empty() { Err(io::Error::other("wrong digest")) } else { Ok(self.0) }
    }

    fn consume(&mut self, length: usize) {
        self.0 = &self.0[length..];
    }
}

impl Read for Fails<'_> {
    fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
        Err(io::Error::other("nobody reads here"))
    }
}

#[test]
fn what_comes_before_a_failure_is_read_before_it() {
    let data: Vec<u8> = (0..100_000_u32).flat_map(|number| (number ^ (number << 7)).to_le_bytes()).collect();
    let mut bytes = gzip(&data, 6);
    bytes.drain(..10);
    bytes.truncate(bytes.len() / 2);
    let header = [0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 3];
    let input = io::Read::chain(header.as_slice(), Fails(&bytes));
    let mut out = Vec::new();
    let error = GzipReader::new(input).read_to_end(&mut out).unwrap_err();
    assert_eq!(error.to_string(), "wrong digest");
    assert!(out.len() > 100_000 && data.starts_with(&out), "{}", out.len());
}
