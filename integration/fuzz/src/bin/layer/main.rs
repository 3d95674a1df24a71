//! Bytes as a layer, an archive that is not compressed: listed, looked through, and written into trees that have a file
//! beside them which nothing may touch. The last byte says how.
//!
//! What is mutated is made an archive again, so that what lies behind a header's checksum is reached.

#![no_main]

mod repair;

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::sync::Arc;

use kiln_oci::DiffId;
use kiln_rootfs::{
    BaseLayer, Compression, ExtractOptions, IgnorePaths, Interest, Meta, Record, Root, RootfsError,
    TarReader, TreePath, Whiteouts,
};

/// Where trees are made: the same place each time, so that links of archives can lead to it. One process at a time.
const OUTSIDE: &str = "/dev/shm/kiln-fuzz-layer";

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let Some((how, layer)) = bytes.split_last() else { return };
    let part = 1 + usize::from(how & 0x7f);
    let listed = list(layer, false);
    assert_eq!(list(BufReader::with_capacity(part, layer), false), listed);
    assert_eq!(list(layer, true), listed);
    look_through(layer, &listed);

    let outside = Path::new(OUTSIDE);
    let _ = fs::remove_dir_all(outside);
    fs::create_dir(outside).expect("there is a directory for trees");
    let canary = outside.join("canary");
    fs::write(&canary, "untouched").expect("a file is written");
    let before = state(&canary);
    let all = how & 0x80 == 0;
    within(&outside.join("tree"), |tree| write(layer, part, tree, Whiteouts::Apply, &listed));
    assert_eq!(state(&canary), before);
    within(&outside.join("skeleton"), |tree| skeleton(blob(layer), tree, all));
    assert_eq!(state(&canary), before);
    within(&outside.join("overlay"), |overlay| {
        write(layer, part, overlay, Whiteouts::ToOverlay, &listed);
        let unpacked = BaseLayer::Unpacked { diff_id: DiffId([0; 32]), path: overlay.to_owned() };
        within(&outside.join("skeleton"), |tree| skeleton(Some(unpacked), tree, all));
    });
    assert_eq!(state(&canary), before);
    assert_eq!(fs::read(&canary).expect("it is still there"), b"untouched");
    assert_eq!(fs::read_dir(outside).expect("it is still there").count(), 1, "something was made outside");
});

libfuzzer_sys::fuzz_mutator!(|data: &mut [u8], size: usize, most: usize, seed: u32| {
    let size = libfuzzer_sys::fuzzer_mutate(data, size, most);
    if !seed.is_multiple_of(16) {
        repair::archive(&mut data[..size], seed & 16 == 0);
    }
    size
});

/// The entries of an archive, and whether it was read to its end.
#[derive(Debug, PartialEq, Eq)]
struct Listed {
    entries: Vec<String>,
    /// No name leads out of the tree, nor is the whiteout of one that does.
    inside: bool,
    whole: bool,
}

fn list(layer: impl BufRead, contents: bool) -> Listed {
    let mut tar = TarReader::new(layer);
    let mut listed = Listed { entries: Vec::new(), inside: true, whole: false };
    loop {
        match tar.next() {
            Ok(Some(entry)) => {
                let path = TreePath::strict(&entry.path);
                listed.inside &=
                    path.is_some_and(|path| !matches!(path.name(), b".wh." | b".wh.." | b".wh..."));
                listed.entries.push(format!("{entry:?}"));
            }
            Ok(None) => {
                listed.whole = true;
                return listed;
            }
            Err(_) => return listed,
        }
        if contents && std::io::copy(&mut tar, &mut std::io::sink()).is_err() {
            return listed;
        }
    }
}

fn look_through(layer: &[u8], listed: &Listed) {
    let mut count = 0;
    let result = kiln_rootfs::entries(layer, &mut |entry, content| {
        count += 1;
        assert!(TreePath::strict(entry.path.as_bytes()).is_some());
        content.take(100).read_to_end(&mut Vec::new()).map(|_| ())
    });
    assert_eq!(result.is_ok(), listed.whole && listed.inside);
    assert!(count <= listed.entries.len() && (result.is_err() || count == listed.entries.len()));
}

