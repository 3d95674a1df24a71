//! What the tests of this crate share.

use std::sync::Arc;
use std::time::SystemTime;

use crate::Access;

/// A way to the outside without credentials, and the runtime that it needs.
pub(crate) fn access() -> (tokio::runtime::Runtime, Access) {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let tls = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth();
    let client = reqwest::Client::builder().tls_backend_preconfigured(tls).build().unwrap();
    let access = Access {
        special: Arc::default(),
        unverified: client.clone(),
        client,
        runtime: runtime.handle().clone(),
        environment: kiln_cloud::Environment::default(),
        clock: Arc::new(SystemTime::now),
        on: Arc::new(|_| ()),
        digests: false,
        cancelled: Arc::new(|| false),
    };
    (runtime, access)
}
