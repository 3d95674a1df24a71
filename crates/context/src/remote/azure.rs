//! Azure's Blob Storage: a shared access signature in the URL, the account's key (`AZURE_STORAGE_ACCESS_KEY`, "Authorize
//! with Shared Key"), or an identity's token.

use std::time::SystemTime;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit as _, Mac as _};
use kiln_cloud::{Clock, azure};
use kiln_oci::Redacted;
use reqwest::{Client, RequestBuilder};
use sha2::Sha256;
use time::OffsetDateTime;
use time::macros::format_description;
use url::Url;

use super::{ObjectName, Requests, Store, encoded};
use crate::Access;

/// Azure's clouds.
const SUFFIXES: [&str; 4] = [
    ".blob.core.windows.net",
    ".blob.core.chinacloudapi.cn",
    ".blob.core.usgovcloudapi.net",
    ".blob.core.cloudapi.de",
];
const VERSION: &str = "2021-08-06";

/// A storage account.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Account {
    /// Its name.
    pub name: String,
    /// Its address, with a slash at the end.
    pub base: Url,
    /// The shared access signature in the URL.
    pub signature: Option<Redacted<String>>,
}

/// Reads a URL of a blob; `None` if it is no URL of Azure's.
pub(crate) fn parse(url: &Url) -> Result<Option<ObjectName>, String> {
    let host = url.host_str().unwrap_or_default();
    let name = SUFFIXES.iter().find_map(|suffix| host.strip_suffix(suffix)).filter(|name| !name.is_empty());
    let Some(name) = name else { return Ok(None) };
    let mut parts = url.path().trim_start_matches('/').splitn(2, '/').map(decoded);
    let (Some(bucket), Some(key)) = (parts.next(), parts.next().filter(|key| !key.is_empty())) else {
        return Err("a blob's URL is https://ACCOUNT.blob.core.windows.net/CONTAINER/BLOB".to_owned());
    };
    let mut base = url.clone();
    base.set_path("/");
    base.set_query(None);
    base.set_fragment(None);
    let signature =
        url.query().filter(|query| query.contains("sig=")).map(|query| Redacted::new(query.to_owned()));
    let account = Account { name: name.to_owned(), base, signature };
    Ok(Some(ObjectName { store: Store::Azure(account), bucket, key }))
}

fn decoded(text: &str) -> String {
    percent_encoding::percent_decode_str(text).decode_utf8_lossy().into_owned()
}

pub(super) struct Blob {
    client: Client,
    clock: Clock,
    url: Url,
    account: String,
    login: Login,
}

enum Login {
    Signature,
    Key(Redacted<Vec<u8>>),
    Token(Redacted<String>, &'static str),
    Nobody,
}

/// Finds a login.
pub(super) async fn open(
    account: &Account,
    bucket: &str,
    key: &str,
    access: &Access,
) -> Result<Blob, String> {
    let environment = &access.environment;
    // A stand-in keeps the account's name in the path.
    let base = match environment.get("AZURE_STORAGE_SERVICE_ENDPOINT") {
        Some(endpoint) => format!("{}/", endpoint.trim_end_matches('/')),
        None => account.base.to_string(),
    };
    let mut text = format!("{base}{}/{}", encoded(bucket, false), encoded(key, true));
    let named = account.signature.as_ref().map(|signature| signature.expose().as_str());
    let signature = named.or_else(|| environment.get("AZURE_STORAGE_SAS_TOKEN"));
    let login = if let Some(signature) = signature {
        text = format!("{text}?{}", signature.trim_start_matches('?'));
        Login::Signature
    } else if let Some(key) = environment.get("AZURE_STORAGE_ACCESS_KEY") {
        let bytes =
            STANDARD.decode(key).map_err(|_| "AZURE_STORAGE_ACCESS_KEY is no base64 text".to_owned())?;
        Login::Key(Redacted::new(bytes))
    } else {
        match azure::token(environment, "https://storage.azure.com/", &access.exchange()).await {
            Ok((token, source)) => Login::Token(Redacted::new(token), source),
            // An identity that was named and can't be used is an error; without one, the blob may be public.
            Err(why) if environment.get("AZURE_CLIENT_ID").is_some() => return Err(why),
            Err(_) => Login::Nobody,
        }
    };
    let url = Url::parse(&text).map_err(|error| format!("it is no URL: {error}"))?;
    Ok(Blob {
        client: access.client_for(&url).clone(),
        clock: access.clock.clone(),
        url,
        account: account.name.clone(),
        login,
    })
}

impl Requests for Blob {
    fn part(&self, first: u64, last: u64) -> Result<RequestBuilder, String> {
        let range = format!("bytes={first}-{last}");
        let date = date((self.clock)());
        let request = self
            .client
            .get(self.url.clone())
            .header("x-ms-version", VERSION)
            .header("x-ms-date", &date)
            .header("range", &range);
        Ok(match &self.login {
            Login::Signature | Login::Nobody => request,
            Login::Token(token, _) => request.bearer_auth(token.expose()),
            Login::Key(key) => {
                let text = to_sign(&self.account, self.url.path(), &date, &range);
                let signature = STANDARD.encode(hmac(key.expose(), text.as_bytes()));
                request.header("authorization", format!("SharedKey {}:{signature}", self.account))
            }
        })
    }

