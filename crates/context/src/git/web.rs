//! Git's smart HTTP protocol over our own client: the same trust and proxies as everywhere, logins only for the server
//! that they are meant for. gix speaks the protocol; this carries its requests.

use std::any::Any;
use std::io::{self, BufRead, BufReader, Cursor, Read, Write};
use std::sync::{Arc, Mutex, PoisonError};

use gix_transport::client::blocking_io::http::{GetResponse, Http, PostBodyDataKind, PostResponse};
use kiln_oci::Redacted;
use reqwest::{RequestBuilder, Response, StatusCode};
use tokio::runtime::Handle;
use url::Url;

use super::Progress;
use super::line::Line;

/// A login and the one server that gets it.
#[derive(Clone, Debug)]
pub(super) struct WebLogin {
    /// Scheme, host and port.
    pub(super) origin: url::Origin,
    /// The `Authorization` header.
    pub(super) header: Redacted<String>,
}

/// Carries requests.
pub(super) struct Web {
    pub(super) client: reqwest::Client,
    pub(super) runtime: Handle,
    pub(super) login: Option<WebLogin>,
    pub(super) progress: Progress,
    pub(super) line: Line,
    /// Where the repository really is, after redirects of the first request.
    pub(super) moved: Option<String>,
}

impl Web {
    fn request(
        &self,
        method: reqwest::Method,
        url: &str,
        headers: impl IntoIterator<Item = impl AsRef<str>>,
    ) -> io::Result<RequestBuilder> {
        let url: Url = url.parse().map_err(|error| io::Error::other(format!("{url}: {error}")))?;
        let own = self.login.as_ref().filter(|login| login.origin == url.origin());
        let mut request = self.client.request(method, url);
        for header in headers {
            if let Some((name, value)) = header.as_ref().split_once(':')
                && !name.eq_ignore_ascii_case("user-agent")
            {
                request = request.header(name, value.trim());
            }
        }
        if let Some(login) = own {
            request = request.header("authorization", login.header.expose());
        }
        Ok(request)
    }

    fn sender(&self) -> Sender {
        Sender {
            runtime: self.runtime.clone(),
            line: self.line.clone(),
            progress: self.progress.clone(),
            with_login: self.login.is_some(),
        }
    }
}

/// Sends a request and reads its answer, from a thread that may block.
#[derive(Clone)]
pub(super) struct Sender {
    runtime: Handle,
    line: Line,
    progress: Progress,
    with_login: bool,
}

impl Sender {
    /// A transfer that broke.
    fn broke(&self, error: reqwest::Error) -> io::Error {
        let why = crate::remote::said(&error.without_url());
        if crate::remote::is_lasting(&why) { self.line.refused(why) } else { self.line.broke(why) }
    }

    fn send(&self, request: RequestBuilder) -> io::Result<Response> {
        let answer = self.runtime.block_on(request.send());
        let answer = answer.map_err(|error| self.broke(error))?;
        let status = answer.status();
        if status.is_success() {
            return Ok(answer);
        }
        if crate::remote::is_passing(status) {
            return Err(self.line.broke(format!("the server answers {status}")));
        }
        let login = if self.with_login { "it refuses the login that it got" } else { "it wants a login" };
        Err(self.line.refused(match status {
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                format!("the server answers {status}: {login}")
            }
            StatusCode::NOT_FOUND => format!(
                "the server answers {status}: there is no such repository, or it is private{}",
                if self.with_login { " and the login that was given may not read it" } else { "" }
            ),
            _ => format!("the server answers {status}"),
        }))
    }
}

/// The headers of an answer, as lines.
fn lines(answer: &Response) -> Vec<u8> {
    let mut text = Vec::new();
    for (name, value) in answer.headers() {
        text.extend_from_slice(name.as_str().as_bytes());
        text.extend_from_slice(b": ");
        text.extend_from_slice(value.as_bytes());
        text.push(b'\n');
    }
    text
}

/// Reads an answer's body as it comes.
struct Body {
    sender: Sender,
    answer: Response,
    left: bytes::Bytes,
}

impl Read for Body {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.left.is_empty() {
            self.sender.progress.check()?;
            let chunk = self.sender.runtime.block_on(self.answer.chunk());
            match chunk.map_err(|error| self.sender.broke(error))? {
                None => return Ok(0),
                Some(chunk) => self.left = chunk,
            }
            self.sender.progress.add(self.left.len() as u64);
        }
        let length = buffer.len().min(self.left.len());
        buffer[..length].copy_from_slice(&self.left.split_to(length));
        Ok(length)
    }
}

/// A POST is sent when its answer is first read: until then its body is being written.
pub(super) enum Posting {
    Writing(Box<(Sender, RequestBuilder)>, Vec<u8>),
    Answered(Option<Box<dyn BufRead + Send>>),
}

type Shared = Arc<Mutex<Posting>>;

