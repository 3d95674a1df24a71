//! `warmer`: flags to a request, events to lines, the report to an exit code.

use std::time::SystemTime;

use kiln_cache::{ImageName, ImageOptions, Images};
use kiln_dockerfile::Source;
use kiln_oci::Platform;
use kiln_oci::media_type::Compression;
use kiln_plan::{BaseFact, Facts, Planning, Question, StepKey, plan};
use kiln_registry::Registry;
use kiln_store::{Durability, Store};
use kiln_warmer::{Platforms, PruneRequest, StepsFrom, StepsRequest, WarmEvent, WarmRequest, warm};

use crate::cli::warmer::WarmerFlags;
use crate::environment::Environment;
use crate::exit::Outcome;
use crate::progress::{Progress, size};
use crate::registry_options::{self, Direction};
use crate::show;

/// Warms the volume.
pub(crate) fn run(environment: &Environment, flags: &WarmerFlags) -> Outcome {
    let progress = Progress::new();
    crate::log::start(&flags.log, &progress);
    let report = request(environment, flags, &progress).and_then(|request| {
        warm(request, &|event| tell(&progress, event)).map_err(|error| error.to_string())
    });
    match report {
        Err(why) => show::failed(&why),
        Ok(report) => {
            for failure in &report.failed {
                show::err(&format!("error: {}: {}\n", failure.image, failure.error));
            }
            for (digest, path, repaired) in report.verify.iter().flat_map(|verify| &verify.bad) {
                let what = if *repaired { "repaired" } else { "removed" };
                tracing::warn!("{} was not {digest}: {what}", path.display());
            }
            if report.is_success() { Outcome::Done } else { Outcome::Failed }
        }
    }
}

fn request(
    environment: &Environment,
    flags: &WarmerFlags,
    progress: &Progress,
) -> Result<WarmRequest, String> {
    let direction = Direction::pull_only(flags.insecure, flags.skip_tls_verify);
    let registry = registry_options::registry(environment, &flags.registry, &direction, progress)?;
    let platforms = platforms(&flags.platform)?;
    let mut images: Vec<ImageName> = Vec::new();
    for text in &flags.image {
        images.push(text.parse().map_err(|error| format!("--image {text}: {error}"))?);
    }
    let mut steps = steps(flags)?;
    for file in &flags.dockerfile {
        let needed = dockerfile_needs(environment, flags, file, &registry, &platforms)?;
        images.extend(needed.images.into_iter().filter(|image| !images.contains(image)).collect::<Vec<_>>());
        if let Some(steps) = &mut steps {
            steps.keys.extend(needed.keys);
            steps.builds.extend(needed.builds);
        }
    }
    if images.is_empty()
        && steps.is_none()
        && !flags.verify
        && flags.prune_unused.is_none()
        && flags.max_size.is_none()
    {
        return Err("nothing to warm: give --image or --dockerfile".to_owned());
    }
    let prune = (flags.prune_unused.is_some() || flags.max_size.is_some())
        .then_some(PruneRequest { unused_for: flags.prune_unused, max_size: flags.max_size });
    let mut request = WarmRequest::new(flags.cache_dir.clone(), images, registry, SystemTime::now());
    request.steps = steps;
    request.platforms = platforms;
    request.force = flags.force;
    request.ttl = flags.cache_ttl;
    request.unpack = flags.unpack;
    request.verify = flags.verify;
    request.prune = prune;
    Ok(request)
}

fn platforms(texts: &[String]) -> Result<Platforms, String> {
    if texts.iter().any(|text| text == "all") {
        return Ok(Platforms::All);
    }
    let parsed = texts.iter().map(|text| text.parse::<Platform>());
    let parsed = parsed.collect::<Result<Vec<_>, _>>().map_err(|error| error.to_string())?;
    Ok(Platforms::These(if parsed.is_empty() { vec![Platform::host()] } else { parsed }))
}

/// `--cache-repo`: whose layers are wanted, too.
fn steps(flags: &WarmerFlags) -> Result<Option<StepsRequest>, String> {
    let Some(text) = &flags.cache_repo else { return Ok(None) };
    if flags.dockerfile.is_empty() {
        return Err("--cache-repo warms the steps of Dockerfiles: give --dockerfile".to_owned());
    }
    let from = match text.strip_prefix("oci:") {
        Some("") => return Err("--cache-repo oci: names no directory: write oci:DIR".to_owned()),
        Some(path) => StepsFrom::Layout(path.into()),
        None => StepsFrom::Repository(text.parse().map_err(|error| format!("--cache-repo: {error}"))?),
    };
    Ok(Some(StepsRequest { from, keys: Vec::new(), builds: Vec::new() }))
}

/// What the builds of a Dockerfile need.
#[derive(Default)]
struct Needs {
    images: Vec<ImageName>,
    /// The keys of its steps with this command line's build args, as far as they read no context.
    keys: Vec<StepKey>,
    /// Its names.
    builds: Vec<StepKey>,
}

