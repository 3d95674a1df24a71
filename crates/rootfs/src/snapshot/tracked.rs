//! A plain tree and what is known of it: the engine of the directory and host snapshotters.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{CWD, Mode, openat};

use super::clock::wait_past;
use super::log::{ChangeLog, LoggedChanges};
use super::record::RecordReader;
use super::scan::{Before, LONG_AGO, NEVER, Rules, Scanned, scan};
use super::spool::{HashSpool, nameless_file};
use super::{BaseLayer, SnapshotOptions, unpack};
use crate::delta::dir_stack::DIRECTORY;
use crate::delta::failed;
use crate::delta::merge::{From, Merge, Onto};
use crate::extract::InTheWay;
use crate::{ChangeSource, Delta, DirectoryView, IgnorePaths, RootfsError, Timestamp, View};

/// A plain tree, the records of its last scan, and whether a step is open.
pub(crate) struct Tracked {
    tree: PathBuf,
    /// Where scans keep their files. They have no names, so nothing is left there.
    scratch: PathBuf,
    options: SnapshotOptions,
    known: Known,
    /// Something was laid over the tree since its records were made.
    stale: bool,
    /// When the open step began, if one is.
    open: Option<Timestamp>,
    latest: Timestamp,
    /// Records as the last look at the open step's changes found them.
    next: Option<(File, Scanned)>,
}

enum Known {
    /// No scan has been made yet; these are the hashes from extraction.
    Hashes(Option<HashSpool>),
    Records(File),
}

impl Tracked {
    /// Takes `tree` as it is for a tree of which nothing is known. `scratch` must exist.
    pub(crate) fn new(tree: PathBuf, scratch: PathBuf, options: SnapshotOptions) -> Self {
        let known = Known::Hashes(Some(HashSpool::new(scratch.clone())));
        Self { tree, scratch, options, known, stale: false, open: None, latest: LONG_AGO, next: None }
    }

    /// Takes `tree` for a copy of the tree that `records` describe.
    pub(crate) fn copied(
        tree: PathBuf,
        scratch: PathBuf,
        options: SnapshotOptions,
        records: File,
    ) -> Result<Self, RootfsError> {
        let mut tracked = Self::new(tree, scratch, options);
        let before = Before::Copied(tracked.reader(records)?);
        tracked.take_records(before)?;
        Ok(tracked)
    }

    /// From now on other paths are ignored.
    pub(crate) fn ignore(&mut self, ignore: IgnorePaths) {
        self.options.ignore = ignore;
    }

    /// Where the tree is.
    pub(crate) fn tree(&self) -> &Path {
        &self.tree
    }

    /// The tree as it is.
    pub(crate) fn view(&self) -> Result<Arc<dyn View>, RootfsError> {
        Ok(Arc::new(DirectoryView::open(&self.tree)?))
    }

    /// Whether a step is open.
    pub(crate) fn is_open(&self) -> bool {
        self.open.is_some()
    }

    /// Lays a layer over the tree. Gives what it could not make, because something ignored is in the way.
    pub(crate) fn lay(&mut self, layer: &BaseLayer) -> Result<Vec<InTheWay>, RootfsError> {
        let spool = match &mut self.known {
            Known::Hashes(spool) => spool.as_mut(),
            Known::Records(_) => None,
        };
        let in_the_way = unpack::into_plain(layer, &self.tree, &self.options, spool)?;
        self.laid();
        Ok(in_the_way)
    }

    /// Lays a delta over the tree.
    pub(crate) fn apply(&mut self, delta: &Delta) -> Result<(), RootfsError> {
        let fail = |error| {
            failed("lay the delta over the tree from", delta.path().as_os_str().as_encoded_bytes(), error)
        };
        let from = openat(CWD, delta.path(), DIRECTORY, Mode::empty()).map_err(|error| fail(error.into()))?;
        let merge = Merge {
            from: From::Delta,
            onto: Onto::Plain,
            take: true,
            root: true,
            ignore: &self.options.ignore,
        };
        let tree = self.handle()?;
        let mut spool = match &mut self.known {
            Known::Hashes(spool) => spool.as_mut(),
            Known::Records(_) => None,
        };
        let mut seen = |path: &crate::TreePath| match &mut spool {
            Some(spool) => spool.add(path.as_bytes(), None),
            None => Ok(()),
        };
        merge.run(from, tree, &mut seen).map_err(fail)?;
        crate::delta::disk::remove_all(CWD, delta.path().as_os_str().as_encoded_bytes()).map_err(fail)?;
        self.laid();
        Ok(())
    }

