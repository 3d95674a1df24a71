//! One request, from the place it goes to up to its answer: HTTP or HTTPS, a slot of that registry, authorisation,
//! redirects. Whether to try again is for the callers to say ([`crate::retry`]).

use std::collections::{BTreeSet, HashMap};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::header::{AUTHORIZATION, CONTENT_LENGTH, LOCATION};
use http::{HeaderMap, HeaderValue, Method, StatusCode};
use reqwest::{Client, RequestBuilder};
use tokio::sync::{OnceCell, OwnedSemaphorePermit, Semaphore};
use url::Url;

use crate::answer::{Answer, network, stalled};
use crate::bearer::{Bearer, Scope, authority};
use crate::challenge::Challenge;
use crate::client::{STREAM_WINDOW, build_client, client_builder, finish};
use crate::credentials::{Exchange, Found};
use crate::options::RegistryOptions;
use crate::retry::{Again, Failure};
use crate::route::{Direction, Place};
use crate::scheme::{http_allowed, is_near, verifies};
use crate::tls::Trust;
use crate::{Attempt, Event, RegistryError, challenge};

/// How long a host that may speak HTTP is given to answer in TLS.
const PROBE: Duration = Duration::from_secs(10);
/// How many redirects are followed.
const MOST_REDIRECTS: usize = 10;
/// A registry may take this many times longer to take in a blob of more than so many bytes than to give a sign of life:
/// some copy it within their storage before they answer.
const COMMIT_PATIENCE: u32 = 5;
const HEAVY: u64 = 64 << 20;
/// To send no more than so many bytes takes less time over a connection that is there than to make another.
const LIGHT: u64 = 256 << 10;

/// The host, if it has certificates of its own, whether its certificate is checked, and whether HTTP/2 is spoken.
type ClientKey = (Option<String>, bool, bool);

/// `http` or `https`, once it is known.
type Scheme = Arc<OnceCell<&'static str>>;

/// What every request needs.
pub(crate) struct Transport {
    pub(crate) options: RegistryOptions,
    trust: Trust,
    /// For what is no registry: clouds' token services.
    pub(crate) plain: Client,
    clients: Mutex<HashMap<ClientKey, Client>>,
    schemes: Mutex<HashMap<(String, Direction), Scheme>>,
    slots: Mutex<HashMap<String, Arc<Semaphore>>>,
    bearer: Bearer,
}

/// A request to be sent.
pub(crate) struct Ask<'a> {
    pub(crate) method: Method,
    pub(crate) to: To,
    pub(crate) headers: HeaderMap,
    pub(crate) payload: Payload,
    pub(crate) scopes: &'a BTreeSet<Scope>,
    pub(crate) at: &'a Attempt,
    /// Over a connection that no other request uses meanwhile, not one that HTTP/2 shares between them.
    pub(crate) apart: bool,
    /// Whether it waits for one of the registry's slots.
    pub(crate) queued: bool,
    /// How many bytes of a blob the registry has to take in before it can answer.
    pub(crate) commits: u64,
}

/// Where a request goes.
pub(crate) enum To {
    /// To this path of the registry, from `/v2/` on.
    Path(String),
    /// To this address, which the registry gave.
    Url(Url),
}

/// What a request carries.
pub(crate) enum Payload {
    Nothing,
    Bytes(Bytes),
    /// A stream that can be sent once. Without a length it goes out in the pieces that HTTP has for this.
    Stream {
        body: reqwest::Body,
        length: Option<u64>,
        pace: Arc<Pace>,
    },
}

impl Payload {
    /// The same once more, where that can be had.
    fn again(&self) -> Option<Self> {
        match self {
            Self::Nothing => Some(Self::Nothing),
            Self::Bytes(bytes) => Some(Self::Bytes(bytes.clone())),
            Self::Stream { .. } => None,
        }
    }
}

/// How a stream gets on.
#[derive(Default)]
pub(crate) struct Pace {
    /// What was handed over.
    pub(crate) sent: AtomicU64,
    /// Whether the next bytes are not there yet: their source has its own patience, and the silence is not the
    /// registry's.
    pub(crate) starving: AtomicBool,
}

impl<'a> Ask<'a> {
    pub(crate) fn new(method: Method, to: To, scopes: &'a BTreeSet<Scope>, at: &'a Attempt) -> Self {
        Self {
            method,
            to,
            headers: HeaderMap::new(),
            payload: Payload::Nothing,
            scopes,
            at,
            apart: false,
            queued: true,
            commits: 0,
        }
    }

    pub(crate) fn queued(mut self, queued: bool) -> Self {
        self.queued = queued;
        self
    }

