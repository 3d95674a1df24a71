//! The contents of files, from an archive to the disk, without a copy between the two.

use std::fs::File;
use std::io::{self, BufRead, Seek as _, Write as _};
use std::os::unix::fs::FileExt as _;

use kiln_oci::Hasher;

use crate::tar_read::at_hand;

/// So many zeros become a hole, in bytes.
const HOLE: usize = 64 << 10;

static ZEROS: [u8; HOLE] = [0; HOLE];

/// They are looked for in steps of so many bytes.
const STEP: usize = 4 << 10;

/// Writes all that `from` gives into the empty file `to`. Runs of zeros become holes: a file that was sparse is so again,
/// although most archives don't say so. Gives the length in bytes.
pub(crate) fn copy_whole(
    from: &mut impl BufRead,
    to: &mut File,
    mut hasher: Option<&mut Hasher>,
) -> io::Result<u64> {
    // Of the length, so many zeros at the end are not written yet.
    let (mut total, mut zeros) = (0, 0);
    loop {
        let there = at_hand(from)?;
        let length = there.len();
        if length == 0 {
            break;
        }
        if let Some(hasher) = &mut hasher {
            hasher.update(there);
        }
        let mut rest = there;
        while !rest.is_empty() {
            let first = leading_zeros(rest);
            if first == rest.len() || zeros + first >= HOLE {
                zeros += first;
                rest = &rest[first..];
            }
            let (data, behind) = rest.split_at(until_hole(rest));
            if !data.is_empty() {
                pass_zeros(to, std::mem::take(&mut zeros))?;
                to.write_all(data)?;
            }
            rest = behind;
        }
        total += length as u64;
        from.consume(length);
    }
    if zeros >= HOLE {
        to.set_len(total)?;
    } else {
        pass_zeros(to, zeros)?;
    }
    Ok(total)
}

/// Leaves a hole, or writes zeros where that would be no gain.
fn pass_zeros(to: &mut File, length: usize) -> io::Result<()> {
    if length == 0 {
        return Ok(());
    }
    if length >= HOLE {
        return to.seek_relative(i64::try_from(length).map_err(io::Error::other)?);
    }
    to.write_all(&ZEROS[..length])
}

/// Writes the `pieces` that `from` gives, one after the other, where they belong in a file of `size` bytes: offsets and
/// lengths. Gives how many bytes they have.
pub(crate) fn copy_pieces(
    from: &mut impl BufRead,
    to: &File,
    pieces: &[(u64, u64)],
    size: u64,
) -> io::Result<u64> {
    to.set_len(size)?;
    let mut total = 0;
    for (offset, length) in pieces {
        let (mut at, end) = (*offset, offset + length);
        while at < end {
            let there = at_hand(from)?;
            let now = there.len().min(usize::try_from(end - at).unwrap_or(usize::MAX));
            if now == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            to.write_all_at(&there[..now], at)?;
            from.consume(now);
            at += now as u64;
        }
        total += length;
    }
    Ok(total)
}

/// How many zeros stand at the beginning.
fn leading_zeros(bytes: &[u8]) -> usize {
    bytes.chunks(STEP).take_while(|chunk| is_zero(chunk)).map(<[u8]>::len).sum()
}

/// How much stands before a hole, or before zeros at the end, which may become one.
fn until_hole(bytes: &[u8]) -> usize {
    let (mut at, mut zeros) = (0, 0);
    for chunk in bytes.chunks(STEP) {
        at += chunk.len();
        zeros = if is_zero(chunk) { zeros + chunk.len() } else { 0 };
        if zeros >= HOLE {
            break;
        }
    }
    at - zeros
}

fn is_zero(bytes: &[u8]) -> bool {
    // The first words tell almost always.
    bytes.chunks(64).all(|chunk| chunk.iter().all(|byte| *byte == 0))
}

#[cfg(test)]
mod tests {
    use std::io::{BufReader, Read as _};
    use std::os::unix::fs::MetadataExt as _;

    use proptest::prelude::*;

    use super::*;

    /// What is in a file that was made of `content`, which comes in parts of so many bytes, and how much of the disk it takes.
    fn written(content: &[u8], part: usize) -> (Vec<u8>, u64) {
        let mut file = tempfile::tempfile().unwrap();
        let mut hasher = Hasher::sha256();
        let mut from = BufReader::with_capacity(part, content);
        let length = copy_whole(&mut from, &mut file, Some(&mut hasher)).unwrap();
        assert_eq!(length, content.len() as u64);
        assert_eq!(hasher.finish(), kiln_oci::Digest::of(content));
        file.rewind().unwrap();
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).unwrap();
        (bytes, file.metadata().unwrap().blocks() * 512)
    }

    #[test]
    fn zeros_take_no_room() {
        let mut content = vec![0; 4 << 20];
        content[1 << 20] = 1;
        for part in [8 << 10, HOLE, 256 << 10, 300_001, 8 << 20] {
            let (bytes, room) = written(&content, part);
            assert!(bytes == content, "in parts of {part}");
            assert!(room <= 512 << 10, "{room} bytes, in parts of {part}");
        }
    }

    proptest! {
        #[test]
        fn a_file_has_what_came(
            runs in proptest::collection::vec((prop_oneof![Just(0), any::<u8>()], 1..200_000_usize), 0..5),
            part in 1..300_000_usize,
        ) {
            let content: Vec<u8> = runs.iter().flat_map(|(byte, length)| vec![*byte; *length]).collect();
            prop_assert!(written(&content, part).0 == content);
        }
    }
}
