//! Where docker's and podman's config files lie, by the environment.

use std::path::{Path, PathBuf};

use super::{ConfigFile, CredentialError, Environment};

/// The config files that are there, the most important first: `DOCKER_AUTH_CONFIG`; `$DOCKER_CONFIG/config.json`,
/// `KANIKO_DIR/.docker/config.json`, `~/.docker/config.json`; `REGISTRY_AUTH_FILE`,
/// `$XDG_RUNTIME_DIR/containers/auth.json`, `$XDG_CONFIG_HOME/containers/auth.json` (or `~/.config`).
///
/// Those that can't be read come beside them, each as an error: a build may go on without them.
pub fn config_files(environment: &Environment, kaniko_dir: &Path) -> (Vec<ConfigFile>, Vec<CredentialError>) {
    let (mut files, mut errors) = (Vec::new(), Vec::new());
    if let Some(text) = environment.get("DOCKER_AUTH_CONFIG") {
        match ConfigFile::parse("DOCKER_AUTH_CONFIG", text) {
            Ok(file) => files.push(file),
            Err(error) => errors.push(error),
        }
    }
    let mut seen = Vec::new();
    for path in places(environment, kaniko_dir) {
        let real = path.canonicalize().unwrap_or_else(|_| path.clone());
        if seen.contains(&real) {
            continue;
        }
        seen.push(real);
        match ConfigFile::read(&path) {
            Ok(file) => files.extend(file),
            Err(error) => errors.push(error),
        }
    }
    (files, errors)
}

/// Where `executor login` writes: `$DOCKER_CONFIG/config.json`, or the one in the kaniko directory.
pub fn login_file(environment: &Environment, kaniko_dir: &Path) -> PathBuf {
    match environment.get("DOCKER_CONFIG") {
        Some(folder) => docker_config(folder),
        None => kaniko_dir.join(".docker/config.json"),
    }
}

/// `DOCKER_CONFIG` names a folder; some set it to the file.
fn docker_config(folder: &str) -> PathBuf {
    let path = Path::new(folder);
    if path.is_file() { path.to_owned() } else { path.join("config.json") }
}

fn places(environment: &Environment, kaniko_dir: &Path) -> Vec<PathBuf> {
    let path = |name: &str, below: &str| environment.get(name).map(|folder| Path::new(folder).join(below));
    let config_home = path("XDG_CONFIG_HOME", "").or_else(|| path("HOME", ".config"));
    [
        environment.get("DOCKER_CONFIG").map(docker_config),
        Some(kaniko_dir.join(".docker/config.json")),
        path("HOME", ".docker/config.json"),
        environment.get("REGISTRY_AUTH_FILE").map(PathBuf::from),
        path("XDG_RUNTIME_DIR", "containers/auth.json"),
        config_home.map(|folder| folder.join("containers/auth.json")),
    ]
    .into_iter()
    .flatten()
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_come_in_the_order_of_their_importance_and_once() {
        let home = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = home.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        write(".docker/config.json", "{}");
        write(".config/containers/auth.json", "{}");
        write("broken/config.json", "{");
        let folder = |name: &str| home.path().join(name).display().to_string();
        let environment: Environment = [
            ("HOME", home.path().display().to_string()),
            ("DOCKER_AUTH_CONFIG", "{}".to_owned()),
            ("DOCKER_CONFIG", folder(".docker")),
            ("REGISTRY_AUTH_FILE", folder("broken/config.json")),
        ]
        .into_iter()
        .collect();
        let (files, errors) = config_files(&environment, Path::new("/nonexistent"));
        let origins: Vec<&str> = files.iter().map(ConfigFile::origin).collect();
        assert_eq!(
            origins,
            ["DOCKER_AUTH_CONFIG", &folder(".docker/config.json"), &folder(".config/containers/auth.json")]
        );
        assert_eq!(errors.len(), 1);
        assert_eq!(login_file(&environment, Path::new("/kaniko")), home.path().join(".docker/config.json"));
    }
}
