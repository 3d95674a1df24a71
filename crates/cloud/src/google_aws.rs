//! Workload identity federation from AWS: the token for Google is a signed request to AWS's own "who am I", which Google
//! then sends ("Obtaining short-lived credentials with identity federation", Google Cloud IAM).

use serde_json::{Value, json};
use url::Url;

use crate::Environment;
use crate::aws::{Request, keys, sign};
use crate::exchange::{Exchange, member};

/// The signed request, as the text that Google's token service takes.
pub(crate) async fn subject_token(
    account: &Value,
    path: &str,
    environment: &Environment,
    exchange: &Exchange,
) -> Result<String, String> {
    let source = &account["credential_source"];
    let id = source["environment_id"].as_str().unwrap_or_default();
    if id != "aws1" {
        return Err(format!("{path} has the environment_id {id:?}; of AWS's, only aws1 is known here"));
    }
    let audience = member(account, "audience", path)?;
    let region = region(source, path, environment, exchange).await?;
    let (keys, _) = keys(environment, &region, exchange).await?;
    let url = member(source, "regional_cred_verification_url", path)?.replace("{region}", &region);
    let parsed: Url = url.parse().map_err(|_| format!("{path}: {url} is no URL"))?;
    let own = [("x-goog-cloud-target-resource", audience.as_str())];
    let request =
        Request { method: "POST", url: &parsed, headers: &own, body: b"", region: &region, service: "sts" };
    let added = sign(&request, &keys, (exchange.clock)());
    let host = parsed.host_str().unwrap_or_default();
    let host = parsed.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"));
    let headers: Vec<Value> = added
        .iter()
        .map(|(name, value)| (*name, value.as_str()))
        .chain([("host", host.as_str())])
        .chain(own)
        .map(|(key, value)| json!({ "key": key, "value": value }))
        .collect();
    let text = json!({ "url": url, "method": "POST", "headers": headers }).to_string();
    Ok(url::form_urlencoded::byte_serialize(text.as_bytes()).collect())
}

/// The region: from the environment, else from the instance's own zone.
async fn region(
    source: &Value,
    path: &str,
    environment: &Environment,
    exchange: &Exchange,
) -> Result<String, String> {
    if let Some(region) = ["AWS_REGION", "AWS_DEFAULT_REGION"].iter().find_map(|name| environment.get(name)) {
        return Ok(region.to_owned());
    }
    let url = member(source, "region_url", path)?;
    let mut request = exchange.client.get(&url);
    if let Some(server) = source["imdsv2_session_token_url"].as_str() {
        let ask = exchange.client.put(server).header("x-aws-ec2-metadata-token-ttl-seconds", "300");
        request = request.header("x-aws-ec2-metadata-token", exchange.nearby(ask, server).await?.trim());
    }
    let zone = exchange.nearby(request, &url).await?;
    // `us-east-2b` lies in `us-east-2`.
    let region = zone.trim().trim_end_matches(|c: char| c.is_ascii_lowercase());
    if region.is_empty() { Err(format!("{url} names no zone")) } else { Ok(region.to_owned()) }
}
