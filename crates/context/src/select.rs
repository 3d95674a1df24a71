//! Source words become files: wildcards, links, `--parents` and `--exclude`, as BuildKit reads them.

use kiln_dockerfile::{Ignore, go_match};
use kiln_rootfs::{Kind, Meta, RootfsError, TreePath, View, resolve};

use crate::ContextError;

/// How words are read.
#[derive(Clone, Debug, Default)]
pub struct Selector {
    /// The source words.
    pub words: Vec<String>,
    /// `--parents`.
    pub parents: bool,
    /// `--exclude`.
    pub excludes: Vec<String>,
    /// What is searched, for messages: `the build context`.
    pub place: String,
}

/// One thing to copy.
#[derive(Clone, Debug)]
pub struct Item {
    /// Where it is, links followed.
    pub source: TreePath,
    /// The last component of the word (or of what its wildcard matched), as written.
    pub name: Vec<u8>,
    /// What it is.
    pub meta: Meta,
    /// With `--parents`: what of the directory is meant.
    include: Option<Ignore>,
    exclude: Ignore,
}

/// What [`walk`] comes across.
#[derive(Debug)]
pub struct Visit<'a> {
    /// Below the item; the root for the item itself.
    pub path: &'a TreePath,
    /// Where it is.
    pub source: &'a TreePath,
    /// What it is.
    pub meta: &'a Meta,
    /// Whether it was asked for itself; if not, it lies on the way to something that was.
    pub chosen: bool,
}

/// The files that the words mean, in the order of the words; what a wildcard matches, by name.
///
/// A wildcard that matches nothing is nothing.
pub fn select(view: &dyn View, selector: &Selector) -> Result<Vec<Item>, ContextError> {
    let mut items = Vec::new();
    for word in &selector.words {
        if selector.parents {
            with_parents(view, word, selector, &mut items)?;
        } else {
            plain(view, word, selector, &mut items)?;
        }
    }
    Ok(items)
}

fn patterns<'p>(patterns: impl IntoIterator<Item = &'p str> + Clone) -> Result<Ignore, ContextError> {
    let first = patterns.clone().into_iter().next().unwrap_or_default().to_owned();
    Ignore::from_patterns(patterns).map_err(|_| ContextError::Pattern(first))
}

fn plain(
    view: &dyn View,
    word: &str,
    selector: &Selector,
    items: &mut Vec<Item>,
) -> Result<(), ContextError> {
    let exclude = patterns(selector.excludes.iter().map(String::as_str))?;
    let clean = TreePath::new(word);
    if !clean.components().any(has_wildcard) {
        // A backslash means something in a pattern only.
        let source = resolve(view, &clean)?;
        let meta = view.stat(&source)?.ok_or_else(|| missing(view, word, selector))?;
        let name = clean.name().to_vec();
        items.push(Item { source, name, meta, include: None, exclude });
        return Ok(());
    }
    globbed(view, &clean, word, &mut |path, source, meta| {
        // A link that leads to nothing is as good as a name of nothing.
        let meta = meta.ok_or_else(|| missing(view, path.to_string().trim_start_matches('/'), selector))?;
        items.push(Item {
            source,
            name: path.name().to_vec(),
            meta,
            include: None,
            exclude: exclude.clone(),
        });
        Ok(())
    })
}

/// Hears of what a wildcard matched: the path as it was matched, where that is once links are followed, and what is there.
type Found<'f> = dyn FnMut(&TreePath, TreePath, Option<Meta>) -> Result<(), ContextError> + 'f;

