//! Serving one request: which route it is, what the script says, and then the protocol.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use kiln_oci::Digest;
use serde_json::{Value, json};

use super::auth;
use super::body::{End, Scripted};
use super::{Contents, Fault, RegistryBuilder, Route, Seen, State};

/// What a path means.
struct Target {
    route: Route,
    repository: String,
    /// The tag, the digest or the upload's number.
    name: String,
}

/// An answer that was not yet spoilt by the script.
struct Plain {
    status: u16,
    headers: Vec<(&'static str, String)>,
    body: Bytes,
}

impl Plain {
    fn new(status: u16) -> Self {
        Self { status, headers: Vec::new(), body: Bytes::new() }
    }

    fn error(status: u16, code: &str, message: &str) -> Self {
        let body = json!({ "errors": [{ "code": code, "message": message }] }).to_string();
        Self::new(status).header("content-type", "application/json").body(body)
    }

    fn header(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    fn headers(mut self, more: impl IntoIterator<Item = (&'static str, String)>) -> Self {
        self.headers.extend(more);
        self
    }

    fn body(mut self, body: impl Into<Bytes>) -> Self {
        self.body = body.into();
        self
    }
}

pub(super) async fn serve(
    state: Arc<State>,
    request: Request<Incoming>,
) -> Result<Response<Scripted>, io::Error> {
    let (parts, incoming) = request.into_parts();
    let query = parse_query(parts.uri.query().unwrap_or_default());
    let target = target(&parts.method, parts.uri.path());
    let fault = {
        let mut contents = state.lock();
        contents.seen.push(Seen {
            route: target.route,
            method: parts.method.to_string(),
            http2: parts.version == http::Version::HTTP_2,
            path: parts.uri.path().to_owned(),
            query: parts.uri.query().unwrap_or_default().to_owned(),
            headers: parts
                .headers
                .iter()
                .map(|(name, value)| {
                    (name.to_string(), String::from_utf8_lossy(value.as_bytes()).into_owned())
                })
                .collect(),
        });
        let scripted = contents.script.get_mut(&target.route).and_then(std::collections::VecDeque::pop_front);
        scripted.or_else(|| contents.always.get(&target.route).cloned())
    };
    let fault = fault.unwrap_or(Fault::Serve);
    match &fault {
        Fault::AwaitOthers(route, count) => await_others(&state, *route, *count).await,
        Fault::Reset => return Err(io::ErrorKind::ConnectionReset.into()),
        Fault::Status(status) => return Ok(respond(&parts.method, Plain::new(*status), &Fault::Serve)),
        Fault::Answer(status, text) => {
            return Ok(respond(&parts.method, Plain::new(*status).body(text.clone()), &Fault::Serve));
        }
        Fault::RetryAfter(status, seconds) => {
            let answer = Plain::new(*status).header("retry-after", seconds.to_string());
            return Ok(respond(&parts.method, answer, &Fault::Serve));
        }
        Fault::RedirectTo(url) => {
            return Ok(respond(&parts.method, Plain::new(307).header("location", url), &Fault::Serve));
        }
        Fault::Stall(_)
            if matches!(target.route, Route::UploadPatch | Route::UploadPut | Route::ManifestPut) =>
        {
            std::future::pending::<()>().await;
        }
        _ => {}
    }
    let uploading = matches!(target.route, Route::UploadPatch | Route::UploadPut);
    let most = match fault {
        Fault::CutAfter(most) if uploading => Some(most),
        _ => None,
    };
    if let Some(limit) = state.settings.largest_request {
        let length = parts.headers.get("content-length").and_then(|v| v.to_str().ok()?.parse::<usize>().ok());
        if length.is_some_and(|length| length > limit) {
            // The body is not read: the connection ends after the answer, as a proxy does it.
            let answer = Plain::new(413).header("connection", "close");
            return Ok(respond(&parts.method, answer, &Fault::Serve));
        }
    }
    let (body, cut) = read(incoming, most).await?;
    let answer = if cut {
        let _ = upload_more(&mut state.lock(), &target, &body);
        return Err(io::ErrorKind::ConnectionReset.into());
    } else if target.route == Route::Token {
        token(&state, &parts.headers, &parts.method, query, &body)
    } else {
        authorised(&state, &target, &parts.headers, &query, body, &fault)
    };
    if fault == Fault::LoseAnswer {
        return Err(io::ErrorKind::ConnectionReset.into());
    }
    Ok(respond(&parts.method, answer, &fault))
}

/// Waits until so many requests of this kind were seen.
async fn await_others(state: &State, route: Route, count: usize) {
    while state.lock().seen.iter().filter(|seen| seen.route == route).count() < count {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// Reads a request's body, or its first `most` bytes; also gives whether it was cut there.
async fn read(mut incoming: Incoming, most: Option<usize>) -> Result<(Vec<u8>, bool), io::Error> {
    let mut body = Vec::new();
    while let Some(frame) = incoming.frame().await {
        let frame = frame.map_err(|_| io::Error::from(io::ErrorKind::ConnectionReset))?;
        if let Ok(data) = frame.into_data() {
            body.extend_from_slice(&data);
        }
        if let Some(most) = most.filter(|most| body.len() >= *most) {
            body.truncate(most);
            return Ok((body, true));
        }
    }
    Ok((body, false))
}

fn respond(method: &Method, answer: Plain, fault: &Fault) -> Response<Scripted> {
    let mut body = answer.body;
    let length = body.len();
    let (mut claimed, mut end) = (length, End::Proper);
    match fault {
        Fault::CutAfter(most) => {
            body.truncate(*most);
            end = End::Break;
        }
        Fault::Stall(most) => {
            body.truncate(*most);
            end = End::Never;
        }
        Fault::WrongLength(more) => {
            claimed += more;
            end = End::Break;
        }
        Fault::Truncate(most) => {
            body.truncate(*most);
            claimed = body.len();
        }
        Fault::WrongBytes if length > 0 => {
            let mut bytes = body.to_vec();
            bytes[length / 2] ^= 1;
            body = bytes.into();
        }
        Fault::Endless => end = End::Repeat,
        _ => {}
    }
    let mut response = Response::builder().status(answer.status);
    for (name, value) in answer.headers {
        response = response.header(name, value);
    }
    let head = *method == Method::HEAD;
    if head || (end != End::Proper && *fault != Fault::Endless) {
        response = response.header("content-length", claimed);
    }
    let mut body = if head { Scripted::new(Bytes::new(), End::Proper) } else { Scripted::new(body, end) };
    if let Fault::Slow(rate) = fault {
        body = body.slowly(*rate);
    }
    response.body(body).expect("the headers are valid")
}

fn target(method: &Method, path: &str) -> Target {
    let make = |route, repository: &str, name: &str| Target {
        route,
        repository: repository.to_owned(),
        name: name.to_owned(),
    };
    if path == "/token" {
        return make(Route::Token, "", "");
    }
    let Some(rest) = path.strip_prefix("/v2/") else { return make(Route::Other, "", "") };
    if rest.is_empty() {
        return make(Route::Ping, "", "");
    }
    if let Some((repository, name)) = rest.rsplit_once("/manifests/") {
        let route = match *method {
            Method::HEAD => Route::ManifestHead,
            Method::GET => Route::Manifest,
            Method::PUT => Route::ManifestPut,
            _ => Route::Other,
        };
        return make(route, repository, name);
    }
    if let Some((repository, name)) = rest.rsplit_once("/blobs/uploads/") {
        let route = match *method {
            Method::POST => Route::UploadStart,
            Method::PATCH => Route::UploadPatch,
            Method::PUT => Route::UploadPut,
            Method::GET => Route::UploadStatus,
            Method::DELETE => Route::UploadCancel,
            _ => Route::Other,
        };
        return make(route, repository, name);
    }
    if let Some((repository, name)) = rest.rsplit_once("/blobs/") {
        let route = match *method {
            Method::HEAD => Route::BlobHead,
            Method::GET => Route::Blob,
            _ => Route::Other,
        };
        return make(route, repository, name);
    }
    match rest.rsplit_once("/referrers/") {
        Some((repository, name)) => make(Route::Referrers, repository, name),
        None => make(Route::Other, "", ""),
    }
}

type Query = Vec<(String, String)>;

fn parse_query(text: &str) -> Query {
    text.split('&')
        .filter(|pair| !pair.is_empty())
        .map(|pair| {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            (decode(key), decode(value))
        })
        .collect()
}

fn decode(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'+' => b' ',
            b'%' => {
                let digits = [rest.next().unwrap_or(0), rest.next().unwrap_or(0)];
                let digits = std::str::from_utf8(&digits).unwrap_or_default();
                u8::from_str_radix(digits, 16).unwrap_or(b'?')
            }
            other => other,
        });
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn find<'a>(query: &'a Query, name: &str) -> Option<&'a str> {
    query.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
}

fn header<'a>(headers: &'a HeaderMap, name: &str) -> &'a str {
    headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
}

