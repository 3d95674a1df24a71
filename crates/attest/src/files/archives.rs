//! Java archives: the `pom.properties` that Maven puts into them, also of archives within archives.

use std::io::Read as _;
use std::path::Path;

use flate2::read::DeflateDecoder;

use super::Unread;
use crate::package::{Ecosystem, Package};

/// How deep archives are looked for in archives.
const DEPTH: usize = 3;
/// The most that one member may come to.
const MOST: u64 = 128 << 20;
/// The most that all members that are read may come to, so that a small archive can't ask for all memory.
const MOST_IN_ALL: u64 = 1 << 30;

/// The packages in a Java archive.
pub(super) fn jar(bytes: &[u8]) -> Result<Vec<Package>, Unread> {
    let mut found = Vec::new();
    let mut left = MOST_IN_ALL;
    look(bytes, 0, &mut left, &mut found)?;
    Ok(found)
}

fn look(bytes: &[u8], depth: usize, left: &mut u64, found: &mut Vec<Package>) -> Result<(), Unread> {
    for member in members(bytes)? {
        if member.name.ends_with("/pom.properties") {
            let content = member.content(bytes, left)?;
            found.extend(pom_properties(&String::from_utf8_lossy(&content)));
        } else if depth < DEPTH && Path::new(&member.name).extension().is_some_and(|kind| kind == "jar") {
            let inner = member.content(bytes, left)?;
            look(&inner, depth + 1, left, found)?;
        }
    }
    Ok(())
}

fn pom_properties(text: &str) -> Option<Package> {
    let value = |wanted: &str| {
        text.lines().find_map(|line| {
            let (key, value) = line.split_once('=')?;
            (key.trim() == wanted).then(|| value.trim().to_owned())
        })
    };
    let (group, artifact) = (value("groupId")?, value("artifactId")?);
    Some(Package::new(Ecosystem::Maven, format!("{group}/{artifact}"), value("version")?))
}

/// One entry of the directory at an archive's end (APPNOTE 6.3, section 4.3.12).
struct Member {
    name: String,
    method: u16,
    packed: usize,
    header: usize,
}

fn broken(why: &str) -> Unread {
    Unread::Format(format!("the archive is damaged: {why}"))
}

fn half(bytes: &[u8], at: usize) -> Option<usize> {
    Some(usize::from(u16::from_le_bytes(bytes.get(at..at + 2)?.try_into().ok()?)))
}

fn word(bytes: &[u8], at: usize) -> Option<usize> {
    usize::try_from(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?)).ok()
}

fn members(bytes: &[u8]) -> Result<Vec<Member>, Unread> {
    // The end record is the last thing but for a comment of up to 64 KiB.
    let from = bytes.len().saturating_sub(66_000);
    let end =
        memchr::memmem::rfind(&bytes[from..], b"PK\x05\x06").ok_or_else(|| broken("it has no end"))? + from;
    let (count, mut at) = (half(bytes, end + 10), word(bytes, end + 16));
    let mut found = Vec::new();
    for _ in 0..count.unwrap_or(0) {
        let entry = at.filter(|at| bytes.get(*at..at + 4) == Some(b"PK\x01\x02"));
        let read = entry.and_then(|at| {
            let (name, extra, comment) =
                (half(bytes, at + 28)?, half(bytes, at + 30)?, half(bytes, at + 32)?);
            let member = Member {
                name: String::from_utf8_lossy(bytes.get(at + 46..at + 46 + name)?).into_owned(),
                method: u16::try_from(half(bytes, at + 10)?).ok()?,
                packed: word(bytes, at + 20)?,
                header: word(bytes, at + 42)?,
            };
            Some((member, at + 46 + name + extra + comment))
        });
        let (member, next) = read.ok_or_else(|| broken("its directory is cut"))?;
        at = Some(next);
        found.push(member);
    }
    Ok(found)
}

