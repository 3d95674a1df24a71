//! A file tree as a map, the operations that steps do to it, and the same operations done to files on disk.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::io::Write as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};

use kiln_rootfs::{DeltaBuilder, Kind, Meta, TreePath, View};
use rustix::fs::{AtFlags, CWD, Gid, Mode, Timespec, Timestamps, UTIME_OMIT, Uid, XattrFlags, utimensat};

/// Times up to this one are kept in layers; what got the time of the test run becomes this.
pub(crate) const LIMIT: i64 = 1_000_000;

/// What is behind a name. Several names of one file share it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Inode {
    pub(crate) kind: Kind,
    pub(crate) content: Vec<u8>,
    pub(crate) mode: u32,
    pub(crate) owner: (u32, u32),
    pub(crate) mtime: i64,
    pub(crate) xattrs: BTreeMap<String, String>,
    /// A layer holds it.
    pub(crate) committed: bool,
}

/// The tree: names to numbers of inodes.
#[derive(Clone, Debug, Default)]
pub(crate) struct Model {
    pub(crate) names: BTreeMap<String, usize>,
    pub(crate) inodes: Vec<Inode>,
}

/// What a step may do. Operations that make no sense on the tree as it is are passed over.
#[derive(Clone, Debug)]
pub(crate) enum Op {
    Write { path: String, content: Vec<u8>, mtime: i64 },
    OpenAndLeave { path: String },
    WriteTheSame { path: String },
    Chmod { path: String, mode: u32 },
    ChmodAndBack { path: String },
    Chown { path: String, owner: (u32, u32) },
    Touch { path: String, mtime: i64 },
    SetXattr { path: String, value: Option<String> },
    Link { from: String, to: String },
    Symlink { path: String, target: String, mtime: i64 },
    Fifo { path: String },
    Rename { from: String, to: String },
    RenameAndBack { path: String },
    Delete { path: String },
    Mkdir { path: String, mode: u32 },
    DeleteAndMkdir { path: String },
    ComeAndGo { dir: String },
}

impl Model {
    fn get(&self, path: &str) -> Option<&Inode> {
        self.names.get(path).map(|number| &self.inodes[*number])
    }

    fn is_dir(&self, path: &str) -> bool {
        path.is_empty() || self.get(path).is_some_and(|inode| inode.kind == Kind::Directory)
    }

    fn parent_is_dir(&self, path: &str) -> bool {
        !path.is_empty() && self.is_dir(path.rsplit_once('/').map_or("", |(parent, _)| parent))
    }

    fn count(&self, number: usize) -> usize {
        self.names.values().filter(|other| **other == number).count()
    }

    /// A file with several names of which a layer below holds some: overlayfs parts them when one is written to, and a
    /// plain tree doesn't. That is no difference between snapshotters, so such files are left alone.
    fn is_shared(&self, path: &str) -> bool {
        self.names.get(path).is_some_and(|number| self.inodes[*number].committed && self.count(*number) > 1)
    }

    fn below(&self, path: &str) -> Vec<String> {
        let prefix = format!("{path}/");
        self.names.keys().filter(|name| *name == path || name.starts_with(&prefix)).cloned().collect()
    }

    fn insert(&mut self, path: &str, kind: Kind, content: Vec<u8>, mode: u32, mtime: i64) {
        let (owner, xattrs) = ((0, 0), BTreeMap::new());
        self.inodes.push(Inode { kind, content, mode, owner, mtime, xattrs, committed: false });
        self.names.insert(path.to_owned(), self.inodes.len() - 1);
    }

    fn remove(&mut self, path: &str) {
        for name in self.below(path) {
            self.names.remove(&name);
        }
    }

    fn change(&mut self, path: &str, change: impl FnOnce(&mut Inode)) {
        if let Some(number) = self.names.get(path) {
            change(&mut self.inodes[*number]);
        }
    }

    /// All that is there now is in a layer.
    pub(crate) fn commit(&mut self) {
        for number in self.names.values() {
            self.inodes[*number].committed = true;
        }
    }

