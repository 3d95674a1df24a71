//! Google's OAuth2 access tokens. They come from application default credentials (RFC 7523 for service accounts, RFC 8693 for workload identity
//! federation) or from the metadata server, which is workload identity in GKE.

use std::time::{Duration, UNIX_EPOCH};

use rustls::SignatureScheme;
use rustls::pki_types::PrivateKeyDer;
use rustls::pki_types::pem::PemObject as _;
use serde_json::{Value, json};

use crate::Environment;
use crate::exchange::{Exchange, FORM, base64url, form, member, read_file};
use crate::google_aws;

const SCOPE: &str = "https://www.googleapis.com/auth/cloud-platform";
const TOKEN_URL: &str = "https://oauth2.googleapis.com/token";

/// An access token, how long it is good for, and the source that gave it.
pub type Token = (String, Duration, String);

/// Where application default credentials are, if they are anywhere.
fn file(environment: &Environment) -> Option<String> {
    match environment.get("GOOGLE_APPLICATION_CREDENTIALS") {
        Some(path) => Some(path.to_owned()),
        None => environment
            .get("CLOUDSDK_CONFIG")
            .map(str::to_owned)
            .or_else(|| environment.get("HOME").map(|home| format!("{home}/.config/gcloud")))
            .map(|folder| format!("{folder}/application_default_credentials.json"))
            .filter(|path| std::path::Path::new(path).is_file()),
    }
}

/// A token from the first source that is there.
pub async fn token(environment: &Environment, exchange: &Exchange) -> Result<Token, String> {
    if let Some(path) = file(environment) {
        let value: Value =
            serde_json::from_str(&read_file(&path)?).map_err(|_| format!("{path} is no JSON"))?;
        let (token, lifetime) = exchange_credentials(&value, &path, environment, exchange).await?;
        return Ok((token, lifetime, path));
    }
    let (token, lifetime) = metadata(environment, exchange).await?;
    Ok((token, lifetime, "Google's metadata server".to_owned()))
}

type Fresh = (String, Duration);

async fn exchange_credentials(
    value: &Value,
    path: &str,
    environment: &Environment,
    exchange: &Exchange,
) -> Result<Fresh, String> {
    match value["type"].as_str() {
        Some("impersonated_service_account") => {
            let (token, _) = simple(&value["source_credentials"], path, exchange).await?;
            impersonate(value, &token, path, exchange).await
        }
        Some("external_account") => {
            let (token, lifetime) = federated(value, path, environment, exchange).await?;
            if value["service_account_impersonation_url"].is_string() {
                impersonate(value, &token, path, exchange).await
            } else {
                Ok((token, lifetime))
            }
        }
        _ => simple(value, path, exchange).await,
    }
}

/// A service account's key, or a user's refresh token.
async fn simple(value: &Value, path: &str, exchange: &Exchange) -> Result<Fresh, String> {
    let url = value["token_uri"].as_str().unwrap_or(TOKEN_URL);
    let fields = match value["type"].as_str() {
        Some("service_account") => {
            let assertion = assertion(value, path, url, exchange)?;
            form(&[("grant_type", "urn:ietf:params:oauth:grant-type:jwt-bearer"), ("assertion", &assertion)])
        }
        Some("authorized_user") => form(&[
            ("grant_type", "refresh_token"),
            ("client_id", &member(value, "client_id", path)?),
            ("client_secret", &member(value, "client_secret", path)?),
            ("refresh_token", &member(value, "refresh_token", path)?),
        ]),
        other => {
            return Err(format!("{path} holds credentials of the type {other:?}, which is not known here"));
        }
    };
    token_of(
        &exchange.json(exchange.client.post(url).header("content-type", FORM).body(fields), url).await?,
        url,
    )
}

fn token_of(answer: &Value, server: &str) -> Result<Fresh, String> {
    let lifetime = Duration::from_secs(answer["expires_in"].as_u64().unwrap_or(3600));
    Ok((member(answer, "access_token", server)?, lifetime))
}

