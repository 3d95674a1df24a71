//! The same registry once more, as it is from another place: with TLS and HTTP/2, and all that goes there or comes from
//! there takes a while.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::Path;
use std::process::Child;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use kiln_testkit::TestAuthority;

/// How long a byte takes there, or back.
pub(crate) const WAY: Duration = Duration::from_millis(20);

/// A registry over the storage of the near one, and what delays the way there.
pub(crate) struct Far {
    registry: Child,
    pub(crate) host: String,
}

impl Drop for Far {
    fn drop(&mut self) {
        _ = self.registry.kill();
        _ = self.registry.wait();
    }
}

impl Far {
    /// Starts both.
    pub(crate) fn start(work: &Path) -> Result<Self, String> {
        let authority = TestAuthority::new();
        let (certificate, key) = authority.server_pem();
        let files = [work.join("far.crt"), work.join("far.key")];
        for (path, text) in files.iter().zip([certificate, key]) {
            std::fs::write(path, text).map_err(|error| format!("{}: {error}", path.display()))?;
        }
        let tls = format!(", tls: {{certificate: {}, key: {}}}", files[0].display(), files[1].display());
        let (registry, host) = crate::setup::registry(work, "far.yml", &tls)?;
        let listener = TcpListener::bind("127.0.0.1:0").map_err(|error| format!("no free port: {error}"))?;
        let here = listener.local_addr().map_err(|error| error.to_string())?;
        thread::spawn(move || {
            for near in listener.incoming().flatten() {
                let host = host.clone();
                thread::spawn(move || drop(connect(&near, &host)));
            }
        });
        Ok(Self { registry, host: here.to_string() })
    }
}

/// Passes on what comes from both sides. Returns when both have said all.
fn connect(near: &TcpStream, host: &str) -> io::Result<()> {
    // Until the handshake is over, nobody says anything.
    thread::sleep(WAY);
    let far = TcpStream::connect(host)?;
    near.set_nodelay(true)?;
    far.set_nodelay(true)?;
    let back = {
        let (far, near) = (far.try_clone()?, near.try_clone()?);
        thread::spawn(move || delay(far, near))
    };
    delay(near.try_clone()?, far);
    drop(back.join());
    Ok(())
}

/// Gives to `to` what comes from `from`, later.
fn delay(mut from: TcpStream, to: TcpStream) {
    let (sender, receiver) = channel();
    let writer = thread::spawn(move || hand_on(&receiver, to));
    receive(&mut from, &sender);
    drop(sender);
    drop(writer.join());
}

fn receive(from: &mut TcpStream, sender: &Sender<(Instant, Vec<u8>)>) {
    loop {
        let mut bytes = vec![0; 256 << 10];
        match from.read(&mut bytes) {
            Ok(length) if length > 0 => {
                bytes.truncate(length);
                if sender.send((Instant::now() + WAY, bytes)).is_err() {
                    return;
                }
            }
            _ => return,
        }
    }
}

fn hand_on(receiver: &Receiver<(Instant, Vec<u8>)>, mut to: TcpStream) {
    for (due, bytes) in receiver {
        thread::sleep(due.saturating_duration_since(Instant::now()));
        if to.write_all(&bytes).is_err() {
            break;
        }
    }
    drop(to.shutdown(Shutdown::Write));
}
