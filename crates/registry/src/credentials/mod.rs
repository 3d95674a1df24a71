//! Where logins come from: docker's config files and helper programs, podman's auth files, and built-in sources for
//! the clouds. Sources are asked in order; the first that knows the registry wins. A source that fails is reported and
//! passed over, so that a broken helper doesn't stop the pull of a public image.

mod docker_config;
mod environment;
mod helper;
mod login;
mod variables;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use kiln_oci::Redacted;
use tokio::time::Instant;

pub use docker_config::{ConfigFile, CredentialError};
pub use environment::Environment;
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
#[derive(Clone, Debug)]
pub struct CredentialOptions {
    /// Config files, the most important first: the contents of `DOCKER_AUTH_CONFIG`, docker's config.json, podman's
    /// auth files.
    pub files: Vec<ConfigFile>,
    /// The built-in sources to ask after the files.
    pub helpers: Vec<BuiltinHelper>,
    /// A snapshot of the environment: `PATH` (where helper programs are looked for; they get the whole snapshot),
    /// `KANIKO_*`, `CI_REGISTRY*`, `AWS_*`, `GOOGLE_*`, `AZURE_*`.
    pub environment: Environment,
    /// The folder of the pod's service account (`/var/run/secrets/kubernetes.io/serviceaccount`), if the pod's
    /// `imagePullSecrets` may be used.
    pub service_account: Option<PathBuf>,
}

impl Default for CredentialOptions {
    fn default() -> Self {
        Self {
            files: Vec::new(),
            helpers: BuiltinHelper::ALL.to_vec(),
            environment: Environment::default(),
            service_account: None,
        }
    }
}

/// All sources of logins. Cheap to clone; shows no secret.
#[derive(Clone, Debug)]
pub struct Credentials {
    options: Arc<CredentialOptions>,
}

/// What the sources said of a repository.
#[derive(Clone, Debug, Default)]
pub(crate) struct Found {
    /// The login, if any source has one.
    pub(crate) login: Option<Login>,
    /// The sources that failed, each with the reason.
    pub(crate) failures: Vec<(String, String)>,
}

impl Credentials {
    /// No logins at all.
    pub fn anonymous() -> Self {
        Self::new(CredentialOptions { helpers: Vec::new(), ..CredentialOptions::default() })
    }

    /// Logins from the sources in `options`.
    pub fn new(options: CredentialOptions) -> Self {
        Self { options: Arc::new(options) }
    }

    /// One login for one registry, from nowhere else. For tests and `executor login --check`.
    pub fn fixed(host: &str, user: &str, password: &str) -> Self {
        let file = ConfigFile::single(host, user, password, "the command line");
        Self::new(CredentialOptions {
            files: vec![file],
            helpers: Vec::new(),
            ..CredentialOptions::default()
        })
    }

    /// Asks the sources, in order, for a login to `path` at `host`.
    pub(crate) async fn find(&self, host: &str, path: &str) -> Found {
        let mut found = Found::default();
        let mut settle = |source: &str, result: Result<Option<Login>, String>| match result {
            Ok(Some(login)) => {
                found.login = Some(login);
                true
            }
            Ok(None) => false,
            Err(why) => {
                found.failures.push((source.to_owned(), why));
                false
            }
        };
        for file in &self.options.files {
            if let Some(program) = file.helper_for(host) {
                let result = self.ask_program(program, file.key_for_helper(host)).await;
                if settle(&format!("docker-credential-{program}"), result) {
                    return found;
                }
            }
            if settle(file.origin(), Ok(file.entry(host, path))) {
                return found;
            }
        }
        for helper in &self.options.helpers {
            if settle(helper.name(), self.ask_builtin(*helper, host).await) {
                return found;
            }
        }
        found
    }

    async fn ask_program(&self, program: &str, key: String) -> Result<Option<Login>, String> {
        match helper::find(program, &self.options.environment) {
            Some(path) => helper::get(&path, program, &key, &self.options.environment).await,
            None => match BuiltinHelper::for_program(program) {
                Some(builtin) => self.ask_builtin(builtin, &key).await,
                None => Err(format!("the program docker-credential-{program} is not in PATH")),
            },
        }
    }

    async fn ask_builtin(&self, helper: BuiltinHelper, host: &str) -> Result<Option<Login>, String> {
        let environment = &self.options.environment;
        match helper {
            BuiltinHelper::Env => Ok(variables::kaniko(environment, host)),
            BuiltinHelper::Gitlab => Ok(variables::gitlab(environment, host)),
            BuiltinHelper::Google | BuiltinHelper::Ecr | BuiltinHelper::Acr => Ok(None),
        }
    }
}
