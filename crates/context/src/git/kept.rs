//! What ADD's `--keep-git-dir` leaves of `.git`, as BuildKit leaves it: HEAD is the commit itself, the reference that was asked
//! for stands beside it, the remote is named, and a few objects lie each in a file of its own, as git itself keeps them.

use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use gix::bstr::BStr;
use gix::objs::Write as _;
use gix::refs::{FullName, Target};

use super::repository::words;
use super::{GitRequest, Revision};

/// Of fewer objects git makes files; more stay in their pack (`fetch.unpackLimit`).
const UNPACK_LIMIT: usize = 100;

/// The references that are left: HEAD is detached, and a name without a prefix is a branch's, a tag's too.
pub(super) fn references(
    request: &GitRequest,
    revision: &Revision,
    commit: gix::ObjectId,
    tag: gix::ObjectId,
) -> Result<Vec<(FullName, Target)>, String> {
    let name = |text: &str| {
        FullName::try_from(text).map_err(|_| format!("{text:?} can't be the name of a reference"))
    };
    let mut found = Vec::new();
    if let Some(reference) = &revision.reference {
        found.push((name(reference)?, Target::Object(tag)));
        let written = request.address.reference.as_deref().unwrap_or(reference);
        let prefixed =
            ["refs/", "heads/", "tags/", "remotes/"].iter().any(|prefix| written.starts_with(prefix));
        if !prefixed && revision.tag.is_none() && reference.starts_with("refs/tags/") {
            found.push((name(&format!("refs/heads/{written}"))?, Target::Object(commit)));
        }
    }
    found.push((name("HEAD")?, Target::Object(commit)));
    Ok(found)
}

/// The whole text of `.git/config`; `url` is without a login.
pub(super) fn config(url: &str) -> String {
    format!(
        "[core]\n\trepositoryformatversion = 0\n\tfilemode = true\n\tbare = false\n\tlogallrefupdates = true\n\
         [remote \"origin\"]\n\turl = {url}\n\tfetch = +refs/heads/*:refs/remotes/origin/*\n"
    )
}

/// Adds a submodule to `.git/config`.
pub(super) fn name_submodule(git_dir: &Path, name: &BStr, url: &str) -> io::Result<()> {
    let name = name.to_string().replace('\\', "\\\\").replace('"', "\\\"");
    let text = format!("[submodule \"{name}\"]\n\tactive = true\n\turl = {url}\n");
    fs::OpenOptions::new().append(true).open(git_dir.join("config"))?.write_all(text.as_bytes())
}

/// Unpacks few objects, and shuts the packs of many against writing.
pub(super) fn settle(repository: &gix::Repository) -> Result<(), String> {
    let objects = repository.git_dir().join("objects");
    let packs = files_of(&objects.join("pack")).map_err(|error| error.to_string())?;
    let ids: Vec<gix::ObjectId> = repository
        .objects
        .iter()
        .map_err(|error| error.to_string())?
        .take(UNPACK_LIMIT)
        .collect::<Result<_, _>>()
        .map_err(|error| error.to_string())?;
    if ids.len() >= UNPACK_LIMIT {
        return packs.iter().try_for_each(|pack| shut(pack)).map_err(|error| error.to_string());
    }
    let loose = gix::odb::loose::Store::at(&objects, repository.object_hash());
    for id in ids {
        let object = repository.find_object(id).map_err(|error| words(&error))?;
        loose.write_buf(object.kind, &object.data).map_err(|error| error.to_string())?;
    }
    packs.iter().try_for_each(fs::remove_file).map_err(|error| error.to_string())
}

fn files_of(directory: &Path) -> io::Result<Vec<PathBuf>> {
    match fs::read_dir(directory) {
        Ok(entries) => entries.map(|entry| Ok(entry?.path())).collect(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

fn shut(file: &Path) -> io::Result<()> {
    fs::set_permissions(file, fs::Permissions::from_mode(0o444))
}
