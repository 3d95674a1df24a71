//! Reading layers: every dialect of tar (v7, ustar, PAX, GNU long names and sparse files), entry by entry, as data.
//!
//! PAX records are read by their lengths: values may hold newlines and zero bytes.

use std::io::{self, BufRead, Read};

use crate::view::Xattrs;
use crate::{Kind, RootfsError, Timestamp};

const BLOCK: usize = 512;

/// Extended headers longer than this in all are refused, those of one entry and those for the whole archive: they would
/// have to be held in memory.
const MAX_EXTENDED: u64 = 4 << 20;

/// The largest size of a file on any system.
const MAX_SIZE: u64 = i64::MAX as u64;

/// More pieces of a sparse file than this are refused.
const MAX_PIECES: usize = 1 << 20;

/// What an entry makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EntryKind {
    /// Something of its own.
    New(Kind),
    /// Another name of what [`Entry::link`] names.
    HardLink,
}

/// One entry, contents aside.
#[derive(Debug)]
pub struct Entry {
    /// Its name, as written.
    pub path: Vec<u8>,
    /// What a symlink says, or what a hard link is another name of.
    pub link: Vec<u8>,
    /// What it makes.
    pub kind: EntryKind,
    /// Its permissions.
    pub mode: u32,
    /// Its owner.
    pub uid: u32,
    /// Its group.
    pub gid: u32,
    /// When it was changed last.
    pub mtime: Timestamp,
    /// A device's major and minor number.
    pub rdev: (u32, u32),
    /// Its extended attributes, sorted by name.
    pub xattrs: Xattrs,
    /// The file's length; of a sparse file, with its holes.
    pub size: u64,
    /// Where the stored bytes of a sparse file belong: offset and length. `None` is all in one piece.
    pub pieces: Option<Vec<(u64, u64)>>,
}

/// Reads an archive. Between two entries, [`Read`] gives the stored bytes of the last one.
pub struct TarReader<R> {
    input: R,
    /// Stored bytes of this entry that are not read yet.
    left: u64,
    /// Zeros after them, up to the block's end.
    padding: u64,
    global: Extended,
    /// How many bytes of headers `global` was read from.
    global_read: u64,
}

#[derive(Clone, Default)]
struct Extended {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    size: Option<u64>,
    uid: Option<u32>,
    gid: Option<u32>,
    mtime: Option<Timestamp>,
    /// Of the same name the last counts.
    xattrs: Xattrs,
    sparse_name: Option<Vec<u8>>,
    sparse_size: Option<u64>,
    sparse_major: Option<u64>,
    pieces: Option<Vec<(u64, u64)>>,
    offset: Option<u64>,
}

fn broken(why: impl Into<String>) -> RootfsError {
    RootfsError::Archive(why.into())
}

fn failed(error: &io::Error) -> RootfsError {
    broken(match error.kind() {
        io::ErrorKind::UnexpectedEof => "it ends in the middle of an entry".to_owned(),
        _ => error.to_string(),
    })
}

impl<R: BufRead> TarReader<R> {
    /// Begins at the start of an archive that is not compressed.
    pub fn new(input: R) -> Self {
        Self { input, left: 0, padding: 0, global: Extended::default(), global_read: 0 }
    }

    /// The input, for reading what follows the archive.
    pub(crate) fn into_inner(self) -> R {
        self.input
    }

    fn skip(&mut self) -> Result<(), RootfsError> {
        let skipped = pass_over(&mut self.input, self.left + self.padding).map_err(|e| failed(&e))?;
        // The padding of the very last entry may be missing.
        if skipped < self.left {
            return Err(broken("it ends in the middle of a file"));
        }
        (self.left, self.padding) = (0, 0);
        Ok(())
    }

    /// One block; `None` at the end of the input.
    fn block(&mut self) -> Result<Option<tar::Header>, RootfsError> {
        let mut header = tar::Header::new_old();
        let bytes = header.as_mut_bytes();
        let mut filled = 0;
        while filled < BLOCK {
            match self.input.read(&mut bytes[filled..]) {
                Ok(0) if filled == 0 => return Ok(None),
                Ok(0) => return Err(broken("it ends in the middle of a header")),
                Ok(length) => filled += length,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(failed(&error)),
            }
        }
        Ok(Some(header))
    }

