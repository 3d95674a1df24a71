//! A registry on a loopback address (OCI distribution-spec 1.1) that does wrong what its script says, writes down which
//! requests it saw, and shows what it holds.

mod auth;
mod body;
mod serve;

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use kiln_oci::{Descriptor, Digest};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;

pub use auth::Auth;

use crate::image::TestImage;
use crate::tls::TestAuthority;

/// The kinds of requests that a script tells apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Route {
    /// GET of `/v2/`.
    Ping,
    /// GET or POST at the token server.
    Token,
    /// HEAD of a manifest.
    ManifestHead,
    /// GET of a manifest.
    Manifest,
    /// PUT of a manifest.
    ManifestPut,
    /// HEAD of a blob.
    BlobHead,
    /// GET of a blob.
    Blob,
    /// POST that begins an upload or mounts a blob.
    UploadStart,
    /// PATCH of an upload.
    UploadPatch,
    /// PUT that ends an upload.
    UploadPut,
    /// GET of an upload's state.
    UploadStatus,
    /// DELETE of an upload.
    UploadCancel,
    /// GET of the list of what is said about a manifest.
    Referrers,
    /// Anything else.
    Other,
}

/// What happens to one request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Nothing: it is served.
    Serve,
    /// This status, with an empty body.
    Status(u16),
    /// This status and body.
    Answer(u16, String),
    /// This status, with `Retry-After` in seconds.
    RetryAfter(u16, u64),
    /// The answer's body breaks off after so many bytes; of an upload, so many bytes are taken in, then the connection
    /// breaks.
    CutAfter(usize),
    /// The connection breaks before any answer.
    Reset,
    /// The request is served, and the connection breaks instead of answering.
    LoseAnswer,
    /// So many bytes of the answer's body come, then nothing more, for ever; of an upload, none is read.
    Stall(usize),
    /// The answer claims so many bytes more than there are, and ends early.
    WrongLength(usize),
    /// One bit of the answer's body is wrong.
    WrongBytes,
    /// The answer's body is cut, and its length says that this is all.
    Truncate(usize),
    /// The answer's body, and then more of it without end.
    Endless,
    /// So many bytes of the answer's body come in a second.
    Slow(usize),
    /// A redirect (307) to this URL.
    RedirectTo(String),
    /// The answer, but ranges are not understood.
    IgnoreRange,
    /// The answer, once so many requests of this kind were seen: who asks for one thing after the other waits for ever.
    AwaitOthers(Route, usize),
}

/// A request that the registry saw.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// Which kind it was.
    pub route: Route,
    /// Its method.
    pub method: String,
    /// Whether it came by HTTP/2.
    pub http2: bool,
    /// Its path.
    pub path: String,
    /// Its query.
    pub query: String,
    /// Its headers, names in lower case.
    pub headers: BTreeMap<String, String>,
}

impl Seen {
    /// The value of a header, or nothing.
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", String::as_str)
    }
}

#[derive(Default)]
struct Contents {
    blobs: HashMap<(String, Digest), Bytes>,
    manifests: HashMap<(String, String), (String, Bytes)>,
    uploads: HashMap<u64, Vec<u8>>,
    script: HashMap<Route, VecDeque<Fault>>,
    /// What happens to requests that the script has nothing for.
    always: HashMap<Route, Fault>,
    seen: Vec<Seen>,
    serial: u64,
    tokens: auth::Tokens,
}

pub(crate) struct State {
    contents: Mutex<Contents>,
    address: SocketAddr,
    settings: RegistryBuilder,
}

impl State {
    fn lock(&self) -> MutexGuard<'_, Contents> {
        self.contents.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn url(&self) -> String {
        let scheme = if self.settings.tls.is_some() { "https" } else { "http" };
        format!("{scheme}://{}", self.address)
    }
}

/// How a [`TestRegistry`] is set up.
#[derive(Clone, Debug, Default)]
pub struct RegistryBuilder {
    auth: Auth,
    tls: Option<Arc<TestAuthority>>,
    ask_client: bool,
    http2: bool,
    largest_request: Option<usize>,
    immutable_tags: bool,
    no_mounts: bool,
    referrers: Option<bool>,
    ipv6: bool,
}

