//! `executor`: a build, from flags to an exit code.

use std::sync::Arc;

use kiln_executor::{Built, Event, Forecast, StepNews, build};
use kiln_sandbox::Cancel;

use crate::cli::executor::ExecutorFlags;
use crate::environment::Environment;
use crate::exit::Outcome;
use crate::progress::{Progress, size};
use crate::registry_options::{self, Direction};
use crate::{build_request, show};

/// Builds.
pub(crate) fn run(environment: &Environment, flags: &ExecutorFlags) -> Outcome {
    let progress = Progress::new();
    crate::log::start(&flags.log, &progress);
    not_needed(environment, flags);
    match attempt(environment, flags, &progress) {
        Ok(outcome) => outcome,
        Err(why) => show::failed(&why),
    }
}

fn attempt(environment: &Environment, flags: &ExecutorFlags, progress: &Progress) -> Result<Outcome, String> {
    let mut request = build_request::request(environment, flags)?;
    let (destinations, pushes) = (request.output.destinations.clone(), request.output.push);
    let direction = Direction::from(&flags.push).with_kaniko_dir(flags.files.kaniko_dir.clone());
    let registry = registry_options::registry(environment, &flags.registry, &direction, progress)?;
    let runtime = tokio::runtime::Runtime::new().map_err(|error| error.to_string())?;
    if flags.dockerfile.starts_with("http://") || flags.dockerfile.starts_with("https://") {
        let mut bytes = Vec::new();
        let fetched = runtime.block_on(registry.fetch_url(&flags.dockerfile, &mut bytes));
        let name = without_secrets(&flags.dockerfile);
        fetched.map_err(|why| format!("could not get the Dockerfile {name}: {why}"))?;
        request.dockerfile = kiln_executor::DockerfileAt::Text { name, bytes };
    }
    let digests = registry.clone();
    let cancel = Cancel::new().map_err(|error| error.to_string())?;
    let bars = progress.clone();
    let on = Arc::new(move |event| tell(&bars, event));
    let result = runtime.block_on(async {
        listen(&cancel);
        build(request, registry, on, cancel.clone()).await
    });
    match result {
        Ok(Built::Plans(plans)) => {
            print(&plans, &flags.cache.dryrun);
            Ok(Outcome::Done)
        }
        Ok(Built::Product(product)) => {
            if let Some(digest) = product.digest() {
                let files = &flags.digest_files;
                crate::digest_files::write(files, digest, &destinations, &digests, &runtime)?;
                if pushes {
                    crate::digest_files::builder_output(environment, digest, &destinations)?;
                }
            }
            Ok(Outcome::Done)
        }
        Err(error) => Ok(show::build_error(&error)),
    }
}

/// A URL without a login, and without what stands behind a question mark, which may be a signature.
pub(crate) fn without_secrets(url: &str) -> String {
    let place = url.split(['?', '#']).next().unwrap_or(url);
    let Some((scheme, rest)) = place.split_once("://") else { return place.to_owned() };
    let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
    format!("{scheme}://{}/{path}", host.rsplit('@').next().unwrap_or(host))
}

/// Several platforms: a tree or a line of JSON for each, in their order.
fn print(plans: &[Forecast], form: &str) {
    for plan in plans {
        show::out(&if form == "json" { crate::plan_text::json(plan) } else { crate::plan_text::tree(plan) });
    }
}

/// SIGTERM (as Kubernetes sends it) and SIGINT stop the build.
fn listen(cancel: &Cancel) {
    use tokio::signal::unix::{SignalKind, signal};
    for kind in [SignalKind::terminate(), SignalKind::interrupt()] {
        let cancel = cancel.clone();
        if let Ok(mut stream) = signal(kind) {
            tokio::spawn(async move {
                if stream.recv().await.is_some() {
                    tracing::warn!("told to stop: the build is cancelled");
                    cancel.cancel();
                }
            });
        }
    }
}

