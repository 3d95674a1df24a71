//! Directories read ahead of a walk, by threads of their own: a walk of a large tree is bound by its system calls.
//!
//! The walk asks for one directory after another, depth first. Those it will ask for next lie on a stack, its top the
//! nearest; readers take from there and lay down what they found. What nobody has taken, the walk reads itself, so it
//! never waits for more than one directory, and what fails ahead of it, it finds out for itself.

use std::collections::{HashMap, HashSet};
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{Scope, available_parallelism};

use rustix::fs::{Mode, openat};

use crate::delta::dir_stack::DIRECTORY;
use crate::delta::disk::{each_name, look};
use crate::{IgnorePaths, Meta, TreePath};

/// Readers beside the walk, at most.
const READERS: usize = 3;

/// Entries that may lie ready, which bounds the memory.
const MOST_READY: usize = 16 << 10;

/// Directories that may wait on the stack.
const MOST_WANTED: usize = 4096;

/// Longer paths can't be opened in one go.
const LONGEST_PATH: usize = 4095;

/// What is in a directory, in the order of the names. Few pieces of memory, since one thread makes it and another drops it.
#[derive(Debug)]
pub(crate) struct Listing {
    names: Vec<u8>,
    entries: Vec<(Range<usize>, Meta)>,
    /// How many have been taken.
    taken: usize,
}

impl Listing {
    /// Lists the directory `path`, open as `handle`, without what is ignored.
    fn read(handle: BorrowedFd<'_>, path: &[u8], ignore: &IgnorePaths) -> io::Result<Self> {
        // Where no pattern leads to, no name has to be compared: a walk never enters what is ignored.
        let ignoring = ignore.reaches_below(&TreePath::new(path));
        let mut names = Vec::new();
        let mut places = Vec::new();
        each_name(handle, |name| {
            if !ignoring || !ignore.is_ignored(&TreePath::new(below(path, name))) {
                let start = names.len();
                names.extend_from_slice(name);
                places.push(start..names.len());
            }
        })?;
        places.sort_unstable_by(|a, b| names[a.clone()].cmp(&names[b.clone()]));
        let mut entries = Vec::with_capacity(places.len());
        for place in places {
            // A name that is gone by now was never there.
            if let Some(meta) = look(handle, &names[place.clone()])? {
                entries.push((place, meta));
            }
        }
        Ok(Self { names, entries, taken: 0 })
    }

    /// The name of the next entry.
    pub(crate) fn peek(&self) -> Option<&[u8]> {
        self.entries.get(self.taken).map(|(place, _)| &self.names[place.clone()])
    }

    /// Takes the next entry: its name, and what it is.
    pub(crate) fn take(&mut self) -> Option<(Vec<u8>, Meta)> {
        let name = self.peek()?.to_vec();
        let (_, meta) = &mut self.entries[self.taken];
        self.taken += 1;
        Some((name, meta.clone()))
    }

    fn directories(&self) -> impl Iterator<Item = &[u8]> {
        let found = self.entries.iter().filter(|(_, meta)| meta.is_dir());
        found.map(|(place, _)| &self.names[place.clone()])
    }

    fn len(&self) -> usize {
        self.entries.len()
    }
}

fn below(path: &[u8], name: &[u8]) -> Vec<u8> {
    if path.is_empty() { name.to_vec() } else { [path, name].join(&b'/') }
}

/// The directories of a tree, some of them read before they are asked for.
pub(crate) struct Ahead<'a> {
    root: OwnedFd,
    ignore: &'a IgnorePaths,
    state: Mutex<State>,
    moved: Condvar,
}

#[derive(Default)]
struct State {
    /// Directories to be read, the nearest last.
    wanted: Vec<Vec<u8>>,
    busy: HashSet<Vec<u8>>,
    /// `None` where a reader failed.
    ready: HashMap<Vec<u8>, Option<Listing>>,
    /// The entries in `ready`.
    held: usize,
    /// Threads that wait for something to happen.
    waiting: usize,
    closed: bool,
}

