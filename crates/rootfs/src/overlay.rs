//! Directories stacked as overlayfs stacks them, looked at without mounting anything.

use std::collections::BTreeSet;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::view::Xattrs;
use crate::{Meta, Root, RootfsError, TreePath, View};

/// The attributes by which overlayfs marks a directory that hides what lies below it: a user namespace's, and root's.
pub(crate) const OPAQUE: [&[u8]; 2] = [b"user.overlay.opaque", b"trusted.overlay.opaque"];

/// A stack of layers in overlayfs' own format.
pub struct OverlayView {
    layers: Vec<Root>,
    below: Option<Arc<dyn View>>,
}

/// What one layer says of a path.
enum Found {
    Nothing,
    /// Deleted here, or hidden by something here.
    Hidden,
    Entry(Meta),
}

impl OverlayView {
    /// The layers at `paths` on disk, top first.
    pub fn new(paths: &[PathBuf]) -> Result<Self, RootfsError> {
        Self::on(paths, None)
    }

    /// The layers at `paths` on disk, top first, on top of another tree.
    pub fn on(paths: &[PathBuf], below: Option<Arc<dyn View>>) -> Result<Self, RootfsError> {
        let layers = paths.iter().map(|path| Root::open(Path::new(path))).collect::<Result<_, _>>()?;
        Ok(Self { layers, below })
    }

    /// What the layer says of `path`. A parent that is no directory here, or an opaque one, hides what is below.
    fn look(layer: &Root, path: &TreePath) -> Result<Found, RootfsError> {
        let mut hidden = false;
        for parent in path.ancestors().iter().skip(1) {
            match layer.stat(parent)? {
                None => return Ok(if hidden { Found::Hidden } else { Found::Nothing }),
                Some(meta) if !meta.is_dir() => return Ok(Found::Hidden),
                Some(_) => hidden |= is_opaque(layer, parent)?,
            }
        }
        Ok(match layer.stat(path)? {
            None if hidden => Found::Hidden,
            None => Found::Nothing,
            Some(meta) if meta.is_whiteout() => Found::Hidden,
            Some(meta) => Found::Entry(meta),
        })
    }

    /// The topmost layer that has `path`, by its place; `None` is nowhere in the stack, and whether the tree below
    /// shows through.
    fn find(&self, path: &TreePath) -> Result<(Option<(usize, Meta)>, bool), RootfsError> {
        for (place, layer) in self.layers.iter().enumerate() {
            match Self::look(layer, path)? {
                Found::Nothing => {}
                Found::Hidden => return Ok((None, false)),
                Found::Entry(meta) => return Ok((Some((place, meta)), true)),
            }
        }
        Ok((None, true))
    }

    fn missing(path: &TreePath) -> RootfsError {
        RootfsError::Tree { path: path.clone(), why: "is not there".to_owned() }
    }
}

fn is_opaque(layer: &Root, path: &TreePath) -> Result<bool, RootfsError> {
    Ok(layer.xattrs(path)?.iter().any(|(name, value)| OPAQUE.contains(&name.as_slice()) && value == b"y"))
}

impl View for OverlayView {
    fn stat(&self, path: &TreePath) -> Result<Option<Meta>, RootfsError> {
        match self.find(path)? {
            (Some((_, meta)), _) => Ok(Some(meta)),
            (None, true) => self.below.as_ref().map_or(Ok(None), |below| below.stat(path)),
            (None, false) => Ok(None),
        }
    }

    fn list(&self, path: &TreePath) -> Result<Vec<Vec<u8>>, RootfsError> {
        let mut names = BTreeSet::new();
        let mut hidden: BTreeSet<Vec<u8>> = BTreeSet::new();
        for layer in &self.layers {
            match Self::look(layer, path)? {
                Found::Nothing => continue,
                Found::Hidden => return Ok(names.into_iter().collect()),
                Found::Entry(meta) if !meta.is_dir() => return Ok(names.into_iter().collect()),
                Found::Entry(_) => {}
            }
            for name in layer.list(path)? {
                if names.contains(&name) || hidden.contains(&name) {
                    continue;
                }
                let whiteout = layer.stat(&path.join(&name))?.is_some_and(|meta| meta.is_whiteout());
                if whiteout {
                    hidden.insert(name)
                } else {
                    names.insert(name)
                };
            }
            if is_opaque(layer, path)? {
                return Ok(names.into_iter().collect());
            }
        }
        if let Some(below) = &self.below
            && below.stat(path)?.is_some_and(|meta| meta.is_dir())
        {
            names.extend(below.list(path)?.into_iter().filter(|name| !hidden.contains(name)));
        }
        Ok(names.into_iter().collect())
    }

    fn open(&self, path: &TreePath) -> Result<File, RootfsError> {
        match (self.find(path)?, &self.below) {
            ((Some((place, _)), _), _) => self.layers[place].file(path),
            ((None, true), Some(below)) => below.open(path),
            _ => Err(Self::missing(path)),
        }
    }

    fn xattrs(&self, path: &TreePath) -> Result<Xattrs, RootfsError> {
        match (self.find(path)?, &self.below) {
            ((Some((place, _)), _), _) => {
                let mut found = self.layers[place].xattrs(path)?;
                found.retain(|(name, _)| !is_overlay_attribute(name));
                Ok(found)
            }
            ((None, true), Some(below)) => below.xattrs(path),
            _ => Err(Self::missing(path)),
        }
    }

    fn real_path(&self, path: &TreePath) -> Result<Option<PathBuf>, RootfsError> {
        match (self.find(path)?, &self.below) {
            ((Some((place, meta)), _), _) if !meta.is_dir() => Ok(Some(self.layers[place].on_disk(path))),
            ((None, true), Some(below)) => below.real_path(path),
            _ => Ok(None),
        }
    }
}

/// Whether an attribute is overlayfs' own, and so no part of the tree.
pub(crate) fn is_overlay_attribute(name: &[u8]) -> bool {
    name.starts_with(b"user.overlay.") || name.starts_with(b"trusted.overlay.")
}
