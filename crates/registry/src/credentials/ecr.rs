//! Amazon's Elastic Container Registry, private and public: `GetAuthorizationToken`, signed with the keys that
//! [`aws::keys`] finds.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use kiln_cloud::aws::{self, Request, sign};
use kiln_cloud::{Exchange, member};
use serde_json::Value;
use url::Url;

use super::{Environment, Login};

/// A registry of Amazon's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum EcrHost {
    Private { account: String, region: String, api: String },
    Public,
}

/// The token is good for twelve hours; it is asked for again much earlier.
const FRESH: Duration = Duration::from_secs(3600);

/// Reads `ACCOUNT.dkr.ecr[-fips].REGION.amazonaws.com`, the dual-stack `ACCOUNT.dkr-ecr[-fips].REGION.on.aws`, and their
/// like in other partitions.
pub(super) fn parse(host: &str) -> Option<EcrHost> {
    if matches!(host, "public.ecr.aws" | "ecr-public.aws.com") {
        return Some(EcrHost::Public);
    }
    let (account, rest) = host.split_once('.')?;
    if account.len() != 12 || !account.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let (dual, rest) = match rest.strip_prefix("dkr-") {
        Some(rest) => (true, rest),
        None => (false, rest.strip_prefix("dkr.")?),
    };
    let (kind, rest) = rest.split_once('.')?;
    let prefix = match (kind, dual) {
        ("ecr", false) => "api.ecr",
        ("ecr" | "ecr-fips", _) => kind,
        _ => return None,
    };
    let (region, domain) = rest.split_once('.')?;
    let known = if dual { &DUAL_STACK[..] } else { &DOMAINS[..] };
    let (_, api) = known.iter().find(|(name, _)| *name == domain).filter(|_| is_region(region))?;
    let api = format!("{prefix}.{region}.{api}");
    Some(EcrHost::Private { account: account.to_owned(), region: region.to_owned(), api })
}

/// The domains of registries, each with that of the API.
const DOMAINS: [(&str, &str); 7] = [
    ("amazonaws.com", "amazonaws.com"),
    ("amazonaws.com.cn", "amazonaws.com.cn"),
    ("amazonaws.eu", "amazonaws.eu"),
    ("c2s.ic.gov", "c2s.ic.gov"),
    ("sc2s.sgov.gov", "sc2s.sgov.gov"),
    ("cloud.adc-e.uk", "cloud.adc-e.uk"),
    ("csp.hci.ic.gov", "csp.hci.ic.gov"),
];
/// The same where both versions of IP are spoken.
const DUAL_STACK: [(&str, &str); 2] =
    [("on.aws", "api.aws"), ("on.amazonwebservices.com.cn", "api.amazonwebservices.com.cn")];

fn is_region(text: &str) -> bool {
    !text.is_empty()
        && text.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
}

/// A login for `host`. Where there are no keys, none for the public registry, which serves anybody.
pub(super) async fn login(
    host: &str,
    environment: &Environment,
    exchange: &Exchange,
) -> Result<Option<Login>, String> {
    let Some(parsed) = parse(host) else { return Ok(None) };
    let (api, region, service, target, body) = match &parsed {
        EcrHost::Private { account, region, api } => (
            api.as_str(),
            region.as_str(),
            "ecr",
            "AmazonEC2ContainerRegistry_V20150921.GetAuthorizationToken",
            format!("{{\"registryIds\":[\"{account}\"]}}"),
        ),
        EcrHost::Public => (
            "api.ecr-public.us-east-1.amazonaws.com",
            "us-east-1",
            "ecr-public",
            "SpencerFrontendService.GetAuthorizationToken",
            "{}".to_owned(),
        ),
    };
    let (keys, source) = match aws::keys(environment, region, exchange).await {
        Ok(found) => found,
        Err(_) if parsed == EcrHost::Public => return Ok(None),
        Err(why) => return Err(why),
    };
    let variable =
        if parsed == EcrHost::Public { "AWS_ENDPOINT_URL_ECR_PUBLIC" } else { "AWS_ENDPOINT_URL_ECR" };
    let url = match environment.get(variable).or_else(|| environment.get("AWS_ENDPOINT_URL")) {
        Some(endpoint) => endpoint.to_owned(),
        None => format!("https://{api}/"),
    };
    let url = Url::parse(&url).map_err(|_| format!("the endpoint {url} is no URL"))?;
    let headers = [("content-type", "application/x-amz-json-1.1"), ("x-amz-target", target)];
    let request =
        Request { method: "POST", url: &url, headers: &headers, body: body.as_bytes(), region, service };
    let mut http = exchange.client.post(url.clone());
    for (name, value) in sign(&request, &keys, (exchange.clock)()) {
        http = http.header(name, value);
    }
    for (name, value) in headers {
        http = http.header(name, value);
    }
    let answer = exchange.json(http.body(body), api).await?;
    let data = &answer["authorizationData"];
    let data = data.get(0).unwrap_or(data);
    read_token(data, api, source).map(Some)
}

