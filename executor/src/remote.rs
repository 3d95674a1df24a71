//! ADD of a URL: downloaded once, into the scratch directory.

use std::io::{Seek as _, Write as _};
use std::sync::Arc;

use kiln_oci::{Digest, Hasher};
use kiln_plan::ContentQuestion;
use kiln_registry::BlobSink;

use crate::copy::Downloaded;
use crate::error::BuildError;
use crate::session::Session;

/// The digest of what a URL gives, for a key.
pub(crate) async fn digest(
    session: &Arc<Session>,
    question: &ContentQuestion,
) -> Result<[u8; 32], BuildError> {
    let Some(url) = question.words.first() else { return Ok([0; 32]) };
    let (_, digest) = download(session, url, None).await?;
    let mut bytes = [0; 32];
    bytes.copy_from_slice(digest.as_bytes());
    Ok(bytes)
}

/// Downloads `url`, unless that was done already, and compares it with `checksum`.
pub(crate) async fn download(
    session: &Arc<Session>,
    url: &str,
    checksum: Option<&str>,
) -> Result<(Downloaded, Digest), BuildError> {
    // Held over the download: who wants the same one waits for it.
    let mut downloads = session.downloads.lock().await;
    if let Some((known, digest)) = downloads.get(url) {
        return checked(url, known.clone(), digest.clone(), checksum);
    }
    let name = file_name(url);
    let path = session.directory("downloads")?.join(Digest::of(url.as_bytes()).hex());
    let fail = |why: String| BuildError::other(format!("could not download {url}: {why}"));
    let file =
        std::fs::File::create(&path).map_err(|source| BuildError::Write { path: path.clone(), source })?;
    let mut sink = Saved { file, hasher: Hasher::sha256() };
    let modified = session.registry.fetch_url(url, &mut sink).await.map_err(fail)?;
    let digest = sink.hasher.finish();
    // A server that says no time gives a file of 1970, the same in every build.
    let modified = modified.unwrap_or(0);
    let downloaded = Downloaded { path, name, modified };
    downloads.insert(url.to_owned(), (downloaded.clone(), digest.clone()));
    checked(url, downloaded, digest, checksum)
}

fn checked(
    url: &str,
    downloaded: Downloaded,
    digest: Digest,
    checksum: Option<&str>,
) -> Result<(Downloaded, Digest), BuildError> {
    match checksum.filter(|expected| **expected != digest.to_string()) {
        None => Ok((downloaded, digest)),
        Some(expected) => Err(BuildError::other(format!(
            "could not download {url}: its digest is {digest}, but --checksum says {expected}"
        ))),
    }
}

/// Writes and hashes what comes.
struct Saved {
    file: std::fs::File,
    hasher: Hasher,
}

impl BlobSink for Saved {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.hasher.update(bytes);
        self.file.write_all(bytes)
    }

    fn restart(&mut self) -> std::io::Result<bool> {
        self.hasher = Hasher::sha256();
        self.file.set_len(0)?;
        self.file.rewind()?;
        Ok(true)
    }
}

/// The last component of the URL's path, as it is once `%20` and the like are undone.
pub(crate) fn file_name(url: &str) -> String {
    let path = url.split(['?', '#']).next().unwrap_or(url);
    let path = path.split_once("://").map_or(path, |(_, rest)| rest);
    let path = path.split_once('/').map_or("", |(_, path)| path);
    let path = decoded(path).unwrap_or_default();
    match path.trim_end_matches('/').rsplit('/').next() {
        Some(name) if !matches!(name, "" | ".") => name.to_owned(),
        _ => "__unnamed__".to_owned(),
    }
}

/// A path without its percent signs; `None` where one is followed by anything but two hexadecimal digits.
fn decoded(path: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(path.len());
    let mut rest = path.as_bytes();
    while let Some((first, others)) = rest.split_first() {
        rest = others;
        if *first != b'%' {
            bytes.push(*first);
            continue;
        }
        let digits = std::str::from_utf8(others.get(..2)?).ok()?;
        bytes.push(u8::from_str_radix(digits, 16).ok()?);
        rest = &others[2..];
    }
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use super::file_name;

    #[test]
    fn the_file_is_named_by_the_end_of_the_path() {
        assert_eq!(file_name("https://h/a/b.tar.gz?x=/y"), "b.tar.gz");
        assert_eq!(file_name("https://h/a/b/"), "b");
        assert_eq!(file_name("https://h/a%20b"), "a b");
        assert_eq!(file_name("https://h/a%2fb/"), "b");
        assert_eq!(file_name("https://h/a%"), "__unnamed__");
        assert_eq!(file_name("https://h/"), "__unnamed__");
        assert_eq!(file_name("https://h"), "__unnamed__");
    }
}
