//! The build, from a request to a pushed image.

use std::collections::HashSet;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use kiln_cache::{ImageEvent, ImageOptions, Images, StepCache, StepPlace};
use kiln_dockerfile::{Dockerfile, Ignore, LintFacts, Severity, Source, lint_with};
use kiln_plan::{Base, BuildPlan};
use kiln_registry::Registry;
use kiln_sandbox::Cancel;
use kiln_store::{Durability, ReadOnly, Store};

use crate::attest::{Made, attest, is_closed, is_hermetic, named_contexts};
use crate::course::{Course, Known, announce};
use crate::error::BuildError;
use crate::event::{Event, Observer};
use crate::forecast::{Forecast, forecast};
use crate::house::{self, Ended};
use crate::image::{Image, ImageFormat, Parts, assemble};
use crate::planning::{Found, blocking};
use crate::product::Product;
use crate::request::{BuildRequest, CachePlace, DockerfileAt};
use crate::results::made_at;
use crate::scratch::{self, Scratch};
use crate::session::{Session, fetch_contexts, read_ignore};
use crate::stage::Finished;
use crate::uploads::Uploads;

/// What a build came to.
#[derive(Debug)]
pub enum Built {
    /// The first target's image, or the index of its images.
    Product(Box<Product>),
    /// With `--dryrun`: the plan for each platform.
    Plans(Vec<Forecast>),
}

/// Builds what `request` asks for.
///
/// Everything that it makes in the scratch directory is removed when it returns, in whatever way.
pub async fn build(
    request: BuildRequest,
    registry: Registry,
    on: Observer,
    cancel: Cancel,
) -> Result<Built, BuildError> {
    let began = Instant::now();
    let dry_run = request.dry_run;
    let (session, file) = open(request, registry, on, cancel).await?;
    let result = work(&session, &file, dry_run, began).await;
    if let Ok(Built::Product(product)) = &result
        && let Some(digest) = product.digest()
    {
        session.tell(Event::Finished { digest: digest.clone(), took: began.elapsed() });
    }
    if !matches!(result, Err(BuildError::Cancelled)) {
        if result.is_ok() {
            crate::mount_cache::keep(&session).await;
        }
        crate::results::settle(&session, began.elapsed(), result.is_err()).await;
    }
    session.uploads.stop();
    session.cache_uploads.stop();
    // What failed stages left behind is waited for: they hold the scratch directory.
    let mut waited = Duration::ZERO;
    while Arc::strong_count(&session) > 1 && waited < Duration::from_secs(4) {
        tokio::time::sleep(Duration::from_millis(10)).await;
        waited += Duration::from_millis(10);
    }
    blocking(move || {
        let (place, house) = (session.scratch.parent(), session.request.isolation.house);
        drop(session);
        if house.cleanup {
            scratch::clean(&place);
        }
        Ok(())
    })
    .await?;
    result
}

/// Gets the context, reads the Dockerfile, opens the stores.
async fn open(
    request: BuildRequest,
    registry: Registry,
    on: Observer,
    cancel: Cancel,
) -> Result<(Arc<Session>, Dockerfile), BuildError> {
    let runtime = tokio::runtime::Handle::current();
    blocking(move || {
        if request.isolation.house.pre_cleanup {
            scratch::clean(&request.isolation.scratch);
        }
        let scratch = Scratch::create(&request.isolation.scratch).map_err(BuildError::other)?;
        let access = crate::repository::access(&request, &registry, &on, &cancel, &runtime)?;
        let (context, named) = fetch_contexts(&request, &scratch, &access)?;
        let (source, ignore) = dockerfile(&request.dockerfile, &context.root)?;
        let file = kiln_dockerfile::parse(&source)
            .map_err(|errors| BuildError::Dockerfile { source_text: Box::new(source.clone()), errors })?;
        let blobs = scratch.directory("blobs").map_err(BuildError::other)?;
        let blobs = Store::create(&blobs, Durability::Scratch).map_err(BuildError::other)?;
        let volume = volume(&request, &on);
        let images = images(&request, &registry, &on, volume.clone(), &blobs, &runtime);
        let cache = cache(&request, &registry, &on, volume)?;
        let session = Session {
            registry,
            on,
            cancel,
            source,
            ignore,
            context,
            named,
            access,
            repositories: crate::repository::Repositories::default(),
            images,
            cache,
            blobs,
            origins: Mutex::default(),
            downloads: tokio::sync::Mutex::default(),
            records: Mutex::default(),
            cache_mounts: Mutex::default(),
            unshared: Mutex::default(),
            made: Mutex::default(),
            uploads: Uploads::new(runtime.clone()),
            early: crate::early::Early::default(),
            cache_uploads: Uploads::new(runtime.clone()),
            runtime,
            writing: crate::layers::Gate::default(),
            view: std::sync::OnceLock::new(),
            named_views: Mutex::default(),
            scratch,
            request,
        };
        Ok((Arc::new(session), file))
    })
    .await
}

