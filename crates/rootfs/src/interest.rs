//! What a COPY may look at in a tree that is nowhere on disk: single paths, and places that will hold what another tree
//! holds. Asked path by path, so that it needs no list of the copied files.

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::{Kind, RootfsError, TreePath, View};

/// The paths of a tree that somebody may look at.
#[derive(Clone, Default)]
pub struct Interest {
    points: BTreeSet<TreePath>,
    areas: Vec<Area>,
}

/// A place that something is copied to.
#[derive(Clone)]
struct Area {
    at: TreePath,
    /// What will lie there: that tree, from that path on. `None` stands for anything.
    like: Option<(Arc<dyn View>, TreePath)>,
}

/// Where systems keep what their first directories are links to today: looked at as well, which spares a second pass.
const MERGED: [&[u8]; 7] = [b"bin", b"sbin", b"lib", b"lib32", b"lib64", b"libx32", b"libo32"];

impl Interest {
    /// Wants `path` and the directories above it.
    pub fn path(&mut self, path: &TreePath) {
        self.points.extend(path.ancestors());
        self.points.insert(path.clone());
        if path.components().next().is_some_and(|first| MERGED.contains(&first)) {
            let merged = TreePath::new("usr").join_path(path);
            self.points.extend(merged.ancestors());
            self.points.insert(merged);
        }
    }

    /// Wants, below `at`, whatever has the same name as something in `view` below `from`.
    pub fn copy(&mut self, at: &TreePath, view: &Arc<dyn View>, from: &TreePath) {
        self.path(at);
        self.add(Area { at: at.clone(), like: Some((Arc::clone(view), from.clone())) });
        if at.components().next().is_some_and(|first| MERGED.contains(&first)) {
            let at = TreePath::new("usr").join_path(at);
            self.add(Area { at, like: Some((Arc::clone(view), from.clone())) });
        }
    }

    /// Wants all that is below `at`: nobody knows yet what will be copied there.
    pub fn all(&mut self, at: &TreePath) {
        self.path(at);
        self.add(Area { at: at.clone(), like: None });
    }

    fn add(&mut self, area: Area) {
        if !self.areas.iter().any(|known| known.is(&area)) {
            self.areas.push(area);
        }
    }

    /// Whether `path` is wanted.
    pub(crate) fn wants(&self, path: &TreePath) -> Result<bool, RootfsError> {
        if self.points.contains(path) {
            return Ok(true);
        }
        for area in &self.areas {
            let Some(rest) = path.strip(&area.at) else { continue };
            match &area.like {
                None => return Ok(true),
                Some((view, from)) if view.stat(&from.join_path(&rest))?.is_some() => return Ok(true),
                Some(_) => {}
            }
        }
        Ok(false)
    }

    /// Single paths.
    pub(crate) fn points(&self) -> impl Iterator<Item = &TreePath> {
        self.points.iter()
    }

    /// Places with an unknown number of paths.
    pub(crate) fn places(&self) -> impl Iterator<Item = &TreePath> {
        self.areas.iter().map(|area| &area.at)
    }

    /// Follows the links in `view` that lie on wanted paths, `links` being all that were found, and wants what they lead
    /// to. Gives whether that was news.
    pub(crate) fn follow(&mut self, view: &dyn View, links: &[TreePath]) -> Result<bool, RootfsError> {
        let before = (self.points.len(), self.areas.len());
        for point in self.points.clone() {
            let real = crate::resolve(view, &point)?;
            self.points.extend(real.ancestors());
            self.points.insert(real);
        }
        for area in self.areas.clone() {
            let at = crate::resolve(view, &area.at)?;
            self.path_of(&at);
            self.add(Area { at, like: area.like.clone() });
            for link in links {
                let Some(rest) = link.strip(&area.at) else { continue };
                let real = crate::resolve(view, link)?;
                match &area.like {
                    // An archive can have files below a name that is a link here.
                    None => self.everything(&real),
                    Some((like, from)) => {
                        let from = from.join_path(&rest);
                        if like.stat(&from)?.is_some_and(|meta| meta.kind == Kind::Directory) {
                            self.add(Area { at: real.clone(), like: Some((Arc::clone(like), from)) });
                        }
                    }
                }
                self.path_of(&real);
            }
        }
        Ok(before != (self.points.len(), self.areas.len()))
    }

    fn everything(&mut self, at: &TreePath) {
        let covers = |area: &Area| area.like.is_none() && at.starts_with(&area.at);
        if !self.areas.iter().any(covers) {
            self.areas.push(Area { at: at.clone(), like: None });
        }
    }

    fn path_of(&mut self, path: &TreePath) {
        self.points.extend(path.ancestors());
        self.points.insert(path.clone());
    }
}

impl Area {
    fn is(&self, other: &Self) -> bool {
        self.at == other.at
            && match (&self.like, &other.like) {
                (None, None) => true,
                (Some((one, from)), Some((two, other))) => Arc::ptr_eq(one, two) && from == other,
                _ => false,
            }
    }
}
