//! Where logins come from: docker's config files and helper programs, podman's auth files, and built-in sources for
//! the clouds. Sources are asked in order; the first that knows the registry wins. A source that fails is reported and
//! passed over, so that a broken helper doesn't stop the pull of a public image.

mod acr;
mod artifact_registry;
mod docker_config;
mod ecr;
mod helper;
mod locations;
mod login;
mod pull_secrets;
#[cfg(test)]
mod tests;
mod variables;

use std::collections::HashMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use kiln_oci::Redacted;
use tokio::sync::{Mutex, OnceCell};
use tokio::time::Instant;

pub use docker_config::{ConfigFile, CredentialError};
pub(crate) use kiln_cloud::Exchange;
pub use kiln_cloud::{Clock, Environment};
pub use locations::{config_files, login_file};
pub use login::{forget_login, save_login};

/// A login for one registry, and where it came from.
#[derive(Clone, Debug)]
pub struct Login {
    /// What is shown to the registry.
    pub secret: LoginSecret,
    /// Where it came from, for messages: `/kaniko/.docker/config.json`, `docker-credential-pass`, `google metadata server`.
    pub source: String,
    /// When it has to be asked for again.
    pub(crate) expires: Option<Instant>,
}

/// The kinds of login that registries take.
#[derive(Clone, Debug)]
pub enum LoginSecret {
    /// A user's name and password.
    Basic {
        /// The name.
        user: String,
        /// The password, or a token in its place.
        password: Redacted<String>,
    },
    /// An OAuth2 refresh token (`identitytoken`), exchanged for access tokens.
    IdentityToken(Redacted<String>),
    /// A token that is sent as it is (`registrytoken`).
    RegistryToken(Redacted<String>),
}

impl Login {
    /// A login by name and password.
    pub fn basic(user: impl Into<String>, password: impl Into<String>, source: impl Into<String>) -> Self {
        let secret = LoginSecret::Basic { user: user.into(), password: Redacted::new(password.into()) };
        Self { secret, source: source.into(), expires: None }
    }

    pub(crate) fn valid_for(mut self, time: Duration) -> Self {
        self.expires = Some(Instant::now() + time);
        self
    }
}

/// The sources that need no program and no file (`--credential-helpers`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum BuiltinHelper {
    /// `KANIKO_<HOST>_USER` and `KANIKO_<HOST>_PASSWORD`.
    Env,
    /// Google's Container and Artifact Registry.
    Google,
    /// Amazon's Elastic Container Registry.
    Ecr,
    /// Azure's Container Registry.
    Acr,
    /// GitLab's `CI_REGISTRY` variables.
    Gitlab,
}

impl BuiltinHelper {
    /// All of them, in the order in which they are asked.
    pub const ALL: [Self; 5] = [Self::Env, Self::Google, Self::Ecr, Self::Acr, Self::Gitlab];

    /// Its name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Env => "env",
            Self::Google => "google",
            Self::Ecr => "ecr",
            Self::Acr => "acr",
            Self::Gitlab => "gitlab",
        }
    }

    /// The source that a config file means by the helper program `name`, if no such program is there.
    fn for_program(name: &str) -> Option<Self> {
        match name {
            "ecr-login" => Some(Self::Ecr),
            "gcr" | "gcloud" => Some(Self::Google),
            "acr-env" | "acr" => Some(Self::Acr),
            _ => None,
        }
    }
}

impl std::str::FromStr for BuiltinHelper {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL.into_iter().find(|helper| helper.name() == text).ok_or_else(|| {
            format!("{text:?} is no credential helper; there are env, google, ecr, acr and gitlab")
        })
    }
}

/// What [`Credentials`] are made from.
#[derive(Clone)]
pub struct CredentialOptions {
    /// Config files, the most important first (see [`config_files`]).
    pub files: Vec<ConfigFile>,
    /// The built-in sources to ask after the files.
    pub helpers: Vec<BuiltinHelper>,
    /// A snapshot of the environment: `PATH` (where helper programs are looked for; they get the whole snapshot),
    /// `HOME`, `KANIKO_*`, `CI_REGISTRY*`, `AWS_*`, `GOOGLE_*`, `AZURE_*`, `KUBERNETES_*`.
    pub environment: Environment,
    /// The folder of the pod's service account (`/var/run/secrets/kubernetes.io/serviceaccount`), if the pod's
    /// `imagePullSecrets` may be used.
    pub service_account: Option<PathBuf>,
    /// Tells the time that is signed into requests to clouds.
    pub clock: Clock,
}

impl Default for CredentialOptions {
    fn default() -> Self {
        Self {
            files: Vec::new(),
            helpers: BuiltinHelper::ALL.to_vec(),
            environment: Environment::default(),
            service_account: None,
            clock: Arc::new(SystemTime::now),
        }
    }
}

impl fmt::Debug for CredentialOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CredentialOptions")
            .field("files", &self.files)
            .field("helpers", &self.helpers)
            .field("environment", &self.environment)
            .field("service_account", &self.service_account)
            .finish_non_exhaustive()
    }
}

/// How long a source that failed, or knew nothing, is left in peace.
const QUIET: Duration = Duration::from_secs(60);

