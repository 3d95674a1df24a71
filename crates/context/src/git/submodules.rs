//! Submodules, and theirs: fetched by their commits, with addresses relative to the repository above them. Their `.git`
//! folders lie where git puts them, in the `modules` folder of the repository above.

use std::fs;
use std::path::{Component, Path};

use gix::bstr::{BStr, BString, ByteSlice as _};
use gix::index::entry::Mode;

use super::repository::{Repository, words};
use super::{GitAddress, GitRequest, PullMethod, Remote, Revision, checkout};

/// Deeper than this, they go round in a circle.
const DEEPEST: usize = 16;

/// Checks out the submodules of the repository whose files are in `directory`.
pub(super) fn check_out(repository: &Repository<'_>, directory: &Path) -> Result<(), String> {
    below(repository, directory, 0)
}

fn below(repository: &Repository<'_>, directory: &Path, depth: usize) -> Result<(), String> {
    let index = repository.inner.open_index().map_err(|error| words(&error))?;
    let links: Vec<(BString, String)> = index
        .entries()
        .iter()
        .filter(|entry| entry.mode == Mode::COMMIT)
        .map(|entry| (entry.path(&index).to_owned(), entry.id.to_string()))
        .collect();
    if links.is_empty() {
        return Ok(());
    }
    if depth >= DEEPEST {
        return Err(format!("its submodules have submodules of their own, more than {DEEPEST} deep"));
    }
    let modules = repository.inner.open_modules_file().map_err(|error| words(&error))?;
    for (path, commit) in links {
        let named = modules.as_ref().and_then(|file| {
            let name = file.name_by_path(path.as_bstr())?;
            let url = file.config().string_by("submodule", Some(name), "url")?;
            Some((name.to_owned(), url.to_string()))
        });
        let Some((name, url)) = named else {
            // A link without an entry in .gitmodules is an empty directory for git, too.
            repository.warn(format!("the submodule {path} has no address in .gitmodules: it stays empty"));
            continue;
        };
        one(repository, directory, &path, &commit, &name, &url, depth)
            .map_err(|why| format!("its submodule {path}: {why}"))?;
    }
    Ok(())
}

fn one(
    parent: &Repository<'_>,
    directory: &Path,
    path: &BString,
    commit: &str,
    name: &BString,
    url: &str,
    depth: usize,
) -> Result<(), String> {
    gix::validate::submodule::name(name.as_bstr()).map_err(|error| error.to_string())?;
    let address = address(&parent.request.address, url)?;
    let same = same_server(&parent.request.address.remote, &address.remote);
    let authorization =
        address.authorization().or_else(|| parent.request.authorization.clone().filter(|_| same));
    let request = GitRequest {
        address,
        options: parent.request.options.clone(),
        authorization,
        ssh: parent.request.ssh.clone(),
    };
    let into = place(directory, path.as_bstr())?;
    let repository = Repository::init(&request, &into, parent.access)?;
    let at = |why: String| format!("{}: {why}", request.address.remote);
    let revision = Revision { commit: commit.to_owned(), tag: None, reference: None };
    repository.fetch(&revision).map_err(at)?;
    checkout::work_tree(&repository, &revision).map_err(at)?;
    below(&repository, &into, depth + 1)?;
    parent.progress.add(repository.progress.bytes());
    drop(repository);
    let git_dir = parent.inner.git_dir();
    absorb(git_dir, &into, name.as_bstr())
        .map_err(|error| format!("could not move its .git folder: {error}"))?;
    if parent.request.options.detached {
        super::kept::name_submodule(git_dir, name.as_bstr(), &request.address.remote.to_string())
            .map_err(|error| format!("could not name it in .git/config: {error}"))?;
    }
    Ok(())
}

/// Where a submodule's files go: a directory, reached without a symbolic link.
fn place(directory: &Path, path: &BStr) -> Result<std::path::PathBuf, String> {
    let mut place = directory.to_owned();
    for part in checkout::path_of(path).components() {
        let Component::Normal(part) = part else {
            return Err("its path leads out of the repository".to_owned());
        };
        place.push(part);
        match fs::symlink_metadata(&place) {
            Ok(meta) if meta.is_dir() => {}
            Ok(_) => return Err(format!("{} is no directory", place.display())),
            Err(_) => fs::create_dir(&place).map_err(|error| format!("{}: {error}", place.display()))?,
        }
    }
    Ok(place)
}

