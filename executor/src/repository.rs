//! ADD of a repository: its revision is looked up once, for the key, and that commit is what is checked out.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use kiln_context::git::{
    GitAddress, GitOptions, GitRequest, PullMethod, Remote, Revision, SshKeys, check_out, checksum, folder,
    login_of, resolve,
};
use kiln_context::{Access, Pin, Place};
use kiln_oci::{Hasher, Redacted};
use kiln_plan::{ContentQuestion, CopyStep};

use crate::error::BuildError;
use crate::event::Event;
use crate::planning::blocking;
use crate::session::Session;

/// The revisions that addresses were found to be, by the address as it is written.
#[derive(Default)]
pub(crate) struct Repositories(Mutex<HashMap<String, (Revision, Pin)>>);

impl Repositories {
    /// The commits that were used, for provenance.
    pub(crate) fn pins(&self) -> Vec<Pin> {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.values().map(|(_, pin)| pin.clone()).collect()
    }
}

/// The digest of what an address means now, for a key: the commit, and the tag object that names it.
pub(crate) async fn digest(
    session: &Arc<Session>,
    question: &ContentQuestion,
) -> Result<[u8; 32], BuildError> {
    let Some(text) = question.words.first().cloned() else { return Ok([0; 32]) };
    let session = Arc::clone(session);
    let revision = blocking(move || {
        let request = request(&session, &text, None)?;
        revision(&session, &text, &request)
    })
    .await?;
    let mut hasher = Hasher::sha256();
    hasher.update(b"git commit ");
    hasher.update(revision.commit.as_bytes());
    hasher.update(revision.tag.as_deref().unwrap_or_default().as_bytes());
    let mut bytes = [0; 32];
    bytes.copy_from_slice(hasher.finish().as_bytes());
    Ok(bytes)
}

/// Checks out what `text` means, for `step`. Gives the directory whose content is copied.
pub(crate) fn files(session: &Session, text: &str, step: &CopyStep) -> Result<PathBuf, BuildError> {
    let add = step.add.as_ref();
    let mut request = request(session, text, add.and_then(|add| add.checksum.as_deref()))?;
    let address = request.address.to_string();
    let wrong = |why: &str| BuildError::other(format!("ADD {address}: {why}"));
    let keep = match (add.and_then(|add| add.keep_git_dir), request.address.keep_git_dir) {
        (Some(flag), Some(query)) if flag != query => {
            return Err(wrong("--keep-git-dir says something else than keep-git-dir in the address"));
        }
        (flag, query) => flag.or(query).unwrap_or(false),
    };
    let found = revision(session, text, &request)?;
    request.options.detached = keep;
    let into = tempfile::tempdir_in(session.directory("repositories")?).map_err(BuildError::other)?.keep();
    check_out(&request, &found, &into, &session.access).map_err(BuildError::other)?;
    if let Some(name) = &request.address.sub_dir {
        return folder(&into, name).map_err(|why| wrong(&why));
    }
    if !keep {
        std::fs::remove_dir_all(into.join(".git")).map_err(|error| wrong(&error.to_string()))?;
    }
    Ok(into)
}

fn revision(session: &Session, text: &str, request: &GitRequest) -> Result<Revision, BuildError> {
    let known = &session.repositories.0;
    let found =
        known.lock().unwrap_or_else(PoisonError::into_inner).get(text).map(|(found, _)| found.clone());
    let scratch = session.directory("repositories")?;
    if let Some(found) = found
        && request.address.checksum.is_none()
    {
        return Ok(found);
    }
    let found = resolve(request, &scratch, &session.access).map_err(BuildError::other)?;
    session.tell(Event::Note(format!("{} is commit {}", request.address, found.commit)));
    // Who came first decides: the key and the files are of one commit.
    let mut known = known.lock().unwrap_or_else(PoisonError::into_inner);
    let first =
        known.entry(text.to_owned()).or_insert_with(|| (found.clone(), request.pin(&found))).0.clone();
    if first.commit == found.commit { Ok(found) } else { Ok(first) }
}

fn request(session: &Session, text: &str, wanted: Option<&str>) -> Result<GitRequest, BuildError> {
    let wrong = |why: String| {
        let shown = text.split_once("://").map_or(text, |(_, rest)| rest.rsplit('@').next().unwrap_or(rest));
        BuildError::other(format!("ADD {shown}: {why}"))
    };
    let method = match session.access.environment.get("GIT_PULL_METHOD") {
        Some("http") => PullMethod::Http,
        _ => PullMethod::Https,
    };
    let mut address = GitAddress::parse(text, method).map_err(wrong)?;
    if let Some(wanted) = wanted {
        let wanted = checksum(wanted).map_err(wrong)?;
        if address.checksum.as_ref().is_some_and(|other| *other != wanted) {
            return Err(wrong("--checksum and the checksum in the address differ".to_owned()));
        }
        address.checksum = Some(wanted);
    }
    let options = GitOptions { submodules: address.submodules.unwrap_or(true), ..GitOptions::default() };
    let authorization = address.authorization().or_else(|| login(session, &address));
    let mut ssh = SshKeys::usual(&session.access.environment);
    if let Some(agent) = session.request.ssh.get("default") {
        ssh.agent = Some(agent.clone());
    }
    Ok(GitRequest { address, options, authorization, ssh })
}

/// The login for an address in a Dockerfile: secrets as BuildKit names them. The environment's own goes only to servers
/// that the command line names, because anybody may have written the Dockerfile.
fn login(session: &Session, address: &GitAddress) -> Option<Redacted<String>> {
    let host = address.web_host()?;
    let secret = |name: &str| {
        let secret = session.request.secrets.get(name)?;
        Some(String::from_utf8_lossy(secret.value.expose()).trim().to_owned())
    };
    for suffix in [format!(".{host}"), String::new()] {
        if let Some(header) = secret(&format!("GIT_AUTH_HEADER{suffix}")) {
            return Some(Redacted::new(header));
        }
        if let Some(token) = secret(&format!("GIT_AUTH_TOKEN{suffix}")) {
            return Some(kiln_context::git::basic("x-access-token", &token));
        }
    }
    let request = &session.request;
    let places = std::iter::once(&request.context).chain(request.named_contexts.values());
    let named = places.map(|context| &context.place).any(|place| match place {
        Place::Git(context) => same_origin(&context.address.remote, &address.remote),
        _ => false,
    });
    named.then(|| login_of(&session.access.environment)).flatten()
}

fn same_origin(one: &Remote, other: &Remote) -> bool {
    match (one, other) {
        (Remote::Web(one), Remote::Web(other)) => one.origin() == other.origin(),
        _ => false,
    }
}

/// What contexts and repositories need of the outside.
pub(crate) fn access(
    request: &crate::BuildRequest,
    registry: &kiln_registry::Registry,
    on: &crate::event::Observer,
    cancel: &kiln_sandbox::Cancel,
    runtime: &tokio::runtime::Handle,
) -> Result<Access, BuildError> {
    let (on, cancel) = (Arc::clone(on), cancel.clone());
    Ok(Access {
        client: registry.web_client(true).map_err(BuildError::other)?,
        special: Arc::new(registry.special_web_clients().map_err(BuildError::other)?),
        unverified: registry.web_client(false).map_err(BuildError::other)?,
        runtime: runtime.clone(),
        environment: request.environment.clone(),
        clock: Arc::new(std::time::SystemTime::now),
        on: Arc::new(move |event| on(Event::Context(event))),
        digests: request.output.attest.provenance.is_some(),
        cancelled: Arc::new(move || cancel.is_cancelled()),
    })
}