    /// The next entry; `None` after the last.
    ///
    /// Fails with [`RootfsError::Archive`] where the archive is damaged.
    // It can't be an iterator: the bytes of an entry are read between two of them.
    #[expect(clippy::should_implement_trait, reason = "it lends its bytes between two calls")]
    pub fn next(&mut self) -> Result<Option<Entry>, RootfsError> {
        self.skip()?;
        let mut extended = self.global.clone();
        let mut read = 0;
        loop {
            let Some(header) = self.block()? else { return Ok(None) };
            if header.as_bytes().iter().all(|byte| *byte == 0) {
                return Ok(None);
            }
            check_sum(&header)?;
            let size = header.entry_size().map_err(|e| failed(&e))?;
            match header.as_bytes()[156] {
                b'x' => pax(&self.extended_data(size, &mut read)?, &mut extended)?,
                b'g' => {
                    let mut global_read = self.global_read;
                    let data = self.extended_data(size, &mut global_read)?;
                    self.global_read = global_read;
                    pax(&data, &mut self.global)?;
                    pax(&data, &mut extended)?;
                }
                b'L' => extended.path = Some(until_zero(self.extended_data(size, &mut read)?)),
                b'K' => extended.link = Some(until_zero(self.extended_data(size, &mut read)?)),
                kind => return self.entry(&header, kind, size, extended).map(Some),
            }
        }
    }

    /// Reads an extended header after `read` bytes of others.
    fn extended_data(&mut self, size: u64, read: &mut u64) -> Result<Vec<u8>, RootfsError> {
        *read = read.saturating_add(size);
        if *read > MAX_EXTENDED {
            return Err(broken(format!(
                "extended headers have {read} bytes; at most {MAX_EXTENDED} are read"
            )));
        }
        let mut data = Vec::new();
        (&mut self.input).take(size).read_to_end(&mut data).map_err(|e| failed(&e))?;
        if (data.len() as u64) < size {
            return Err(broken("it ends in the middle of an extended header"));
        }
        self.padding = padding(size);
        self.skip()?;
        Ok(data)
    }

    fn entry(
        &mut self,
        header: &tar::Header,
        type_flag: u8,
        stored: u64,
        extended: Extended,
    ) -> Result<Entry, RootfsError> {
        let path = match extended.sparse_name.or(extended.path) {
            Some(path) => path,
            None => header.path_bytes().into_owned(),
        };
        let link = match extended.link {
            Some(link) => link,
            None => header.link_name_bytes().map(std::borrow::Cow::into_owned).unwrap_or_default(),
        };
        let kind = match type_flag {
            b'1' => EntryKind::HardLink,
            b'2' => EntryKind::New(Kind::Symlink),
            b'3' => EntryKind::New(Kind::CharDevice),
            b'4' => EntryKind::New(Kind::BlockDevice),
            b'5' => EntryKind::New(Kind::Directory),
            b'6' => EntryKind::New(Kind::Fifo),
            // v7 has no type for directories: their names end in a slash.
            0 | b'0' if path.ends_with(b"/") => EntryKind::New(Kind::Directory),
            _ => EntryKind::New(Kind::File),
        };
        let stored = extended.size.unwrap_or(stored);
        if stored > MAX_SIZE {
            return Err(broken(format!("a file has {stored} bytes, more than any can have")));
        }
        let holds_data = matches!(kind, EntryKind::New(Kind::File));
        self.left = if holds_data { stored } else { 0 };
        self.padding = padding(self.left);
        let mut pieces = extended.pieces;
        let mut size = self.left;
        if type_flag == b'S' {
            (size, pieces) = self.gnu_sparse(header)?;
        } else if extended.sparse_major == Some(1) {
            pieces = Some(self.sparse_map()?);
            size = extended.sparse_size.unwrap_or(stored);
        } else if pieces.is_some() {
            size = extended.sparse_size.unwrap_or(stored);
        }
        if let Some(pieces) = &pieces {
            check_pieces(pieces, size, self.left)?;
        }
        let number = |value: io::Result<u64>| u32::try_from(value.unwrap_or(0)).unwrap_or(0);
        Ok(Entry {
            path,
            link,
            kind,
            mode: header.mode().map_err(|e| failed(&e))? & 0o7777,
            uid: extended.uid.unwrap_or_else(|| number(header.uid())),
            gid: extended.gid.unwrap_or_else(|| number(header.gid())),
            mtime: extended.mtime.unwrap_or_else(|| header_time(header)),
            rdev: (
                header.device_major().ok().flatten().unwrap_or(0),
                header.device_minor().ok().flatten().unwrap_or(0),
            ),
            xattrs: last_of_each(extended.xattrs),
            size,
            pieces,
        })
    }

