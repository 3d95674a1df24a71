//! Keys for AWS, in its SDKs' order: variables, a web identity (IRSA), profiles, the container's credentials (ECS, EKS
//! pod identity), the instance's metadata (version 2).

use std::collections::HashMap;

use kiln_oci::Redacted;
use serde_json::Value;

use crate::Environment;
use crate::exchange::{Exchange, FORM, element, form, member, read_file};

pub use crate::sigv4::{AwsKeys, Request, sign};

/// The keys, and where they came from.
pub type Found = (AwsKeys, String);

/// The keys, and where they came from.
pub async fn keys(environment: &Environment, region: &str, exchange: &Exchange) -> Result<Found, String> {
    if let (Some(access), Some(secret)) =
        (environment.get("AWS_ACCESS_KEY_ID"), environment.get("AWS_SECRET_ACCESS_KEY"))
    {
        let session = environment.get("AWS_SESSION_TOKEN");
        return Ok((make(access, secret, session), "AWS_ACCESS_KEY_ID".to_owned()));
    }
    if let (Some(file), Some(role)) =
        (environment.get("AWS_WEB_IDENTITY_TOKEN_FILE"), environment.get("AWS_ROLE_ARN"))
    {
        let session = environment.get("AWS_ROLE_SESSION_NAME").unwrap_or("kiln");
        let keys = web_identity(environment, region, file, role, session, exchange).await?;
        return Ok((keys, format!("the web identity in {file}")));
    }
    let profiles = Profiles::read(environment);
    let name = environment.get("AWS_PROFILE").or_else(|| environment.get("AWS_DEFAULT_PROFILE"));
    if let Some(keys) = profile(environment, &profiles, name.unwrap_or("default"), region, exchange).await? {
        return Ok((keys, format!("the AWS profile {}", name.unwrap_or("default"))));
    }
    if let Some(name) = name {
        return Err(format!("the AWS profile {name} has no keys and no role that is known here"));
    }
    if let Some(keys) = container(environment, exchange).await? {
        return Ok((keys, "the container's AWS credentials".to_owned()));
    }
    if environment.get("AWS_EC2_METADATA_DISABLED").is_some_and(|value| value.eq_ignore_ascii_case("true")) {
        return Err("no AWS credentials were found".to_owned());
    }
    match instance(environment, exchange).await {
        Ok(keys) => Ok((keys, "the instance's AWS role".to_owned())),
        Err(why) => Err(format!("no AWS credentials were found; the last source that was asked: {why}")),
    }
}

/// The region that the environment or the profile names.
pub fn region(environment: &Environment) -> Option<String> {
    let named = environment.get("AWS_REGION").or_else(|| environment.get("AWS_DEFAULT_REGION"));
    named.map(str::to_owned).or_else(|| {
        let profile = environment.get("AWS_PROFILE").or_else(|| environment.get("AWS_DEFAULT_PROFILE"));
        Profiles::read(environment).get(profile.unwrap_or("default"), "region").map(str::to_owned)
    })
}

fn make(access: &str, secret: &str, session: Option<&str>) -> AwsKeys {
    AwsKeys {
        access: access.to_owned(),
        secret: Redacted::new(secret.to_owned()),
        session: session.map(|token| Redacted::new(token.to_owned())),
    }
}

fn token_service(environment: &Environment, region: &str) -> String {
    match environment.get("AWS_ENDPOINT_URL_STS").or_else(|| environment.get("AWS_ENDPOINT_URL")) {
        Some(endpoint) => format!("{}/", endpoint.trim_end_matches('/')),
        None if region.starts_with("cn-") => format!("https://sts.{region}.amazonaws.com.cn/"),
        None => format!("https://sts.{region}.amazonaws.com/"),
    }
}

