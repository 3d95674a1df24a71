//! A stand-in for any other HTTP service (a cloud's token server, a metadata server, a cluster's API): it answers by
//! method and path, and keeps what it was asked, body and all.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;

use crate::tls::TestAuthority;

/// A request that a stand-in got.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asked {
    /// Its method.
    pub method: String,
    /// Its path, without the query.
    pub path: String,
    /// Its query.
    pub query: String,
    /// Its headers, names in lower case.
    pub headers: BTreeMap<String, String>,
    /// Its body.
    pub body: String,
}

impl Asked {
    /// The value of a header, or nothing.
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", String::as_str)
    }
}

#[derive(Default)]
struct Script {
    answers: HashMap<(String, String), VecDeque<(u16, String)>>,
    asked: Vec<Asked>,
}

/// A server on a loopback address. What it has no answer for gets 404. It ends when it is dropped.
pub struct StandIn {
    script: Arc<Mutex<Script>>,
    address: SocketAddr,
    secure: bool,
    task: JoinHandle<()>,
}

impl Drop for StandIn {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl StandIn {
    /// Starts one without TLS.
    pub async fn start() -> Self {
        Self::run(None).await
    }

    /// Starts one with a certificate of `authority`.
    pub async fn start_tls(authority: &TestAuthority) -> Self {
        Self::run(Some(TlsAcceptor::from(authority.server_config(false, false)))).await
    }

    async fn run(acceptor: Option<TlsAcceptor>) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.expect("a free port");
        let address = listener.local_addr().expect("a bound socket has an address");
        let script: Arc<Mutex<Script>> = Arc::default();
        let (secure, shared) = (acceptor.is_some(), Arc::clone(&script));
        let task = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let (script, acceptor) = (Arc::clone(&shared), acceptor.clone());
                connections.spawn(async move {
                    let service = service_fn(move |request| serve(Arc::clone(&script), request));
                    // How a connection ends is the client's to notice.
                    if let Some(acceptor) = acceptor {
                        if let Ok(stream) = acceptor.accept(stream).await {
                            let _ =
                                http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
                        }
                    } else {
                        let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
                    }
                });
            }
        });
        Self { script, address, secure, task }
    }

    /// Its address as a URL, without a slash at the end.
    pub fn url(&self) -> String {
        format!("{}://{}", if self.secure { "https" } else { "http" }, self.address)
    }

    /// Its host and port.
    pub fn host(&self) -> String {
        self.address.to_string()
    }

    /// Its port.
    pub fn port(&self) -> u16 {
        self.address.port()
    }

    /// Requests with this method and path get this answer; of several, one each, and the last for ever.
    pub fn answer(&self, method: &str, path: &str, status: u16, body: impl Into<String>) {
        let mut script = self.script.lock().unwrap_or_else(PoisonError::into_inner);
        script
            .answers
            .entry((method.to_owned(), path.to_owned()))
            .or_default()
            .push_back((status, body.into()));
    }

    /// The requests that it got, in their order.
    pub fn asked(&self) -> Vec<Asked> {
        self.script.lock().unwrap_or_else(PoisonError::into_inner).asked.clone()
    }
}

async fn serve(
    script: Arc<Mutex<Script>>,
    request: Request<Incoming>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let (parts, incoming) = request.into_parts();
    let body = incoming.collect().await.map(|body| body.to_bytes().to_vec()).unwrap_or_default();
    let mut script = script.lock().unwrap_or_else(PoisonError::into_inner);
    script.asked.push(Asked {
        method: parts.method.to_string(),
        path: parts.uri.path().to_owned(),
        query: parts.uri.query().unwrap_or_default().to_owned(),
        headers: parts
            .headers
            .iter()
            .map(|(name, value)| (name.to_string(), String::from_utf8_lossy(value.as_bytes()).into_owned()))
            .collect(),
        body: String::from_utf8_lossy(&body).into_owned(),
    });
    let key = (parts.method.to_string(), parts.uri.path().to_owned());
    let (status, body) = match script.answers.get_mut(&key) {
        Some(answers) if answers.len() > 1 => answers.pop_front().unwrap_or_default(),
        Some(answers) => answers.front().cloned().unwrap_or_default(),
        None => (404, String::new()),
    };
    let response = Response::builder().status(status).body(Full::new(Bytes::from(body)));
    Ok(response.expect("a status and a body make a response"))
}
