//! ADD of an archive: its entries are put into the destination one after another, as a tar program run in there would.
//!
//! The destination is the root of what the archive's names and links mean. An entry replaces whatever is at its path,
//! unless both are directories. Directories that the archive doesn't hold are made 0755 and belong to root.

use std::fs::File;
use std::io::{self, Read};

use kiln_context::open_archive;
use kiln_rootfs::{
    DeltaBuilder, Entry, EntryKind, Kind, Meta, RootfsError, TarReader, Timestamp, TreePath, View, Whole,
    Xattrs, resolve, resolve_parent,
};

use super::CopyError;

/// Unpacks the archive in `file` into the directory `target`, which exists. All of it belongs to `owner`, if one is given.
pub(super) fn unpack(
    builder: &mut DeltaBuilder<'_>,
    file: &File,
    name: &str,
    target: &TreePath,
    owner: Option<(u32, u32)>,
) -> Result<(), CopyError> {
    let fail = |why: String| CopyError::Wrong(format!("could not unpack {name}: {why}"));
    let reader = open_archive(file).map_err(|error| fail(error.to_string()))?;
    let mut unpacking = Unpacking { builder, target, owner, directories: Vec::new() };
    let mut tar = TarReader::new(reader);
    while let Some(entry) = tar.next().map_err(|error| fail(error.to_string()))? {
        let mut stored = Noting { inner: &mut tar, failed: None };
        // Where the archive is damaged, that is the reason, and not that a file could not be written.
        unpacking.entry(&entry, &mut stored).map_err(|error| match stored.failed {
            Some(why) => fail(format!("{}: {why}", String::from_utf8_lossy(&entry.path))),
            None => error,
        })?;
    }
    unpacking.finish()
}

/// Reads, and notes why that failed.
struct Noting<'a, R> {
    inner: &'a mut R,
    failed: Option<String>,
}

impl<R: Read> Read for Noting<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.inner.read(buffer).inspect_err(|error| self.failed = Some(error.to_string()))
    }
}

/// The paths that an archive's entries have in the directory `target`; none where it can't be read.
pub(super) fn paths(file: &File, target: &TreePath) -> Vec<TreePath> {
    let mut found = Vec::new();
    let Ok(reader) = open_archive(file) else { return found };
    let mut tar = TarReader::new(reader);
    while let Ok(Some(entry)) = tar.next() {
        found.push(target.join_path(&TreePath::new(&entry.path)));
        if entry.kind == EntryKind::HardLink {
            found.push(target.join_path(&TreePath::new(&entry.link)));
        }
    }
    found
}

struct Unpacking<'u, 'b> {
    builder: &'u mut DeltaBuilder<'b>,
    target: &'u TreePath,
    owner: Option<(u32, u32)>,
    /// Times that are set at the end: what comes later in the archive may lie in a directory that came before.
    directories: Vec<(TreePath, Timestamp)>,
}

impl Unpacking<'_, '_> {
    fn entry(&mut self, entry: &Entry, stored: &mut dyn Read) -> Result<(), CopyError> {
        let named = TreePath::new(&entry.path);
        if named.is_root() {
            return self.destination(entry);
        }
        let path = self.inside(&named)?;
        let above = path.parent().unwrap_or_default();
        if self.builder.stat(&above)?.is_none() {
            self.refuse_dangling(&named)?;
            self.builder.mkdir_all(&above, Some((0, 0)), 0o755)?;
        }
        let meta = self.meta(entry);
        let xattrs = kept(&entry.xattrs);
        match entry.kind {
            EntryKind::HardLink => self.hard_link(&path, entry)?,
            EntryKind::New(Kind::Directory) => {
                self.builder.put_dir(&path, &meta, &xattrs)?;
                self.directories.push((path, entry.mtime));
            }
            EntryKind::New(Kind::File) => {
                self.builder.put_content(&path, &mut Whole::new(entry, stored), &meta, &xattrs)?;
            }
            EntryKind::New(Kind::Symlink) => {
                self.builder.put_symlink(&path, &entry.link, &meta, &xattrs)?;
            }
            EntryKind::New(_) => self.special(&path, &meta, &xattrs)?,
        }
        Ok(())
    }

