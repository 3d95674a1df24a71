//! Helper programs, `docker-credential-NAME`: they get a host on standard input and answer with JSON.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::time::Duration;

use kiln_oci::Redacted;
use serde::Deserialize;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::{Child, Command};

use super::{Environment, Login, LoginSecret};

/// How long a helper may take.
pub(super) const PATIENCE: Duration = Duration::from_secs(60);
/// How much it may say.
const MOST: u64 = 1 << 20;
/// How long its answer is used before it is asked again.
const FRESH: Duration = Duration::from_secs(300);

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Answer {
    #[serde(default)]
    username: String,
    #[serde(default)]
    secret: String,
}

/// The program `docker-credential-NAME` in the snapshot's `PATH`.
pub(super) fn find(name: &str, environment: &Environment) -> Option<PathBuf> {
    environment
        .get("PATH")?
        .split(':')
        .filter(|folder| folder.starts_with('/'))
        .map(|folder| Path::new(folder).join(format!("docker-credential-{name}")))
        .find(|path| path.metadata().is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0))
}

/// Runs `program get` and asks it for `key`, for as long as `patience`. `None` if it knows no login for that.
pub(super) async fn get(
    program: &Path,
    name: &str,
    key: &str,
    environment: &Environment,
    patience: Duration,
) -> Result<Option<Login>, String> {
    let child = Command::new(program)
        .arg("get")
        .env_clear()
        .envs(environment.iter())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| format!("{} could not be started: {error}", program.display()))?;
    let output = tokio::time::timeout(patience, converse(child, key))
        .await
        .map_err(|_| format!("{} did not answer for {} s", program.display(), patience.as_secs_f32()))?
        .map_err(|error| format!("{} could not be run: {error}", program.display()))?;
    if !output.status.success() {
        // By docker's protocol the message is on standard output; the programs agree on this one for "no such login".
        let said = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        if said.contains("credentials not found") || said.contains("no credentials server URL") {
            return Ok(None);
        }
        let said =
            if said.is_empty() { String::from_utf8_lossy(&output.stderr).trim().to_owned() } else { said };
        let said: String = said.chars().filter(|c| !c.is_control()).take(300).collect();
        return Err(format!("{} failed ({}): {said}", program.display(), output.status));
    }
    let answer: Answer = serde_json::from_slice(&output.stdout)
        .map_err(|_| format!("{} did not answer with JSON of docker's form", program.display()))?;
    if answer.secret.is_empty() {
        return Ok(None);
    }
    let secret = if answer.username == "<token>" {
        LoginSecret::IdentityToken(Redacted::new(answer.secret))
    } else {
        LoginSecret::Basic { user: answer.username, password: Redacted::new(answer.secret) }
    };
    let login = Login { secret, source: format!("docker-credential-{name}"), expires: None };
    Ok(Some(login.valid_for(FRESH)))
}

/// Tells the program `key`, and listens to the first [`MOST`] bytes of what it says.
async fn converse(mut child: Child, key: &str) -> std::io::Result<Output> {
    let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let tell = async move {
        if let Some(mut stdin) = stdin {
            // A helper that doesn't read its input is judged by its answer.
            let _ = stdin.write_all(key.as_bytes()).await;
        }
    };
    let ((), stdout, stderr) = tokio::join!(tell, listen(stdout), listen(stderr));
    // Who has more to say finds nobody there any more.
    Ok(Output { stdout: stdout?, stderr: stderr?, status: child.wait().await? })
}

async fn listen(from: Option<impl AsyncRead + Unpin>) -> std::io::Result<Vec<u8>> {
    let mut said = Vec::new();
    if let Some(from) = from {
        from.take(MOST).read_to_end(&mut said).await?;
    }
    Ok(said)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn program(folder: &Path, script: &str) -> Environment {
        let path = folder.join("docker-credential-probe");
        std::fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        [("PATH".to_owned(), format!("relative:{}:/usr/bin:/bin", folder.display()))].into_iter().collect()
    }

    /// One at a time: a program that is just being written, by a descriptor that another test's child has inherited, can't
    /// be started.
    static TURN: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

    async fn ask(script: &str) -> Result<Option<Login>, String> {
        ask_for(script, PATIENCE).await
    }

    async fn ask_for(script: &str, patience: Duration) -> Result<Option<Login>, String> {
        let _turn = TURN.lock().await;
        let folder = tempfile::tempdir().unwrap();
        let environment = program(folder.path(), script);
        let path = find("probe", &environment).unwrap();
        get(&path, "probe", "reg.example", &environment, patience).await
    }

    #[tokio::test]
    async fn a_helper_is_asked_for_the_host_on_its_input() {
        let login =
            ask(r#"read host; echo "{\"Username\":\"$1-$host\",\"Secret\":\"s\"}""#).await.unwrap().unwrap();
        assert!(
            matches!(&login.secret, LoginSecret::Basic { user, .. } if user == "get-reg.example"),
            "{login:?}"
        );
    }

    #[tokio::test]
    async fn the_user_name_token_marks_an_identity_token() {
        let login = ask(r#"echo '{"Username":"<token>","Secret":"s"}'"#).await.unwrap().unwrap();
        assert!(matches!(login.secret, LoginSecret::IdentityToken(_)));
    }

    #[tokio::test]
    async fn a_helper_that_knows_nothing_is_no_failure() {
        assert!(ask("echo 'credentials not found in native keychain'; exit 1").await.unwrap().is_none());
        assert!(ask("echo 'vault is sealed'; exit 1").await.unwrap_err().contains("vault is sealed"));
        assert!(ask("echo hunter2").await.is_err_and(|why| !why.contains("hunter2")));
    }

    #[tokio::test]
    async fn a_helper_that_hangs_or_never_stops_talking_is_given_up() {
        let why = ask_for("sleep 60", Duration::from_millis(200)).await.unwrap_err();
        assert!(why.contains("did not answer for 0.2 s"), "{why}");
        // It keeps its output open, but for ever is not for us to read.
        let why = ask_for("exec yes hunter2", Duration::from_secs(30)).await.unwrap_err();
        assert!(why.contains("failed") || why.contains("JSON"), "{why}");
        assert!(why.len() < 500, "{} bytes", why.len());
    }

    #[tokio::test]
    async fn a_helper_that_cannot_be_started_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("docker-credential-gone");
        let why = get(&path, "gone", "reg.example", &Environment::default(), PATIENCE).await.unwrap_err();
        assert!(why.contains("docker-credential-gone could not be started"), "{why}");
    }
}
