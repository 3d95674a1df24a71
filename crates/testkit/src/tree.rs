//! Trees as text, a line for each entry, sorted by path:
//!
//! ```text
//! / dir 0755 0:0
//! /bin link 0:0 -> usr/bin
//! /etc/motd file 0644 0:0 12 sha256:9f2c…
//! /etc/issue file 0644 0:0 "Kiln\n" mtime=1700000000.5 user.note="x"
//! /big file 0644 0:0 pattern:100000
//! /etc/same hardlink -> /etc/motd
//! /dev/null char 0666 0:0 1:3        (block likewise)
//! /run/pipe fifo 0600 0:0
//! /gone deleted                      (in a layer: a whiteout)
//! /fresh opaque                      (in a layer: an opaque directory)
//! ```
//!
//! What is quoted takes `\n`, `\t`, `\\`, `\"` and `\xNN`; so do paths and targets, where `\x20` is a space.

use std::collections::BTreeMap;
use std::fmt::{self, Write as _};

use kiln_oci::Digest;

/// One entry of a tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TreeEntry {
    /// The path, from `/` on.
    pub path: Vec<u8>,
    /// What it is.
    pub kind: EntryKind,
    /// Permission bits, with setuid, setgid and sticky.
    pub mode: u32,
    /// The owner.
    pub uid: u64,
    /// The group.
    pub gid: u64,
    /// Modification time in seconds and nanoseconds, where the text gives one.
    pub mtime: Option<(i64, u32)>,
    /// Extended attributes.
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

/// What an entry is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EntryKind {
    /// A regular file.
    File(Content),
    /// A directory.
    Directory,
    /// A symbolic link and what it says.
    Symlink(Vec<u8>),
    /// Another name of the file at this path.
    Hardlink(Vec<u8>),
    /// A named pipe.
    Fifo,
    /// A character device: major and minor.
    CharDevice(u32, u32),
    /// A block device: major and minor.
    BlockDevice(u32, u32),
    /// In a layer: what was there below is gone.
    Deleted,
    /// In a layer: the directory hides all that was in it below.
    Opaque,
}

/// The content of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    /// All of it.
    Bytes(Vec<u8>),
    /// Only its size and digest.
    Known {
        /// Its length in bytes.
        size: u64,
        /// The digest of its bytes.
        digest: Digest,
    },
}

impl Content {
    /// Size and digest.
    pub fn summary(&self) -> (u64, Digest) {
        match self {
            Self::Bytes(bytes) => (bytes.len() as u64, Digest::of(bytes)),
            Self::Known { size, digest } => (*size, digest.clone()),
        }
    }
}

/// Reads a tree. Empty lines and lines that begin with `#` are passed over; indentation doesn't matter.
///
/// Fails with the number of the line and what is wrong with it.
pub fn parse_tree(text: &str) -> Result<Vec<TreeEntry>, String> {
    text.lines()
        .enumerate()
        .map(|(number, line)| (number + 1, line.trim()))
        .filter(|(_, line)| !line.is_empty() && !line.starts_with('#'))
        .map(|(number, line)| parse_line(line).map_err(|why| format!("line {number}: {why}: {line}")))
        .collect()
}

/// Writes a tree: the inverse of [`parse_tree`], sorted by path, with contents as size and digest.
pub fn print_tree(entries: &[TreeEntry]) -> String {
    let mut sorted: Vec<&TreeEntry> = entries.iter().collect();
    sorted.sort_by(|a, b| a.path.cmp(&b.path));
    sorted.iter().fold(String::new(), |mut text, entry| {
        let _ = writeln!(text, "{entry}");
        text
    })
}

const KINDS: [&str; 9] = ["file", "dir", "link", "hardlink", "fifo", "char", "block", "deleted", "opaque"];