    fn credentials(&self) -> Option<&str> {
        match &self.login {
            Login::Signature => Some("the shared access signature"),
            Login::Key(_) => Some("AZURE_STORAGE_ACCESS_KEY"),
            Login::Token(_, source) => Some(source),
            Login::Nobody => None,
        }
    }

    fn hint(&self) -> &'static str {
        "set AZURE_STORAGE_ACCESS_KEY, add a shared access signature to the URL, or give the pod a workload identity"
    }
}

/// `Fri, 26 Jun 2015 23:39:12 GMT`.
fn date(now: SystemTime) -> String {
    let form = format_description!(
        "[weekday repr:short], [day] [month repr:short] [year] [hour]:[minute]:[second] GMT"
    );
    OffsetDateTime::from(now).format(form).unwrap_or_default()
}

/// What is signed for a GET of a range: the standard headers (all empty but Range), the x-ms ones, the resource.
fn to_sign(account: &str, path: &str, date: &str, range: &str) -> String {
    let standard = "\n".repeat(10);
    format!("GET\n{standard}{range}\nx-ms-date:{date}\nx-ms-version:{VERSION}\n/{account}{path}")
}

fn hmac(key: &[u8], message: &[u8]) -> Vec<u8> {
    #[expect(clippy::expect_used, reason = "HMAC takes keys of any length")]
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("HMAC takes keys of any length");
    mac.update(message);
    mac.finalize().into_bytes().to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str) -> Result<Option<ObjectName>, String> {
        parse(&Url::parse(text).unwrap())
    }

    #[test]
    fn blobs_of_all_clouds_are_known_and_lookalikes_are_not() {
        let name = of("https://me.blob.core.windows.net/c/dir/a%20b.tgz?sv=1&sig=s3cret").unwrap().unwrap();
        assert_eq!((name.bucket.as_str(), name.key.as_str()), ("c", "dir/a b.tgz"));
        assert!(!format!("{name:?}").contains("s3cret"));
        assert!(of("https://me.blob.core.usgovcloudapi.net/c/b").unwrap().is_some());
        assert!(of("https://me.blob.core.windows.net.evil.org/c/b").unwrap().is_none());
        assert!(of("https://me.blob.core.windows.net/c").is_err());
        assert_eq!(of("https://a.blob.core.windows.net/c/x=1.tgz").unwrap().unwrap().key, "x=1.tgz");
    }

    #[test]
    fn dates_are_written_as_http_has_them() {
        let time = SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(1_435_361_952);
        assert_eq!(date(time), "Fri, 26 Jun 2015 23:39:12 GMT");
    }
}
