//! Addresses of repositories, as kaniko and BuildKit write them: where, which revision, which folder. A login in the
//! address is kept apart from it, so that no message shows it.

use kiln_oci::Redacted;
use url::Url;

/// A repository's address, taken apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GitAddress {
    /// Where the repository is.
    pub remote: Remote,
    /// Name and password (or a token as the name), if they stand in the address.
    pub login: Option<(Redacted<String>, Redacted<String>)>,
    /// A branch, a tag, `refs/pull/7/head` or a commit; without one, what HEAD is there.
    pub reference: Option<String>,
    /// A commit that is checked out in the place of the reference's (`#ref#commit`).
    pub commit: Option<String>,
    /// The folder that is used as the root.
    pub sub_dir: Option<String>,
    /// `?checksum=`: what the commit's (or the tag object's) name begins with.
    pub checksum: Option<String>,
    /// `?keep-git-dir=`.
    pub keep_git_dir: Option<bool>,
    /// `?submodules=`.
    pub submodules: Option<bool>,
    /// `?mtime=commit`: files get the commit's time.
    pub commit_times: bool,
}

/// Where a repository is, without a login.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Remote {
    /// Served by HTTP or HTTPS.
    Web(Url),
    /// Served by an SSH server.
    Ssh {
        /// Who we are there.
        user: String,
        /// Its name or address.
        host: String,
        /// 22 unless said.
        port: u16,
        /// On the server.
        path: String,
    },
}

/// How `git://` is spoken (`GIT_PULL_METHOD`): the git protocol itself has neither logins nor encryption.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PullMethod {
    /// `https`.
    #[default]
    Https,
    /// `http`.
    Http,
}

impl std::fmt::Display for Remote {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Web(url) => f.write_str(url.as_str()),
            Self::Ssh { user, host, port: 22, path } => write!(f, "ssh://{user}@{host}{}", rooted(path)),
            Self::Ssh { user, host, port, path } => write!(f, "ssh://{user}@{host}:{port}{}", rooted(path)),
        }
    }
}

/// A path that starts in the user's home on the server is written as one of the root: only for showing.
fn rooted(path: &str) -> String {
    if path.starts_with('/') { path.to_owned() } else { format!("/{path}") }
}

impl std::fmt::Display for GitAddress {
    /// As it was given, less the login.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.remote)?;
        match (&self.reference, &self.sub_dir) {
            (None, None) => {}
            (reference, None) => write!(f, "#{}", reference.as_deref().unwrap_or_default())?,
            (reference, Some(dir)) => write!(f, "#{}:{dir}", reference.as_deref().unwrap_or_default())?,
        }
        self.commit.as_ref().map_or(Ok(()), |commit| write!(f, " at {commit}"))
    }
}

/// Whether `text` means a repository: `git://`, `ssh://`, a URL whose path ends with `.git`, or `user@host:path`.
pub fn is_git(text: &str) -> bool {
    match text.split_once("://") {
        Some(("git" | "ssh", _)) => true,
        Some(("http" | "https", _)) => {
            let path = text.split(['#', '?']).next().unwrap_or(text);
            path.trim_end_matches('/').strip_suffix(".git").is_some()
        }
        Some(_) => false,
        None => scp(text).is_some(),
    }
}

/// `user@host:path`, as scp writes it.
fn scp(text: &str) -> Option<(&str, &str, &str)> {
    let (user, rest) = text.split_once('@')?;
    let (host, path) = rest.split_once(':')?;
    let plain = |text: &str, more: &str| {
        !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric() || more.contains(c))
    };
    (plain(user, "-_") && plain(host, "-.") && !path.is_empty()).then_some((user, host, path))
}

impl GitAddress {
    /// Takes `text` apart. Fails with what is wrong with it; the text says nothing of a login in it.
    pub fn parse(text: &str, method: PullMethod) -> Result<Self, String> {
        let (place, fragment) =
            text.split_once('#').map_or((text, None), |(place, rest)| (place, Some(rest)));
        let (place, query) = place.split_once('?').map_or((place, None), |(place, rest)| (place, Some(rest)));
        let (remote, login) = match place.split_once("://") {
            None => {
                let (user, host, path) = scp(place).ok_or("it is no address of a git repository")?;
                let (user, host) = (user.to_owned(), host.to_owned());
                (Remote::Ssh { user, host, port: 22, path: path.to_owned() }, None)
            }
            Some((scheme, rest)) => located(scheme, rest, method)?,
        };
        let mut address = Self {
            remote,
            login,
            reference: None,
            commit: None,
            sub_dir: None,
            checksum: None,
            keep_git_dir: None,
            submodules: None,
            commit_times: false,
        };
        address.read_fragment(fragment.unwrap_or_default())?;
        address.read_query(query.unwrap_or_default())?;
        for reference in [&address.reference, &address.commit].into_iter().flatten() {
            if reference.starts_with('-') || reference.bytes().any(|b| b.is_ascii_control() || b == b' ') {
                return Err(format!("{reference:?} can't be the name of a revision"));
            }
        }
        Ok(address)
    }

