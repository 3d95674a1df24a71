//! What is said about the images of a build: their packages, found by looking through their layers, and how they were
//! made. No file tree is made for it.

use std::collections::BTreeSet;
use std::io::{self, Read};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use kiln_attest::{
    Inventory, Material, PREDICATE_PROVENANCE, PREDICATE_SPDX, Provenance, Spdx, Statement, Subject, attach,
    image_purl,
};
use kiln_context::Pin;
use kiln_oci::media_type::{self, Compression};
use kiln_oci::{Descriptor, Digest, Platform, Reference};
use kiln_plan::{BuildPlan, ImageName, Op, TreeSource};
use kiln_rootfs::{LayerEntry, LayerWhat};
use kiln_store::Blobs;

use crate::build::rfc3339;
use crate::error::BuildError;
use crate::event::Event;
use crate::image::Image;
use crate::outputs::AllBlobs;
use crate::planning::{Found, blocking};
use crate::product::Attestation;
use crate::request::DockerfileAt;
use crate::session::Session;

/// What is to be said about the images.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Attest {
    /// `--sbom`: which packages are in them.
    pub sbom: bool,
    /// `--provenance`: how they were made.
    pub provenance: Option<ProvenanceFlag>,
}

/// `--provenance`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ProvenanceFlag {
    /// `mode=max`: build arguments and the Dockerfile's text, too.
    pub detailed: bool,
    /// `builder-id`: what built it, as an address.
    pub builder: String,
}

impl Attest {
    /// Whether anything is to be said.
    pub fn any(&self) -> bool {
        self.sbom || self.provenance.is_some()
    }
}

/// What provenance tells of a build besides its request.
pub(crate) struct Made<'a> {
    /// The images that it used.
    pub(crate) used: &'a Found,
    /// The named contexts that it read.
    pub(crate) contexts: &'a BTreeSet<String>,
    /// Whether nothing that ran had a network.
    pub(crate) hermetic: bool,
    /// Whether nothing came from a context.
    pub(crate) closed: bool,
    /// How long it took so far.
    pub(crate) took: Duration,
}

const TOOL: &str = concat!("kiln-", env!("CARGO_PKG_VERSION"));

/// Says about every image what was asked for.
pub(crate) async fn attest(
    session: &Arc<Session>,
    images: &[Image],
    made: &Made<'_>,
) -> Result<Vec<Attestation>, BuildError> {
    let asked = session.request.output.attest.clone();
    if !asked.any() {
        return Ok(Vec::new());
    }
    let mut attestations = Vec::new();
    for image in images {
        session.check_cancelled()?;
        let mut statements = Vec::new();
        if asked.sbom {
            let (shared, copy) = (Arc::clone(session), image.clone());
            let predicate = blocking(move || sbom(&shared, &copy)).await?;
            statements.push(Statement { predicate_type: PREDICATE_SPDX, predicate });
        }
        if let Some(flag) = &asked.provenance {
            let predicate = provenance(session, flag, image, made).await.predicate();
            statements.push(Statement { predicate_type: PREDICATE_PROVENANCE, predicate });
        }
        let manifest = &image.manifest;
        let subject = Subject {
            manifest: Descriptor::new(
                manifest.value().media_type(),
                manifest.digest().clone(),
                manifest.size(),
            ),
            platform: image.config.value().platform(),
            names: &session.request.output.destinations,
        };
        let attached = attach(&subject, &statements);
        attestations.push(Attestation {
            manifest: attached.manifest,
            config: Bytes::from(attached.config),
            statements: attached.statements.into_iter().map(|(d, bytes)| (d, Bytes::from(bytes))).collect(),
            about: image.digest().clone(),
        });
    }
    Ok(attestations)
}

/// Looks through the image's layers, base first. Blocks.
fn sbom(session: &Session, image: &Image) -> Result<serde_json::Value, BuildError> {
    let mut inventory = Inventory::new();
    for layer in &image.layers {
        session.check_cancelled()?;
        let descriptor = &layer.descriptor;
        let bytes = match AllBlobs(session).open(descriptor) {
            Ok(bytes) => bytes,
            // At none of its addresses. The build can do without it where no step reads it, and so can the rest of the list.
            Err(error) if media_type::is_foreign(&descriptor.media_type) => {
                inventory.missing_layer(format!("the layer {}: {error}", descriptor.digest));
                continue;
            }
            Err(error) => return Err(BuildError::other(error)),
        };
        let compression = Compression::of_layer(&descriptor.media_type).unwrap_or(Compression::Gzip);
        let mut visit = |entry: &LayerEntry, content: &mut dyn Read| -> io::Result<()> {
            show(&mut inventory, entry, content);
            Ok(())
        };
        kiln_rootfs::entries(kiln_rootfs::decompress(bytes, compression), &mut visit)
            .map_err(|error| BuildError::other(format!("the layer {}: {error}", descriptor.digest)))?;
        inventory.next_layer();
    }
    for why in inventory.unread() {
        session.tell(Event::Warning(format!("not in the SBOM: {why}")));
    }
    let (request, digest) = (&session.request, image.digest());
    let first = request.output.destinations.first();
    let name = first.map_or_else(|| "image".to_owned(), |name| name.repository.to_string());
    let platform = image.config.value().platform();
    let spdx = Spdx {
        name: &name,
        digest,
        purl: first.map(|name| image_purl(name, platform.as_ref())),
        inventory: &inventory,
        created: &rfc3339(request.layers.mtime_limit.unwrap_or(request.now)),
        tool: TOOL,
    };
    Ok(spdx.document())
}

