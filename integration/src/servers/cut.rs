//! A relay that breaks connections, so that the client has to go on where it was.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Relays to a server; the first connections are cut after some bytes of the answer.
pub struct Cut {
    address: SocketAddr,
    cut: Arc<AtomicUsize>,
}

impl Cut {
    /// Relays to `port`, and cuts the first `times` connections that carry more than `after` bytes.
    pub fn start(port: u16, times: usize, after: usize) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let address = listener.local_addr().unwrap();
        let cut = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&cut);
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let counted = Arc::clone(&counted);
                std::thread::spawn(move || relay(client, port, times, after, &counted));
            }
        });
        Self { address, cut }
    }

    /// Where it listens.
    pub fn port(&self) -> u16 {
        self.address.port()
    }

    /// How many connections were cut.
    pub fn cut(&self) -> usize {
        self.cut.load(Ordering::SeqCst)
    }
}

fn relay(client: TcpStream, port: u16, times: usize, after: usize, cut: &AtomicUsize) {
    let Ok(server) = TcpStream::connect(("127.0.0.1", port)) else { return };
    let (mut from_client, mut to_server) = (client.try_clone().unwrap(), server.try_clone().unwrap());
    std::thread::spawn(move || {
        let _ = std::io::copy(&mut from_client, &mut to_server);
        let _ = to_server.shutdown(Shutdown::Write);
    });
    let (mut from_server, mut to_client) = (server, client);
    let (mut buffer, mut passed) = (vec![0; 16 << 10], 0);
    loop {
        let length = match from_server.read(&mut buffer) {
            Ok(0) | Err(_) => break,
            Ok(length) => length,
        };
        passed += length;
        if passed > after
            && cut
                .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |done| (done < times).then_some(done + 1))
                .is_ok()
        {
            break;
        }
        if to_client.write_all(&buffer[..length]).is_err() {
            break;
        }
    }
    let _ = to_client.shutdown(Shutdown::Both);
    let _ = from_server.shutdown(Shutdown::Both);
}