    pub(crate) fn commits(mut self, bytes: u64) -> Self {
        self.commits = bytes;
        self
    }

    pub(crate) fn header(mut self, name: http::HeaderName, value: &str) -> Self {
        if let Ok(value) = HeaderValue::from_str(value) {
            self.headers.insert(name, value);
        }
        self
    }

    pub(crate) fn apart(mut self) -> Self {
        self.apart = true;
        self
    }

    /// Says how many bytes the request carries.
    ///
    /// By HTTP/2, a server has so much on its way to it at a time (Go's: 1 MiB of all that share a connection). Far away, a
    /// connection of its own is many times as fast.
    pub(crate) fn carries(mut self, bytes: u64) -> Self {
        self.apart |= bytes > LIGHT;
        self
    }

    /// Says how many bytes the answer brings.
    pub(crate) fn brings(mut self, bytes: u64) -> Self {
        self.apart |= bytes > u64::from(STREAM_WINDOW);
        self
    }

    pub(crate) fn payload(mut self, payload: Payload) -> Self {
        self.payload = payload;
        self
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Transport {
    pub(crate) fn new(options: RegistryOptions) -> Result<Self, RegistryError> {
        let trust = Trust::read(&options.tls)?;
        // So that an option which can't be used is known before anything is built.
        let plain = build_client(&options, &trust, None, true, options.http2)?;
        Ok(Self {
            options,
            trust,
            plain,
            clients: Mutex::default(),
            schemes: Mutex::default(),
            slots: Mutex::default(),
            bearer: Bearer::default(),
        })
    }

    pub(crate) fn observe(&self, event: Event) {
        if let Some(observer) = &self.options.observer {
            observer(event);
        }
    }

    pub(crate) async fn find_login(&self, host: &str, path: &str) -> Found {
        let exchange = Exchange { client: self.plain.clone(), clock: self.options.credentials.clock() };
        self.options.credentials.find(host, path, &exchange).await
    }

    /// The hosts that have certificates of their own.
    pub(crate) fn special_hosts(&self) -> BTreeSet<String> {
        self.trust.special_hosts()
    }

    /// A client for what is no registry, changed by `change`.
    pub(crate) fn other_client(
        &self,
        host: Option<&str>,
        verify: bool,
        change: impl FnOnce(reqwest::ClientBuilder) -> reqwest::ClientBuilder,
    ) -> Result<Client, RegistryError> {
        // It asks for little else than long files.
        finish(change(client_builder(&self.options, &self.trust, host, verify, false)?))
    }

    /// The HTTP client for `host`.
    pub(crate) fn client(&self, host: &str, direction: Direction) -> Result<Client, Failure> {
        self.client_of(host, direction, self.options.http2)
    }

    /// The same, which speaks HTTP/2 or doesn't.
    pub(crate) fn client_of(&self, host: &str, direction: Direction, http2: bool) -> Result<Client, Failure> {
        let special = self.trust.is_special(host).then(|| host.to_owned());
        let verify = verifies(&self.options, host, direction);
        let key = (special, verify, http2);
        if let Some(client) = lock(&self.clients).get(&key) {
            return Ok(client.clone());
        }
        let client = build_client(&self.options, &self.trust, key.0.as_deref(), verify, http2);
        let client = client.map_err(Failure::never)?;
        lock(&self.clients).insert(key, client.clone());
        Ok(client)
    }

    async fn slot(&self, host: &str) -> Option<OwnedSemaphorePermit> {
        let most = self.options.max_concurrency.max(1);
        let slots = Arc::clone(
            lock(&self.slots).entry(host.to_owned()).or_insert_with(|| Arc::new(Semaphore::new(most))),
        );
        slots.acquire_owned().await.ok()
    }

    /// `https`, or `http` where that is allowed and HTTPS doesn't answer. Found out once per host.
    async fn scheme(&self, place: &Place, at: &Attempt) -> Result<&'static str, Failure> {
        let host = place.wire_host();
        if !http_allowed(&self.options, &place.host, place.direction) {
            return Ok("https");
        }
        let key = (host.to_owned(), place.direction);
        let cell = Arc::clone(lock(&self.schemes).entry(key).or_default());
        cell.get_or_try_init(|| self.probe(place, at)).await.copied()
    }

    async fn probe(&self, place: &Place, at: &Attempt) -> Result<&'static str, Failure> {
        let host = place.wire_host();
        let client = self.client(host, place.direction)?;
        let patience = PROBE.min(self.options.retries.stall);
        let ping = async |scheme: &str| match tokio::time::timeout(
            patience,
            client.get(format!("{scheme}://{host}/v2/")).send(),
        )
        .await
        {
            Ok(Ok(response)) => Ok(response.status()),
            Ok(Err(error)) => Err(network(at, error)),
            Err(_) => Err(stalled(at, patience)),
        };
        let secure = match ping("https").await {
            Ok(_) => return Ok("https"),
            // It speaks TLS: what is wrong with its certificate must not make us send a password in the clear.
            Err(failure) if matches!(failure.error, RegistryError::Certificate { .. }) => {
                return Err(failure);
            }
            Err(failure) => failure,
        };
        match ping("http").await {
            // A TLS server answers to plain HTTP with 400.
            Ok(status) if status != StatusCode::BAD_REQUEST => {
                if !is_near(host) {
                    self.observe(Event::PlainHttp { host: host.to_owned() });
                }
                Ok("http")
            }
            _ => Err(secure),
        }
    }

