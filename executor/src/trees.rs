//! Where stages' trees are kept, on the rung that was chosen; and the trees of images that COPY reads.

use std::collections::HashMap;
use std::io::{self, BufRead};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use kiln_cache::LayerSource;
use kiln_rootfs::{
    BaseLayer, DirectorySnapshotter, HOST_IGNORED, HostSnapshotter, IgnorePaths, OverlaySnapshotter,
    RootfsError, SnapshotOptions, Snapshotter, TreePath, View, mount_points,
};
use kiln_sandbox::{Enclosure, Rung, Situation, choose, probe};

use crate::error::BuildError;
use crate::event::Event;
use crate::request::CachePlace;
use crate::session::{Session, check_user};

/// The trees of one build.
pub(crate) struct Trees {
    pub(crate) enclosure: Enclosure,
    /// What belongs to the pod and not to the image: only on rung root.
    pod: IgnorePaths,
    snapshotter: Keeper,
    /// For images that COPY reads, where the rung itself has room for one tree only.
    aside: Option<DirectorySnapshotter>,
    /// The pseudo stages of images that COPY reads, by manifest.
    images: Mutex<HashMap<String, Arc<ImageTree>>>,
}

/// An image's tree, made by the first who asks for it; others wait for the lock.
struct ImageTree {
    place: usize,
    made: Mutex<bool>,
}

/// The snapshotter of the rung.
pub(crate) enum Keeper {
    /// Trees apart from the container's own files.
    Apart(Box<dyn Snapshotter>),
    /// The container's own root.
    Host(Box<HostSnapshotter>),
}

/// A file in Kiln's directory that says the same as /etc/kiln-image: this container is of Kiln's own image.
pub const IMAGE_MARK: &str = "kiln-image";

/// Pseudo stages begin here: no Dockerfile has so many.
const IMAGES: usize = 1 << 20;

impl Trees {
    /// Chooses a rung by probing, and says which. `number` counts the platforms: each has trees of its own.
    pub(crate) fn new(session: &Session, number: usize) -> Result<Self, BuildError> {
        check_user()?;
        let isolation = &session.request.isolation;
        let report = probe(session.scratch.path());
        let situation = Situation {
            kiln_image: isolation.own_image,
            container: isolation.container,
            force: isolation.force,
        };
        let (enclosure, reason) = choose(&report, isolation.rung, situation).map_err(BuildError::other)?;
        session.tell(Event::Isolation { rung: enclosure.to_string(), reason });
        let mut ignore = IgnorePaths::new(&session.request.layers.ignored);
        let scratch = session.directory(&format!("trees-{number}"))?;
        let mut options = SnapshotOptions {
            mode: session.request.layers.mode,
            ignore: ignore.clone(),
            stable_inodes: !isolation.gvisor,
            can_mknod: can_mknod(&scratch),
            can_chown: rustix::process::geteuid().is_root(),
            ..SnapshotOptions::default()
        };
        let mut pod = IgnorePaths::default();
        let (snapshotter, aside) = match enclosure.rung() {
            Rung::Overlay => (Keeper::Apart(Box::new(OverlaySnapshotter::new(scratch, options))), None),
            Rung::Directory | Rung::Chroot => {
                (Keeper::Apart(Box::new(DirectorySnapshotter::new(scratch, options))), None)
            }
            Rung::Root => {
                let aside = DirectorySnapshotter::new(
                    session.directory(&format!("aside-{number}"))?,
                    options.clone(),
                );
                host_ignored(session, &mut pod)?;
                for path in pod.paths() {
                    ignore.add(path.clone());
                }
                remember_image(session);
                options.ignore = ignore;
                let host = HostSnapshotter::new(PathBuf::from("/"), scratch, options);
                (Keeper::Host(Box::new(host)), Some(aside))
            }
        };
        Ok(Self { enclosure, pod, snapshotter, aside, images: Mutex::default() })
    }

    /// Keeps the trees; stages call it side by side.
    pub(crate) fn snapshotter(&self) -> &dyn Snapshotter {
        match &self.snapshotter {
            Keeper::Apart(snapshotter) => snapshotter.as_ref(),
            Keeper::Host(host) => host.as_ref(),
        }
    }

    /// Whether what a step changed stays as it is while later steps run, so that its layer can be written meanwhile.
    pub(crate) fn changes_stay(&self) -> bool {
        self.enclosure.rung() == Rung::Overlay
    }

    /// Does something that only rung root can do; on the other rungs, nothing.
    pub(crate) fn on_host(
        &self,
        act: impl FnOnce(&HostSnapshotter) -> Result<(), RootfsError>,
    ) -> Result<(), BuildError> {
        match &self.snapshotter {
            Keeper::Host(host) => act(host).map_err(BuildError::other),
            Keeper::Apart(_) => Ok(()),
        }
    }

    /// Whether what lies at `path` belongs to the pod: steps see the pod's files there, and nothing of the image's.
    pub(crate) fn is_pods(&self, path: &TreePath) -> bool {
        self.pod.is_ignored(path)
    }

    /// The tree of the stage at `place` without what belongs to the pod, for copying out of it.
    pub(crate) fn view_of_stage(&self, place: usize) -> Result<Arc<dyn View>, BuildError> {
        match &self.snapshotter {
            Keeper::Apart(snapshotter) => snapshotter.view(place),
            Keeper::Host(host) => host.view_without(place, &self.pod),
        }
        .map_err(BuildError::other)
    }

    /// Whether stages can be built side by side.
    pub(crate) fn parallel(&self) -> bool {
        self.enclosure.rung() != Rung::Root
    }

