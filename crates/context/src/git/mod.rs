//! Repositories as contexts and as sources of ADD. gix speaks git's protocol and writes objects, index and working tree;
//! transports, logins, submodules and the choice of a revision are ours. No program is started: neither git nor ssh.
//!
//! A fetch is shallow unless more is asked for. What the server gets to see of our logins is decided by [`web::WebLogin`]
//! (one origin) and [`SshKeys`].

mod address;
mod checkout;
mod kept;
mod line;
mod repository;
mod ssh;
mod submodules;
mod web;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use kiln_cloud::Environment;
use kiln_oci::Redacted;

pub use address::{GitAddress, PullMethod, Remote, checksum, is_commit, is_git};
pub use ssh::SshKeys;

use crate::{Access, ContextError, Event, Pin};

/// `--git`, worked out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GitOptions {
    /// `branch`: a branch or a tag, where the address names none.
    pub branch: Option<String>,
    /// `single-branch=false`: fetch all branches and tags.
    pub all_branches: bool,
    /// `depth`: how many commits of each branch; 0 is all of them. Without it, one.
    pub depth: Option<u32>,
    /// `recurse-submodules`.
    pub submodules: bool,
    /// `insecure-skip-tls`.
    pub insecure_skip_tls: bool,
    /// HEAD is to be the commit, and `.git` to look as BuildKit leaves it for ADD.
    pub detached: bool,
}

impl GitOptions {
    /// Reads pairs of key and value. Fails with a sentence about the one that is wrong.
    pub fn read<'a>(pairs: impl IntoIterator<Item = (&'a str, &'a str)>) -> Result<Self, String> {
        let mut options = Self::default();
        for (key, value) in pairs {
            let switch = || match value {
                "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
                "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
                _ => Err(format!("--git {key}={value}: it is true or false")),
            };
            match key {
                "branch" => options.branch = (!value.is_empty()).then(|| value.to_owned()),
                "single-branch" => options.all_branches = !switch()?,
                "depth" => {
                    let depth = value.parse();
                    options.depth =
                        Some(depth.map_err(|_| format!("--git depth={value}: it is a number of commits"))?);
                }
                "recurse-submodules" => options.submodules = switch()?,
                "insecure-skip-tls" => options.insecure_skip_tls = switch()?,
                other => {
                    return Err(format!(
                        "--git {other}: there are branch, single-branch, depth, recurse-submodules and \
                         insecure-skip-tls"
                    ));
                }
            }
        }
        Ok(options)
    }
}

/// What is fetched, and with which keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GitRequest {
    /// The repository and the revision.
    pub address: GitAddress,
    /// How much of it.
    pub options: GitOptions,
    /// The `Authorization` header for the server in the address, and for no other.
    pub authorization: Option<Redacted<String>>,
    /// Keys for SSH servers.
    pub ssh: SshKeys,
}

/// A commit, and how it was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Revision {
    /// The commit's name; for an annotated tag, the commit that it tags.
    pub commit: String,
    /// The annotated tag's own object.
    pub tag: Option<String>,
    /// The full name of the branch or tag; none for a revision that was named by its commit.
    pub reference: Option<String>,
}

impl GitRequest {
    /// A request as the command line means it: the login in the address, or `GIT_TOKEN`, or `GIT_USERNAME` and
    /// `GIT_PASSWORD`; keys from the usual places.
    pub fn of_environment(address: GitAddress, options: GitOptions, environment: &Environment) -> Self {
        let mut address = address;
        if address.reference.is_none() && address.commit.is_none() {
            address.reference.clone_from(&options.branch);
        }
        let authorization = address.authorization().or_else(|| login_of(environment));
        Self { address, options, authorization, ssh: SshKeys::usual(environment) }
    }
}

impl GitRequest {
    /// What `revision` is, and where it was, as BuildKit names it: the reference is part of the address, and an annotated
    /// tag is its own object, which names the commit.
    pub fn pin(&self, revision: &Revision) -> Pin {
        let reference = self.address.reference.as_ref().or(self.address.commit.as_ref());
        let reference = reference.map_or_else(String::new, |name| format!("#{name}"));
        let object = revision.tag.as_ref().unwrap_or(&revision.commit);
        Pin {
            uri: format!("{}{reference}", self.address.remote),
            algorithm: if object.len() == 64 { "sha256" } else { "sha1" },
            digest: object.clone(),
        }
    }
}

/// The login that the environment has for repositories.
pub fn login_of(environment: &Environment) -> Option<Redacted<String>> {
    if let Some(token) = environment.get("GIT_TOKEN") {
        return Some(basic(token, ""));
    }
    let user = environment.get("GIT_USERNAME")?;
    Some(basic(user, environment.get("GIT_PASSWORD").unwrap_or_default()))
}

/// An `Authorization` header.
pub fn basic(user: &str, password: &str) -> Redacted<String> {
    Redacted::new(format!("Basic {}", STANDARD.encode(format!("{user}:{password}"))))
}

