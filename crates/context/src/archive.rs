//! Archives: told by their content, whatever their name; tar, alone or compressed by gzip, bzip2, xz or zstd.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Cursor, Read};
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kiln_oci::{Digest, Hasher};
use kiln_rootfs::{
    Compression, ExtractOptions, IgnorePaths, Root, Whiteouts, apart, begins_as_tar, decompress, extract,
};

use crate::ContextError;

/// Whether a file is an archive that ADD unpacks.
pub fn is_archive(file: &File) -> bool {
    let probe = || -> io::Result<bool> {
        let mut header = Vec::new();
        match decompressed(FromStart::of(file)?)?.take(512).read_to_end(&mut header) {
            Ok(_) => Ok(begins_as_tar(&header)),
            Err(_) => Ok(false),
        }
    };
    probe().unwrap_or(false)
}

/// Reads a file from its start, whatever others do with its position.
struct FromStart {
    file: File,
    at: u64,
}

impl FromStart {
    fn of(file: &File) -> io::Result<Self> {
        Ok(Self { file: file.try_clone()?, at: 0 })
    }
}

impl Read for FromStart {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.file.read_at(buffer, self.at)?;
        self.at += length as u64;
        Ok(length)
    }
}

/// The decompressed bytes of an archive, from its start.
pub fn open_archive(file: &File) -> io::Result<Box<dyn BufRead + Send>> {
    decompressed_apart(FromStart::of(file)?)
}

/// Decompresses what comes, beside what is done with it.
fn decompressed_apart(input: impl Read + Send + 'static) -> io::Result<Box<dyn BufRead + Send>> {
    Ok(Box::new(apart(decompressed(input)?)))
}

/// Decompresses what comes, by its first bytes. What is not compressed comes as it is.
fn decompressed(mut input: impl Read + Send + 'static) -> io::Result<Box<dyn BufRead + Send>> {
    let mut magic = Vec::with_capacity(6);
    input.by_ref().take(6).read_to_end(&mut magic)?;
    let reader = BufReader::with_capacity(STEP, Cursor::new(magic.clone()).chain(input));
    Ok(match magic.as_slice() {
        [0x1f, 0x8b, ..] => Compressed::boxed("gzip", flate2::bufread::MultiGzDecoder::new(reader)),
        [b'B', b'Z', b'h', ..] => Compressed::boxed("bzip2", bzip2::bufread::MultiBzDecoder::new(reader)),
        [0xfd, b'7', b'z', b'X', b'Z', 0] => Compressed::boxed("xz", lzma_rust2::XzReader::new(reader, true)),
        // As layers are, which may be compressed so, too.
        [0x28, 0xb5, 0x2f, 0xfd, ..] => Box::new(decompress(reader, Compression::Zstd)),
        _ => Box::new(reader),
    })
}

/// Says what is wrong with compressed data: decoders tell it in words of their own.
struct Compressed<R> {
    by: &'static str,
    inner: R,
}

/// How much is read and decompressed at a time, in bytes.
const STEP: usize = 32 << 10;

impl<R: Read + Send + 'static> Compressed<R> {
    /// A decoder that meets damage drops what it made in the same call. All calls are of one size, so that who looks at
    /// the beginning and who reads all of it get as far.
    fn boxed(by: &'static str, inner: R) -> Box<dyn BufRead + Send> {
        Box::new(BufReader::with_capacity(STEP, Self { by, inner }))
    }
}

impl<R: Read> Read for Compressed<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = buffer.len().min(STEP);
        let wrong = |error: &io::Error| match error.kind() {
            io::ErrorKind::UnexpectedEof => Some("ends too early"),
            io::ErrorKind::InvalidData | io::ErrorKind::InvalidInput => Some("is damaged"),
            _ => None,
        };
        self.inner.read(&mut buffer[..most]).map_err(|error| match wrong(&error) {
            Some(how) => io::Error::new(error.kind(), format!("what {} compressed {how} ({error})", self.by)),
            None => error,
        })
    }
}

fn options() -> ExtractOptions<'static> {
    ExtractOptions {
        whiteouts: Whiteouts::Apply,
        ignore: IgnorePaths::default(),
        can_mknod: false,
        can_chown: rustix::process::geteuid().is_root(),
        record: None,
    }
}

/// Unpacks an archive while it comes. Gives the digest of the archive's own bytes, if it is `wanted`.
///
/// Fails with [`ContextError::Fetch`] for what is no archive, and for every error of the reader.
pub(crate) fn unpack_stream(
    input: impl Read + Send + 'static,
    name: &str,
    into: &Path,
    wanted: bool,
) -> Result<Option<Digest>, ContextError> {
    let fail = |why: String| ContextError::Fetch { context: name.to_owned(), why };
    let hasher = wanted.then(Hasher::sha256);
    let mut input = Watched(Arc::new(Mutex::new(Watching { inner: input, failed: None, hasher })));
    let failed = input.clone();
    // What broke the source is the reason, whatever the readers behind it make of it.
    let reason = |error: String| fail(failed.lock().failed.take().unwrap_or(error));
    let mut reader = decompressed_apart(input.clone()).map_err(|error| reason(error.to_string()))?;
    let mut header = Vec::with_capacity(512);
    let read = reader.by_ref().take(512).read_to_end(&mut header);
    let empty_archive = header.len() == 512 && header.iter().all(|byte| *byte == 0);
    if !begins_as_tar(&header) && !empty_archive {
        let broke = failed.lock().failed.take();
        let no_archive = || format!("it is no tar archive, compressed or not: it {}", begins(&header));
        return Err(fail(match (broke, read) {
            (Some(broke), _) => broke,
            (None, Err(error)) => format!("it is no tar archive: it can't be decompressed: {error}"),
            (None, Ok(_)) => no_archive(),
        }));
    }
    let root = Root::open(into)?;
    // What stands behind the archive's end is read, too: a transfer that breaks there is known to be whole.
    extract(Cursor::new(header).chain(reader), &root, &mut options())
        .map_err(|error| reason(error.to_string()))?;
    // And what a decompressor leaves alone: the digest is that of the whole.
    io::copy(&mut input, &mut io::sink()).map_err(|error| reason(error.to_string()))?;
    let hasher = input.lock().hasher.take();
    Ok(hasher.map(Hasher::finish))
}

