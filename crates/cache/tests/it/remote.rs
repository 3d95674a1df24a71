//! A registry on loopback, and small images in it.

use std::collections::{HashMap, HashSet, VecDeque};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use kiln_oci::{
    Descriptor, DescriptorPlatform, DiffId, Digest, Document, ImageConfig, Index, Manifest, Platform,
    Reference, media_type,
};
use kiln_registry::{Registry, RegistryOptions, RetryPolicy};

/// The registry. It stops with the test.
pub(crate) struct Remote {
    port: u16,
    state: Arc<Mutex<State>>,
}

/// What it holds, how it fails, what it was asked.
#[derive(Default)]
pub(crate) struct State {
    pub(crate) blobs: HashMap<String, Vec<u8>>,
    /// By tag or digest: media type and bytes.
    pub(crate) manifests: HashMap<String, (String, Vec<u8>)>,
    /// Method and path of each request.
    pub(crate) requests: Vec<String>,
    /// For a blob: after how many bytes each of its next answers breaks off.
    pub(crate) cuts: HashMap<String, VecDeque<usize>>,
    /// Blobs of which every answer has a flipped bit.
    pub(crate) lies: HashSet<String>,
    /// Answer nothing at all.
    pub(crate) down: bool,
    /// Pause between pieces of 16 KiB of a blob.
    pub(crate) pause: Duration,
}

/// An image with real layers.
pub(crate) struct TestImage {
    pub(crate) manifest: Document<Manifest>,
    pub(crate) config: Document<ImageConfig>,
    pub(crate) layers: Vec<Vec<u8>>,
}

pub(crate) fn amd64() -> Platform {
    Platform::new("linux", "amd64", None)
}

pub(crate) fn arm64() -> Platform {
    Platform::new("linux", "arm64", None)
}

/// An image of which each layer is a tar with one file of that name and content.
pub(crate) fn image(platform: &Platform, files: &[(&str, &[u8])]) -> TestImage {
    let tars: Vec<Vec<u8>> = files
        .iter()
        .map(|(name, content)| {
            let mut tar = tar::Builder::new(Vec::new());
            let mut header = tar::Header::new_gnu();
            header.set_mode(0o644);
            header.set_size(content.len() as u64);
            tar.append_data(&mut header, name, *content).unwrap();
            tar.into_inner().unwrap()
        })
        .collect();
    let mut config = ImageConfig::scratch(platform);
    config.rootfs.diff_ids = tars.iter().map(|tar| DiffId::from_digest(&Digest::of(tar)).unwrap()).collect();
    let config = Document::author(config);
    let layers: Vec<Descriptor> = tars
        .iter()
        .map(|tar| Descriptor::new(media_type::OCI_LAYER, Digest::of(tar), tar.len() as u64))
        .collect();
    let config_descriptor = Descriptor::new(media_type::OCI_CONFIG, config.digest().clone(), config.size());
    let manifest = Document::author(Manifest::new(media_type::OCI_MANIFEST, config_descriptor, layers));
    TestImage { manifest, config, layers: tars }
}

impl TestImage {
    /// All blobs, the manifest among them.
    pub(crate) fn digests(&self) -> Vec<Digest> {
        let layers = self.layers.iter().map(|layer| Digest::of(layer));
        layers.chain([self.config.digest().clone(), self.manifest.digest().clone()]).collect()
    }

    pub(crate) fn layer(&self, number: usize) -> Descriptor {
        self.manifest.value().layers[number].clone()
    }
}

impl Remote {
    pub(crate) fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let state = Arc::new(Mutex::new(State::default()));
        let shared = Arc::clone(&state);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let state = Arc::clone(&shared);
                std::thread::spawn(move || serve(&stream, &state));
            }
        });
        Self { port, state }
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    pub(crate) fn reference(&self, name: &str) -> Reference {
        format!("127.0.0.1:{}/{name}", self.port).parse().unwrap()
    }

    /// Holds `image` under its digest, and under `tag`.
    pub(crate) fn put(&self, tag: &str, image: &TestImage) {
        let mut state = self.state();
        state.put_image(image);
        let answer = (media_type::OCI_MANIFEST.to_owned(), image.manifest.raw().to_vec());
        state.manifests.insert(tag.to_owned(), answer);
    }

    /// Holds an index over `images` under `tag`; gives its digest.
    pub(crate) fn put_index(&self, tag: &str, images: &[&TestImage]) -> Digest {
        let mut state = self.state();
        let manifests = images.iter().map(|image| {
            state.put_image(image);
            let platform = image.config.value().platform().unwrap();
            let size = image.manifest.size();
            let mut descriptor =
                Descriptor::new(media_type::OCI_MANIFEST, image.manifest.digest().clone(), size);
            descriptor.platform = Some(DescriptorPlatform {
                architecture: platform.architecture,
                os: platform.os,
                os_version: None,
                variant: platform.variant,
                other: serde_json::Map::new(),
            });
            descriptor
        });
        let index = Document::author(Index::new(media_type::OCI_INDEX, manifests.collect()));
        for name in [tag.to_owned(), index.digest().to_string()] {
            state.manifests.insert(name, (media_type::OCI_INDEX.to_owned(), index.raw().to_vec()));
        }
        index.digest().clone()
    }

    /// The requests since the last call.
    pub(crate) fn requests(&self) -> Vec<String> {
        std::mem::take(&mut self.state().requests)
    }

    /// How often the bytes of `digest` were asked for since the last call of [`Remote::requests`].
    pub(crate) fn downloads(&self, digest: &Digest) -> usize {
        let wanted = format!("/blobs/{digest}");
        self.state().requests.iter().filter(|line| line.starts_with("GET") && line.ends_with(&wanted)).count()
    }

    /// A client with short patience.
    pub(crate) fn client(&self) -> Registry {
        let retries = RetryPolicy {
            pull: 2,
            push: 2,
            base: Duration::from_millis(1),
            longest: Duration::from_millis(5),
            stall: Duration::from_secs(5),
        };
        Registry::new(RegistryOptions { retries, ..RegistryOptions::default() }).unwrap()
    }
}