fn parse_line(line: &str) -> Result<TreeEntry, String> {
    let words = split(line)?;
    let mut words = words.iter().map(String::as_str).peekable();
    let mut next = |what: &str| words.next().ok_or_else(|| format!("{what} is missing"));
    let path = unescape(next("the path")?)?;
    if path.first() != Some(&b'/') {
        return Err("the path must begin with /".into());
    }
    let name = next("the kind")?;
    if !KINDS.contains(&name) {
        return Err(format!("{name} is no kind of entry"));
    }
    let mut entry = TreeEntry {
        path,
        kind: EntryKind::Directory,
        mode: 0o777,
        uid: 0,
        gid: 0,
        mtime: None,
        xattrs: BTreeMap::new(),
    };
    if matches!(name, "file" | "dir" | "fifo" | "char" | "block") {
        let mode = next("the mode")?;
        entry.mode = u32::from_str_radix(mode, 8).map_err(|_| format!("{mode} is no octal mode"))?;
    }
    if !matches!(name, "hardlink" | "deleted" | "opaque") {
        let owner = next("the owner")?;
        let (uid, gid) = owner
            .split_once(':')
            .and_then(|(u, g)| Some((u.parse().ok()?, g.parse().ok()?)))
            .ok_or_else(|| format!("{owner} is no owner (0:0)"))?;
        (entry.uid, entry.gid) = (uid, gid);
    }
    entry.kind = match name {
        "dir" => EntryKind::Directory,
        "fifo" => EntryKind::Fifo,
        "deleted" => EntryKind::Deleted,
        "opaque" => EntryKind::Opaque,
        "link" | "hardlink" => {
            if next("->")? != "->" {
                return Err("-> is missing".into());
            }
            let target = unescape(next("the target")?)?;
            if name == "link" { EntryKind::Symlink(target) } else { EntryKind::Hardlink(target) }
        }
        "char" | "block" => {
            let numbers = next("the device numbers")?;
            let (major, minor) = numbers
                .split_once(':')
                .and_then(|(a, b)| Some((a.parse().ok()?, b.parse().ok()?)))
                .ok_or_else(|| format!("{numbers} are no device numbers (1:3)"))?;
            if name == "char" {
                EntryKind::CharDevice(major, minor)
            } else {
                EntryKind::BlockDevice(major, minor)
            }
        }
        _ => EntryKind::File(match next("the content")? {
            text if text.starts_with('"') => Content::Bytes(unescape(text.trim_matches('"'))?),
            text if text.starts_with("pattern:") => Content::Bytes(pattern(number(&text[8..])?)),
            text if text.starts_with("zeros:") => Content::Bytes(vec![0; number(&text[6..])?]),
            size => {
                let size = number(size)? as u64;
                let digest = next("the digest")?.parse().map_err(|_| "that is no digest".to_owned())?;
                Content::Known { size, digest }
            }
        }),
    };
    for word in words {
        let (key, value) = word.split_once('=').ok_or_else(|| format!("what is {word}?"))?;
        if key == "mtime" {
            let (seconds, rest) = value.split_once('.').unwrap_or((value, "0"));
            let nanos = format!("{rest:0<9}").parse().map_err(|_| format!("{value} is no time"))?;
            entry.mtime = Some((seconds.parse().map_err(|_| format!("{value} is no time"))?, nanos));
        } else {
            entry.xattrs.insert(unescape(key)?, unescape(value.trim_matches('"'))?);
        }
    }
    Ok(entry)
}

fn number(text: &str) -> Result<usize, String> {
    text.parse().map_err(|_| format!("{text} is no number"))
}

/// Bytes that don't repeat soon and don't compress to nothing.
fn pattern(size: usize) -> Vec<u8> {
    let mut state = 0x2545_f491_u32;
    (0..size)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 17;
            state ^= state << 5;
            b'a' + u8::try_from(state % 16).unwrap_or(0)
        })
        .collect()
}

/// Splits at spaces outside quotes; quotes and escapes are kept.
fn split(line: &str) -> Result<Vec<String>, String> {
    let (mut words, mut word, mut quoted, mut escaped) = (Vec::new(), String::new(), false, false);
    for c in line.chars() {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '"' => quoted = !quoted,
            ' ' if !quoted => {
                if !word.is_empty() {
                    words.push(std::mem::take(&mut word));
                }
                continue;
            }
            _ => {}
        }
        word.push(c);
    }
    if quoted {
        return Err("a quote is not closed".into());
    }
    words.extend((!word.is_empty()).then_some(word));
    Ok(words)
}

