//! Git over SSH without an `ssh` program: the image that Kiln ships in has none. The server's key must be in a known_hosts
//! file; we show keys from the user's `.ssh` folder or of an agent.

use std::io::{self, Read, Write};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use russh::ChannelMsg;
use russh::client::{self, AuthResult, Handle as Connection};
use russh::keys::agent::AgentIdentity;
use russh::keys::agent::client::AgentClient;
use russh::keys::{Algorithm, HashAlg, PrivateKeyWithHashAlg, PublicKey};
use tokio::io::AsyncWriteExt as _;
use tokio::runtime::Handle;
use tokio::sync::mpsc;

use super::Progress;
use super::line::Line;

/// How long a server may take to greet us.
const PATIENCE: std::time::Duration = std::time::Duration::from_secs(30);
/// A server that sends no byte for this long counts as gone: git's own sends something every five seconds.
const STALL: std::time::Duration = std::time::Duration::from_secs(60);

/// Where keys are: ours and the servers'.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SshKeys {
    /// An agent's socket, asked first.
    pub agent: Option<PathBuf>,
    /// Private keys without a passphrase; files that aren't there are passed over.
    pub keys: Vec<PathBuf>,
    /// Lists of servers' keys; files that aren't there are passed over.
    pub known_hosts: Vec<PathBuf>,
}

impl SshKeys {
    /// The usual places: `SSH_AUTH_SOCK`, `SSH_KNOWN_HOSTS`, the folder `.ssh` of `HOME` and of root,
    /// `/etc/ssh/ssh_known_hosts`.
    pub fn usual(environment: &kiln_cloud::Environment) -> Self {
        let home = environment.get("HOME").unwrap_or("/root");
        let mut folders = vec![PathBuf::from(home).join(".ssh")];
        if home != "/root" {
            folders.push("/root/.ssh".into());
        }
        let names = ["id_ed25519", "id_ecdsa", "id_rsa", "ssh-privatekey", "identity"];
        let own = folders.iter().map(|folder| folder.join("known_hosts"));
        let own = own.chain(["/etc/ssh/ssh_known_hosts".into()]).collect();
        let listed = environment.get("SSH_KNOWN_HOSTS");
        let known_hosts = listed.map_or(own, |list| list.split(':').map(PathBuf::from).collect());
        Self {
            agent: environment.get("SSH_AUTH_SOCK").map(PathBuf::from),
            keys: folders.iter().flat_map(|folder| names.iter().map(|name| folder.join(name))).collect(),
            known_hosts,
        }
    }
}

/// Who is spoken to.
pub(super) struct Server<'a> {
    pub(super) user: &'a str,
    pub(super) host: &'a str,
    pub(super) port: u16,
    pub(super) path: &'a str,
}

/// Compares the server's key with those that are known.
struct Gate {
    known: Vec<PublicKey>,
    seen: Arc<Mutex<Option<String>>>,
}

impl client::Handler for Gate {
    type Error = russh::Error;

    async fn check_server_key(
        &mut self,
        key: &russh::keys::PublicKeyOrCertificate,
    ) -> Result<bool, Self::Error> {
        let russh::keys::PublicKeyOrCertificate::PublicKey { key, .. } = key else { return Ok(false) };
        if self.known.iter().any(|known| known.key_data() == key.key_data()) {
            return Ok(true);
        }
        let print = format!("{} {}", key.algorithm(), key.fingerprint(HashAlg::Sha256));
        *self.seen.lock().unwrap_or_else(PoisonError::into_inner) = Some(print);
        Ok(false)
    }
}

/// The server's keys in the files.
fn known_keys(server: &Server<'_>, keys: &SshKeys) -> Vec<PublicKey> {
    let read =
        |path: &PathBuf| russh::keys::known_hosts::known_host_keys_path(server.host, server.port, path);
    keys.known_hosts.iter().filter_map(|path| read(path).ok()).flatten().map(|(_, key)| key).collect()
}

fn config(known: &[PublicKey]) -> client::Config {
    let mut config = client::Config { nodelay: true, ..client::Config::default() };
    config.keepalive_interval = Some(std::time::Duration::from_secs(30));
    // A server with several keys is to show the one that is known.
    let mut wanted: Vec<Algorithm> = Vec::new();
    for key in known {
        match key.algorithm() {
            Algorithm::Rsa { .. } => wanted
                .extend([Some(HashAlg::Sha512), Some(HashAlg::Sha256)].map(|hash| Algorithm::Rsa { hash })),
            other => wanted.push(other),
        }
    }
    config.preferred.key = wanted.into();
    config
}

