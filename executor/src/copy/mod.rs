//! COPY, ADD and WORKDIR: from chosen files to a delta on top of a tree that is only looked at. Destinations, owners and
//! modes follow BuildKit, file by file.

mod archive;
mod mode;
mod owner;
mod place;
mod read;

use std::collections::HashMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use kiln_context::{ContextError, Item, Selector, is_archive, select};
use kiln_plan::{CopySource, CopyStep, DirectoryStep};
use kiln_rootfs::{
    Delta, DeltaBuilder, DirectoryView, EmptyView, Interest, Kind, Meta, RootfsError, Timestamp, TreePath,
    View, resolve,
};

use mode::Mode;
use place::Placing;

pub(crate) use owner::text;
pub(crate) use read::words_of_context;

/// Why files could not be copied.
#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    /// The sources.
    #[error(transparent)]
    Context(#[from] ContextError),
    /// The tree.
    #[error(transparent)]
    Rootfs(#[from] RootfsError),
    /// A flag or a destination, said in full.
    #[error("{0}")]
    Wrong(String),
    /// A file of ours.
    #[error("could not {action} {path}: {source}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// On which file.
        path: String,
        /// Why it failed.
        source: std::io::Error,
    },
}

/// A file that was downloaded for ADD.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Downloaded {
    /// Where it lies.
    pub path: PathBuf,
    /// The name that it gets in a directory.
    pub name: String,
    /// Last-Modified, or the time of the build, in seconds since 1970.
    pub modified: i64,
}

/// What a copy reads.
pub(crate) struct Sources {
    /// Where paths are looked up.
    pub tree: Arc<dyn View>,
    /// What it is, for messages: `the build context`.
    pub place: String,
    /// What was downloaded, by URL.
    pub downloaded: HashMap<String, Downloaded>,
    /// A repository's files, by address.
    pub repositories: HashMap<String, PathBuf>,
    /// Room for files in the making; removed by the caller.
    pub scratch: PathBuf,
    /// The time of the build, seconds since 1970: the time of heredoc files.
    pub now: i64,
    /// All that the build reads of the same context, as words; `None` where it is no context.
    pub read: Option<Vec<String>>,
    /// Whether nobody but the layer reads what is copied, and what it is copied from stays as it is until the build is over:
    /// then long files need not be copied.
    pub lends: bool,
}

/// What came of a copy.
pub(crate) struct Copied {
    /// The files.
    pub(crate) delta: Delta,
    /// Whether nothing below was looked at: [`Delta::changes`] is then asked with [`EmptyView`].
    pub(crate) linked: bool,
    /// What is odd about it, as sentences.
    pub(crate) warnings: Vec<String>,
}

/// Makes the delta of a COPY or ADD in the directory `into`, on top of `below`.
///
/// With `--link` (and without `--chmod`), nothing of `below` is looked at but for names of owners.
pub(crate) fn copy(
    step: &CopyStep,
    sources: &Sources,
    below: &dyn View,
    into: &Path,
) -> Result<Copied, CopyError> {
    let linked = step.link && step.chmod.is_none();
    let empty = EmptyView;
    let parent: &dyn View = if linked { &empty } else { below };
    let owner = step.chown.as_deref().map(|chown| owner::lookup(below, chown));
    let mode = step.chmod.as_deref().map(Mode::parse).transpose().map_err(CopyError::Wrong)?;
    let builder = DeltaBuilder::new(into, parent)?;
    let ids = owner.as_ref().map(|owner| owner.ids);
    let mut warnings = owner.map_or_else(Vec::new, |owner| owner.unknown);
    let destination = step.destination.clone();
    let mut placing = Placing { builder, owner: ids, mode, destination, lends: sources.lends };
    for source in &step.sources {
        match source {
            CopySource::Path(word) => {
                if !paths(step, word, sources, &mut placing)? {
                    read::check(word, sources)?;
                    warnings.push(format!("{word} matches nothing in {}", sources.place));
                }
            }
            CopySource::Http(url) => download(step, url, sources, &mut placing)?,
            CopySource::Git(address) => repository(step, address, sources, &mut placing)?,
        }
    }
    for (number, file) in step.inline.iter().enumerate() {
        let path = sources.scratch.join(format!("heredoc-{number}"));
        let doing = |action, source| CopyError::Io { action, path: file.name.clone(), source };
        std::fs::write(&path, &file.content).map_err(|error| doing("write", error))?;
        let content = File::open(&path).map_err(|error| doing("open", error))?;
        let mut meta = Meta::new(Kind::File, 0o644);
        meta.size = file.content.len() as u64;
        meta.mtime = Timestamp { secs: sources.now, nanos: 0 };
        placing.file(&TreePath::new(&file.name), &content, &meta)?;
    }
    Ok(Copied { delta: placing.builder.finish()?, linked, warnings })
}