async fn web_identity(
    environment: &Environment,
    region: &str,
    file: &str,
    role: &str,
    session: &str,
    exchange: &Exchange,
) -> Result<AwsKeys, String> {
    let token = read_file(file)?;
    let url = token_service(environment, region);
    let body = form(&[
        ("Action", "AssumeRoleWithWebIdentity"),
        ("Version", "2011-06-15"),
        ("RoleArn", role),
        ("RoleSessionName", session),
        ("WebIdentityToken", &token),
    ]);
    let request = exchange.client.post(&url).header("content-type", FORM).body(body);
    assumed(&exchange.text(request, &url).await?, &url)
}

/// Reads the keys in an answer of the token service.
fn assumed(text: &str, url: &str) -> Result<AwsKeys, String> {
    let part = |name| element(text, name).ok_or_else(|| format!("{url} gave no {name}"));
    Ok(make(part("AccessKeyId")?, part("SecretAccessKey")?, Some(part("SessionToken")?)))
}

/// The files `config` and `credentials`: section and key to value.
struct Profiles(HashMap<(String, String), String>);

impl Profiles {
    fn read(environment: &Environment) -> Self {
        let mut values = HashMap::new();
        let home = environment.get("HOME").unwrap_or("/root");
        let place = |variable, name: &str| {
            environment.get(variable).map_or_else(|| format!("{home}/.aws/{name}"), str::to_owned)
        };
        // What stands in `credentials` wins.
        for path in [place("AWS_CONFIG_FILE", "config"), place("AWS_SHARED_CREDENTIALS_FILE", "credentials")]
        {
            parse_ini(&std::fs::read_to_string(path).unwrap_or_default(), &mut values);
        }
        Self(values)
    }

    fn get(&self, profile: &str, key: &str) -> Option<&str> {
        self.0.get(&(profile.to_owned(), key.to_owned())).map(String::as_str)
    }
}

fn parse_ini(text: &str, values: &mut HashMap<(String, String), String>) {
    let mut section = String::new();
    for line in text.lines().map(str::trim) {
        if let Some(name) = line.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            let name = name.trim();
            name.strip_prefix("profile ").unwrap_or(name).trim().clone_into(&mut section);
        } else if let (Some((key, value)), false) = (line.split_once('='), line.starts_with(['#', ';'])) {
            values.insert((section.clone(), key.trim().to_ascii_lowercase()), value.trim().to_owned());
        }
    }
}

async fn profile(
    environment: &Environment,
    profiles: &Profiles,
    name: &str,
    region: &str,
    exchange: &Exchange,
) -> Result<Option<AwsKeys>, String> {
    let get = |key| profiles.get(name, key);
    let own = |name: &str| {
        let get = |key| profiles.get(name, key);
        Some(make(get("aws_access_key_id")?, get("aws_secret_access_key")?, get("aws_session_token")))
    };
    let Some(role) = get("role_arn") else { return Ok(own(name)) };
    let session = get("role_session_name").unwrap_or("kiln");
    if let Some(file) = get("web_identity_token_file") {
        return web_identity(environment, region, file, role, session, exchange).await.map(Some);
    }
    let source = get("source_profile").unwrap_or(name);
    let base = match own(source) {
        Some(keys) => keys,
        None if get("credential_source") == Some("EcsContainer") => {
            container(environment, exchange).await?.ok_or_else(|| {
                format!("the AWS profile {name} wants the container's credentials: there are none")
            })?
        }
        None if get("credential_source") == Some("Ec2InstanceMetadata") => {
            instance(environment, exchange).await?
        }
        None => {
            return Err(format!(
                "the AWS profile {name} has a role, but {source} has no keys to assume it with"
            ));
        }
    };
    assume(environment, region, role, session, &base, exchange).await.map(Some)
}