impl RegistryBuilder {
    /// Who gets in.
    #[must_use]
    pub fn auth(mut self, auth: Auth) -> Self {
        self.auth = auth;
        self
    }

    /// TLS with a certificate of `authority`.
    #[must_use]
    pub fn tls(mut self, authority: &Arc<TestAuthority>) -> Self {
        self.tls = Some(Arc::clone(authority));
        self
    }

    /// TLS in which clients must show a certificate of `authority` too.
    #[must_use]
    pub fn mutual_tls(mut self, authority: &Arc<TestAuthority>) -> Self {
        self.ask_client = true;
        self.tls(authority)
    }

    /// With TLS, HTTP/2 is offered.
    #[must_use]
    pub fn http2(mut self) -> Self {
        self.http2 = true;
        self
    }

    /// Requests with more bytes than this get 413.
    #[must_use]
    pub fn largest_request(mut self, bytes: usize) -> Self {
        self.largest_request = Some(bytes);
        self
    }

    /// Tags can't be changed, and Amazon's words say so.
    #[must_use]
    pub fn immutable_tags(mut self) -> Self {
        self.immutable_tags = true;
        self
    }

    /// Mounts are not understood.
    #[must_use]
    pub fn no_mounts(mut self) -> Self {
        self.no_mounts = true;
        self
    }

    /// It lists by itself what is said about a manifest, and says so when it gets it, or only when it is asked for the list.
    #[must_use]
    pub fn referrers(mut self, says_so: bool) -> Self {
        self.referrers = Some(says_so);
        self
    }

    /// It listens at `[::1]`.
    #[must_use]
    pub fn ipv6(mut self) -> Self {
        self.ipv6 = true;
        self
    }

    /// Starts the registry on a free port.
    ///
    /// # Panics
    /// If there is none.
    pub async fn start(self) -> TestRegistry {
        let listener =
            TcpListener::bind((if self.ipv6 { "::1" } else { "127.0.0.1" }, 0)).await.expect("a free port");
        let address = listener.local_addr().expect("a bound socket has an address");
        let config = self.tls.as_ref().map(|tls| tls.server_config(self.ask_client, self.http2));
        let acceptor = config.map(TlsAcceptor::from);
        let state = Arc::new(State { contents: Mutex::default(), address, settings: self });
        let task = tokio::spawn(accept(listener, acceptor, Arc::clone(&state)));
        TestRegistry { state, task }
    }
}

async fn accept(listener: TcpListener, acceptor: Option<TlsAcceptor>, state: Arc<State>) {
    let mut connections = tokio::task::JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        while connections.try_join_next().is_some() {}
        connections.spawn(connection(stream, acceptor.clone(), Arc::clone(&state)));
    }
}

async fn connection(stream: TcpStream, acceptor: Option<TlsAcceptor>, state: Arc<State>) {
    let service = service_fn(move |request| serve::serve(Arc::clone(&state), request));
    // How a connection ends is the client's to notice.
    match acceptor {
        None => {
            let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
        }
        Some(acceptor) => {
            let Ok(stream) = acceptor.accept(stream).await else { return };
            if stream.get_ref().1.alpn_protocol() == Some(b"h2") {
                let server = http2::Builder::new(TokioExecutor::new());
                let _ = server.serve_connection(TokioIo::new(stream), service).await;
            } else {
                let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
            }
        }
    }
}

/// A registry on a loopback address. It ends when it is dropped.
pub struct TestRegistry {
    state: Arc<State>,
    task: JoinHandle<()>,
}

impl Drop for TestRegistry {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl TestRegistry {
    /// Starts a registry without TLS and without logins.
    pub async fn start() -> Self {
        Self::builder().start().await
    }

    /// A registry to be set up.
    pub fn builder() -> RegistryBuilder {
        RegistryBuilder::default()
    }