/// Copies what a word means. Says whether that is anything.
fn paths(
    step: &CopyStep,
    word: &str,
    sources: &Sources,
    placing: &mut Placing<'_>,
) -> Result<bool, CopyError> {
    let selector = Selector {
        words: vec![word.to_owned()],
        parents: step.parents,
        excludes: step.excludes.clone(),
        place: sources.place.clone(),
    };
    let view = &sources.tree;
    let items = select(view.as_ref(), &selector)?;
    let unpacks = match &step.add {
        Some(add) => add.unpack.unwrap_or(true),
        None => false,
    };
    for item in &items {
        if unpacks && item.meta.kind == Kind::File {
            let file = view.open(&item.source)?;
            if is_archive(&file) {
                placing.archive(&file, &String::from_utf8_lossy(&item.name))?;
                continue;
            }
        }
        placing.item(view, item)?;
    }
    Ok(!items.is_empty())
}

fn download(
    step: &CopyStep,
    url: &str,
    sources: &Sources,
    placing: &mut Placing<'_>,
) -> Result<(), CopyError> {
    let found = sources.downloaded.get(url);
    let found = found
        .ok_or_else(|| CopyError::Wrong(format!("{url} was not downloaded: this is a mistake in Kiln")))?;
    let doing = |source| CopyError::Io { action: "open", path: found.path.display().to_string(), source };
    let file = File::open(&found.path).map_err(doing)?;
    if step.add.as_ref().is_some_and(|add| add.unpack == Some(true)) && is_archive(&file) {
        return placing.archive(&file, url);
    }
    let file = File::open(&found.path).map_err(doing)?;
    let mut meta = Meta::new(Kind::File, 0o600);
    meta.size = file.metadata().map_err(doing)?.len();
    meta.mtime = Timestamp { secs: found.modified, nanos: 0 };
    placing.file(&TreePath::new(&found.name), &file, &meta)
}

fn repository(
    step: &CopyStep,
    address: &str,
    sources: &Sources,
    placing: &mut Placing<'_>,
) -> Result<(), CopyError> {
    let found = sources.repositories.get(address);
    let found = found
        .ok_or_else(|| CopyError::Wrong(format!("{address} was not fetched: this is a mistake in Kiln")))?;
    let view: Arc<dyn View> = Arc::new(DirectoryView::open(found)?);
    placing.content(&view, &step.excludes)
}

/// Makes the delta of a WORKDIR in the directory `into`: the directories that are not there yet, owned by USER.
pub(crate) fn make_directory(
    step: &DirectoryStep,
    below: &dyn View,
    into: &Path,
) -> Result<Delta, CopyError> {
    let owner = (!step.owner.is_empty()).then(|| owner::lookup(below, &step.owner).ids);
    let mut builder = DeltaBuilder::new(into, below)?;
    let path = resolve(&builder, &TreePath::new(&step.path))?;
    builder.mkdir_all(&path, owner, 0o755)?;
    Ok(builder.finish()?)
}

/// Adds to `interest` what a copy out of `tree`, which messages call `place`, may look at in the tree below: for making a
/// skeleton of a tree that is nowhere on disk. Nothing is downloaded for that.
pub(crate) fn interest(
    step: &CopyStep,
    tree: &Arc<dyn View>,
    place: &str,
    interest: &mut Interest,
) -> Result<(), CopyError> {
    let destination = TreePath::new(&step.destination);
    for path in [&destination, &TreePath::new("etc/passwd"), &TreePath::new("etc/group")] {
        interest.path(path);
    }
    for source in &step.sources {
        match source {
            CopySource::Path(word) => {
                let selector = Selector {
                    words: vec![word.clone()],
                    parents: step.parents,
                    excludes: step.excludes.clone(),
                    place: place.to_owned(),
                };
                // What is missing is an error when it is copied.
                let Ok(items) = select(tree.as_ref(), &selector) else { continue };
                for item in items {
                    item_interest(step, tree, &item, interest)?;
                }
            }
            CopySource::Http(_) if step.add.as_ref().is_some_and(|add| add.unpack == Some(true)) => {
                interest.all(&destination);
            }
            CopySource::Http(url) => {
                interest.path(&destination.join(crate::remote::file_name(url).as_bytes()));
            }
            CopySource::Git(_) => interest.all(&destination),
        }
    }
    for file in &step.inline {
        interest.path(&destination.join(file.name.as_bytes()));
    }
    Ok(())
}

fn item_interest(
    step: &CopyStep,
    tree: &Arc<dyn View>,
    item: &Item,
    interest: &mut Interest,
) -> Result<(), CopyError> {
    let destination = TreePath::new(&step.destination);
    if item.meta.is_dir() {
        interest.copy(&destination, tree, &item.source);
        return Ok(());
    }
    interest.path(&destination.join(&item.name));
    if step.add.is_some() && item.meta.kind == Kind::File {
        for path in archive::paths(&tree.open(&item.source)?, &destination) {
            interest.path(&path);
        }
    }
    Ok(())
}
