//! A proxy before a registry (HTTP/1.1, one request a connection) that does wrong what its script says.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// What happens to one request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Wrong {
    /// So many bytes of the answer's body come, then the connection breaks.
    Cut(usize),
    /// So many bytes of the request's body are passed on, then the connection breaks.
    CutRequest(usize),
    /// One bit of the request's body is another when it is passed on.
    ChangedRequest,
    /// The request's body is passed on in pieces of so many bytes, twenty in a second.
    SlowRequest(usize),
    /// The request is served, and the connection breaks instead of answering.
    Lost,
    /// This status, and nothing else.
    Status(u16),
    /// This status, and `Retry-After` in seconds.
    RetryAfter(u16, u64),
    /// This status, and `Retry-After` as a date so many seconds ahead.
    RetryAt(u16, u64),
    /// The answer's body comes in pieces of so many bytes, twenty in a second.
    Slow(usize),
    /// The answer claims so many bytes more than there are, and ends early.
    TooShort(usize),
    /// One bit of the answer's body is another.
    OtherBytes,
    /// The answer's body has so many bytes, and its length says that this is all.
    Truncated(usize),
    /// The answer's body never ends.
    Endless,
    /// A redirect to this URL.
    Elsewhere(String),
}

/// Method, part of the path, and what happens to the next such request.
type Script = Mutex<Vec<(String, String, Wrong)>>;

/// The proxy. It lives as long as the process.
pub struct Faulty {
    /// `127.0.0.1:PORT`.
    pub host: String,
    script: Arc<Script>,
}

impl Faulty {
    /// Starts one before `upstream`, a host and port.
    pub fn start(upstream: &str) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let host = listener.local_addr().unwrap().to_string();
        let script: Arc<Script> = Arc::default();
        let (shared, upstream) = (Arc::clone(&script), upstream.to_owned());
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let (script, upstream) = (Arc::clone(&shared), upstream.clone());
                // How a connection ends is the client's to notice.
                std::thread::spawn(move || drop(serve(client, &upstream, &script)));
            }
        });
        Self { host, script }
    }

    /// The next request of this method whose path has `part` in it meets `wrong`.
    pub fn on(&self, method: &str, part: &str, wrong: Wrong) {
        self.script.lock().unwrap().push((method.to_owned(), part.to_owned(), wrong));
    }

    /// Whether nothing of the script is left: every fault met its request.
    pub fn is_done(&self) -> bool {
        self.script.lock().unwrap().is_empty()
    }
}

/// The lines of a head, without the empty one at its end.
fn head(reader: &mut impl BufRead) -> io::Result<Vec<String>> {
    let mut lines = Vec::new();
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let line = line.trim_end().to_owned();
        if line.is_empty() {
            return Ok(lines);
        }
        lines.push(line);
    }
}

/// Seconds since 1970 as HTTP writes them.
fn date(seconds: u64) -> String {
    let at = format!("@{seconds}");
    let words = ["LC_ALL=C", "date", "--utc", "--date", &at, "+%a, %d %b %Y %H:%M:%S GMT"];
    crate::work::ok("env", &words).trim().to_owned()
}

fn header<'a>(lines: &'a [String], name: &str) -> Option<&'a str> {
    lines.iter().skip(1).find_map(|line| {
        let (key, value) = line.split_once(':')?;
        key.eq_ignore_ascii_case(name).then_some(value.trim())
    })
}

/// Passes a head on, without the headers `but`; the connection ends with this request.
fn pass_head(to: &mut impl Write, lines: &[String], but: &[&str], more: &str) -> io::Result<()> {
    let kept = lines.iter().enumerate().filter(|(number, line)| {
        let name = line.split(':').next().unwrap_or_default();
        *number == 0
            || !(but.iter().any(|but| name.eq_ignore_ascii_case(but))
                || name.eq_ignore_ascii_case("connection"))
    });
    let mut text: String = kept.map(|(_, line)| format!("{line}\r\n")).collect();
    text.push_str(more);
    to.write_all(format!("{text}connection: close\r\n\r\n").as_bytes())
}