    /// The map of a GNU sparse file: four pieces in its header, more in blocks after it.
    #[expect(clippy::type_complexity, reason = "length and pieces")]
    fn gnu_sparse(&mut self, header: &tar::Header) -> Result<(u64, Option<Vec<(u64, u64)>>), RootfsError> {
        let gnu = header.as_gnu().ok_or_else(|| broken("a sparse file has no GNU header"))?;
        let size = gnu.real_size().map_err(|e| failed(&e))?;
        let mut pieces = Vec::new();
        let add = |pieces: &mut Vec<(u64, u64)>, sparse: &tar::GnuSparseHeader| {
            if !sparse.is_empty() {
                let offset = sparse.offset().map_err(|e| failed(&e))?;
                pieces.push((offset, sparse.length().map_err(|e| failed(&e))?));
            }
            if pieces.len() > MAX_PIECES { Err(broken("a sparse file has too many pieces")) } else { Ok(()) }
        };
        for sparse in &gnu.sparse {
            add(&mut pieces, sparse)?;
        }
        let mut more = gnu.is_extended();
        while more {
            let mut block = tar::GnuExtSparseHeader::new();
            self.input.read_exact(block.as_mut_bytes()).map_err(|e| failed(&e))?;
            for sparse in block.sparse() {
                add(&mut pieces, sparse)?;
            }
            more = block.is_extended();
        }
        Ok((size, Some(pieces)))
    }

    /// The map of a PAX sparse file, version 1.0: decimal numbers, one a line, at the beginning of the data.
    fn sparse_map(&mut self) -> Result<Vec<(u64, u64)>, RootfsError> {
        let before = self.left;
        let mut number = || -> Result<u64, RootfsError> {
            let mut value: u64 = 0;
            loop {
                let mut byte = [0];
                self.read_exact(&mut byte).map_err(|e| failed(&e))?;
                match byte[0] {
                    b'\n' => return Ok(value),
                    digit @ b'0'..=b'9' => {
                        value = value
                            .checked_mul(10)
                            .and_then(|value| value.checked_add(u64::from(digit - b'0')))
                            .ok_or_else(|| broken("a sparse map has a number that is too large"))?;
                    }
                    _ => return Err(broken("a sparse map is no list of numbers")),
                }
            }
        };
        let count = usize::try_from(number()?).unwrap_or(usize::MAX);
        if count > MAX_PIECES {
            return Err(broken("a sparse file has too many pieces"));
        }
        let mut pieces = Vec::new();
        for _ in 0..count {
            pieces.push((number()?, number()?));
        }
        let rest = padding(before - self.left).min(self.left);
        self.left -= pass_over(&mut self.input, rest).map_err(|e| failed(&e))?;
        Ok(pieces)
    }
}

impl<R: BufRead> Read for TarReader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = usize::try_from(self.left).unwrap_or(usize::MAX).min(buffer.len());
        if most == 0 {
            return Ok(0);
        }
        let length = self.input.read(&mut buffer[..most])?;
        if length == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.left -= length as u64;
        Ok(length)
    }
}

impl<R: BufRead> BufRead for TarReader<R> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.left == 0 {
            return Ok(&[]);
        }
        let there = self.input.fill_buf()?;
        if there.is_empty() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(&there[..there.len().min(usize::try_from(self.left).unwrap_or(usize::MAX))])
    }

    fn consume(&mut self, length: usize) {
        self.input.consume(length);
        self.left -= length as u64;
    }
}

