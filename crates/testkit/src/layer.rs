//! Layers for tests: a tar from the text form of a tree, or from entries put together by hand, hostile ones too.

use std::io::Write as _;

use flate2::write::GzEncoder;
use kiln_oci::{Descriptor, DiffId, Digest, media_type};
use tar::{Builder, EntryType, Header};

use crate::tree::{Content, EntryKind, TreeEntry, parse_tree};

/// A finished layer.
#[derive(Clone, Debug)]
pub struct Layer {
    /// The tar.
    pub tar: Vec<u8>,
    /// The tar, compressed by gzip.
    pub gzip: Vec<u8>,
}

impl Layer {
    /// The digest of the tar before compression.
    ///
    /// # Panics
    /// Never: a digest of 32 bytes always fits.
    pub fn diff_id(&self) -> DiffId {
        Digest::of(&self.tar).to_string().parse().expect("a SHA-256 digest is a diff ID")
    }

    /// The descriptor of the compressed layer.
    pub fn descriptor(&self) -> Descriptor {
        Descriptor::new(media_type::OCI_LAYER_GZIP, Digest::of(&self.gzip), self.gzip.len() as u64)
    }
}

/// Puts a layer together, entry by entry.
pub struct LayerBuilder {
    tar: Builder<Vec<u8>>,
}

impl Default for LayerBuilder {
    fn default() -> Self {
        Self { tar: Builder::new(Vec::new()) }
    }
}

impl LayerBuilder {
    /// A layer with nothing in it.
    pub fn new() -> Self {
        Self::default()
    }

    /// A layer with the entries of `text`, in that order (see [`parse_tree`]).
    ///
    /// # Panics
    /// If the text is no tree.
    pub fn from_text(text: &str) -> Self {
        let entries = parse_tree(text).unwrap_or_else(|why| panic!("{why}"));
        entries.iter().fold(Self::new(), Self::entry)
    }

    /// Adds an entry of a tree. Deletions become `.wh.NAME`, opaque directories `.wh..wh..opq`.
    ///
    /// # Panics
    /// If the content of a file is not known.
    #[must_use]
    pub fn entry(self, entry: &TreeEntry) -> Self {
        let name = entry.path.strip_prefix(b"/").unwrap_or(&entry.path).to_vec();
        let with = |kind| raw_header(kind, entry);
        match &entry.kind {
            EntryKind::File(Content::Bytes(bytes)) => {
                self.append(with(EntryType::Regular), &name, b"", bytes, entry)
            }
            EntryKind::File(Content::Known { .. }) => panic!("a layer needs the content of {entry}"),
            EntryKind::Directory => {
                let name = if name.is_empty() { b"./".to_vec() } else { [&name[..], b"/"].concat() };
                self.append(with(EntryType::Directory), &name, b"", b"", entry)
            }
            EntryKind::Symlink(target) => self.append(with(EntryType::Symlink), &name, target, b"", entry),
            EntryKind::Hardlink(target) => {
                let target = target.strip_prefix(b"/").unwrap_or(target);
                self.append(with(EntryType::Link), &name, target, b"", entry)
            }
            EntryKind::Fifo => self.append(with(EntryType::Fifo), &name, b"", b"", entry),
            EntryKind::CharDevice(major, minor) | EntryKind::BlockDevice(major, minor) => {
                let char = matches!(entry.kind, EntryKind::CharDevice(..));
                let mut header = with(if char { EntryType::Char } else { EntryType::Block });
                header.set_device_major(*major).expect("a ustar header has device numbers");
                header.set_device_minor(*minor).expect("a ustar header has device numbers");
                self.append(header, &name, b"", b"", entry)
            }
            EntryKind::Deleted => {
                let at = name.iter().rposition(|byte| *byte == b'/').map_or(0, |slash| slash + 1);
                let name = [&name[..at], b".wh.", &name[at..]].concat();
                self.append(with(EntryType::Regular), &name, b"", b"", entry)
            }
            EntryKind::Opaque => {
                let name = [&name[..], b"/.wh..wh..opq"].concat();
                self.append(with(EntryType::Regular), &name, b"", b"", entry)
            }
        }
    }

