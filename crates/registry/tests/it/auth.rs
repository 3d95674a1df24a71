use std::time::Duration;

use bytes::Bytes;
use kiln_oci::{Descriptor, Digest};
use kiln_registry::{ConfigFile, CredentialOptions, Credentials, Registry, RegistryOptions};
use kiln_testkit::{Auth, Fault, Route, TestRegistry};

use super::{bytes, observed, options, reference, registry, repository, small_image};

fn with(credentials: Credentials) -> Registry {
    Registry::new(RegistryOptions { credentials, ..options() }).unwrap()
}

fn config(text: &str) -> Credentials {
    let file = ConfigFile::parse("/kaniko/.docker/config.json", text).unwrap();
    Credentials::new(CredentialOptions { files: vec![file], ..CredentialOptions::default() })
}

#[tokio::test]
async fn a_password_is_sent_only_when_asked_for() {
    let server = TestRegistry::builder().auth(Auth::basic("me", "hunter2")).start().await;
    server.put_image("app", "1", &small_image());
    let registry = with(Credentials::fixed(&server.host(), "me", "hunter2"));
    registry.head(&reference(&server, "app:1")).await.unwrap();
    registry.manifest(&reference(&server, "app:1")).await.unwrap();
    let seen = server.seen();
    assert_eq!(
        seen.iter()
            .filter(|s| s.route == Route::ManifestHead && s.header("authorization").is_empty())
            .count(),
        1
    );
    // The first answer was enough to know.
    assert_eq!(seen.last().unwrap().route, Route::Manifest);
    assert!(seen.last().unwrap().header("authorization").starts_with("Basic "));
    assert_eq!(server.count(Route::Manifest), 1);
}

