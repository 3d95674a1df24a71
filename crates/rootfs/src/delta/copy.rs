//! Copies a file's bytes the cheapest way that works: copy_file_range, for which the kernel shares blocks where the file
//! system can, else reading and writing. Holes stay holes.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use rustix::fs::{SeekFrom, copy_file_range, ftruncate, seek};
use rustix::io::Errno;

const STEP: usize = 1 << 30;
const BUFFER: usize = 128 << 10;

/// Makes `to`, which is empty, hold the `size` bytes that `from` has. A file that is shorter than `size` by now fails
/// with `UnexpectedEof`; what has been added at its end is left out.
pub(crate) fn copy_content(from: &File, to: &File, size: u64) -> io::Result<()> {
    if size == 0 {
        return Ok(());
    }
    let mut way = Way::CopyRange;
    let mut at = 0;
    while at < size {
        let Some(start) = next_data(from, at, size)? else { break };
        let end = next_hole(from, start, size)?;
        copy_range(from, to, start, end, &mut way)?;
        at = end;
    }
    ftruncate(to, size)?;
    Ok(())
}

#[derive(PartialEq)]
enum Way {
    CopyRange,
    ReadWrite,
}

/// Where data begins at or after `at`; `None` if only a hole follows.
fn next_data(file: &File, at: u64, size: u64) -> io::Result<Option<u64>> {
    match seek(file, SeekFrom::Data(at)) {
        Ok(start) if start < size => Ok(Some(start)),
        Ok(_) => Ok(None),
        Err(Errno::NXIO) => {
            if file.metadata()?.len() < size {
                return Err(shorter());
            }
            Ok(None)
        }
        Err(Errno::INVAL | Errno::OPNOTSUPP | Errno::NOSYS) => Ok(Some(at)),
        Err(error) => Err(error.into()),
    }
}

fn next_hole(file: &File, start: u64, size: u64) -> io::Result<u64> {
    match seek(file, SeekFrom::Hole(start)) {
        Ok(end) if end > start => Ok(end.min(size)),
        Ok(_) | Err(Errno::INVAL | Errno::OPNOTSUPP | Errno::NOSYS | Errno::NXIO) => Ok(size),
        Err(error) => Err(error.into()),
    }
}

fn copy_range(from: &File, to: &File, start: u64, end: u64, way: &mut Way) -> io::Result<()> {
    let mut at = start;
    while at < end && *way == Way::CopyRange {
        let (mut read_at, mut write_at) = (at, at);
        let step = usize::try_from(end - at).unwrap_or(STEP).min(STEP);
        match copy_file_range(from, Some(&mut read_at), to, Some(&mut write_at), step) {
            // Some file systems (procfs, some FUSE) give 0 where there is data: reading tells the truth.
            Ok(0)
            | Err(Errno::XDEV | Errno::INVAL | Errno::OPNOTSUPP | Errno::NOSYS | Errno::PERM | Errno::BADF) =>
            {
                *way = Way::ReadWrite;
            }
            Ok(count) => at += count as u64,
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    if at < end { read_write(from, to, at, end) } else { Ok(()) }
}

fn read_write(from: &File, to: &File, start: u64, end: u64) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER];
    let mut at = start;
    while at < end {
        let want = usize::try_from(end - at).unwrap_or(BUFFER).min(BUFFER);
        match from.read_at(&mut buffer[..want], at) {
            Ok(0) => return Err(shorter()),
            Ok(count) => {
                to.write_all_at(&buffer[..count], at)?;
                at += count as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn shorter() -> io::Error {
    io::Error::new(io::ErrorKind::UnexpectedEof, "the file became shorter while it was copied")
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    fn copy(make: impl FnOnce(&File), size: u64) -> io::Result<File> {
        let (from, to) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
        make(&from);
        copy_content(&from, &to, size).map(|()| to)
    }

    fn bytes(file: &File) -> Vec<u8> {
        let mut out = vec![0; usize::try_from(file.metadata().unwrap().len()).unwrap()];
        file.read_exact_at(&mut out, 0).unwrap();
        out
    }

    #[test]
    fn holes_stay_holes() {
        let size = 64 << 20;
        let to = copy(
            |from| {
                from.write_all_at(b"start", 0).unwrap();
                from.write_all_at(b"middle", 32 << 20).unwrap();
                from.set_len(size).unwrap();
            },
            size,
        )
        .unwrap();
        assert_eq!(to.metadata().unwrap().len(), size);
        assert!(to.metadata().unwrap().blocks() * 512 < 1 << 20);
        let mut seen = [0; 6];
        to.read_exact_at(&mut seen, 32 << 20).unwrap();
        assert_eq!(&seen, b"middle");
    }

    #[test]
    fn what_was_added_at_the_end_is_left_out() {
        let to = copy(|from| from.write_all_at(b"0123456789", 0).unwrap(), 4).unwrap();
        assert_eq!(bytes(&to), b"0123");
    }

    #[test]
    fn a_file_that_became_shorter_is_an_error() {
        let error = copy(|from| from.write_all_at(b"0123", 0).unwrap(), 9).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn a_file_that_is_only_a_hole_is_copied() {
        let to = copy(|from| from.set_len(1 << 20).unwrap(), 1 << 20).unwrap();
        assert_eq!(bytes(&to), vec![0; 1 << 20]);
    }
}
