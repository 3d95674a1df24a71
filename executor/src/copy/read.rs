//! What of the build context is part of a build: BuildKit has the client send only what instructions name. A wildcard that
//! matches nothing is looked for in a directory that isn't there, then, unless something else reads of that directory.

use kiln_context::{Selector, select};
use kiln_dockerfile::{MountKind, go_match};
use kiln_plan::{BuildPlan, CopySource, Op, TreeSource};
use kiln_rootfs::TreePath;

use super::{CopyError, Sources};

/// The words by which the steps of a plan read the context.
pub(crate) fn words_of_context(plan: &BuildPlan) -> Vec<String> {
    let mut words = Vec::new();
    for step in plan.stages.iter().flat_map(|stage| &stage.steps) {
        match &step.op {
            Op::Copy(copy) if copy.from == TreeSource::Context => {
                words.extend(copy.sources.iter().filter_map(|source| match source {
                    CopySource::Path(word) => Some(word.clone()),
                    CopySource::Http(_) | CopySource::Git(_) => None,
                }));
            }
            Op::Run(run) => {
                let binds = run.mounts.iter().filter(|mount| {
                    mount.mount.kind == MountKind::Bind && mount.source == TreeSource::Context
                });
                words.extend(binds.map(|mount| mount.mount.source.clone()));
            }
            Op::Copy(_) | Op::MakeDirectory(_) => {}
        }
    }
    words
}

/// Fails where the wildcard `word`, which matches nothing, is looked for in a directory of which nothing is read.
pub(super) fn check(word: &str, sources: &Sources) -> Result<(), CopyError> {
    let Some(words) = &sources.read else { return Ok(()) };
    let path = TreePath::new(word);
    let fixed: Vec<&[u8]> = path.components().take_while(|part| !is_wild(part)).collect();
    if fixed.is_empty() || words.iter().any(|other| other != word && reads_of(other, &fixed, sources)) {
        return Ok(());
    }
    let directory = String::from_utf8_lossy(&fixed.join(&b'/')).into_owned();
    Err(CopyError::Wrong(format!(
        "{word} matches nothing in {}, and nothing else of {directory} is part of the build",
        sources.place
    )))
}

fn is_wild(part: &[u8]) -> bool {
    part.iter().any(|byte| matches!(byte, b'*' | b'?' | b'['))
}

/// Whether a word means something at, above or below a directory.
fn reads_of(word: &str, directory: &[&[u8]], sources: &Sources) -> bool {
    let path = TreePath::new(word.replace("/./", "/"));
    let same = |part: &[u8], name: &[u8]| {
        let (pattern, name) = (String::from_utf8_lossy(part), String::from_utf8_lossy(name));
        pattern == name || pattern == "**" || go_match(&pattern, &name).unwrap_or(false)
    };
    if !path.components().zip(directory).all(|(part, name)| same(part, name)) {
        return false;
    }
    let selector =
        Selector { words: vec![word.to_owned()], place: sources.place.clone(), ..Selector::default() };
    path.components().count() <= directory.len()
        || word.contains("**")
        || select(sources.tree.as_ref(), &selector).is_ok_and(|items| !items.is_empty())
}