/// What `input` gives without a copy, whatever signal comes in between. Nothing at its end.
pub(crate) fn at_hand(input: &mut impl BufRead) -> io::Result<&[u8]> {
    while let Err(error) = input.fill_buf() {
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
    // It is there: given again, not read.
    input.fill_buf()
}

/// Passes over `most` bytes, without copying them. Gives how many there were.
pub(crate) fn pass_over(input: &mut impl BufRead, most: u64) -> io::Result<u64> {
    let mut passed = 0;
    while passed < most {
        let there = at_hand(input)?.len() as u64;
        if there == 0 {
            break;
        }
        let length = there.min(most - passed);
        input.consume(usize::try_from(length).map_err(io::Error::other)?);
        passed += length;
    }
    Ok(passed)
}

fn padding(size: u64) -> u64 {
    size.next_multiple_of(BLOCK as u64) - size
}

fn until_zero(mut data: Vec<u8>) -> Vec<u8> {
    if let Some(end) = data.iter().position(|byte| *byte == 0) {
        data.truncate(end);
    }
    data
}

/// Whether `bytes` begin as an archive does that holds something: with a header whose checksum is right.
pub fn begins_as_tar(bytes: &[u8]) -> bool {
    bytes.first_chunk::<512>().is_some_and(|block| {
        block.iter().any(|byte| *byte != 0) && check_sum(tar::Header::from_byte_slice(block)).is_ok()
    })
}

/// The header's sum, with the bytes of the sum itself taken for blanks; old writers summed signed bytes.
fn check_sum(header: &tar::Header) -> Result<(), RootfsError> {
    let stored = i64::from(header.cksum().map_err(|e| failed(&e))?);
    let bytes = header.as_bytes();
    let blanks = 8 * i32::from(b' ');
    let unsigned = |bytes: &[u8]| bytes.iter().map(|byte| i32::from(*byte)).sum::<i32>();
    let signed = |bytes: &[u8]| bytes.iter().map(|byte| i32::from(byte.cast_signed())).sum::<i32>();
    let sums = |sum: fn(&[u8]) -> i32| stored == i64::from(sum(bytes) - sum(&bytes[148..156]) + blanks);
    if sums(unsigned) || sums(signed) {
        return Ok(());
    }
    Err(broken("a header's checksum is wrong: this is no tar archive, or it was changed on its way"))
}

/// Times before 1970 are written in base 256 by GNU tar.
fn header_time(header: &tar::Header) -> Timestamp {
    let field = &header.as_bytes()[136..148];
    if field[0] & 0x80 != 0 {
        let mut value: i64 = if field[0] & 0x40 != 0 { -1 } else { 0 };
        for byte in &field[4..] {
            value = value << 8 | i64::from(*byte);
        }
        return Timestamp { secs: value, nanos: 0 };
    }
    Timestamp { secs: header.mtime().ok().and_then(|secs| i64::try_from(secs).ok()).unwrap_or(0), nanos: 0 }
}

fn check_pieces(pieces: &[(u64, u64)], size: u64, stored: u64) -> Result<(), RootfsError> {
    let mut end: u64 = 0;
    let mut total: u64 = 0;
    for (offset, length) in pieces {
        let stop = offset.checked_add(*length).filter(|stop| *offset >= end && *stop <= size);
        end = stop.ok_or_else(|| broken("the pieces of a sparse file overlap or lie beyond its end"))?;
        total += length;
    }
    if total == stored {
        Ok(())
    } else {
        Err(broken("a sparse file's pieces don't add up to what is stored"))
    }
}

/// Reads PAX records: `length key=value\n`, the length counting the whole record.
fn pax(data: &[u8], into: &mut Extended) -> Result<(), RootfsError> {
    let mut rest = data;
    while !rest.is_empty() && rest[0] != 0 {
        let digits =
            rest.iter().position(|byte| *byte == b' ').ok_or_else(|| broken("a PAX record has no length"))?;
        let length: usize = std::str::from_utf8(&rest[..digits])
            .ok()
            .and_then(|text| text.parse().ok())
            .filter(|length| *length > digits + 1 && *length <= rest.len())
            .ok_or_else(|| broken("a PAX record's length is wrong"))?;
        let record = &rest[digits + 1..length - 1];
        let equals = record
            .iter()
            .position(|byte| *byte == b'=')
            .ok_or_else(|| broken("a PAX record has no value"))?;
        pax_record(&record[..equals], &record[equals + 1..], into)?;
        rest = &rest[length..];
    }
    Ok(())
}

fn pax_record(key: &[u8], value: &[u8], into: &mut Extended) -> Result<(), RootfsError> {
    let number = || -> Result<u64, RootfsError> {
        let text = std::str::from_utf8(value).unwrap_or_default();
        text.parse()
            .map_err(|_| broken(format!("the PAX record {} is no number", String::from_utf8_lossy(key))))
    };
    match key {
        b"path" => into.path = Some(value.to_vec()),
        b"linkpath" => into.link = Some(value.to_vec()),
        b"size" => into.size = Some(number()?),
        b"uid" => into.uid = u32::try_from(number()?).ok(),
        b"gid" => into.gid = u32::try_from(number()?).ok(),
        b"mtime" => into.mtime = pax_time(value),
        b"GNU.sparse.name" => into.sparse_name = Some(value.to_vec()),
        b"GNU.sparse.size" | b"GNU.sparse.realsize" => into.sparse_size = Some(number()?),
        b"GNU.sparse.major" => into.sparse_major = Some(number()?),
        b"GNU.sparse.offset" => into.offset = Some(number()?),
        b"GNU.sparse.numbytes" => {
            let offset = into.offset.take().unwrap_or(0);
            into.pieces.get_or_insert_default().push((offset, number()?));
        }
        b"GNU.sparse.map" => {
            let text = std::str::from_utf8(value).unwrap_or_default();
            let numbers: Option<Vec<u64>> = text.split(',').map(|number| number.parse().ok()).collect();
            let numbers = numbers.ok_or_else(|| broken("a sparse map is no list of numbers"))?;
            into.pieces = Some(numbers.chunks_exact(2).map(|pair| (pair[0], pair[1])).collect());
        }
        _ => {
            if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
                into.xattrs.push((name.to_vec(), value.to_vec()));
            }
        }
    }
    Ok(())
}

