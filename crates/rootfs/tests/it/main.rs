//! Layers written and extracted for real. Some rules need root, as a builder in a pod has it.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking, its helpers too")]

mod exact;
mod hostile;
mod kinds;
mod lent;
mod looks;
mod round_trip;

use std::io::{BufReader, Read};
use std::path::Path;
use std::sync::Arc;

use kiln_oci::DiffId;
use kiln_rootfs::{
    Compression, Delta, EmptyView, ExtractOptions, Extracted, IgnorePaths, LayerBlob, LayerOptions, Root,
    RootfsError, Whiteouts, extract, write_layer,
};

/// The whole of a directory as a layer.
fn layer_of(directory: &Path) -> (Vec<u8>, LayerBlob) {
    let mut out = Vec::new();
    let mut changes = Delta::new(directory.to_owned()).changes(Arc::new(EmptyView)).unwrap();
    let blob = write_layer(&mut *changes, &LayerOptions::default(), &mut out).unwrap();
    (out, blob)
}

/// All that an extraction can do.
fn options(whiteouts: Whiteouts, ignore: IgnorePaths) -> ExtractOptions<'static> {
    ExtractOptions { whiteouts, ignore, can_mknod: true, can_chown: true, record: None }
}

fn try_extract(tar: impl Read, into: &Path, whiteouts: Whiteouts) -> Result<Extracted, RootfsError> {
    let mut options = options(whiteouts, IgnorePaths::default());
    extract(BufReader::new(tar), &Root::open(into).unwrap(), &mut options)
}

/// Gives what the archive hashes to.
fn extract_layer(layer: Vec<u8>, into: &Path) -> DiffId {
    let mut options = options(Whiteouts::Apply, IgnorePaths::default());
    let (layer, into) = (std::io::Cursor::new(layer), Root::open(into).unwrap());
    kiln_rootfs::extract_layer(layer, Compression::Gzip, &into, &mut options).unwrap().0
}