/// Finds what a path with wildcards matches. The directory above the first wildcard has to be there.
fn globbed(view: &dyn View, path: &TreePath, word: &str, found: &mut Found<'_>) -> Result<(), ContextError> {
    let parts: Vec<&[u8]> = path.components().collect();
    let wild = parts.iter().position(|part| has_wildcard(part)).unwrap_or(parts.len());
    let fixed = parts[..wild].iter().fold(TreePath::root(), |path, part| path.join(part));
    let pattern = String::from_utf8_lossy(&parts[wild..].join(&b'/')).into_owned();
    go_match(&pattern, "").map_err(|_| ContextError::Pattern(word.to_owned()))?;
    let base = resolve(view, &fixed)?;
    let Some(meta) = view.stat(&base)? else {
        let (directory, word) = (fixed.to_string(), word.to_owned());
        return Err(ContextError::NoDirectory { word, directory });
    };
    if !meta.is_dir() {
        return Ok(());
    }
    matching(view, &base, &TreePath::root(), &pattern, &mut |path| {
        let source = resolve(view, path)?;
        let meta = view.stat(&source)?;
        found(path, source, meta)
    })
}

/// Walks `base` for what the pattern matches; what is below a match is not looked at.
fn matching(
    view: &dyn View,
    base: &TreePath,
    below: &TreePath,
    pattern: &str,
    found: &mut dyn FnMut(&TreePath) -> Result<(), ContextError>,
) -> Result<(), ContextError> {
    let depth = below.components().count() + 1;
    for name in view.list(&base.join_path(below))? {
        let relative = below.join(&name);
        let text = String::from_utf8_lossy(relative.as_bytes());
        let path = base.join_path(&relative);
        if go_match(pattern, &text).unwrap_or(false) {
            found(&path)?;
        } else if depth < pattern.split('/').count() && view.stat(&path)?.is_some_and(|meta| meta.is_dir()) {
            matching(view, base, &relative, pattern, found)?;
        }
    }
    Ok(())
}

/// What `--parents` means by a word: `pivot/./pattern`, where the pivot may hold wildcards as any source does.
fn with_parents(
    view: &dyn View,
    word: &str,
    selector: &Selector,
    items: &mut Vec<Item>,
) -> Result<(), ContextError> {
    let (pivot, pattern) = word.split_once("/./").unwrap_or(("/", word));
    let (pivot, pattern) = (TreePath::new(pivot), TreePath::new(pattern));
    let wild = pivot.components().chain(pattern.components()).any(has_wildcard);
    let include = patterns([String::from_utf8_lossy(pattern.as_bytes()).as_ref()])?;
    let exclude = patterns(selector.excludes.iter().map(String::as_str))?;
    let mut item = |source: TreePath, meta: Meta| {
        let name = source.name().to_vec();
        items.push(Item { name, source, meta, include: Some(include.clone()), exclude: exclude.clone() });
    };
    if pivot.components().any(has_wildcard) {
        return globbed(view, &pivot, word, &mut |_, source, meta| {
            if let Some(meta) = meta {
                item(source, meta);
            }
            Ok(())
        });
    }
    let source = resolve(view, &pivot)?;
    let meta = view.stat(&source)?.ok_or_else(|| missing(view, word, selector))?;
    if !wild {
        // What is named must be there without following a link, and be more than the pivot itself.
        let there = source == pivot && !pattern.is_root() && is_there(view, &source, &pattern)?;
        if !there {
            return Err(missing(view, word, selector));
        }
    }
    item(source, meta);
    let excludes = !wild && !selector.excludes.is_empty();
    if excludes
        && let Some(item) = items.last()
        && !holds_something(view, item)?
    {
        let (word, place) = (word.to_owned(), selector.place.clone());
        return Err(ContextError::Excluded { word, place });
    }
    Ok(())
}

/// Whether there is something at `path` below `base`, with directories above it that are no links.
fn is_there(view: &dyn View, base: &TreePath, path: &TreePath) -> Result<bool, ContextError> {
    let mut here = base.clone();
    let mut above = Some(Kind::Directory);
    for name in path.components() {
        if above != Some(Kind::Directory) {
            return Ok(false);
        }
        here = here.join(name);
        above = view.stat(&here)?.map(|meta| meta.kind);
    }
    Ok(above.is_some())
}

/// Whether anything is left of what was asked for once `--exclude` is applied.
fn holds_something(view: &dyn View, item: &Item) -> Result<bool, ContextError> {
    let mut found = false;
    walk(view, item, &mut |visit| {
        found |= visit.chosen;
        Ok(())
    })?;
    Ok(found)
}