/// How a file begins, for somebody who has to find out what it is.
fn begins(bytes: &[u8]) -> String {
    if bytes.is_empty() {
        return "is empty".to_owned();
    }
    let text: String = String::from_utf8_lossy(bytes).chars().take(40).collect();
    if text.chars().all(|c| !c.is_control() || c.is_whitespace()) && !text.contains('\u{fffd}') {
        format!("begins with {:?}", text.split_whitespace().collect::<Vec<_>>().join(" "))
    } else {
        let hex: Vec<String> = bytes.iter().take(8).map(|byte| format!("{byte:02x}")).collect();
        format!("begins with the bytes {}", hex.join(" "))
    }
}

/// A source whose reader is given away and asked afterwards.
struct Watched<R>(Arc<Mutex<Watching<R>>>);

struct Watching<R> {
    inner: R,
    /// Why reading failed.
    failed: Option<String>,
    hasher: Option<Hasher>,
}

impl<R> Watched<R> {
    fn lock(&self) -> MutexGuard<'_, Watching<R>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<R> Clone for Watched<R> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<R: Read> Read for Watched<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut watching = self.lock();
        match watching.inner.read(buffer) {
            Ok(length) => {
                if let Some(hasher) = &mut watching.hasher {
                    hasher.update(&buffer[..length]);
                }
                Ok(length)
            }
            Err(error) => {
                if error.kind() != io::ErrorKind::Interrupted {
                    watching.failed = Some(error.to_string());
                }
                Err(error)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::process::Command;

    use super::*;

    #[test]
    fn every_compression_is_told_by_its_content() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("f"), "content").unwrap();
        for flag in ["", "-z", "-j", "-J", "--zstd"] {
            let archive = dir.path().join("a");
            let mut tar = Command::new("tar");
            tar.arg("-cf").arg(&archive).arg("-C").arg(dir.path()).arg("f");
            if !flag.is_empty() {
                tar.arg(flag);
            }
            assert!(tar.status().unwrap().success(), "tar {flag} failed: is its compressor installed?");
            assert!(is_archive(&File::open(&archive).unwrap()), "{flag}");
            let into = tempfile::tempdir().unwrap();
            let found = unpack_stream(File::open(&archive).unwrap(), "a", into.path(), true).unwrap();
            assert_eq!(found, Some(Digest::of(&std::fs::read(&archive).unwrap())), "{flag}");
            assert_eq!(std::fs::read_to_string(into.path().join("f")).unwrap(), "content", "{flag}");
        }
    }

    #[test]
    fn an_archive_of_an_old_writer_that_summed_signed_bytes_is_one() {
        let dir = tempfile::tempdir().unwrap();
        let archive = dir.path().join("a");
        std::fs::write(dir.path().join("gr\u{fc}n"), "content").unwrap();
        let mut tar = Command::new("tar");
        tar.arg("--format=ustar").arg("-cf").arg(&archive).arg("-C").arg(dir.path()).arg("gr\u{fc}n");
        assert!(tar.status().unwrap().success());
        let mut bytes = std::fs::read(&archive).unwrap();
        let sum = u32::from_str_radix(str::from_utf8(&bytes[148..154]).unwrap(), 8).unwrap();
        // Two bytes of the name are above 127.
        bytes[148..154].copy_from_slice(format!("{:06o}", sum - 512).as_bytes());
        std::fs::write(&archive, bytes).unwrap();
        assert!(is_archive(&File::open(&archive).unwrap()));
        let into = tempfile::tempdir().unwrap();
        unpack_stream(File::open(&archive).unwrap(), "a", into.path(), false).unwrap();
        assert_eq!(std::fs::read_to_string(into.path().join("gr\u{fc}n")).unwrap(), "content");
    }

    #[test]
    fn what_is_damaged_in_the_beginning_is_no_archive_or_can_be_read_that_far() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("f"), "content".repeat(300)).unwrap();
        for flag in ["-z", "-j", "-J"] {
            let archive = dir.path().join("a");
            let tar = Command::new("tar")
                .args([flag, "-cf"])
                .arg(&archive)
                .arg("-C")
                .arg(dir.path())
                .arg("f")
                .status();
            assert!(tar.unwrap().success());
            let whole = std::fs::read(&archive).unwrap();
            for at in 6..whole.len() {
                let mut damaged = whole.clone();
                damaged[at] ^= 0x55;
                std::fs::write(&archive, damaged).unwrap();
                let file = File::open(&archive).unwrap();
                let mut bytes = Vec::new();
                drop(open_archive(&file).and_then(|mut reader| reader.read_to_end(&mut bytes)));
                assert!(bytes.len() >= 512 || !is_archive(&file), "{flag}, byte {at}");
            }
        }
    }

    #[test]
    fn a_compressed_file_that_is_no_tar_is_no_archive() {
        let mut file = tempfile::tempfile().unwrap();
        let mut encoder = Vec::new();
        for byte in 0..2000u32 {
            encoder.push((byte % 251) as u8);
        }
        file.write_all(&encoder).unwrap();
        assert!(!is_archive(&file));
        assert!(!is_archive(&tempfile::tempfile().unwrap()));
    }
}