/// BuildKit's build checks: warnings, or errors where the file asks for that (`# check=error=true`). What the base images
/// of the plan set counts as set.
fn check(session: &Session, file: &Dockerfile, plan: &BuildPlan, images: &Found) -> Result<(), BuildError> {
    let environments = plan.stages.iter().filter_map(|stage| {
        let Base::Image(image) = &stage.base else { return None };
        let found = images.get(&(image.clone(), stage.platform.to_string()))?;
        let entries = found.config.value().config.env.iter();
        let pairs = entries.map(|entry| entry.split_once('=').unwrap_or((entry, "")));
        Some((stage.span.start, pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).collect()))
    });
    let request = &session.request;
    let facts = LintFacts {
        ignore: Some(&session.ignore),
        platform: request.plan.platform.to_string(),
        build_args: request.plan.build_args.clone(),
        environments: environments.collect(),
    };
    let source = &session.source;
    let (errors, warnings): (Vec<_>, Vec<_>) =
        lint_with(file, &facts).into_iter().partition(|finding| finding.severity == Severity::Error);
    for warning in warnings {
        let line = source.line_col(warning.span.start).0;
        session.tell(Event::Warning(format!(
            "{}: {} line {line}: {}",
            warning.rule.name(),
            source.name,
            warning.message
        )));
    }
    if errors.is_empty() {
        return Ok(());
    }
    Err(BuildError::Dockerfile { source_text: Box::new(source.clone()), errors })
}

fn volume(request: &BuildRequest, on: &Observer) -> Option<Store<ReadOnly>> {
    let path = request.cache.volume.as_ref()?;
    match Store::<ReadOnly>::open(path) {
        Ok(store) => Some(store),
        Err(error) => {
            on(Event::Warning(format!("the volume is not used: {error}")));
            None
        }
    }
}

fn images(
    request: &BuildRequest,
    registry: &Registry,
    on: &Observer,
    volume: Option<Store<ReadOnly>>,
    blobs: &Store<kiln_store::ReadWrite>,
    runtime: &tokio::runtime::Handle,
) -> Images {
    let on = Arc::clone(on);
    let options = ImageOptions {
        volume,
        scratch: blobs.clone(),
        registry: (!request.cache.offline).then(|| registry.clone()),
        observer: Arc::new(move |event| on(image_event(event))),
    };
    Images::new(options, runtime.clone())
}

fn image_event(event: ImageEvent) -> Event {
    match event {
        ImageEvent::VolumeIsAsked { reference, digest, why, .. } => Event::Warning(format!(
            "{reference} could not be looked up ({why}); the volume's {digest} is taken"
        )),
        ImageEvent::Damaged { path, why } => Event::Warning(format!(
            "{} in the volume is damaged and not used ({why}); run kiln warmer --verify",
            path.display()
        )),
        ImageEvent::Downloading { digest, from, of } => {
            Event::Transfer { digest, upload: false, done: from, of }
        }
        ImageEvent::Received { digest, bytes, of } => {
            Event::Transfer { digest, upload: false, done: bytes, of }
        }
        ImageEvent::Downloaded { digest, bytes } => {
            Event::Transfer { digest, upload: false, done: bytes, of: bytes }
        }
        ImageEvent::Resolved { reference, digest } => Event::Note(format!("{reference} is {digest}")),
        other => Event::Note(format!("{other:?}")),
    }
}

fn cache(
    request: &BuildRequest,
    registry: &Registry,
    on: &Observer,
    volume: Option<Store<ReadOnly>>,
) -> Result<StepCache, BuildError> {
    let mut places: Vec<StepPlace> = Vec::new();
    if request.cache.enabled {
        places.extend(volume.map(StepPlace::Volume));
        match &request.cache.place {
            Some(CachePlace::Remote(repository)) => places
                .push(StepPlace::Remote { registry: registry.for_cache(), repository: repository.clone() }),
            Some(CachePlace::Layout(path)) => {
                let store = Store::create(path, Durability::Synced).map_err(BuildError::other)?;
                places.push(StepPlace::Layout(store));
            }
            None => {}
        }
    }
    let (on, said) = (Arc::clone(on), Mutex::new(HashSet::new()));
    let warn = move |text: String| {
        let mut said = said.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if said.insert(text.clone()) {
            on(Event::Warning(text));
        }
    };
    Ok(StepCache::new(places, request.cache.ttl.as_secs(), request.now, Arc::new(warn)))
}