/// All sources of logins. Cheap to clone; shows no secret.
#[derive(Clone, Debug)]
pub struct Credentials {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    options: CredentialOptions,
    /// What clouds and programs said, by source and host, until it has to be asked again.
    fetched: Mutex<HashMap<(String, String), (Instant, Answer)>>,
    pull_secrets: OnceCell<Result<Vec<ConfigFile>, String>>,
}

/// What a source said: a login, none, or why it failed.
type Answer = Result<Option<Login>, String>;

/// What the sources said of a repository.
#[derive(Clone, Debug, Default)]
pub(crate) struct Found {
    /// The login, if any source has one.
    pub(crate) login: Option<Login>,
    /// The sources that failed, each with the reason.
    pub(crate) failures: Vec<(String, String)>,
}

impl Found {
    /// Takes in what `source` said. Gives whether the search is over.
    fn settle(&mut self, source: &str, result: Answer) -> bool {
        match result {
            Ok(login) => self.login = login,
            Err(why) => self.failures.push((source.to_owned(), why)),
        }
        self.login.is_some()
    }
}

impl Credentials {
    /// No logins at all.
    pub fn anonymous() -> Self {
        Self::new(CredentialOptions { helpers: Vec::new(), ..CredentialOptions::default() })
    }

    /// Logins from the sources in `options`.
    pub fn new(options: CredentialOptions) -> Self {
        let shared = Shared { options, fetched: Mutex::default(), pull_secrets: OnceCell::new() };
        Self { shared: Arc::new(shared) }
    }

    /// One login for one registry, from nowhere else.
    pub fn fixed(host: &str, user: &str, password: &str) -> Self {
        let file = ConfigFile::single(host, user, password, "the command line");
        Self::new(CredentialOptions {
            files: vec![file],
            helpers: Vec::new(),
            ..CredentialOptions::default()
        })
    }

    pub(crate) fn clock(&self) -> Clock {
        Arc::clone(&self.shared.options.clock)
    }

    /// Asks the sources, in order, for a login to `path` at `host`.
    pub(crate) async fn find(&self, host: &str, path: &str, exchange: &Exchange) -> Found {
        let options = &self.shared.options;
        let mut found = Found::default();
        for file in &options.files {
            if let Some(program) = file.helper_for(host) {
                let result = self.ask_program(program, file.key_for_helper(host), host, exchange).await;
                if found.settle(&format!("docker-credential-{program}"), result) {
                    return found;
                }
            }
            if found.settle(file.origin(), Ok(file.entry(host, path))) {
                return found;
            }
        }
        for helper in &options.helpers {
            if found.settle(helper.name(), self.ask_builtin(*helper, host, exchange).await) {
                return found;
            }
        }
        if let Some(folder) = &options.service_account {
            let load = || pull_secrets::load(folder, &options.environment, exchange);
            match self.shared.pull_secrets.get_or_init(load).await {
                Ok(files) => found.login = files.iter().find_map(|file| file.entry(host, path)),
                Err(why) => found.failures.push(("imagePullSecrets".to_owned(), why.clone())),
            }
        }
        found
    }

    async fn ask_program(&self, program: &str, key: String, host: &str, exchange: &Exchange) -> Answer {
        let environment = &self.shared.options.environment;
        if let Some(path) = helper::find(program, environment) {
            let source = format!("docker-credential-{program}");
            return self
                .once(&source, host, helper::get(&path, program, &key, environment, helper::PATIENCE))
                .await;
        }
        match BuiltinHelper::for_program(program) {
            Some(builtin) => self.ask_builtin(builtin, host, exchange).await,
            None => Err(format!("the program docker-credential-{program} is not in PATH")),
        }
    }

    async fn ask_builtin(&self, helper: BuiltinHelper, host: &str, exchange: &Exchange) -> Answer {
        let environment = &self.shared.options.environment;
        let name = helper.name();
        match helper {
            BuiltinHelper::Env => Ok(variables::kaniko(environment, host)),
            BuiltinHelper::Gitlab => Ok(variables::gitlab(environment, host)),
            BuiltinHelper::Google if artifact_registry::serves(host) => {
                self.once(name, "every host", artifact_registry::login(environment, exchange)).await
            }
            BuiltinHelper::Ecr if ecr::parse(host).is_some() => {
                self.once(name, host, ecr::login(host, environment, exchange)).await
            }
            BuiltinHelper::Acr if acr::serves(host) => {
                self.once(name, host, acr::login(host, environment, exchange)).await
            }
            BuiltinHelper::Google | BuiltinHelper::Ecr | BuiltinHelper::Acr => Ok(None),
        }
    }

    /// Fetches a login, unless the answer from before is still good. One at a time: a dozen layers ask at once.
    async fn once(&self, source: &str, host: &str, fetch: impl Future<Output = Answer>) -> Answer {
        let key = (source.to_owned(), host.to_owned());
        let mut fetched = self.shared.fetched.lock().await;
        if let Some((_, answer)) = fetched.get(&key).filter(|(end, _)| Instant::now() < *end) {
            return answer.clone();
        }
        let answer = fetch.await;
        let end = answer.as_ref().ok().and_then(|login| login.as_ref()?.expires);
        fetched.insert(key, (end.unwrap_or_else(|| Instant::now() + QUIET), answer.clone()));
        answer
    }

    /// Forgets the logins that were fetched for `host`, because one of them was refused.
    pub(crate) async fn forget(&self, host: &str) {
        self.shared.fetched.lock().await.retain(|(_, owner), _| owner != host && owner != "every host");
    }
}
