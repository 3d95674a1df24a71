//! What the flags of a build mean: words, environment and clock become a `BuildRequest`.

use std::collections::BTreeMap;
use std::os::unix::fs::FileTypeExt as _;
use std::path::{Path, PathBuf};

use kiln_context::git::GitOptions;
use kiln_context::{ContextRequest, Place};
use kiln_executor::{
    Attest, BuildRequest, Cache, CachePlace, DockerfileAt, House, IMAGE_MARK, ImageFormat, Isolation,
    LAYER_CACHE, Layers, MOUNT_CACHE, Output, ProvenanceFlag, RunMountFlag, Secret,
};
use kiln_oci::media_type::Compression;
use kiln_oci::{Platform, Redacted, Reference};
use kiln_plan::{ImageName, LayerShape, NamedContext, Request};
use kiln_rootfs::SnapshotMode;

use crate::cli::executor::ExecutorFlags;
use crate::environment::Environment;

/// Works out the request. Fails with a sentence that says which flag is wrong and what to write.
pub(crate) fn request(environment: &Environment, flags: &ExecutorFlags) -> Result<BuildRequest, String> {
    let now = crate::clock::now();
    let layers = layers(environment, flags)?;
    let kaniko_dir = kaniko_dir(environment, flags);
    let scratch = scratch(environment, flags.files.scratch_dir.clone(), &kaniko_dir);
    let output = output(environment, flags)?;
    let (named_contexts, images) = named_contexts(environment, flags)?;
    let no_push = !output.push;
    Ok(BuildRequest {
        dockerfile: DockerfileAt::Path {
            absolute: environment.directory.join(&flags.dockerfile),
            given: flags.dockerfile.clone(),
        },
        context: context(environment, flags)?,
        named_contexts,
        environment: snapshot(environment),
        plan: plan(environment, flags, &layers, images)?,
        platforms: platforms(flags)?,
        cache: cache(flags, &output, &scratch, no_push)?,
        output,
        isolation: isolation(environment, flags, kaniko_dir, scratch)?,
        layers,
        secrets: secrets(environment, flags)?,
        ssh: ssh(environment, flags)?,
        dry_run: flags.cache.dryrun != "false",
        print_plan: environment.switch("KANIKO_PRINT_PLAN") == Some(true),
        now,
    })
}

/// `K=V`, or `K` with its value from the environment.
pub(crate) fn build_args(environment: &Environment, words: &[String]) -> BTreeMap<String, String> {
    let mut args = BTreeMap::new();
    for word in words {
        match word.split_once('=') {
            Some((name, value)) => _ = args.insert(name.to_owned(), value.to_owned()),
            None => {
                if let Some(value) = environment.variables.get(word) {
                    args.insert(word.clone(), value.clone());
                }
            }
        }
    }
    args
}

/// The platforms to build for: at least one, without doubles.
fn platforms(flags: &ExecutorFlags) -> Result<Vec<Platform>, String> {
    let mut platforms = Vec::new();
    for text in &flags.platform {
        let platform: Platform = text.parse().map_err(|error| format!("--platform: {error}"))?;
        if !platforms.contains(&platform) {
            platforms.push(platform);
        }
    }
    if platforms.is_empty() {
        platforms.push(Platform::host());
    }
    if platforms.len() > 1 && flags.output.tar_path.is_some() {
        return Err(
            "--tar-path writes an archive that docker loads, which holds one platform under a tag: use \
                    --oci-layout-path, or build each platform on its own"
                .to_owned(),
        );
    }
    Ok(platforms)
}

fn plan(
    environment: &Environment,
    flags: &ExecutorFlags,
    layers: &Layers,
    images: BTreeMap<String, NamedContext>,
) -> Result<Request, String> {
    let platforms = platforms(flags)?;
    let mut request = Request::new(platforms[0].clone());
    request.build_platform = Platform::host();
    request.platform_given = !flags.platform.is_empty();
    request.build_args = build_args(environment, &flags.build_arg);
    request.targets.clone_from(&flags.target);
    request.labels = flags.label.iter().cloned().collect();
    request.named_contexts = images;
    // With several platforms, keys also tell which steps they have in common.
    let printed = flags.cache.dryrun != "false" || environment.switch("KANIKO_PRINT_PLAN") == Some(true);
    request.content_keys = flags.cache.cache || printed || platforms.len() > 1;
    let level = layers.level.map_or_else(String::new, |level| level.to_string());
    let mut ignored = layers.ignored.clone();
    ignored.sort();
    request.shape = LayerShape {
        mtime_limit: layers.mtime_limit,
        compression: format!("{:?}{level}", layers.compression),
        ignored,
        snapshot_mode: if layers.mode == SnapshotMode::Full {
            String::new()
        } else {
            flags.files.snapshot_mode.clone()
        },
    };
    Ok(request)
}

