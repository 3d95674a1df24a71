//! Directories stacked as overlayfs stacks them, looked at without mounting anything.

use std::collections::{BTreeSet, VecDeque};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::fs::{FileType, OFlags, RawDir};

use crate::delta::{disk, failed};
use crate::view::Xattrs;
use crate::{Kind, Meta, Root, RootfsError, TreePath, View};

/// The attributes by which overlayfs marks a directory that hides what lies below it: a user namespace's, and root's.
pub(crate) const OPAQUE: [&[u8]; 2] = [b"user.overlay.opaque", b"trusted.overlay.opaque"];

/// How many directories are kept open, counting each once per layer that holds it.
const KEPT: usize = 192;

/// A stack of layers in overlayfs' own format.
///
/// Where a directory lies in which layers is remembered for the next question, which is mostly about its neighbour.
pub struct OverlayView {
    layers: Vec<Root>,
    below: Option<Arc<dyn View>>,
    /// The topmost layer changes while it is looked at, so nothing is remembered.
    changing: bool,
    kept: Mutex<VecDeque<(TreePath, Arc<Merged>)>>,
}

/// A directory of the stack: the layers that add to it, top first.
struct Merged {
    parts: Vec<(usize, OwnedFd)>,
    /// Whether the tree below the stack shows through.
    below: bool,
}

/// Where something is.
enum Place {
    /// In this layer, in this directory.
    Layer(usize, Meta),
    /// In the tree below the stack, if anywhere.
    Below,
    /// Nowhere.
    Nowhere,
}

impl OverlayView {
    /// The layers at `paths` on disk, top first. They must not change while the view is used.
    pub fn new(paths: &[PathBuf]) -> Result<Self, RootfsError> {
        Self::on(paths, None)
    }

    /// The layers at `paths` on disk, top first, on top of another tree.
    pub fn on(paths: &[PathBuf], below: Option<Arc<dyn View>>) -> Result<Self, RootfsError> {
        let layers = paths.iter().map(|path| Root::open(Path::new(path))).collect::<Result<_, _>>()?;
        Ok(Self { layers, below, changing: false, kept: Mutex::default() })
    }

    /// The layers at `paths` on disk, top first, of which some may change while the view is used.
    pub fn changing(paths: &[PathBuf]) -> Result<Self, RootfsError> {
        Ok(Self { changing: true, ..Self::new(paths)? })
    }

    /// The parts of the directory `path`; none if it is no directory.
    fn merged(&self, path: &TreePath) -> Result<Arc<Merged>, RootfsError> {
        if !self.changing {
            let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some((_, merged)) = kept.iter().find(|(kept, _)| kept == path) {
                return Ok(Arc::clone(merged));
            }
        }
        let merged = Arc::new(match path.parent() {
            None => self.merged_root()?,
            Some(parent) => Self::merge(&*self.merged(&parent)?, path)
                .map_err(|error| failed("look at", path.as_bytes(), error))?,
        });
        if !self.changing {
            let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
            kept.push_back((path.clone(), Arc::clone(&merged)));
            while kept.len() > 1
                && kept.iter().map(|(_, merged)| merged.parts.len().max(1)).sum::<usize>() > KEPT
            {
                kept.pop_front();
            }
        }
        Ok(merged)
    }

    fn merged_root(&self) -> Result<Merged, RootfsError> {
        let root = TreePath::root();
        let mut merged = Merged { parts: Vec::new(), below: true };
        for (place, layer) in self.layers.iter().enumerate() {
            let handle = layer.directory(&root)?;
            let opaque = disk::is_opaque(&handle, b"").map_err(|error| failed("look at", b"", error))?;
            merged.parts.push((place, handle));
            if opaque {
                merged.below = false;
                break;
            }
        }
        Ok(merged)
    }

    /// The directory `path` out of the one above it.
    fn merge(above: &Merged, path: &TreePath) -> io::Result<Merged> {
        let name = path.name();
        let mut merged = Merged { parts: Vec::new(), below: false };
        for (place, handle) in &above.parts {
            match disk::look(handle, name)? {
                None => {}
                Some(meta) if meta.is_dir() => {
                    let opaque = disk::is_opaque(handle, name)?;
                    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                    let part = rustix::fs::openat(handle, name, flags, rustix::fs::Mode::empty())?;
                    merged.parts.push((*place, part));
                    if opaque {
                        return Ok(merged);
                    }
                }
                // Deleted, or something else that hides what is below.
                Some(_) => return Ok(merged),
            }
        }
        merged.below = above.below;
        Ok(merged)
    }