    /// Sends a request and gives its answer, whatever its status; only 401 is dealt with here.
    pub(crate) async fn send(&self, place: &Place, mut ask: Ask<'_>) -> Result<Answer, Failure> {
        let host = place.wire_host().to_owned();
        let scheme = self.scheme(place, ask.at).await?;
        let target = match &ask.to {
            To::Url(url) => url.clone(),
            To::Path(path) => Url::parse(&format!("{scheme}://{host}{path}")).map_err(|error| {
                let what = format!("{host} is no address: {error}");
                Failure::never(RegistryError::Protocol { at: Box::new(ask.at.clone()), what })
            })?,
        };
        let home = Url::parse(&format!("{scheme}://{host}/")).map(|url| url.origin()).ok();
        for last in [false, false, true] {
            let own = home.as_ref() == Some(&target.origin());
            let authorization = self.bearer.authorize(self, place, ask.scopes, ask.at).await;
            let authorization = match authorization {
                Ok(authorization) => authorization,
                Err(failure) => return Err(self.with_login(place, failure).await),
            };
            let slot = if ask.queued { self.slot(&host).await } else { None };
            if ask.queued && slot.is_none() {
                let why = "the registry was closed".to_owned();
                return Err(Failure::never(RegistryError::Unreachable { at: Box::new(ask.at.clone()), why }));
            }
            let payload = std::mem::replace(&mut ask.payload, Payload::Nothing);
            let again = payload.again();
            let once = again.is_none();
            ask.payload = again.unwrap_or(Payload::Nothing);
            let header = authorization.header.clone().filter(|_| own);
            let response = self.follow(place, &ask, target.clone(), payload, header).await;
            let response = match response {
                Ok(response) => response,
                Err(failure) => return Err(self.with_login(place, failure).await),
            };
            let wanted = match response.status() {
                StatusCode::UNAUTHORIZED if own => challenge::read(response.headers()),
                StatusCode::FORBIDDEN | StatusCode::NOT_FOUND if own && !once => {
                    self.asks_for_a_login(place, scheme).await
                }
                _ => None,
            };
            let mut at = ask.at.clone();
            at.login = self.bearer.describe(place).await;
            let answer = Answer { response, at, stall: self.options.retries.stall, _slot: slot };
            let Some(wanted) = wanted else { return Ok(answer) };
            let other = self.bearer.refused(self, place, ask.scopes, wanted, &authorization).await;
            if last || (authorization.fresh && !other) {
                return Ok(answer);
            }
            if once {
                let mut failure = answer.failure().await;
                failure.again = Again::Now;
                return Err(failure);
            }
        }
        unreachable_rounds(ask.at)
    }

    /// What `place` wants to see of those who have a login, if we have one that nobody asked for yet. A registry that lets
    /// anybody in may hide from them what it would show to us.
    async fn asks_for_a_login(&self, place: &Place, scheme: &str) -> Option<Challenge> {
        if !self.bearer.holds_back(self, place).await {
            return None;
        }
        let host = place.wire_host();
        let ping = self.client(host, place.direction).ok()?.get(format!("{scheme}://{host}/v2/"));
        let patience = PROBE.min(self.options.retries.stall);
        let answer = tokio::time::timeout(patience, ping.send()).await.ok()?.ok()?;
        let refused = answer.status() == StatusCode::UNAUTHORIZED;
        refused.then(|| challenge::read(answer.headers())).flatten()
    }

    async fn with_login(&self, place: &Place, mut failure: Failure) -> Failure {
        failure.error.set_login(self.bearer.describe(place).await);
        failure
    }