fn layers(environment: &Environment, flags: &ExecutorFlags) -> Result<Layers, String> {
    let epoch = match environment.get("SOURCE_DATE_EPOCH") {
        Some(text) => {
            Some(text.parse().map_err(|_| format!("SOURCE_DATE_EPOCH={text}: it is a number of seconds"))?)
        }
        None => None,
    };
    let compression = match flags.output.compression.as_deref() {
        Some("zstd") => Compression::Zstd,
        _ => Compression::Gzip,
    };
    if compression == Compression::Zstd && flags.output.image_format.as_deref() == Some("docker") {
        return Err("--compression=zstd needs OCI media types: leave --image-format=docker out".to_owned());
    }
    let (name, most) = if compression == Compression::Zstd { ("zstd", 22) } else { ("gzip", 9) };
    if let Some(level) = flags.output.compression_level
        && !(-1..=most).contains(&level)
    {
        return Err(format!("--compression-level={level}: {name} has levels from 1 to {most}"));
    }
    if let Some(level) = flags.output.compression_level
        && level == -1
    {
        // Go's name for the usual level.
        return Ok(Layers { level: None, ..layers_without_level(flags, epoch, compression) });
    }
    let layers = layers_without_level(flags, epoch, compression);
    Ok(Layers { level: flags.output.compression_level, ..layers })
}

fn layers_without_level(flags: &ExecutorFlags, epoch: Option<i64>, compression: Compression) -> Layers {
    let mut ignored = flags.files.ignore_path.clone();
    if flags.files.ignore_var_run == Some(true) {
        ignored.push("/var/run".to_owned());
    }
    Layers {
        compression,
        level: None,
        mtime_limit: epoch.or(flags.output.reproducible.then_some(0)),
        single: flags.output.single_snapshot,
        mode: match flags.files.snapshot_mode.as_str() {
            "redo" => SnapshotMode::Redo,
            "time" => SnapshotMode::Time,
            _ => SnapshotMode::Full,
        },
        ignored,
    }
}

fn output(environment: &Environment, flags: &ExecutorFlags) -> Result<Output, String> {
    let no_push = environment.switch("KANIKO_NO_PUSH").unwrap_or(flags.output.no_push);
    let destinations = flags.destination.iter().map(|text| text.parse::<Reference>());
    let destinations =
        destinations.collect::<Result<Vec<_>, _>>().map_err(|error| format!("--destination: {error}"))?;
    if destinations.is_empty() && !no_push && flags.cache.dryrun == "false" {
        return Err("say where the image goes with --destination, or give --no-push".to_owned());
    }
    let attest = Attest { sbom: flags.output.sbom, provenance: provenance(&flags.output.provenance)? };
    let docker = flags.output.image_format.as_deref() == Some("docker") || flags.output.tar_path.is_some();
    if attest.any() && docker {
        return Err("--sbom and --provenance stand beside the image in an OCI index, which neither \
                    --image-format=docker nor the archive of --tar-path has: leave one of them out"
            .to_owned());
    }
    let zstd = flags.output.compression.as_deref() == Some("zstd");
    if flags.output.tar_path.is_some() && (zstd || flags.output.image_format.as_deref() == Some("oci")) {
        return Err(
            "--tar-path writes docker's format, which has neither OCI media types nor zstd layers: use \
                    --oci-layout-path, or leave the other flag out"
                .to_owned(),
        );
    }
    let named = flags.digest_files.image_name_with_digest_file.is_some()
        || flags.digest_files.image_name_tag_with_digest_file.is_some();
    if named && destinations.is_empty() {
        return Err("the image-name digest files name destinations: give --destination".to_owned());
    }
    Ok(Output {
        destinations,
        push: !no_push,
        archive: flags.output.tar_path.as_ref().map(|path| environment.directory.join(path)),
        layout: flags.output.oci_layout_path.as_ref().map(|path| environment.directory.join(path)),
        format: match flags.output.image_format.as_deref() {
            Some("docker") => Some(ImageFormat::Docker),
            Some(_) => Some(ImageFormat::Oci),
            None => flags.output.tar_path.is_some().then_some(ImageFormat::Docker),
        },
        annotations: flags.annotation.iter().cloned().collect(),
        check_push: !flags.push.skip_push_permission_check,
        ignore_immutable: flags.push.push_ignore_immutable_tag_errors,
        attest,
    })
}

