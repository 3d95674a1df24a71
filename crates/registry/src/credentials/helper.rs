//! Helper programs, `docker-credential-NAME`: they get a host on standard input and answer with JSON.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use kiln_oci::Redacted;
use serde::Deserialize;
use tokio::io::AsyncWriteExt as _;
use tokio::process::Command;

use super::{Environment, Login, LoginSecret};

/// How long a helper may take.
const PATIENCE: Duration = Duration::from_secs(60);
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

/// Runs `program get` and asks it for `key`. `None` if it knows no login for that.
pub(super) async fn get(
    program: &Path,
    name: &str,
    key: &str,
    environment: &Environment,
) -> Result<Option<Login>, String> {
    let mut child = Command::new(program)
        .arg("get")
        .env_clear()
        .envs(environment.iter())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| format!("{} could not be started: {error}", program.display()))?;
    if let Some(mut stdin) = child.stdin.take() {
        // A helper that doesn't read its input is judged by its answer.
        let _ = stdin.write_all(key.as_bytes()).await;
    }
    let output = tokio::time::timeout(PATIENCE, child.wait_with_output())
        .await
        .map_err(|_| format!("{} did not answer for {} s", program.display(), PATIENCE.as_secs()))?
        .map_err(|error| format!("{} could not be run: {error}", program.display()))?;
    if !output.status.success() {
        // By docker's protocol the message is on standard output; the programs agree on this one for "no such login".
        let said = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        if said.contains("credentials not found") || said.contains("no credentials server URL") {
            return Ok(None);
        }
        let said =
            if said.is_empty() { String::from_utf8_lossy(&output.stderr).trim().to_owned() } else { said };
        let said: String = said.chars().take(300).collect();
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
        let _turn = TURN.lock().await;
        let folder = tempfile::tempdir().unwrap();
        let environment = program(folder.path(), script);
        let path = find("probe", &environment).unwrap();
        get(&path, "probe", "reg.example", &environment).await
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
}
