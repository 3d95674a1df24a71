//! A plain web server of our own for ADD of URLs.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};

/// What it says of the time of every file: 1,000,000,000 seconds after 1970.
const MODIFIED: &str = "Last-Modified: Sun, 09 Sep 2001 01:46:40 GMT\r\n";

/// Serves a folder by HTTP for as long as the test program runs: `/redirect/NAME` leads to `/NAME`, `/attachment/NAME`
/// is offered under another name, and what is below `/untimed/` has no Last-Modified.
pub struct FileServer {
    /// `http://127.0.0.1:PORT`.
    pub address: String,
}

impl FileServer {
    /// Starts one that serves `root`.
    pub fn start(root: &Path) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let root = root.to_owned();
        std::thread::spawn(move || {
            for connection in listener.incoming().flatten() {
                let root = root.clone();
                std::thread::spawn(move || answer(&connection, &root));
            }
        });
        Self { address }
    }
}

/// The file that a path means.
fn wanted(target: &str, root: &Path) -> PathBuf {
    let path = target.split('?').next().unwrap_or_default();
    let path = path.trim_start_matches("/attachment/").trim_start_matches("/untimed/");
    root.join(path.replace("%20", " ").trim_start_matches('/'))
}

fn answer(mut connection: &TcpStream, root: &Path) {
    let mut lines = BufReader::new(connection).lines().map_while(Result::ok);
    let first = lines.next().unwrap_or_default();
    while lines.next().is_some_and(|line| !line.is_empty()) {}
    let mut words = first.split(' ');
    let (method, target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let mut send = |status: &str, more: &str, body: &[u8]| {
        let head =
            format!("HTTP/1.1 {status}\r\nConnection: close\r\nContent-Length: {}\r\n{more}\r\n", body.len());
        let _ = connection.write_all(head.as_bytes());
        if method == "GET" {
            let _ = connection.write_all(body);
        }
    };
    if let Some(name) = target.strip_prefix("/redirect/") {
        return send("302 Found", &format!("Location: /{name}\r\n"), b"");
    }
    let path = wanted(target, root);
    let Ok(body) = std::fs::read(&path) else {
        return send("404 Not Found", "", b"nothing here");
    };
    let mut headers = String::new();
    if target.starts_with("/attachment/") {
        headers.push_str("Content-Disposition: attachment; filename=\"other\"\r\n");
    }
    if !target.starts_with("/untimed/") {
        headers.push_str(MODIFIED);
    }
    send("200 OK", &headers, &body);
}
