//! Foreign layers: their bytes lie at addresses that the manifest names, not in the registry. They are fetched for looking
//! into them, verified by their digest like any other; the image names them as before.

use std::io::{self, Write};

use kiln_oci::Descriptor;
use kiln_registry::{BlobSink, Registry};
use kiln_store::{Blob, BlobWriter, ReadWrite, Store};

use super::download::{Begun, begin, commit};

/// Sees to it that `store` has a foreign layer, from the first of its addresses that gives what its digest says.
///
/// Fails with what was wrong with each address. `on` hears how many bytes are here.
pub(super) async fn fetch(
    store: &Store<ReadWrite>,
    registry: &Registry,
    descriptor: &Descriptor,
    on: &(dyn Fn(u64) + Send + Sync),
) -> Result<Blob, Vec<String>> {
    let mut tried = Vec::new();
    let web = |url: &&String| url.starts_with("https://") || url.starts_with("http://");
    for url in descriptor.urls.iter().filter(web) {
        // What stands behind a question mark may be a signature.
        let shown = url.split('?').next().unwrap_or(url);
        match from(url, store, registry, descriptor, on).await {
            Ok(blob) => return Ok(blob),
            Err(why) => tried.push(format!("{shown}: {why}")),
        }
    }
    Err(tried)
}

async fn from(
    url: &str,
    store: &Store<ReadWrite>,
    registry: &Registry,
    descriptor: &Descriptor,
    on: &(dyn Fn(u64) + Send + Sync),
) -> Result<Blob, String> {
    let said = |error: &dyn std::error::Error| error.to_string();
    let mut writer = match begin(store, descriptor, false).await.map_err(|error| said(&error))? {
        Begun::Present(blob) => return Ok(blob),
        Begun::Writer(writer) => writer,
    };
    writer.restart().map_err(|error| said(&error))?;
    on(0);
    let mut sink = Limited { writer, size: descriptor.size, on };
    if let Err(why) = registry.fetch_url(url, &mut sink).await {
        sink.writer.abandon().map_err(|error| said(&error))?;
        return Err(why);
    }
    // A wrong digest is an error of this; nothing is named then.
    commit(sink.writer).await.map_err(|error| said(&error))?;
    let blob = store.blob(&descriptor.digest).map_err(|error| said(&error))?;
    blob.ok_or_else(|| "it was fetched, and is gone".to_owned())
}

/// Writes what comes, and no more than the layer is long.
struct Limited<'a> {
    writer: BlobWriter,
    size: u64,
    on: &'a (dyn Fn(u64) + Send + Sync),
}

impl BlobSink for Limited<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        if self.writer.position() + bytes.len() as u64 > self.size {
            return Err(io::Error::other(format!("it is longer than the {} bytes of the layer", self.size)));
        }
        self.writer.write_all(bytes)?;
        (self.on)(self.writer.position());
        Ok(())
    }

    fn restart(&mut self) -> io::Result<bool> {
        self.writer.restart()?;
        (self.on)(0);
        Ok(true)
    }
}
