//! Where copied things go: the destination's rules, links followed inside the tree.

use std::collections::HashMap;
use std::fs::File;

use kiln_context::{Item, Visit, walk};
use kiln_rootfs::{DeltaBuilder, Kind, Meta, TreePath, View, resolve};

use super::CopyError;
use super::mode::Mode;

/// A copy in the making.
pub(super) struct Placing<'a> {
    pub(super) builder: DeltaBuilder<'a>,
    pub(super) owner: Option<(u32, u32)>,
    pub(super) mode: Option<Mode>,
    /// Absolute, with a slash at its end where it is a directory.
    pub(super) destination: String,
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
        self.builder.mkdir_all(&path, self.owner.unwrap_or((0, 0)), mode)?;
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
    pub(super) fn item(&mut self, view: &dyn View, item: &Item) -> Result<(), CopyError> {
        let target = if item.meta.is_dir() {
            let target = self.target()?;
            self.make_directory(&target)?
        } else {
            self.target_of_file(&item.name)?
        };
        self.tree(view, item, &target)
    }

    /// Copies all that is in a tree into the destination, which stays as it is itself.
    pub(super) fn content(&mut self, view: &dyn View) -> Result<(), CopyError> {
        let target = self.target()?;
        let target = self.make_directory(&target)?;
        let before = self.builder.stat(&target)?;
        let selector = kiln_context::Selector { words: vec!["/".to_owned()], ..Default::default() };
        for item in kiln_context::select(view, &selector)? {
            self.tree(view, &item, &target)?;
        }
        if let Some(before) = before {
            let xattrs = self.builder.xattrs(&target)?;
            self.builder.put_dir(&target, &before, &xattrs)?;
        }
        Ok(())
    }

    fn tree(&mut self, view: &dyn View, item: &Item, target: &TreePath) -> Result<(), CopyError> {
        let mut links: HashMap<(u64, u64), TreePath> = HashMap::new();
        let mut failed = None;
        let walked = walk(view, item, &mut |visit| {
            if failed.is_none() {
                failed = self.visit(view, visit, target, &mut links).err();
            }
            Ok(())
        });
        match failed {
            Some(error) => Err(error),
            None => Ok(walked?),
        }
    }

    fn visit(
        &mut self,
        view: &dyn View,
        visit: &Visit<'_>,
        target: &TreePath,
        links: &mut HashMap<(u64, u64), TreePath>,
    ) -> Result<(), CopyError> {
        let path = target.join_path(visit.path);
        let meta = self.dressed(visit.meta);
        if visit.path.is_root() && meta.is_dir() {
            return self.top(&path, &meta);
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
            return Ok(self.builder.put_dir(&path, &meta, &xattrs)?);
        }
        if there.is_some_and(|there| there.is_dir()) {
            return Err(CopyError::Wrong(format!(
                "cannot replace the directory {path} with the file {}",
                visit.source
            )));
        }
        if visit.meta.kind == Kind::File && visit.meta.nlink > 1 {
            if let Some(first) = links.get(&visit.meta.inode) {
                return Ok(self.builder.hardlink(&path, first)?);
            }
            links.insert(visit.meta.inode, path.clone());
        }
        let xattrs = view.xattrs(visit.source)?;
        match meta.kind {
            Kind::File => self.builder.put_file(&path, &view.open(visit.source)?, &meta, &xattrs)?,
            Kind::Symlink => {
                let link = meta.link.clone().unwrap_or_default();
                self.builder.put_symlink(&path, &link, &meta, &xattrs)?;
            }
            Kind::Socket => {}
            _ => self.builder.put_special(&path, &meta, &xattrs)?,
        }
        Ok(())
    }

    /// The copied directory itself: the destination keeps its owner and mode, and takes over the time.
    fn top(&mut self, path: &TreePath, source: &Meta) -> Result<(), CopyError> {
        let Some(mut meta) = self.builder.stat(path)? else { return Ok(()) };
        meta.mtime = source.mtime;
        let xattrs = self.builder.xattrs(path)?;
        Ok(self.builder.put_dir(path, &meta, &xattrs)?)
    }
}
