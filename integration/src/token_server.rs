//! A small token server for docker-registry: bearer tokens for the scopes that are asked for, refresh tokens, a minute of
//! life. It signs with a certificate that the registry is told to trust.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use rcgen::{CertificateParams, KeyPair, SigningKey as _};
use serde_json::{Value, json};

use crate::registry::LOGIN;

/// Whom its tokens are from, and whom they are for.
pub const ISSUER: &str = "kiln-test-issuer";
/// The service that tokens are for.
pub const SERVICE: &str = "kiln-test-registry";
/// A refresh token that it takes.
pub const REFRESH: &str = "a refresh token";

/// What somebody asked of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asked {
    /// `GET` for a password or nobody, `POST` for a refresh token.
    pub method: String,
    /// Who it was; nothing for nobody.
    pub who: String,
    /// The scopes.
    pub scopes: Vec<String>,
}

/// A token server on a loopback address.
pub struct TokenServer {
    /// Where tokens are asked for.
    pub realm: String,
    /// The certificate that its signatures are checked with, PEM.
    pub certificate: String,
    asked: Arc<Mutex<Vec<Asked>>>,
}

struct Signer {
    key: KeyPair,
    certificate: Vec<u8>,
    /// How many seconds ahead its tokens end.
    life: i64,
}

/// How long after its end docker-registry still takes a token, in seconds.
const LEEWAY: i64 = 60;

impl TokenServer {
    /// Starts it. It lives as long as the process.
    pub fn start() -> Self {
        Self::with_life(60)
    }

    /// Starts one whose tokens are refused after so many seconds, although it says that they are good for a minute.
    pub fn start_hasty(seconds: i64) -> Self {
        Self::with_life(seconds - LEEWAY)
    }

    fn with_life(life: i64) -> Self {
        let key = KeyPair::generate().unwrap();
        let certificate =
            CertificateParams::new(vec!["issuer".to_owned()]).unwrap().self_signed(&key).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let realm = format!("http://{}/token", listener.local_addr().unwrap());
        let asked: Arc<Mutex<Vec<Asked>>> = Arc::default();
        let (pem, seen) = (certificate.pem(), Arc::clone(&asked));
        let signer = Arc::new(Signer { key, certificate: certificate.der().to_vec(), life });
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (seen, signer) = (Arc::clone(&seen), Arc::clone(&signer));
                // A client that goes away is no concern of the server's.
                std::thread::spawn(move || drop(answer(stream, &signer, &seen)));
            }
        });
        Self { realm, certificate: pem, asked }
    }

    /// What it was asked for so far.
    pub fn asked(&self) -> Vec<Asked> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

fn answer(stream: TcpStream, signer: &Signer, seen: &Mutex<Vec<Asked>>) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let (method, target) = line.split_once(' ').unwrap_or(("", ""));
    let (method, target) = (method.to_owned(), target.split(' ').next().unwrap_or("").to_owned());
    let mut headers = BTreeMap::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let Some((name, value)) = line.trim().split_once(':') else { break };
        headers.insert(name.to_ascii_lowercase(), value.trim().to_owned());
    }
    let length = headers.get("content-length").and_then(|length| length.parse().ok()).unwrap_or(0);
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    let query = target.split_once('?').map_or("", |(_, query)| query).to_owned();
    let fields = if method == "POST" { String::from_utf8_lossy(&body).into_owned() } else { query };
    let fields: Vec<(String, String)> = url::form_urlencoded::parse(fields.as_bytes()).into_owned().collect();
    let value = |name: &str| fields.iter().find(|(key, _)| key == name).map(|(_, value)| value.clone());
    let scopes: Vec<String> = fields
        .iter()
        .filter(|(key, _)| key == "scope")
        .flat_map(|(_, scope)| scope.split(' ').map(str::to_owned).collect::<Vec<_>>())
        .collect();
    let basic = format!("Basic {}", STANDARD.encode(format!("{}:{}", LOGIN.0, LOGIN.1)));
    let who = match (method.as_str(), headers.get("authorization")) {
        ("POST", _) if value("refresh_token").as_deref() == Some(REFRESH) => Some(LOGIN.0),
        ("GET", Some(header)) if *header == basic => Some(LOGIN.0),
        ("GET", None) => Some(""),
        _ => None,
    };
    let asked = Asked { method, who: who.unwrap_or("refused").to_owned(), scopes: scopes.clone() };
    seen.lock().unwrap_or_else(PoisonError::into_inner).push(asked);
    let (status, text) = match who {
        Some(who) if value("service").as_deref() == Some(SERVICE) => {
            let token = signer.token(who, &scopes);
            (
                "200 OK",
                json!({"token": token, "access_token": token, "expires_in": 60, "refresh_token": REFRESH}),
            )
        }
        _ => ("401 Unauthorized", json!({"details": "who are you?"})),
    };
    let text = text.to_string();
    let mut stream = stream;
    write!(
        stream,
        "HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{text}",
        text.len()
    )
}

impl Signer {
    /// A token (JWT, ES256) for what `who` may do of what was asked for: anybody may pull what is public.
    fn token(&self, who: &str, scopes: &[String]) -> String {
        let access: Vec<Value> = scopes
            .iter()
            .filter_map(|scope| {
                let (kind, rest) = scope.split_once(':')?;
                let (name, actions) = rest.rsplit_once(':')?;
                let all = actions.split(',');
                let may =
                    |action: &&str| !who.is_empty() || (*action == "pull" && name.starts_with("public/"));
                let actions: Vec<&str> = all.filter(may).collect();
                Some(json!({"type": kind, "name": name, "actions": actions}))
            })
            .collect();
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
        let now = i64::try_from(now).unwrap();
        let header = json!({"typ": "JWT", "alg": "ES256", "x5c": [STANDARD.encode(&self.certificate)]});
        let claims = json!({
            "iss": ISSUER, "sub": who, "aud": SERVICE, "exp": now + self.life, "nbf": now - 100, "iat": now - 100,
            "jti": now.to_string(), "access": access,
        });
        let part = |value: Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let text = format!("{}.{}", part(header), part(claims));
        let signature = fixed(&self.key.sign(text.as_bytes()).unwrap());
        format!("{text}.{}", URL_SAFE_NO_PAD.encode(signature))
    }
}

/// A signature as JWTs have it: two numbers of 32 bytes each, instead of two in DER.
fn fixed(der: &[u8]) -> Vec<u8> {
    let mut numbers = Vec::new();
    let mut at = 2;
    for _ in 0..2 {
        let length = usize::from(der[at + 1]);
        let number = &der[at + 2..at + 2 + length];
        let number = &number[number.len().saturating_sub(32)..];
        numbers.extend(std::iter::repeat_n(0, 32 - number.len()));
        numbers.extend(number);
        at += 2 + length;
    }
    numbers
}