    /// `ref`, `ref:folder`, `ref#commit`, `ref#commit:folder`.
    fn read_fragment(&mut self, fragment: &str) -> Result<(), String> {
        let fragment = percent(fragment);
        let (revision, folder) = fragment.split_once(':').unwrap_or((fragment.as_str(), ""));
        let (reference, commit) = revision.split_once('#').unwrap_or((revision, ""));
        let some = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        self.reference = some(reference);
        self.commit = some(commit);
        self.sub_dir = folder_of(folder)?;
        if let Some(commit) = &self.commit
            && !is_commit(commit)
        {
            return Err(format!("{commit:?} is no full name of a commit: write its 40 hexadecimal digits"));
        }
        Ok(())
    }

    /// BuildKit's `?ref=…&subdir=…`.
    fn read_query(&mut self, query: &str) -> Result<(), String> {
        let mut seen = Vec::new();
        let (mut tag, mut branch) = (None, None);
        for (key, value) in url::form_urlencoded::parse(query.as_bytes()) {
            if seen.contains(&key) {
                return Err(format!("{key:?} stands in it twice"));
            }
            let switch = matches!(&*key, "submodules" | "keep-git-dir" | "fetch-by-commit");
            if value.is_empty() && !switch {
                return Err(format!("{key:?} has no value"));
            }
            match &*key {
                "ref" => self.one_reference(&value)?,
                "tag" => tag = Some(full("refs/tags/", &value)),
                "branch" => branch = Some(full("refs/heads/", &value)),
                "subdir" => {
                    let folder = folder_of(&value)?;
                    if self.sub_dir.is_some() && self.sub_dir != folder {
                        return Err("it names two different folders".to_owned());
                    }
                    self.sub_dir = folder;
                }
                "checksum" | "commit" => self.checksum = Some(checksum(&value)?),
                "keep-git-dir" => self.keep_git_dir = Some(boolean(&key, &value)?),
                "submodules" => self.submodules = Some(boolean(&key, &value)?),
                "mtime" => match &*value {
                    "checkout" => {}
                    "commit" => self.commit_times = true,
                    other => return Err(format!("mtime={other}: it is checkout or commit")),
                },
                "fetch-by-commit" => {
                    // The commit is what is asked for in any case; this says that no reference is looked at.
                    if boolean(&key, &value)? && !query.contains("checksum=") && !query.contains("commit=") {
                        return Err("fetch-by-commit needs the commit: add checksum=".to_owned());
                    }
                }
                other => return Err(format!("{other:?} is not known in a git address")),
            }
            seen.push(key);
        }
        if tag.is_some() && branch.is_some() {
            return Err("it names a tag and a branch".to_owned());
        }
        tag.or(branch).map_or(Ok(()), |reference| self.one_reference(&reference))
    }

    fn one_reference(&mut self, reference: &str) -> Result<(), String> {
        match &self.reference {
            Some(other) if other != reference => {
                Err(format!("it names two revisions, {other:?} and {reference:?}"))
            }
            _ => {
                self.reference = Some(reference.to_owned());
                Ok(())
            }
        }
    }
}

type Located = (Remote, Option<(Redacted<String>, Redacted<String>)>);

fn located(scheme: &str, rest: &str, method: PullMethod) -> Result<Located, String> {
    let scheme = match (scheme, method) {
        ("git", PullMethod::Https) => "https",
        ("git", PullMethod::Http) => "http",
        (other @ ("http" | "https" | "ssh"), _) => other,
        (other, _) => return Err(format!("{other}:// is not spoken to git servers")),
    };
    let mut url =
        Url::parse(&format!("{scheme}://{rest}")).map_err(|error| format!("it is no URL: {error}"))?;
    let host = url.host_str().filter(|host| !host.is_empty()).ok_or("it names no host")?.to_owned();
    let user = percent(url.username());
    let password = url.password().map(percent);
    if scheme == "ssh" {
        let user = if user.is_empty() { "git".to_owned() } else { user };
        let port = url.port().unwrap_or(22);
        return Ok((Remote::Ssh { user, host, port, path: percent(url.path()) }, None));
    }
    let no_login = url.set_username("").and_then(|()| url.set_password(None));
    no_login.map_err(|()| "it is no URL of a server".to_owned())?;
    let login = (!user.is_empty() || password.is_some())
        .then(|| (Redacted::new(user), Redacted::new(password.unwrap_or_default())));
    Ok((Remote::Web(url), login))
}

