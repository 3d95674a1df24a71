//! One repository being fetched: which object a revision is, getting it, and what `.git` says of it afterwards.

use std::io::Write as _;
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use gix::bstr::BString;
use gix::progress::Discard;
use gix::protocol::handshake::Ref;
use gix::refs::transaction::{Change, LogChange, PreviousValue, RefEdit};
use gix::refs::{FullName, Target};
use gix::remote::fetch::{Shallow, Tags};
use gix_transport::Protocol;
use gix_transport::client::blocking_io::Transport;
use gix_transport::client::git::ConnectMode;
use gix_transport::client::git::blocking_io::Connection;

use super::line::Line;
use super::web::{Web, WebLogin};
use super::{GitRequest, Progress, Remote, Revision, ssh};
use crate::remote::TRIES;
use crate::{Access, Event};

type AnyTransport = Box<dyn Transport + Send>;

/// A repository on disk and the one that it is fetched from.
pub(super) struct Repository<'a> {
    pub(super) request: &'a GitRequest,
    pub(super) access: &'a Access,
    pub(super) inner: gix::Repository,
    pub(super) progress: Progress,
    line: Line,
    /// What an SSH server wrote to its standard error.
    complaints: Mutex<Arc<Mutex<Vec<u8>>>>,
}

impl<'a> Repository<'a> {
    /// An empty repository in the directory `into`.
    pub(super) fn init(request: &'a GitRequest, into: &Path, access: &'a Access) -> Result<Self, String> {
        let kind = gix::create::Kind::WithWorktree;
        // Nothing of this machine's git configuration takes part.
        let options = gix::open::Options::isolated();
        let inner =
            gix::ThreadSafeRepository::init_opts(into, kind, gix::create::Options::default(), options);
        let mut inner = inner.map_err(|error| words(&error))?.to_thread_local();
        inner.refs.write_reflog = gix::refs::store::WriteReflog::Disable;
        let progress = Progress::new(request.address.to_string(), access);
        let complaints = Mutex::default();
        Ok(Self { request, access, inner, progress, line: Line::default(), complaints })
    }

    fn transport(&self) -> Result<AnyTransport, String> {
        match &self.request.address.remote {
            Remote::Web(url) => {
                let insecure = self.request.options.insecure_skip_tls;
                let header = self.request.authorization.clone();
                let web = Web {
                    client: if insecure { &self.access.unverified } else { self.access.client_for(url) }
                        .clone(),
                    runtime: self.access.runtime.clone(),
                    login: header.map(|header| WebLogin { origin: url.origin(), header }),
                    progress: self.progress.clone(),
                    line: self.line.clone(),
                    moved: None,
                };
                let url = self.url()?;
                let transport = gix_transport::client::blocking_io::http::Transport::new_http(
                    web,
                    url,
                    Protocol::V2,
                    false,
                );
                Ok(Box::new(transport))
            }
            Remote::Ssh { user, host, port, path } => {
                let server = ssh::Server { user, host, port: *port, path };
                let (reader, writer) = ssh::connect(
                    &server,
                    &self.request.ssh,
                    &self.access.runtime,
                    &self.progress,
                    &self.line,
                )?;
                *self.complaints.lock().unwrap_or_else(PoisonError::into_inner) = reader.complaints();
                let connection = Connection::new(
                    reader,
                    writer,
                    Protocol::V2,
                    path.as_str(),
                    None::<(String, Option<u16>)>,
                    ConnectMode::Process,
                    false,
                );
                Ok(Box::new(connection))
            }
        }
    }

    fn url(&self) -> Result<gix::Url, String> {
        let text = self.request.address.remote.to_string();
        gix::Url::try_from(text.as_str()).map_err(|error| format!("{text}: {}", words(&error)))
    }