/// Moves `.git` to the repository above and leaves a file that says where it is.
fn absorb(git_dir: &Path, directory: &Path, name: &BStr) -> std::io::Result<()> {
    let modules = git_dir.join("modules").join(checkout::path_of(name));
    fs::create_dir_all(modules.parent().unwrap_or(git_dir))?;
    fs::rename(directory.join(".git"), &modules)?;
    let to_modules = relative(directory, &modules);
    fs::write(directory.join(".git"), format!("gitdir: {}\n", to_modules.display()))?;
    let config = modules.join("config");
    let text = fs::read_to_string(&config)?;
    let to_files = relative(&modules, directory);
    fs::write(config, format!("{text}[core]\n\tworktree = {}\n", to_files.display()))
}

/// The way from one directory to another; both are absolute.
fn relative(from: &Path, to: &Path) -> std::path::PathBuf {
    let (mut from, mut to) = (from.components().peekable(), to.components().peekable());
    while let (Some(a), Some(b)) = (from.peek(), to.peek())
        && a == b
    {
        from.next();
        to.next();
    }
    from.map(|_| Component::ParentDir).chain(to).collect()
}

/// The address of a submodule. One that begins with `./` or `../` is relative to the repository above.
fn address(parent: &GitAddress, url: &str) -> Result<GitAddress, String> {
    if !url.starts_with("./") && !url.starts_with("../") {
        if !super::is_git(url) && !url.starts_with("https://") && !url.starts_with("http://") {
            return Err(format!("{:?} is no address that can be fetched from", without_login(url)));
        }
        // Its own sharp signs and question marks are part of the path.
        let url = url.replace('#', "%23").replace('?', "%3F");
        return GitAddress::parse(&url, PullMethod::Https);
    }
    let mut address =
        GitAddress { sub_dir: None, reference: None, commit: None, checksum: None, ..parent.clone() };
    match &mut address.remote {
        Remote::Web(remote) => {
            let path = joined(remote.path(), url).ok_or_else(|| too_far(url))?;
            remote.set_path(&path);
        }
        Remote::Ssh { path, .. } => *path = joined(path, url).ok_or_else(|| too_far(url))?,
    }
    Ok(address)
}

fn too_far(url: &str) -> String {
    format!("its address {url:?} leads above the server's root")
}

fn joined(base: &str, relative: &str) -> Option<String> {
    let mut parts: Vec<&str> = base.split('/').filter(|part| !part.is_empty()).collect();
    for part in relative.split('/').filter(|part| !part.is_empty() && *part != ".") {
        if part == ".." {
            parts.pop()?;
        } else {
            parts.push(part);
        }
    }
    let root = if base.starts_with('/') { "/" } else { "" };
    Some(format!("{root}{}", parts.join("/")))
}

fn same_server(one: &Remote, other: &Remote) -> bool {
    match (one, other) {
        (Remote::Web(one), Remote::Web(other)) => one.origin() == other.origin(),
        _ => false,
    }
}

fn without_login(url: &str) -> String {
    match url.split_once("://") {
        Some((scheme, rest)) => {
            let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
            let host = authority.rsplit('@').next().unwrap_or_default();
            format!("{scheme}://{host}/{path}")
        }
        None => url.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn relative_addresses_are_those_of_the_repository_above() {
        let of = |parent: &str, url: &str| {
            let parent = GitAddress::parse(parent, PullMethod::Https).unwrap();
            address(&parent, url).map(|address| address.remote.to_string())
        };
        assert_eq!(of("https://h/o/r.git", "../lib.git").unwrap(), "https://h/o/lib.git");
        assert_eq!(of("https://h/o/r.git", "./sub").unwrap(), "https://h/o/r.git/sub");
        assert_eq!(of("https://h/o/r.git", "../../x/lib").unwrap(), "https://h/x/lib");
        assert_eq!(of("git@h:o/r.git", "../lib.git").unwrap(), "ssh://git@h/o/lib.git");
        assert_eq!(of("ssh://git@h:22/o/r.git", "../lib.git").unwrap(), "ssh://git@h/o/lib.git");
        assert_eq!(of("https://h/r.git", "https://t@other/x").unwrap(), "https://other/x");
        for bad in ["file:///etc", "/etc", "ext::sh -c x", "--upload-pack=x"] {
            assert!(of("https://h/r.git", bad).is_err(), "{bad}");
        }
        assert!(of("https://h/r.git", "../../../x").is_err());
    }

    #[test]
    fn the_way_between_directories_is_found() {
        assert_eq!(
            relative(Path::new("/c/a/b"), Path::new("/c/.git/modules/m")),
            Path::new("../../.git/modules/m")
        );
    }
}