fn answered<T>(shared: &Shared, take: impl FnOnce(&mut Vec<u8>, &mut dyn BufRead) -> T) -> io::Result<T> {
    let mut posting = shared.lock().unwrap_or_else(PoisonError::into_inner);
    let mut headers = Vec::new();
    if let Posting::Writing(parts, body) = &mut *posting {
        let (sender, request) = parts.as_ref();
        let request = request.try_clone().ok_or_else(|| io::Error::other("the request can't be sent"))?;
        let answer = sender.send(request.body(std::mem::take(body)))?;
        headers = lines(&answer);
        let body = Body { sender: sender.clone(), answer, left: bytes::Bytes::new() };
        *posting = Posting::Answered(Some(Box::new(BufReader::with_capacity(64 << 10, body))));
    }
    match &mut *posting {
        Posting::Answered(Some(body)) => Ok(take(&mut headers, body.as_mut())),
        _ => Err(io::Error::other("the answer was read already")),
    }
}

/// The body that is being written.
pub(super) struct PostBody(Shared);

impl Write for PostBody {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        let mut posting = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match &mut *posting {
            Posting::Writing(_, body) => body.extend_from_slice(buffer),
            Posting::Answered(_) => return Err(io::Error::other("the request was sent already")),
        }
        Ok(buffer.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The headers of an answer.
pub(super) enum Headers {
    There(Cursor<Vec<u8>>),
    Coming(Shared),
}

impl Headers {
    fn there(&mut self) -> io::Result<&mut Cursor<Vec<u8>>> {
        if let Self::Coming(shared) = self {
            let text = answered(shared, |headers, _| std::mem::take(headers))?;
            *self = Self::There(Cursor::new(text));
        }
        match self {
            Self::There(cursor) => Ok(cursor),
            Self::Coming(_) => Err(io::Error::other("the answer has no headers")),
        }
    }
}

impl Read for Headers {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.there()?.read(buffer)
    }
}

impl BufRead for Headers {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        self.there()?.fill_buf()
    }

    fn consume(&mut self, amount: usize) {
        if let Self::There(cursor) = self {
            cursor.consume(amount);
        }
    }
}

/// The body of an answer.
pub(super) enum Answer {
    There(Box<dyn BufRead + Send>),
    Coming(Shared),
}

impl Answer {
    fn there(&mut self) -> io::Result<&mut Box<dyn BufRead + Send>> {
        if let Self::Coming(shared) = self {
            answered(shared, |_, _| ())?;
            let body = match &mut *shared.lock().unwrap_or_else(PoisonError::into_inner) {
                Posting::Answered(body) => body.take(),
                Posting::Writing(..) => None,
            };
            *self = Self::There(body.ok_or_else(|| io::Error::other("the answer was read already"))?);
        }
        match self {
            Self::There(body) => Ok(body),
            Self::Coming(_) => Err(io::Error::other("there is no answer")),
        }
    }
}

impl Read for Answer {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.there()?.read(buffer)
    }
}

impl BufRead for Answer {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        self.there()?.fill_buf()
    }

    fn consume(&mut self, amount: usize) {
        if let Self::There(body) = self {
            body.consume(amount);
        }
    }
}

impl Http for Web {
    type Headers = Headers;
    type ResponseBody = Answer;
    type PostBody = PostBody;

    fn get(
        &mut self,
        url: &str,
        base_url: &str,
        headers: impl IntoIterator<Item = impl AsRef<str>>,
    ) -> gix::Result<GetResponse<Headers, Answer>> {
        let sender = self.sender();
        let request = self.request(reqwest::Method::GET, url, headers).map_err(gix::Error::from_error)?;
        let answer = sender.send(request).map_err(gix::Error::from_error)?;
        let tail = url.strip_prefix(base_url).unwrap_or_default();
        self.moved = answer.url().as_str().strip_suffix(tail).map(str::to_owned);
        let headers = Headers::There(Cursor::new(lines(&answer)));
        let body = Body { sender, answer, left: bytes::Bytes::new() };
        Ok(GetResponse { headers, body: Answer::There(Box::new(BufReader::new(body))) })
    }

    fn post(
        &mut self,
        url: &str,
        _base_url: &str,
        headers: impl IntoIterator<Item = impl AsRef<str>>,
        _body: PostBodyDataKind,
    ) -> gix::Result<PostResponse<Headers, Answer, PostBody>> {
        let request = self.request(reqwest::Method::POST, url, headers).map_err(gix::Error::from_error)?;
        let shared = Arc::new(Mutex::new(Posting::Writing(Box::new((self.sender(), request)), Vec::new())));
        Ok(PostResponse {
            post_body: PostBody(Arc::clone(&shared)),
            headers: Headers::Coming(Arc::clone(&shared)),
            body: Answer::Coming(shared),
        })
    }

    fn configure(&mut self, _config: &dyn Any) -> gix::Result<()> {
        Ok(())
    }

    fn redirected_base_url(&self) -> Option<String> {
        self.moved.clone()
    }
}