fn full(prefix: &str, name: &str) -> String {
    if name.starts_with(prefix) { name.to_owned() } else { format!("{prefix}{name}") }
}

/// Whether `text` is the full name of a commit.
pub fn is_commit(text: &str) -> bool {
    text.len() == 40 && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// Reads `--checksum` or `?checksum=`: the beginning of a commit's name.
pub fn checksum(text: &str) -> Result<String, String> {
    if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        Ok(text.to_ascii_lowercase())
    } else {
        Err(format!("the checksum {text:?} is no commit: a git source takes the commit's hexadecimal name"))
    }
}

fn folder_of(text: &str) -> Result<Option<String>, String> {
    let parts: Vec<&str> = text.split('/').filter(|part| !part.is_empty() && *part != ".").collect();
    if parts.contains(&"..") {
        return Err(format!("the folder {text:?} leads out of the repository"));
    }
    Ok((!parts.is_empty()).then(|| parts.join("/")))
}

fn boolean(key: &str, text: &str) -> Result<bool, String> {
    match text {
        "" | "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
        other => Err(format!("{key}={other}: it is true or false")),
    }
}

fn percent(text: &str) -> String {
    percent_encoding::percent_decode_str(text).decode_utf8_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<GitAddress, String> {
        GitAddress::parse(text, PullMethod::Https)
    }

    #[test]
    fn repositories_are_told_from_other_places() {
        for text in [
            "git://h/r",
            "ssh://git@h:2222/r",
            "https://h/r.git",
            "https://h/r.git/",
            "https://t@h/r.git#main:dir",
            "https://h/r.git?ref=v1",
            "git@h:o/r.git",
            "git@host:r",
        ] {
            assert!(is_git(text), "{text}");
        }
        for text in ["https://h/r.tar.gz", "s3://b/k.git", "/a@b:c/d", "dir", "https://h/x?y=.git", "a@b"] {
            assert!(!is_git(text), "{text}");
        }
    }

    #[test]
    fn revision_commit_and_folder_stand_after_the_sharp_sign() {
        let commit = "0123456789012345678901234567890123456789";
        let address = parse(&format!("https://h/r.git#main#{commit}:a//b/./c")).unwrap();
        assert_eq!(address.reference.as_deref(), Some("main"));
        assert_eq!(address.commit.as_deref(), Some(commit));
        assert_eq!(address.sub_dir.as_deref(), Some("a/b/c"));
        let address = parse("git@h:o/r.git#:sub").unwrap();
        assert_eq!((address.reference, address.sub_dir.as_deref()), (None, Some("sub")));
        assert_eq!(parse("git://h/r#refs/pull/7/head").unwrap().reference.unwrap(), "refs/pull/7/head");
        assert!(parse("https://h/r.git#main#abc").is_err());
        assert!(parse("https://h/r.git#main:../x").is_err());
        assert!(parse("https://h/r.git#--upload-pack=x").is_err());
    }

    #[test]
    fn a_query_says_the_same_and_contradictions_are_errors() {
        let address =
            parse("https://h/r.git?tag=v1&subdir=d&keep-git-dir&submodules=false&mtime=commit").unwrap();
        assert_eq!(address.reference.as_deref(), Some("refs/tags/v1"));
        assert_eq!(address.sub_dir.as_deref(), Some("d"));
        assert_eq!((address.keep_git_dir, address.submodules), (Some(true), Some(false)));
        assert!(address.commit_times);
        for query in ["ref=a#b", "tag=a&branch=b", "nope=1", "ref=", "submodules=maybe", "ref=a&ref=a"] {
            assert!(parse(&format!("https://h/r.git?{query}")).is_err(), "{query}");
        }
    }

    #[test]
    fn a_login_is_kept_apart_and_never_shown() {
        let address = parse("git://s3cr%2Bet@h/r.git#main").unwrap();
        assert_eq!(address.login.as_ref().unwrap().0.expose(), "s3cr+et");
        for shown in [address.to_string(), address.remote.to_string()] {
            assert!(shown.starts_with("https://h/r.git"), "{shown}");
        }
        assert!(!format!("{address:?}").contains("s3cr"));
        let address = parse("https://me:s3cret@h/r.git").unwrap();
        assert_eq!(address.login.as_ref().unwrap().1.expose(), "s3cret");
        assert!(!format!("{address:?}").contains("s3cret"));
    }
}