fn unescape(text: &str) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::new();
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'\\' {
            bytes.push(byte);
            continue;
        }
        bytes.push(match rest.next() {
            Some(b'n') => b'\n',
            Some(b't') => b'\t',
            Some(b'x') => {
                let digits = [rest.next().unwrap_or(b'?'), rest.next().unwrap_or(b'?')];
                std::str::from_utf8(&digits)
                    .ok()
                    .and_then(|digits| u8::from_str_radix(digits, 16).ok())
                    .ok_or("\\x takes two hexadecimal digits")?
            }
            Some(other) => other,
            None => return Err("it ends in a backslash".into()),
        });
    }
    Ok(bytes)
}

struct Escaped<'a>(&'a [u8]);

impl fmt::Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for chunk in self.0.utf8_chunks() {
            for c in chunk.valid().chars() {
                match c {
                    '\n' => f.write_str("\\n")?,
                    '\t' => f.write_str("\\t")?,
                    '\\' | '"' => write!(f, "\\{c}")?,
                    ' ' => f.write_str("\\x20")?,
                    c if c.is_ascii_control() => write!(f, "\\x{:02x}", u32::from(c))?,
                    c => write!(f, "{c}")?,
                }
            }
            for byte in chunk.invalid() {
                write!(f, "\\x{byte:02x}")?;
            }
        }
        Ok(())
    }
}

impl fmt::Display for TreeEntry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { mode, uid, gid, .. } = self;
        write!(f, "{} ", Escaped(&self.path))?;
        match &self.kind {
            EntryKind::File(content) => {
                let (size, digest) = content.summary();
                write!(f, "file {mode:04o} {uid}:{gid} {size} {digest}")?;
            }
            EntryKind::Directory => write!(f, "dir {mode:04o} {uid}:{gid}")?,
            EntryKind::Symlink(target) => write!(f, "link {uid}:{gid} -> {}", Escaped(target))?,
            EntryKind::Hardlink(target) => write!(f, "hardlink -> {}", Escaped(target))?,
            EntryKind::Fifo => write!(f, "fifo {mode:04o} {uid}:{gid}")?,
            EntryKind::CharDevice(major, minor) => write!(f, "char {mode:04o} {uid}:{gid} {major}:{minor}")?,
            EntryKind::BlockDevice(major, minor) => {
                write!(f, "block {mode:04o} {uid}:{gid} {major}:{minor}")?;
            }
            EntryKind::Deleted => f.write_str("deleted")?,
            EntryKind::Opaque => f.write_str("opaque")?,
        }
        if let Some((seconds, nanos)) = self.mtime {
            write!(f, " mtime={seconds}")?;
            if nanos > 0 {
                write!(f, ".{}", format!("{nanos:09}").trim_end_matches('0'))?;
            }
        }
        for (name, value) in &self.xattrs {
            write!(f, " {}=\"{}\"", Escaped(name), Escaped(value))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tree_reads_and_prints_the_same() {
        let text = format!(
            "/ dir 0755 0:0\n/a\\x20b file 4755 1:2 3 {} mtime=5.25 user.k=\"v\\\\w\"\n/bin link 0:0 -> usr/bin\n/dev/null char 0666 0:0 1:3\n/gone deleted\n/same hardlink -> /a\\x20b\n",
            Digest::of(b"abc")
        );
        assert_eq!(print_tree(&parse_tree(&text).unwrap()), text);
    }

    #[test]
    fn contents_in_the_text_are_the_file_s_bytes() {
        let tree = parse_tree("  # a note\n  /f file 0644 0:0 \"a b\\n\\xff\"").unwrap();
        assert_eq!(tree[0].kind, EntryKind::File(Content::Bytes(b"a b\n\xff".to_vec())));
        let tree = parse_tree("/f file 0644 0:0 pattern:1000").unwrap();
        assert!(matches!(&tree[0].kind, EntryKind::File(Content::Bytes(bytes)) if bytes.len() == 1000));
    }

    #[test]
    fn a_wrong_line_is_named() {
        assert!(parse_tree("/a dir 0755 0:0\n/b thing").unwrap_err().starts_with("line 2: thing is no kind"));
        assert!(parse_tree("a dir 0755 0:0").unwrap_err().contains("begin with /"));
    }
}