fn token(state: &State, headers: &HeaderMap, method: &Method, mut query: Query, body: &[u8]) -> Plain {
    if *method == Method::POST {
        query = parse_query(&String::from_utf8_lossy(body));
    }
    let header = header(headers, "authorization");
    let (status, body) = auth::token(&state.settings.auth, &mut state.lock().tokens, header, &query);
    Plain::new(status).header("content-type", "application/json").body(body)
}

fn authorised(
    state: &State,
    target: &Target,
    headers: &HeaderMap,
    query: &Query,
    body: Vec<u8>,
    fault: &Fault,
) -> Plain {
    let action = match target.route {
        Route::Manifest | Route::ManifestHead | Route::Blob | Route::BlobHead | Route::Referrers => "pull",
        _ => "push",
    };
    let needed = (!target.repository.is_empty()).then_some((target.repository.as_str(), action));
    let mut contents = state.lock();
    let login = header(headers, "authorization");
    if let Err(challenge) = auth::check(&state.settings.auth, &contents.tokens, login, needed, &state.url()) {
        return Plain::error(401, "UNAUTHORIZED", "authentication required")
            .header("www-authenticate", challenge);
    }
    let contents = &mut *contents;
    match target.route {
        Route::Ping => Plain::new(200).body("{}"),
        Route::Manifest | Route::ManifestHead => manifest(contents, target),
        Route::ManifestPut => put_manifest(contents, target, headers, body, &state.settings),
        Route::Blob | Route::BlobHead => {
            let range = if *fault == Fault::IgnoreRange { "" } else { header(headers, "range") };
            blob(contents, target, range)
        }
        Route::UploadStart => start(contents, target, query, !state.settings.no_mounts),
        Route::UploadPatch => patch(contents, target, header(headers, "content-range"), &body),
        Route::UploadStatus => progress(contents, target, 204),
        Route::UploadCancel => {
            let known = target.name.parse().ok().and_then(|id: u64| contents.uploads.remove(&id));
            Plain::new(if known.is_some() { 204 } else { 404 })
        }
        Route::UploadPut => finish(contents, target, query, &body),
        Route::Referrers if state.settings.referrers.is_some() => referrers(contents, target),
        Route::Token | Route::Referrers | Route::Other => Plain::new(404),
    }
}