    /// An entry that is the destination itself. `.` says nothing of it; `/` and what leads up to it do.
    fn destination(&mut self, entry: &Entry) -> Result<(), CopyError> {
        if is_here(&entry.path) || entry.kind != EntryKind::New(Kind::Directory) {
            return Ok(());
        }
        let target = self.target.clone();
        self.builder.put_dir(&target, &self.meta(entry), &kept(&entry.xattrs))?;
        self.directories.push((target, entry.mtime));
        Ok(())
    }

    /// Where a path of the archive lies in the tree: links on the way are followed inside the destination.
    fn inside(&self, path: &TreePath) -> Result<TreePath, CopyError> {
        let inside = Inside { view: self.builder, root: self.target };
        Ok(self.target.join_path(&resolve_parent(&inside, path)?))
    }

    /// Fails where a link on the way to `path` leads to nothing: nothing is made behind a link.
    fn refuse_dangling(&self, path: &TreePath) -> Result<(), CopyError> {
        let mut above = path.parent();
        while let Some(at) = above {
            let link = self.builder.stat(&self.inside(&at)?)?.is_some_and(|meta| meta.kind == Kind::Symlink);
            let inside = Inside { view: self.builder, root: self.target };
            if link && inside.stat(&resolve(&inside, &at)?)?.is_none() {
                return Err(CopyError::Wrong(format!(
                    "{path} lies behind the link {at}, which leads to nothing"
                )));
            }
            above = at.parent();
        }
        Ok(())
    }

    fn meta(&self, entry: &Entry) -> Meta {
        let kind = match entry.kind {
            EntryKind::New(kind) => kind,
            EntryKind::HardLink => Kind::File,
        };
        let mut meta = Meta::new(kind, entry.mode);
        (meta.uid, meta.gid) = self.owner.unwrap_or((entry.uid, entry.gid));
        meta.mtime = entry.mtime;
        meta.rdev = matches!(kind, Kind::CharDevice | Kind::BlockDevice).then_some(entry.rdev);
        meta.link = (kind == Kind::Symlink).then(|| entry.link.clone());
        meta
    }

    /// A device that may not be made here is left out.
    fn special(&mut self, path: &TreePath, meta: &Meta, xattrs: &Xattrs) -> Result<(), CopyError> {
        if meta.is_whiteout() {
            return Ok(());
        }
        match self.builder.put_special(path, meta, xattrs) {
            Err(RootfsError::Io { source, .. }) if source.kind() == io::ErrorKind::PermissionDenied => Ok(()),
            result => Ok(result?),
        }
    }

    /// One more name of a file. Both names get what the entry says of owner, mode and time.
    fn hard_link(&mut self, path: &TreePath, entry: &Entry) -> Result<(), CopyError> {
        let first = self.inside(&TreePath::new(&entry.link))?;
        match self.builder.hardlink(path, &first) {
            Err(RootfsError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                // It lies only below: it is brought along.
                let there = self.builder.stat(&first)?.filter(|meta| meta.kind == Kind::File);
                let Some(meta) = there else {
                    let why = format!("{path} is a hard link to {first}, which is not there");
                    return Err(CopyError::Wrong(why));
                };
                let (content, xattrs) = (self.builder.open(&first)?, self.builder.xattrs(&first)?);
                self.builder.put_file(&first, &content, &meta, &xattrs)?;
                self.builder.hardlink(path, &first)?;
            }
            result => result?,
        }
        let Some(old) = self.builder.stat(path)? else { return Ok(()) };
        let mut meta = Meta { kind: old.kind, ..self.meta(entry) };
        if old.kind == Kind::Symlink {
            meta.mtime = old.mtime;
        }
        Ok(self.builder.dress(path, &meta, &kept(&entry.xattrs))?)
    }