fn serve(client: TcpStream, upstream: &str, script: &Script) -> io::Result<()> {
    let mut reader = BufReader::new(client.try_clone()?);
    let request = head(&mut reader)?;
    let mut words = request[0].split(' ');
    let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let wrong = {
        let mut script = script.lock().unwrap();
        let found =
            script.iter().position(|(wanted, part, _)| wanted == method && path.contains(part.as_str()));
        found.map(|place| script.remove(place).2)
    };
    let mut client = client;
    let short = |client: &mut TcpStream, status: u16, more: String| {
        write!(client, "HTTP/1.1 {status} x\r\n{more}content-length: 0\r\nconnection: close\r\n\r\n")
    };
    match &wrong {
        Some(Wrong::Status(status)) => return short(&mut client, *status, String::new()),
        Some(Wrong::RetryAfter(status, after)) => {
            return short(&mut client, *status, format!("retry-after: {after}\r\n"));
        }
        Some(Wrong::RetryAt(status, after)) => {
            let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
            let headers = format!("date: {}\r\nretry-after: {}\r\n", date(now), date(now + after));
            return short(&mut client, *status, headers);
        }
        Some(Wrong::Elsewhere(url)) => return short(&mut client, 307, format!("location: {url}\r\n")),
        _ => {}
    }
    let mut server = TcpStream::connect(upstream)?;
    pass_head(&mut server, &request, &[], "")?;
    let most = if let Some(Wrong::CutRequest(most)) = &wrong { Some(*most as u64) } else { None };
    match (&wrong, header(&request, "content-length").and_then(|length| length.parse().ok())) {
        (Some(wrong @ (Wrong::ChangedRequest | Wrong::SlowRequest(_))), Some(length)) => {
            // A server that has heard enough may have answered already.
            let _ = pass_wrongly(&mut reader, &mut server, length, wrong);
        }
        _ => pass_body(&mut reader, &mut server, &request, most)?,
    }
    if most.is_some() {
        let _ = server.shutdown(Shutdown::Both);
        return client.shutdown(Shutdown::Both);
    }
    let mut answers = BufReader::new(server);
    let answer = head(&mut answers)?;
    if wrong == Some(Wrong::Lost) {
        return client.shutdown(Shutdown::Both);
    }
    let mut body = Vec::new();
    if method != "HEAD" {
        answers.read_to_end(&mut body)?;
    }
    give(&mut client, &answer, body, wrong.as_ref())?;
    client.shutdown(Shutdown::Write)
}

/// Passes a request's body on, or its first bytes.
fn pass_body(
    from: &mut impl BufRead,
    to: &mut impl Write,
    request: &[String],
    most: Option<u64>,
) -> io::Result<()> {
    if let Some(length) = header(request, "content-length") {
        let length: u64 = length.parse().unwrap_or(0);
        return io::copy(&mut from.take(length.min(most.unwrap_or(length))), to).map(drop);
    }
    if header(request, "transfer-encoding").is_none() {
        return Ok(());
    }
    let mut passed = 0;
    loop {
        let mut line = String::new();
        from.read_line(&mut line)?;
        let size = u64::from_str_radix(line.trim(), 16).map_err(io::Error::other)?;
        to.write_all(line.as_bytes())?;
        io::copy(&mut from.take(size + 2), to)?;
        passed += size;
        if size == 0 || most.is_some_and(|most| passed >= most) {
            return Ok(());
        }
    }
}

/// Passes a request's body on, slowly or with another bit in its last byte.
fn pass_wrongly(
    from: &mut impl BufRead,
    to: &mut impl Write,
    length: usize,
    wrong: &Wrong,
) -> io::Result<()> {
    let mut body = vec![0; length];
    from.read_exact(&mut body)?;
    let Wrong::SlowRequest(piece) = wrong else {
        if let Some(byte) = body.last_mut() {
            *byte ^= 1;
        }
        return to.write_all(&body);
    };
    for piece in body.chunks(*piece) {
        to.write_all(piece)?;
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}

/// Gives an answer, with what is wrong with it.
fn give(
    client: &mut TcpStream,
    answer: &[String],
    mut body: Vec<u8>,
    wrong: Option<&Wrong>,
) -> io::Result<()> {
    const LENGTH: [&str; 2] = ["content-length", "transfer-encoding"];
    let said = |length: usize| format!("content-length: {length}\r\n");
    match wrong {
        Some(Wrong::Cut(after)) => {
            pass_head(client, answer, &LENGTH, &said(body.len().max(after + 1)))?;
            client.write_all(&body[..(*after).min(body.len())])
        }
        Some(Wrong::TooShort(more)) => {
            pass_head(client, answer, &LENGTH, &said(body.len() + more))?;
            client.write_all(&body)
        }
        Some(Wrong::OtherBytes) => {
            if let Some(byte) = body.last_mut() {
                *byte ^= 1;
            }
            pass_head(client, answer, &[], "")?;
            client.write_all(&body)
        }
        Some(Wrong::Truncated(length)) => {
            body.truncate(*length);
            pass_head(client, answer, &LENGTH, &said(body.len()))?;
            client.write_all(&body)
        }
        Some(Wrong::Endless) => {
            pass_head(client, answer, &LENGTH, "")?;
            client.write_all(&body)?;
            loop {
                client.write_all(&[b' '; 4096])?;
            }
        }
        Some(Wrong::Slow(piece)) => {
            pass_head(client, answer, &[], "")?;
            for piece in body.chunks(*piece) {
                client.write_all(piece)?;
                std::thread::sleep(Duration::from_millis(50));
            }
            Ok(())
        }
        _ => {
            pass_head(client, answer, &[], "")?;
            client.write_all(&body)
        }
    }
}