fn manifest(contents: &Contents, target: &Target) -> Plain {
    match contents.manifests.get(&(target.repository.clone(), target.name.clone())) {
        Some((media_type, raw)) => Plain::new(200)
            .header("content-type", media_type)
            .header("docker-content-digest", Digest::of(raw).to_string())
            .body(raw.clone()),
        None => Plain::error(404, "MANIFEST_UNKNOWN", "manifest unknown"),
    }
}

fn put_manifest(
    contents: &mut Contents,
    target: &Target,
    headers: &HeaderMap,
    raw: Vec<u8>,
    settings: &RegistryBuilder,
) -> Plain {
    let Ok(value) = serde_json::from_slice::<Value>(&raw) else {
        return Plain::error(400, "MANIFEST_INVALID", "no JSON");
    };
    let key = (target.repository.clone(), target.name.clone());
    if settings.immutable_tags && contents.manifests.contains_key(&key) {
        let message = format!(
            "The image tag '{}' already exists in the '{}' repository and cannot be overwritten because the repository is immutable.",
            target.name, target.repository
        );
        return Plain::error(400, "TAG_INVALID", &message);
    }
    let named = |value: &Value| value["digest"].as_str().unwrap_or_default().to_owned();
    let parts = value["layers"].as_array().into_iter().flatten().chain(value.get("config"));
    for digest in parts.filter(|part| !is_foreign(part)).map(named) {
        let known = digest
            .parse()
            .is_ok_and(|digest: Digest| contents.blobs.contains_key(&(target.repository.clone(), digest)));
        if !known {
            return Plain::error(400, "MANIFEST_BLOB_UNKNOWN", &digest);
        }
    }
    for digest in value["manifests"].as_array().into_iter().flatten().map(named) {
        if !contents.manifests.contains_key(&(target.repository.clone(), digest.clone())) {
            return Plain::error(400, "MANIFEST_UNKNOWN", &digest);
        }
    }
    let digest = Digest::of(&raw);
    let subject = value["subject"]["digest"].as_str().filter(|_| settings.referrers == Some(true));
    let stored = (header(headers, "content-type").to_owned(), Bytes::from(raw));
    contents.manifests.insert((target.repository.clone(), digest.to_string()), stored.clone());
    contents.manifests.insert(key, stored);
    Plain::new(201)
        .header("location", format!("/v2/{}/manifests/{digest}", target.repository))
        .header("docker-content-digest", digest.to_string())
        .headers(subject.map(|subject| ("oci-subject", subject.to_owned())))
}

fn referrers(contents: &Contents, target: &Target) -> Plain {
    let mut listed = Vec::new();
    for ((repository, name), (kind, raw)) in &contents.manifests {
        let value: Value = serde_json::from_slice(raw).unwrap_or_default();
        if *repository == target.repository && name.contains(':') && value["subject"]["digest"] == target.name
        {
            listed.push(json!({"mediaType": kind, "digest": name, "size": raw.len()}));
        }
    }
    let kind = kiln_oci::media_type::OCI_INDEX;
    let index = json!({"schemaVersion": 2, "mediaType": kind, "manifests": listed});
    Plain::new(200).header("content-type", kind).body(index.to_string())
}