/// Reads the Dockerfile and the ignore file that goes with it.
fn dockerfile(at: &DockerfileAt, context: &std::path::Path) -> Result<(Source, Ignore), BuildError> {
    let mut beside = None;
    let source = match at {
        DockerfileAt::Text { name, bytes } => Source::from_bytes(name, bytes),
        DockerfileAt::Path { absolute, given } => {
            let inside = context.join(given.trim_start_matches('/'));
            let read = |path: &std::path::Path| std::fs::read(path).map(|bytes| (path.to_owned(), bytes));
            let (path, bytes) = read(absolute).or_else(|_| read(&inside)).map_err(|error| {
                BuildError::NoDockerfile(format!(
                    "neither {} nor {}: {error}; say where it is with --dockerfile",
                    absolute.display(),
                    inside.display()
                ))
            })?;
            let mut name = path.clone().into_os_string();
            name.push(".dockerignore");
            beside = Some(std::path::PathBuf::from(name));
            Source::from_bytes(given, &bytes)
        }
    };
    let candidates = beside.into_iter().chain(std::iter::once(context.join(".dockerignore")));
    for path in candidates {
        if let Some(ignore) = read_ignore(&path)? {
            return Ok((source, ignore));
        }
    }
    Ok((source, Ignore::default()))
}

async fn work(
    session: &Arc<Session>,
    file: &Dockerfile,
    dry_run: bool,
    began: Instant,
) -> Result<Built, BuildError> {
    if dry_run || session.request.print_plan {
        let plans = forecasts(session, file, dry_run).await?;
        if dry_run {
            return Ok(Built::Plans(plans));
        }
        session.tell(Event::Plans(plans));
    }
    let mut known = Known::default();
    known.begin(session, file);
    loop {
        let built = all_platforms(session, file, &mut known, began).await;
        let Err(BuildError::Lost { digest }) = built else { return built };
        session.tell(Event::Note(format!("without the cached layer {digest} the build is planned again")));
        known.lose(session, &digest);
    }
}

async fn all_platforms(
    session: &Arc<Session>,
    file: &Dockerfile,
    known: &mut Known,
    began: Instant,
) -> Result<Built, BuildError> {
    let mut images = Vec::new();
    for number in 0..session.request.platforms.len() {
        images.push(one_platform(session, file, number, known).await?);
    }
    let made = Made {
        used: &known.images,
        contexts: &known.contexts,
        hermetic: !known.networked,
        closed: !known.open,
        took: began.elapsed(),
    };
    let attestations = attest(session, &images, &made).await?;
    deliver(session, Product::new(images, attestations)).await
}

/// The plans for all platforms, as they are now. If nothing else will, they tell what the planner warns of.
async fn forecasts(
    session: &Arc<Session>,
    file: &Dockerfile,
    warn: bool,
) -> Result<Vec<Forecast>, BuildError> {
    let (mut known, mut forecasts) = (Known::default(), Vec::new());
    for (number, platform) in session.request.platforms.iter().enumerate() {
        let mut request = session.request.plan.clone();
        request.platform.clone_from(platform);
        let plan = known.plan(session, file, &request).await?;
        for warning in plan.warnings.iter().filter(|_| warn && number == 0) {
            session.tell(Event::Warning(warning.clone()));
        }
        forecasts.push(forecast(session, file, plan, &known.images, platform).await);
    }
    Ok(forecasts)
}

/// Builds for the platform with this number.
async fn one_platform(
    session: &Arc<Session>,
    file: &Dockerfile,
    number: usize,
    known: &mut Known,
) -> Result<Image, BuildError> {
    let mut request = session.request.plan.clone();
    request.platform.clone_from(&session.request.platforms[number]);
    let plan = known.plan(session, file, &request).await?;
    let first = known.is_first(&request.platform);
    if number == 0 && first {
        check(session, file, &plan, &known.images)?;
    }
    for warning in plan.warnings.iter().filter(|_| number == 0 && first) {
        session.tell(Event::Warning(warning.clone()));
    }
    crate::foreign::check(session, &plan)?;
    known.may_push().await?;
    known.networked |= !is_hermetic(&plan);
    known.open |= !is_closed(&plan, session);
    known.contexts.extend(named_contexts(&plan));
    if session.request.cache.enabled && first {
        announce(session, &plan);
    }
    let mut course =
        Course { session, file, request: &request, number, known, plan: Arc::new(plan), trees: None };
    let finished = course.run().await;
    let ended = match &finished {
        Ok(_) => Ended::Built,
        Err(BuildError::Cancelled) => Ended::Cancelled,
        Err(_) => Ended::Failed,
    };
    let closed = match &course.trees {
        Some(trees) => house::close(session, trees, ended).await,
        None => Ok(()),
    };
    let finished = finished?;
    closed?;
    let (plan, images) = (&course.plan, &course.known.images);
    let Some(target) = plan.targets.first() else {
        return Err(BuildError::other("there is no stage to build"));
    };
    let image = image(session, plan, *target, &finished, images)?;
    if let Some(record) = crate::results::record(session, plan, &finished) {
        let name = crate::results::build_name(session, file, &request.platform);
        session.records.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push((name, record));
    }
    // A stage for the machine that builds runs once for all platforms.
    course.known.take_made(session);
    Ok(image)
}

