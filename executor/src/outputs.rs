//! What becomes of the image: pushed, written as an archive or a layout, its digest written to files. Nothing is put
//! under a destination's tag before every blob is there.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, BufRead, Read};
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use futures::TryFutureExt as _;
use futures::future::{join_all, try_join, try_join_all};
use futures::stream::poll_fn;
use kiln_cache::{HitBytes, LayerSource};
use kiln_oci::media_type;
use kiln_oci::{Descriptor, Digest, Document, Manifest, Reference, Repository};
use kiln_plan::Hit;
use kiln_registry::{BlobSource, FileSource};
use kiln_store::{ArchiveWriter, Blobs, OciLayoutWriter};
use tokio::io::AsyncRead;
use tokio::sync::mpsc;
use tokio_util::io::StreamReader;

use crate::error::BuildError;
use crate::event::Event;
use crate::product::{Attestation, Product};
use crate::session::{LayerOrigin, Session};
use crate::uploads::Sending;

/// Pushes the result to every destination: blobs, then what an index lists, by digest, and the names last.
///
/// What doesn't need each other goes side by side: a registry may be far away, and each answer takes its time.
pub(crate) async fn push(session: &Arc<Session>, product: &Product) -> Result<(), BuildError> {
    let Some(digest) = product.digest() else { return Ok(()) };
    session.check_cancelled()?;
    let destinations = &session.request.output.destinations;
    let there = join_all(destinations.iter().map(|name| is_there(session, product, name))).await;
    let missing = destinations.iter().zip(&there).filter(|(_, there)| !**there);
    let repositories: BTreeSet<&Repository> = missing.map(|(name, _)| &name.repository).collect();
    push_blobs(session, &repositories, product).await?;
    session.check_cancelled()?;
    let listed = repositories.iter().map(|repository| push_listed(session, repository, product));
    try_join_all(listed).await?;
    session.check_cancelled()?;
    let named = destinations
        .iter()
        .zip(&there)
        .map(async |(name, there)| if *there { Ok(true) } else { push_name(session, name, product).await });
    let mut failed = Ok(());
    for (reference, pushed) in destinations.iter().zip(join_all(named).await) {
        let (reference, digest) = (reference.clone(), digest.clone());
        match pushed {
            Ok(true) => session.tell(Event::Pushed { reference, digest }),
            Ok(false) => {
                session.tell(Event::Warning(format!("{reference} is there already and may not change")));
            }
            // The first failure is told once it is known which names are there.
            Err(error) => failed = failed.and(Err(error)),
        }
    }
    failed
}

/// Puts the manifests that the product's index lists, if it has one, into the repository.
async fn push_listed(session: &Session, to: &Repository, product: &Product) -> Result<(), BuildError> {
    if product.index().is_none() {
        return Ok(());
    }
    let put = async |manifest: &Document<Manifest>| {
        let name = by_digest(to, manifest.digest());
        let pushed = session.registry.push_manifest(&name, manifest.value().media_type(), manifest.raw());
        pushed.await.map_err(BuildError::other)
    };
    try_join_all(product.images().iter().map(|image| put(&image.manifest))).await?;
    // What is said about an image is for registries that know the image.
    try_join_all(product.attestations().iter().map(|said| put(&said.manifest))).await?;
    Ok(())
}

/// Puts the product under its name. `false` if something else stands there that may not change, and that is no failure.
async fn push_name(session: &Session, name: &Reference, product: &Product) -> Result<bool, BuildError> {
    let (media_type, raw) = match (product.index(), product.images().first()) {
        (Some(index), _) => {
            (index.value().media_type.as_deref().unwrap_or(media_type::OCI_INDEX), index.raw())
        }
        (None, Some(image)) => (image.manifest.value().media_type(), image.manifest.raw()),
        (None, None) => return Ok(true),
    };
    match session.registry.push_manifest(name, media_type, raw).await {
        Ok(_) => Ok(true),
        Err(error) if error.is_immutable_tag() && session.request.output.ignore_immutable => Ok(false),
        Err(error) => Err(BuildError::other(error)),
    }
}

