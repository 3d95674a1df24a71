//! Writing an entry into docker's config.json (`executor login`), atomically: whoever reads the file sees the old one
//! or the new one, and members that we don't know stay as they were.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use kiln_oci::Redacted;
use serde_json::{Map, Value, json};

use super::CredentialError;
use super::docker_config::{DOCKER_HUB_KEY, server_key};

/// Adds or replaces the login for `registry` in the config file `path`, which is made (0600) if it isn't there.
///
/// Fails with [`CredentialError::Io`], or with [`CredentialError::Form`] if the file there is not docker's: it is then
/// left as it is.
pub fn save_login(
    path: &Path,
    registry: &str,
    user: &str,
    password: &Redacted<String>,
) -> Result<(), CredentialError> {
    let auth = STANDARD.encode(format!("{user}:{}", password.expose()));
    edit(path, registry, Some(json!({ "auth": auth })))
}

/// Removes the login for `registry` from the config file `path`.
///
/// Fails as [`save_login`] does. No entry, or no file, is no error.
pub fn forget_login(path: &Path, registry: &str) -> Result<(), CredentialError> {
    if path.exists() { edit(path, registry, None) } else { Ok(()) }
}

fn edit(path: &Path, registry: &str, entry: Option<Value>) -> Result<(), CredentialError> {
    let origin = path.display().to_string();
    let form = |why: &str| CredentialError::Form { origin: origin.clone(), why: why.to_owned() };
    let mut root = match fs::read(path) {
        Ok(bytes) if bytes.iter().all(u8::is_ascii_whitespace) => Map::new(),
        Ok(bytes) => match serde_json::from_slice(&bytes) {
            Ok(Value::Object(root)) => root,
            Ok(_) => return Err(form("it is no JSON object")),
            Err(error) => {
                return Err(form(&format!(
                    "the JSON is wrong at line {}, column {}",
                    error.line(),
                    error.column()
                )));
            }
        },
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Map::new(),
        Err(source) => return Err(CredentialError::Io { action: "reading", origin, source }),
    };
    let auths = root.entry("auths").or_insert_with(|| Value::Object(Map::new()));
    let Value::Object(auths) = auths else { return Err(form("its member auths is no object")) };
    let (host, scope) = server_key(registry);
    // Other spellings of the same registry would be found beside the new entry.
    auths.retain(|key, _| server_key(key) != (host.clone(), scope.clone()));
    if let Some(entry) = entry {
        let key = match (host.as_str(), scope.as_str()) {
            ("docker.io", "") => DOCKER_HUB_KEY.to_owned(),
            (host, "") => host.to_owned(),
            (host, scope) => format!("{host}/{scope}"),
        };
        auths.insert(key, entry);
    }
    let mut text =
        serde_json::to_vec_pretty(&Value::Object(root)).map_err(|error| form(&error.to_string()))?;
    text.push(b'\n');
    replace(path, &text).map_err(|source| CredentialError::Io { action: "writing", origin, source })
}

/// Writes beside the file, syncs, and renames. A link is followed, so that a linked config stays one.
fn replace(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let path: PathBuf = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    fs::create_dir_all(folder)?;
    let mode = fs::metadata(&path).ok().map(|m| m.permissions());
    let fresh = folder.join(format!(".config.json.{}", std::process::id()));
    let _ = fs::remove_file(&fresh);
    let written = (|| {
        let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&fresh)?;
        file.write_all(bytes)?;
        if let Some(mode) = mode {
            file.set_permissions(mode)?;
        }
        file.sync_all()?;
        fs::rename(&fresh, &path)?;
        fs::File::open(folder)?.sync_all()
    })();
    if written.is_err() {
        let _ = fs::remove_file(&fresh);
    }
    written
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ConfigFile, LoginSecret};
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn a_saved_login_is_found_again_and_the_rest_stays() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("new/config.json");
        let password = Redacted::new("p:w".to_owned());
        save_login(&path, "docker.io", "me", &password).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let mut root: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        root["credHelpers"] = json!({ "gcr.io": "gcr" });
        root["auths"]["index.docker.io"] = json!({ "auth": "b2xkOm9sZA==" });
        fs::write(&path, root.to_string()).unwrap();
        save_login(&path, "index.docker.io", "you", &password).unwrap();
        save_login(&path, "reg.io:5000", "them", &password).unwrap();
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.contains("credHelpers") && !text.contains("b2xkOm9sZA=="), "{text}");
        let file = ConfigFile::parse("c", &text).unwrap();
        let login = file.entry("docker.io", "library/debian").unwrap();
        assert!(matches!(login.secret, LoginSecret::Basic { user, .. } if user == "you"));
        forget_login(&path, "reg.io:5000").unwrap();
        let file = ConfigFile::read(&path).unwrap().unwrap();
        assert!(file.entry("reg.io:5000", "a").is_none());
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
    }

    #[test]
    fn a_file_that_is_not_docker_s_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config.json");
        fs::write(&path, "not json").unwrap();
        assert!(save_login(&path, "a.io", "u", &Redacted::new("p".into())).is_err());
        assert_eq!(fs::read_to_string(&path).unwrap(), "not json");
    }
}
