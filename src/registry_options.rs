//! From flags and environment to the registry's options.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use kiln_registry::{
    BuiltinHelper, CredentialOptions, Credentials, Event, Insecure, Mirrors, Proxies, Ranges, Registry,
    RegistryOptions, RetryPolicy, TlsOptions, config_files,
};

use crate::cli::registry::{PushOnlyFlags, RegistryFlags};
use crate::environment::Environment;
use crate::progress::Progress;

/// What differs between executor and warmer.
pub(crate) struct Direction {
    insecure: bool,
    skip_tls_verify: bool,
    push_retry: u32,
    chunk_size: Option<u64>,
    only_pulls: bool,
    kaniko_dir: Option<PathBuf>,
}

impl From<&PushOnlyFlags> for Direction {
    fn from(flags: &PushOnlyFlags) -> Self {
        Self {
            insecure: flags.insecure,
            skip_tls_verify: flags.skip_tls_verify,
            push_retry: flags.push_retry,
            chunk_size: flags.push_chunk_size,
            only_pulls: false,
            kaniko_dir: None,
        }
    }
}

impl Direction {
    /// The same with `--kaniko-dir`, which may hold logins.
    pub(crate) fn with_kaniko_dir(self, kaniko_dir: Option<PathBuf>) -> Self {
        Self { kaniko_dir, ..self }
    }

    /// The warmer only pulls.
    pub(crate) fn pull_only(insecure: bool, skip_tls_verify: bool) -> Self {
        Self {
            insecure,
            skip_tls_verify,
            push_retry: 0,
            chunk_size: None,
            only_pulls: true,
            kaniko_dir: None,
        }
    }
}

/// The registry that the flags describe.
pub(crate) fn registry(
    environment: &Environment,
    flags: &RegistryFlags,
    direction: &Direction,
    progress: &Progress,
) -> Result<Registry, String> {
    let progress = progress.clone();
    let options = RegistryOptions {
        insecure: Insecure {
            push: direction.insecure,
            pull: flags.insecure_pull || (direction.only_pulls && direction.insecure),
            registries: flags.insecure_registry.clone(),
        },
        tls: tls(environment, flags, direction)?,
        mirrors: mirrors(environment, flags)?,
        retries: RetryPolicy {
            pull: flags.image_download_retry,
            push: direction.push_retry,
            ..RetryPolicy::default()
        },
        credentials: credentials(environment, flags, direction.kaniko_dir.as_deref())?,
        user_agent: user_agent(environment),
        proxies: Proxies {
            http: either(environment, "HTTP_PROXY", "http_proxy"),
            https: either(environment, "HTTPS_PROXY", "https_proxy"),
            no_proxy: either(environment, "NO_PROXY", "no_proxy"),
        },
        max_concurrency: flags.max_concurrency.max(1),
        ranges: Ranges::default(),
        http2: environment.switch("FF_KANIKO_DISABLE_HTTP2") != Some(true),
        chunk_size: direction.chunk_size,
        observer: Some(Arc::new(move |event| tell(&progress, event))),
    };
    Registry::new(options).map_err(|error| error.to_string())
}

fn either(environment: &Environment, upper: &str, lower: &str) -> Option<String> {
    environment.get(lower).or_else(|| environment.get(upper)).map(str::to_owned)
}

fn user_agent(environment: &Environment) -> String {
    let own = concat!("kiln/", env!("CARGO_PKG_VERSION"));
    environment.get("UPSTREAM_CLIENT_TYPE").map_or_else(|| own.to_owned(), |client| format!("{own},{client}"))
}

fn tls(
    environment: &Environment,
    flags: &RegistryFlags,
    direction: &Direction,
) -> Result<TlsOptions, String> {
    let mut client_certificates = Vec::new();
    for (host, files) in &flags.registry_client_cert {
        let (certificate, key) = files
            .split_once(',')
            .ok_or_else(|| format!("--registry-client-cert {host}={files}: write HOST=CERTIFICATE,KEY"))?;
        client_certificates.push((host.clone(), certificate.into(), key.into()));
    }
    let certificates = flags.registry_certificate.iter();
    let kaniko_dirs = kaniko_dirs(environment, direction.kaniko_dir.as_deref());
    let mut ca_dirs: Vec<PathBuf> = kaniko_dirs.iter().map(|folder| folder.join("ssl/certs")).collect();
    ca_dirs.extend(
        environment.get("SSL_CERT_DIR").into_iter().flat_map(|dirs| dirs.split(':').map(PathBuf::from)),
    );
    Ok(TlsOptions {
        ca_files: environment.get("SSL_CERT_FILE").map(PathBuf::from).into_iter().collect(),
        ca_dirs,
        registry_certificates: certificates.map(|(host, file)| (host.clone(), file.into())).collect(),
        client_certificates,
        skip_verify: direction.skip_tls_verify,
        skip_verify_pull: flags.skip_tls_verify_pull,
        skip_verify_registries: flags.skip_tls_verify_registry.clone(),
    })
}