/// Whether this build made a layer of the product, so that hardly anybody has its documents.
fn is_new(session: &Session, product: &Product) -> bool {
    let mut layers = product.images().iter().flat_map(|image| &image.layers);
    layers.any(|layer| matches!(session.origin(&layer.descriptor.digest), LayerOrigin::Made))
}

/// Whether the destination's tag means this very image, so that nothing has to be sent. It is asked only where no layer
/// is new: else it hardly can.
async fn is_there(session: &Session, product: &Product, destination: &Reference) -> bool {
    if is_new(session, product) || !product.attestations().is_empty() {
        return false;
    }
    // Of the registry itself: a mirror knows what it was yesterday.
    let found = session.registry.for_cache().head(destination).await;
    found.is_ok_and(|found| Some(&found.descriptor.digest) == product.digest())
}

fn by_digest(repository: &Repository, digest: &Digest) -> Reference {
    Reference { repository: repository.clone(), tag: None, digest: Some(digest.clone()) }
}

/// Sends all blobs of the product: layers, configs and statements.
async fn push_blobs(
    session: &Arc<Session>,
    repositories: &BTreeSet<&Repository>,
    product: &Product,
) -> Result<(), BuildError> {
    let configs = product
        .images()
        .iter()
        .map(|image| (&image.manifest.value().config, Bytes::copy_from_slice(image.config.raw())));
    let said = product.attestations().iter().flat_map(|said| {
        let statements = said.statements.iter().map(|(descriptor, bytes)| (descriptor, bytes.clone()));
        statements.chain([(&said.manifest.value().config, said.config.clone())])
    });
    // By digest: what is said about several images has parts in common.
    let documents: BTreeMap<&Digest, (&Descriptor, Bytes)> =
        configs.chain(said).map(|document| (&document.0.digest, document)).collect();
    let (registry, is_new) = (&session.registry, is_new(session, product));
    let mut sent = Vec::new();
    for to in repositories {
        for layer in product.images().iter().flat_map(|image| &image.layers) {
            send_layer(session, to, &layer.descriptor, Transit::Through);
        }
        sent.extend(documents.values().map(async |(descriptor, bytes)| {
            if is_new {
                registry.push_new_blob(to, descriptor, bytes).await
            } else {
                registry.push_blob(to, descriptor, bytes).await
            }
        }));
    }
    let documents = try_join_all(sent).map_err(BuildError::other);
    try_join(documents, session.uploads.finish()).await?;
    Ok(())
}

/// Begins to send a layer, unless that was begun before.
pub(crate) fn send_layer(session: &Arc<Session>, to: &Repository, layer: &Descriptor, transit: Transit) {
    if media_type::is_foreign(&layer.media_type) {
        return;
    }
    let (shared, repository, layer) = (Arc::clone(session), to.clone(), layer.clone());
    let digest = layer.digest.clone();
    session.uploads.send(to, &digest, |sending| async move {
        push_layer(&shared, &repository, &layer, transit, sending).await
    });
}

/// Which way a base's layer takes that is not on this machine.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Transit {
    /// By way of the scratch directory: steps may want it.
    Stop,
    /// Straight from its registry, because all steps are done.
    Through,
}

async fn push_layer(
    session: &Arc<Session>,
    to: &Repository,
    layer: &Descriptor,
    transit: Transit,
    sending: Sending,
) -> Result<(), BuildError> {
    let origin = session.origin(&layer.digest);
    let source = match &origin {
        LayerOrigin::Image(source) => source.repository().cloned(),
        LayerOrigin::Cached(_) => session.cache.repository().cloned(),
        LayerOrigin::Made => None,
    };
    let Sending { elsewhere, .. } = &sending;
    if mounted(session, to, layer, source).await
        || mounted(session, to, layer, elsewhere.arrived().await).await
    {
        return Ok(());
    }
    match origin {
        LayerOrigin::Made => push_made(session, to, layer).await,
        LayerOrigin::Image(source) if is_missing(session, to, layer, &sending).await? => {
            push_base(session, to, layer, source, transit).await
        }
        LayerOrigin::Cached(hit) if is_missing(session, to, layer, &sending).await? => {
            send_cached(session, to, layer, &hit).await
        }
        LayerOrigin::Image(_) | LayerOrigin::Cached(_) => Ok(()),
    }
}

