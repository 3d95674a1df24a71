//! Who we are to an object store: every kind of identity that a pod can have, through a build whose context lies there. The
//! clouds' token services, metadata servers and stores are stand-ins that keep what they were asked.

use std::process::{Command, Output};

use kiln_integration::kiln;
use kiln_integration::work::text;
use kiln_testkit::StandIn;
use tokio::runtime::Runtime;

/// An archive of text, so that a stand-in can give it.
fn archive() -> String {
    let mut tar = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_ustar();
    header.set_size(8);
    header.set_mode(0o644);
    tar.append_data(&mut header, "greeting", &b"morning\n"[..]).unwrap();
    String::from_utf8(tar.into_inner().unwrap()).unwrap()
}

struct Cloud {
    runtime: Runtime,
    /// Tokens, keys, metadata.
    identity: StandIn,
    /// The objects.
    store: StandIn,
    directory: tempfile::TempDir,
}

impl Cloud {
    fn new() -> Self {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let (identity, store) = runtime.block_on(async { (StandIn::start().await, StandIn::start().await) });
        Self { runtime, identity, store, directory: tempfile::tempdir().unwrap() }
    }

    fn file(&self, name: &str, content: &str) -> String {
        let path = self.directory.path().join(name);
        std::fs::write(&path, content).unwrap();
        path.display().to_string()
    }

    /// Builds from the context; nothing of this machine's own environment is seen.
    fn build(&self, context: &str, variables: &[(&str, &str)]) -> Output {
        let _runs = self.runtime.enter();
        let file = self.file("Dockerfile", "FROM scratch\nCOPY greeting /greeting\n");
        let mut command = Command::new(kiln());
        command.args(["executor", "--no-push", "--reproducible", "-f", &file, "-c", context]);
        command.arg("--digest-file").arg(self.directory.path().join("digest"));
        command.arg("--scratch-dir").arg(self.directory.path().join("scratch"));
        command.env_clear().env("HOME", self.directory.path()).envs(variables.iter().copied());
        command.output().unwrap()
    }

    /// The build succeeds, and what is built is what the file in a directory gives. Gives the `Authorization` header that
    /// the store got.
    fn builds(&self, context: &str, variables: &[(&str, &str)]) -> String {
        let output = self.build(context, variables);
        assert!(output.status.success(), "{variables:?}: {}", text(&output));
        let digest = || std::fs::read_to_string(self.directory.path().join("digest")).unwrap();
        let found = digest();
        self.file("greeting", "morning\n");
        let here = self.build(self.directory.path().to_str().unwrap(), &[]);
        assert!(here.status.success(), "{}", text(&here));
        assert_eq!(found, digest(), "{variables:?}");
        self.store.asked().pop().expect("the store was asked").header("authorization").to_owned()
    }
}

const KEYS: &str = r#"{"Code":"Success","AccessKeyId":"ASIAPOD","SecretAccessKey":"s3cret","Token":"t0ken","SessionToken":"t0ken","Expiration":"2099-01-01T00:00:00Z"}"#;
const ASSUMED: &str = "<R><Credentials><AccessKeyId>ASIAPOD</AccessKeyId><SecretAccessKey>s3cret</SecretAccessKey><SessionToken>t0ken</SessionToken></Credentials></R>";

/// Builds from S3 with the identity, and checks that the store got a signature with its key, and its session's token.
fn s3(cloud: &Cloud, variables: &[(&str, &str)]) {
    cloud.store.answer("GET", "/contexts/c.tar", 200, archive());
    let (store, region) = (cloud.store.url(), ("AWS_REGION", "eu-west-1"));
    let signed = cloud
        .builds("s3://contexts/c.tar", &[&[("S3_ENDPOINT", store.as_str()), region], variables].concat());
    assert!(
        signed.contains("Credential=ASIAPOD/") && signed.contains("/eu-west-1/s3/aws4_request"),
        "{signed}"
    );
    assert!(signed.contains("x-amz-security-token"), "the session is signed, too: {signed}");
    assert_eq!(cloud.store.asked().pop().unwrap().header("x-amz-security-token"), "t0ken");
}

