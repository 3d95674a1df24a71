use std::io::BufRead;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use kiln_cache::{
    ImageError, ImageEvent, ImageName, ImageOptions, Images, LayerSource, Origin, ResolvedImage,
};
use kiln_oci::{Digest, Platform, Reference};
use kiln_registry::{Ranges, Registry, RegistryOptions};
use kiln_store::{ArchiveWriter, Blobs, Durability, OciLayoutWriter, ReadOnly, ReadWrite, Store};
use kiln_testkit::Fault;

use crate::remote::{Remote, TestImage, amd64, arm64, client, image, noise, options};

struct World {
    dir: tempfile::TempDir,
    remote: Remote,
    events: Arc<Mutex<Vec<ImageEvent>>>,
}

struct Bytes<'a>(&'a TestImage);

impl Blobs for Bytes<'_> {
    fn open(&self, descriptor: &kiln_oci::Descriptor) -> std::io::Result<Box<dyn BufRead + Send>> {
        let layer = self.0.layers.iter().find(|layer| Digest::of(layer) == descriptor.digest);
        Ok(Box::new(std::io::Cursor::new(layer.unwrap().clone())))
    }
}

impl World {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("volume")).unwrap();
        Self { dir, remote: Remote::start(), events: Arc::default() }
    }

    fn volume(&self) -> Store<ReadWrite> {
        Store::create(&self.dir.path().join("volume"), Durability::Scratch).unwrap()
    }

    /// Everything that is looked up from here on starts with an empty scratch directory.
    fn images(&self, online: bool) -> Images {
        self.images_by(online.then(client))
    }

    fn images_by(&self, registry: Option<Registry>) -> Images {
        let events = Arc::clone(&self.events);
        let scratch = self.dir.path().join("scratch");
        std::fs::remove_dir_all(&scratch).ok();
        let options = ImageOptions {
            volume: Some(Store::<ReadOnly>::open(&self.dir.path().join("volume")).unwrap()),
            scratch: Store::create(&scratch, Durability::Scratch).unwrap(),
            registry,
            observer: Arc::new(move |event| events.lock().unwrap().push(event)),
        };
        Images::new(options, tokio::runtime::Handle::current())
    }

    fn warm(&self, image: &TestImage, reference: &Reference) {
        let volume = self.volume();
        for layer in &image.layers {
            volume.put(layer).unwrap();
        }
        volume.put(image.config.raw()).unwrap();
        volume.put(image.manifest.raw()).unwrap();
        let descriptor =
            kiln_oci::Descriptor::new("", image.manifest.digest().clone(), image.manifest.size());
        let platform = image.config.value().platform().unwrap();
        volume.publish(reference, &platform, descriptor, SystemTime::UNIX_EPOCH).unwrap();
    }

    fn warnings(&self) -> Vec<ImageEvent> {
        self.events.lock().unwrap().iter().filter(|event| event.is_warning()).cloned().collect()
    }

    fn received(&self) -> usize {
        let events = self.events.lock().unwrap();
        events.iter().filter(|event| matches!(event, ImageEvent::Downloaded { .. })).count()
    }
}

async fn find(
    images: &Images,
    reference: &Reference,
    platform: &Platform,
) -> Result<ResolvedImage, ImageError> {
    images.resolve(&ImageName::Registry(reference.clone()), platform).await
}

async fn read(layer: &LayerSource) -> Result<Vec<u8>, ImageError> {
    let layer = layer.clone();
    tokio::task::spawn_blocking(move || {
        let mut bytes = Vec::new();
        layer.open_layer()?.read_to_end(&mut bytes).unwrap();
        Ok(bytes)
    })
    .await
    .unwrap()
}