/// Whether the repository lacks the layer, as far as it says so. If so, its bytes are wanted.
async fn is_missing(
    session: &Session,
    to: &Repository,
    layer: &Descriptor,
    sending: &Sending,
) -> Result<bool, BuildError> {
    if session.registry.is_pushed(to, &layer.digest).await.map_err(BuildError::other)? {
        return Ok(false);
    }
    sending.wants_bytes();
    Ok(true)
}

/// Sends a layer that this build made.
async fn push_made(session: &Session, to: &Repository, layer: &Descriptor) -> Result<(), BuildError> {
    if session.early.arrived(to, &layer.digest).await {
        return Ok(());
    }
    let file = FileSource(session.blobs.blob_path(&layer.digest));
    session.registry.push_new_blob(to, layer, &file).await.map_err(BuildError::other)?;
    Ok(())
}

/// Sends a base's layer from wherever it is.
async fn push_base(
    session: &Session,
    to: &Repository,
    layer: &Descriptor,
    source: LayerSource,
    transit: Transit,
) -> Result<(), BuildError> {
    let registry = &session.registry;
    // Where no step wanted the layer, it needn't lie on this machine.
    let through = transit == Transit::Through && !goes_to_several(session);
    if let Some(relay) = source.relay().filter(|_| through) {
        match registry.send_blob(to, layer, &relay).await {
            // There may be other mirrors.
            Err(_) if relay.has_failed() => {}
            sent => return sent.map_err(BuildError::other),
        }
    }
    // An upload that waited for a download of the same registry would keep the connection that it needs.
    source.fetch().await.map_err(BuildError::other)?;
    registry.send_blob(to, layer, &LayerBytes(source)).await.map_err(BuildError::other)
}

/// Whether the image goes to several registries: what comes from elsewhere is then fetched once, to this machine, and not
/// for each of them.
fn goes_to_several(session: &Session) -> bool {
    let mut hosts = session.request.output.destinations.iter().map(|name| name.repository.host());
    let first = hosts.next();
    hosts.any(|host| Some(host) != first)
}

/// Whether the layer could be had from another repository of the registry, so that it needn't be sent.
async fn mounted(session: &Session, to: &Repository, layer: &Descriptor, from: Option<Repository>) -> bool {
    match from {
        // What is wrong with the registry shows when the layer is sent.
        Some(from) if from != *to => {
            session.registry.mount_blob(to, &layer.digest, &from).await.unwrap_or(false)
        }
        _ => false,
    }
}

/// Sends the layer of a cached step: from this machine if it is here, else straight from the cache repository.
async fn send_cached(
    session: &Arc<Session>,
    to: &Repository,
    layer: &Descriptor,
    hit: &Hit,
) -> Result<(), BuildError> {
    let lost = || BuildError::Lost { digest: hit.digest.clone() };
    let sent = match session.cache.locate(hit, &session.blobs).await.ok_or_else(lost)? {
        HitBytes::Here(blob) => {
            session.registry.send_blob(to, layer, &FileSource(blob.path().to_owned())).await
        }
        HitBytes::There(_) if goes_to_several(session) => {
            let blob = session.bring(hit).await?;
            session.registry.send_blob(to, layer, &FileSource(blob.path().to_owned())).await
        }
        HitBytes::There(relay) => match session.registry.send_blob(to, layer, &relay).await {
            Err(_) if session.cache.is_lost(hit, &relay) => return Err(lost()),
            sent => sent,
        },
    };
    sent.map_err(BuildError::other)
}

/// A base image's layer, from wherever it is: read in a thread of its own.
struct LayerBytes(LayerSource);