fn read_token(data: &Value, api: &str, source: String) -> Result<Login, String> {
    let token = member(data, "authorizationToken", api)?;
    let wrong = || format!("{api} gave a token of a form that is not known here");
    let text = String::from_utf8(STANDARD.decode(token).map_err(|_| wrong())?).map_err(|_| wrong())?;
    let (user, password) = text.split_once(':').ok_or_else(wrong)?;
    Ok(Login::basic(user, password, source).valid_for(FRESH))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amazon_s_hosts_are_read_and_lookalikes_refused() {
        let Some(EcrHost::Private { account, region, api }) =
            parse("123456789012.dkr.ecr.eu-west-1.amazonaws.com")
        else {
            panic!("not read")
        };
        assert_eq!((account.as_str(), region.as_str()), ("123456789012", "eu-west-1"));
        assert_eq!(api, "api.ecr.eu-west-1.amazonaws.com");
        assert_eq!(parse("public.ecr.aws"), Some(EcrHost::Public));
        assert_eq!(parse("ecr-public.aws.com"), Some(EcrHost::Public));
        for (host, expected) in [
            ("dkr.ecr-fips.us-gov-west-1.amazonaws.com", "ecr-fips.us-gov-west-1.amazonaws.com"),
            ("dkr.ecr.cn-north-1.amazonaws.com.cn", "api.ecr.cn-north-1.amazonaws.com.cn"),
            ("dkr-ecr.eu-west-1.on.aws", "ecr.eu-west-1.api.aws"),
            ("dkr-ecr-fips.us-east-1.on.aws", "ecr-fips.us-east-1.api.aws"),
            (
                "dkr-ecr.cn-northwest-1.on.amazonwebservices.com.cn",
                "ecr.cn-northwest-1.api.amazonwebservices.com.cn",
            ),
        ] {
            match parse(&format!("123456789012.{host}")) {
                Some(EcrHost::Private { api, .. }) => assert_eq!(api, expected),
                other => panic!("{host}: {other:?}"),
            }
        }
        for host in [
            "123456789012.dkr-ecr.eu-west-1.amazonaws.com",
            "123456789012.dkr.ecr.eu-west-1.on.aws",
            "123456789012.dkr.ecr.eu-west-1.on.aws.evil.org",
            "123456789012.dkr.ecr..amazonaws.com",
            "x123456789012.dkr.ecr.eu-west-1.amazonaws.com",
            "123456789012.dkr.ecr.eu-west-1.amazonaws.com:443",
            "ecr-public.aws.com.evil.org",
            "123456789012.dkr.ecr.eu-west-1.amazonaws.com.evil.org",
            "123456789012.dkr.ecr.evil.org/x.amazonaws.com",
            "12345.dkr.ecr.eu-west-1.amazonaws.com",
            "evil.public.ecr.aws",
            "dkr.ecr.eu-west-1.amazonaws.com",
        ] {
            assert_eq!(parse(host), None, "{host}");
        }
    }
}
