use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use kiln_oci::{Descriptor, Digest, media_type};
use kiln_registry::{Credentials, Registry, RegistryError, RegistryOptions, TlsOptions};
use kiln_testkit::{Auth, Route, TestAuthority, TestRegistry};

use super::{bytes, options, reference, repository, small_image};

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

/// Pushes and pulls a blob of so many bytes, and gives the methods of the requests that came by HTTP/2 and of the others.
async fn versions(
    length: usize,
    authority: &Arc<TestAuthority>,
    options: RegistryOptions,
) -> [Vec<String>; 2] {
    let server = TestRegistry::builder().tls(authority).http2().start().await;
    let registry = Registry::new(options).unwrap();
    let (repository, blob) = (repository(&server, "app"), Bytes::from(bytes(length)));
    let descriptor = Descriptor::new(media_type::OCI_LAYER_GZIP, Digest::of(&blob), length as u64);
    registry.push_new_blob(&repository, &descriptor, &blob).await.unwrap();
    let mut pulled = Vec::new();
    registry.pull_blob(&repository, &descriptor, 0, &mut pulled).await.unwrap();
    assert!(pulled == blob);
    let seen = server.seen().into_iter().filter(|seen| seen.route != Route::Ping);
    let (two, one): (Vec<_>, Vec<_>) = seen.partition(|seen| seen.http2);
    [two, one].map(|seen| {
        let mut methods: Vec<String> = seen.into_iter().map(|seen| seen.method).collect();
        methods.sort();
        methods
    })
}

#[tokio::test]
async fn what_brings_much_has_a_connection_of_its_own() {
    let files = Files::new();
    let trusting = || RegistryOptions {
        tls: TlsOptions { ca_files: vec![files.path("ca.pem")], ..TlsOptions::default() },
        ..options()
    };
    let [two, one] = versions(200_000, &files.authority, trusting()).await;
    assert_eq!((two.join(" "), one.join(" ")), ("GET HEAD POST PUT".into(), String::new()));
    let [two, one] = versions(300_000, &files.authority, trusting()).await;
    assert_eq!((two.join(" "), one.join(" ")), ("GET HEAD POST".into(), "PUT".into()));
    let [two, one] = versions(3_000_000, &files.authority, trusting()).await;
    assert_eq!((two.join(" "), one.join(" ")), ("HEAD POST".into(), "GET PUT".into()));
    // In pieces, all of them.
    let pieces = RegistryOptions { chunk_size: Some(280_000), ..trusting() };
    let [two, one] = versions(800_000, &files.authority, pieces).await;
    // The last piece is small.
    assert_eq!((two.join(" "), one.join(" ")), ("GET HEAD PATCH POST PUT".into(), "PATCH PATCH".into()));
    let one_only = RegistryOptions { http2: false, ..trusting() };
    let [two, one] = versions(10, &files.authority, one_only).await;
    assert_eq!((two.join(" "), one.join(" ")), (String::new(), "GET HEAD POST PUT".into()));
}
