//! Repositories, and `git http-backend` behind a small server.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};

/// A working copy in which a test commits, and the bare repository that is served.
pub struct Repo {
    work: PathBuf,
    bare: PathBuf,
}

/// Runs git without anybody's configuration. Gives what it prints.
fn git(directory: &Path, words: &[&str]) -> String {
    let output = Command::new("git")
        .current_dir(directory)
        .args(["-c", "protocol.file.allow=always"])
        .args(words)
        .env("GIT_CONFIG_GLOBAL", "/dev/null")
        .env("GIT_CONFIG_SYSTEM", "/dev/null")
        .envs([("GIT_AUTHOR_NAME", "a"), ("GIT_AUTHOR_EMAIL", "a@example.com")])
        .envs([("GIT_COMMITTER_NAME", "a"), ("GIT_COMMITTER_EMAIL", "a@example.com")])
        .envs([("GIT_AUTHOR_DATE", "1700000000 +0000"), ("GIT_COMMITTER_DATE", "1700000000 +0000")])
        .output()
        .expect("git is installed: integration/scripts/install-test-tools");
    assert!(output.status.success(), "git {words:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

impl Repo {
    /// An empty repository `name.git` below `root`.
    pub fn new(root: &Path, name: &str) -> Self {
        let (work, bare) = (root.join(format!("{name}-work")), root.join(format!("{name}.git")));
        git(root, &["init", "-q", "-b", "main", work.to_str().unwrap()]);
        git(root, &["init", "-q", "--bare", "-b", "main", bare.to_str().unwrap()]);
        Self { work, bare }
    }

    /// Runs git in the working copy.
    pub fn git(&self, words: &[&str]) -> String {
        git(&self.work, words)
    }

    /// Runs git in the bare repository.
    pub fn bare(&self, words: &[&str]) -> String {
        git(&self.bare, words)
    }

    /// Writes a file of the working copy.
    pub fn file(&self, name: &str, content: &str) -> &Self {
        let path = self.work.join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, content).unwrap();
        self
    }

    /// The working copy.
    pub fn work(&self) -> &Path {
        &self.work
    }

    /// Where the bare repository is.
    pub fn path(&self) -> &Path {
        &self.bare
    }

    /// Commits all that is there and sends branches and tags to the bare repository. Gives the commit.
    pub fn commit(&self) -> String {
        self.git(&["add", "-A"]);
        self.git(&["commit", "-q", "-m", "a commit"]);
        self.send();
        self.git(&["rev-parse", "HEAD"])
    }

    /// Sends branches and tags.
    pub fn send(&self) {
        let bare = self.bare.to_str().unwrap().to_owned();
        self.git(&["push", "-q", "--force", "--all", &bare]);
        self.git(&["push", "-q", "--force", "--tags", &bare]);
    }
}

/// Serves the bare repositories below a folder by git's smart HTTP protocol.
pub struct GitServer {
    port: u16,
    seen: Arc<Mutex<Vec<String>>>,
}

impl GitServer {
    /// Starts it. With `login` (`user:password`), it wants that from everybody.
    pub fn start(root: &Path, login: Option<&str>) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let seen: Arc<Mutex<Vec<String>>> = Arc::default();
        let (root, login, kept) = (root.to_owned(), login.map(base64), Arc::clone(&seen));
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (root, login, kept) = (root.clone(), login.clone(), Arc::clone(&kept));
                std::thread::spawn(move || answer(stream, &root, login.as_deref(), &kept));
            }
        });
        Self { port, seen }
    }

    /// Its port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// A repository's address.
    pub fn url(&self, name: &str) -> String {
        format!("http://127.0.0.1:{}/{name}.git", self.port)
    }

    /// The `Authorization` headers that it got.
    pub fn logins(&self) -> Vec<String> {
        self.seen.lock().unwrap().clone()
    }
}

fn base64(text: &str) -> String {
    const DIGITS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    text.as_bytes()
        .chunks(3)
        .flat_map(|three| {
            let bits = three
                .iter()
                .enumerate()
                .fold(0u32, |bits, (at, byte)| bits | u32::from(*byte) << (16 - 8 * at));
            (0..4).map(move |at| {
                if at <= three.len() {
                    char::from(DIGITS[(bits >> (18 - 6 * at) & 63) as usize])
                } else {
                    '='
                }
            })
        })
        .collect()
}

fn answer(stream: TcpStream, root: &Path, login: Option<&str>, seen: &Mutex<Vec<String>>) -> Option<()> {
    let mut reader = BufReader::new(stream.try_clone().ok()?);
    let mut out = stream;
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).ok()? == 0 {
            return None;
        }
        let mut words = line.split_whitespace();
        let (method, target) = (words.next()?.to_owned(), words.next()?.to_owned());
        let mut headers = std::collections::HashMap::new();
        loop {
            let mut line = String::new();
            reader.read_line(&mut line).ok()?;
            let Some((name, value)) = line.trim_end().split_once(':') else { break };
            headers.insert(name.to_ascii_lowercase(), value.trim().to_owned());
        }
        let length = headers.get("content-length").and_then(|text| text.parse().ok()).unwrap_or(0);
        let mut body = vec![0; length];
        reader.read_exact(&mut body).ok()?;
        let shown = headers.get("authorization").cloned().unwrap_or_default();
        seen.lock().unwrap().push(shown.clone());
        if login.is_some_and(|login| shown != format!("Basic {login}")) {
            let text = "HTTP/1.1 401 Unauthorized\r\nwww-authenticate: Basic realm=\"git\"\r\ncontent-length: 0\r\n\r\n";
            out.write_all(text.as_bytes()).ok()?;
            continue;
        }
        backend(&mut out, root, &method, &target, &headers, &body)?;
    }
}

fn backend(
    out: &mut TcpStream,
    root: &Path,
    method: &str,
    target: &str,
    headers: &std::collections::HashMap<String, String>,
    body: &[u8],
) -> Option<()> {
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let get = |name: &str| headers.get(name).cloned().unwrap_or_default();
    let mut child = Command::new("git")
        .arg("http-backend")
        .env("GIT_PROJECT_ROOT", root)
        .env("GIT_HTTP_EXPORT_ALL", "1")
        .env("GIT_CONFIG_GLOBAL", "/dev/null")
        .env("REQUEST_METHOD", method)
        .env("PATH_INFO", path)
        .env("QUERY_STRING", query)
        .env("CONTENT_TYPE", get("content-type"))
        .env("CONTENT_LENGTH", body.len().to_string())
        .env("GIT_PROTOCOL", get("git-protocol"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .ok()?;
    child.stdin.take()?.write_all(body).ok()?;
    let mut answer = BufReader::new(child.stdout.take()?);
    let (mut head, mut status) = (String::new(), "200 OK".to_owned());
    loop {
        let mut line = String::new();
        answer.read_line(&mut line).ok()?;
        if line.trim_end().is_empty() {
            break;
        }
        if let Some(other) = line.strip_prefix("Status: ") {
            other.trim_end().clone_into(&mut status);
        }
        head.push_str(&line);
    }
    // A pack can be larger than memory.
    write!(out, "HTTP/1.1 {status}\r\n{head}transfer-encoding: chunked\r\n\r\n").ok()?;
    let mut buffer = vec![0; 64 << 10];
    loop {
        let length = answer.read(&mut buffer).ok()?;
        write!(out, "{length:x}\r\n").ok()?;
        out.write_all(&buffer[..length]).ok()?;
        out.write_all(b"\r\n").ok()?;
        if length == 0 {
            break;
        }
    }
    child.wait().ok().map(drop)
}