/// Connects, authenticates, and starts `git-upload-pack`.
pub(super) fn connect(
    server: &Server<'_>,
    keys: &SshKeys,
    runtime: &Handle,
    progress: &Progress,
    line: &Line,
) -> Result<(Reader, Writer), String> {
    let broke = |why: String| line.broke(why).to_string();
    runtime.block_on(async {
        let known = known_keys(server, keys);
        if known.is_empty() {
            let files: Vec<String> = keys.known_hosts.iter().map(|path| path.display().to_string()).collect();
            return Err(format!(
                "the key of the SSH server {} is in none of {}: mount a known_hosts file there (ssh-keyscan \
                 makes one), or name it in SSH_KNOWN_HOSTS",
                server.host,
                files.join(", ")
            ));
        }
        let seen = Arc::new(Mutex::new(None));
        let config = Arc::new(config(&known));
        let gate = Gate { known, seen: Arc::clone(&seen) };
        let connecting = client::connect(config, (server.host, server.port), gate);
        let connection = match tokio::time::timeout(PATIENCE, connecting).await {
            Err(_) => {
                return Err(broke(format!("{} gave no answer for {} s", server.host, PATIENCE.as_secs())));
            }
            Ok(Ok(connection)) => connection,
            Ok(Err(error)) => {
                let seen = seen.lock().unwrap_or_else(PoisonError::into_inner).take();
                return Err(match seen {
                    Some(print) => format!(
                        "the SSH server {} shows the key {print}, which is not the one in known_hosts: if it \
                         has really changed, change it there",
                        server.host
                    ),
                    None => broke(format!("no SSH connection to {}:{}: {error}", server.host, server.port)),
                });
            }
        };
        let connection = authenticate(connection, server, keys, line).await?;
        start(connection, server, runtime, progress, line).await
    })
}

async fn authenticate(
    mut connection: Connection<Gate>,
    server: &Server<'_>,
    keys: &SshKeys,
    line: &Line,
) -> Result<Connection<Gate>, String> {
    let hash = connection.best_supported_rsa_hash().await.ok().flatten().flatten();
    let mut tried = Vec::new();
    if let Some(socket) = &keys.agent
        && let Ok(mut agent) = AgentClient::connect_uds(socket).await
    {
        for identity in agent.request_identities().await.unwrap_or_default() {
            let AgentIdentity::PublicKey { key, .. } = identity else { continue };
            tried.push(format!("{} of the agent", key.fingerprint(HashAlg::Sha256)));
            let hash = if key.algorithm().is_rsa() { hash } else { None };
            let result = connection.authenticate_publickey_with(server.user, key, hash, &mut agent).await;
            if matches!(result, Ok(AuthResult::Success)) {
                return Ok(connection);
            }
        }
    }
    for path in keys.keys.iter().filter(|path| path.is_file()) {
        let key = match russh::keys::load_secret_key(path, None) {
            Ok(key) => key,
            Err(error) => {
                tried.push(format!("{} ({error})", path.display()));
                continue;
            }
        };
        tried.push(path.display().to_string());
        let key = PrivateKeyWithHashAlg::new(Arc::new(key), hash);
        match connection.authenticate_publickey(server.user, key).await {
            Ok(AuthResult::Success) => return Ok(connection),
            Ok(AuthResult::Failure { .. }) => {}
            Err(error) => return Err(line.broke(format!("{}: {error}", server.host)).to_string()),
        }
    }
    Err(if tried.is_empty() {
        format!(
            "there is no key to log in to {} with: mount one as {} or set SSH_AUTH_SOCK",
            server.host,
            keys.keys.first().map_or_else(|| "id_ed25519".to_owned(), |path| path.display().to_string())
        )
    } else {
        format!("{} lets {} in with none of these keys: {}", server.host, server.user, tried.join(", "))
    })
}

/// `path` as one word of a shell.
fn quoted(path: &str) -> String {
    format!("'{}'", path.replace('\'', "'\\''"))
}