fn base() -> TestImage {
    image(&amd64(), &[("etc/hostname", b"base"), ("bin/tool", &noise(7, 200_000))])
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_comes_from_the_registry_and_each_blob_once() {
    let world = World::new();
    let (base, other) = (base(), image(&arm64(), &[("x", b"y")]));
    world.remote.put_index("12", &[&other, &base]);
    let images = world.images(true);
    let found = find(&images, &world.remote.reference("debian:12"), &amd64()).await.unwrap();
    assert_eq!(found.manifest.raw(), base.manifest.raw());
    assert_eq!(found.config.raw(), base.config.raw());
    assert!(matches!(&found.origin, Origin::Registry(pinned) if pinned.digest() == base.manifest.digest()));
    assert!(!found.layers[0].is_here(), "nothing is downloaded before it is opened");
    for (number, layer) in found.layers.iter().enumerate() {
        assert_eq!(read(layer).await.unwrap(), base.layers[number]);
        assert_eq!(read(layer).await.unwrap(), base.layers[number]);
        assert_eq!(world.remote.downloads(&layer.descriptor().digest), 1);
    }
    let again = find(&images, &world.remote.reference("debian:12"), &amd64()).await.unwrap();
    assert_eq!(read(&again.layers[1]).await.unwrap(), base.layers[1]);
    assert_eq!(world.remote.downloads(&base.layer(1).digest), 1, "it lies in the scratch directory");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_warmed_tag_costs_one_head_and_nothing_else() {
    let world = World::new();
    let base = base();
    world.remote.put("12", &base);
    let reference = world.remote.reference("debian:12");
    world.warm(&base, &reference);
    let found = find(&world.images(true), &reference, &amd64()).await.unwrap();
    assert_eq!(read(&found.layers[0]).await.unwrap(), base.layers[0]);
    assert_eq!(world.remote.requests(), ["HEAD /v2/debian/manifests/12"]);
    assert!(world.warnings().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_warmed_digest_costs_nothing() {
    let world = World::new();
    let base = base();
    let reference = world.remote.reference(&format!("debian@{}", base.manifest.digest()));
    world.warm(&base, &reference);
    let found = find(&world.images(true), &reference, &amd64()).await.unwrap();
    assert_eq!(read(&found.layers[1]).await.unwrap(), base.layers[1]);
    assert!(world.remote.requests().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tag_that_moved_is_not_taken_from_the_volume() {
    let world = World::new();
    let (old, new) = (base(), image(&amd64(), &[("etc/hostname", b"base"), ("new", b"news")]));
    let reference = world.remote.reference("debian:12");
    world.warm(&old, &reference);
    world.remote.put("12", &new);
    let found = find(&world.images(true), &reference, &amd64()).await.unwrap();
    assert_eq!(found.manifest.digest(), new.manifest.digest());
    assert_eq!(read(&found.layers[0]).await.unwrap(), new.layers[0]);
    assert_eq!(world.remote.downloads(&new.layer(0).digest), 0, "the old image's layer serves the new one");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_out_of_reach_leaves_the_volume_s_idea_with_a_warning() {
    let mut world = World::new();
    let base = base();
    let reference = world.remote.reference("debian:12");
    world.warm(&base, &reference);
    world.remote.stop();
    let found = find(&world.images(true), &reference, &amd64()).await.unwrap();
    assert_eq!(read(&found.layers[0]).await.unwrap(), base.layers[0]);
    assert!(matches!(&world.warnings()[..], [ImageEvent::VolumeIsAsked { resolved_at, .. }]
        if *resolved_at == SystemTime::UNIX_EPOCH));
    let unknown = world.remote.reference("debian:13");
    assert!(matches!(find(&world.images(true), &unknown, &amd64()).await, Err(ImageError::Registry { .. })));
}

#[tokio::test(flavor = "multi_thread")]
async fn offline_asks_nobody() {
    let world = World::new();
    let base = base();
    let reference = world.remote.reference("debian:12");
    world.warm(&base, &reference);
    let found = find(&world.images(false), &reference, &amd64()).await.unwrap();
    assert_eq!(read(&found.layers[0]).await.unwrap(), base.layers[0]);
    let error = find(&world.images(false), &reference, &arm64()).await.unwrap_err();
    assert!(matches!(error, ImageError::Offline { .. }), "{error}");
    assert!(error.to_string().contains("kiln warmer --image"), "{error}");
    std::fs::remove_file(world.volume().blob_path(&base.layer(0).digest)).unwrap();
    let found = find(&world.images(false), &reference, &amd64()).await.unwrap();
    let error = read(&found.layers[0]).await.unwrap_err();
    assert!(matches!(error, ImageError::OfflineBlob { .. }), "{error}");
    assert!(world.remote.requests().is_empty());
}

/// Flips a bit in the middle of a file.
fn damage(path: &Path) {
    let mut bytes = std::fs::read(path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 8;
    std::fs::write(path, bytes).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flipped_bit_in_the_volume_names_the_file_and_the_registry_s_blob_is_used() {
    let base = base();
    for number in 0..4 {
        let world = World::new();
        let reference = world.remote.reference("debian:12");
        world.remote.put("12", &base);
        world.warm(&base, &reference);
        let path = world.volume().blob_path(&base.digests()[number]);
        damage(&path);
        let found = find(&world.images(true), &reference, &amd64()).await.unwrap();
        assert_eq!(found.config.raw(), base.config.raw());
        for (layer, bytes) in found.layers.iter().zip(&base.layers) {
            assert_eq!(&read(layer).await.unwrap(), bytes);
        }
        let warnings = world.warnings();
        assert!(
            matches!(&warnings[..], [ImageEvent::Damaged { path: named, .. }] if *named == path),
            "{warnings:?}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_truncated_blob_in_the_volume_is_damage_too() {
    let world = World::new();
    let base = base();
    let reference = world.remote.reference("debian:12");
    world.remote.put("12", &base);
    world.warm(&base, &reference);
    let path = world.volume().blob_path(&base.layer(1).digest);
    std::fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(1000).unwrap();
    let found = find(&world.images(true), &reference, &amd64()).await.unwrap();
    assert_eq!(read(&found.layers[1]).await.unwrap(), base.layers[1]);
    assert_eq!(world.warnings().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_download_goes_on_where_it_ended() {
    let world = World::new();
    let base = image(&amd64(), &[("etc/hostname", b"base"), ("bin/tool", &noise(7, 3_000_000))]);
    world.remote.put("12", &base);
    let digest = base.layer(1).digest;
    world.remote.on_blobs([Fault::Serve, Fault::CutAfter(900_000), Fault::CutAfter(900_000)]);
    let found = find(&world.images(true), &world.remote.reference("debian:12"), &amd64()).await.unwrap();
    assert_eq!(read(&found.layers[1]).await.unwrap(), base.layers[1]);
    assert_eq!(world.remote.downloads(&digest), 3);
}

/// A client that takes every stream for a slow one, and fetches the rest in pieces of `bytes`.
fn in_pieces(bytes: u64) -> Registry {
    let ranges = Ranges { least: 2 * bytes, piece: bytes, patience: Duration::ZERO, fast: u64::MAX };
    Registry::new(RegistryOptions { ranges, ..options() }).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layer_that_comes_in_pieces_is_the_same_to_who_reads_it_meanwhile() {
    let world = World::new();
    let base = image(&amd64(), &[("etc/hostname", b"base"), ("bin/tool", &noise(7, 3_000_000))]);
    world.remote.put("12", &base);
    // The config, the beginning as one stream, and then pieces.
    world.remote.on_blobs([Fault::Serve, Fault::Serve, Fault::CutAfter(100_000), Fault::Status(500)]);
    let images = world.images_by(Some(in_pieces(500_000)));
    let found = find(&images, &world.remote.reference("debian:12"), &amd64()).await.unwrap();
    let layer = found.layers[1].clone();
    let read = move || {
        let mut bytes = Vec::new();
        layer.stream().and_then(|mut reader| reader.read_to_end(&mut bytes)).map(|_| bytes)
    };
    let bytes = tokio::task::spawn_blocking(read).await.unwrap().unwrap();
    assert!(bytes == base.layers[1]);
    let asked = world.remote.downloads(&base.layer(1).digest);
    assert_eq!(asked, 1 + 7 + 2, "one stream, seven pieces, two of which broke once");
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_of_another_digest_are_never_given() {
    let world = World::new();
    let base = base();
    world.remote.put("12", &base);
    world.remote.on_blobs([Fault::Serve, Fault::WrongBytes]);
    let images = world.images(true);
    let found = find(&images, &world.remote.reference("debian:12"), &amd64()).await.unwrap();
    let error = read(&found.layers[0]).await.unwrap_err();
    let ImageError::Transfer(cause) = &error else { panic!("{error}") };
    assert!(matches!(**cause, ImageError::Registry { .. }), "{error}");
    assert_eq!(read(&found.layers[0]).await.unwrap(), base.layers[0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_streamed_layer_is_given_while_it_arrives_and_ends_in_an_error_if_it_is_wrong() {
    let world = World::new();
    let base = image(&amd64(), &[("etc/hostname", b"base"), ("bin/tool", &noise(7, 3_000_000))]);
    world.remote.put("12", &base);
    world.remote.on_blobs([Fault::Serve, Fault::WrongBytes]);
    let images = world.images(true);
    let found = find(&images, &world.remote.reference("debian:12"), &amd64()).await.unwrap();
    let layer = found.layers[1].clone();
    let stream = move || {
        let mut bytes = Vec::new();
        layer.stream().and_then(|mut reader| reader.read_to_end(&mut bytes)).map(|_| bytes)
    };
    let again = stream.clone();
    assert!(tokio::task::spawn_blocking(stream).await.unwrap().is_err());
    assert_eq!(tokio::task::spawn_blocking(again).await.unwrap().unwrap(), base.layers[1]);
}

/// Reads the layer as it passes by.
async fn pass(layer: &LayerSource) -> std::io::Result<Vec<u8>> {
    let layer = layer.clone();
    let read = move || {
        let mut bytes = Vec::new();
        layer.pass(false, || false).and_then(|mut reader| reader.read_to_end(&mut bytes)).map(|_| bytes)
    };
    tokio::task::spawn_blocking(read).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layer_that_passes_by_is_not_kept_until_it_is_wanted_again() {
    let world = World::new();
    let base = image(&amd64(), &[("etc/hostname", b"base"), ("bin/tool", &noise(7, 3_000_000))]);
    world.remote.put("12", &base);
    world.remote.on_blobs([Fault::Serve, Fault::CutAfter(900_000), Fault::Serve, Fault::Status(503)]);
    let found = find(&world.images(true), &world.remote.reference("debian:12"), &amd64()).await.unwrap();
    let (layer, digest) = (&found.layers[1], base.layer(1).digest);
    assert!(pass(layer).await.unwrap() == base.layers[1]);
    assert_eq!(world.remote.downloads(&digest), 2, "it went on where it broke");
    assert!(!layer.is_here(), "it was kept");
    assert_eq!(world.received(), 1);
    for _ in 0..2 {
        assert!(pass(layer).await.unwrap() == base.layers[1]);
        assert!(layer.is_here());
    }
    assert_eq!(world.remote.downloads(&digest), 2 + 2, "once more, with an error, for all who want it");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layer_that_hardly_is_wanted_comes_while_that_is_asked() {
    for (unlikely, wanted) in [(true, false), (true, true), (false, false), (false, true)] {
        let world = Arc::new(World::new());
        let base = image(&amd64(), &[("etc/hostname", b"base"), ("bin/tool", &noise(7, 3_000_000))]);
        world.remote.put("12", &base);
        let found = find(&world.images(true), &world.remote.reference("debian:12"), &amd64()).await.unwrap();
        let (layer, digest) = (found.layers[1].clone(), base.layer(1).digest);
        let (here, asked) = (Arc::clone(&world), digest.clone());
        let read = move || {
            let is_wanted = || {
                while unlikely && here.remote.downloads(&asked) == 0 {
                    std::thread::sleep(Duration::from_millis(2));
                }
                assert_eq!(
                    here.remote.downloads(&asked),
                    usize::from(unlikely),
                    "it comes before it is known whither"
                );
                wanted
            };
            let mut bytes = Vec::new();
            layer
                .pass(unlikely, is_wanted)
                .and_then(|mut reader| reader.read_to_end(&mut bytes))
                .map(|_| bytes)
        };
        assert!(tokio::task::spawn_blocking(read).await.unwrap().unwrap() == base.layers[1]);
        assert_eq!(found.layers[1].is_here(), wanted, "it is kept where somebody wants it");
        assert_eq!(world.remote.downloads(&digest), 1 + usize::from(unlikely && wanted));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layer_that_is_wrong_does_not_pass_by() {
    let world = World::new();
    let base = image(&amd64(), &[("etc/hostname", b"base"), ("bin/tool", &noise(7, 3_000_000))]);
    world.remote.put("12", &base);
    world.remote.on_blobs([Fault::Serve, Fault::WrongBytes]);
    let found = find(&world.images(true), &world.remote.reference("debian:12"), &amd64()).await.unwrap();
    let error = pass(&found.layers[1]).await.unwrap_err().to_string();
    assert!(error.contains("sha256:"), "{error}");
    assert!(pass(&found.layers[1]).await.unwrap() == base.layers[1]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layer_that_passes_by_slowly_is_downloaded_in_pieces_and_read_on() {
    let world = World::new();
    let base = image(&amd64(), &[("etc/hostname", b"base"), ("bin/tool", &noise(7, 3_000_000))]);
    world.remote.put("12", &base);
    let images = world.images_by(Some(in_pieces(500_000)));
    let found = find(&images, &world.remote.reference("debian:12"), &amd64()).await.unwrap();
    assert!(pass(&found.layers[1]).await.unwrap() == base.layers[1]);
    assert!(found.layers[1].is_here(), "pieces need a file");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layer_whose_reader_leaves_is_not_fetched_to_its_end() {
    let world = World::new();
    let base = image(&amd64(), &[("etc/hostname", b"base"), ("bin/tool", &noise(7, 30_000_000))]);
    world.remote.put("12", &base);
    let found = find(&world.images(true), &world.remote.reference("debian:12"), &amd64()).await.unwrap();
    let layer = found.layers[1].clone();
    let begin = move || {
        let mut begin = vec![0; 1000];
        layer.pass(false, || false).and_then(|mut reader| reader.read_exact(&mut begin)).map(|()| begin)
    };
    let begin = tokio::task::spawn_blocking(begin).await.unwrap().unwrap();
    assert!(begin == base.layers[1][..1000]);
    tokio::time::sleep(Duration::from_millis(100)).await;
    let most = world
        .events
        .lock()
        .unwrap()
        .iter()
        .filter_map(|event| match event {
            ImageEvent::Received { bytes, .. } => Some(*bytes),
            _ => None,
        })
        .max()
        .unwrap();
    assert!(most < 30_000_000, "it was fetched for nobody");
}

#[tokio::test(flavor = "multi_thread")]
async fn many_that_open_one_layer_download_it_once() {
    let world = World::new();
    let base = base();
    world.remote.put("12", &base);
    let found = find(&world.images(true), &world.remote.reference("debian:12"), &amd64()).await.unwrap();
    let all = (0..4).map(|_| read(&found.layers[1]));
    for bytes in futures::future::join_all(all).await {
        assert_eq!(bytes.unwrap(), base.layers[1]);
    }
    found.layers[1].fetch().await.unwrap();
    assert_eq!(world.remote.downloads(&base.layer(1).digest), 1);
    assert!(world.received() >= 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_platform_that_is_not_there_names_those_that_are() {
    let world = World::new();
    world.remote.put_index("12", &[&base()]);
    let error = find(&world.images(true), &world.remote.reference("debian:12"), &arm64()).await.unwrap_err();
    assert!(error.to_string().contains("made for linux/amd64"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn layouts_and_archives_are_images_too() {
    let world = World::new();
    let base = base();
    let layout = world.dir.path().join("layout");
    let names = ["base:1".to_owned()];
    OciLayoutWriter::create(&layout)
        .unwrap()
        .add(&base.manifest, &base.config, &names, &Bytes(&base))
        .unwrap();
    let archive = world.dir.path().join("image.tar");
    ArchiveWriter::write_file(&archive, &base.manifest, &base.config, &[], &Bytes(&base)).unwrap();
    let texts = [
        format!("oci-layout://{}", layout.display()),
        format!("oci-layout://{}:base:1", layout.display()),
        format!("oci-layout://{}@{}", layout.display(), base.manifest.digest()),
        format!("docker-archive://{}", archive.display()),
    ];
    for text in texts {
        let name: ImageName = text.parse().unwrap();
        let found = world.images(false).resolve(&name, &amd64()).await.unwrap();
        assert_eq!(found.manifest.digest(), base.manifest.digest());
        assert_eq!(read(&found.layers[1]).await.unwrap(), base.layers[1]);
        assert!(found.repository().is_none());
    }
    damage(&layout.join("blobs/sha256").join(base.layer(0).digest.hex()));
    let name: ImageName = format!("oci-layout://{}", layout.display()).parse().unwrap();
    let found = world.images(true).resolve(&name, &amd64()).await.unwrap();
    assert!(matches!(read(&found.layers[0]).await, Err(ImageError::Store { .. })));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_kaniko_warmed_serves_a_build() {
    let world = World::new();
    let base = base();
    world.remote.put("12", &base);
    let kept = world.dir.path().join("volume").join(base.manifest.digest().to_string());
    OciLayoutWriter::create(&kept).unwrap().add(&base.manifest, &base.config, &[], &Bytes(&base)).unwrap();
    let reference = world.remote.reference("debian:12");
    let found = find(&world.images(true), &reference, &amd64()).await.unwrap();
    assert_eq!(read(&found.layers[0]).await.unwrap(), base.layers[0]);
    assert_eq!(world.remote.requests(), ["HEAD /v2/debian/manifests/12"]);
    damage(&kept.join("blobs/sha256").join(base.layer(1).digest.hex()));
    let found = find(&world.images(true), &reference, &amd64()).await.unwrap();
    assert_eq!(read(&found.layers[1]).await.unwrap(), base.layers[1]);
    assert_eq!(world.warnings().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_that_was_found_is_not_pruned_from_under_the_build() {
    let world = World::new();
    let base = base();
    let reference = world.remote.reference("debian:12");
    world.warm(&base, &reference);
    let found = find(&world.images(false), &reference, &amd64()).await.unwrap();
    let rules = kiln_store::PruneRules { unused_for: None, max_size: Some(0), now: SystemTime::now() };
    let volume = world.volume();
    assert_eq!(volume.prune(&rules).unwrap().in_use.len(), 1);
    assert_eq!(read(&found.layers[1]).await.unwrap(), base.layers[1]);
    drop(found);
    assert_eq!(volume.prune(&rules).unwrap().left, 0);
}
