use std::path::PathBuf;
use std::sync::Arc;

use kiln_registry::{Credentials, Registry, RegistryError, RegistryOptions, TlsOptions};
use kiln_testkit::{Auth, TestAuthority, TestRegistry};

use super::{options, reference, repository, small_image};

/// An authority with its certificates in files.
struct Files {
    authority: Arc<TestAuthority>,
    folder: tempfile::TempDir,
}

impl Files {
    fn new() -> Self {
        let authority = Arc::new(TestAuthority::new());
        let folder = tempfile::tempdir().unwrap();
        for (name, text) in [
            ("ca.pem", &authority.ca),
            ("client.pem", &authority.client),
            ("client.key", &authority.client_key),
        ] {
            std::fs::write(folder.path().join(name), text).unwrap();
        }
        Self { authority, folder }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }
}

fn with(tls: TlsOptions) -> Registry {
    Registry::new(RegistryOptions { tls, ..options() }).unwrap()
}

#[tokio::test]
async fn an_unknown_authority_is_an_error_that_says_what_to_give() {
    let files = Files::new();
    let server = TestRegistry::builder().tls(&files.authority).start().await;
    let error = with(TlsOptions::default()).head(&reference(&server, "app:1")).await.unwrap_err();
    assert!(matches!(error, RegistryError::Certificate { .. }), "{error}");
    let wanted = format!("--registry-certificate {}=FILE", server.host());
    assert!(error.to_string().contains(&wanted), "{error}");
    assert!(server.seen().is_empty());
}

#[tokio::test]
async fn an_authority_can_be_trusted_in_three_ways_and_ignored_in_three() {
    let files = Files::new();
    let server = TestRegistry::builder().tls(&files.authority).start().await;
    server.put_image("app", "1", &small_image());
    let none = TlsOptions::default;
    for tls in [
        TlsOptions { ca_files: vec![files.path("ca.pem")], ..none() },
        TlsOptions { ca_dirs: vec![files.folder.path().to_owned()], ..none() },
        TlsOptions { registry_certificates: vec![(server.host(), files.path("ca.pem"))], ..none() },
        TlsOptions { skip_verify: true, ..none() },
        TlsOptions { skip_verify_pull: true, ..none() },
        TlsOptions { skip_verify_registries: vec![server.host()], ..none() },
    ] {
        with(tls).head(&reference(&server, "app:1")).await.unwrap();
    }
}

#[tokio::test]
async fn skipping_verification_for_pulls_is_not_skipping_it_for_pushes() {
    let files = Files::new();
    let server = TestRegistry::builder().tls(&files.authority).start().await;
    let registry = with(TlsOptions { skip_verify_pull: true, ..TlsOptions::default() });
    let error = registry.check_push(&repository(&server, "app")).await.unwrap_err();
    assert!(matches!(error, RegistryError::Certificate { .. }), "{error}");
}

#[tokio::test]
async fn a_client_certificate_is_shown_where_it_was_given() {
    let files = Files::new();
    let server = TestRegistry::builder().mutual_tls(&files.authority).start().await;
    server.put_image("app", "1", &small_image());
    let trust = TlsOptions { ca_files: vec![files.path("ca.pem")], ..TlsOptions::default() };
    assert!(with(trust.clone()).head(&reference(&server, "app:1")).await.is_err());
    let ours = (server.host(), files.path("client.pem"), files.path("client.key"));
    let tls = TlsOptions { client_certificates: vec![ours], ..trust };
    with(tls).head(&reference(&server, "app:1")).await.unwrap();
}

#[tokio::test]
async fn a_login_over_tls_with_an_authority_of_its_own() {
    let files = Files::new();
    let server =
        TestRegistry::builder().tls(&files.authority).auth(Auth::token("me", "hunter2")).start().await;
    let tls = TlsOptions { ca_files: vec![files.path("ca.pem")], ..TlsOptions::default() };
    let credentials = Credentials::fixed(&server.host(), "me", "hunter2");
    let registry = Registry::new(RegistryOptions { tls, credentials, ..options() }).unwrap();
    registry.check_push(&repository(&server, "app")).await.unwrap();
}

#[test]
fn a_registry_can_be_made_without_any_file_and_outside_a_runtime() {
    let tls = TlsOptions {
        ca_files: vec!["/nonexistent/ca.pem".into()],
        ca_dirs: vec!["/nonexistent".into()],
        ..TlsOptions::default()
    };
    Registry::new(RegistryOptions { tls, ..RegistryOptions::default() }).unwrap();
}