/// The signed statement that we are the service account (RFC 7523; RS256).
fn assertion(value: &Value, path: &str, audience: &str, exchange: &Exchange) -> Result<String, String> {
    let now = (exchange.clock)().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let mut header = json!({ "alg": "RS256", "typ": "JWT" });
    if let Some(id) = value["private_key_id"].as_str() {
        header["kid"] = json!(id);
    }
    let claims = json!({
        "iss": member(value, "client_email", path)?,
        "scope": SCOPE,
        "aud": audience,
        "iat": now,
        "exp": now + 3600,
    });
    let text =
        format!("{}.{}", base64url(header.to_string().as_bytes()), base64url(claims.to_string().as_bytes()));
    let key = member(value, "private_key", path)?;
    let unusable = |_| format!("the private_key in {path} can't be used");
    let key = PrivateKeyDer::from_pem_slice(key.as_bytes())
        .map_err(|_| format!("the private_key in {path} is no PEM key"))?;
    let key = rustls::crypto::ring::sign::any_supported_type(&key).map_err(unusable)?;
    let signer = key
        .choose_scheme(&[SignatureScheme::RSA_PKCS1_SHA256])
        .ok_or_else(|| format!("the private_key in {path} is no RSA key"))?;
    let signature = signer.sign(text.as_bytes()).map_err(unusable)?;
    Ok(format!("{text}.{}", base64url(&signature)))
}

/// Workload identity federation: another issuer's token is exchanged at Google's token service.
async fn federated(
    value: &Value,
    path: &str,
    environment: &Environment,
    exchange: &Exchange,
) -> Result<Fresh, String> {
    let source = &value["credential_source"];
    let subject = if source["environment_id"].as_str().is_some_and(|id| id.starts_with("aws")) {
        google_aws::subject_token(value, path, environment, exchange).await?
    } else {
        subject_token(source, path, exchange).await?
    };
    let url = member(value, "token_url", path)?;
    let fields = form(&[
        ("grant_type", "urn:ietf:params:oauth:grant-type:token-exchange"),
        ("audience", &member(value, "audience", path)?),
        ("scope", SCOPE),
        ("requested_token_type", "urn:ietf:params:oauth:token-type:access_token"),
        ("subject_token", &subject),
        ("subject_token_type", &member(value, "subject_token_type", path)?),
    ]);
    let request = exchange.client.post(&url).header("content-type", FORM).body(fields);
    token_of(&exchange.json(request, &url).await?, &url)
}

async fn subject_token(source: &Value, path: &str, exchange: &Exchange) -> Result<String, String> {
    let text = if let Some(file) = source["file"].as_str() {
        read_file(file)?
    } else if let Some(url) = source["url"].as_str() {
        let mut request = exchange.client.get(url);
        for (name, value) in source["headers"].as_object().into_iter().flatten() {
            request = request.header(name, value.as_str().unwrap_or_default());
        }
        exchange.text(request, url).await?
    } else {
        return Err(format!("{path} has a credential_source that is neither a file nor a url"));
    };
    if source["format"]["type"] != "json" {
        return Ok(text.trim().to_owned());
    }
    let field = source["format"]["subject_token_field_name"].as_str().unwrap_or("access_token");
    let value: Value = serde_json::from_str(&text).map_err(|_| "the subject token is no JSON".to_owned())?;
    member(&value, field, "the subject token")
}

async fn impersonate(value: &Value, token: &str, path: &str, exchange: &Exchange) -> Result<Fresh, String> {
    let url = member(value, "service_account_impersonation_url", path)?;
    let body = json!({ "scope": [SCOPE], "lifetime": "3600s" }).to_string();
    let request =
        exchange.client.post(&url).bearer_auth(token).header("content-type", "application/json").body(body);
    let answer = exchange.json(request, &url).await?;
    Ok((member(&answer, "accessToken", &url)?, Duration::from_secs(3600)))
}

async fn metadata(environment: &Environment, exchange: &Exchange) -> Result<Fresh, String> {
    let host = environment.get("GCE_METADATA_HOST").unwrap_or("metadata.google.internal");
    let url = format!("http://{host}/computeMetadata/v1/instance/service-accounts/default/token");
    let request = exchange.client.get(&url).header("metadata-flavor", "Google");
    token_of(&exchange.nearby_json(request, host).await?, host)
}
