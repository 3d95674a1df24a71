//! Google's Cloud Storage, through its JSON API ("Objects: get", `alt=media`).

use kiln_cloud::google;
use kiln_oci::Redacted;
use reqwest::{Client, RequestBuilder};
use url::Url;

use super::{Requests, encoded};
use crate::Access;

pub(super) struct Google {
    client: Client,
    url: String,
    token: Option<(Redacted<String>, String)>,
}

/// Finds a token, unless a stand-in is spoken to.
pub(super) async fn open(bucket: &str, key: &str, access: &Access) -> Result<Google, String> {
    let environment = &access.environment;
    let emulator = environment.get("STORAGE_EMULATOR_HOST");
    // As gcloud takes it, for private endpoints: it names the API's version, too.
    let elsewhere = environment.get("CLOUDSDK_API_ENDPOINT_OVERRIDES_STORAGE");
    let base = match (emulator, elsewhere) {
        (Some(host), _) if host.contains("://") => format!("{}/storage/v1", host.trim_end_matches('/')),
        (Some(host), _) => format!("http://{}/storage/v1", host.trim_end_matches('/')),
        (None, Some(url)) => url.trim_end_matches('/').to_owned(),
        (None, None) => "https://storage.googleapis.com/storage/v1".to_owned(),
    };
    let url = format!("{base}/b/{}/o/{}?alt=media", encoded(bucket, false), encoded(key, false));
    let token = match emulator {
        Some(_) => None,
        None => match google::token(environment, &access.exchange()).await {
            Ok((token, _, source)) => Some((Redacted::new(token), source)),
            // Credentials that were named and can't be used are an error; without any, the object may be public.
            Err(why) if environment.get("GOOGLE_APPLICATION_CREDENTIALS").is_some() => return Err(why),
            Err(_) => None,
        },
    };
    let place = Url::parse(&url).map_err(|error| format!("{url} is no URL: {error}"))?;
    Ok(Google { client: access.client_for(&place).clone(), url, token })
}

impl Requests for Google {
    fn part(&self, first: u64, last: u64) -> Result<RequestBuilder, String> {
        // Without this, an object that is stored with `Content-Encoding: gzip` comes decompressed, and in one piece.
        let request = self.client.get(&self.url).header("accept-encoding", "gzip");
        let request = request.header("range", format!("bytes={first}-{last}"));
        Ok(match &self.token {
            Some((token, _)) => request.bearer_auth(token.expose()),
            None => request,
        })
    }

    fn credentials(&self) -> Option<&str> {
        self.token.as_ref().map(|(_, source)| source.as_str())
    }

    fn hint(&self) -> &'static str {
        "set GOOGLE_APPLICATION_CREDENTIALS, or give the pod's service account a workload identity"
    }
}
