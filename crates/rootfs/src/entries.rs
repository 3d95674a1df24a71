//! Looking through a layer without unpacking it: every entry as it comes, for whoever wants to know what an image holds.

use std::io::{self, BufRead, Read};

use crate::tar_read::{EntryKind, TarReader, pass_over};
use crate::{Kind, RootfsError, TreePath, Whole};

/// Holes of longer files are left out: a small archive could hold any number of zeros.
const MOST_WHOLE: u64 = 256 << 20;

/// What an entry of a layer does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LayerWhat {
    /// A regular file of so many bytes, holes included. Its contents can be read.
    File(u64),
    /// Another name of what lies at this path.
    HardLink(TreePath),
    /// A directory.
    Directory,
    /// A symbolic link, a device, a pipe.
    Other,
    /// What lower layers have at the path is gone.
    Whiteout,
    /// What lower layers have below the path is gone.
    Opaque,
}

/// One entry of a layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LayerEntry {
    /// Where.
    pub path: TreePath,
    /// What.
    pub what: LayerWhat,
    /// The permission bits.
    pub mode: u32,
}

/// Shows `visit` every entry of the layer `layer`, which is a tar archive that is not compressed, and the contents of
/// files. The contents need not be read. Those of a sparse file longer than 256 MB come without its holes.
///
/// Fails with [`RootfsError::Archive`] if it is damaged, and with [`RootfsError::Escape`] if a path, or what a whiteout
/// names, leads out of the tree.
pub fn entries(
    layer: impl BufRead,
    visit: &mut dyn FnMut(&LayerEntry, &mut dyn Read) -> io::Result<()>,
) -> Result<(), RootfsError> {
    let mut tar = TarReader::new(layer);
    while let Some(entry) = tar.next()? {
        let Some(path) = TreePath::strict(&entry.path) else {
            let path = String::from_utf8_lossy(&entry.path).into_owned();
            return Err(RootfsError::Escape { path, why: "leads out of the tree by .." });
        };
        let (path, what) = match (path.name().strip_prefix(b".wh."), entry.kind) {
            (Some(b"" | b"." | b".."), _) => {
                return Err(RootfsError::Escape { path: path.to_string(), why: "is a whiteout of no file" });
            }
            (Some(b".wh..opq"), _) => (path.parent().unwrap_or_default(), LayerWhat::Opaque),
            (Some(name), _) => (path.parent().unwrap_or_default().join(name), LayerWhat::Whiteout),
            (None, EntryKind::HardLink) => (path, LayerWhat::HardLink(TreePath::new(&entry.link))),
            (None, EntryKind::New(Kind::File)) => (path, LayerWhat::File(entry.size)),
            (None, EntryKind::New(Kind::Directory)) => (path, LayerWhat::Directory),
            (None, EntryKind::New(_)) => (path, LayerWhat::Other),
        };
        let told = LayerEntry { path, what, mode: entry.mode };
        let shown = if entry.size <= MOST_WHOLE {
            visit(&told, &mut Whole::new(&entry, &mut tar))
        } else {
            visit(&told, &mut tar)
        };
        shown.map_err(|error| RootfsError::Archive(error.to_string()))?;
    }
    pass_over(&mut tar.into_inner(), u64::MAX).map_err(|error| RootfsError::Archive(error.to_string()))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sparse_files_are_shown_with_their_holes() {
        let dir = tempfile::tempdir().unwrap();
        let file = std::fs::File::create(dir.path().join("f")).unwrap();
        std::os::unix::fs::FileExt::write_all_at(&file, b"end", 1 << 20).unwrap();
        let mut tar = std::process::Command::new("tar");
        let tar = tar.args(["--format=gnu", "-cSf", "-", "-C"]).arg(dir.path()).arg("f").output().unwrap();
        assert!(tar.stdout.len() < 1 << 20, "it is stored sparsely");
        let mut seen = Vec::new();
        entries(tar.stdout.as_slice(), &mut |entry, content| {
            assert_eq!(entry.what, LayerWhat::File((1 << 20) + 3));
            content.read_to_end(&mut seen).map(|_| ())
        })
        .unwrap();
        assert_eq!(seen, std::fs::read(dir.path().join("f")).unwrap());
    }

    #[test]
    fn every_kind_of_entry_is_told_and_contents_can_be_read_or_left() {
        let mut tar = tar::Builder::new(Vec::new());
        let mut add = |kind: tar::EntryType, name: &str, link: &str, data: &[u8]| {
            let mut header = tar::Header::new_gnu();
            header.set_entry_type(kind);
            header.set_size(data.len() as u64);
            header.set_mode(0o755);
            if !link.is_empty() {
                header.set_link_name(link).unwrap();
            }
            tar.append_data(&mut header, name, data).unwrap();
        };
        add(tar::EntryType::Directory, "a/", "", b"");
        add(tar::EntryType::Regular, "a/f", "", b"content");
        add(tar::EntryType::Regular, "a/unread", "", &[7; 5000]);
        add(tar::EntryType::Link, "a/g", "a/f", b"");
        add(tar::EntryType::Symlink, "a/l", "f", b"");
        add(tar::EntryType::Regular, "a/.wh.old", "", b"");
        add(tar::EntryType::Regular, "b/.wh..wh..opq", "", b"");
        let layer = tar.into_inner().unwrap();
        let mut told = Vec::new();
        entries(layer.as_slice(), &mut |entry, content| {
            let mut text = String::new();
            if entry.path.to_string().ends_with("/f") {
                content.read_to_string(&mut text)?;
            }
            told.push(format!("{} {:?} {text}", entry.path, entry.what));
            Ok(())
        })
        .unwrap();
        let told: Vec<&str> = told.iter().map(|line| line.trim().trim_start_matches('/')).collect();
        assert_eq!(told[0], "a Directory");
        assert_eq!(told[1], "a/f File(7) content");
        assert_eq!(told[2], "a/unread File(5000)");
        assert!(told[3].starts_with("a/g HardLink("), "{told:?}");
        assert_eq!(told[4], "a/l Other");
        assert_eq!(told[5], "a/old Whiteout");
        assert_eq!(told[6], "b Opaque");
    }
}