async fn assume(
    environment: &Environment,
    region: &str,
    role: &str,
    session: &str,
    base: &AwsKeys,
    exchange: &Exchange,
) -> Result<AwsKeys, String> {
    let url = token_service(environment, region);
    let body = form(&[
        ("Action", "AssumeRole"),
        ("Version", "2011-06-15"),
        ("RoleArn", role),
        ("RoleSessionName", session),
    ]);
    let parsed = url::Url::parse(&url).map_err(|_| format!("the endpoint {url} is no URL"))?;
    let headers = [("content-type", FORM)];
    let request = Request {
        method: "POST",
        url: &parsed,
        headers: &headers,
        body: body.as_bytes(),
        region,
        service: "sts",
    };
    let mut http = exchange.client.post(&url).header("content-type", FORM);
    for (name, value) in sign(&request, base, (exchange.clock)()) {
        http = http.header(name, value);
    }
    assumed(&exchange.text(http.body(body), &url).await?, &url)
}

/// ECS's and EKS's agents. Their address must be on this machine or link-local, or be HTTPS, as in AWS's SDKs.
async fn container(environment: &Environment, exchange: &Exchange) -> Result<Option<AwsKeys>, String> {
    let url = if let Some(path) = environment.get("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI") {
        format!("http://169.254.170.2{path}")
    } else if let Some(url) = environment.get("AWS_CONTAINER_CREDENTIALS_FULL_URI") {
        url.to_owned()
    } else {
        return Ok(None);
    };
    let parsed =
        url::Url::parse(&url).map_err(|_| format!("AWS_CONTAINER_CREDENTIALS_FULL_URI={url} is no URL"))?;
    let near = match parsed.host() {
        Some(url::Host::Ipv4(address)) => address.is_loopback() || address.is_link_local(),
        Some(url::Host::Ipv6(address)) => address.is_loopback() || address.segments()[..2] == [0xfd00, 0xec2],
        Some(url::Host::Domain(name)) => name == "localhost",
        None => false,
    };
    if parsed.scheme() != "https" && !near {
        return Err(format!(
            "AWS_CONTAINER_CREDENTIALS_FULL_URI={url} has no TLS and is not on this machine"
        ));
    }
    let token = match environment.get("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE") {
        Some(file) => Some(read_file(file)?),
        None => environment.get("AWS_CONTAINER_AUTHORIZATION_TOKEN").map(str::to_owned),
    };
    let mut request = exchange.client.get(parsed);
    if let Some(token) = token {
        request = request.header("authorization", token);
    }
    read(&exchange.nearby_json(request, "the container's AWS agent").await?, "the container's AWS agent")
        .map(Some)
}

async fn instance(environment: &Environment, exchange: &Exchange) -> Result<AwsKeys, String> {
    let base = environment.get("AWS_EC2_METADATA_SERVICE_ENDPOINT").unwrap_or("http://169.254.169.254");
    let base = base.trim_end_matches('/');
    let server = "the instance's metadata server";
    let request = exchange
        .client
        .put(format!("{base}/latest/api/token"))
        .header("x-aws-ec2-metadata-token-ttl-seconds", "300");
    let token = exchange.nearby(request, server).await?;
    let get = |path: String| {
        exchange
            .client
            .get(format!("{base}/latest/meta-data/iam/security-credentials/{path}"))
            .header("x-aws-ec2-metadata-token", token.trim())
    };
    let role = exchange.nearby(get(String::new()), server).await?;
    let role = role.lines().next().unwrap_or_default().trim().to_owned();
    read(&exchange.nearby_json(get(role), server).await?, server)
}

fn read(value: &Value, server: &str) -> Result<AwsKeys, String> {
    let get = |name| member(value, name, server);
    Ok(make(&get("AccessKeyId")?, &get("SecretAccessKey")?, value["Token"].as_str()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn profiles_are_read_as_aws_writes_them() {
        let mut values = HashMap::new();
        parse_ini("# a note\n[default]\nregion = eu\n[profile ci]\naws_access_key_id=A\n", &mut values);
        parse_ini("[ci]\naws_secret_access_key = S/=\n", &mut values);
        let profiles = Profiles(values);
        assert_eq!(profiles.get("ci", "aws_access_key_id"), Some("A"));
        assert_eq!(profiles.get("ci", "aws_secret_access_key"), Some("S/="));
        assert_eq!(profiles.get("default", "region"), Some("eu"));
    }
}