#[tokio::test]
async fn a_refused_login_is_named_by_its_source_and_never_shown() {
    let server = TestRegistry::builder().auth(Auth::basic("me", "right")).start().await;
    server.put_image("app", "1", &small_image());
    let text = format!(r#"{{"auths":{{"{}":{{"username":"me","password":"hunter2"}}}}}}"#, server.host());
    let registry = with(config(&text));
    let error = registry.manifest(&reference(&server, "app:1")).await.unwrap_err();
    let shown = format!("{error} {error:?} {registry:?}");
    assert!(error.is_unauthorized());
    assert!(shown.contains("/kaniko/.docker/config.json"), "{shown}");
    assert!(!shown.contains("hunter2") && !shown.contains("bWU6"), "{shown}");
    assert_eq!(server.count(Route::Manifest), 2);
}

#[tokio::test]
async fn without_a_login_the_error_says_how_to_log_in() {
    let server = TestRegistry::builder().auth(Auth::basic("me", "right")).start().await;
    let error = registry().manifest(&reference(&server, "app:1")).await.unwrap_err().to_string();
    assert!(error.contains("login: none found"), "{error}");
    assert!(error.contains(&format!("executor login {}", server.host())), "{error}");
    assert_eq!(server.count(Route::Manifest), 2);
}

#[tokio::test]
async fn a_login_is_shown_to_a_registry_that_hides_things_from_anybody() {
    for auth in [Auth::basic("me", "p"), Auth::token("me", "p")] {
        for status in [403, 404] {
            let server = TestRegistry::builder().auth(auth.clone()).start().await;
            server.put_image("app", "1", &small_image());
            server.on(Route::Manifest, [Fault::Status(status)]);
            let registry = with(Credentials::fixed(&server.host(), "me", "p"));
            registry.manifest(&reference(&server, "app:1")).await.unwrap();
            assert_eq!(server.count(Route::Manifest), 2, "{auth:?} {status}");
        }
    }
    // It is found out once; and who has no login takes the first answer.
    let server = TestRegistry::start().await;
    for (registry, pings) in [(with(Credentials::fixed(&server.host(), "me", "p")), 2), (registry(), 1)] {
        server.forget();
        for _ in 0..3 {
            let error = registry.manifest(&reference(&server, "app:1")).await.unwrap_err();
            assert!(error.is_not_found(), "{error}");
        }
        assert_eq!((server.count(Route::Ping), server.count(Route::Manifest)), (pings, 3));
    }
}

#[tokio::test]
async fn a_token_is_fetched_once_per_scope() {
    let server = TestRegistry::builder().auth(Auth::token("me", "p")).start().await;
    let image = small_image();
    server.put_image("app", "1", &image);
    let registry = registry();
    for _ in 0..3 {
        registry.manifest(&reference(&server, "app:1")).await.unwrap();
    }
    registry.pull_bytes(&repository(&server, "app"), &image.manifest.value().config, 10_000).await.unwrap();
    assert_eq!(server.count(Route::Token), 1);
    let query = server.seen().into_iter().find(|seen| seen.route == Route::Token).unwrap().query;
    assert_eq!(query, "service=test+registry&scope=repository%3Aapp%3Apull");
}

#[tokio::test]
async fn a_push_asks_for_the_right_to_push() {
    let server = TestRegistry::builder().auth(Auth::token("me", "p")).start().await;
    let anonymous = registry().check_push(&repository(&server, "app")).await.unwrap_err();
    assert!(anonymous.is_unauthorized(), "{anonymous}");
    let registry = with(Credentials::fixed(&server.host(), "me", "p"));
    registry.check_push(&repository(&server, "app")).await.unwrap();
}

#[tokio::test]
async fn two_questions_at_once_fetch_one_token() {
    let server = TestRegistry::builder().auth(Auth::token("me", "p")).start().await;
    let blob = Bytes::from(bytes(10));
    let descriptor = Descriptor::new("application/octet-stream", Digest::of(&blob), 10);
    let registry = with(Credentials::fixed(&server.host(), "me", "p"));
    registry.push_new_blob(&repository(&server, "app"), &descriptor, &blob).await.unwrap();
    assert_eq!(server.count(Route::Token), 1);
    assert_eq!((server.count(Route::UploadPut), server.open_uploads()), (1, 0));
}

#[tokio::test]
async fn a_mount_asks_for_both_repositories() {
    let server = TestRegistry::builder().auth(Auth::token("me", "p")).start().await;
    let descriptor = server.put_blob("base/x", bytes(10));
    let registry = with(Credentials::fixed(&server.host(), "me", "p"));
    let (to, from) = (repository(&server, "app"), repository(&server, "base/x"));
    assert!(registry.mount_blob(&to, &descriptor.digest, &from).await.unwrap());
    let query = server.seen().into_iter().find(|seen| seen.route == Route::Token).unwrap().query;
    assert!(
        query.contains("repository%3Aapp%3Apull%2Cpush") && query.contains("repository%3Abase%2Fx%3Apull"),
        "{query}"
    );
}

#[tokio::test]
async fn a_token_that_ends_in_the_middle_is_renewed() {
    let server = TestRegistry::builder().auth(Auth::token("me", "p")).start().await;
    let registry = with(Credentials::fixed(&server.host(), "me", "p"));
    registry.check_push(&repository(&server, "app")).await.unwrap();
    let blob = Bytes::from(bytes(600_000));
    let descriptor = Descriptor::new("x", Digest::of(&blob), blob.len() as u64);
    // The registry has forgotten all tokens when the upload is to be finished.
    server.on(Route::BlobHead, [Fault::Serve]);
    server.revoke_tokens();
    registry.push_blob(&repository(&server, "app"), &descriptor, &blob).await.unwrap();
    assert_eq!(server.blob("app", &descriptor.digest).unwrap(), blob);
}

#[tokio::test]
async fn an_upload_survives_the_end_of_its_token() {
    let auth = Auth::Token {
        user: "me".into(),
        password: "p".into(),
        anonymous_pull: false,
        lifetime: Duration::from_millis(1200),
        rotate: false,
    };
    let server = TestRegistry::builder().auth(auth).start().await;
    let blob = Bytes::from(bytes(900_000));
    let descriptor = Descriptor::new("x", Digest::of(&blob), blob.len() as u64);
    let mut options = options();
    options.credentials = Credentials::fixed(&server.host(), "me", "p");
    options.chunk_size = Some(300_000);
    options.retries.base = Duration::from_millis(1300);
    // Two pauses, each longer than a token lives.
    server.on(Route::UploadPatch, [Fault::Serve, Fault::Status(503), Fault::Serve, Fault::Status(503)]);
    let (registry, _) = observed(options);
    registry.push_blob(&repository(&server, "app"), &descriptor, &blob).await.unwrap();
    assert_eq!(server.blob("app", &descriptor.digest).unwrap(), blob);
    assert!(server.count(Route::Token) >= 3);
}

#[tokio::test]
async fn an_identity_token_is_exchanged_and_its_successor_used() {
    let auth = Auth::Token {
        user: "me".into(),
        password: "first-refresh".into(),
        anonymous_pull: false,
        lifetime: Duration::from_secs(60),
        rotate: true,
    };
    let server = TestRegistry::builder().auth(auth).start().await;
    server.put_image("a", "1", &small_image());
    server.put_image("b", "1", &small_image());
    let text = format!(r#"{{"auths":{{"{}":{{"identitytoken":"first-refresh"}}}}}}"#, server.host());
    let registry = with(config(&text));
    registry.manifest(&reference(&server, "a:1")).await.unwrap();
    registry.manifest(&reference(&server, "b:1")).await.unwrap();
    let tokens: Vec<String> =
        server.seen().iter().filter(|s| s.route == Route::Token).map(|s| s.method.clone()).collect();
    assert_eq!(tokens, ["POST", "POST"]);
}

#[tokio::test]
async fn a_login_is_not_carried_to_another_host() {
    let home = TestRegistry::builder().auth(Auth::basic("me", "hunter2")).start().await;
    let away = TestRegistry::start().await;
    let descriptor = home.put_blob("app", bytes(5000));
    away.put_blob("app", bytes(5000));
    let path = format!("{}/v2/app/blobs/{}", away.url(), descriptor.digest);
    home.on(Route::Blob, [Fault::Serve, Fault::RedirectTo(path)]);
    let registry = with(Credentials::fixed(&home.host(), "me", "hunter2"));
    let found = registry.pull_bytes(&repository(&home, "app"), &descriptor, 10_000).await.unwrap();
    assert_eq!(found, bytes(5000));
    assert_eq!(away.count(Route::Blob), 1);
    assert_eq!(away.seen()[0].header("authorization"), "");
}

#[tokio::test]
async fn a_token_server_that_is_busy_is_asked_again() {
    let server = TestRegistry::builder().auth(Auth::token("me", "p")).start().await;
    server.put_image("app", "1", &small_image());
    server.on(Route::Token, [Fault::Status(503), Fault::Reset]);
    registry().manifest(&reference(&server, "app:1")).await.unwrap();
}

#[tokio::test]
async fn a_helper_that_fails_is_told_and_the_public_image_still_comes() {
    let server = TestRegistry::builder().auth(Auth::token("me", "p")).start().await;
    server.put_image("app", "1", &small_image());
    let text = format!(r#"{{"credHelpers":{{"{}":"missing"}}}}"#, server.host());
    let mut options = options();
    options.credentials = config(&text);
    let (registry, events) = observed(options);
    registry.manifest(&reference(&server, "app:1")).await.unwrap();
    let events = events.lock().unwrap().clone();
    assert!(
        matches!(&events[0], kiln_registry::Event::CredentialsFailed { why, .. } if why.contains("not in PATH")),
        "{events:?}"
    );
    let error = registry.check_push(&repository(&server, "app")).await.unwrap_err().to_string();
    assert!(error.contains("docker-credential-missing is not in PATH"), "{error}");
}