    /// The best words for an error: the transport's own, or what the server said, or else gix's.
    fn why(&self, error: &gix::Error) -> String {
        if let Some(why) = self.line.take_why() {
            return why;
        }
        let complaints = self.complaints.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let complaints = complaints.lock().unwrap_or_else(PoisonError::into_inner);
        let said = String::from_utf8_lossy(&complaints);
        let said: Vec<&str> = said.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
        if said.is_empty() { words(error) } else { format!("the server says: {}", said.join("; ")) }
    }

    fn remote(&self, specs: &[String]) -> Result<gix::Remote<'_>, String> {
        let remote = self.inner.remote_at_without_url_rewrite(self.url()?).map_err(|error| words(&error))?;
        let remote = remote.with_fetch_tags(Tags::None);
        let specs = specs.iter().map(|spec| BString::from(spec.as_str()));
        remote.with_refspecs(specs, gix::remote::Direction::Fetch).map_err(|error| words(&error))
    }

    /// Does `work`, which speaks to the server, and again from the start if the connection broke: git's protocol can't
    /// go on in the middle of a pack.
    fn patiently<T>(&self, work: impl Fn() -> Result<T, String>) -> Result<T, String> {
        let mut attempt = 0;
        loop {
            self.line.reset();
            let why = match work() {
                Ok(done) => return Ok(done),
                Err(why) => why,
            };
            if !self.line.has_broken() {
                return Err(why);
            }
            if attempt >= TRIES || (self.access.cancelled)() {
                return Err(format!("{why}; given up after {attempt} more attempts"));
            }
            let (source, after) = (self.request.address.to_string(), Duration::from_millis(200 << attempt));
            (self.access.on)(Event::Restarting { source, why, after });
            self.access.runtime.block_on(tokio::time::sleep(after));
            attempt += 1;
        }
    }

    /// The references of the server that the specs mean; a broad answer is no error.
    fn advertised(&self, specs: &[String]) -> Result<Vec<Ref>, String> {
        self.patiently(|| self.advertised_once(specs))
    }

    fn advertised_once(&self, specs: &[String]) -> Result<Vec<Ref>, String> {
        let remote = self.remote(specs)?;
        let connection =
            remote.to_connection_with_transport(self.transport()?).with_credentials(|_| Ok(None));
        let (map, _) = connection
            .ref_map(Discard, gix::remote::ref_map::Options::default())
            .map_err(|error| self.why(&error))?;
        Ok(map.remote_refs)
    }

    /// Asks the server which commit the request's revision is. A branch comes before a tag of the same name.
    pub(super) fn resolve(&self) -> Result<Revision, String> {
        let Some(name) = self.request.address.reference.as_deref() else {
            let refs = self.advertised(&["HEAD".to_owned()])?;
            return head(&refs);
        };
        let short = name.strip_prefix("refs/").unwrap_or(name);
        let mut candidates = vec![format!("refs/{short}")];
        if !name.starts_with("refs/") {
            candidates.extend([format!("refs/heads/{name}"), format!("refs/tags/{name}")]);
        }
        let refs = self.advertised(&candidates)?;
        for candidate in &candidates {
            if let Some(found) = refs.iter().find_map(|reference| named(reference, candidate)) {
                return Ok(found);
            }
        }
        // Servers were asked for what was named only; now for what else there is.
        let all = ["+refs/heads/*:refs/remotes/origin/*", "+refs/tags/*:refs/tags/*"];
        let refs = self.advertised(&all.map(str::to_owned)).unwrap_or_default();
        Err(format!(
            "it has neither a branch nor a tag {name:?}{}; a commit is named by all its 40 digits",
            nearest(name, &refs)
        ))
    }

    /// Gets the revision's objects, and makes HEAD, references and the configuration say so.
    pub(super) fn fetch(&self, revision: &Revision) -> Result<(), String> {
        let depth = NonZeroU32::new(self.request.options.depth.unwrap_or(1));
        let shallow = depth.map_or(Shallow::NoChange, Shallow::DepthAtRemote);
        let mut specs = Vec::new();
        if self.request.options.all_branches {
            specs.push("+refs/heads/*:refs/remotes/origin/*".to_owned());
            specs.push("+refs/tags/*:refs/tags/*".to_owned());
        }
        let has = || self.object(&revision.commit).is_some();
        if let Some(reference) = &revision.reference {
            specs.push(reference.clone());
            self.receive(&specs, &shallow)?;
        }
        if !has() {
            // By its own name: the branch has moved, or none was given. Old servers give no commit that no
            // reference points to; then everything is fetched, and the commit looked for in it.
            let direct = self.receive(std::slice::from_ref(&revision.commit), &shallow);
            if !has() {
                let all = ["+refs/heads/*:refs/remotes/origin/*", "+refs/tags/*:refs/tags/*"];
                let all = self.receive(&all.map(str::to_owned), &Shallow::NoChange);
                if !has() {
                    direct.and(all)?;
                    return Err(format!("it has no commit {}", revision.commit));
                }
            }
        }
        self.remove_keep_files();
        self.write_references(revision)?;
        self.write_config(revision).map_err(|error| format!("could not write .git/config: {error}"))
    }

    fn receive(&self, specs: &[String], shallow: &Shallow) -> Result<(), String> {
        self.patiently(|| self.receive_once(specs, shallow.clone()))
    }

    fn receive_once(&self, specs: &[String], shallow: Shallow) -> Result<(), String> {
        let remote = self.remote(specs)?;
        let connection =
            remote.to_connection_with_transport(self.transport()?).with_credentials(|_| Ok(None));
        let fetch = connection
            .prepare_fetch(Discard, gix::remote::ref_map::Options::default())
            .map_err(|error| self.why(&error))?;
        let received = fetch.with_shallow(shallow).receive(Discard, &AtomicBool::new(false));
        received.map(drop).map_err(|error| self.why(&error))
    }

    pub(super) fn object(&self, name: &str) -> Option<gix::ObjectId> {
        let id = gix::ObjectId::from_hex(name.as_bytes()).ok()?;
        self.inner.try_find_object(id).ok().flatten().map(|_| id)
    }

    /// gix leaves a `.keep` file beside a pack that no reference of its own points to.
    fn remove_keep_files(&self) {
        let packs = self.inner.git_dir().join("objects/pack");
        let entries = std::fs::read_dir(packs).into_iter().flatten().flatten().map(|entry| entry.path());
        for path in entries.filter(|path| path.extension().is_some_and(|end| end == "keep")) {
            let _ = std::fs::remove_file(path);
        }
    }

    fn write_references(&self, revision: &Revision) -> Result<(), String> {
        let id = |name: &str| {
            gix::ObjectId::from_hex(name.as_bytes()).map_err(|_| format!("{name} is no name of an object"))
        };
        let commit = id(&revision.commit)?;
        let name = |text: &str| {
            FullName::try_from(text).map_err(|_| format!("{text:?} can't be the name of a reference"))
        };
        let mut edits = Vec::new();
        let mut head = Target::Object(commit);
        if self.request.options.detached {
            let tag = revision.tag.as_deref().map_or(Ok(commit), id)?;
            return self.edit(super::kept::references(self.request, revision, commit, tag)?);
        }
        if let Some(reference) = &revision.reference {
            let full = name(reference)?;
            if let Some(branch) = reference.strip_prefix("refs/heads/") {
                edits.push((name(&format!("refs/remotes/origin/{branch}"))?, Target::Object(commit)));
                // With a commit of its own, HEAD is not the branch.
                if self.request.address.commit.is_none() {
                    head = Target::Symbolic(full.clone());
                }
            }
            let target = revision.tag.as_deref().map_or(Ok(commit), id)?;
            edits.push((full, Target::Object(target)));
        }
        edits.push((name("HEAD")?, head));
        self.edit(edits)
    }

    fn edit(&self, edits: Vec<(FullName, Target)>) -> Result<(), String> {
        for (name, new) in edits {
            let change = Change::Update { log: LogChange::default(), expected: PreviousValue::Any, new };
            let edit = RefEdit { change, name, deref: false };
            self.inner.edit_reference(edit).map_err(|error| words(&error))?;
        }
        Ok(())
    }

    /// The remote, without a login.
    fn write_config(&self, revision: &Revision) -> std::io::Result<()> {
        let quoted = |text: &str| {
            let text: String = text.chars().filter(|c| !c.is_control()).collect();
            format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))
        };
        let url = self.request.address.remote.to_string();
        let path: PathBuf = self.inner.git_dir().join("config");
        if self.request.options.detached {
            return std::fs::write(path, super::kept::config(&url));
        }
        let mut text = format!(
            "[remote \"origin\"]\n\turl = {}\n\tfetch = +refs/heads/*:refs/remotes/origin/*\n",
            quoted(&url)
        );
        let branch = revision.reference.as_deref().filter(|name| name.starts_with("refs/heads/"));
        if let Some(branch) = branch {
            let name = quoted(branch.trim_start_matches("refs/heads/"));
            let merge = quoted(branch);
            text = format!("{text}[branch {name}]\n\tremote = origin\n\tmerge = {merge}\n");
        }
        std::fs::OpenOptions::new().append(true).open(path)?.write_all(text.as_bytes())
    }

    pub(super) fn warn(&self, text: String) {
        (self.access.on)(Event::Warning(text));
    }
}