fn has_wildcard(part: &[u8]) -> bool {
    let mut escaped = false;
    part.iter().any(|byte| {
        let wild = !escaped && matches!(byte, b'*' | b'?' | b'[');
        escaped = !escaped && *byte == b'\\';
        wild
    })
}

fn missing(view: &dyn View, word: &str, selector: &Selector) -> ContextError {
    let path = TreePath::new(word);
    let parent = path.parent().unwrap_or_default();
    let names = resolve(view, &parent).and_then(|parent| view.list(&parent)).unwrap_or_default();
    let names: Vec<String> = names.into_iter().filter_map(|name| String::from_utf8(name).ok()).collect();
    let wanted = String::from_utf8_lossy(path.name()).into_owned();
    let near = kiln_dockerfile::nearest(&wanted, names.iter().map(String::as_str));
    let near = near.map(|name| parent.join(name.as_bytes()).to_string().trim_start_matches('/').to_owned());
    ContextError::Missing { word: word.to_owned(), place: selector.place.clone(), near }
}

/// Visits an item and what is below it, a directory before what is in it, names by their bytes. Directories above
/// something included are visited first, and those with nothing included in them not at all.
pub fn walk(
    view: &dyn View,
    item: &Item,
    visit: &mut dyn FnMut(&Visit<'_>) -> Result<(), ContextError>,
) -> Result<(), ContextError> {
    let mut pending: Vec<(TreePath, TreePath, Meta)> = Vec::new();
    let mut walker = Walker { view, item, visit };
    walker.step(&TreePath::root(), &item.source, &item.meta, &mut pending)
}

struct Walker<'a, 'v> {
    view: &'a dyn View,
    item: &'a Item,
    visit: &'v mut dyn FnMut(&Visit<'_>) -> Result<(), ContextError>,
}

impl Walker<'_, '_> {
    /// `pending` are the directories above that are visited only if something in them is.
    fn step(
        &mut self,
        path: &TreePath,
        source: &TreePath,
        meta: &Meta,
        pending: &mut Vec<(TreePath, TreePath, Meta)>,
    ) -> Result<(), ContextError> {
        let text = String::from_utf8_lossy(path.as_bytes());
        let top = path.is_root();
        let excluded = !top && self.item.exclude.is_ignored(&text, false);
        let included = match &self.item.include {
            None => true,
            Some(include) => !top && include.is_ignored(&text, false),
        };
        if included && !excluded {
            for (path, source, meta) in pending.drain(..) {
                (self.visit)(&Visit { path: &path, source: &source, meta: &meta, chosen: false })?;
            }
            (self.visit)(&Visit { path, source, meta, chosen: true })?;
        } else if meta.is_dir() {
            if excluded && self.item.exclude.can_skip_dir(&text) {
                return Ok(());
            }
            pending.push((path.clone(), source.clone(), meta.clone()));
        } else {
            return Ok(());
        }
        if meta.is_dir() {
            for name in self.view.list(source)? {
                let child = source.join(&name);
                if let Some(meta) = self.view.stat(&child)? {
                    self.step(&path.join(&name), &child, &meta, pending)?;
                }
            }
            if pending.last().is_some_and(|(last, ..)| last == path) {
                pending.pop();
            }
        }
        Ok(())
    }
}

impl From<RootfsError> for Box<ContextError> {
    fn from(error: RootfsError) -> Self {
        Self::new(error.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kiln_rootfs::DirectoryView;

    fn tree() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for name in ["a/b/x.txt", "a/b/y.md", "a/c/x.txt", "arr[0].txt", "..data/f", "top.txt"] {
            let path = dir.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, name).unwrap();
        }
        std::os::unix::fs::symlink("a/b", dir.path().join("link")).unwrap();
        std::os::unix::fs::symlink("..data/f", dir.path().join("f")).unwrap();
        dir
    }

