//! Where copied things go: the destination's rules, links followed inside the tree.

use std::collections::HashMap;
use std::fs::File;
use std::sync::Arc;

use kiln_context::{Item, Visit, walk};
use kiln_rootfs::{DeltaBuilder, Kind, Meta, Timestamp, TreePath, View, resolve};

use super::CopyError;
use super::mode::Mode;

/// A copy in the making.
pub(super) struct Placing<'a> {
    pub(super) builder: DeltaBuilder<'a>,
    pub(super) owner: Option<(u32, u32)>,
    pub(super) mode: Option<Mode>,
    /// Absolute, with a slash at its end where it is a directory.
    pub(super) destination: String,
    /// Whether files may stay where they are: nobody but a layer reads them, and their tree stays as it is.
    pub(super) lends: bool,
}

/// What a walk over a copied directory has come across.
#[derive(Default)]
struct Walk {
    /// The first name of each file with several.
    links: HashMap<(u64, u64), TreePath>,
    /// The directories that the walk is in, with the times that they shall have.
    open: Vec<(TreePath, Timestamp)>,
}

impl Placing<'_> {
    /// Makes a directory and those above it, as far as they are missing; they belong to whom `--chown` says.
    fn make_directory(&mut self, path: &TreePath) -> Result<TreePath, CopyError> {
        let path = resolve(&self.builder, path)?;
        let mode = self.mode.as_ref().map_or(0o755, Mode::of_parents);
        if let Some(meta) = self.builder.stat(&path)?
            && !meta.is_dir()
        {
            return Err(CopyError::Wrong(format!("{path} is in the way: it is no directory")));
        }
        self.builder.mkdir_all(&path, self.owner, mode)?;
        Ok(path)
    }

    /// The destination, once the directories above it are there.
    fn target(&mut self) -> Result<TreePath, CopyError> {
        let whole = TreePath::new(&self.destination);
        if self.destination.ends_with('/') {
            return self.make_directory(&whole);
        }
        self.make_directory(&whole.parent().unwrap_or_default())?;
        Ok(resolve(&self.builder, &whole)?)
    }

    /// Where something that is no directory goes: into the destination if that is one, else in its place.
    fn target_of_file(&mut self, name: &[u8]) -> Result<TreePath, CopyError> {
        let target = self.target()?;
        let is_directory = |at: &TreePath, builder: &DeltaBuilder<'_>| -> Result<bool, CopyError> {
            Ok(builder.stat(at)?.is_some_and(|meta| meta.is_dir()))
        };
        if !is_directory(&target, &self.builder)? {
            self.make_directory(&target.parent().unwrap_or_default())?;
            return Ok(target);
        }
        let inside = target.join(name);
        if is_directory(&inside, &self.builder)? {
            return Err(CopyError::Wrong(format!("cannot replace the directory {inside} with a file")));
        }
        Ok(inside)
    }

    /// Owner and mode as the flags say.
    fn dressed(&self, meta: &Meta) -> Meta {
        let mut meta = meta.clone();
        if let Some(owner) = self.owner {
            (meta.uid, meta.gid) = owner;
        }
        if let Some(mode) = &self.mode
            && meta.kind != Kind::Symlink
        {
            meta.mode = mode.apply(meta.mode, meta.is_dir());
        }
        meta
    }

    /// Copies one file that is in no tree.
    pub(super) fn file(&mut self, name: &TreePath, content: &File, meta: &Meta) -> Result<(), CopyError> {
        let target = self.target_of_file(name.name())?;
        self.builder.put_file(&target, content, &self.dressed(meta), &[])?;
        Ok(())
    }

    /// Copies an item: a directory's content, or a file.
    pub(super) fn item(&mut self, view: &Arc<dyn View>, item: &Item) -> Result<(), CopyError> {
        let target = if item.meta.is_dir() {
            let target = self.target()?;
            self.make_directory(&target)?
        } else {
            self.target_of_file(&item.name)?
        };
        self.tree(view, item, &target)
    }

    /// Copies all that is in a tree, less what is excluded, into the destination, which stays as it is itself.
    pub(super) fn content(&mut self, view: &Arc<dyn View>, excludes: &[String]) -> Result<(), CopyError> {
        let target = self.target()?;
        let target = self.make_directory(&target)?;
        let selector = kiln_context::Selector {
            words: vec!["/".to_owned()],
            excludes: excludes.to_vec(),
            ..Default::default()
        };
        for item in kiln_context::select(view.as_ref(), &selector)? {
            self.tree(view, &item, &target)?;
        }
        Ok(())
    }

    /// Unpacks an archive into the destination, which is a directory whatever its name looks like.
    pub(super) fn archive(&mut self, file: &File, name: &str) -> Result<(), CopyError> {
        // `--chmod` means nothing to what an archive holds, nor to the directories made for it.
        let mode = self.mode.take();
        let target = self.make_directory(&TreePath::new(&self.destination));
        self.mode = mode;
        super::archive::unpack(&mut self.builder, file, name, &target?, self.owner)
    }

    fn tree(&mut self, view: &Arc<dyn View>, item: &Item, target: &TreePath) -> Result<(), CopyError> {
        let mut walk_of = Walk::default();
        let mut failed = None;
        let walked = walk(view.as_ref(), item, &mut |visit| {
            if failed.is_none() {
                failed = self.visit(view, visit, target, &mut walk_of).err();
            }
            Ok(())
        });
        match failed {
            Some(error) => return Err(error),
            None => walked?,
        }
        self.leave(&mut walk_of, None)?;
        // The root of a tree has no time of its own: nobody gave it one.
        if item.meta.is_dir() && !item.source.is_root() {
            self.set_time(target, item.meta.mtime)?;
        }
        Ok(())
    }

    /// Gives directories that are left behind their times back: what was put into them has moved those.
    fn leave(&mut self, walk_of: &mut Walk, next: Option<&TreePath>) -> Result<(), CopyError> {
        while let Some((path, _)) = walk_of.open.last()
            && !next.is_some_and(|next| next.starts_with(path))
        {
            let Some((path, mtime)) = walk_of.open.pop() else { break };
            self.set_time(&path, mtime)?;
        }
        Ok(())
    }

    fn set_time(&mut self, path: &TreePath, mtime: Timestamp) -> Result<(), CopyError> {
        let Some(mut meta) = self.builder.stat(path)? else { return Ok(()) };
        if meta.mtime == mtime {
            return Ok(());
        }
        meta.mtime = mtime;
        let xattrs = self.builder.xattrs(path)?;
        Ok(self.builder.put_dir(path, &meta, &xattrs)?)
    }

    fn visit(
        &mut self,
        view: &Arc<dyn View>,
        visit: &Visit<'_>,
        target: &TreePath,
        walk_of: &mut Walk,
    ) -> Result<(), CopyError> {
        let path = target.join_path(visit.path);
        self.leave(walk_of, Some(&path))?;
        let mut meta = self.dressed(visit.meta);
        if visit.path.is_root() && meta.is_dir() {
            // The destination keeps its owner and mode.
            return Ok(());
        }
        let there = self.builder.stat(&path)?;
        if meta.is_dir() {
            if there.is_some_and(|there| !there.is_dir()) {
                return Err(CopyError::Wrong(format!(
                    "cannot copy the directory {} over the file {path}",
                    visit.source
                )));
            }
            let xattrs = view.xattrs(visit.source)?;
            self.builder.put_dir(&path, &meta, &xattrs)?;
            if visit.chosen {
                walk_of.open.push((path, meta.mtime));
            }
            return Ok(());
        }
        if there.is_some_and(|there| there.is_dir()) {
            return Err(CopyError::Wrong(format!(
                "cannot replace the directory {path} with the file {}",
                visit.source
            )));
        }
        if visit.meta.kind == Kind::File && visit.meta.nlink > 1 {
            if let Some(first) = walk_of.links.get(&visit.meta.inode) {
                return Ok(self.builder.hardlink(&path, first)?);
            }
            walk_of.links.insert(visit.meta.inode, path.clone());
        }
        let xattrs = view.xattrs(visit.source)?;
        match meta.kind {
            Kind::File if self.lends => {
                self.builder.lend_file(&path, view, visit.source, &meta, &xattrs)?;
            }
            Kind::File => self.builder.put_file(&path, &view.open(visit.source)?, &meta, &xattrs)?,
            Kind::Symlink => {
                let link = meta.link.clone().unwrap_or_default();
                self.builder.put_symlink(&path, &link, &meta, &xattrs)?;
            }
            // Nobody listens on a copy: it is an empty file.
            Kind::Socket => {
                (meta.kind, meta.size) = (Kind::File, 0);
                self.builder.put_content(&path, &mut std::io::empty(), &meta, &xattrs)?;
            }
            _ => self.builder.put_special(&path, &meta, &xattrs)?,
        }
        Ok(())
    }
}
