//! A snapshotter at work in a directory of its own, with what a test wants to do to it.

use std::fs;
use std::io::{self, BufRead, Cursor};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use kiln_rootfs::{
    BaseLayer, ChangeSource, Compression, Delta, DirectorySnapshotter, DirectoryView, EmptyView,
    ExtractOptions, HostSnapshotter, IgnorePaths, LayerBlob, LayerOptions, OverlaySnapshotter, Root,
    SnapshotMode, SnapshotOptions, Snapshotter, Tree, Whiteouts, decompress, extract, write_layer,
};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

use crate::model::LIMIT;

/// The ways of keeping a tree that the suite runs on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rung {
    Overlay,
    Directory,
    /// A directory under a kernel that numbers inodes anew with each mount.
    Renumbered,
    Host,
}

/// All rungs; without the overlay one where nothing can be mounted, as in a container with few rights.
pub(crate) fn rungs() -> Vec<Rung> {
    static RUNGS: OnceLock<Vec<Rung>> = OnceLock::new();
    let found = RUNGS.get_or_init(|| {
        let mut rungs = vec![Rung::Directory, Rung::Renumbered, Rung::Host];
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        for name in ["lower", "upper", "work"] {
            fs::create_dir(at(name)).unwrap();
        }
        if Mounted::new(&at("mnt"), &[at("lower")], &at("upper"), &at("work")).is_ok() {
            rungs.insert(0, Rung::Overlay);
        }
        rungs
    });
    found.clone()
}

pub(crate) struct Bench {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) snapshotter: Box<dyn Snapshotter>,
}

/// A layer as it would be pushed.
#[derive(Clone)]
pub(crate) struct Layer {
    pub(crate) bytes: Arc<Vec<u8>>,
    pub(crate) blob: LayerBlob,
}

impl Layer {
    pub(crate) fn write(changes: &mut dyn ChangeSource) -> Self {
        let options = LayerOptions { mtime_limit: Some(LIMIT), level: Some(1), ..LayerOptions::default() };
        let mut bytes = Vec::new();
        let blob = write_layer(changes, &options, &mut bytes).unwrap();
        Self { bytes: Arc::new(bytes), blob }
    }

    /// The whole of a directory.
    pub(crate) fn of(dir: &Path) -> Self {
        Self::write(&mut *Delta::new(dir.to_owned()).changes(Arc::new(EmptyView)).unwrap())
    }

    pub(crate) fn base(&self) -> BaseLayer {
        let bytes = Arc::clone(&self.bytes);
        BaseLayer::Blob {
            diff_id: self.blob.diff_id,
            open: Arc::new(move || Ok(Box::new(Cursor::new(bytes.to_vec())) as Box<dyn BufRead + Send>)),
            compression: Compression::Gzip,
        }
    }

    /// Extracts the layer over `dir`.
    pub(crate) fn extract(&self, dir: &Path, whiteouts: Whiteouts) {
        let tar = decompress(Cursor::new(self.bytes.to_vec()), Compression::Gzip);
        let mut options = ExtractOptions {
            whiteouts,
            ignore: IgnorePaths::default(),
            can_mknod: true,
            can_chown: true,
            record: None,
        };
        extract(tar, &Root::open(dir).unwrap(), &mut options).unwrap();
    }

    /// The names in the archive, in its order.
    pub(crate) fn names(&self) -> Vec<String> {
        let mut archive = tar::Archive::new(flate2::read::MultiGzDecoder::new(&self.bytes[..]));
        let names = archive.entries().unwrap().map(|entry| {
            String::from_utf8_lossy(&entry.unwrap().path_bytes()).trim_end_matches('/').to_owned()
        });
        names.collect()
    }
}

pub(crate) fn options() -> SnapshotOptions {
    SnapshotOptions { can_mknod: true, ..SnapshotOptions::default() }
}

impl Bench {
    pub(crate) fn new(rung: Rung) -> Self {
        Self::with(rung, options())
    }

    pub(crate) fn with_mode(rung: Rung, mode: SnapshotMode) -> Self {
        Self::with(rung, SnapshotOptions { mode, ..options() })
    }

    pub(crate) fn with(rung: Rung, mut options: SnapshotOptions) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let scratch = dir.path().join("scratch");
        fs::create_dir(&scratch).unwrap();
        let snapshotter: Box<dyn Snapshotter> = match rung {
            Rung::Overlay => Box::new(OverlaySnapshotter::new(scratch, options)),
            Rung::Directory => Box::new(DirectorySnapshotter::new(scratch, options)),
            Rung::Renumbered => {
                options.stable_inodes = false;
                Box::new(DirectorySnapshotter::new(scratch, options))
            }
            Rung::Host => {
                let root = dir.path().join("root");
                fs::create_dir_all(root.join("proc/1")).unwrap();
                fs::write(root.join("proc/1/status"), "running").unwrap();
                fs::create_dir_all(root.join("etc")).unwrap();
                fs::write(root.join("left over"), "from Kiln's own image").unwrap();
                options.ignore.add("proc".into());
                Box::new(HostSnapshotter::new(root, scratch, options))
            }
        };
        Self { dir, snapshotter }
    }

    pub(crate) fn base(&mut self, stage: usize, layers: &[Layer]) {
        let layers: Vec<BaseLayer> = layers.iter().map(Layer::base).collect();
        self.snapshotter.base(stage, &layers).unwrap();
    }

    /// Opens a step of `stage` and lets `work` write to its tree.
    pub(crate) fn write(&mut self, stage: usize, work: impl FnOnce(&Path)) {
        let host = self.dir.path().join("root");
        match self.snapshotter.begin(stage).unwrap() {
            Tree::Overlay { lowers, upper, work: aside } => {
                let mounted = Mounted::new(&self.dir.path().join("mnt"), &lowers, &upper, &aside).unwrap();
                work(&mounted.0);
            }
            Tree::Directory { path } => work(&path),
            Tree::Host => work(&host),
        }
    }

    /// Runs a step: `work` writes, and what it changed becomes a layer.
    pub(crate) fn run(&mut self, stage: usize, work: impl FnOnce(&Path)) -> Layer {
        self.write(stage, work);
        self.finish(stage)
    }

    /// Closes the open step.
    pub(crate) fn finish(&mut self, stage: usize) -> Layer {
        let layer = Layer::write(&mut *self.snapshotter.changes(stage).unwrap());
        self.snapshotter.commit(stage).unwrap();
        layer
    }

    /// A directory for a test's own use.
    pub(crate) fn fresh(&self, name: &str) -> PathBuf {
        let path = self.dir.path().join(name);
        fs::create_dir(&path).unwrap();
        path
    }
}

/// An overlay that is mounted as long as the value lives.
struct Mounted(PathBuf);

impl Mounted {
    fn new(at: &Path, lowers: &[PathBuf], upper: &Path, work: &Path) -> io::Result<Self> {
        fs::create_dir_all(at).unwrap();
        let lowers: Vec<&str> = lowers.iter().map(|path| path.to_str().unwrap()).collect();
        let data = format!(
            "userxattr,lowerdir={},upperdir={},workdir={}",
            lowers.join(":"),
            upper.display(),
            work.display()
        );
        let data = std::ffi::CString::new(data).unwrap();
        mount("overlay", at, "overlay", MountFlags::empty(), data.as_c_str())?;
        Ok(Self(at.to_owned()))
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        unmount(&self.0, UnmountFlags::empty()).unwrap();
    }
}

pub(crate) fn view_of(dir: &Path) -> DirectoryView {
    DirectoryView::open(dir).unwrap()
}
