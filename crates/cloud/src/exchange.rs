//! The small HTTP exchanges with clouds in which logins are fetched. Errors name the server and what it said, never
//! what was sent to it.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use reqwest::{Client, RequestBuilder};
use serde_json::Value;

/// Tells the time. Values signed for clouds hold it; tests set it.
pub type Clock = Arc<dyn Fn() -> SystemTime + Send + Sync>;

/// How long a server in the internet may take.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long the machine's own metadata server may take: where there is none, nothing answers at all.
const NEARBY: Duration = Duration::from_secs(2);
const MOST: usize = 1 << 20;

/// What sources need to talk to clouds.
#[derive(Clone)]
pub struct Exchange {
    /// Follows no redirect to elsewhere with a secret.
    pub client: Client,
    /// Tells the time that is signed.
    pub clock: Clock,
}

impl Exchange {
    /// Sends a request and reads its answer, which must be a success.
    pub async fn text(&self, request: RequestBuilder, server: &str) -> Result<String, String> {
        self.send(request, server, PATIENCE).await
    }

    /// The same, for the metadata server of the machine.
    pub async fn nearby(&self, request: RequestBuilder, server: &str) -> Result<String, String> {
        self.send(request, server, NEARBY).await
    }

    /// Sends a request and reads its answer as JSON.
    pub async fn json(&self, request: RequestBuilder, server: &str) -> Result<Value, String> {
        read(&self.send(request, server, PATIENCE).await?, server)
    }

    /// The same, for the metadata server of the machine.
    pub async fn nearby_json(&self, request: RequestBuilder, server: &str) -> Result<Value, String> {
        read(&self.send(request, server, NEARBY).await?, server)
    }

    async fn send(
        &self,
        request: RequestBuilder,
        server: &str,
        patience: Duration,
    ) -> Result<String, String> {
        let work = async {
            let mut response = request
                .send()
                .await
                .map_err(|error| format!("{server} gave no answer: {}", error.without_url()))?;
            let status = response.status();
            let mut body = Vec::new();
            while let Some(chunk) = response
                .chunk()
                .await
                .map_err(|error| format!("the answer of {server} broke off: {}", error.without_url()))?
            {
                body.extend_from_slice(&chunk);
                if body.len() > MOST {
                    return Err(format!("the answer of {server} is too long"));
                }
            }
            let text = String::from_utf8_lossy(&body).into_owned();
            if status.is_success() {
                Ok(text)
            } else {
                Err(format!("{server} answers {}{}", status.as_u16(), complaint(&text)))
            }
        };
        tokio::time::timeout(patience, work)
            .await
            .unwrap_or_else(|_| Err(format!("{server} gave no answer for {} s", patience.as_secs())))
    }
}

fn read(text: &str, server: &str) -> Result<Value, String> {
    serde_json::from_str(text).map_err(|_| format!("{server} did not answer with JSON"))
}

/// What a cloud's error says, by the names that the clouds use for it.
fn complaint(text: &str) -> String {
    let value: Value = serde_json::from_str(text).unwrap_or_default();
    let said = ["error_description", "message", "Message", "error", "__type"]
        .into_iter()
        .find_map(|name| value[name].as_str().map(str::to_owned))
        .or_else(|| value["error"]["message"].as_str().map(str::to_owned))
        .or_else(|| element(text, "Message").map(str::to_owned));
    said.map_or_else(String::new, |said| {
        let line: String = said.split_whitespace().collect::<Vec<_>>().join(" ");
        format!(": {}", line.chars().take(300).collect::<String>())
    })
}

/// The text of the first XML element `name`.
pub fn element<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    let start = text.find(&format!("<{name}>"))? + name.len() + 2;
    let end = text[start..].find(&format!("</{name}>"))?;
    Some(&text[start..start + end])
}

/// A form's body.
pub fn form(fields: &[(&str, &str)]) -> String {
    url::form_urlencoded::Serializer::new(String::new()).extend_pairs(fields).finish()
}

/// The media type of a form.
pub const FORM: &str = "application/x-www-form-urlencoded";

/// The URL-safe encoding of JSON web tokens.
pub(crate) fn base64url(bytes: &[u8]) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

/// A text member that has to be there.
pub fn member(value: &Value, name: &str, whose: &str) -> Result<String, String> {
    value[name]
        .as_str()
        .filter(|text| !text.is_empty())
        .map(str::to_owned)
        .ok_or_else(|| format!("{whose} has no {name:?} in it"))
}

/// A small file's text, without the white space around it.
pub fn read_file(path: &str) -> Result<String, String> {
    std::fs::read_to_string(path)
        .map(|text| text.trim().to_owned())
        .map_err(|error| format!("{path} can't be read: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn complaints_of_all_clouds_are_understood() {
        assert_eq!(complaint(r#"{"error":"invalid_grant","error_description":"expired"}"#), ": expired");
        assert_eq!(complaint(r#"{"error":{"message":"no permission"}}"#), ": no permission");
        assert_eq!(
            complaint("<ErrorResponse><Error><Message>not you</Message></Error></ErrorResponse>"),
            ": not you"
        );
        assert_eq!(complaint("<html>"), "");
    }
}
