//! Archives: told by their content, whatever their name; tar, alone or compressed by gzip, bzip2, xz or zstd.

use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use kiln_rootfs::{Compression, ExtractOptions, IgnorePaths, Root, Whiteouts, decompress, extract};

use crate::ContextError;

/// Whether a file is an archive that ADD unpacks.
pub fn is_archive(file: &File) -> bool {
    let probe = || -> io::Result<bool> {
        let mut header = Vec::new();
        match open_archive(file)?.take(512).read_to_end(&mut header) {
            Ok(_) => Ok(is_tar(&header)),
            Err(_) => Ok(false),
        }
    };
    probe().unwrap_or(false)
}

/// Whether these are the first bytes of a tar archive: the checksum of the header fits.
fn is_tar(bytes: &[u8]) -> bool {
    if bytes.len() < 512 || bytes.iter().all(|byte| *byte == 0) {
        return false;
    }
    let digits: String = bytes[148..156].iter().map(|byte| char::from(*byte)).collect();
    let Ok(said) = u32::from_str_radix(digits.trim_matches(|c| c == '\0' || c == ' '), 8) else {
        return false;
    };
    let sum: u32 =
        (0..512).map(|place| if (148..156).contains(&place) { 32 } else { u32::from(bytes[place]) }).sum();
    said == sum
}

/// Reads a file from its start, whatever others do with its position.
struct FromStart {
    file: File,
    at: u64,
}

impl Read for FromStart {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.file.read_at(buffer, self.at)?;
        self.at += length as u64;
        Ok(length)
    }
}

/// The decompressed bytes of an archive, from its start.
pub fn open_archive(file: &File) -> io::Result<Box<dyn Read + Send>> {
    let mut magic = [0; 6];
    let known = file.read_at(&mut magic, 0)?;
    let reader = FromStart { file: file.try_clone()?, at: 0 };
    Ok(match &magic[..known] {
        [b'B', b'Z', b'h', ..] => Box::new(bzip2_rs::DecoderReader::new(reader)),
        [0xfd, b'7', b'z', b'X', b'Z', 0] => Box::new(xz(reader)?),
        _ => Box::new(decompress(reader, Compression::None)),
    })
}

/// xz is decompressed into a nameless file: its library pushes bytes and can't be asked for them.
fn xz(file: impl Read) -> io::Result<File> {
    let mut out = tempfile::tempfile()?;
    lzma_rs::xz_decompress(&mut BufReader::new(file), &mut io::BufWriter::new(&mut out))
        .map_err(|error| io::Error::other(format!("{error:?}")))?;
    out.seek(SeekFrom::Start(0))?;
    Ok(out)
}

/// Unpacks the archive in `file` into the directory `into`.
pub fn unpack(file: &File, name: &str, into: &Path) -> Result<(), ContextError> {
    let fail = |why: String| ContextError::Archive { name: name.to_owned(), why };
    let reader = open_archive(file).map_err(|error| fail(error.to_string()))?;
    let root = Root::open(into)?;
    let privileged = rustix::process::geteuid().is_root();
    let mut options = ExtractOptions {
        whiteouts: Whiteouts::Apply,
        ignore: IgnorePaths::default(),
        can_mknod: false,
        can_chown: privileged,
        record: None,
    };
    extract(reader, &root, &mut options).map(|_| ()).map_err(|error| fail(error.to_string()))
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
            unpack(&File::open(&archive).unwrap(), "a", into.path()).unwrap();
            assert_eq!(std::fs::read_to_string(into.path().join("f")).unwrap(), "content", "{flag}");
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