/// `true`, `false`, or fields: `mode=min`, `mode=max`, `builder-id=URL`.
fn provenance(text: &str) -> Result<Option<ProvenanceFlag>, String> {
    if let Ok(given) = crate::cli::values::boolean(text) {
        return Ok(given.then(ProvenanceFlag::default));
    }
    let mut flag = ProvenanceFlag::default();
    for field in text.split(',') {
        match field.split_once('=') {
            Some(("mode", mode @ ("min" | "max"))) => flag.detailed = mode == "max",
            Some(("builder-id", id)) => id.clone_into(&mut flag.builder),
            _ => {
                return Err(format!(
                    "--provenance: {field:?} is neither mode=min, mode=max nor builder-id=URL"
                ));
            }
        }
    }
    Ok(Some(flag))
}

fn cache(flags: &ExecutorFlags, output: &Output, scratch: &Path, no_push: bool) -> Result<Cache, String> {
    let given = &flags.cache;
    let place = match &given.cache_repo {
        Some(text) => match text.strip_prefix("oci:") {
            Some(path) => Some(CachePlace::Layout(PathBuf::from(path))),
            None => Some(CachePlace::Remote(text.parse().map_err(|error| format!("--cache-repo: {error}"))?)),
        },
        None => match output.destinations.first() {
            Some(destination) if !no_push => {
                let repository = destination.repository.join("cache");
                Some(CachePlace::Remote(repository.map_err(|error| error.to_string())?))
            }
            _ => Some(CachePlace::Layout(scratch.join(LAYER_CACHE))),
        },
    };
    let mounts = given.cache_mount_dir.clone().unwrap_or_else(|| scratch.join(MOUNT_CACHE));
    let remote_mounts = given.cache_mounts == "remote";
    if remote_mounts && !given.cache {
        return Err("--cache-mounts=remote keeps them in the layer cache: give --cache".to_owned());
    }
    Ok(Cache {
        enabled: given.cache,
        place,
        run_layers: given.cache_run_layers,
        copy_layers: given.cache_copy_layers,
        ttl: given.cache_ttl,
        push: !given.no_push_cache,
        volume: given.cache_dir.is_dir().then(|| given.cache_dir.clone()),
        offline: given.offline,
        mounts,
        remote_mounts,
    })
}

fn context(environment: &Environment, flags: &ExecutorFlags) -> Result<ContextRequest, String> {
    let sub_path = flags.context_sub_path.clone().filter(|path| !path.is_empty());
    let text = match &flags.bucket {
        Some(bucket) if bucket.contains("://") => bucket.clone(),
        Some(bucket) => format!("gs://{bucket}"),
        None => flags.context.clone(),
    };
    let place = place(environment, flags, &text).map_err(|why| format!("--context: {why}"))?;
    Ok(ContextRequest { place, sub_path })
}

fn place(environment: &Environment, flags: &ExecutorFlags, text: &str) -> Result<Place, String> {
    let git = GitOptions::read(flags.git.iter().map(|(key, value)| (key.as_str(), value.as_str())))?;
    Place::parse(text, &environment.directory, &git, &snapshot(environment))
}

/// The environment, for looking up credentials.
fn snapshot(environment: &Environment) -> kiln_registry::Environment {
    environment.variables.clone().into_iter().collect()
}

type Named = (BTreeMap<String, ContextRequest>, BTreeMap<String, NamedContext>);