/// Of attributes with the same name, the last. Sorted by name.
fn last_of_each(mut xattrs: Xattrs) -> Xattrs {
    xattrs.reverse();
    xattrs.sort_by(|(one, _), (other, _)| one.cmp(other));
    xattrs.dedup_by(|(one, _), (other, _)| one == other);
    xattrs
}

/// `[-]seconds[.fraction]`.
fn pax_time(value: &[u8]) -> Option<Timestamp> {
    let text = std::str::from_utf8(value).ok()?;
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let secs: i64 = whole.parse().ok()?;
    let digits: String = fraction.chars().chain("000000000".chars()).take(9).collect();
    let nanos: u32 = digits.parse().ok()?;
    if whole.starts_with('-') && nanos > 0 {
        return Some(Timestamp { secs: secs.checked_sub(1)?, nanos: 1_000_000_000 - nanos });
    }
    Some(Timestamp { secs, nanos })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_before_1970_and_fractions_are_read() {
        let time = |text: &str| pax_time(text.as_bytes()).unwrap();
        assert_eq!(time("1.5"), Timestamp { secs: 1, nanos: 500_000_000 });
        assert_eq!(time("-1.25"), Timestamp { secs: -2, nanos: 750_000_000 });
        assert_eq!(time("-3"), Timestamp { secs: -3, nanos: 0 });
    }

    #[test]
    fn a_header_is_summed_with_or_without_signs() {
        let mut header = tar::Header::new_old();
        header.as_mut_bytes()[..5].copy_from_slice("gr\u{fc}n".as_bytes());
        header.set_cksum();
        check_sum(&header).unwrap();
        let unsigned = header.cksum().unwrap();
        // Two bytes are above 127.
        for (sum, is_right) in [(unsigned - 512, true), (unsigned - 256, false), (unsigned + 1, false)] {
            header.as_mut_bytes()[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
            assert_eq!(check_sum(&header).is_ok(), is_right, "{sum}");
            assert_eq!(begins_as_tar(header.as_bytes()), is_right, "{sum}");
        }
    }

    #[test]
    fn a_pax_value_may_hold_newlines_and_zeros() {
        let value = b"\x01\0\n=x";
        let mut record = b"SCHILY.xattr.security.capability=".to_vec();
        record.extend_from_slice(value);
        record.push(b'\n');
        let length = record.len() + 3;
        let mut data = format!("{length} ").into_bytes();
        data.extend_from_slice(&record);
        let mut extended = Extended::default();
        pax(&data, &mut extended).unwrap();
        assert_eq!(extended.xattrs, [(b"security.capability".to_vec(), value.to_vec())]);
    }

    #[test]
    fn nonsense_is_an_error_and_no_panic() {
        assert!(TarReader::new([1u8; 700].as_slice()).next().is_err());
        assert!(TarReader::new([1u8; 100].as_slice()).next().is_err());
        assert!(TarReader::new([0u8; 1024].as_slice()).next().unwrap().is_none());
        for data in [b"9 a=b\n".as_slice(), b"x", b"99999999999999999999 a=b\n", b"3 a"] {
            assert!(pax(data, &mut Extended::default()).is_err());
        }
    }
}
