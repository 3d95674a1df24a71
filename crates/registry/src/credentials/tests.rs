//! Logins from clouds, against stand-ins whose requests are compared with what the providers' documents ask for.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use kiln_testkit::{StandIn, TestAuthority};
use serde_json::{Value, json};

use super::*;
use crate::options::RegistryOptions;
use crate::transport::Transport;

const ECR: &str = "123456789012.dkr.ecr.eu-west-1.amazonaws.com";

fn exchange() -> Exchange {
    let client = Transport::new(RegistryOptions::default()).unwrap().plain;
    // 2015-08-30T12:36:00Z
    let clock = || SystemTime::UNIX_EPOCH + Duration::from_secs(1_440_938_160);
    Exchange { client, clock: Arc::new(clock) }
}

fn environment(pairs: &[(&str, &str)]) -> Environment {
    pairs.iter().copied().collect()
}

fn options(pairs: &[(&str, &str)]) -> CredentialOptions {
    CredentialOptions { environment: environment(pairs), ..CredentialOptions::default() }
}

fn basic(login: &Login) -> (String, String) {
    match &login.secret {
        LoginSecret::Basic { user, password } => (user.clone(), password.expose().clone()),
        other => panic!("{other:?}"),
    }
}

fn file(folder: &Path, name: &str, text: &str) -> String {
    std::fs::write(folder.join(name), text).unwrap();
    folder.join(name).display().to_string()
}

fn ecr_answer() -> String {
    let token = STANDARD.encode("AWS:ecr-password");
    json!({ "authorizationData": [{ "authorizationToken": token, "expiresAt": 1.0 }] }).to_string()
}

async fn find(pairs: &[(&str, &str)], host: &str) -> Found {
    Credentials::new(options(pairs)).find(host, "a/b", &exchange()).await
}

#[tokio::test]
async fn a_google_service_account_signs_for_its_token() {
    let google = StandIn::start().await;
    google.answer(
        "POST",
        "/token",
        200,
        r#"{"access_token":"ya29.x","expires_in":3599,"token_type":"Bearer"}"#,
    );
    let folder = tempfile::tempdir().unwrap();
    let key = json!({
        "type": "service_account",
        "client_email": "ci@project.iam.gserviceaccount.com",
        "private_key_id": "key-1",
        "private_key": include_str!("testdata/service-account.pem"),
        "token_uri": format!("{}/token", google.url()),
    });
    let path = file(folder.path(), "key.json", &key.to_string());
    let credentials = Credentials::new(options(&[("GOOGLE_APPLICATION_CREDENTIALS", &path)]));
    let exchange = exchange();
    let login = credentials.find("eu.gcr.io", "a", &exchange).await.login.unwrap();
    assert_eq!(basic(&login), ("oauth2accesstoken".into(), "ya29.x".into()));
    assert_eq!(login.source, path);
    // Another repository, another of Google's hosts: the same token.
    credentials.find("europe-docker.pkg.dev", "b", &exchange).await.login.unwrap();
    let asked = google.asked();
    assert_eq!(asked.len(), 1);
    let fields: HashMap<String, String> =
        url::form_urlencoded::parse(asked[0].body.as_bytes()).into_owned().collect();
    assert_eq!(fields["grant_type"], "urn:ietf:params:oauth:grant-type:jwt-bearer");
    let parts: Vec<&str> = fields["assertion"].split('.').collect();
    let decode =
        |part: &str| -> Value { serde_json::from_slice(&URL_SAFE_NO_PAD.decode(part).unwrap()).unwrap() };
    assert_eq!(decode(parts[0]), json!({ "alg": "RS256", "typ": "JWT", "kid": "key-1" }));
    let claims = decode(parts[1]);
    assert_eq!(claims["iss"], "ci@project.iam.gserviceaccount.com");
    assert_eq!(claims["scope"], "https://www.googleapis.com/auth/cloud-platform");
    assert_eq!(claims["aud"], format!("{}/token", google.url()));
    assert_eq!((claims["iat"].as_u64(), claims["exp"].as_u64()), (Some(1_440_938_160), Some(1_440_941_760)));
    assert_eq!(URL_SAFE_NO_PAD.decode(parts[2]).unwrap().len(), 256);
}

