//! RPM's database: a header for each package, kept in one of three formats, which the first bytes tell apart.

mod bdb;
mod ndb;
mod sqlite;

use crate::files::Unread;
use crate::package::{Ecosystem, Package};

/// The packages in a database. Signing keys, which are kept as packages, are none.
pub(crate) fn packages(bytes: &[u8]) -> Result<Vec<Package>, Unread> {
    let headers = if bytes.starts_with(sqlite::MAGIC) {
        sqlite::headers(bytes)?
    } else if bytes.starts_with(ndb::MAGIC) {
        ndb::headers(bytes)?
    } else if bdb::is_one(bytes) {
        bdb::headers(bytes)?
    } else if bytes.is_empty() {
        Vec::new()
    } else {
        return Err(Unread::Format("it is an RPM database of a kind that is not known here".to_owned()));
    };
    headers.iter().filter_map(|header| package(header).transpose()).collect()
}

fn broken(why: &str) -> Unread {
    Unread::Format(format!("the RPM database is damaged: {why}"))
}

/// In a sound database no two packages are of the same bytes: together they are no longer than it. Others could ask for all
/// memory, and for all time.
fn overlapping() -> Unread {
    broken("its packages lie in each other")
}

/// One entry of a header's index: tag, type, offset, count.
const ENTRY: usize = 16;
const NAME: u32 = 1000;
const VERSION: u32 = 1001;
const RELEASE: u32 = 1002;
const EPOCH: u32 = 1003;
const VENDOR: u32 = 1011;
const LICENSE: u32 = 1014;
const ARCHITECTURE: u32 = 1022;
const SOURCE: u32 = 1044;

/// The package of a header; `None` for a signing key.
fn package(header: &[u8]) -> Result<Option<Package>, Unread> {
    let word = |at: usize| -> Option<usize> {
        usize::try_from(u32::from_be_bytes(header.get(at..at + 4)?.try_into().ok()?)).ok()
    };
    let entries = word(0).filter(|count| count.saturating_mul(ENTRY) < header.len());
    let entries = entries.ok_or_else(|| broken("a header is cut"))?;
    let data = header.get(8 + entries * ENTRY..).ok_or_else(|| broken("a header is cut"))?;
    let find = |tag: u32| -> Option<&[u8]> {
        let entry = (0..entries).map(|place| 8 + place * ENTRY).find(|at| word(*at) == Some(tag as usize))?;
        data.get(word(entry + 8)?..)
    };
    let text = |tag: u32| -> Option<String> {
        let bytes = find(tag)?;
        let end = memchr::memchr(0, bytes)?;
        Some(String::from_utf8_lossy(&bytes[..end]).into_owned()).filter(|text| text != "(none)")
    };
    let (Some(name), Some(version)) = (text(NAME), text(VERSION)) else {
        return Err(broken("a header has no name or no version"));
    };
    if name == "gpg-pubkey" {
        return Ok(None);
    }
    let version = text(RELEASE).map_or(version.clone(), |release| format!("{version}-{release}"));
    let mut package = Package::new(Ecosystem::Rpm, name, version);
    package.architecture = text(ARCHITECTURE);
    package.license = text(LICENSE);
    package.supplier = text(VENDOR);
    package.upstream = text(SOURCE);
    package.epoch = find(EPOCH).and_then(|bytes| Some(u32::from_be_bytes(bytes.get(..4)?.try_into().ok()?)));
    Ok(Some(package))
}

#[cfg(test)]
mod tests;
