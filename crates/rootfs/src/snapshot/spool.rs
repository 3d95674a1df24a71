//! Content hashes as they come from extraction, in any order, given back in the order of a tree walk.
//!
//! An external sort: what doesn't fit into a few megabytes goes to scratch in sorted runs, which are merged when they
//! are read. Of several entries with one path the last one counts, as the layer extracted last wins.

use std::cmp::{Ordering, Reverse};
use std::collections::BinaryHeap;
use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Seek, Write};
use std::path::{Path, PathBuf};

use super::record::ContentHash;

const BUFFERED: usize = 4 << 20;

/// A path whose order as bytes is the order of a tree walk: a directory, what is in it, then what follows it.
pub(crate) fn walk_key(path: &[u8]) -> Vec<u8> {
    path.iter().map(|byte| if *byte == b'/' { 0 } else { *byte }).collect()
}

/// Makes a file in `dir` that has no name and is gone when it is closed.
pub(crate) fn nameless_file(dir: &Path) -> io::Result<File> {
    let mut number = 0u32;
    loop {
        let path = dir.join(format!("spool-{number}"));
        match File::options().read(true).write(true).create_new(true).open(&path) {
            Ok(file) => {
                std::fs::remove_file(&path)?;
                return Ok(file);
            }
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => number += 1,
            Err(error) => return Err(error),
        }
    }
}

/// Takes entries in any order.
pub(crate) struct HashSpool {
    dir: PathBuf,
    buffer: Vec<(Vec<u8>, Option<ContentHash>)>,
    buffered: usize,
    limit: usize,
    runs: Vec<File>,
}

impl HashSpool {
    /// A spool without entries that puts its files into `dir`.
    pub(crate) fn new(dir: PathBuf) -> Self {
        Self { dir, buffer: Vec::new(), buffered: 0, limit: BUFFERED, runs: Vec::new() }
    }

    /// Notes that the content at `path` has this hash, or that nothing is known of it any more.
    pub(crate) fn add(&mut self, path: &[u8], hash: Option<ContentHash>) -> io::Result<()> {
        self.buffered += path.len() + size_of::<(Vec<u8>, Option<ContentHash>)>();
        self.buffer.push((walk_key(path), hash));
        if self.buffered > self.limit { self.spill() } else { Ok(()) }
    }

    /// Ends the collecting and begins the reading.
    pub(crate) fn finish(mut self) -> io::Result<SortedHashes> {
        self.spill()?;
        let mut runs = Vec::with_capacity(self.runs.len());
        for mut file in self.runs {
            file.rewind()?;
            runs.push(BufReader::with_capacity(32 << 10, file));
        }
        let mut sorted = SortedHashes { runs, heads: BinaryHeap::new() };
        for run in 0..sorted.runs.len() {
            sorted.refill(run)?;
        }
        Ok(sorted)
    }

    fn spill(&mut self) -> io::Result<()> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        // The sort is stable, so of equal keys the one added last stays last.
        self.buffer.sort_by(|a, b| a.0.cmp(&b.0));
        let mut out = BufWriter::with_capacity(64 << 10, nameless_file(&self.dir)?);
        for (key, hash) in self.buffer.drain(..) {
            let length =
                u16::try_from(key.len()).map_err(|_| io::Error::other("a path of over 65535 bytes"))?;
            out.write_all(&length.to_le_bytes())?;
            out.write_all(&key)?;
            out.write_all(&[u8::from(hash.is_some())])?;
            if let Some(hash) = hash {
                out.write_all(&hash)?;
            }
        }
        self.runs.push(out.into_inner().map_err(io::IntoInnerError::into_error)?);
        self.buffered = 0;
        Ok(())
    }
}

struct Head {
    key: Vec<u8>,
    hash: Option<ContentHash>,
    run: usize,
}

impl PartialEq for Head {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Head {}

impl PartialOrd for Head {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Head {
    fn cmp(&self, other: &Self) -> Ordering {
        self.key.cmp(&other.key).then(self.run.cmp(&other.run))
    }
}

/// Gives entries in the order of a tree walk.
pub(crate) struct SortedHashes {
    runs: Vec<BufReader<File>>,
    heads: BinaryHeap<Reverse<Head>>,
}

impl SortedHashes {
    /// The hash noted for `key` (see [`walk_key`]). Must be asked with keys that only grow.
    pub(crate) fn find(&mut self, key: &[u8]) -> io::Result<Option<ContentHash>> {
        let mut found = None;
        while let Some(Reverse(head)) = self.heads.peek() {
            match head.key.as_slice().cmp(key) {
                Ordering::Greater => break,
                Ordering::Equal => found = head.hash,
                Ordering::Less => {}
            }
            let run = head.run;
            self.heads.pop();
            self.refill(run)?;
        }
        Ok(found)
    }

    fn refill(&mut self, run: usize) -> io::Result<()> {
        let reader = &mut self.runs[run];
        let mut length = [0; 2];
        match reader.read_exact(&mut length) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
            other => other?,
        }
        let mut key = vec![0; usize::from(u16::from_le_bytes(length))];
        reader.read_exact(&mut key)?;
        let mut known = [0];
        reader.read_exact(&mut known)?;
        let hash = if known[0] == 1 {
            let mut hash = ContentHash::default();
            reader.read_exact(&mut hash)?;
            Some(hash)
        } else {
            None
        };
        self.heads.push(Reverse(Head { key, hash, run }));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spool(limit: usize, entries: &[(&str, u8)]) -> (tempfile::TempDir, SortedHashes) {
        let dir = tempfile::tempdir().unwrap();
        let mut spool = HashSpool::new(dir.path().to_owned());
        spool.limit = limit;
        for (path, value) in entries {
            spool.add(path.as_bytes(), (*value != 0).then_some([*value; 32])).unwrap();
        }
        let sorted = spool.finish().unwrap();
        (dir, sorted)
    }

    #[test]
    fn the_last_entry_of_a_path_counts() {
        for limit in [0, 200, 1 << 20] {
            let (_dir, mut sorted) =
                spool(limit, &[("b", 1), ("a/x", 2), ("b", 3), ("a-b", 4), ("c", 5), ("c", 0)]);
            let mut find = |path: &str| sorted.find(&walk_key(path.as_bytes())).unwrap().map(|hash| hash[0]);
            assert_eq!(find("a"), None);
            assert_eq!(find("a/x"), Some(2));
            assert_eq!(find("a-b"), Some(4));
            assert_eq!(find("b"), Some(3));
            assert_eq!(find("c"), None);
            assert_eq!(find("d"), None);
        }
    }

    #[test]
    fn a_directory_comes_before_what_is_in_it_and_both_before_a_longer_name() {
        let mut keys = ["a-b", "a/b/c", "a", "a/b", "ab"].map(|path| walk_key(path.as_bytes()));
        keys.sort();
        assert_eq!(keys, ["a", "a/b", "a/b/c", "a-b", "ab"].map(|path| walk_key(path.as_bytes())));
    }

    #[test]
    fn nothing_is_left_in_the_directory() {
        let (dir, sorted) = spool(0, &[("a", 1), ("b", 2)]);
        drop(sorted);
        assert_eq!(dir.path().read_dir().unwrap().count(), 0);
    }
}