impl BlobSource for LayerBytes {
    fn open(&self, offset: u64) -> io::Result<Box<dyn AsyncRead + Send + Unpin>> {
        let source = self.0.clone();
        let (sender, mut receiver) = mpsc::channel(4);
        std::thread::Builder::new().name("read layer".to_owned()).spawn(move || {
            let pump = || -> io::Result<()> {
                let mut reader = source.open_layer().map_err(io::Error::other)?;
                io::copy(&mut reader.by_ref().take(offset), &mut io::sink())?;
                loop {
                    let mut piece = vec![0; 128 << 10];
                    let length = reader.read(&mut piece)?;
                    piece.truncate(length);
                    if length == 0 || sender.blocking_send(Ok(Bytes::from(piece))).is_err() {
                        return Ok(());
                    }
                }
            };
            if let Err(error) = pump() {
                drop(sender.blocking_send(Err(error)));
            }
        })?;
        Ok(Box::new(StreamReader::new(poll_fn(move |context| receiver.poll_recv(context)))))
    }
}

/// All layers of the image, for archives and layouts.
pub(crate) struct AllBlobs<'a>(pub(crate) &'a Session);

impl Blobs for AllBlobs<'_> {
    fn open(&self, descriptor: &Descriptor) -> io::Result<Box<dyn BufRead + Send>> {
        match self.0.origin(&descriptor.digest) {
            LayerOrigin::Image(source) => source.open_layer().map_err(io::Error::other),
            LayerOrigin::Cached(hit) => {
                let blob = self.0.runtime.block_on(self.0.bring(&hit)).map_err(io::Error::other)?;
                Ok(Box::new(blob.reader()))
            }
            LayerOrigin::Made => Blobs::open(&self.0.blobs, descriptor),
        }
    }
}

impl Blobs for Attestation {
    fn open(&self, descriptor: &Descriptor) -> io::Result<Box<dyn BufRead + Send>> {
        let found = self.statements.iter().find(|(statement, _)| statement.digest == descriptor.digest);
        let (_, bytes) = found.ok_or(io::ErrorKind::NotFound)?;
        Ok(Box::new(io::Cursor::new(bytes.clone())))
    }
}

/// Writes the result as an archive and as a layout, as far as that is asked for. Blocks.
pub(crate) fn write_files(session: &Session, product: &Product) -> Result<(), BuildError> {
    let output = &session.request.output;
    if output.archive.is_some() || output.layout.is_some() {
        for layer in product.images().iter().flat_map(|image| &image.layers) {
            if let LayerOrigin::Cached(hit) = session.origin(&layer.descriptor.digest) {
                session.runtime.block_on(session.bring(&hit))?;
            }
        }
    }
    let blobs = AllBlobs(session);
    let Some(first) = product.images().first() else { return Ok(()) };
    if let Some(path) = &output.archive {
        ArchiveWriter::write_file(path, &first.manifest, &first.config, &output.destinations, &blobs)
            .map_err(BuildError::other)?;
        session.tell(Event::Note(format!("wrote {}", path.display())));
    }
    if let Some(path) = &output.layout {
        let names: Vec<String> = output.destinations.iter().map(with_tag).collect();
        let writer = OciLayoutWriter::create(path).map_err(BuildError::other)?;
        match product.index() {
            None => writer.add(&first.manifest, &first.config, &names, &blobs).map_err(BuildError::other)?,
            Some(index) => {
                for image in product.images() {
                    let added = writer.add_unlisted(&image.manifest, image.config.raw(), &blobs);
                    added.map_err(BuildError::other)?;
                }
                for said in product.attestations() {
                    writer.add_unlisted(&said.manifest, &said.config, said).map_err(BuildError::other)?;
                }
                writer.add_index(index, &names).map_err(BuildError::other)?;
            }
        }
        session.tell(Event::Note(format!("wrote the OCI layout {}", path.display())));
    }
    Ok(())
}

fn with_tag(reference: &Reference) -> String {
    match reference.tag_or_latest() {
        Some(tag) => reference.repository.tagged(tag).to_string(),
        None => reference.to_string(),
    }
}

/// Writes a digest file: in place where that is no regular file (`/dev/termination-log`, `/dev/stdout`).
pub fn write_text(path: &Path, text: &str) -> Result<(), BuildError> {
    let write = || -> io::Result<()> {
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent)?;
        }
        std::fs::write(path, text)
    };
    write().map_err(|source| BuildError::Write { path: path.to_owned(), source })
}