    fn finish(self) -> Result<(), CopyError> {
        for (path, mtime) in self.directories {
            let Some(mut meta) = self.builder.stat(&path)?.filter(Meta::is_dir) else { continue };
            meta.mtime = mtime;
            let xattrs = self.builder.xattrs(&path)?;
            self.builder.put_dir(&path, &meta, &xattrs)?;
        }
        Ok(())
    }
}

/// Whether a path that ends at the root is a roundabout `.`: relative, and never above where it began.
fn is_here(path: &[u8]) -> bool {
    let mut depth = 0_usize;
    let mut parts = path.split(|byte| *byte == b'/').filter(|part| !matches!(*part, b"" | b"."));
    let inside = parts.all(|part| {
        let next = if part == b".." { depth.checked_sub(1) } else { Some(depth + 1) };
        depth = next.unwrap_or_default();
        next.is_some()
    });
    inside && !path.starts_with(b"/")
}

/// The attributes that come along from an archive: file capabilities, and nothing else, as with BuildKit.
fn kept(xattrs: &Xattrs) -> Xattrs {
    xattrs.iter().filter(|(name, _)| name == b"security.capability").cloned().collect()
}

/// A directory of a tree as a tree of its own.
struct Inside<'a, 'b> {
    view: &'a DeltaBuilder<'b>,
    root: &'a TreePath,
}

impl View for Inside<'_, '_> {
    fn stat(&self, path: &TreePath) -> Result<Option<Meta>, RootfsError> {
        self.view.stat(&self.root.join_path(path))
    }

    fn list(&self, path: &TreePath) -> Result<Vec<Vec<u8>>, RootfsError> {
        self.view.list(&self.root.join_path(path))
    }

    fn open(&self, path: &TreePath) -> Result<File, RootfsError> {
        self.view.open(&self.root.join_path(path))
    }

    fn xattrs(&self, path: &TreePath) -> Result<Xattrs, RootfsError> {
        self.view.xattrs(&self.root.join_path(path))
    }

    fn real_path(&self, _: &TreePath) -> Result<Option<std::path::PathBuf>, RootfsError> {
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_roundabout_dots_say_nothing_of_the_destination() {
        assert!(["", ".", "./", "x/..", "./."].iter().all(|path| is_here(path.as_bytes())));
        assert!(["/", "..", "../..", "/..", "x/../.."].iter().all(|path| !is_here(path.as_bytes())));
    }

    #[test]
    fn what_an_archive_names_stays_in_the_destination() {
        let mut tar = tar::Builder::new(Vec::new());
        for (name, kind, link) in
            [("a/../../f", b'0', ""), ("l", b'2', "/"), ("l/g", b'0', ""), ("h", b'1', "../f")]
        {
            let mut header = tar::Header::new_gnu();
            header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
            header.as_old_mut().linkname[..link.len()].copy_from_slice(link.as_bytes());
            header.set_entry_type(tar::EntryType::new(kind));
            header.set_size(0);
            header.set_mode(0o640);
            header.set_uid(0);
            header.set_gid(0);
            header.set_mtime(1_000_000_000);
            header.set_cksum();
            tar.append(&header, io::empty()).unwrap();
        }
        let mut file = tempfile::tempfile().unwrap();
        io::Write::write_all(&mut file, &tar.into_inner().unwrap()).unwrap();
        let into = tempfile::tempdir().unwrap();
        let mut builder = DeltaBuilder::new(into.path(), &kiln_rootfs::EmptyView).unwrap();
        builder.mkdir_all(&TreePath::new("d"), None, 0o755).unwrap();
        let owner = Some((rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw()));
        unpack(&mut builder, &file, "x.tar", &TreePath::new("d"), owner).unwrap();
        assert_eq!(builder.list(&TreePath::root()).unwrap(), [b"d"]);
        assert_eq!(
            builder.list(&TreePath::new("d")).unwrap(),
            [b"f".to_vec(), b"g".into(), b"h".into(), b"l".into()]
        );
        let inode = |path| builder.stat(&TreePath::new(path)).unwrap().unwrap().inode;
        assert_eq!(inode("d/f"), inode("d/h"));
    }
}