    /// Its host, as it stands in references: `127.0.0.1:PORT`.
    pub fn host(&self) -> String {
        self.state.address.to_string()
    }

    /// Its address as a URL, without a slash at the end.
    pub fn url(&self) -> String {
        self.state.url()
    }

    /// The coming requests of this kind meet these faults, one each; those after them are served.
    pub fn on(&self, route: Route, faults: impl IntoIterator<Item = Fault>) {
        self.state.lock().script.entry(route).or_default().extend(faults);
    }

    /// From now on all requests of this kind that the script has nothing for meet this fault.
    pub fn always(&self, route: Route, fault: Fault) {
        self.state.lock().always.insert(route, fault);
    }

    /// Drops what the script still has for coming requests.
    pub fn forget_script(&self) {
        self.state.lock().script.clear();
    }

    /// The requests that it saw, in their order.
    pub fn seen(&self) -> Vec<Seen> {
        self.state.lock().seen.clone()
    }

    /// How many requests of this kind it saw.
    pub fn count(&self, route: Route) -> usize {
        self.state.lock().seen.iter().filter(|seen| seen.route == route).count()
    }

    /// Forgets the requests that it saw.
    pub fn forget(&self) {
        self.state.lock().seen.clear();
    }

    /// Puts a blob into a repository.
    pub fn put_blob(&self, repository: &str, bytes: impl Into<Bytes>) -> Descriptor {
        let bytes = bytes.into();
        let digest = Digest::of(&bytes);
        let descriptor = Descriptor::new("application/octet-stream", digest.clone(), bytes.len() as u64);
        self.state.lock().blobs.insert((repository.to_owned(), digest), bytes);
        descriptor
    }

    /// Loses a blob of a repository; gives whether it was there.
    pub fn remove_blob(&self, repository: &str, digest: &Digest) -> bool {
        self.state.lock().blobs.remove(&(repository.to_owned(), digest.clone())).is_some()
    }

    /// Puts a manifest into a repository, under its digest and under `tag`.
    pub fn put_manifest(
        &self,
        repository: &str,
        tag: &str,
        media_type: &str,
        raw: impl Into<Bytes>,
    ) -> Digest {
        let raw = raw.into();
        let digest = Digest::of(&raw);
        let mut contents = self.state.lock();
        for name in [tag.to_owned(), digest.to_string()] {
            contents.manifests.insert((repository.to_owned(), name), (media_type.to_owned(), raw.clone()));
        }
        digest
    }

    /// Puts a whole image into a repository.
    pub fn put_image(&self, repository: &str, tag: &str, image: &TestImage) -> Digest {
        for (_, bytes) in image.blobs() {
            self.put_blob(repository, bytes);
        }
        let raw = image.manifest.raw().to_vec();
        self.put_manifest(repository, tag, image.manifest.value().media_type(), raw)
    }

    /// The blob `digest` of a repository.
    pub fn blob(&self, repository: &str, digest: &Digest) -> Option<Bytes> {
        self.state.lock().blobs.get(&(repository.to_owned(), digest.clone())).cloned()
    }

    /// Media type and bytes of the manifest that `name` (a tag or a digest) means in a repository.
    pub fn manifest(&self, repository: &str, name: &str) -> Option<(String, Bytes)> {
        self.state.lock().manifests.get(&(repository.to_owned(), name.to_owned())).cloned()
    }

    /// The tags of a repository, sorted.
    pub fn tags(&self, repository: &str) -> Vec<String> {
        let contents = self.state.lock();
        let mut tags: Vec<String> = contents
            .manifests
            .keys()
            .filter(|(name, tag)| name == repository && !tag.contains(':'))
            .map(|(_, tag)| tag.clone())
            .collect();
        tags.sort();
        tags
    }

    /// How many uploads were begun and neither ended nor cancelled.
    pub fn open_uploads(&self) -> usize {
        self.state.lock().uploads.len()
    }

    /// Makes all tokens that were given out so far invalid.
    pub fn revoke_tokens(&self) {
        self.state.lock().tokens.revoke();
    }
}