    /// Adds an entry whose name and link are written as they are: `../../etc/passwd`, `/abs`, anything.
    #[must_use]
    pub fn hostile(self, kind: EntryType, name: &[u8], link: &[u8], content: &[u8]) -> Self {
        let entry = TreeEntry {
            path: name.to_vec(),
            kind: EntryKind::Directory,
            mode: 0o644,
            uid: 0,
            gid: 0,
            mtime: None,
            xattrs: std::collections::BTreeMap::default(),
        };
        self.append(raw_header(kind, &entry), name, link, content, &entry)
    }

    fn append(
        mut self,
        mut header: Header,
        name: &[u8],
        link: &[u8],
        content: &[u8],
        entry: &TreeEntry,
    ) -> Self {
        let mut pax: Vec<(String, Vec<u8>)> = Vec::new();
        let old = header.as_old_mut();
        for (field, value, key) in [(&mut old.name, name, "path"), (&mut old.linkname, link, "linkpath")] {
            let most = value.len().min(field.len());
            field[..most].copy_from_slice(&value[..most]);
            if value.len() > most {
                pax.push((key.to_owned(), value.to_vec()));
            }
        }
        if let Some((seconds, nanos)) = entry.mtime.filter(|(_, nanos)| *nanos > 0) {
            pax.push(("mtime".to_owned(), format!("{seconds}.{nanos:09}").into_bytes()));
        }
        for (key, value) in &entry.xattrs {
            pax.push((format!("SCHILY.xattr.{}", String::from_utf8_lossy(key)), value.clone()));
        }
        if !pax.is_empty() {
            let records = pax.iter().map(|(key, value)| (key.as_str(), value.as_slice()));
            self.tar.append_pax_extensions(records).expect("a Vec takes all bytes");
        }
        header.set_size(content.len() as u64);
        header.set_cksum();
        self.tar.append(&header, content).expect("a Vec takes all bytes");
        self
    }

    /// The tar.
    ///
    /// # Panics
    /// Never: a `Vec` takes all bytes.
    pub fn tar(self) -> Vec<u8> {
        self.tar.into_inner().expect("a Vec takes all bytes")
    }

    /// The layer.
    ///
    /// # Panics
    /// Never: a `Vec` takes all bytes.
    pub fn build(self) -> Layer {
        let tar = self.tar();
        let mut gzip = GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(&tar).expect("a Vec takes all bytes");
        Layer { gzip: gzip.finish().expect("a Vec takes all bytes"), tar }
    }
}

fn raw_header(kind: EntryType, entry: &TreeEntry) -> Header {
    let mut header = Header::new_ustar();
    header.set_entry_type(kind);
    header.set_mode(entry.mode);
    header.set_uid(entry.uid);
    header.set_gid(entry.gid);
    header.set_mtime(entry.mtime.map_or(0, |(seconds, _)| u64::try_from(seconds).unwrap_or(0)));
    header
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_layer_holds_what_the_text_says() {
        let long = "x".repeat(150);
        let layer = LayerBuilder::from_text(&format!(
            "/d dir 0755 0:0\n/d/{long} file 0644 1:2 \"hi\" user.a=\"b\\nc\"\n/d/old deleted\n/d opaque\n/l link 0:0 -> d"
        ))
        .build();
        let mut archive = tar::Archive::new(layer.tar.as_slice());
        let names: Vec<String> = archive
            .entries()
            .unwrap()
            .map(|entry| String::from_utf8(entry.unwrap().path_bytes().into_owned()).unwrap())
            .collect();
        assert_eq!(names, ["d/", &format!("d/{long}"), "d/.wh.old", "d/.wh..wh..opq", "l"]);
    }

    #[test]
    fn a_hostile_name_is_written_as_it_is() {
        let tar = LayerBuilder::new().hostile(EntryType::Regular, b"../../etc/passwd", b"", b"x").tar();
        assert!(tar.starts_with(b"../../etc/passwd\0"));
    }
}
