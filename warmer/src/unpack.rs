//! `--unpack`: layers kept as directories in overlayfs' format, so that a build mounts them instead of extracting.

use std::sync::Arc;

use futures::future::try_join_all;
use kiln_oci::media_type::Compression;
use kiln_oci::{Descriptor, DiffId, ImageConfig, Manifest};
use kiln_rootfs::{ExtractOptions, IgnorePaths, Root, Whiteouts, extract_layer};
use kiln_store::{ReadWrite, Store, StoreError};

use crate::run::Run;
use crate::{WarmError, WarmEvent};

/// Unpacks every layer of the image that is not unpacked yet. A layer that can't be unpacked here is a warning: its blob
/// is there, and whoever builds extracts it.
pub(crate) async fn unpack_layers(
    run: &Arc<Run>,
    manifest: &Manifest,
    config: &ImageConfig,
) -> Result<(), WarmError> {
    let layers = manifest.layers.iter().zip(&config.rootfs.diff_ids);
    try_join_all(layers.map(|(descriptor, diff_id)| unpack_layer(run, descriptor, *diff_id))).await?;
    Ok(())
}

/// What came of one layer.
enum Outcome {
    There,
    Unpacked,
    Refused(String),
}

/// Unpacks one layer, unless it is there.
pub(crate) async fn unpack_layer(
    run: &Arc<Run>,
    descriptor: &Descriptor,
    diff_id: DiffId,
) -> Result<(), WarmError> {
    if run.store.unpacked_path(&diff_id).is_dir() {
        return Ok(());
    }
    // Closed only with the run.
    let _permit = run.unpacking.acquire().await.ok();
    let (store, descriptor) = (run.store.clone(), descriptor.clone());
    match run.blocking(move || unpack_one(&store, &descriptor, diff_id)).await? {
        Outcome::There => {}
        Outcome::Unpacked => run.teller.tell(WarmEvent::Unpacked { diff_id }),
        Outcome::Refused(why) => run.teller.tell(WarmEvent::NotUnpacked { diff_id, why }),
    }
    Ok(())
}

fn unpack_one(
    store: &Store<ReadWrite>,
    descriptor: &Descriptor,
    diff_id: DiffId,
) -> Result<Outcome, StoreError> {
    let Some(blob) = store.blob_of(descriptor)? else {
        return Ok(Outcome::Refused("the volume lacks its blob".to_owned()));
    };
    let Some(guard) = store.unpack(&diff_id)? else { return Ok(Outcome::There) };
    let compression = Compression::of_layer(&descriptor.media_type).unwrap_or(Compression::Gzip);
    let mut options = ExtractOptions {
        whiteouts: Whiteouts::ToOverlay,
        ignore: IgnorePaths::default(),
        can_mknod: false,
        can_chown: true,
        record: None,
    };
    let extracted = Root::open(guard.path())
        .and_then(|root| extract_layer(blob.reader(), compression, &root, &mut options));
    let refused = match extracted {
        Err(error) => Some(error.to_string()),
        // The blob's digest fits, so this is how the image was made; whoever builds from it will say the same.
        Ok((found, _)) if found != diff_id => {
            Some(format!("its bytes have the diff ID {found}, not the one in the image's config"))
        }
        Ok((_, extracted)) if !extracted.skipped.is_empty() => {
            Some(format!("it holds {} device nodes, which can't be made here", extracted.skipped.len()))
        }
        Ok((_, extracted)) if !extracted.dangling.is_empty() => {
            Some(format!("it holds {} hard links to files of layers below", extracted.dangling.len()))
        }
        Ok(_) => None,
    };
    match refused {
        Some(why) => Ok(Outcome::Refused(why)),
        None => guard.commit().map(|_| Outcome::Unpacked),
    }
}