/// Says of each flag that Kiln doesn't need why it doesn't.
fn not_needed(environment: &Environment, flags: &ExecutorFlags) {
    let ignored = &flags.ignored;
    for (given, name, why) in [
        (ignored.compressed_caching, "--compressed-caching", "memory is bounded either way"),
        (ignored.use_new_run, "--use-new-run", "changes are found without a full scan anyway"),
        (ignored.skip_unused_stages, "--skip-unused-stages", "unused stages are never built"),
        (ignored.force_build_metadata, "--force-build-metadata", "metadata is always complete"),
    ] {
        if given.is_some() {
            tracing::warn!("{name} is not needed: {why}");
        }
    }
    let named = flags.build_context.iter().map(|(_, text)| text);
    let mut contexts = std::iter::once(&flags.context).chain(named);
    if !flags.git.is_empty() && !contexts.any(|text| kiln_context::git::is_git(text)) {
        tracing::warn!("--git is for git contexts, and none of the contexts is one");
    }
    for name in environment.variables.keys().filter(|name| name.starts_with("FF_KANIKO_")) {
        if name != "FF_KANIKO_DISABLE_HTTP2" {
            tracing::debug!("{name} is not needed");
        }
    }
}

fn of_context(progress: &Progress, event: kiln_context::Event) {
    use kiln_context::Event;
    match event {
        Event::Begins { source } => tracing::info!("getting the context {source}"),
        Event::Received { source, bytes, .. } => progress.source(&source, bytes),
        Event::Resuming { source, at, why, after } => {
            tracing::warn!("{source}: {why}; going on at {} in {:.1} s", size(at), after.as_secs_f64());
        }
        Event::Restarting { source, why, after } => {
            tracing::warn!(
                "{source}: {why}; a git transfer can't be resumed, so it begins again in {:.1} s",
                after.as_secs_f64()
            );
        }
        Event::Done { source, bytes } => {
            progress.source_done(&source);
            tracing::info!("got the context {source} ({})", size(bytes));
        }
        Event::Commit { source, commit } => tracing::info!("{source} is commit {commit}"),
        Event::Warning(text) => tracing::warn!("{text}"),
    }
}

fn tell(progress: &Progress, event: Event) {
    match event {
        Event::Isolation { rung, reason } => tracing::info!("isolation: {rung}: {reason}"),
        Event::Base { image, digest, local: true } => {
            tracing::info!("Found {digest} in local cache ({image})");
        }
        Event::Base { image, digest, .. } => tracing::info!("base image {image} is {digest}"),
        Event::Plans(plans) => print(&plans, "tree"),
        Event::Stage { name } => tracing::info!("building stage {name}"),
        Event::Step { stage, number, of, text, what } => match what {
            StepNews::Cached { origin } => {
                tracing::info!("Using caching version of cmd: {text}");
                tracing::debug!("stage {stage} [{number}/{of}]: found in {origin}");
            }
            StepNews::Missed => tracing::info!("No cached layer found for cmd {text}"),
            StepNews::Runs => tracing::info!("[{stage} {number}/{of}] {text}"),
            StepNews::Done { took, size: bytes } => {
                tracing::info!(
                    "[{stage} {number}/{of}] done in {:.1} s, layer of {}",
                    took.as_secs_f64(),
                    size(bytes)
                );
            }
        },
        Event::Output { error: false, line } => {
            use std::io::Write as _;
            let mut stdout = std::io::stdout().lock();
            // Nobody is left to be told when standard output is closed.
            _ = stdout.write_all(&line);
            _ = stdout.flush();
        }
        Event::Output { line, .. } => {
            use std::io::Write as _;
            _ = progress.stderr().write_all(&line);
        }
        Event::Transfer { digest, upload, done, of } => progress.transfer(&digest, upload, done, of),
        Event::Context(event) => of_context(progress, event),
        Event::Warning(text) => tracing::warn!("{text}"),
        Event::Note(text) => tracing::debug!("{text}"),
        Event::Pushed { reference, digest } => tracing::info!("Pushed {}@{digest}", reference.repository),
        Event::Finished { digest, took } => {
            tracing::info!("built {digest} in {:.1} s", took.as_secs_f64());
        }
    }
}