/// What the builds of a Dockerfile need: found by planning its build, since bases bring triggers that name more.
fn dockerfile_needs(
    environment: &Environment,
    flags: &WarmerFlags,
    file: &str,
    registry: &Registry,
    platforms: &Platforms,
) -> Result<Needs, String> {
    let runtime = tokio::runtime::Runtime::new().map_err(|error| error.to_string())?;
    let (name, bytes) = if file.starts_with("http://") || file.starts_with("https://") {
        let (mut bytes, name) = (Vec::new(), crate::build_command::without_secrets(file));
        runtime.block_on(registry.fetch_url(file, &mut bytes)).map_err(|why| format!("{name}: {why}"))?;
        (name, bytes)
    } else {
        (file.to_owned(), std::fs::read(file).map_err(|error| format!("could not read {file}: {error}"))?)
    };
    // The name is part of what builds are known by: as the executor has it.
    let file = name.as_str();
    let source = Source::from_bytes(file, &bytes);
    let shown = |errors: &[kiln_dockerfile::Diagnostic]| {
        errors.iter().map(|error| show::diagnostic(&source, error)).collect::<String>()
    };
    let parsed = kiln_dockerfile::parse(&source).map_err(|errors| shown(&errors))?;
    let wanted = match platforms {
        Platforms::These(list) => list.clone(),
        Platforms::All => vec![Platform::host()],
    };
    let Needs { mut images, mut keys, mut builds } = Needs::default();
    for platform in wanted {
        builds.push(kiln_cache::build_name(&parsed, file, &platform));
        let mut request = kiln_plan::Request::new(platform);
        // What executors take that are told nothing else.
        request.shape.compression = format!("{:?}", Compression::Gzip);
        request.build_args = crate::build_request::build_args(environment, &flags.build_arg);
        // Every stage may be built by somebody: all are warmed.
        let stages =
            parsed.instructions.iter().filter(|line| matches!(line.kind, kiln_dockerfile::Kind::From(_)));
        request.targets = (0..stages.count()).map(|number| number.to_string()).collect();
        let mut facts = Facts::default();
        let finder = finder(registry, &runtime)?;
        loop {
            match plan(&parsed, &request, &facts).map_err(|errors| shown(&errors))? {
                Planning::Ready(plan) => {
                    keys.extend(plan.keys());
                    break;
                }
                Planning::Asks(questions) => {
                    for question in questions {
                        let Question::Base(question) = question else { continue };
                        let name: ImageName =
                            question.image.to_string().parse().map_err(|error| format!("{error}"))?;
                        let found = runtime.block_on(finder.1.resolve(&name, &question.platform));
                        let found = found.map_err(|error| error.to_string())?;
                        let fact = BaseFact {
                            manifest: found.manifest.digest().clone(),
                            config: found.config.value().clone(),
                        };
                        facts.base(question.image, &question.platform, fact);
                        if !images.contains(&name) {
                            images.push(name);
                        }
                    }
                }
            }
        }
    }
    Ok(Needs { images, keys, builds })
}

/// What looks up manifests and configs, in a directory of its own.
fn finder(
    registry: &Registry,
    runtime: &tokio::runtime::Runtime,
) -> Result<(tempfile::TempDir, Images), String> {
    let directory = tempfile::tempdir().map_err(|error| error.to_string())?;
    let scratch = Store::create(directory.path(), Durability::Scratch).map_err(|error| error.to_string())?;
    let options = ImageOptions {
        volume: None,
        scratch,
        registry: Some(registry.clone()),
        observer: std::sync::Arc::new(|_| ()),
    };
    Ok((directory, Images::new(options, runtime.handle().clone())))
}

fn tell(progress: &Progress, event: WarmEvent) {
    match event {
        WarmEvent::Resolved { image, digest } => tracing::info!("{image} is {digest}"),
        WarmEvent::Downloading { digest, from, of } => {
            progress.transfer(&digest, false, from, of);
            tracing::info!("downloading {} ({})", digest.short(), size(of));
        }
        WarmEvent::Received { digest, bytes, of } => progress.transfer(&digest, false, bytes, of),
        WarmEvent::Downloaded { digest, of, .. } => progress.transfer(&digest, false, of, of),
        WarmEvent::Unpacked { diff_id } => tracing::info!("unpacked {diff_id}"),
        WarmEvent::NotUnpacked { diff_id, why } => tracing::warn!("{diff_id} is not kept unpacked: {why}"),
        WarmEvent::Unreachable { image, why } => {
            tracing::warn!("{image}: {why}; what the volume has is taken");
        }
        WarmEvent::Fresh { image, platform, digest } => {
            tracing::info!("Image already in cache: {image} for {platform}, {digest}");
        }
        WarmEvent::Warmed { image, platform, digest, received } => {
            tracing::info!("warmed {image} for {platform}: {digest}, {}", size(received));
        }
        WarmEvent::CacheFault { why } => tracing::warn!("{why}"),
        WarmEvent::Steps(steps) => {
            tracing::info!("cached layers: {} warmed, {} already there", steps.warmed, steps.fresh);
        }
        // Each is told once more in the end, with what to do.
        WarmEvent::DownloadFailed { digest } => tracing::debug!("{digest} could not be downloaded"),
        WarmEvent::Failed { image, why } => tracing::error!("{image} is not warmed: {why}"),
        WarmEvent::Verifying { digest } => tracing::debug!("verifying {digest}"),
        other => tell_of_care(other),
    }
}

/// News of verifying and pruning.
fn tell_of_care(event: WarmEvent) {
    match event {
        WarmEvent::Damaged { path, why } => tracing::warn!("{} is damaged: {why}", path.display()),
        WarmEvent::Repaired { digest } => tracing::info!("{digest} was fetched again"),
        WarmEvent::Discarded { digest, why } => tracing::warn!("{digest} was removed from the volume: {why}"),
        WarmEvent::PruneSkipped => {
            tracing::warn!("nothing is pruned: another warmer writes to the volume; the next run will do it");
        }
        WarmEvent::Pruned { images, freed, left, in_use } => {
            if !in_use.is_empty() {
                tracing::info!("{} should go and stays, because it is in use", in_use.join(", "));
            }
            let names = if images.is_empty() { String::new() } else { format!(" ({})", images.join(", ")) };
            tracing::info!("pruned {} of {}{names}", size(freed), size(freed.saturating_add(left)));
        }
        other => tracing::debug!("{other:?}"),
    }
}