fn mirrors(environment: &Environment, flags: &RegistryFlags) -> Result<Mirrors, String> {
    let mut docker_hub = flags.registry_mirror.clone();
    if docker_hub.is_empty() {
        let listed = environment.get("KANIKO_REGISTRY_MIRROR").unwrap_or_default();
        docker_hub.extend(
            listed.split([',', ';']).map(str::trim).filter(|host| !host.is_empty()).map(str::to_owned),
        );
    }
    let mut maps = Vec::new();
    let from_environment = environment.get("KANIKO_REGISTRY_MAP").map(str::to_owned);
    let texts = if flags.registry_map.is_empty() {
        from_environment.into_iter().collect()
    } else {
        flags.registry_map.clone()
    };
    for text in texts {
        let parsed = Mirrors::parse_maps(&text);
        maps.extend(parsed.map_err(|part| format!("--registry-map: {part:?} is not of the form ORIG=NEW"))?);
    }
    Ok(Mirrors { docker_hub, maps, no_fallback: flags.skip_default_registry_fallback })
}

fn credentials(
    environment: &Environment,
    flags: &RegistryFlags,
    kaniko_dir: Option<&Path>,
) -> Result<Credentials, String> {
    let snapshot = snapshot(environment);
    let (files, errors) = config_files(&snapshot, &kaniko_dirs(environment, kaniko_dir));
    for error in errors {
        tracing::warn!("{error}");
    }
    let helpers = match &flags.credential_helpers {
        None => BuiltinHelper::ALL.to_vec(),
        Some(names) => names
            .iter()
            .flat_map(|names| names.split(','))
            .filter(|name| !name.trim().is_empty())
            .map(|name| name.trim().parse())
            .collect::<Result<_, _>>()?,
    };
    let service_account = PathBuf::from("/var/run/secrets/kubernetes.io/serviceaccount");
    Ok(Credentials::new(CredentialOptions {
        files,
        helpers,
        environment: snapshot,
        service_account: service_account.is_dir().then_some(service_account),
        ..CredentialOptions::default()
    }))
}

/// Where `.docker` and `ssl/certs` may be: below the kaniko directory, wherever that is, and below the usual one.
fn kaniko_dirs(environment: &Environment, given: Option<&Path>) -> [PathBuf; 2] {
    let own = given.or_else(|| environment.get("KANIKO_DIR").map(Path::new));
    [own.unwrap_or(&environment.executable_directory).to_owned(), "/kaniko".into()]
}

fn snapshot(environment: &Environment) -> kiln_registry::Environment {
    environment.variables.clone().into_iter().collect()
}

/// The config.json that `executor login` writes.
pub(crate) fn login_file(environment: &Environment) -> PathBuf {
    kiln_registry::login_file(&snapshot(environment))
}

fn tell(progress: &Progress, event: Event) {
    match event {
        Event::Received { digest, bytes, of } => progress.transfer(&digest, false, bytes, of),
        Event::Sent { digest, bytes, of } => progress.transfer(&digest, true, bytes, of),
        Event::Present { digest, repository } => tracing::debug!("{repository} has {digest} already"),
        Event::Mounted { digest, from } => tracing::debug!("mounted {digest} from {from}"),
        Event::Retrying { what, why, attempt, of, after } => {
            tracing::warn!("{what}: {why}; try {attempt} of {of} in {:.1} s", after.as_secs_f64());
        }
        Event::FallingBack { from, to, why } => tracing::warn!("{from}: {why}; asking {to}"),
        Event::PlainHttp { host } => tracing::debug!("{host} is spoken to without TLS"),
        Event::NotListed { subject, why } => {
            tracing::warn!("what is said about {subject} is in the registry's index, but not listed: {why}");
        }
        Event::CredentialsFailed { source, why } => tracing::warn!("no login from {source}: {why}"),
        other => tracing::debug!("{other:?}"),
    }
}