    /// Whether `op` can be done to the tree as it is, with the same outcome on every rung.
    pub(crate) fn allows(&self, op: &Op) -> bool {
        let kind = |path: &str| self.get(path).map(|inode| inode.kind);
        match op {
            Op::Write { path, .. } => {
                self.parent_is_dir(path)
                    && matches!(kind(path), None | Some(Kind::File))
                    && !self.is_shared(path)
            }
            Op::OpenAndLeave { path } | Op::WriteTheSame { path } => {
                kind(path) == Some(Kind::File) && !self.is_shared(path)
            }
            Op::Chmod { path, .. } | Op::ChmodAndBack { path } | Op::SetXattr { path, .. } => {
                matches!(kind(path), Some(Kind::File | Kind::Directory)) && !self.is_shared(path)
            }
            Op::Chown { path, .. } | Op::Touch { path, .. } => {
                matches!(kind(path), Some(Kind::File | Kind::Symlink)) && !self.is_shared(path)
            }
            // A new name of an old file is a file of its own in the layer, but not yet in the tree.
            Op::Link { from, to } => {
                kind(from) == Some(Kind::File)
                    && kind(to).is_none()
                    && self.parent_is_dir(to)
                    && !self.inodes[self.names[from]].committed
            }
            Op::Symlink { path, .. } | Op::Fifo { path } | Op::Mkdir { path, .. } => {
                self.parent_is_dir(path) && kind(path).is_none()
            }
            Op::Rename { from, to } => {
                kind(from).is_some()
                    && kind(to).is_none()
                    && self.parent_is_dir(to)
                    && !to.starts_with(&format!("{from}/"))
                    && self.below(from).iter().all(|name| self.count(self.names[name]) == 1)
            }
            Op::RenameAndBack { path } => kind(path) == Some(Kind::File) && !self.is_shared(path),
            Op::Delete { path } => kind(path).is_some(),
            Op::DeleteAndMkdir { path } => self.parent_is_dir(path),
            Op::ComeAndGo { dir } => self.is_dir(dir),
        }
    }

    /// Whether a COPY can do `op`, which the model allows.
    pub(crate) fn allows_in_delta(&self, op: &Op) -> bool {
        let several = |path: &str| self.names.get(path).is_some_and(|number| self.count(*number) > 1);
        match op {
            Op::Write { path, .. } => !several(path),
            Op::Symlink { .. }
            | Op::Fifo { .. }
            | Op::Mkdir { .. }
            | Op::Delete { .. }
            | Op::DeleteAndMkdir { .. }
            | Op::Link { .. } => true,
            _ => false,
        }
    }

    /// Does `op` to the map.
    pub(crate) fn apply(&mut self, op: &Op) {
        match op.clone() {
            Op::Write { path, content, mtime } => {
                if self.names.contains_key(&path) {
                    self.change(&path, |inode| (inode.content, inode.mtime) = (content, mtime));
                } else {
                    self.insert(&path, Kind::File, content, 0o644, mtime);
                }
            }
            Op::OpenAndLeave { .. }
            | Op::WriteTheSame { .. }
            | Op::ChmodAndBack { .. }
            | Op::RenameAndBack { .. }
            | Op::ComeAndGo { .. } => {}
            Op::Chmod { path, mode } => self.change(&path, |inode| inode.mode = mode),
            Op::Chown { path, owner } => self.change(&path, |inode| inode.owner = owner),
            Op::Touch { path, mtime } => self.change(&path, |inode| inode.mtime = mtime),
            Op::SetXattr { path, value } => self.change(&path, |inode| {
                match value {
                    Some(value) => inode.xattrs.insert("user.note".to_owned(), value),
                    None => inode.xattrs.remove("user.note"),
                };
            }),
            Op::Link { from, to } => {
                self.names.insert(to, self.names[&from]);
            }
            Op::Symlink { path, target, mtime } => {
                self.insert(&path, Kind::Symlink, target.into_bytes(), 0o777, mtime);
            }
            Op::Fifo { path } => self.insert(&path, Kind::Fifo, Vec::new(), 0o640, 5),
            Op::Rename { from, to } => {
                for name in self.below(&from) {
                    if let Some(number) = self.names.remove(&name) {
                        self.names.insert(format!("{to}{}", &name[from.len()..]), number);
                    }
                }
            }
            Op::Delete { path } => self.remove(&path),
            Op::Mkdir { path, mode } => self.insert(&path, Kind::Directory, Vec::new(), mode, 0),
            Op::DeleteAndMkdir { path } => {
                self.remove(&path);
                self.insert(&path, Kind::Directory, Vec::new(), 0o755, 0);
            }
        }
    }