fn image(
    session: &Session,
    plan: &BuildPlan,
    target: usize,
    finished: &Finished,
    images: &Found,
) -> Result<Image, BuildError> {
    let stage = &plan.stages[target];
    let layers = finished.get(&target).cloned().unwrap_or_default();
    let request = &session.request;
    let mut base = target;
    let base_format = loop {
        match &plan.stages[base].base {
            Base::Stage(earlier) => base = *earlier,
            Base::Scratch => break ImageFormat::Oci,
            Base::Image(name) => {
                let found = images.get(&(name.clone(), plan.stages[base].platform.to_string()));
                break found.map_or(ImageFormat::Oci, |image| {
                    ImageFormat::of_manifest(image.manifest.value().media_type())
                });
            }
        }
    };
    let zstd = layers.iter().any(|layer| layer.descriptor.media_type == kiln_oci::media_type::OCI_LAYER_ZSTD);
    // Attestations stand beside an image in an OCI index, so they make it an OCI image.
    let usual = if zstd || request.output.attest.any() { ImageFormat::Oci } else { base_format };
    let format = request.output.format.unwrap_or(usual);
    if zstd && format == ImageFormat::Docker {
        return Err(BuildError::other(
            "the image has layers compressed by zstd, which docker's format does not know: use --image-format=oci, \
             or leave --image-format and --tar-path out",
        ));
    }
    let created = rfc3339(request.layers.mtime_limit.unwrap_or(made_at(session, plan, target)));
    Ok(assemble(&Parts {
        config: &stage.config,
        own_history: own_history(plan, target),
        layers: &layers,
        created: &created,
        annotations: &request.output.annotations,
        format,
        single_layer: request.layers.single && !stage.steps.is_empty(),
        origins: &origins(plan, target),
    }))
}

/// What made the layers of this build, as BuildKit tells it of those whose place in the history is taken.
fn origins(plan: &BuildPlan, target: usize) -> Vec<String> {
    let stage = &plan.stages[target];
    let mut origins = match stage.base {
        Base::Stage(base) => origins(plan, base),
        Base::Image(_) | Base::Scratch => Vec::new(),
    };
    let is_context = |step: &kiln_plan::Step| step.text.starts_with("local source for ");
    let of = stage.steps.len() + usize::from(matches!(stage.base, Base::Image(_)));
    // The base counts as a step, but has no number where it is a named context.
    let named = matches!(stage.base, Base::Image(kiln_plan::ImageName::Layout(_)));
    let first =
        of - stage.steps.len() + 1 - usize::from(named || stage.steps.first().is_some_and(is_context));
    let name = match &stage.name {
        Some(name) => format!("{name} "),
        None if plan.stages.len() == 1 => String::new(),
        None => format!("stage-{} ", stage.number),
    };
    let width = of.to_string().len();
    origins.extend(stage.steps.iter().enumerate().map(|(place, step)| match &step.op {
        kiln_plan::Op::Run(run) => format!("mount / from exec {}", run.argv.join(" ")),
        _ if is_context(step) => step.text.clone(),
        kiln_plan::Op::Copy(_) | kiln_plan::Op::MakeDirectory(_) => {
            format!("[{name}{:>width$}/{of}] {}", first + place, step.text)
        }
    }));
    origins
}

/// Where the entries of this build begin, earlier stages that it begins with included.
fn own_history(plan: &BuildPlan, target: usize) -> usize {
    let stage = &plan.stages[target];
    match stage.base {
        Base::Stage(base) => own_history(plan, base),
        _ => stage.own_history,
    }
}

async fn deliver(session: &Arc<Session>, product: Product) -> Result<Built, BuildError> {
    session.check_cancelled()?;
    let (copy, shared) = (product.clone(), Arc::clone(session));
    blocking(move || crate::outputs::write_files(&shared, &copy)).await?;
    if session.request.output.push {
        crate::outputs::push(session, &product).await?;
    }
    Ok(Built::Product(Box::new(product)))
}

/// A time in seconds since 1970 as RFC 3339 writes it.
pub fn rfc3339(seconds: i64) -> String {
    let time = time::OffsetDateTime::from_unix_timestamp(seconds).unwrap_or(time::OffsetDateTime::UNIX_EPOCH);
    time.format(&time::format_description::well_known::Rfc3339).unwrap_or_default()
}