    /// Sends, and follows redirects: of questions all, of other requests those that keep the method (307, 308). A stream
    /// can't be sent twice, so its redirect is the caller's to follow. Another host gets no authorisation.
    async fn follow(
        &self,
        place: &Place,
        ask: &Ask<'_>,
        mut url: Url,
        payload: Payload,
        mut authorization: Option<HeaderValue>,
    ) -> Result<reqwest::Response, Failure> {
        let mut payload = Some(payload);
        let asks = matches!(ask.method, Method::GET | Method::HEAD);
        for _ in 0..=MOST_REDIRECTS {
            // Without TLS, HTTP/2 is not spoken, and all connections are alike.
            let http2 = self.options.http2 && !(ask.apart && url.scheme() == "https");
            let client = self.client_of(&authority(&url), place.direction, http2)?;
            let mut request = client.request(ask.method.clone(), url.clone()).headers(ask.headers.clone());
            if let Some(header) = &authorization {
                request = request.header(AUTHORIZATION, header.clone());
            }
            let now = payload.take().unwrap_or(Payload::Nothing);
            payload = now.again();
            let response = self.dispatch(request, now, ask).await?;
            let moved = match response.status().as_u16() {
                307 | 308 => payload.is_some(),
                301..=303 => asks,
                _ => false,
            };
            let location = response.headers().get(LOCATION).and_then(|value| value.to_str().ok());
            let (true, Some(location)) = (moved, location) else { return Ok(response) };
            let next = url.join(location).map_err(|_| protocol(ask.at, "it redirects to what is no URL"))?;
            let plain = next.scheme() == "http";
            if !matches!(next.scheme(), "http" | "https")
                || (plain
                    && url.scheme() == "https"
                    && !http_allowed(&self.options, &authority(&next), place.direction))
            {
                return Err(protocol(ask.at, "it redirects from HTTPS to a place without TLS"));
            }
            if next.origin() != url.origin() {
                authorization = None;
            }
            url = next;
        }
        Err(protocol(ask.at, "it redirects without end"))
    }

    async fn dispatch(
        &self,
        request: RequestBuilder,
        payload: Payload,
        ask: &Ask<'_>,
    ) -> Result<reqwest::Response, Failure> {
        let stall = self.options.retries.stall;
        let (request, watched) = match payload {
            Payload::Nothing if matches!(ask.method, Method::POST | Method::PUT | Method::PATCH) => {
                (request.header(CONTENT_LENGTH, 0), None)
            }
            Payload::Nothing => (request, None),
            Payload::Bytes(bytes) => (request.body(bytes), None),
            Payload::Stream { body, length, pace } => {
                let request = match length {
                    Some(length) => request.header(CONTENT_LENGTH, length),
                    None => request,
                };
                (request.body(body), Some((pace, length.unwrap_or(u64::MAX))))
            }
        };
        let mut response = std::pin::pin!(request.send());
        let (tick, mut silent, mut seen) = (stall / 4, Duration::ZERO, 0);
        loop {
            if let Ok(response) = tokio::time::timeout(tick, response.as_mut()).await {
                return response.map_err(|error| network(ask.at, error));
            }
            let (mut sent, mut starves, mut all) = (0, false, true);
            if let Some((pace, length)) = &watched {
                sent = pace.sent.load(Ordering::Relaxed);
                starves = pace.starving.load(Ordering::Relaxed);
                all = sent >= *length;
            }
            silent = if sent > seen || starves { Duration::ZERO } else { silent + tick };
            seen = sent;
            let patience = if all && ask.commits > HEAVY { stall * COMMIT_PATIENCE } else { stall };
            if silent >= patience {
                return Err(stalled(ask.at, patience));
            }
        }
    }

    /// Sends a request that has nothing to do with a repository (to a token server), and reads its small answer.
    pub(crate) async fn exchange(
        &self,
        request: RequestBuilder,
        at: &Attempt,
    ) -> Result<(StatusCode, HeaderMap, Vec<u8>), Failure> {
        const MOST: usize = 1 << 20;
        let stall = self.options.retries.stall;
        let work = async {
            let mut response = request.send().await.map_err(|error| network(at, error))?;
            let mut body = Vec::new();
            while let Some(chunk) = response.chunk().await.map_err(|error| network(at, error))? {
                body.extend_from_slice(&chunk);
                if body.len() > MOST {
                    return Err(protocol(at, "its answer is too long"));
                }
            }
            Ok((response.status(), response.headers().clone(), body))
        };
        tokio::time::timeout(stall, work).await.unwrap_or_else(|_| Err(stalled(at, stall)))
    }
}

fn unreachable_rounds(at: &Attempt) -> Result<Answer, Failure> {
    Err(protocol(at, "it asks for a login again and again"))
}

fn protocol(at: &Attempt, what: &str) -> Failure {
    Failure::never(RegistryError::Protocol { at: Box::new(at.clone()), what: what.to_owned() })
}
