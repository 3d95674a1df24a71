//! `executor login` and `executor push`.

use std::io::{BufRead as _, Seek as _, SeekFrom};

use kiln_executor::join;
use kiln_oci::{Platform, Redacted, Reference};
use kiln_registry::{Registry, save_login};
use kiln_store::{Content, Stored, read_stored};

use crate::cli::{LoginFlags, PushFlags};
use crate::environment::Environment;
use crate::exit::Outcome;
use crate::progress::Progress;
use crate::{registry_options, show};

/// Writes a login to config.json.
pub(crate) fn login(environment: &Environment, flags: &LoginFlags) -> Outcome {
    let password = match &flags.password {
        Some(password) => password.clone(),
        None if flags.password_stdin => {
            let mut line = String::new();
            if let Err(error) = std::io::stdin().lock().read_line(&mut line) {
                return show::failed(&format!("could not read the password: {error}"));
            }
            line.trim_end_matches(['\r', '\n']).to_owned()
        }
        None => return show::failed("give the password with --password-stdin or --password"),
    };
    let path = registry_options::login_file(environment);
    match save_login(&path, &flags.registry, &flags.username, &Redacted::new(password)) {
        Ok(()) => {
            show::err(&format!("logged in via {}\n", path.display()));
            Outcome::Done
        }
        Err(error) => show::failed(&error.to_string()),
    }
}

/// Pushes what was made before, or joins images in an index.
pub(crate) fn push(environment: &Environment, flags: &PushFlags) -> Outcome {
    let progress = Progress::new();
    crate::log::start(&flags.log, &progress);
    match attempt(environment, flags, &progress) {
        Ok(()) => Outcome::Done,
        Err(why) => show::failed(&why),
    }
}

fn attempt(environment: &Environment, flags: &PushFlags, progress: &Progress) -> Result<(), String> {
    let destinations = references("--destination", &flags.destination)?;
    let registry = registry_options::registry(environment, &flags.registry, &(&flags.push).into(), progress)?;
    let runtime = tokio::runtime::Runtime::new().map_err(|error| error.to_string())?;
    let check = async {
        for destination in &destinations {
            registry.check_push(&destination.repository).await?;
        }
        Ok::<_, kiln_registry::RegistryError>(())
    };
    if !flags.push.skip_push_permission_check {
        runtime.block_on(check).map_err(|error| error.to_string())?;
    }
    let digest = if flags.index.is_empty() {
        let path = flags.path.as_ref().ok_or("say which archive or layout is to be pushed")?;
        let names: Vec<String> = destinations.iter().map(ToString::to_string).collect();
        let stored = read_stored(path, &names, &Platform::host()).map_err(|error| error.to_string())?;
        runtime.block_on(send(&registry, &stored, &destinations, flags))?;
        stored.descriptor.digest
    } else {
        if let Some(path) = &flags.path {
            return Err(format!("give either an archive or --index, not both: {}", path.display()));
        }
        let images = references("--index", &flags.index)?;
        let scratch = crate::build_request::scratch(environment, None, &environment.executable_directory);
        let joined = runtime.block_on(join(&registry, &images, &destinations, &scratch));
        let joined = joined.map_err(|error| error.to_string())?;
        let platforms: Vec<String> = joined.platforms.iter().map(ToString::to_string).collect();
        for destination in &destinations {
            let repository = &destination.repository;
            tracing::info!("Pushed {repository}@{} for {}", joined.digest, platforms.join(", "));
        }
        joined.digest
    };
    crate::digest_files::write(&flags.digest_files, &digest, &destinations, &registry, &runtime)?;
    crate::digest_files::builder_output(environment, &digest, &destinations)
}

fn references(flag: &str, texts: &[String]) -> Result<Vec<Reference>, String> {
    texts.iter().map(|text| text.parse().map_err(|error| format!("{flag}: {error}"))).collect()
}

/// Puts what was stored at every destination: what a document names before the document, the name last.
async fn send(
    registry: &Registry,
    stored: &Stored,
    destinations: &[Reference],
    flags: &PushFlags,
) -> Result<(), String> {
    for destination in destinations {
        let repository = &destination.repository;
        let mut listed = Vec::new();
        flatten(stored, &mut listed);
        for document in &listed {
            for blob in &document.blobs {
                let pushed =
                    registry.push_blob(repository, &blob.descriptor, &Blob(blob.content.clone())).await;
                pushed.map_err(|error| error.to_string())?;
            }
            if !std::ptr::eq(*document, stored) {
                let digest = Some(document.descriptor.digest.clone());
                let name = Reference { repository: repository.clone(), tag: None, digest };
                let media_type = &document.descriptor.media_type;
                let pushed = registry.push_manifest(&name, media_type, &document.raw).await;
                pushed.map_err(|error| error.to_string())?;
            }
        }
        match registry.push_manifest(destination, &stored.descriptor.media_type, &stored.raw).await {
            Ok(digest) => tracing::info!("Pushed {repository}@{digest}"),
            Err(error) if error.is_immutable_tag() && flags.push.push_ignore_immutable_tag_errors => {
                tracing::warn!("{destination} is there already and may not change");
            }
            Err(error) => return Err(error.to_string()),
        }
    }
    Ok(())
}

/// All documents, each after those that it lists.
fn flatten<'a>(stored: &'a Stored, into: &mut Vec<&'a Stored>) {
    for child in &stored.children {
        flatten(child, into);
    }
    into.push(stored);
}

struct Blob(Content);

impl kiln_registry::BlobSource for Blob {
    fn open(&self, from: u64) -> std::io::Result<Box<dyn tokio::io::AsyncRead + Send + Unpin>> {
        match &self.0 {
            Content::Bytes(bytes) => bytes::Bytes::copy_from_slice(bytes).open(from),
            Content::Section { path, offset, len } => {
                use tokio::io::AsyncReadExt as _;
                let mut file = std::fs::File::open(path)?;
                file.seek(SeekFrom::Start(offset + from))?;
                Ok(Box::new(tokio::fs::File::from_std(file).take(len.saturating_sub(from))))
            }
        }
    }
}