impl Member {
    fn content(&self, bytes: &[u8], left: &mut u64) -> Result<Vec<u8>, Unread> {
        let at = self.header;
        let start =
            half(bytes, at + 26).zip(half(bytes, at + 28)).map(|(name, extra)| at + 30 + name + extra);
        let packed = start.and_then(|start| bytes.get(start..start.checked_add(self.packed)?));
        let packed = packed.ok_or_else(|| broken("a member lies outside of it"))?;
        let most = MOST.min(*left);
        let mut content = Vec::new();
        let length = match self.method {
            0 => packed.take(most + 1).read_to_end(&mut content)?,
            8 => DeflateDecoder::new(packed).take(most + 1).read_to_end(&mut content)?,
            _ => return Err(broken("a member is compressed in a way that Java has not")),
        } as u64;
        if length > most {
            return Err(Unread::TooLarge(length));
        }
        *left -= length;
        Ok(content)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    /// A zip archive with these members, compressed or as they are.
    fn zip(members: &[(&str, &[u8], bool)]) -> Vec<u8> {
        let (mut file, mut directory) = (Vec::new(), Vec::new());
        for (name, content, compress) in members {
            let packed = if *compress {
                let mut encoder =
                    flate2::write::DeflateEncoder::new(Vec::new(), flate2::Compression::default());
                encoder.write_all(content).unwrap();
                encoder.finish().unwrap()
            } else {
                content.to_vec()
            };
            let common = |out: &mut Vec<u8>| {
                out.extend([20, 0, 0, 0, if *compress { 8 } else { 0 }, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
                out.extend(u32::try_from(packed.len()).unwrap().to_le_bytes());
                out.extend(u32::try_from(content.len()).unwrap().to_le_bytes());
                out.extend(u16::try_from(name.len()).unwrap().to_le_bytes());
                out.extend([0, 0]);
            };
            directory.extend(b"PK\x01\x02\x14\x00");
            common(&mut directory);
            directory.extend([0; 10]);
            directory.extend(u32::try_from(file.len()).unwrap().to_le_bytes());
            directory.extend(name.as_bytes());
            file.extend(b"PK\x03\x04");
            common(&mut file);
            file.extend(name.as_bytes());
            file.extend(&packed);
        }
        let start = u32::try_from(file.len()).unwrap();
        let count = u16::try_from(members.len()).unwrap().to_le_bytes();
        file.extend(&directory);
        file.extend(b"PK\x05\x06\0\0\0\0");
        file.extend(count);
        file.extend(count);
        file.extend(u32::try_from(directory.len()).unwrap().to_le_bytes());
        file.extend(start.to_le_bytes());
        file.extend([0, 0]);
        file
    }

    const POM: &str = "META-INF/maven/org.x/lib/pom.properties";

    #[test]
    fn maven_s_notes_are_found_in_archives_and_in_archives_within() {
        let inner = zip(&[(POM, b"#x\ngroupId=org.x\nartifactId=lib\nversion=1.0\n", true)]);
        let outer = zip(&[
            ("META-INF/MANIFEST.MF", b"Manifest-Version: 1.0\n", true),
            ("BOOT-INF/lib/lib.jar", &inner, false),
            (POM, b"groupId=org.y\nartifactId=app\nversion=2.0\n", false),
        ]);
        let found = jar(&outer).unwrap();
        let names: Vec<_> = found.iter().map(|p| format!("{} {}", p.name, p.version)).collect();
        assert_eq!(names, ["org.x/lib 1.0", "org.y/app 2.0"]);
    }

    #[test]
    fn a_damaged_archive_is_an_error_and_no_panic() {
        let whole = zip(&[(POM, b"groupId=a\nartifactId=b\nversion=1\n", true)]);
        assert!(jar(b"no archive").is_err());
        for cut in 0..whole.len() {
            let mut bytes = whole.clone();
            bytes[cut] ^= 0xff;
            drop(jar(&bytes));
            drop(jar(&whole[cut..]));
            drop(jar(&whole[..cut]));
        }
    }
}
