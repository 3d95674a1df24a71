//! The remote registry: credentials, mirrors, TLS, retries, streaming pull and push. It knows nothing of volumes,
//! builds or file trees, prints nothing, and reads no environment.
//!
//! Start with [`Registry`] (what can be asked), [`RegistryOptions`] (what it is made from) and [`Credentials`] (where
//! logins come from). [`Event`] is the news while it works, [`RegistryError`] what can go wrong.
//!
//! oci-client supplies the protocol's vocabulary: references, operations, tokens, error envelopes, manifest types. Its
//! client can't be used: it builds a second HTTP client with the platform's verifier, which fails where no CA file
//! exists, and it knows no refresh tokens, client certificates, retries or mount scopes. The transport here is ours.

mod answer;
mod bearer;
mod blob;
mod challenge;
mod client;
mod credentials;
mod error;
mod event;
mod fetch;
mod growing;
mod manifest;
mod options;
mod parts;
mod pull;
mod push;
mod referrers;
mod registry;
mod retry;
mod route;
mod scheme;
mod tls;
mod token;
mod transport;
mod upload;
mod web;

pub use blob::{Ahead, BlobSink, BlobSource, FileSource};
pub use credentials::{
    BuiltinHelper, Clock, ConfigFile, CredentialError, CredentialOptions, Credentials, Environment, Login,
    LoginSecret, config_files, forget_login, login_file, save_login,
};
pub use error::{Attempt, RegistryError};
pub use event::Event;
pub use growing::GrowingBlob;
pub use manifest::{RawManifest, Resolved};
pub use options::{Insecure, Mirrors, Observer, Proxies, Ranges, RegistryOptions, RetryPolicy, TlsOptions};
pub use push::Pushed;
pub use registry::Registry;
