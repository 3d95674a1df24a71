//! What files hold, as one digest for cache keys: path, type, mode, owner, link target, attributes and content; no times.

use std::collections::HashMap;
use std::io::Read;

use kiln_oci::Hasher;
use kiln_rootfs::{Kind, TreePath, View};

use crate::{ContextError, Item, Parts, Visit, walk};

/// The digest over all items. Equal trees give equal digests, wherever they lie.
pub fn digest(view: &dyn View, items: &[Item]) -> Result<[u8; 32], ContextError> {
    digest_parts(view, items, &mut Parts::new(1))
}

/// As [`digest`]; `parts` learns what each file holds.
pub fn digest_parts(view: &dyn View, items: &[Item], parts: &mut Parts) -> Result<[u8; 32], ContextError> {
    let mut whole = Hasher::sha256();
    let mut buffer = vec![0; 128 << 10];
    for item in items {
        let mut links: HashMap<(u64, u64), TreePath> = HashMap::new();
        frame(&mut whole, b"item");
        // A directory's own name never gets into the copy.
        frame(&mut whole, if item.meta.is_dir() { b"" } else { &item.name });
        walk(view, item, &mut |visit| {
            frame(&mut whole, visit.path.as_bytes());
            let meta = visit.meta;
            let linked = meta.kind == Kind::File && meta.nlink > 1;
            let entry = match links.get(&meta.inode).filter(|_| linked) {
                Some(first) => another_name(first),
                None => entry(view, visit, &mut buffer)?,
            };
            if linked {
                links.entry(meta.inode).or_insert_with(|| visit.path.clone());
            }
            frame(&mut whole, &entry);
            // A directory is changed where something in it is.
            if !meta.is_dir() {
                parts.add(&visit.source.to_string(), &entry);
            }
            Ok(())
        })?;
    }
    Ok(bytes_of(whole))
}

/// A further name of a file that was met before: the copy is a hard link too.
fn another_name(first: &TreePath) -> [u8; 32] {
    let mut hasher = Hasher::sha256();
    frame(&mut hasher, b"link");
    frame(&mut hasher, first.as_bytes());
    bytes_of(hasher)
}

fn entry(view: &dyn View, visit: &Visit<'_>, buffer: &mut [u8]) -> Result<[u8; 32], ContextError> {
    let meta = visit.meta;
    let mut hasher = Hasher::sha256();
    let mode = if meta.kind == Kind::Symlink { 0 } else { meta.mode };
    frame(&mut hasher, format!("{:?} {mode:o} {} {}", meta.kind, meta.uid, meta.gid).as_bytes());
    frame(&mut hasher, format!("{:?}", meta.rdev).as_bytes());
    frame(&mut hasher, meta.link.as_deref().unwrap_or_default());
    for (key, value) in view.xattrs(visit.source)? {
        frame(&mut hasher, &key);
        frame(&mut hasher, &value);
    }
    if meta.kind == Kind::File {
        // Last, so that it needs no length before it.
        let mut file = view.open(visit.source)?;
        loop {
            let length = file.read(buffer).map_err(|source| ContextError::Io {
                action: "read",
                path: visit.source.to_string(),
                source,
            })?;
            if length == 0 {
                break;
            }
            hasher.update(&buffer[..length]);
        }
    }
    Ok(bytes_of(hasher))
}

fn bytes_of(hasher: Hasher) -> [u8; 32] {
    let mut bytes = [0; 32];
    bytes.copy_from_slice(hasher.finish().as_bytes());
    bytes
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

    #[test]
    fn names_of_one_file_are_told_from_equal_files() {
        let two = |dir: &std::path::Path| fs::copy(dir.join("d/f"), dir.join("d/g")).map(|_| ()).unwrap();
        let linked = |dir: &std::path::Path| fs::hard_link(dir.join("d/f"), dir.join("d/g")).unwrap();
        let elsewhere = |dir: &std::path::Path| fs::hard_link(dir.join("d/f"), dir.join("outside")).unwrap();
        assert_ne!(of(two), of(linked));
        assert_eq!(of(|_| {}), of(elsewhere), "only names in the copy count");
    }
}
