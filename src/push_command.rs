//! `executor login` and `executor push`.

use std::io::BufRead as _;
use std::sync::Arc;

use bytes::Bytes;
use kiln_oci::{Platform, Redacted, Reference};
use kiln_registry::{Registry, save_login};
use kiln_store::{Choice, LocalImage, read_archive, read_layout};

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

/// Pushes an image made before.
pub(crate) fn push(environment: &Environment, flags: &PushFlags) -> Outcome {
    let progress = Progress::new();
    crate::log::start(&flags.log, &progress);
    let work = || -> Result<(), String> {
        if !flags.index.is_empty() {
            return Err("--index is not supported yet: push the images one by one".to_owned());
        }
        let destinations = flags.destination.iter().map(|text| text.parse::<Reference>());
        let destinations = destinations.collect::<Result<Vec<_>, _>>().map_err(|error| error.to_string())?;
        let path = flags.path.as_ref().ok_or("say which archive or layout is to be pushed")?;
        let choice = Choice::of(Platform::host());
        let image = if path.is_dir() { read_layout(path, &choice) } else { read_archive(path, &choice) };
        let image = image.map_err(|error| error.to_string())?;
        let registry =
            registry_options::registry(environment, &flags.registry, &(&flags.push).into(), &progress)?;
        let runtime = tokio::runtime::Runtime::new().map_err(|error| error.to_string())?;
        runtime.block_on(push_image(&registry, &image, &destinations))?;
        crate::build_command::digest_files(&flags.digest_files, image.manifest.digest(), &destinations)
    };
    match work() {
        Ok(()) => Outcome::Done,
        Err(why) => show::failed(&why),
    }
}

struct Layer(kiln_store::LocalLayer);

impl kiln_registry::BlobSource for Layer {
    fn open(&self, offset: u64) -> std::io::Result<Box<dyn tokio::io::AsyncRead + Send + Unpin>> {
        use std::io::{Read as _, Write as _};
        // A layer in an archive is copied out: uploads are resumed from the middle.
        let mut file = tempfile::tempfile()?;
        std::io::copy(&mut self.0.open().map_err(std::io::Error::other)?.by_ref(), &mut file)?;
        file.flush()?;
        std::io::Seek::seek(&mut file, std::io::SeekFrom::Start(offset))?;
        Ok(Box::new(tokio::fs::File::from_std(file)))
    }
}

async fn push_image(
    registry: &Registry,
    image: &LocalImage,
    destinations: &[Reference],
) -> Result<(), String> {
    for destination in destinations {
        let repository = &destination.repository;
        for layer in &image.layers {
            let source = Arc::new(Layer(layer.clone()));
            registry
                .push_blob(repository, &layer.descriptor, source.as_ref())
                .await
                .map_err(|error| error.to_string())?;
        }
        let config = Bytes::copy_from_slice(image.config.raw());
        let manifest = &image.manifest;
        let pushed = async {
            registry.push_blob(repository, &manifest.value().config, &config).await?;
            registry.push_manifest(destination, manifest.value().media_type(), manifest.raw()).await
        };
        let digest = pushed.await.map_err(|error| error.to_string())?;
        tracing::info!("Pushed {repository}@{digest}");
    }
    Ok(())
}