/// What HEAD is at the server.
fn head(refs: &[Ref]) -> Result<Revision, String> {
    for reference in refs {
        match reference {
            Ref::Symbolic { full_ref_name, target, object, .. } if full_ref_name == "HEAD" => {
                let reference = Some(target.to_string());
                return Ok(Revision { commit: object.to_string(), tag: None, reference });
            }
            Ref::Direct { full_ref_name, object } if full_ref_name == "HEAD" => {
                return Ok(Revision { commit: object.to_string(), tag: None, reference: None });
            }
            _ => {}
        }
    }
    Err("it has no commits, or its HEAD names a branch that isn't there: name a branch after a #".to_owned())
}

fn named(reference: &Ref, wanted: &str) -> Option<Revision> {
    let (name, commit, tag) = match reference {
        Ref::Direct { full_ref_name, object } => (full_ref_name, object, None),
        Ref::Peeled { full_ref_name, tag, object } => (full_ref_name, object, Some(tag)),
        Ref::Symbolic { full_ref_name, tag, object, .. } => (full_ref_name, object, tag.as_ref()),
        Ref::Unborn { .. } => return None,
    };
    (name == wanted).then(|| Revision {
        commit: commit.to_string(),
        tag: tag.map(ToString::to_string),
        reference: Some(wanted.to_owned()),
    })
}

fn nearest(name: &str, refs: &[Ref]) -> String {
    let all: Vec<String> = refs
        .iter()
        .filter_map(|reference| {
            let (full, ..) = reference.unpack();
            let full = full.to_string();
            let short = full.strip_prefix("refs/heads/").or_else(|| full.strip_prefix("refs/tags/"));
            short.map(str::to_owned)
        })
        .collect();
    let near = kiln_dockerfile::nearest(name, all.iter().map(String::as_str));
    near.map(|near| format!("; did you mean {near:?}?")).unwrap_or_default()
}

/// An error with its causes, in one line, each once.
pub(super) fn words(error: &(dyn std::error::Error + 'static)) -> String {
    let mut parts: Vec<String> = Vec::new();
    let mut next = Some(error);
    while let Some(error) = next {
        let text = error.to_string().split_whitespace().collect::<Vec<_>>().join(" ");
        if !parts.iter().any(|part| part.contains(&text)) {
            parts.push(text);
        }
        next = error.source();
    }
    parts.join(": ")
}