async fn start(
    connection: Connection<Gate>,
    server: &Server<'_>,
    runtime: &Handle,
    progress: &Progress,
    line: &Line,
) -> Result<(Reader, Writer), String> {
    let fail = |error: russh::Error| line.broke(format!("{}: {error}", server.host)).to_string();
    let channel = connection.channel_open_session().await.map_err(fail)?;
    // Servers that don't take it answer in an older version of the protocol, which is fine.
    let _ = channel.set_env(false, "GIT_PROTOCOL", "version=2").await;
    let path =
        server.path.strip_prefix("/~").map_or_else(|| server.path.to_owned(), |rest| format!("~{rest}"));
    channel.exec(true, format!("git-upload-pack {}", quoted(&path))).await.map_err(fail)?;
    let (mut incoming, outgoing) = channel.split();
    let writer = Writer { runtime: runtime.clone(), inner: Box::pin(outgoing.make_writer()) };
    let (sender, receiver) = mpsc::channel(16);
    let said = Arc::new(Mutex::new(Vec::new()));
    let complaints = Arc::clone(&said);
    let ended = Arc::new(AtomicBool::new(false));
    let told = Arc::clone(&ended);
    runtime.spawn(async move {
        // It lives as long as its channel is read.
        let _connection = (connection, outgoing);
        while let Some(message) = incoming.wait().await {
            match message {
                // Nobody reads any more.
                ChannelMsg::Data { data } if sender.send(data.clone()).await.is_err() => break,
                ChannelMsg::ExtendedData { data, .. } => {
                    let mut said = complaints.lock().unwrap_or_else(PoisonError::into_inner);
                    if said.len() < 4096 {
                        said.extend_from_slice(&data);
                    }
                }
                // The server's program has said all; where the connection breaks, none of these comes.
                ChannelMsg::Eof | ChannelMsg::ExitStatus { .. } => told.store(true, Ordering::Release),
                ChannelMsg::Close => {
                    told.store(true, Ordering::Release);
                    break;
                }
                _ => {}
            }
        }
    });
    Ok((
        Reader {
            runtime: runtime.clone(),
            receiver,
            left: bytes::Bytes::new(),
            said,
            ended,
            line: line.clone(),
            progress: progress.clone(),
        },
        writer,
    ))
}

/// What the server sends.
pub(super) struct Reader {
    runtime: Handle,
    receiver: mpsc::Receiver<bytes::Bytes>,
    left: bytes::Bytes,
    said: Arc<Mutex<Vec<u8>>>,
    /// Whether the server ended what it sends.
    ended: Arc<AtomicBool>,
    line: Line,
    progress: Progress,
}

impl Reader {
    /// What the server wrote to its standard error.
    pub(super) fn complaints(&self) -> Arc<Mutex<Vec<u8>>> {
        Arc::clone(&self.said)
    }
}

impl Read for Reader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.left.is_empty() {
            self.progress.check()?;
            let receiver = &mut self.receiver;
            let next = async move { tokio::time::timeout(STALL, receiver.recv()).await };
            let Ok(next) = self.runtime.block_on(next) else {
                let why = format!("the SSH server sent nothing for {} s", STALL.as_secs());
                return Err(self.line.broke(why));
            };
            match next {
                None if self.ended.load(Ordering::Acquire) => return Ok(0),
                None => return Err(self.line.broke("the SSH connection broke".to_owned())),
                Some(data) => self.left = data,
            }
            self.progress.add(self.left.len() as u64);
        }
        let length = buffer.len().min(self.left.len());
        buffer[..length].copy_from_slice(&self.left.split_to(length));
        Ok(length)
    }
}

/// What goes to the server.
pub(super) struct Writer {
    runtime: Handle,
    inner: std::pin::Pin<Box<dyn tokio::io::AsyncWrite + Send>>,
}

impl Write for Writer {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        self.runtime.block_on(self.inner.write(buffer))
    }

    fn flush(&mut self) -> io::Result<()> {
        self.runtime.block_on(self.inner.flush())
    }
}

#[cfg(test)]
mod tests {
    use super::quoted;

    #[test]
    fn a_path_is_one_word_for_the_servers_shell() {
        assert_eq!(quoted("/a b/it's; rm"), r"'/a b/it'\''s; rm'");
    }
}
