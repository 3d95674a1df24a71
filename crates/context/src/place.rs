//! Where a context is, from the words of the command line.

use std::path::{Path, PathBuf};

use kiln_cloud::Environment;
use url::Url;

use crate::git::{GitAddress, GitOptions, GitRequest, PullMethod, is_git};
use crate::remote::{ObjectName, Store, azure};

/// Where a context is, and which folder of it is its root.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContextRequest {
    /// Where it is.
    pub place: Place,
    /// The folder in it that is used as its root.
    pub sub_path: Option<String>,
}

/// Where a context is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// A directory, absolute; read in place.
    Directory(PathBuf),
    /// An archive in a file.
    Archive(PathBuf),
    /// An archive on standard input.
    Stdin,
    /// An archive at a URL.
    Web(Url),
    /// An archive in an object store.
    Object(ObjectName),
    /// A revision of a repository.
    Git(Box<GitRequest>),
}

/// What kaniko calls an archive that is not named.
const USUAL_KEY: &str = "context.tar.gz";

impl ContextRequest {
    /// A directory that is used as it is.
    pub fn directory(path: impl Into<PathBuf>) -> Self {
        Self { place: Place::Directory(path.into()), sub_path: None }
    }
}

impl Place {
    /// Reads `text`, as `--context` and `--build-context` take it; paths are relative to `directory`.
    ///
    /// Fails with a sentence that shows no login.
    pub fn parse(
        text: &str,
        directory: &Path,
        git: &GitOptions,
        environment: &Environment,
    ) -> Result<Self, String> {
        if is_git(text) && !(text.contains('@') && !text.contains("://") && directory.join(text).exists()) {
            let method = pull_method(environment)?;
            let address = GitAddress::parse(text, method)?;
            let request = GitRequest::of_environment(address, git.clone(), environment);
            return Ok(Self::Git(Box::new(request)));
        }
        match text.split_once("://") {
            None => Ok(Self::Directory(directory.join(text))),
            Some(("dir", path)) => Ok(Self::Directory(directory.join(path))),
            Some(("tar", "stdin")) => Ok(Self::Stdin),
            Some(("tar", path)) => Ok(Self::Archive(directory.join(path))),
            Some(("s3", rest)) => object(Store::S3, rest),
            Some(("gs", rest)) => object(Store::Google, rest),
            Some(("http" | "https", _)) => {
                let url: Url = text.parse().map_err(|error| format!("it is no URL: {error}"))?;
                Ok(azure::parse(&url)?.map_or(Self::Web(url), Self::Object))
            }
            Some((scheme, _)) => Err(format!(
                "there are no contexts of the kind {scheme}://; there are dir://, tar://, tar://stdin, git://, \
                 https://, s3:// and gs://"
            )),
        }
    }
}

fn pull_method(environment: &Environment) -> Result<PullMethod, String> {
    match environment.get("GIT_PULL_METHOD") {
        None | Some("https") => Ok(PullMethod::Https),
        Some("http") => Ok(PullMethod::Http),
        Some(other) => Err(format!("GIT_PULL_METHOD={other}: it is https or http")),
    }
}

fn object(store: Store, rest: &str) -> Result<Place, String> {
    let (bucket, key) = rest.split_once('/').unwrap_or((rest, ""));
    if bucket.is_empty() {
        return Err("it names no bucket".to_owned());
    }
    let key = if key.is_empty() { USUAL_KEY } else { key };
    Ok(Place::Object(ObjectName { store, bucket: bucket.to_owned(), key: key.to_owned() }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Place, String> {
        Place::parse(text, Path::new("/w"), &GitOptions::default(), &Environment::default())
    }

    #[test]
    fn every_kind_of_place_is_told_by_its_words() {
        assert_eq!(parse("a/b").unwrap(), Place::Directory("/w/a/b".into()));
        assert_eq!(parse("dir:///x").unwrap(), Place::Directory("/x".into()));
        assert_eq!(parse("tar://stdin").unwrap(), Place::Stdin);
        assert_eq!(parse("tar://c.tar").unwrap(), Place::Archive("/w/c.tar".into()));
        let object = |text: &str| match parse(text).unwrap() {
            Place::Object(name) => (name.store, name.bucket, name.key),
            other => panic!("{other:?}"),
        };
        assert_eq!(object("s3://b/k/x.tgz"), (Store::S3, "b".into(), "k/x.tgz".into()));
        assert_eq!(object("gs://b"), (Store::Google, "b".into(), "context.tar.gz".into()));
        assert!(matches!(parse("https://h/c.tar.gz").unwrap(), Place::Web(_)));
        assert!(matches!(parse("https://h/r.git#main").unwrap(), Place::Git(_)));
        assert!(matches!(parse("git@h:o/r").unwrap(), Place::Git(_)));
        assert!(parse("ftp://h/x").unwrap_err().contains("ftp"));
        assert!(parse("s3://").is_err());
    }

    #[test]
    fn the_pull_method_is_http_only_where_that_is_said() {
        let place = |method: &str| {
            let environment = [("GIT_PULL_METHOD", method)].into_iter().collect();
            Place::parse("git://h/r", Path::new("/"), &GitOptions::default(), &environment)
        };
        let Place::Git(request) = place("http").unwrap() else { panic!("it is a repository") };
        assert_eq!(request.address.remote.to_string(), "http://h/r");
        assert!(place("gopher").is_err());
    }
}