impl<'a> Ahead<'a> {
    /// Of the tree at `root`. Nothing is read ahead before [`start`](Self::start).
    pub(crate) fn new(root: OwnedFd, ignore: &'a IgnorePaths) -> Self {
        Self { root, ignore, state: Mutex::default(), moved: Condvar::new() }
    }

    /// Starts readers, as many as there are other cores. They end when the answer is dropped.
    pub(crate) fn start<'scope>(&'scope self, scope: &'scope Scope<'scope, '_>) -> Closing<'scope, 'a> {
        let cores = available_parallelism().map_or(1, usize::from);
        for _ in 1..cores.min(READERS + 1) {
            // Without a thread the walk reads everything itself.
            drop(std::thread::Builder::new().name("scan".to_owned()).spawn_scoped(scope, || self.serve()));
        }
        Closing(self)
    }

    /// What is in the directory `path`, which the walk has open as `handle`.
    pub(crate) fn list(&self, path: &[u8], handle: BorrowedFd<'_>) -> io::Result<Listing> {
        let listing = match self.taken(path) {
            Some(listing) => listing,
            None => Listing::read(handle, path, self.ignore)?,
        };
        self.want(path, &listing);
        Ok(listing)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What was found in `path`; `None` if nobody has read it, or failed to. While a reader is at it, the walk reads what
    /// comes next: to wait and be woken costs more than a directory does.
    fn taken(&self, path: &[u8]) -> Option<Listing> {
        let mut state = self.state();
        while state.busy.contains(path) {
            state = match state.next() {
                Some(next) => self.read(state, next),
                None => self.wait(state),
            };
        }
        if let Some(found) = state.ready.remove(path) {
            let found = found?;
            state.held -= found.len();
            self.tell(&state);
            return Some(found);
        }
        if let Some(at) = state.wanted.iter().rposition(|wanted| wanted == path) {
            state.wanted.remove(at);
        }
        None
    }

    /// Puts the directories in `listing`, which is of `path`, on the stack.
    fn want(&self, path: &[u8], listing: &Listing) {
        let paths =
            listing.directories().map(|name| below(path, name)).filter(|path| path.len() <= LONGEST_PATH);
        let mut state = self.state();
        let room = MOST_WANTED.saturating_sub(state.wanted.len());
        let mut nearest: Vec<_> = paths.take(room).collect();
        if !nearest.is_empty() {
            nearest.reverse();
            state.wanted.append(&mut nearest);
            self.tell(&state);
        }
    }

    fn wait<'s>(&self, mut state: MutexGuard<'s, State>) -> MutexGuard<'s, State> {
        state.waiting += 1;
        let mut state = self.moved.wait(state).unwrap_or_else(PoisonError::into_inner);
        state.waiting -= 1;
        state
    }

    /// Wakes whoever waits. A system call, so it is left out where nobody does.
    fn tell(&self, state: &State) {
        if state.waiting > 0 {
            self.moved.notify_all();
        }
    }

    /// A reader: takes the nearest directory until there will be none.
    fn serve(&self) {
        let mut state = self.state();
        while !state.closed {
            state = match state.next() {
                Some(path) => self.read(state, path),
                None => self.wait(state),
            };
        }
    }

    /// Reads the directory `path`, which [`State::next`] gave, and lays down what is in it.
    fn read<'s>(&'s self, state: MutexGuard<'s, State>, path: Vec<u8>) -> MutexGuard<'s, State> {
        drop(state);
        let handle = openat(&self.root, path.as_slice(), DIRECTORY, Mode::empty()).map_err(io::Error::from);
        let found = handle.and_then(|handle| Listing::read(handle.as_fd(), &path, self.ignore)).ok();
        let mut state = self.state();
        state.held += found.as_ref().map_or(0, Listing::len);
        state.busy.remove(&path);
        state.ready.insert(path, found);
        self.tell(&state);
        state
    }
}

impl State {
    /// The nearest directory, for reading it now; `None` where none is wanted, or too much lies ready.
    fn next(&mut self) -> Option<Vec<u8>> {
        if self.held >= MOST_READY {
            return None;
        }
        let path = self.wanted.pop()?;
        self.busy.insert(path.clone());
        Some(path)
    }
}