impl State {
    fn put_image(&mut self, image: &TestImage) {
        for layer in &image.layers {
            self.blobs.insert(Digest::of(layer).to_string(), layer.clone());
        }
        self.blobs.insert(image.config.digest().to_string(), image.config.raw().to_vec());
        let answer = (media_type::OCI_MANIFEST.to_owned(), image.manifest.raw().to_vec());
        self.manifests.insert(image.manifest.digest().to_string(), answer);
    }
}

/// Answers one request.
fn serve(stream: &TcpStream, state: &Mutex<State>) {
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    if reader.read_line(&mut line).is_err() || !line.contains("HTTP/1.1") {
        return;
    }
    let mut parts = line.split(' ');
    let (method, path) =
        (parts.next().unwrap_or_default().to_owned(), parts.next().unwrap_or_default().to_owned());
    let mut from = 0;
    loop {
        let mut header = String::new();
        if reader.read_line(&mut header).is_err() || header.trim().is_empty() {
            break;
        }
        if let Some(range) = header.to_ascii_lowercase().strip_prefix("range: bytes=") {
            from = range.trim().trim_end_matches('-').parse().unwrap_or(0);
        }
    }
    let answer = {
        let mut state = state.lock().unwrap();
        if state.down {
            return;
        }
        if path != "/v2/" {
            state.requests.push(format!("{method} {path}"));
        }
        state.answer(&path, from)
    };
    let _ = send(stream, &method, answer);
}

struct Answer {
    head: String,
    body: Vec<u8>,
    /// Send so many bytes and hang up.
    cut: Option<usize>,
    pause: Duration,
}

impl State {
    fn answer(&mut self, path: &str, from: usize) -> Answer {
        let plain = |status: &str| Answer {
            head: format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\n"),
            body: Vec::new(),
            cut: None,
            pause: Duration::ZERO,
        };
        if path == "/v2/" {
            return plain("200 OK");
        }
        if let Some((_, name)) = path.split_once("/manifests/") {
            let Some((kind, body)) = self.manifests.get(name) else { return plain("404 Not Found") };
            let head = format!(
                "HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nContent-Length: {}\r\nDocker-Content-Digest: {}\r\n",
                body.len(),
                Digest::of(body)
            );
            return Answer { head, body: body.clone(), cut: None, pause: Duration::ZERO };
        }
        let Some((_, name)) = path.split_once("/blobs/") else { return plain("404 Not Found") };
        let Some(body) = self.blobs.get(name) else { return plain("404 Not Found") };
        let mut body = body.clone();
        if self.lies.contains(name) {
            body[0] ^= 1;
        }
        let whole = body.len();
        let status = if from > 0 { "206 Partial Content" } else { "200 OK" };
        let body = body.split_off(from.min(whole));
        let head = format!(
            "HTTP/1.1 {status}\r\nContent-Length: {}\r\nContent-Range: bytes {from}-{}/{whole}\r\n",
            body.len(),
            whole.saturating_sub(1)
        );
        let cut = self.cuts.get_mut(name).and_then(VecDeque::pop_front);
        Answer { head, body, cut, pause: self.pause }
    }
}

fn send(mut stream: &TcpStream, method: &str, answer: Answer) -> std::io::Result<()> {
    stream.write_all(answer.head.as_bytes())?;
    stream.write_all(b"Connection: close\r\n\r\n")?;
    if method == "HEAD" {
        return Ok(());
    }
    let end = answer.cut.unwrap_or(answer.body.len()).min(answer.body.len());
    for piece in answer.body[..end].chunks(16 << 10) {
        stream.write_all(piece)?;
        std::thread::sleep(answer.pause);
    }
    stream.flush()?;
    stream.shutdown(std::net::Shutdown::Write)?;
    // Until the other side hangs up: nothing that was sent gets lost.
    let _ = stream.read(&mut [0; 1]);
    Ok(())
}