    /// A layer for the snapshotter. A plain tree can't be undone, so it gets bytes that were verified; and it gets the blob
    /// even if the layer lies unpacked in the volume: contents are hashed while they are extracted, and a copy would have
    /// to be read once more for that (29 s of CPU against 17 for 1.3 GB on rung root).
    pub(crate) fn base_layer(&self, layer: &LayerSource) -> BaseLayer {
        let stacks = self.enclosure.rung() == Rung::Overlay;
        if !stacks && layer.is_here() {
            return blob_layer(layer, false);
        }
        base_layer(layer, stacks)
    }

    /// The tree of an image that COPY or a mount reads.
    pub(crate) fn image(&self, name: &str, layers: &[LayerSource]) -> Result<Arc<dyn View>, BuildError> {
        let tree = {
            let mut images = self.images.lock().unwrap_or_else(PoisonError::into_inner);
            let place = IMAGES + images.len();
            let new = || Arc::new(ImageTree { place, made: Mutex::new(false) });
            Arc::clone(images.entry(name.to_owned()).or_insert_with(new))
        };
        let snapshotter: &dyn Snapshotter = match &self.aside {
            Some(aside) => aside,
            None => self.snapshotter(),
        };
        let mut made = tree.made.lock().unwrap_or_else(PoisonError::into_inner);
        if !*made {
            let layers: Vec<BaseLayer> = layers.iter().map(|layer| self.base_layer(layer)).collect();
            snapshotter.base(tree.place, &layers).map_err(BuildError::other)?;
            *made = true;
        }
        snapshotter.view(tree.place).map_err(BuildError::other)
    }
}

/// A layer of an image. With `streamed`, its bytes come while they are downloaded and are only known to be sound at their
/// end: for those who throw away what they made of them if that fails, and ask again.
pub(crate) fn base_layer(layer: &LayerSource, streamed: bool) -> BaseLayer {
    if let Some(path) = layer.unpacked() {
        return BaseLayer::Unpacked { diff_id: *layer.diff_id(), path };
    }
    blob_layer(layer, streamed)
}

/// As a streamed [`base_layer`], whose bytes are only kept if that `is_wanted`: see [`LayerSource::pass`].
pub(crate) fn passing_layer(
    layer: &LayerSource,
    unlikely: bool,
    is_wanted: impl Fn() -> bool + Send + Sync + 'static,
) -> BaseLayer {
    if let Some(path) = layer.unpacked() {
        return BaseLayer::Unpacked { diff_id: *layer.diff_id(), path };
    }
    blob(layer, move |source| source.pass(unlikely, &is_wanted))
}

fn blob_layer(layer: &LayerSource, streamed: bool) -> BaseLayer {
    if streamed {
        return blob(layer, LayerSource::stream);
    }
    blob(layer, |source| source.open_layer().map_err(io::Error::other))
}

fn blob(
    layer: &LayerSource,
    open: impl Fn(&LayerSource) -> io::Result<Box<dyn BufRead + Send>> + Send + Sync + 'static,
) -> BaseLayer {
    let source = layer.clone();
    let open = Arc::new(move || open(&source));
    BaseLayer::Blob { diff_id: *layer.diff_id(), open, compression: layer.compression() }
}

/// Whether device nodes can be made here, found out by making one.
fn can_mknod(scratch: &Path) -> bool {
    let path = scratch.join("device-probe");
    let made = rustix::fs::mknodat(
        rustix::fs::CWD,
        &path,
        rustix::fs::FileType::CharacterDevice,
        rustix::fs::Mode::RUSR,
        rustix::fs::makedev(1, 3),
    );
    drop(std::fs::remove_file(&path));
    made.is_ok()
}

/// Emptying the tree removes the mark of Kiln's own image. A further build in the same container has to know it still.
fn remember_image(session: &Session) {
    let isolation = &session.request.isolation;
    if !isolation.own_image {
        return;
    }
    let path = isolation.kaniko_dir.join(IMAGE_MARK);
    if let Err(error) = std::fs::write(&path, "") {
        let text =
            format!("could not write {}: {error}; further builds here will want --force", path.display());
        session.tell(Event::Warning(text));
    }
}

/// What belongs to the pod on rung root: mounts, Kiln's own directories.
fn host_ignored(session: &Session, ignore: &mut IgnorePaths) -> Result<(), BuildError> {
    for path in HOST_IGNORED {
        ignore.add(TreePath::new(path));
    }
    let path = Path::new("/proc/self/mountinfo");
    let text = std::fs::read(path)
        .map_err(|error| BuildError::other(format!("could not read {}: {error}", path.display())))?;
    for point in mount_points(&text) {
        ignore.add(TreePath::new(point));
    }
    let isolation = &session.request.isolation;
    let own = isolation.own.iter().map(PathBuf::as_path);
    let own = own.chain([isolation.scratch.as_path(), session.scratch.path()]);
    // The contexts, the volume and what is written in the end must outlive the base image that comes in their place.
    let contexts =
        std::iter::once(&session.context).chain(session.named.values()).map(|context| context.root.as_path());
    let (cache, output) = (&session.request.cache, &session.request.output);
    let kept = [&cache.volume, &output.layout, &output.archive].into_iter().flatten().map(PathBuf::as_path);
    let kept = kept.chain([cache.mounts.as_path()]).chain(match &cache.place {
        Some(CachePlace::Layout(path)) => Some(path.as_path()),
        _ => None,
    });
    for path in own.chain(contexts).chain(kept).filter(|path| *path != Path::new("/")) {
        let real = std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
        for path in [path, real.as_path()] {
            ignore.add(TreePath::new(path.as_os_str().as_encoded_bytes()));
        }
    }
    Ok(())
}