fn show(inventory: &mut Inventory, entry: &LayerEntry, content: &mut dyn Read) {
    let text = |path: &kiln_rootfs::TreePath| String::from_utf8_lossy(path.as_bytes()).into_owned();
    let path = text(&entry.path);
    match &entry.what {
        LayerWhat::File(size) => inventory.file(&path, *size, entry.mode, content),
        LayerWhat::HardLink(target) => inventory.link(&path, &text(target)),
        LayerWhat::Directory => inventory.directory(&path),
        LayerWhat::Other | LayerWhat::Whiteout => inventory.gone(&path),
        LayerWhat::Opaque => inventory.opaque(&path),
    }
}

async fn provenance(session: &Session, flag: &ProvenanceFlag, image: &Image, made: &Made<'_>) -> Provenance {
    let request = &session.request;
    let reproducible = request.layers.mtime_limit.is_some();
    let mut materials = session.materials(made.contexts).await;
    materials.extend(made.used.iter().map(|((name, platform), found)| {
        let digest = found.manifest.digest();
        Material {
            uri: image_uri(name, platform, digest),
            algorithm: digest.algorithm().name().to_owned(),
            digest: digest.hex(),
        }
    }));
    if let DockerfileAt::Text { name, bytes } = &request.dockerfile
        && let Some(uri) = remote_address(name)
    {
        let digest = Digest::of(bytes);
        materials.push(Material {
            uri,
            algorithm: digest.algorithm().name().to_owned(),
            digest: digest.hex(),
        });
    }
    let ended = request.now.saturating_add(i64::try_from(made.took.as_secs()).unwrap_or(0));
    // The same build again is the same words again, where that is what was asked for.
    let times = (!reproducible).then(|| (rfc3339(request.now), rfc3339(ended)));
    let invocation = format!("{} {}", image.digest(), if reproducible { 0 } else { request.now });
    let platform = image.config.value().platform();
    Provenance {
        dockerfile: session.source.name.clone(),
        target: request.plan.targets.first().cloned(),
        platform: platform.map(|platform| platform.to_string()).unwrap_or_default(),
        builder_platform: Platform::host().to_string(),
        build_args: request.plan.build_args.clone(),
        labels: request.plan.labels.clone(),
        secrets: request.secrets.keys().cloned().collect(),
        ssh: request.ssh.keys().cloned().collect(),
        detailed: flag.detailed,
        source: session.source.text.clone(),
        materials,
        context: session.context.pin.as_ref().map(material),
        complete: made.hermetic && made.closed,
        hermetic: made.hermetic,
        reproducible,
        builder: flag.builder.clone(),
        invocation: Digest::of(invocation.as_bytes()).hex()[..32].to_owned(),
        times,
    }
}

/// The address of an image that a build used.
fn image_uri(name: &ImageName, platform: &str, digest: &Digest) -> String {
    let text = name.to_string();
    match text.parse::<Reference>() {
        Ok(reference) => image_purl(&reference, platform.parse().ok().as_ref()),
        // A layout on this machine: its path tells nobody else anything.
        Err(_) => format!("pkg:oci/image@{}", digest.to_string().replace(':', "%3A")),
    }
}

/// What came from elsewhere.
pub(crate) fn material(pin: &Pin) -> Material {
    let (algorithm, digest) = (pin.algorithm.to_owned(), pin.digest.clone());
    Material { uri: pin.uri.clone(), algorithm, digest }
}

/// An address that is not on this machine, without a login and without what stands behind a question mark, which may be
/// a signature.
pub(crate) fn remote_address(name: &str) -> Option<String> {
    let (scheme, rest) = name.split_once("://")?;
    if matches!(scheme, "dir" | "tar") {
        return None;
    }
    let rest = rest.split('?').next().unwrap_or(rest);
    let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
    let host = host.rsplit_once('@').map_or(host, |(_, host)| host);
    Some(format!("{scheme}://{host}/{path}"))
}

/// The named contexts that steps in the plan read.
pub(crate) fn named_contexts(plan: &BuildPlan) -> BTreeSet<String> {
    let steps = plan.stages.iter().flat_map(|stage| &stage.steps);
    let named = |source: &TreeSource| match source {
        TreeSource::Named(name) => Some(name.clone()),
        _ => None,
    };
    steps.flat_map(|step| step.op.trees_read().into_iter().filter_map(named).collect::<Vec<_>>()).collect()
}

/// Whether no step in the plan reads a context of this machine: then all that was used has a digest.
pub(crate) fn is_closed(plan: &BuildPlan, session: &Session) -> bool {
    let local = |source: &TreeSource| match source {
        TreeSource::Context => session.context.pin.is_none(),
        TreeSource::Named(name) => session.named.get(name).is_none_or(|context| context.pin.is_none()),
        _ => false,
    };
    !plan
        .stages
        .iter()
        .flat_map(|stage| &stage.steps)
        .any(|step| step.op.trees_read().iter().any(|source| local(source)))
}

/// Whether nothing in the plan runs with a network.
pub(crate) fn is_hermetic(plan: &BuildPlan) -> bool {
    plan.stages.iter().flat_map(|stage| &stage.steps).all(|step| match &step.op {
        Op::Run(run) => run.network == kiln_dockerfile::Network::None,
        Op::Copy(_) | Op::MakeDirectory(_) => true,
    })
}

#[cfg(test)]
mod tests {
    use super::remote_address;

    #[test]
    fn a_context_on_this_machine_is_not_told_and_another_s_login_neither() {
        assert_eq!(remote_address("dir:///workspace"), None);
        assert_eq!(remote_address("tar://stdin"), None);
        assert_eq!(
            remote_address("https://me:hunter2@git.example.com/a/b.git#main?x=signature").as_deref(),
            Some("https://git.example.com/a/b.git#main")
        );
    }
}