    fn chosen(words: &[&str], parents: bool, excludes: &[&str]) -> Result<Vec<String>, ContextError> {
        let dir = tree();
        let view = DirectoryView::open(dir.path()).unwrap();
        let texts = |list: &[&str]| list.iter().map(|text| (*text).to_owned()).collect();
        let selector =
            Selector { words: texts(words), parents, excludes: texts(excludes), place: "here".into() };
        let mut found = Vec::new();
        for item in select(&view, &selector)? {
            walk(&view, &item, &mut |visit| {
                let name = String::from_utf8_lossy(&item.name).into_owned();
                found.push(format!("{name}:{}", visit.path));
                Ok(())
            })?;
        }
        Ok(found)
    }

    #[test]
    fn wildcards_match_within_a_component() {
        assert_eq!(chosen(&["*.txt"], false, &[]).unwrap(), ["arr[0].txt:/", "top.txt:/"]);
        assert_eq!(chosen(&["a/*/x.txt"], false, &[]).unwrap(), ["x.txt:/", "x.txt:/"]);
        assert_eq!(chosen(&["arr[[]0].txt"], false, &[]).unwrap(), ["arr[0].txt:/"]);
        assert_eq!(chosen(&["nope*", "top.txt"], false, &[]).unwrap(), ["top.txt:/"]);
        assert!(chosen(&["nope*"], false, &[]).unwrap().is_empty());
    }

    #[test]
    fn a_named_link_is_followed_and_a_name_may_begin_with_dots() {
        assert_eq!(chosen(&["link"], false, &[]).unwrap(), ["link:/", "link:/x.txt", "link:/y.md"]);
        assert_eq!(chosen(&["f"], false, &[]).unwrap(), ["f:/"]);
        assert_eq!(chosen(&["..data/f"], false, &[]).unwrap(), ["f:/"]);
    }

    #[test]
    fn excludes_are_relative_to_the_copied_directory() {
        assert_eq!(chosen(&["a"], false, &["*/*.txt"]).unwrap(), ["a:/", "a:/b", "a:/b/y.md", "a:/c"]);
        assert_eq!(
            chosen(&["a"], false, &["b", "!b/y.md"]).unwrap(),
            ["a:/", "a:/b", "a:/b/y.md", "a:/c", "a:/c/x.txt"]
        );
    }

    #[test]
    fn parents_are_kept_below_the_pivot() {
        assert_eq!(chosen(&["a/b/x.txt"], true, &[]).unwrap(), [":/", ":/a", ":/a/b", ":/a/b/x.txt"]);
        assert_eq!(
            chosen(&["a/./*/x.txt"], true, &[]).unwrap(),
            ["a:/", "a:/b", "a:/b/x.txt", "a:/c", "a:/c/x.txt"]
        );
        assert!(chosen(&["a/nope"], true, &[]).is_err());
        assert!(chosen(&["."], true, &[]).is_err());
        assert!(chosen(&["link/x.txt"], true, &[]).is_err());
        assert!(chosen(&["link/./x.txt"], true, &[]).is_err());
        assert_eq!(chosen(&["link"], true, &[]).unwrap(), [":/", ":/link"]);
        assert_eq!(chosen(&["*/./b/x.txt"], true, &[]).unwrap(), ["a:/", "a:/b", "a:/b/x.txt"]);
    }

    #[test]
    fn what_is_asked_for_with_its_parents_must_not_be_excluded_whole() {
        assert!(chosen(&["a/b"], true, &["a/b/*.md"]).is_ok());
        let error = chosen(&["a/b/x.txt"], true, &["a/b"]).unwrap_err().to_string();
        assert!(error.contains("--exclude") && error.contains("a/b/x.txt"), "{error}");
        assert!(chosen(&["a/*/x.txt"], true, &["a"]).unwrap().is_empty());
    }

    #[test]
    fn a_backslash_is_part_of_a_name_where_nothing_is_a_pattern() {
        assert!(chosen(&["top\\.txt"], false, &[]).is_err());
        assert_eq!(chosen(&["to[p]\\.txt"], false, &[]).unwrap(), ["top.txt:/"]);
    }

    #[test]
    fn what_is_missing_is_said_with_what_is_near() {
        let error = chosen(&["top.tx"], false, &[]).unwrap_err().to_string();
        assert!(error.contains("top.txt") && error.contains("here"), "{error}");
    }
}
