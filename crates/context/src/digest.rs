//! What files hold, as one digest for cache keys: path, type, mode, owner, link target, attributes and content; no times.

use std::io::Read;

use kiln_oci::Hasher;
use kiln_rootfs::{Kind, View};

use crate::{ContextError, Item, walk};

/// The digest over all items. Equal trees give equal digests, wherever they lie.
pub fn digest(view: &dyn View, items: &[Item]) -> Result<[u8; 32], ContextError> {
    let mut whole = Hasher::sha256();
    let mut buffer = vec![0; 128 << 10];
    for item in items {
        frame(&mut whole, b"item");
        // A directory's own name never gets into the copy.
        frame(&mut whole, if item.meta.is_dir() { b"" } else { &item.name });
        walk(view, item, &mut |visit| {
            let meta = visit.meta;
            frame(&mut whole, visit.path.as_bytes());
            let mode = if meta.kind == Kind::Symlink { 0 } else { meta.mode };
            frame(&mut whole, format!("{:?} {mode:o} {} {}", meta.kind, meta.uid, meta.gid).as_bytes());
            frame(&mut whole, format!("{:?}", meta.rdev).as_bytes());
            frame(&mut whole, meta.link.as_deref().unwrap_or_default());
            for (key, value) in view.xattrs(visit.source)? {
                frame(&mut whole, &key);
                frame(&mut whole, &value);
            }
            if meta.kind == Kind::File {
                let mut hasher = Hasher::sha256();
                let mut file = view.open(visit.source)?;
                loop {
                    let length = file.read(&mut buffer).map_err(|source| ContextError::Io {
                        action: "read",
                        path: visit.source.to_string(),
                        source,
                    })?;
                    if length == 0 {
                        break;
                    }
                    hasher.update(&buffer[..length]);
                }
                frame(&mut whole, hasher.finish().as_bytes());
            }
            Ok(())
        })?;
    }
    let mut bytes = [0; 32];
    bytes.copy_from_slice(whole.finish().as_bytes());
    Ok(bytes)
}

fn frame(hasher: &mut Hasher, bytes: &[u8]) {
    hasher.update(&(bytes.len() as u64).to_be_bytes());
    hasher.update(bytes);
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::{Selector, select};
    use kiln_rootfs::DirectoryView;

    fn of(change: impl Fn(&std::path::Path)) -> [u8; 32] {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("d")).unwrap();
        fs::write(dir.path().join("d/f"), "x").unwrap();
        fs::set_permissions(dir.path().join("d/f"), fs::Permissions::from_mode(0o644)).unwrap();
        change(dir.path());
        let view = DirectoryView::open(dir.path()).unwrap();
        let selector = Selector { words: vec!["d".into()], ..Selector::default() };
        digest(&view, &select(&view, &selector).unwrap()).unwrap()
    }

    #[test]
    fn what_a_copy_would_show_changes_the_digest_and_times_do_not() {
        let before = of(|_| {});
        assert_eq!(
            before,
            of(|dir| drop(fs::File::open(dir.join("d/f")).unwrap().set_modified(std::time::UNIX_EPOCH)))
        );
        assert_eq!(before, of(|dir| fs::write(dir.join("other"), "").unwrap()));
        assert_ne!(before, of(|dir| fs::write(dir.join("d/f"), "y").unwrap()));
        assert_ne!(before, of(|dir| fs::rename(dir.join("d/f"), dir.join("d/g")).unwrap()));
        assert_ne!(before, of(|dir| fs::write(dir.join("d/empty"), "").unwrap()));
        assert_ne!(
            before,
            of(|dir| fs::set_permissions(dir.join("d/f"), fs::Permissions::from_mode(0o755)).unwrap())
        );
    }
}