fn named_contexts(environment: &Environment, flags: &ExecutorFlags) -> Result<Named, String> {
    let (mut files, mut plan) = (BTreeMap::new(), BTreeMap::new());
    for (name, text) in &flags.build_context {
        if let Some(reference) = text.strip_prefix("docker-image://") {
            let mut parsed: Reference =
                reference.parse().map_err(|error| format!("--build-context {name}: {error}"))?;
            parsed.tag = parsed.tag_or_latest();
            plan.insert(name.clone(), NamedContext::Image(ImageName::Reference(parsed.to_string())));
        } else if let Some(path) = text.strip_prefix("oci-layout://") {
            plan.insert(name.clone(), NamedContext::Image(ImageName::Layout(path.to_owned())));
        } else {
            let place =
                place(environment, flags, text).map_err(|why| format!("--build-context {name}: {why}"))?;
            files.insert(name.clone(), ContextRequest { place, sub_path: None });
            plan.insert(name.clone(), NamedContext::Files);
        }
    }
    Ok((files, plan))
}

fn kaniko_dir(environment: &Environment, flags: &ExecutorFlags) -> PathBuf {
    let given = flags.files.kaniko_dir.clone();
    given
        .or_else(|| environment.get("KANIKO_DIR").map(PathBuf::from))
        .unwrap_or_else(|| environment.executable_directory.clone())
}

/// The first of the usual places that is a writable mount other than overlayfs with room in it.
pub(crate) fn scratch(environment: &Environment, given: Option<PathBuf>, kaniko_dir: &Path) -> PathBuf {
    if let Some(path) = given.or_else(|| environment.get("KILN_SCRATCH_DIR").map(PathBuf::from)) {
        return environment.directory.join(path);
    }
    let usual = [kaniko_dir.join("scratch"), PathBuf::from("/scratch"), PathBuf::from("/tmp")];
    let found = usual.iter().find(|path| crate::container::is_good_scratch(path)).cloned();
    found.unwrap_or_else(|| kaniko_dir.join("scratch"))
}

fn house(environment: &Environment, flags: &ExecutorFlags) -> Result<House, String> {
    let files = &flags.files;
    let or = |name: &str, flag: bool| environment.switch(name).unwrap_or(flag);
    let house = House {
        cleanup: or("KANIKO_CLEANUP", files.cleanup),
        pre_cleanup: or("KANIKO_PRE_CLEANUP", files.pre_cleanup),
        preserve: or("KANIKO_PRESERVE_CONTEXT", files.preserve_context),
        materialize: files.materialize,
    };
    if house.materialize && !matches!(files.isolation.as_str(), "auto" | "root") {
        return Err(format!(
            "--materialize leaves the image's files in /, which only rung root does: leave --isolation={} out",
            files.isolation
        ));
    }
    if house.materialize && (house.cleanup || house.preserve) {
        return Err(
            "--materialize leaves the image's files in /: leave --cleanup and --preserve-context out, which \
                    remove them again"
                .to_owned(),
        );
    }
    Ok(house)
}

fn isolation(
    environment: &Environment,
    flags: &ExecutorFlags,
    kaniko_dir: PathBuf,
    scratch: PathBuf,
) -> Result<Isolation, String> {
    let files = &flags.files;
    let house = house(environment, flags)?;
    let rung = match files.isolation.as_str() {
        "auto" if files.materialize => Some(kiln_sandbox::Rung::Root),
        "auto" => None,
        name => Some(name.parse().map_err(|error: kiln_sandbox::UnknownRung| error.to_string())?),
    };
    let own_image = Path::new("/etc/kiln-image").exists() || kaniko_dir.join(IMAGE_MARK).exists();
    Ok(Isolation {
        rung,
        scratch,
        own_image,
        container: own_image || crate::container::is_container(),
        gvisor: crate::container::is_gvisor(),
        force: files.force,
        own: own_paths(environment, flags, own_image, &kaniko_dir),
        extract_retry: files.image_fs_extract_retry,
        kaniko_dir,
        run_mounts: files.run_mount.iter().map(|text| run_mount(text)).collect::<Result<_, _>>()?,
        devices: files.device.clone(),
        house,
    })
}