    /// The tree as lines, one per entry. The times of directories are left out: most changes set them.
    pub(crate) fn lines(&self) -> Vec<String> {
        let first =
            |number: usize| self.names.iter().find(|(_, other)| **other == number).map(|(name, _)| name);
        let mut lines: Vec<String> = self
            .names
            .iter()
            .map(|(name, number)| {
                let inode = &self.inodes[*number];
                let same = first(*number).filter(|first| *first != name && inode.kind != Kind::Directory);
                line(name, inode, same.map(String::as_str))
            })
            .collect();
        lines.sort();
        lines
    }
}

fn line(path: &str, inode: &Inode, same_as: Option<&str>) -> String {
    let Inode { kind, content, mode, owner: (uid, gid), mtime, xattrs, .. } = inode;
    let time = if *kind == Kind::Directory { String::new() } else { format!(" @{mtime}") };
    let content = String::from_utf8_lossy(content);
    let same = same_as.map(|first| format!(" = {first}")).unwrap_or_default();
    format!("/{path} {kind:?} {mode:o} {uid}:{gid}{time} {content:?} {xattrs:?}{same}")
}

/// What a view shows, in the same form.
pub(crate) fn lines_of(view: &dyn View) -> Vec<String> {
    let mut lines = Vec::new();
    let mut firsts: BTreeMap<(u64, u64), String> = BTreeMap::new();
    let mut found = Vec::new();
    let mut waiting = vec![TreePath::root()];
    while let Some(dir) = waiting.pop() {
        for name in view.list(&dir).unwrap() {
            let path = dir.join(&name);
            let meta = view.stat(&path).unwrap().unwrap_or_else(|| panic!("{path} is listed and not there"));
            if meta.kind == Kind::Directory {
                waiting.push(path.clone());
            }
            found.push((String::from_utf8_lossy(path.as_bytes()).into_owned(), path, meta));
        }
    }
    found.sort_by(|a, b| a.0.cmp(&b.0));
    for (name, path, meta) in found {
        let content = match meta.kind {
            Kind::File => {
                let mut bytes = Vec::new();
                std::io::Read::read_to_end(&mut view.open(&path).unwrap(), &mut bytes).unwrap();
                bytes
            }
            Kind::Symlink => meta.link.clone().unwrap_or_default(),
            _ => Vec::new(),
        };
        let xattrs = view.xattrs(&path).unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        let inode = Inode {
            kind: meta.kind,
            content,
            mode: meta.mode,
            owner: (meta.uid, meta.gid),
            mtime: meta.mtime.secs,
            xattrs: xattrs.into_iter().map(|(name, value)| (text(name), text(value))).collect(),
            committed: false,
        };
        let linked = meta.kind != Kind::Directory && meta.nlink > 1;
        let first = if linked {
            firsts.entry(meta.inode).or_insert_with(|| name.clone()).clone()
        } else {
            name.clone()
        };
        lines.push(line(&name, &inode, (first != name).then_some(first.as_str())));
    }
    lines.sort();
    lines
}

/// Does `op`, which the model allows in a delta and which leaves the tree as in `after`, to a delta.
pub(crate) fn build(builder: &mut DeltaBuilder<'_>, op: &Op, after: &Model) {
    let meta = |path: &str| {
        let inode = after.get(path).unwrap();
        let mut meta = Meta::new(inode.kind, inode.mode);
        (meta.uid, meta.gid) = inode.owner;
        meta.mtime.secs = inode.mtime;
        let xattrs = inode.xattrs.iter().map(|(name, value)| (name.clone().into(), value.clone().into()));
        (meta, xattrs.collect::<Vec<(Vec<u8>, Vec<u8>)>>())
    };
    match op {
        Op::Write { path, content, .. } => {
            let (meta, xattrs) = meta(path);
            builder.put_content(&path.as_str().into(), &mut content.as_slice(), &meta, &xattrs).unwrap();
        }
        Op::Symlink { path, target, .. } => {
            let (meta, xattrs) = meta(path);
            builder.put_symlink(&path.as_str().into(), target.as_bytes(), &meta, &xattrs).unwrap();
        }
        Op::Fifo { path } => {
            let (meta, xattrs) = meta(path);
            builder.put_special(&path.as_str().into(), &meta, &xattrs).unwrap();
        }
        Op::Mkdir { path, .. } => {
            let (meta, xattrs) = meta(path);
            builder.put_dir(&path.as_str().into(), &meta, &xattrs).unwrap();
        }
        Op::Link { from, to } => builder.hardlink(&to.as_str().into(), &from.as_str().into()).unwrap(),
        Op::Delete { path } => builder.remove(&path.as_str().into()).unwrap(),
        Op::DeleteAndMkdir { path } => {
            let (meta, xattrs) = meta(path);
            builder.remove(&path.as_str().into()).unwrap();
            builder.put_dir(&path.as_str().into(), &meta, &xattrs).unwrap();
        }
        other => unreachable!("{other:?} is nothing that a COPY does"),
    }
}

