//! An HTTP proxy that leads every name to one server of this machine: so that a test can speak to a host that is neither
//! this machine nor in a private network by its name.

use std::io::{BufRead, BufReader, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// The proxy. It lives as long as the process.
pub struct Forward {
    /// Its address, as `HTTP_PROXY` and `HTTPS_PROXY` take it.
    pub url: String,
    tunnels: Arc<AtomicUsize>,
}

impl Forward {
    /// Starts one that leads to `target`, a host and port.
    pub fn start(target: &str) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let (target, tunnels) = (target.to_owned(), Arc::<AtomicUsize>::default());
        let counted = Arc::clone(&tunnels);
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let (target, counted) = (target.clone(), Arc::clone(&counted));
                std::thread::spawn(move || drop(serve(&client, &target, &counted)));
            }
        });
        Self { url, tunnels }
    }

    /// How many tunnels it was asked for: there is one for each connection that is to carry TLS.
    pub fn tunnels(&self) -> usize {
        self.tunnels.load(Ordering::SeqCst)
    }

    /// The variables that send everything through it.
    pub fn variables(&self) -> [(&'static str, &str); 2] {
        [("HTTP_PROXY", &self.url), ("HTTPS_PROXY", &self.url)]
    }
}

/// A tunnel for CONNECT; any other request is passed on as it is: servers take the absolute form, too.
fn serve(client: &TcpStream, target: &str, tunnels: &AtomicUsize) -> std::io::Result<()> {
    let mut reader = BufReader::new(client.try_clone()?);
    let mut first = String::new();
    reader.read_line(&mut first)?;
    let mut server = TcpStream::connect(target)?;
    if first.starts_with("CONNECT ") {
        tunnels.fetch_add(1, Ordering::SeqCst);
        let mut line = first;
        while !line.trim().is_empty() {
            line.clear();
            reader.read_line(&mut line)?;
        }
        client.try_clone()?.write_all(b"HTTP/1.1 200 OK\r\n\r\n")?;
    } else {
        server.write_all(first.as_bytes())?;
    }
    let (mut answers, mut back) = (server.try_clone()?, client.try_clone()?);
    std::thread::spawn(move || {
        let _ = std::io::copy(&mut answers, &mut back);
        let _ = back.shutdown(Shutdown::Both);
    });
    let _ = std::io::copy(&mut reader, &mut server);
    server.shutdown(Shutdown::Write)
}