#[test]
fn a_role_of_a_service_account_reads_s3() {
    let cloud = Cloud::new();
    let token = cloud.file("token", "the-pod's-jwt\n");
    let endpoint = cloud.identity.url();
    cloud.identity.answer("POST", "/", 200, ASSUMED);
    s3(
        &cloud,
        &[
            ("AWS_WEB_IDENTITY_TOKEN_FILE", &token),
            ("AWS_ROLE_ARN", "arn:aws:iam::1:role/ci"),
            ("AWS_ENDPOINT_URL_STS", &endpoint),
        ],
    );
    let asked = cloud.identity.asked().pop().unwrap();
    assert!(asked.body.contains("Action=AssumeRoleWithWebIdentity"), "{asked:?}");
    assert!(asked.body.contains("the-pod%27s-jwt") && asked.body.contains("role%2Fci"), "{asked:?}");
}

#[test]
fn an_eks_pod_identity_reads_s3() {
    let cloud = Cloud::new();
    let (token, agent) =
        (cloud.file("token", "the-pod's-jwt"), format!("{}/v1/credentials", cloud.identity.url()));
    cloud.identity.answer("GET", "/v1/credentials", 200, KEYS);
    s3(
        &cloud,
        &[("AWS_CONTAINER_CREDENTIALS_FULL_URI", &agent), ("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", &token)],
    );
    assert_eq!(cloud.identity.asked()[0].header("authorization"), "the-pod's-jwt");
}

#[test]
fn the_role_of_an_instance_reads_s3() {
    let cloud = Cloud::new();
    let (server, role) = (cloud.identity.url(), "/latest/meta-data/iam/security-credentials/");
    cloud.identity.answer("PUT", "/latest/api/token", 200, "session-token");
    cloud.identity.answer("GET", role, 200, "node-role");
    cloud.identity.answer("GET", &format!("{role}node-role"), 200, KEYS);
    s3(&cloud, &[("AWS_EC2_METADATA_SERVICE_ENDPOINT", &server)]);
    let asked = cloud.identity.asked();
    assert!(
        asked[1..].iter().all(|asked| asked.header("x-aws-ec2-metadata-token") == "session-token"),
        "{asked:?}"
    );
}

#[test]
fn a_profile_s_role_reads_s3() {
    let cloud = Cloud::new();
    let endpoint = cloud.identity.url();
    cloud.identity.answer("POST", "/", 200, ASSUMED);
    let config = "[profile ci]\nrole_arn = arn:aws:iam::1:role/ci\nsource_profile = base\n[profile base]\naws_access_key_id = AKIABASE\naws_secret_access_key = b4se\n";
    let config = cloud.file("aws-config", config);
    s3(&cloud, &[("AWS_CONFIG_FILE", &config), ("AWS_PROFILE", "ci"), ("AWS_ENDPOINT_URL_STS", &endpoint)]);
    let asked = cloud.identity.asked().pop().unwrap();
    assert!(asked.body.contains("Action=AssumeRole&"), "{asked:?}");
    assert!(asked.header("authorization").contains("Credential=AKIABASE/"), "{asked:?}");
}

#[test]
fn an_identity_of_amazon_s_that_is_refused_is_named_and_no_secret_is() {
    let cloud = Cloud::new();
    let (token, endpoint, store) =
        (cloud.file("token", "jwt-s3cret"), cloud.identity.url(), cloud.store.url());
    let named = [
        ("S3_ENDPOINT", store.as_str()),
        ("AWS_WEB_IDENTITY_TOKEN_FILE", &token),
        ("AWS_ROLE_ARN", "arn:aws:iam::1:role/ci"),
        ("AWS_ENDPOINT_URL_STS", &endpoint),
    ];
    cloud.identity.answer(
        "POST",
        "/",
        403,
        "<E><Error><Message>Not authorized to perform sts</Message></Error></E>",
    );
    let log = text(&cloud.build("s3://contexts/c.tar", &named));
    assert!(log.contains("Not authorized to perform sts") && !log.contains("jwt-s3cret"), "{log}");
    assert!(cloud.store.asked().is_empty(), "who was named and is refused does not go on as nobody");
    cloud.store.answer(
        "GET",
        "/contexts/c.tar",
        403,
        "<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>",
    );
    let cloud2 = Cloud::new();
    cloud2.identity.answer("POST", "/", 200, ASSUMED);
    let endpoint = cloud2.identity.url();
    let named = [named[0], named[1], named[2], ("AWS_ENDPOINT_URL_STS", &endpoint)];
    let output = cloud2.build("s3://contexts/c.tar", &named);
    let log = text(&output);
    assert_eq!(output.status.code(), Some(1), "{log}");
    assert!(
        log.contains("Access Denied") && log.contains("the web identity in") && log.contains("403"),
        "{log}"
    );
    assert!(!log.contains("t0ken") && !log.contains("jwt-s3cret"), "{log}");
}