fn write(layer: &[u8], part: usize, tree: &Path, whiteouts: Whiteouts, listed: &Listed) {
    let mut names = Names(0);
    let root = Root::open(tree).expect("the tree is there");
    let is_root = fs::metadata("/proc/self").is_ok_and(|meta| meta.uid() == 0);
    let mut options = ExtractOptions {
        whiteouts,
        ignore: IgnorePaths::new(["proc", "var/run"]),
        can_mknod: is_root && part.is_multiple_of(2),
        can_chown: is_root,
        record: Some(&mut names),
    };
    let mut reader = BufReader::with_capacity(part, layer);
    let result = kiln_rootfs::extract(&mut reader, &root, &mut options);
    if let Ok(done) = result {
        assert!(listed.whole && listed.inside);
        assert!(reader.fill_buf().expect("memory can be read").is_empty());
        assert!(names.0 <= done.entries && done.entries <= listed.entries.len() as u64);
    }
}

struct Names(u64);

impl Record for Names {
    fn wrote(&mut self, path: &TreePath, _: &Meta, _: Option<[u8; 32]>) -> std::io::Result<()> {
        assert!(TreePath::strict(path.as_bytes()).is_some());
        self.0 += 1;
        Ok(())
    }
}

/// The layer as a registry gives it. What is compressed belongs to another target.
fn blob(layer: &[u8]) -> Option<BaseLayer> {
    let is_compressed = layer.starts_with(&[0x1f, 0x8b]) || layer.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]);
    let bytes: Arc<[u8]> = layer.into();
    let open = move || -> std::io::Result<Box<dyn BufRead + Send>> {
        Ok(Box::new(std::io::Cursor::new(Arc::clone(&bytes))))
    };
    let compression = Compression::None;
    (!is_compressed).then(|| BaseLayer::Blob { diff_id: DiffId([0; 32]), open: Arc::new(open), compression })
}

fn skeleton(layer: Option<BaseLayer>, into: &Path, all: bool) {
    let Some(layer) = layer else { return };
    let mut interest = Interest::default();
    interest.path(&"etc/passwd".into());
    interest.all(&if all { TreePath::root() } else { "a".into() });
    // Twice, as one image's two layers.
    let _ = kiln_rootfs::skeleton(&[layer.clone(), layer], &interest, into);
}

/// All of what tells that a file was touched.
fn state(file: &Path) -> impl PartialEq + std::fmt::Debug + use<> {
    let meta = fs::symlink_metadata(file).expect("the file outside is still there");
    (
        (meta.ino(), meta.mode(), meta.uid(), meta.gid()),
        (meta.nlink(), meta.size(), meta.mtime(), meta.ctime_nsec()),
    )
}

/// Makes a directory for a tree, and removes it, and what was written into it, the way a layer's opaque mark does. What
/// can't be removed would stop a build between two stages.
fn within(tree: &Path, write: impl FnOnce(&Path)) {
    fs::create_dir(tree).expect("a directory is made");
    write(tree);
    fs::set_permissions(tree, fs::Permissions::from_mode(0o755)).expect("the tree is ours");
    let mut mark = vec![0; 512];
    mark[..12].copy_from_slice(b".wh..wh..opq");
    repair::archive(&mut mark, true);
    let mut options = ExtractOptions {
        whiteouts: Whiteouts::Apply,
        ignore: IgnorePaths::default(),
        can_mknod: false,
        can_chown: false,
        record: None,
    };
    let emptied = Root::open(tree)
        .and_then(|root| kiln_rootfs::extract(mark.as_slice(), &root, &mut options))
        .map(|done| done.entries)
        .map_err(|error: RootfsError| error.to_string());
    assert_eq!(emptied, Ok(0));
    fs::remove_dir(tree).expect("nothing is left in it");
}