    /// The topmost layer that has `path`.
    fn find(&self, path: &TreePath) -> Result<Place, RootfsError> {
        let fail = |error| failed("look at", path.as_bytes(), error);
        let Some(parent) = path.parent() else {
            let merged = self.merged(path)?;
            let Some((place, handle)) = merged.parts.first() else { return Ok(Place::Below) };
            return Ok(Place::Layer(*place, disk::look_here(handle).map_err(fail)?));
        };
        let above = self.merged(&parent)?;
        for (place, handle) in &above.parts {
            let Some(mut meta) = disk::look(handle, path.name()).map_err(fail)? else { continue };
            if meta.is_whiteout() {
                return Ok(Place::Nowhere);
            }
            if meta.kind == Kind::Symlink {
                meta.link = Some(disk::read_link(handle, path.name()).map_err(fail)?);
            }
            return Ok(Place::Layer(*place, meta));
        }
        Ok(if above.below { Place::Below } else { Place::Nowhere })
    }

    fn missing(path: &TreePath) -> RootfsError {
        RootfsError::Tree { path: path.clone(), why: "is not there".to_owned() }
    }
}

/// The names in a directory, and whether each is a whiteout.
fn names(handle: impl AsFd) -> io::Result<Vec<(Vec<u8>, bool)>> {
    let opened = disk::open_dir(&handle, b".")?;
    let mut buffer = Vec::with_capacity(32 << 10);
    let mut entries = RawDir::new(&opened, buffer.spare_capacity_mut());
    let mut names = Vec::new();
    while let Some(entry) = entries.next() {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name == b"." || name == b".." {
            continue;
        }
        let maybe = matches!(entry.file_type(), FileType::CharacterDevice | FileType::Unknown);
        let whiteout = maybe && disk::look(&handle, name)?.is_some_and(|meta| meta.is_whiteout());
        names.push((name.to_vec(), whiteout));
    }
    Ok(names)
}

impl View for OverlayView {
    fn stat(&self, path: &TreePath) -> Result<Option<Meta>, RootfsError> {
        match (self.find(path)?, &self.below) {
            (Place::Layer(_, meta), _) => Ok(Some(meta)),
            (Place::Below, Some(below)) => below.stat(path),
            _ => Ok(None),
        }
    }

    fn list(&self, path: &TreePath) -> Result<Vec<Vec<u8>>, RootfsError> {
        let merged = self.merged(path)?;
        let mut found = BTreeSet::new();
        let mut hidden: BTreeSet<Vec<u8>> = BTreeSet::new();
        for (_, handle) in &merged.parts {
            for (name, whiteout) in names(handle).map_err(|error| failed("list", path.as_bytes(), error))? {
                if whiteout && !found.contains(&name) {
                    hidden.insert(name);
                } else if !whiteout && !hidden.contains(&name) {
                    found.insert(name);
                }
            }
        }
        if let (Some(below), true) = (&self.below, merged.below)
            && below.stat(path)?.is_some_and(|meta| meta.is_dir())
        {
            found.extend(below.list(path)?.into_iter().filter(|name| !hidden.contains(name)));
        } else if merged.parts.is_empty() {
            let why = if self.stat(path)?.is_some() { "is no directory" } else { "is not there" };
            return Err(RootfsError::Tree { path: path.clone(), why: why.to_owned() });
        }
        Ok(found.into_iter().collect())
    }

    fn open(&self, path: &TreePath) -> Result<File, RootfsError> {
        match (self.find(path)?, &self.below) {
            (Place::Layer(place, _), _) => self.layers[place].file(path),
            (Place::Below, Some(below)) => below.open(path),
            _ => Err(Self::missing(path)),
        }
    }

    fn xattrs(&self, path: &TreePath) -> Result<Xattrs, RootfsError> {
        match (self.find(path)?, &self.below) {
            (Place::Layer(place, _), _) => {
                let mut found = self.layers[place].xattrs(path)?;
                found.retain(|(name, _)| !is_overlay_attribute(name));
                Ok(found)
            }
            (Place::Below, Some(below)) => below.xattrs(path),
            _ => Err(Self::missing(path)),
        }
    }

    fn real_path(&self, path: &TreePath) -> Result<Option<PathBuf>, RootfsError> {
        match (self.find(path)?, &self.below) {
            (Place::Layer(place, meta), _) if !meta.is_dir() => Ok(Some(self.layers[place].on_disk(path))),
            (Place::Below, Some(below)) => below.real_path(path),
            _ => Ok(None),
        }
    }
}

/// Whether an attribute is overlayfs' own, and so no part of the tree.
pub(crate) fn is_overlay_attribute(name: &[u8]) -> bool {
    name.starts_with(b"user.overlay.") || name.starts_with(b"trusted.overlay.")
}
