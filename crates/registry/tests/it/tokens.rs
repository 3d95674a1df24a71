//! Token servers: what goes wrong with them, and the ways in which they take a login.

use std::time::Duration;

use kiln_registry::{ConfigFile, CredentialOptions, Credentials, Registry, RegistryOptions};
use kiln_testkit::{Auth, Fault, Route, TestRegistry};

use super::{options, quick, reference, repository, small_image};

fn with(text: &str) -> Registry {
    let file = ConfigFile::parse("/kaniko/.docker/config.json", text).unwrap();
    let options = CredentialOptions { files: vec![file], ..CredentialOptions::default() };
    let mut retries = quick();
    retries.stall = Duration::from_millis(100);
    let credentials = Credentials::new(options);
    Registry::new(RegistryOptions { credentials, retries, ..self::options() }).unwrap()
}

fn login(server: &TestRegistry, entry: &str) -> String {
    format!(r#"{{"auths":{{"{}":{entry}}}}}"#, server.host())
}

#[tokio::test]
async fn a_fault_of_a_token_server_is_overcome_or_one_error_that_names_it() {
    let faults = [
        (Fault::CutAfter(0), true),
        (Fault::CutAfter(20), true),
        (Fault::Reset, true),
        (Fault::LoseAnswer, true),
        (Fault::RetryAfter(429, 0), true),
        (Fault::RetryAfter(503, 0), true),
        (Fault::Status(500), true),
        (Fault::Slow(2000), true),
        (Fault::Stall(0), true),
        (Fault::Stall(10), true),
        (Fault::WrongLength(50), true),
        (Fault::Truncate(10), true),
        (Fault::Answer(200, "<html>log in, please</html>".into()), true),
        (Fault::Endless, false),
        (Fault::Answer(200, "{}".into()), false),
        (Fault::RedirectTo("http://127.0.0.1:9/nowhere".into()), false),
        (Fault::Status(403), false),
        (Fault::Status(404), false),
    ];
    for (fault, hopeful) in faults {
        for refresh in [false, true] {
            let server = TestRegistry::builder().auth(Auth::token("me", "hunter2")).start().await;
            server.put_image("app", "1", &small_image());
            let entry = if refresh {
                r#"{"identitytoken":"hunter2"}"#
            } else {
                r#"{"username":"me","password":"hunter2"}"#
            };
            let registry = with(&login(&server, entry));
            let times = if matches!(fault, Fault::Status(404)) { 2 } else { 1 };
            server.on(Route::Token, vec![fault.clone(); times]);
            let pulled = registry.manifest(&reference(&server, "app:1")).await.map(|_| ());
            server.revoke_tokens();
            server.on(Route::Token, vec![fault.clone(); times]);
            let pushed = registry.check_push(&repository(&server, "app")).await;
            for result in [pulled, pushed] {
                let what = format!("{fault:?}, refresh token: {refresh}");
                if let Err(error) = result {
                    let text = error.to_string();
                    assert!(!hopeful, "{what} should have been overcome: {text}");
                    assert!(text.contains(&format!("token server {}", server.host())), "{what}: {text}");
                    assert!(!text.contains("hunter2"), "{what}: {text}");
                }
            }
        }
    }
}

#[tokio::test]
async fn a_login_does_not_follow_a_token_server_s_redirect() {
    let server = TestRegistry::builder().auth(Auth::token("me", "hunter2")).start().await;
    let away = TestRegistry::start().await;
    server.on(Route::Token, [Fault::RedirectTo(format!("{}/token", away.url()))]);
    let registry = with(&login(&server, r#"{"username":"me","password":"hunter2"}"#));
    assert!(registry.check_push(&repository(&server, "app")).await.is_err());
    assert!(away.seen().is_empty(), "{:?}", away.seen());
}

#[tokio::test]
async fn a_server_that_takes_no_post_gets_the_identity_token_by_get() {
    for status in [404, 405, 400, 401] {
        let server = TestRegistry::builder().auth(Auth::token("<token>", "refresh")).start().await;
        server.put_image("app", "1", &small_image());
        server.on(Route::Token, [Fault::Status(status)]);
        let registry = with(&login(&server, r#"{"identitytoken":"refresh"}"#));
        registry.check_push(&repository(&server, "app")).await.unwrap();
        let seen = server.seen();
        let methods: Vec<&str> =
            seen.iter().filter(|seen| seen.route == Route::Token).map(|seen| seen.method.as_str()).collect();
        assert_eq!(methods, ["POST", "GET"], "{status}");
    }
}

#[tokio::test]
async fn an_identity_token_that_is_refused_is_told_as_the_server_told_it() {
    let server = TestRegistry::builder().auth(Auth::token("me", "right")).start().await;
    let registry = with(&login(&server, r#"{"identitytoken":"wrong"}"#));
    let error = registry.check_push(&repository(&server, "app")).await.unwrap_err();
    assert!(error.is_unauthorized(), "{error}");
    assert!(error.to_string().contains("/kaniko/.docker/config.json"), "{error}");
}

#[tokio::test]
async fn a_registry_token_is_sent_as_it_is_and_to_no_token_server() {
    let server = TestRegistry::builder().auth(Auth::token("me", "p")).start().await;
    server.put_image("app", "1", &small_image());
    let registry = with(&login(&server, r#"{"registrytoken":"ready-made"}"#));
    let error = registry.manifest(&reference(&server, "app:1")).await.unwrap_err();
    assert!(error.is_unauthorized(), "this server knows no such token: {error}");
    assert!(!error.to_string().contains("ready-made"), "{error}");
    let seen = server.seen();
    assert_eq!(server.count(Route::Token), 0);
    let mut asked = seen.iter().filter(|seen| seen.route != Route::Ping);
    assert!(asked.all(|seen| seen.header("authorization") == "Bearer ready-made"), "{seen:?}");
    // Where it is good, there is no other request.
    let open = TestRegistry::start().await;
    open.put_image("app", "1", &small_image());
    with(&login(&open, r#"{"registrytoken":"ready-made"}"#))
        .manifest(&reference(&open, "app:1"))
        .await
        .unwrap();
    assert_eq!(open.seen().len(), 2, "the probe for TLS, and the manifest: {:?}", open.seen());
}