fn is_foreign(layer: &Value) -> bool {
    layer["mediaType"].as_str().is_some_and(kiln_oci::media_type::is_foreign)
}

fn blob(contents: &Contents, target: &Target, range: &str) -> Plain {
    let found = target
        .name
        .parse()
        .ok()
        .and_then(|digest| contents.blobs.get(&(target.repository.clone(), digest)).cloned());
    let Some(bytes) = found else { return Plain::error(404, "BLOB_UNKNOWN", "blob unknown") };
    let answer = Plain::new(200)
        .header("content-type", "application/octet-stream")
        .header("docker-content-digest", target.name.clone());
    let range = range.strip_prefix("bytes=").and_then(|rest| {
        let (start, last) = rest.split_once('-')?;
        let last = if last.is_empty() { usize::MAX } else { last.parse().ok()? };
        Some((start.parse::<usize>().ok()?, last.min(bytes.len().saturating_sub(1))))
    });
    match range {
        None => answer.body(bytes),
        Some((start, last)) if start <= last => {
            let mut answer = answer.header("content-range", format!("bytes {start}-{last}/{}", bytes.len()));
            answer.status = 206;
            answer.body(bytes.slice(start..=last))
        }
        Some(_) => Plain::new(StatusCode::RANGE_NOT_SATISFIABLE.as_u16()),
    }
}

fn start(contents: &mut Contents, target: &Target, query: &Query, mounts: bool) -> Plain {
    if let (Some(digest), Some(from), true) = (find(query, "mount"), find(query, "from"), mounts) {
        let digest: Option<Digest> = digest.parse().ok();
        let found = digest.and_then(|digest| {
            let bytes = contents.blobs.get(&(from.to_owned(), digest.clone()))?.clone();
            Some((digest, bytes))
        });
        if let Some((digest, bytes)) = found {
            let location = format!("/v2/{}/blobs/{digest}", target.repository);
            contents.blobs.insert((target.repository.clone(), digest), bytes);
            return Plain::new(201).header("location", location);
        }
    }
    contents.serial += 1;
    contents.uploads.insert(contents.serial, Vec::new());
    Plain::new(202)
        .header("location", format!("/v2/{}/blobs/uploads/{}?state=x", target.repository, contents.serial))
        .header("range", "0-0")
}

fn upload_more(contents: &mut Contents, target: &Target, body: &[u8]) -> Option<usize> {
    let upload = contents.uploads.get_mut(&target.name.parse().ok()?)?;
    upload.extend_from_slice(body);
    Some(upload.len())
}

fn progress(contents: &Contents, target: &Target, status: u16) -> Plain {
    match target.name.parse().ok().and_then(|id: u64| contents.uploads.get(&id)) {
        Some(upload) => Plain::new(status)
            .header("location", format!("/v2/{}/blobs/uploads/{}?state=y", target.repository, target.name))
            .header("range", format!("0-{}", upload.len().saturating_sub(1))),
        None => Plain::error(404, "BLOB_UPLOAD_UNKNOWN", "upload unknown"),
    }
}

fn patch(contents: &mut Contents, target: &Target, range: &str, body: &[u8]) -> Plain {
    let have = target.name.parse().ok().and_then(|id: u64| contents.uploads.get(&id)).map(Vec::len);
    let start = range.split('-').next().and_then(|start| start.parse::<usize>().ok());
    match (have, start) {
        (Some(have), Some(start)) if have != start => Plain::new(416),
        _ => {
            upload_more(contents, target, body);
            progress(contents, target, 202)
        }
    }
}

fn finish(contents: &mut Contents, target: &Target, query: &Query, body: &[u8]) -> Plain {
    if upload_more(contents, target, body).is_none() {
        return Plain::error(404, "BLOB_UPLOAD_UNKNOWN", "upload unknown");
    }
    let bytes = target.name.parse().ok().and_then(|id: u64| contents.uploads.remove(&id)).unwrap_or_default();
    let digest: Option<Digest> = find(query, "digest").and_then(|text| text.parse().ok());
    match digest {
        Some(digest) if digest == Digest::of(&bytes) => {
            let location = format!("/v2/{}/blobs/{digest}", target.repository);
            contents.blobs.insert((target.repository.clone(), digest), bytes.into());
            Plain::new(201).header("location", location)
        }
        _ => Plain::error(400, "DIGEST_INVALID", "provided digest did not match uploaded content"),
    }
}