    fn laid(&mut self) {
        self.stale = self.open.is_none();
        self.next = None;
    }

    /// Waits until what changes from now on can be told from the records.
    pub(crate) fn pass_the_moment(&self) -> Result<(), RootfsError> {
        let waited = wait_past(self.latest, self.handle()?, &self.scratch);
        waited.map(drop).map_err(|error| failed("ask for the time of", self.name(), error))
    }

    /// Opens a step, unless one is open. Brings the records up to date first, and waits for the clock to move on.
    pub(crate) fn begin(&mut self) -> Result<(), RootfsError> {
        if self.open.is_none() {
            self.settle()?;
            let began = wait_past(self.latest, self.handle()?, &self.scratch);
            self.open = Some(began.map_err(|error| failed("ask for the time of", self.name(), error))?);
        }
        self.next = None;
        Ok(())
    }

    /// Brings the records up to date, and gives a handle of them.
    pub(crate) fn settle(&mut self) -> Result<File, RootfsError> {
        if self.open.is_some() {
            return Err(super::step_is_open());
        }
        match &mut self.known {
            Known::Hashes(spool) => {
                let hashes = spool.take().unwrap_or_else(|| HashSpool::new(self.scratch.clone())).finish();
                let hashes = hashes.map_err(|error| failed("sort the hashes of", self.name(), error))?;
                self.take_records(Before::Extraction(hashes))?;
            }
            Known::Records(records) if self.stale => {
                let records = duplicate(records, &self.tree)?;
                let before = Before::Records(self.reader(records)?);
                self.take_records(before)?;
            }
            Known::Records(_) => {}
        }
        self.records()
    }

    fn records(&self) -> Result<File, RootfsError> {
        match &self.known {
            Known::Records(records) => duplicate(records, &self.tree),
            Known::Hashes(_) => Err(super::no_step_is_open()),
        }
    }

    fn take_records(&mut self, before: Before) -> Result<(), RootfsError> {
        let (records, scanned) = self.scan(before, None)?;
        self.latest = scanned.latest;
        self.known = Known::Records(records);
        self.stale = false;
        Ok(())
    }

    /// What the open step has changed so far.
    pub(crate) fn changes(&mut self) -> Result<Box<dyn ChangeSource>, RootfsError> {
        if self.open.is_none() {
            return Err(super::no_step_is_open());
        }
        let fail = |error| failed("note the changes of", self.name(), error);
        let mut log = ChangeLog::new(nameless_file(&self.scratch).map_err(fail)?);
        let before = Before::Records(self.reader(self.records()?)?);
        let (records, scanned) = self.scan(before, Some(&mut log))?;
        let log = log.finish().map_err(fail)?;
        let changes = LoggedChanges::new(log, self.handle()?).map_err(fail)?;
        self.next = Some((records, scanned));
        Ok(Box::new(changes))
    }

    /// Closes the step.
    pub(crate) fn commit(&mut self) -> Result<(), RootfsError> {
        if self.open.is_none() {
            return Err(super::no_step_is_open());
        }
        if let Some((records, scanned)) = self.next.take() {
            self.latest = scanned.latest;
            self.known = Known::Records(records);
            self.stale = false;
        } else {
            let before = Before::Records(self.reader(self.records()?)?);
            self.take_records(before)?;
        }
        self.open = None;
        Ok(())
    }

    fn scan(&self, before: Before, log: Option<&mut ChangeLog>) -> Result<(File, Scanned), RootfsError> {
        let fail = |error| failed("scan", self.name(), error);
        let out = nameless_file(&self.scratch).map_err(fail)?;
        let rules = Rules {
            root: self.name(),
            mode: self.options.mode,
            ignore: &self.options.ignore,
            inodes: self.options.stable_inodes,
            began: self.open.unwrap_or(NEVER),
        };
        scan(self.handle()?, &rules, before, out, log).map_err(fail)
    }

    fn reader(&self, records: File) -> Result<RecordReader, RootfsError> {
        RecordReader::new(records).map_err(|error| failed("read the records of", self.name(), error))
    }

    /// The tree's root directory.
    pub(crate) fn handle(&self) -> Result<OwnedFd, RootfsError> {
        openat(CWD, &self.tree, DIRECTORY, Mode::empty())
            .map_err(|error| failed("open", self.name(), error.into()))
    }

    fn name(&self) -> &[u8] {
        self.tree.as_os_str().as_encoded_bytes()
    }
}

fn duplicate(file: &File, tree: &Path) -> Result<File, RootfsError> {
    file.try_clone()
        .map_err(|error| failed("read the records of", tree.as_os_str().as_encoded_bytes(), error))
}
