//! Amazon's S3 and what speaks its protocol: `GetObject`, signed by version 4; buckets in the host's name or in the path.

use std::sync::Arc;

use kiln_cloud::Clock;
use kiln_cloud::aws::{self, AwsKeys, Request, sign};
use reqwest::header::HeaderMap;
use reqwest::{Client, RequestBuilder, StatusCode};
use url::{Host, Url};

use super::{Requests, encoded};
use crate::Access;

/// The SHA-256 of nothing: a GET has no body.
const EMPTY: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

#[derive(Clone)]
pub(super) struct S3 {
    client: Client,
    clock: Clock,
    bucket: String,
    key: String,
    endpoint: Option<Url>,
    path_style: bool,
    region: String,
    keys: Option<(AwsKeys, String)>,
    /// Whether the region is the one that the bucket's owner or the user named.
    sure: bool,
}

/// Finds region and keys. Without keys, the object may be public.
pub(super) async fn open(bucket: &str, key: &str, access: &Access) -> Result<S3, String> {
    let environment = &access.environment;
    let region = aws::region(environment).unwrap_or_else(|| "us-east-1".to_owned());
    let endpoint = ["S3_ENDPOINT", "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"]
        .into_iter()
        .find_map(|name| environment.get(name).map(|text| (name, text)));
    let endpoint = match endpoint {
        None => None,
        Some((name, text)) => {
            let full = if text.contains("://") { text.to_owned() } else { format!("https://{text}") };
            Some(Url::parse(&full).map_err(|error| format!("{name}={text} is no URL: {error}"))?)
        }
    };
    let forced =
        matches!(environment.get("S3_FORCE_PATH_STYLE"), Some("1" | "t" | "T" | "true" | "TRUE" | "True"));
    let plain_host = |url: &Url| !matches!(url.host(), Some(Host::Domain(name)) if name != "localhost");
    // A dot in a bucket's name is one too many for the certificate.
    let path_style = forced || bucket.contains('.') || endpoint.as_ref().is_some_and(plain_host);
    let keys = match aws::keys(environment, &region, &access.exchange()).await {
        Ok(found) => Some(found),
        // Credentials that were named and can't be used are an error; without any, the object may be public.
        Err(why) if named(environment) => return Err(why),
        Err(_) => None,
    };
    Ok(S3 {
        client: endpoint.as_ref().map_or(&access.client, |url| access.client_for(url)).clone(),
        clock: Arc::clone(&access.clock),
        bucket: bucket.to_owned(),
        key: key.to_owned(),
        endpoint,
        path_style,
        region,
        keys,
        sure: false,
    })
}

fn named(environment: &kiln_cloud::Environment) -> bool {
    let names = [
        "AWS_WEB_IDENTITY_TOKEN_FILE",
        "AWS_PROFILE",
        "AWS_CONTAINER_CREDENTIALS_FULL_URI",
        "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    ];
    names.iter().any(|name| environment.get(name).is_some())
}

impl S3 {
    fn url(&self) -> Result<Url, String> {
        let base = match &self.endpoint {
            Some(url) => url.as_str().trim_end_matches('/').to_owned(),
            None if self.region.starts_with("cn-") => format!("https://s3.{}.amazonaws.com.cn", self.region),
            None => format!("https://s3.{}.amazonaws.com", self.region),
        };
        let (bucket, key) = (encoded(&self.bucket, false), encoded(&self.key, true));
        let text = if self.path_style {
            format!("{base}/{bucket}/{key}")
        } else {
            let (scheme, rest) = base.split_once("://").unwrap_or(("https", &base));
            format!("{scheme}://{bucket}.{rest}/{key}")
        };
        Url::parse(&text).map_err(|error| format!("{text} is no URL: {error}"))
    }
}

impl Requests for S3 {
    fn part(&self, first: u64, last: u64) -> Result<RequestBuilder, String> {
        let url = self.url()?;
        let range = format!("bytes={first}-{last}");
        let headers = [("range", range.as_str()), ("x-amz-content-sha256", EMPTY)];
        let mut request = self.client.get(url.clone());
        for (name, value) in headers {
            request = request.header(name, value);
        }
        if let Some((keys, _)) = &self.keys {
            let signed = Request {
                method: "GET",
                url: &url,
                headers: &headers,
                body: b"",
                region: &self.region,
                service: "s3",
            };
            for (name, value) in sign(&signed, keys, (self.clock)()) {
                request = request.header(name, value);
            }
        }
        Ok(request)
    }

    fn credentials(&self) -> Option<&str> {
        self.keys.as_ref().map(|(_, source)| source.as_str())
    }

    fn hint(&self) -> &'static str {
        "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or give the pod's service account a role"
    }

    fn moved(&self, status: StatusCode, headers: &HeaderMap) -> Option<Box<dyn Requests>> {
        let region = headers.get("x-amz-bucket-region")?.to_str().ok()?;
        let elsewhere = !status.is_success() && !self.sure && region != self.region;
        elsewhere.then(|| {
            Box::new(Self { region: region.to_owned(), sure: true, ..self.clone() }) as Box<dyn Requests>
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::access;

    #[test]
    fn a_bucket_elsewhere_is_asked_for_in_its_own_region_once() {
        let (runtime, mut access) = access();
        let pairs = [("AWS_ACCESS_KEY_ID", "A"), ("AWS_SECRET_ACCESS_KEY", "s")];
        access.environment = pairs.into_iter().collect();
        let here = runtime.block_on(open("b", "a b/k", &access)).unwrap();
        assert_eq!(here.url().unwrap().as_str(), "https://b.s3.us-east-1.amazonaws.com/a%20b/k");
        let mut headers = HeaderMap::new();
        assert!(here.moved(StatusCode::MOVED_PERMANENTLY, &headers).is_none());
        headers.insert("x-amz-bucket-region", "eu-west-1".parse().unwrap());
        let there = here.moved(StatusCode::MOVED_PERMANENTLY, &headers).unwrap();
        let request = there.part(0, 9).unwrap().build().unwrap();
        assert_eq!(request.url().host_str(), Some("b.s3.eu-west-1.amazonaws.com"));
        let signed = request.headers()["authorization"].to_str().unwrap();
        assert!(signed.contains("/eu-west-1/s3/aws4_request"), "{signed}");
        headers.insert("x-amz-bucket-region", "us-west-2".parse().unwrap());
        assert!(there.moved(StatusCode::MOVED_PERMANENTLY, &headers).is_none());
    }
}