/// Ends the readers of an [`Ahead`], also where the walk fails.
pub(crate) struct Closing<'scope, 'a>(&'scope Ahead<'a>);

impl Drop for Closing<'_, '_> {
    fn drop(&mut self) {
        let mut state = self.0.state();
        state.closed = true;
        self.0.tell(&state);
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use rustix::fs::CWD;

    use super::*;

    fn open(path: &Path) -> OwnedFd {
        openat(CWD, path, DIRECTORY, Mode::empty()).unwrap()
    }

    /// All paths below `path`, as the walk comes by them.
    fn walk(ahead: &Ahead<'_>, root: &Path, path: &[u8], out: &mut Vec<String>) {
        let handle = open(&root.join(std::str::from_utf8(path).unwrap()));
        let mut listing = ahead.list(path, handle.as_fd()).unwrap();
        while let Some((name, meta)) = listing.take() {
            let inside = below(path, &name);
            out.push(format!("{} {:?}", String::from_utf8_lossy(&inside), meta.kind));
            if meta.is_dir() {
                walk(ahead, root, &inside, out);
            }
        }
    }

    /// The same by nobody but the walk, and with readers.
    fn both_ways(root: &Path, ignore: &IgnorePaths) -> [Vec<String>; 2] {
        let (mut alone, mut together) = (Vec::new(), Vec::new());
        walk(&Ahead::new(open(root), ignore), root, b"", &mut alone);
        let ahead = Ahead::new(open(root), ignore);
        std::thread::scope(|scope| {
            let _closing = ahead.start(scope);
            walk(&ahead, root, b"", &mut together);
        });
        let state = ahead.state();
        assert!(
            state.wanted.is_empty() && state.busy.is_empty() && state.ready.is_empty() && state.held == 0
        );
        [alone, together]
    }

    #[test]
    fn readers_find_what_the_walk_would_find_by_itself() {
        let dir = tempfile::tempdir().unwrap();
        for top in 0..20 {
            for middle in 0..10 {
                let at = dir.path().join(format!("{top}/{middle}/deep/deeper"));
                fs::create_dir_all(&at).unwrap();
                fs::write(at.join("file"), "x").unwrap();
                std::os::unix::fs::symlink("deep", dir.path().join(format!("{top}/{middle}/link"))).unwrap();
            }
        }
        let ignore = IgnorePaths::new(["3", "5/*/deep"]);
        let [alone, together] = both_ways(dir.path(), &ignore);
        assert_eq!(alone.len(), 19 + 190 + 190 + 180 * 3);
        assert_eq!(alone, together);
    }

    #[test]
    fn more_than_may_lie_ready_is_read_nevertheless() {
        let dir = tempfile::tempdir().unwrap();
        let per_directory = MOST_READY / 4;
        for top in 0..6 {
            let at = dir.path().join(top.to_string());
            fs::create_dir(&at).unwrap();
            for file in 0..per_directory {
                fs::hard_link(dir.path().join("0/0"), at.join(file.to_string()))
                    .or_else(|_| fs::write(at.join(file.to_string()), ""))
                    .unwrap();
            }
        }
        let [alone, together] = both_ways(dir.path(), &IgnorePaths::default());
        assert_eq!(alone.len(), 6 + 6 * per_directory);
        assert_eq!(alone, together);
    }

    #[test]
    fn what_a_reader_cannot_open_the_walk_finds_out_about() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("a/b")).unwrap();
        let ignore = IgnorePaths::default();
        let ahead = Ahead::new(open(dir.path()), &ignore);
        ahead.list(b"", open(dir.path()).as_fd()).unwrap();
        let handle = open(&dir.path().join("a"));
        fs::rename(dir.path().join("a"), dir.path().join("c")).unwrap();
        let path = ahead.state().next().unwrap();
        assert_eq!(path, b"a");
        drop(ahead.read(ahead.state(), path));
        assert_eq!(ahead.list(b"a", handle.as_fd()).unwrap().peek(), Some(&b"b"[..]));
    }
}