#[tokio::test]
async fn a_google_user_s_refresh_token_is_exchanged() {
    let google = StandIn::start().await;
    google.answer("POST", "/token", 200, r#"{"access_token":"ya29.u","expires_in":3599}"#);
    let home = tempfile::tempdir().unwrap();
    let folder = home.path().join(".config/gcloud");
    std::fs::create_dir_all(&folder).unwrap();
    let user = json!({
        "type": "authorized_user", "client_id": "id", "client_secret": "s", "refresh_token": "1//r",
        "token_uri": format!("{}/token", google.url()),
    });
    file(&folder, "application_default_credentials.json", &user.to_string());
    let found = find(&[("HOME", home.path().to_str().unwrap())], "gcr.io").await;
    assert_eq!(basic(&found.login.unwrap()).1, "ya29.u");
    assert_eq!(
        google.asked()[0].body,
        "grant_type=refresh_token&client_id=id&client_secret=s&refresh_token=1%2F%2Fr"
    );
}

#[tokio::test]
async fn google_s_workload_identity_federation_goes_in_two_steps() {
    let google = StandIn::start().await;
    google.answer("POST", "/v1/token", 200, r#"{"access_token":"federated","expires_in":3600}"#);
    google.answer(
        "POST",
        "/impersonate",
        200,
        r#"{"accessToken":"ya29.i","expireTime":"2030-01-01T00:00:00Z"}"#,
    );
    let folder = tempfile::tempdir().unwrap();
    let subject = file(folder.path(), "token", r#"{"jwt":"subject"}"#);
    let account = json!({
        "type": "external_account",
        "audience": "//iam.googleapis.com/projects/1/locations/global/workloadIdentityPools/p/providers/x",
        "subject_token_type": "urn:ietf:params:oauth:token-type:jwt",
        "token_url": format!("{}/v1/token", google.url()),
        "service_account_impersonation_url": format!("{}/impersonate", google.url()),
        "credential_source": { "file": subject, "format": { "type": "json", "subject_token_field_name": "jwt" } },
    });
    let path = file(folder.path(), "adc.json", &account.to_string());
    let found = find(&[("GOOGLE_APPLICATION_CREDENTIALS", &path)], "gcr.io").await;
    assert_eq!(basic(&found.login.unwrap()).1, "ya29.i");
    let asked = google.asked();
    let fields: HashMap<String, String> =
        url::form_urlencoded::parse(asked[0].body.as_bytes()).into_owned().collect();
    assert_eq!(fields["grant_type"], "urn:ietf:params:oauth:grant-type:token-exchange");
    assert_eq!(fields["subject_token"], "subject");
    assert_eq!(asked[1].header("authorization"), "Bearer federated");
}

#[tokio::test]
async fn google_takes_a_request_signed_for_aws_in_place_of_a_token() {
    let google = StandIn::start().await;
    google.answer("POST", "/v1/token", 200, r#"{"access_token":"federated","expires_in":3600}"#);
    google.answer("PUT", "/latest/api/token", 200, "session");
    google.answer("GET", "/latest/meta-data/placement/availability-zone", 200, "us-east-2b");
    let folder = tempfile::tempdir().unwrap();
    let audience = "//iam.googleapis.com/projects/1/locations/global/workloadIdentityPools/p/providers/aws";
    let account = json!({
        "type": "external_account",
        "audience": audience,
        "subject_token_type": "urn:ietf:params:aws:token-type:aws4_request",
        "token_url": format!("{}/v1/token", google.url()),
        "credential_source": {
            "environment_id": "aws1",
            "region_url": format!("{}/latest/meta-data/placement/availability-zone", google.url()),
            "imdsv2_session_token_url": format!("{}/latest/api/token", google.url()),
            "regional_cred_verification_url":
                "https://sts.{region}.amazonaws.com?Action=GetCallerIdentity&Version=2011-06-15",
        },
    });
    let path = file(folder.path(), "adc.json", &account.to_string());
    let pairs = [
        ("GOOGLE_APPLICATION_CREDENTIALS", path.as_str()),
        ("AWS_ACCESS_KEY_ID", "AKIDEXAMPLE"),
        ("AWS_SECRET_ACCESS_KEY", "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY"),
        ("AWS_SESSION_TOKEN", "temporary"),
    ];
    let found = find(&pairs, "europe-docker.pkg.dev").await;
    assert_eq!(basic(&found.login.unwrap()).1, "federated");
    let asked = google.asked();
    assert_eq!(asked[1].header("x-aws-ec2-metadata-token"), "session");
    let body = &asked.last().unwrap().body;
    let fields: HashMap<String, String> = url::form_urlencoded::parse(body.as_bytes()).into_owned().collect();
    assert_eq!(fields["audience"], audience);
    assert_eq!(fields["subject_token_type"], "urn:ietf:params:aws:token-type:aws4_request");
    // The text is encoded once by itself and once more as a field.
    let (text, _) =
        url::form_urlencoded::parse(fields["subject_token"].as_bytes()).into_owned().next().unwrap();
    let signed: Value = serde_json::from_str(&text).unwrap();
    let place = "https://sts.us-east-2.amazonaws.com?Action=GetCallerIdentity&Version=2011-06-15";
    assert_eq!((&signed["url"], &signed["method"]), (&json!(place), &json!("POST")));
    let headers: HashMap<&str, &str> = signed["headers"]
        .as_array()
        .unwrap()
        .iter()
        .map(|header| (header["key"].as_str().unwrap(), header["value"].as_str().unwrap()))
        .collect();
    assert_eq!(headers["host"], "sts.us-east-2.amazonaws.com");
    assert_eq!(headers["x-amz-date"], "20150830T123600Z");
    assert_eq!(headers["x-amz-security-token"], "temporary");
    assert_eq!(headers["x-goog-cloud-target-resource"], audience);
    let start = "AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20150830/us-east-2/sts/aws4_request, \
                 SignedHeaders=host;x-amz-date;x-amz-security-token;x-goog-cloud-target-resource, Signature=";
    assert!(headers["authorization"].starts_with(start), "{}", headers["authorization"]);
}

#[tokio::test]
async fn google_s_metadata_server_is_asked_with_its_header() {
    let google = StandIn::start().await;
    let path = "/computeMetadata/v1/instance/service-accounts/default/token";
    google.answer("GET", path, 200, r#"{"access_token":"ya29.m","expires_in":300}"#);
    let found = find(&[("GCE_METADATA_HOST", &google.host())], "gcr.io").await;
    assert_eq!(basic(&found.login.unwrap()).1, "ya29.m");
    assert_eq!(google.asked()[0].header("metadata-flavor"), "Google");
}

#[tokio::test]
async fn ecr_is_asked_with_a_signed_request() {
    let aws = StandIn::start().await;
    aws.answer("POST", "/", 200, ecr_answer());
    let pairs = [
        ("AWS_ACCESS_KEY_ID", "AKIDEXAMPLE"),
        ("AWS_SECRET_ACCESS_KEY", "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY"),
        ("AWS_SESSION_TOKEN", "session"),
        ("AWS_ENDPOINT_URL_ECR", &aws.url()),
    ];
    let found = find(&pairs, ECR).await;
    assert_eq!(basic(&found.login.unwrap()), ("AWS".into(), "ecr-password".into()));
    let asked = &aws.asked()[0];
    assert_eq!(asked.header("x-amz-target"), "AmazonEC2ContainerRegistry_V20150921.GetAuthorizationToken");
    assert_eq!(asked.header("content-type"), "application/x-amz-json-1.1");
    assert_eq!(asked.header("x-amz-date"), "20150830T123600Z");
    assert_eq!(asked.header("x-amz-security-token"), "session");
    assert_eq!(asked.body, r#"{"registryIds":["123456789012"]}"#);
    let prefix = "AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20150830/eu-west-1/ecr/aws4_request, \
                  SignedHeaders=content-type;host;x-amz-date;x-amz-security-token;x-amz-target, Signature=";
    assert!(asked.header("authorization").starts_with(prefix), "{}", asked.header("authorization"));
}

#[tokio::test]
async fn each_of_amazon_s_registries_is_asked_in_its_own_region_and_service() {
    let keys = [("AWS_ACCESS_KEY_ID", "AKIDEXAMPLE"), ("AWS_SECRET_ACCESS_KEY", "secret")];
    for (host, place, target) in [
        ("public.ecr.aws", "us-east-1/ecr-public", "SpencerFrontendService.GetAuthorizationToken"),
        ("ecr-public.aws.com", "us-east-1/ecr-public", "SpencerFrontendService.GetAuthorizationToken"),
        (
            "123456789012.dkr.ecr.cn-north-1.amazonaws.com.cn",
            "cn-north-1/ecr",
            "AmazonEC2ContainerRegistry_V20150921.GetAuthorizationToken",
        ),
        (
            "123456789012.dkr-ecr-fips.us-gov-west-1.on.aws",
            "us-gov-west-1/ecr",
            "AmazonEC2ContainerRegistry_V20150921.GetAuthorizationToken",
        ),
    ] {
        let aws = StandIn::start().await;
        let token = STANDARD.encode("AWS:ecr-password");
        // The public registry's answer holds one, the others' a list.
        let data = json!({ "authorizationToken": token });
        let data = if place.ends_with("public") { data } else { json!([data]) };
        aws.answer("POST", "/", 200, json!({ "authorizationData": data }).to_string());
        let url = aws.url();
        let found = find(&[&keys[..], &[("AWS_ENDPOINT_URL", &url)]].concat(), host).await;
        assert_eq!(basic(&found.login.unwrap()), ("AWS".into(), "ecr-password".into()), "{host}");
        let asked = &aws.asked()[0];
        assert_eq!(asked.header("x-amz-target"), target, "{host}");
        let credential = format!("Credential=AKIDEXAMPLE/20150830/{place}/aws4_request");
        assert!(asked.header("authorization").contains(&credential), "{host}: {asked:?}");
    }
    // Anybody may pull from the public one.
    let nowhere = [("HOME", "/nonexistent"), ("AWS_EC2_METADATA_DISABLED", "true")];
    let found = find(&nowhere, "public.ecr.aws").await;
    assert!(found.login.is_none() && found.failures.is_empty(), "{found:?}");
}

#[tokio::test]
async fn ecr_takes_a_web_identity_and_a_profile_and_pod_identity_and_the_instance() {
    let keys = r#"{"AccessKeyId":"ASIA","SecretAccessKey":"s","Token":"t"}"#;
    let sts = "<R><Credentials><AccessKeyId>ASIA</AccessKeyId><SecretAccessKey>s</SecretAccessKey><SessionToken>t</SessionToken></Credentials></R>";
    let aws = StandIn::start().await;
    let service = StandIn::start().await;
    aws.answer("POST", "/", 200, ecr_answer());
    service.answer("POST", "/", 200, sts);
    service.answer("GET", "/creds", 200, keys);
    service.answer("PUT", "/latest/api/token", 200, "imds-token");
    service.answer("GET", "/latest/meta-data/iam/security-credentials/", 200, "node-role");
    service.answer("GET", "/latest/meta-data/iam/security-credentials/node-role", 200, keys);
    let folder = tempfile::tempdir().unwrap();
    let token = file(folder.path(), "token", "jwt\n");
    let config = "[profile ci]\nrole_arn=arn:aws:iam::1:role/ci\nsource_profile=base\n[profile base]\naws_access_key_id=AKID\naws_secret_access_key=x\n";
    let config = file(folder.path(), "config", config);
    let agent = format!("{}/creds", service.url());
    let sources: [&[(&str, &str)]; 4] = [
        &[("AWS_WEB_IDENTITY_TOKEN_FILE", &token), ("AWS_ROLE_ARN", "arn:aws:iam::1:role/irsa")],
        &[("AWS_PROFILE", "ci"), ("AWS_CONFIG_FILE", &config)],
        &[("AWS_CONTAINER_CREDENTIALS_FULL_URI", &agent), ("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", &token)],
        &[("AWS_EC2_METADATA_SERVICE_ENDPOINT", &service.url())],
    ];
    for source in sources {
        let common = [
            ("HOME", "/nonexistent"),
            ("AWS_ENDPOINT_URL_ECR", &*aws.url()),
            ("AWS_ENDPOINT_URL_STS", &*service.url()),
        ]
        .map(|(name, value)| (name.to_owned(), value.to_owned()));
        let pairs = source.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        let options = CredentialOptions {
            environment: common.into_iter().chain(pairs).collect(),
            ..CredentialOptions::default()
        };
        let found = Credentials::new(options).find(ECR, "a", &exchange()).await;
        assert!(found.login.is_some(), "{source:?}: {:?}", found.failures);
        assert_eq!(aws.asked().last().unwrap().header("x-amz-security-token"), "t", "{source:?}");
    }
    let asked = service.asked();
    assert!(
        asked[0].body.contains("Action=AssumeRoleWithWebIdentity")
            && asked[0].body.contains("WebIdentityToken=jwt")
    );
    assert_eq!(asked[0].header("authorization"), "");
    assert!(asked[1].header("authorization").contains("Credential=AKID/20150830/eu-west-1/sts/"));
    assert_eq!(asked[2].header("authorization"), "jwt");
    assert_eq!(asked[3].header("x-aws-ec2-metadata-token-ttl-seconds"), "300");
    assert_eq!(asked[5].header("x-aws-ec2-metadata-token"), "imds-token");
}

#[tokio::test]
async fn an_agent_without_tls_elsewhere_gets_no_token() {
    let pairs = [
        ("HOME", "/nonexistent"),
        ("AWS_CONTAINER_CREDENTIALS_FULL_URI", "http://8.8.8.8/creds"),
        ("AWS_CONTAINER_AUTHORIZATION_TOKEN", "hunter2"),
    ];
    let found = find(&pairs, ECR).await;
    assert!(found.login.is_none());
    assert!(
        found.failures[0].1.contains("has no TLS") && !found.failures[0].1.contains("hunter2"),
        "{found:?}"
    );
}

#[tokio::test]
async fn a_config_file_s_ecr_login_means_the_built_in_source() {
    let aws = StandIn::start().await;
    aws.answer("POST", "/", 200, ecr_answer());
    let text = format!(r#"{{"credHelpers":{{"{ECR}":"ecr-login"}}}}"#);
    let url = aws.url();
    let pairs = [("AWS_ACCESS_KEY_ID", "A"), ("AWS_SECRET_ACCESS_KEY", "s"), ("AWS_ENDPOINT_URL_ECR", &*url)];
    let options = CredentialOptions {
        files: vec![ConfigFile::parse("config.json", &text).unwrap()],
        helpers: Vec::new(),
        ..options(&pairs)
    };
    let found = Credentials::new(options).find(ECR, "a", &exchange()).await;
    assert_eq!(basic(&found.login.unwrap()).0, "AWS");
}

#[tokio::test]
async fn known_helpers_are_built_in_where_their_programs_are_missing() {
    let google = StandIn::start().await;
    let path = "/computeMetadata/v1/instance/service-accounts/default/token";
    google.answer("GET", path, 200, r#"{"access_token":"ya29.m","expires_in":300}"#);
    let folder = tempfile::tempdir().unwrap();
    let (host, programs) = (google.host(), folder.path().display().to_string());
    let pairs = [("GCE_METADATA_HOST", host.as_str()), ("PATH", &programs)];
    let with = |text: &str| {
        let files = vec![ConfigFile::parse("config.json", text).unwrap()];
        Credentials::new(CredentialOptions { files, helpers: Vec::new(), ..options(&pairs) })
    };
    for text in [
        r#"{"credHelpers":{"eu.gcr.io":"gcr"}}"#,
        r#"{"credHelpers":{"eu.gcr.io":"gcloud"},"credsStore":"nothere"}"#,
        r#"{"credsStore":"gcr"}"#,
    ] {
        let found = with(text).find("eu.gcr.io", "a", &exchange()).await;
        assert_eq!(basic(&found.login.unwrap()).1, "ya29.m", "{text}");
    }
    // They know nothing of other registries, and complain of none.
    for name in ["gcr", "ecr-login", "acr-env"] {
        let found = with(&format!(r#"{{"credsStore":"{name}"}}"#)).find("docker.io", "a", &exchange()).await;
        assert!(found.login.is_none() && found.failures.is_empty(), "{name}: {found:?}");
    }
    let found = with(r#"{"credsStore":"nothere"}"#).find("docker.io", "a", &exchange()).await;
    assert!(found.failures[0].1.contains("docker-credential-nothere is not in PATH"), "{found:?}");
    // A program that is there is asked: this one only says what it was asked to do.
    std::os::unix::fs::symlink("/bin/echo", folder.path().join("docker-credential-gcr")).unwrap();
    let found = with(r#"{"credsStore":"gcr"}"#).find("eu.gcr.io", "a", &exchange()).await;
    assert!(found.failures[0].1.contains("docker-credential-gcr did not answer with JSON"), "{found:?}");
}

#[tokio::test]
async fn azure_s_identities_are_exchanged_for_the_registry_s_token() {
    let entra = StandIn::start().await;
    let registry = StandIn::start().await;
    entra.answer("POST", "/tenant/oauth2/v2.0/token", 200, r#"{"access_token":"entra","expires_in":3599}"#);
    entra.answer(
        "GET",
        "/metadata/identity/oauth2/token",
        200,
        r#"{"access_token":"entra","expires_in":"3599"}"#,
    );
    registry.answer("POST", "/oauth2/exchange", 200, r#"{"refresh_token":"acr-refresh"}"#);
    let folder = tempfile::tempdir().unwrap();
    let federated = file(folder.path(), "token", "federated-jwt");
    let url = entra.url();
    let base = [("AZURE_AUTHORITY_HOST", url.as_str()), ("AZURE_POD_IDENTITY_AUTHORITY_HOST", url.as_str())];
    let cases: [&[(&str, &str)]; 3] = [
        &[("AZURE_CLIENT_ID", "id"), ("AZURE_TENANT_ID", "tenant"), ("AZURE_CLIENT_SECRET", "s")],
        &[
            ("AZURE_CLIENT_ID", "id"),
            ("AZURE_TENANT_ID", "tenant"),
            ("AZURE_FEDERATED_TOKEN_FILE", &federated),
        ],
        &[],
    ];
    for case in cases {
        let environment = environment(&[case, &base].concat());
        let login =
            acr::exchange_at(&registry.url(), "me.azurecr.io", &environment, &exchange()).await.unwrap();
        assert!(matches!(login.secret, LoginSecret::IdentityToken(token) if token.expose() == "acr-refresh"));
    }
    // In China the token is for China's management.
    let environment = environment(&[cases[0], &base].concat());
    acr::exchange_at(&registry.url(), "me.azurecr.cn", &environment, &exchange()).await.unwrap();
    let asked = entra.asked();
    assert!(
        asked[3].body.contains("scope=https%3A%2F%2Fmanagement.chinacloudapi.cn%2F.default"),
        "{}",
        asked[3].body
    );
    assert_eq!(
        asked[0].body,
        "grant_type=client_credentials&client_id=id&scope=https%3A%2F%2Fmanagement.azure.com%2F.default&client_secret=s"
    );
    assert!(asked[1].body.ends_with("client_assertion=federated-jwt"), "{}", asked[1].body);
    assert_eq!(asked[2].header("metadata"), "true");
    assert_eq!(
        registry.asked()[0].body,
        "grant_type=access_token&service=me.azurecr.io&access_token=entra&tenant=tenant"
    );
}

#[tokio::test]
async fn a_pod_s_pull_secrets_are_read_through_its_service_account() {
    let authority = TestAuthority::new();
    let cluster = StandIn::start_tls(&authority).await;
    let namespace = "/api/v1/namespaces/ci";
    let pod = json!({ "spec": { "imagePullSecrets": [{ "name": "one" }] } });
    cluster.answer("GET", &format!("{namespace}/pods/build-1"), 200, pod.to_string());
    let account = json!({ "imagePullSecrets": [{ "name": "one" }, { "name": "two" }] });
    cluster.answer("GET", &format!("{namespace}/serviceaccounts/builder"), 200, account.to_string());
    cluster.answer("GET", &format!("{namespace}/secrets/one"), 403, "{}");
    let auths = r#"{"auths":{"reg.io":{"username":"u","password":"p"}}}"#;
    let secret = json!({ "data": { ".dockerconfigjson": STANDARD.encode(auths) } });
    cluster.answer("GET", &format!("{namespace}/secrets/two"), 200, secret.to_string());
    let folder = tempfile::tempdir().unwrap();
    let claims = URL_SAFE_NO_PAD.encode(r#"{"sub":"system:serviceaccount:ci:builder"}"#);
    file(folder.path(), "token", &format!("x.{claims}.y"));
    file(folder.path(), "namespace", "ci");
    file(folder.path(), "ca.crt", &authority.ca);
    let port = cluster.port().to_string();
    let pairs = [
        ("KUBERNETES_SERVICE_HOST", "127.0.0.1"),
        ("KUBERNETES_SERVICE_PORT", &*port),
        ("HOSTNAME", "build-1"),
    ];
    let options = CredentialOptions { service_account: Some(folder.path().to_owned()), ..options(&pairs) };
    let credentials = Credentials::new(options);
    let login = credentials.find("reg.io", "a", &exchange()).await.login.unwrap();
    assert_eq!(login.source, "the pull secret two");
    assert!(credentials.find("other.io", "a", &exchange()).await.login.is_none());
    assert_eq!(cluster.asked().len(), 4);
    assert!(cluster.asked()[0].header("authorization").starts_with("Bearer x."));
}

#[tokio::test]
async fn what_a_cloud_says_no_to_is_told_without_secrets_and_asked_once() {
    let aws = StandIn::start().await;
    aws.answer(
        "POST",
        "/",
        400,
        r#"{"__type":"UnrecognizedClientException","message":"The security token is invalid"}"#,
    );
    let url = aws.url();
    let pairs =
        [("AWS_ACCESS_KEY_ID", "A"), ("AWS_SECRET_ACCESS_KEY", "hunter2"), ("AWS_ENDPOINT_URL_ECR", &*url)];
    let credentials = Credentials::new(options(&pairs));
    for path in ["a", "b"] {
        let found = credentials.find(ECR, path, &exchange()).await;
        assert!(found.login.is_none());
        assert!(found.failures[0].1.contains("The security token is invalid"), "{found:?}");
        assert!(!format!("{found:?} {credentials:?}").contains("hunter2"));
    }
    assert_eq!(aws.asked().len(), 1);
}