/// What of Kiln's directory rung root must leave alone: all of it, unless Kiln was just put into a directory of some
/// image, such as /usr/local/bin, where the images that are built have files of their own.
fn own_paths(
    environment: &Environment,
    flags: &ExecutorFlags,
    own_image: bool,
    kaniko_dir: &Path,
) -> Vec<PathBuf> {
    let named = flags.files.kaniko_dir.is_some() || environment.get("KANIKO_DIR").is_some();
    if named || own_image || kaniko_dir.file_name().is_some_and(|name| name == "kaniko") {
        return vec![kaniko_dir.to_owned()];
    }
    let mut own: Vec<PathBuf> = [".docker", "ssl", IMAGE_MARK].map(|name| kaniko_dir.join(name)).into();
    own.push(environment.executable.clone());
    own
}

fn run_mount(text: &str) -> Result<RunMountFlag, String> {
    let parts: Vec<&str> = text.split(':').collect();
    let (source, target, readonly) = match parts.as_slice() {
        [source, target] => (source, target, false),
        [source, target, "ro"] => (source, target, true),
        _ => return Err(format!("--run-mount {text}: write SOURCE:TARGET or SOURCE:TARGET:ro")),
    };
    if !source.starts_with('/') || !target.starts_with('/') {
        return Err(format!("--run-mount {text}: both paths begin with a slash"));
    }
    Ok(RunMountFlag { source: PathBuf::from(source), target: PathBuf::from(target), readonly })
}

fn secrets(environment: &Environment, flags: &ExecutorFlags) -> Result<BTreeMap<String, Secret>, String> {
    let mut secrets = BTreeMap::new();
    for text in &flags.secret {
        let fail = |why: &str| format!("--secret: {why}; write id=ID,src=FILE or id=ID,env=VARIABLE");
        let (mut id, mut file, mut variable, mut kind) = (None, None, None, None);
        for field in text.split(',') {
            match field.split_once('=') {
                Some(("id", value)) => id = Some(value.to_owned()),
                Some(("src" | "source", value)) => file = Some(value.to_owned()),
                Some(("env", value)) => variable = Some(value.to_owned()),
                Some(("type", value @ ("file" | "env"))) => kind = Some(value),
                _ => {
                    return Err(fail(&format!(
                        "{:?} is not understood",
                        field.split('=').next().unwrap_or_default()
                    )));
                }
            }
        }
        let id = id.ok_or_else(|| fail("it has no id"))?;
        if kind == Some("env") {
            variable = variable.or(file.take());
        }
        let value = secret_value(environment, &id, variable, file)?;
        if secrets.insert(id.clone(), Secret { value: Redacted::new(value) }).is_some() {
            return Err(format!("--secret: the id {id:?} is given twice"));
        }
    }
    Ok(secrets)
}

fn secret_value(
    environment: &Environment,
    id: &str,
    variable: Option<String>,
    file: Option<String>,
) -> Result<Vec<u8>, String> {
    if let Some(variable) = variable {
        let value = environment.variables.get(&variable);
        return value
            .map(|value| value.clone().into_bytes())
            .ok_or_else(|| format!("--secret {id}: the variable {variable} is not set"));
    }
    if file.is_none()
        && let Some(value) = environment.variables.get(id)
    {
        return Ok(value.clone().into_bytes());
    }
    let path = environment.directory.join(file.unwrap_or_else(|| id.to_owned()));
    std::fs::read(&path).map_err(|error| format!("--secret {id}: could not read {}: {error}", path.display()))
}

fn ssh(environment: &Environment, flags: &ExecutorFlags) -> Result<BTreeMap<String, PathBuf>, String> {
    let mut agents = BTreeMap::new();
    for text in &flags.ssh {
        let (id, path) = if let Some((id, path)) = text.split_once('=') {
            (id, PathBuf::from(path))
        } else {
            let socket = environment.get("SSH_AUTH_SOCK");
            let socket = socket
                .ok_or_else(|| format!("--ssh {text}: SSH_AUTH_SOCK is not set; write {text}=SOCKET"))?;
            (text.as_str(), PathBuf::from(socket))
        };
        if !std::fs::metadata(&path).is_ok_and(|meta| meta.file_type().is_socket()) {
            return Err(format!(
                "--ssh {id}: {} is not the socket of an agent; keys are not supported",
                path.display()
            ));
        }
        agents.insert(id.to_owned(), path);
    }
    Ok(agents)
}
