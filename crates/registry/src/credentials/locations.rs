//! Where docker's and podman's config files lie, by the environment.

use std::path::{Path, PathBuf};

use super::{ConfigFile, CredentialError, Environment};

/// The config files that are there, the most important first: `DOCKER_AUTH_CONFIG`; `$DOCKER_CONFIG/config.json`, or
/// without that variable `.docker/config.json` in each of `kaniko_dirs` and in the home directory; `REGISTRY_AUTH_FILE`,
/// `$XDG_RUNTIME_DIR/containers/auth.json`, `$XDG_CONFIG_HOME/containers/auth.json` (or `~/.config`).
///
/// Those that can't be read come beside them, each as an error: a build may go on without them.
pub fn config_files(
    environment: &Environment,
    kaniko_dirs: &[PathBuf],
) -> (Vec<ConfigFile>, Vec<CredentialError>) {
    let (mut files, mut errors) = (Vec::new(), Vec::new());
    if let Some(text) = environment.get("DOCKER_AUTH_CONFIG") {
        match ConfigFile::parse("DOCKER_AUTH_CONFIG", text) {
            Ok(file) => files.push(file),
            Err(error) => errors.push(error),
        }
    }
    let mut seen = Vec::new();
    for path in places(environment, kaniko_dirs) {
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

/// Where `executor login` writes, as docker does: `$DOCKER_CONFIG/config.json`, or the one in the home directory.
pub fn login_file(environment: &Environment) -> PathBuf {
    match environment.get("DOCKER_CONFIG") {
        Some(folder) => docker_config(folder),
        None => home(environment).join(".docker/config.json"),
    }
}

fn home(environment: &Environment) -> &Path {
    Path::new(environment.get("HOME").unwrap_or("/root"))
}

/// `DOCKER_CONFIG` names a folder; some set it to the file.
fn docker_config(folder: &str) -> PathBuf {
    let path = Path::new(folder);
    if path.is_file() { path.to_owned() } else { path.join("config.json") }
}

fn places(environment: &Environment, kaniko_dirs: &[PathBuf]) -> Vec<PathBuf> {
    let mut places = if let Some(folder) = environment.get("DOCKER_CONFIG") {
        // Docker looks nowhere else then, and a pipeline may count on it.
        vec![docker_config(folder)]
    } else {
        let folders = kaniko_dirs.iter().map(PathBuf::as_path).chain([home(environment)]);
        folders.map(|folder| folder.join(".docker/config.json")).collect()
    };
    let path = |name: &str| environment.get(name).map(PathBuf::from);
    let config_home = path("XDG_CONFIG_HOME").unwrap_or_else(|| home(environment).join(".config"));
    let podman = path("XDG_RUNTIME_DIR").into_iter().chain([config_home]);
    places.extend(path("REGISTRY_AUTH_FILE"));
    places.extend(podman.map(|folder| folder.join("containers/auth.json")));
    places
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
        write("kaniko/.docker/config.json", "{}");
        write(".config/containers/auth.json", "{}");
        write("broken/config.json", "{");
        let folder = |name: &str| home.path().join(name).display().to_string();
        let read = |docker_config: &str| {
            let environment: Environment = [
                ("HOME", home.path().display().to_string()),
                ("DOCKER_AUTH_CONFIG", "{}".to_owned()),
                ("DOCKER_CONFIG", docker_config.to_owned()),
                ("REGISTRY_AUTH_FILE", folder("broken/config.json")),
            ]
            .into_iter()
            .collect();
            let kaniko = [home.path().join("kaniko"), "/nonexistent".into(), home.path().join("kaniko")];
            let (files, errors) = config_files(&environment, &kaniko);
            assert_eq!(errors.len(), 1, "{errors:?}");
            let origins: Vec<String> = files.iter().map(|file| file.origin().to_owned()).collect();
            (origins, login_file(&environment))
        };
        let (variable, own) = ("DOCKER_AUTH_CONFIG".to_owned(), folder(".docker/config.json"));
        let (kaniko, podman) = (folder("kaniko/.docker/config.json"), folder(".config/containers/auth.json"));
        let (origins, login) = read("");
        assert_eq!(origins, [variable.clone(), kaniko.clone(), own.clone(), podman.clone()]);
        assert_eq!(login, Path::new(&own));
        // Docker's own variable names the only place, as a folder or as the file.
        for place in [folder("kaniko/.docker"), kaniko.clone()] {
            let (origins, login) = read(&place);
            assert_eq!(origins, [variable.clone(), kaniko.clone(), podman.clone()]);
            assert_eq!(login, Path::new(&kaniko));
        }
    }
}
