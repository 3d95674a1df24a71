//! Where the digest of what was built is written: files, devices, web addresses, Cloud Build's list.

use std::path::Path;

use kiln_executor::write_text;
use kiln_oci::{Digest, Reference};
use kiln_registry::Registry;
use tokio::runtime::Runtime;

use crate::cli::executor::DigestFiles;
use crate::environment::Environment;

/// Writes the digest files that are asked for.
pub(crate) fn write(
    files: &DigestFiles,
    digest: &Digest,
    destinations: &[Reference],
    registry: &Registry,
    runtime: &Runtime,
) -> Result<(), String> {
    // kaniko writes Docker Hub's host in its old form.
    let name = |reference: &Reference| {
        reference.repository.to_string().replacen("docker.io/", "index.docker.io/", 1)
    };
    let tag =
        |reference: &Reference| reference.tag_or_latest().map_or_else(String::new, |tag| format!(":{tag}"));
    let put = |place: &Option<String>, text: &str| match place {
        Some(place) => put(place, text, registry, runtime),
        None => Ok(()),
    };
    put(&files.digest_file, &digest.to_string())?;
    let named = lines(destinations.iter().map(|d| format!("{}@{digest}", name(d))));
    put(&files.image_name_with_digest_file, &named)?;
    let tagged = lines(destinations.iter().map(|d| format!("{}{}@{digest}", name(d), tag(d))));
    put(&files.image_name_tag_with_digest_file, &tagged)
}

/// A file, a device or a web address, which gets the text by PUT.
fn put(place: &str, text: &str, registry: &Registry, runtime: &Runtime) -> Result<(), String> {
    if place.starts_with("https://") || place.starts_with("http://") {
        return runtime.block_on(registry.put_url(place, text.to_owned())).map_err(|why| {
            // What stands behind the question mark may be a signature.
            let shown = place.split('?').next().unwrap_or(place);
            format!("could not send the digest to {shown}: {why}")
        });
    }
    write_text(Path::new(place), text).map_err(|error| error.to_string())
}

/// Each with a newline behind it.
fn lines(items: impl Iterator<Item = String>) -> String {
    items.fold(String::new(), |text, line| text + &line + "\n")
}

/// Cloud Build reads what was pushed from a file: a line of JSON for each.
pub(crate) fn builder_output(
    environment: &Environment,
    digest: &Digest,
    destinations: &[Reference],
) -> Result<(), String> {
    let Some(folder) = environment.get("BUILDER_OUTPUT") else { return Ok(()) };
    let pushed =
        |d: &Reference| serde_json::json!({"name": d.to_string(), "digest": digest.to_string()}).to_string();
    let lines = lines(destinations.iter().map(pushed));
    write_text(&Path::new(folder).join("images"), &lines).map_err(|error| format!("BUILDER_OUTPUT: {error}"))
}