/// Does `op`, which the model allows, to the files at `root`.
pub(crate) fn perform(root: &Path, op: &Op, before: &Model) {
    let at = |path: &str| root.join(OsStr::from_bytes(path.as_bytes()));
    match op {
        Op::Write { path, content, mtime } => {
            let mut file = fs::File::options()
                .write(true)
                .create(true)
                .truncate(true)
                .mode(0o644)
                .open(at(path))
                .unwrap();
            file.write_all(content).unwrap();
            if !before.names.contains_key(path) {
                chmod(&at(path), 0o644);
            }
            set_mtime(&at(path), *mtime);
        }
        Op::OpenAndLeave { path } => drop(fs::File::options().write(true).open(at(path)).unwrap()),
        Op::WriteTheSame { path } => {
            let inode = before.get(path).unwrap();
            fs::write(at(path), &inode.content).unwrap();
            set_mtime(&at(path), inode.mtime);
        }
        Op::Chmod { path, mode } => chmod(&at(path), *mode),
        Op::ChmodAndBack { path } => {
            chmod(&at(path), 0o711);
            chmod(&at(path), before.get(path).unwrap().mode);
        }
        Op::Chown { path, owner: (uid, gid) } => {
            let (uid, gid) = (Uid::from_raw(*uid), Gid::from_raw(*gid));
            rustix::fs::chownat(CWD, at(path), Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW).unwrap();
            let inode = before.get(path).unwrap();
            if inode.kind == Kind::File {
                chmod(&at(path), inode.mode);
            }
        }
        Op::Touch { path, mtime } => set_mtime(&at(path), *mtime),
        Op::SetXattr { path, value: Some(value) } => {
            rustix::fs::lsetxattr(at(path), "user.note", value.as_bytes(), XattrFlags::empty()).unwrap();
        }
        Op::SetXattr { path, value: None } => drop(rustix::fs::lremovexattr(at(path), "user.note")),
        Op::Link { from, to } => fs::hard_link(at(from), at(to)).unwrap(),
        Op::Symlink { path, target, mtime } => {
            symlink(target, at(path)).unwrap();
            set_mtime(&at(path), *mtime);
        }
        Op::Fifo { path } => {
            let kind = rustix::fs::FileType::Fifo;
            rustix::fs::mknodat(CWD, at(path), kind, Mode::from_raw_mode(0o640), 0).unwrap();
            chmod(&at(path), 0o640);
            set_mtime(&at(path), 5);
        }
        Op::Rename { from, to } => rename(&at(from), &at(to)),
        Op::RenameAndBack { path } => {
            rename(&at(path), &at("aside"));
            rename(&at("aside"), &at(path));
        }
        Op::Delete { path } => delete(&at(path)),
        Op::Mkdir { path, mode } => {
            fs::create_dir(at(path)).unwrap();
            chmod(&at(path), *mode);
        }
        Op::DeleteAndMkdir { path } => {
            delete(&at(path));
            fs::create_dir(at(path)).unwrap();
            chmod(&at(path), 0o755);
        }
        Op::ComeAndGo { dir } => {
            fs::write(at(dir).join("gone"), "soon").unwrap();
            fs::remove_file(at(dir).join("gone")).unwrap();
        }
    }
}

fn chmod(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

pub(crate) fn set_mtime(path: &Path, secs: i64) {
    let times = Timestamps {
        last_access: Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
        last_modification: Timespec { tv_sec: secs, tv_nsec: 0 },
    };
    utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
}

fn delete(path: &PathBuf) {
    match fs::symlink_metadata(path) {
        Ok(meta) if meta.is_dir() => fs::remove_dir_all(path).unwrap(),
        Ok(_) => fs::remove_file(path).unwrap(),
        Err(_) => {}
    }
}

/// Renames as mv does: overlayfs refuses to rename directories that lie below.
fn rename(from: &Path, to: &Path) {
    if fs::rename(from, to).is_err() {
        assert!(std::process::Command::new("mv").arg(from).arg(to).status().unwrap().success());
    }
}
