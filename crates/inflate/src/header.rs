//! The header of a gzip member (RFC 1952, section 2.3).

use std::io::{self, BufRead};

use crate::{Damage, cut};

const HAS_SUM: u8 = 1 << 1;
const HAS_EXTRA: u8 = 1 << 2;
const HAS_NAME: u8 = 1 << 3;
const HAS_COMMENT: u8 = 1 << 4;
/// Bits that must be zero.
const RESERVED: u8 = 0b1110_0000;

/// Reads over a header.
///
/// Fails with [`Damage::Header`] if it is none, and if it is cut.
pub(crate) fn pass(input: &mut impl BufRead) -> io::Result<()> {
    let mut header = Summed { input, sum: crc32fast::Hasher::new() };
    let [0x1f, 0x8b, 8, flags, ..] = header.bytes::<10>()? else { return Err(Damage::Header.into()) };
    if flags & RESERVED != 0 {
        return Err(Damage::Header.into());
    }
    if flags & HAS_EXTRA != 0 {
        for _ in 0..u16::from_le_bytes(header.bytes()?) {
            header.bytes::<1>()?;
        }
    }
    for text in [HAS_NAME, HAS_COMMENT] {
        while flags & text != 0 && header.bytes()? != [0] {}
    }
    if flags & HAS_SUM != 0 {
        let [low, high, ..] = header.sum.clone().finalize().to_le_bytes();
        if header.bytes()? != [low, high] {
            return Err(Damage::Header.into());
        }
    }
    Ok(())
}

/// Sums what is read.
struct Summed<'i, R> {
    input: &'i mut R,
    sum: crc32fast::Hasher,
}

impl<R: BufRead> Summed<'_, R> {
    fn bytes<const N: usize>(&mut self) -> io::Result<[u8; N]> {
        let mut bytes = [0; N];
        self.input.read_exact(&mut bytes).map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => cut(),
            _ => error,
        })?;
        self.sum.update(&bytes);
        Ok(bytes)
    }
}