const OBJECT: &str = "/storage/v1/b/contexts/o/c.tar";

/// Builds from Cloud Storage with the identity, and checks that the store got its token.
fn gs(cloud: &Cloud, variables: &[(&str, &str)]) {
    cloud.store.answer("GET", OBJECT, 200, archive());
    let store = format!("{}/storage/v1/", cloud.store.url());
    let place = ("CLOUDSDK_API_ENDPOINT_OVERRIDES_STORAGE", store.as_str());
    let shown = cloud.builds("gs://contexts/c.tar", &[&[place], variables].concat());
    assert_eq!(shown, "Bearer goog-token");
}

const GOOGLE: &str = r#"{"access_token":"goog-token","expires_in":3600,"token_type":"Bearer"}"#;
const METADATA: &str = "/computeMetadata/v1/instance/service-accounts/default/token";

#[test]
fn a_workload_identity_of_gke_reads_cloud_storage() {
    let cloud = Cloud::new();
    let host = cloud.identity.host();
    cloud.identity.answer("GET", METADATA, 200, GOOGLE);
    gs(&cloud, &[("GCE_METADATA_HOST", &host)]);
    assert_eq!(cloud.identity.asked()[0].header("metadata-flavor"), "Google");
}

#[test]
fn a_federated_identity_reads_cloud_storage() {
    let cloud = Cloud::new();
    let (token, url) = (cloud.file("token", "the-pod's-jwt"), format!("{}/v1/token", cloud.identity.url()));
    cloud.identity.answer("POST", "/v1/token", 200, GOOGLE);
    let account = serde_json::json!({
        "type": "external_account", "audience": "//iam.googleapis.com/projects/1/x",
        "subject_token_type": "urn:ietf:params:oauth:token-type:jwt", "token_url": url,
        "credential_source": {"file": token},
    });
    let account = cloud.file("account.json", &account.to_string());
    gs(&cloud, &[("GOOGLE_APPLICATION_CREDENTIALS", &account)]);
    assert!(cloud.identity.asked()[0].body.contains("the-pod%27s-jwt"));
}

#[test]
fn google_s_refusals_say_who_was_refused_and_by_whom() {
    let cloud = Cloud::new();
    let (store, host) = (format!("{}/storage/v1/", cloud.store.url()), cloud.identity.host());
    let place = ("CLOUDSDK_API_ENDPOINT_OVERRIDES_STORAGE", store.as_str());
    // The token service refuses.
    let url = format!("{}/token", cloud.identity.url());
    cloud.identity.answer(
        "POST",
        "/token",
        401,
        r#"{"error":"invalid_grant","error_description":"Token has been revoked."}"#,
    );
    let user = serde_json::json!({
        "type": "authorized_user", "client_id": "i", "client_secret": "s3cret", "refresh_token": "r3fresh", "token_uri": url,
    });
    let file = cloud.file("user.json", &user.to_string());
    let output = cloud.build("gs://contexts/c.tar", &[place, ("GOOGLE_APPLICATION_CREDENTIALS", &file)]);
    let log = text(&output);
    assert_eq!(output.status.code(), Some(1), "{log}");
    assert!(log.contains("Token has been revoked") && log.contains("401"), "{log}");
    assert!(!log.contains("s3cret") && !log.contains("r3fresh"), "{log}");
    assert!(cloud.store.asked().is_empty());
    // The store refuses, first who is nobody, then who may not.
    for (status, said) in
        [(401, "Anonymous caller does not have access"), (403, "ci@x does not have storage.objects.get")]
    {
        let cloud = Cloud::new();
        let store = format!("{}/storage/v1/", cloud.store.url());
        let place = ("CLOUDSDK_API_ENDPOINT_OVERRIDES_STORAGE", store.as_str());
        let error = serde_json::json!({"error": {"code": status, "message": said}});
        cloud.store.answer("GET", OBJECT, status, error.to_string());
        let known = cloud.identity.host();
        if status == 403 {
            cloud.identity.answer("GET", METADATA, 200, GOOGLE);
        }
        let output = cloud.build("gs://contexts/c.tar", &[place, ("GCE_METADATA_HOST", &known)]);
        let log = text(&output);
        assert_eq!(output.status.code(), Some(1), "{log}");
        let who = if status == 403 { "Google's metadata server" } else { "asked without credentials" };
        assert!(log.contains(said) && log.contains(who) && !log.contains("goog-token"), "{log}");
    }
    drop(host);
}

