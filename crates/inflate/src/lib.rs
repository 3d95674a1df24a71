//! Gzip streams (RFC 1952, RFC 1951), decompressed at the speed of the machine and in constant memory.
//!
//! Inflating is what a cold build does most, so that this is written for it: large pieces, no copy between the decoder and
//! who reads, and a loop that looks ahead. It holds no unsafe code. Not for: writing gzip, and archives that are no layers
//! (flate2 reads those).
//!
//! ```
//! use std::io::Read;
//!
//! let gzip = [31, 139, 8, 0, 0, 0, 0, 0, 0, 255, 203, 72, 205, 201, 201, 7, 0, 134, 166, 16, 54, 5, 0, 0, 0];
//! let mut text = String::new();
//! kiln_inflate::GzipReader::new(gzip.as_slice()).read_to_string(&mut text)?;
//! assert_eq!(text, "hello");
//! # Ok::<(), std::io::Error>(())
//! ```

mod deflate;
mod gzip;
mod header;
mod huffman;
mod piece;
mod quick;

pub use gzip::GzipReader;
pub use piece::Piece;

/// How far back a match reaches at most, in bytes (RFC 1951, section 2).
pub(crate) const WINDOW: usize = 32 << 10;

/// How a stream is damaged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Damage {
    /// It does not begin as gzip does (RFC 1952, section 2.3.1), or its header's checksum is wrong.
    #[error("this is no header of a gzip stream")]
    Header,
    /// A block is of the kind that is kept for later.
    #[error("a block is of an unknown kind")]
    Block,
    /// The length of a stored block and its complement don't agree.
    #[error("the length of a stored block is wrong")]
    StoredLength,
    /// The lengths of a block's codes are none that a code can have.
    #[error("the code lengths of a block are wrong")]
    Codes,
    /// Bits that are no code.
    #[error("a code stands for nothing")]
    Code,
    /// A match that begins before the stream's first byte.
    #[error("a match begins before the first byte")]
    Distance,
    /// The checksum or the length at the end of the stream is wrong.
    #[error("the checksum at the end is wrong")]
    Checksum,
}

impl From<Damage> for std::io::Error {
    fn from(damage: Damage) -> Self {
        Self::new(std::io::ErrorKind::InvalidData, format!("the gzip stream is damaged: {damage}"))
    }
}

/// The error of a stream that is cut.
pub(crate) fn cut() -> std::io::Error {
    std::io::Error::new(std::io::ErrorKind::UnexpectedEof, "the gzip stream ends too early")
}
