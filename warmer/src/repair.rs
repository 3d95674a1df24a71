//! `--verify`: everything is hashed, and what is damaged comes from the registry again.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;

use kiln_cache::download;
use kiln_oci::{Descriptor, Digest, Document, Manifest, Reference, Repository};
use kiln_store::annotation;

use crate::progress::Transfer;
use crate::run::Run;
use crate::{VerifySummary, WarmError, WarmEvent};

/// Hashes all blobs. The damaged ones are fetched from the repositories whose images need them; one that no repository
/// gives is deleted, because a miss is better than damage.
pub(crate) async fn verify(run: &Arc<Run>) -> Result<VerifySummary, WarmError> {
    let (store, teller) = (run.store.clone(), run.teller.clone());
    let report = run
        .blocking(move || {
            store.verify(&mut |digest| teller.tell(WarmEvent::Verifying { digest: digest.clone() }))
        })
        .await?;
    let mut bad: BTreeMap<Digest, PathBuf> = BTreeMap::new();
    for blob in report.bad {
        run.teller.tell(WarmEvent::Damaged { path: blob.path.clone(), why: blob.why.to_string() });
        bad.insert(blob.digest, blob.path);
    }
    let damaged = bad.keys().cloned().collect();
    let repaired = if bad.is_empty() { BTreeSet::new() } else { repair(run, damaged).await? };
    Ok(VerifySummary {
        blobs: report.blobs,
        bytes: report.bytes,
        bad: bad
            .into_iter()
            .map(|(digest, path)| {
                let whole = repaired.contains(&digest);
                (digest, path, whole)
            })
            .collect(),
    })
}

/// Fetches what it can of `bad`, and deletes the rest; gives what was fetched.
async fn repair(run: &Arc<Run>, mut bad: BTreeSet<Digest>) -> Result<BTreeSet<Digest>, WarmError> {
    let mut repaired = BTreeSet::new();
    for entry in run.store.index()?.manifests {
        let note = |key| entry.annotations.as_ref().and_then(|notes| notes.get(key));
        let Some(Ok(reference)) = note(annotation::REF_NAME).map(|name| name.parse::<Reference>()) else {
            continue;
        };
        let repository = reference.repository;
        let index = note(annotation::INDEX).and_then(|digest| digest.parse().ok());
        // Documents first: they say which other blobs belong to this repository.
        for digest in [Some(entry.digest.clone()), index].into_iter().flatten() {
            if bad.contains(&digest) && document(run, &repository, &digest).await? {
                bad.remove(&digest);
                repaired.insert(digest);
            }
        }
        let manifest: Option<Document<Manifest>> = run.store.document(&entry.digest).ok().flatten();
        let Some(manifest) = manifest else { continue };
        let value = manifest.value();
        for descriptor in std::iter::once(&value.config).chain(&value.layers) {
            if bad.contains(&descriptor.digest) && blob(run, &repository, descriptor).await {
                bad.remove(&descriptor.digest);
                repaired.insert(descriptor.digest.clone());
            }
        }
    }
    for digest in &repaired {
        run.teller.tell(WarmEvent::Repaired { digest: digest.clone() });
    }
    for digest in bad {
        let (store, gone) = (run.store.clone(), digest.clone());
        run.blocking(move || store.discard(&gone)).await?;
        let why = "no registry that an image of this volume comes from gave another copy".to_owned();
        run.teller.tell(WarmEvent::Discarded { digest, why });
    }
    Ok(repaired)
}

/// Fetches a manifest or index again.
async fn document(run: &Arc<Run>, repository: &Repository, digest: &Digest) -> Result<bool, WarmError> {
    let pinned = repository.pin(digest.clone()).reference();
    let Ok(answer) = run.request.registry.manifest(&pinned).await else { return Ok(false) };
    let (store, digest) = (run.store.clone(), digest.clone());
    let written = run.blocking(move || {
        store.discard(&digest)?;
        store.put_as(&digest, &answer.raw)
    });
    Ok(written.await.is_ok())
}

/// Fetches a config or layer again; it takes the damaged one's place in one step.
async fn blob(run: &Arc<Run>, repository: &Repository, descriptor: &Descriptor) -> bool {
    let transfer = Transfer::new(&run.teller, descriptor);
    let on = |bytes| transfer.at(bytes);
    download(&run.store, &run.request.registry, repository, descriptor, true, &on).await.is_ok()
}