/// Builds from Azure with the identity, and checks that the store got its token.
fn azure(cloud: &Cloud, variables: &[(&str, &str)]) {
    cloud.store.answer("GET", "/me/contexts/c.tar", 200, archive());
    let store = format!("{}/me", cloud.store.url());
    let place = ("AZURE_STORAGE_SERVICE_ENDPOINT", store.as_str());
    let context = "https://me.blob.core.windows.net/contexts/c.tar";
    let shown = cloud.builds(context, &[&[place], variables].concat());
    assert_eq!(shown, "Bearer az-token");
}

const AZURE: &str = r#"{"access_token":"az-token","expires_in":3600}"#;

#[test]
fn a_workload_identity_of_aks_reads_blobs() {
    let cloud = Cloud::new();
    let (token, authority) = (cloud.file("token", "the-pod's-jwt"), cloud.identity.url());
    cloud.identity.answer("POST", "/my-tenant/oauth2/v2.0/token", 200, AZURE);
    azure(
        &cloud,
        &[
            ("AZURE_CLIENT_ID", "my-client"),
            ("AZURE_TENANT_ID", "my-tenant"),
            ("AZURE_FEDERATED_TOKEN_FILE", &token),
            ("AZURE_AUTHORITY_HOST", &authority),
        ],
    );
    let asked = cloud.identity.asked().pop().unwrap();
    assert!(asked.body.contains("the-pod%27s-jwt") && asked.body.contains("storage.azure.com"), "{asked:?}");
}

#[test]
fn a_managed_identity_of_azure_reads_blobs() {
    let cloud = Cloud::new();
    let server = cloud.identity.url();
    cloud.identity.answer("GET", "/metadata/identity/oauth2/token", 200, AZURE);
    azure(&cloud, &[("AZURE_POD_IDENTITY_AUTHORITY_HOST", &server)]);
    let asked = cloud.identity.asked().pop().unwrap();
    assert_eq!(asked.header("metadata"), "true");
    assert!(asked.query.contains("resource=https%3A%2F%2Fstorage.azure.com%2F"), "{asked:?}");
}

#[test]
fn a_refused_identity_of_azure_s_is_named() {
    let cloud = Cloud::new();
    let (authority, store) = (cloud.identity.url(), cloud.store.url());
    cloud.identity.answer(
        "POST",
        "/t/oauth2/v2.0/token",
        401,
        r#"{"error_description":"AADSTS7000215: Invalid client secret"}"#,
    );
    let variables = [
        ("AZURE_STORAGE_SERVICE_ENDPOINT", store.as_str()),
        ("AZURE_CLIENT_ID", "c"),
        ("AZURE_TENANT_ID", "t"),
        ("AZURE_CLIENT_SECRET", "s3cret"),
        ("AZURE_AUTHORITY_HOST", &authority),
    ];
    let output = cloud.build("https://me.blob.core.windows.net/contexts/c.tar", &variables);
    let log = text(&output);
    assert_eq!(output.status.code(), Some(1), "{log}");
    assert!(log.contains("AADSTS7000215") && !log.contains("s3cret"), "{log}");
    assert!(cloud.store.asked().is_empty());
}