impl GitAddress {
    /// The login that stands in it, as a header.
    pub fn authorization(&self) -> Option<Redacted<String>> {
        self.login.as_ref().map(|(user, password)| basic(user.expose(), password.expose()))
    }

    /// Host and port as they stand in it, if it is spoken to by HTTP.
    pub fn web_host(&self) -> Option<String> {
        match &self.remote {
            Remote::Web(url) => {
                let host = url.host_str().unwrap_or_default();
                Some(url.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}")))
            }
            Remote::Ssh { .. } => None,
        }
    }
}

/// Finds the commit of a request, by asking the server unless a commit is named. `scratch` must be there.
pub fn resolve(request: &GitRequest, scratch: &Path, access: &Access) -> Result<Revision, ContextError> {
    let fail = |why: String| failed(request, why);
    if let Some(named) = named_commit(&request.address) {
        return checked(request, Revision { commit: named, tag: None, reference: None });
    }
    let directory = ::tempfile::tempdir_in(scratch).map_err(|error| fail(error.to_string()))?;
    let repository = repository::Repository::init(request, directory.path(), access).map_err(fail)?;
    checked(request, repository.resolve().map_err(fail)?)
}

/// Fetches `revision` into the directory `into`, which is empty, and checks it out there. Gives what was received, in
/// bytes.
pub fn check_out(
    request: &GitRequest,
    revision: &Revision,
    into: &Path,
    access: &Access,
) -> Result<u64, ContextError> {
    let fail = |why: String| failed(request, why);
    let repository = repository::Repository::init(request, into, access).map_err(fail)?;
    repository.fetch(revision).map_err(fail)?;
    checkout::work_tree(&repository, revision).map_err(fail)?;
    if request.options.submodules {
        submodules::check_out(&repository, into).map_err(fail)?;
    } else if std::fs::symlink_metadata(into.join(".gitmodules")).is_ok() {
        (access.on)(Event::Warning(format!(
            "{} has submodules, which were not fetched: give --git recurse-submodules=true if they are needed",
            request.address
        )));
    }
    checkout::report_pointers(&repository, into).map_err(fail)?;
    if request.options.detached {
        kept::settle(&repository.inner).map_err(fail)?;
    }
    Ok(repository.progress.bytes())
}

/// The folder `folder` of what was checked out into `directory`: a directory that no symbolic link leads to.
pub fn folder(directory: &Path, folder: &str) -> Result<PathBuf, String> {
    let mut path = directory.to_owned();
    for part in folder.split('/') {
        path.push(part);
        match std::fs::symlink_metadata(&path) {
            Ok(meta) if meta.is_dir() => {}
            Ok(_) => return Err(format!("{folder} in it is no directory")),
            Err(_) => return Err(format!("it has no folder {folder}")),
        }
    }
    Ok(path)
}

/// The commit that an address names, in the fragment or as the whole checksum.
fn named_commit(address: &GitAddress) -> Option<String> {
    let reference = address.reference.as_deref().filter(|reference| is_commit(reference));
    address.commit.as_deref().or(reference).map(str::to_ascii_lowercase)
}

/// Compares with `--checksum`: the commit's name or the tag object's begins with it.
fn checked(request: &GitRequest, revision: Revision) -> Result<Revision, ContextError> {
    let Some(checksum) = &request.address.checksum else { return Ok(revision) };
    let names = || [Some(&revision.commit), revision.tag.as_ref()].into_iter().flatten();
    if names().any(|name| name.starts_with(checksum.as_str())) {
        return Ok(revision);
    }
    let found = names().cloned().collect::<Vec<_>>().join(" or ");
    Err(failed(request, format!("its checksum was to be {checksum}, but it is {found}")))
}

fn failed(request: &GitRequest, why: String) -> ContextError {
    ContextError::Fetch { context: request.address.to_string(), why }
}

/// Counts what comes, tells of it, and stops a transfer that nobody wants any more.
#[derive(Clone)]
pub(crate) struct Progress {
    source: String,
    access: Access,
    bytes: Arc<AtomicU64>,
}

/// News come after so many bytes.
const EACH: u64 = 1 << 20;

impl Progress {
    pub(crate) fn new(source: String, access: &Access) -> Self {
        Self { source, access: access.clone(), bytes: Arc::default() }
    }

    pub(crate) fn add(&self, bytes: u64) {
        let before = self.bytes.fetch_add(bytes, Ordering::Relaxed);
        if before / EACH != (before + bytes) / EACH {
            let source = self.source.clone();
            (self.access.on)(Event::Received { source, bytes: before + bytes, of: None });
        }
    }

    pub(crate) fn source(&self) -> &str {
        &self.source
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    pub(crate) fn check(&self) -> io::Result<()> {
        if (self.access.cancelled)() { Err(io::Error::other("the build was cancelled")) } else { Ok(()) }
    }
}
