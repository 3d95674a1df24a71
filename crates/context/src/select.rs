//! Source words become files: wildcards, links, `--parents` and `--exclude`, as BuildKit reads them.

use kiln_dockerfile::{Ignore, go_match};
use kiln_rootfs::{Meta, RootfsError, TreePath, View, resolve};

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
            items.push(with_parents(view, word, selector)?);
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
    let parts: Vec<&[u8]> = clean.components().collect();
    let wild = parts.iter().position(|part| has_wildcard(part));
    let Some(wild) = wild else {
        let source = resolve(view, &unescape(&clean))?;
        let meta = view.stat(&source)?.ok_or_else(|| missing(view, word, selector))?;
        let name = unescape(&clean).name().to_vec();
        items.push(Item { source, name, meta, include: None, exclude });
        return Ok(());
    };
    let fixed = parts[..wild].iter().fold(TreePath::root(), |path, part| path.join(part));
    let pattern = String::from_utf8_lossy(&parts[wild..].join(&b'/')).into_owned();
    go_match(&pattern, "").map_err(|_| ContextError::Pattern(word.to_owned()))?;
    let base = resolve(view, &fixed)?;
    if view.stat(&base)?.is_some_and(|meta| meta.is_dir()) {
        matching(view, &base, &TreePath::root(), &pattern, &mut |path| {
            let source = resolve(view, path)?;
            let Some(meta) = view.stat(&source)? else { return Ok(()) };
            let (name, exclude) = (path.name().to_vec(), exclude.clone());
            items.push(Item { source, name, meta, include: None, exclude });
            Ok(())
        })?;
    }
    Ok(())
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

fn with_parents(view: &dyn View, word: &str, selector: &Selector) -> Result<Item, ContextError> {
    let (pivot, pattern) = word.split_once("/./").unwrap_or(("/", word));
    let pattern = TreePath::new(pattern);
    let source = resolve(view, &TreePath::new(pivot))?;
    let meta = view.stat(&source)?.ok_or_else(|| missing(view, word, selector))?;
    let wild = word.bytes().any(|byte| matches!(byte, b'*' | b'?' | b'['));
    if !wild && view.stat(&resolve(view, &source.join_path(&pattern))?)?.is_none() {
        return Err(missing(view, word, selector));
    }
    let include = if pattern.is_root() {
        None
    } else {
        Some(patterns([String::from_utf8_lossy(pattern.as_bytes()).as_ref()])?)
    };
    let exclude = patterns(selector.excludes.iter().map(String::as_str))?;
    Ok(Item { name: source.name().to_vec(), source, meta, include, exclude })
}

fn has_wildcard(part: &[u8]) -> bool {
    let mut escaped = false;
    part.iter().any(|byte| {
        let wild = !escaped && matches!(byte, b'*' | b'?' | b'[');
        escaped = !escaped && *byte == b'\\';
        wild
    })
}

fn unescape(path: &TreePath) -> TreePath {
    let mut text = Vec::new();
    let mut bytes = path.as_bytes().iter();
    while let Some(byte) = bytes.next() {
        match byte {
            b'\\' => text.extend(bytes.next()),
            byte => text.push(*byte),
        }
    }
    TreePath::new(text)
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
    }

    #[test]
    fn what_is_missing_is_said_with_what_is_near() {
        let error = chosen(&["top.tx"], false, &[]).unwrap_err().to_string();
        assert!(error.contains("top.txt") && error.contains("here"), "{error}");
    }
}
