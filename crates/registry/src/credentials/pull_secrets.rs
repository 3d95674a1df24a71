//! The pod's `imagePullSecrets`, read through its service account, where that is allowed to: those of the pod and those
//! of the service account. A cluster that says no is no error.

use std::path::Path;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use serde_json::Value;

use super::Environment;
use super::docker_config::ConfigFile;
use crate::options::TlsOptions;
use crate::tls::Trust;
use kiln_cloud::Exchange;

/// The config files in the pod's pull secrets.
pub(super) async fn load(
    folder: &Path,
    environment: &Environment,
    exchange: &Exchange,
) -> Result<Vec<ConfigFile>, String> {
    let read = |name: &str| std::fs::read_to_string(folder.join(name)).map(|text| text.trim().to_owned());
    let (Ok(token), Ok(namespace)) = (read("token"), read("namespace")) else { return Ok(Vec::new()) };
    let Some(host) = environment.get("KUBERNETES_SERVICE_HOST") else { return Ok(Vec::new()) };
    let port = environment.get("KUBERNETES_SERVICE_PORT").unwrap_or("443");
    let host = if host.contains(':') { format!("[{host}]") } else { host.to_owned() };
    let tls = TlsOptions { ca_files: vec![folder.join("ca.crt")], ..TlsOptions::default() };
    let config =
        Trust::read(&tls).and_then(|trust| trust.config(None, true, true)).map_err(|e| e.to_string())?;
    let client = reqwest::Client::builder()
        .tls_backend_preconfigured(config)
        .no_proxy()
        .redirect(reqwest::redirect::Policy::none())
        .connect_timeout(Duration::from_secs(5))
        .build()
        .map_err(|error| error.to_string())?;
    let api = Cluster {
        exchange: Exchange { client, clock: exchange.clock.clone() },
        base: format!("https://{host}:{port}/api/v1/namespaces/{namespace}"),
        token,
    };
    Ok(api.files(environment.get("HOSTNAME")).await)
}

struct Cluster {
    exchange: Exchange,
    base: String,
    token: String,
}

impl Cluster {
    async fn get(&self, path: &str) -> Option<Value> {
        let request = self.exchange.client.get(format!("{}/{path}", self.base)).bearer_auth(&self.token);
        self.exchange.json(request, "the cluster's API").await.ok()
    }

    async fn files(&self, pod: Option<&str>) -> Vec<ConfigFile> {
        let mut names: Vec<String> = Vec::new();
        let mut collect = |list: &Value| {
            for name in list.as_array().into_iter().flatten().filter_map(|entry| entry["name"].as_str()) {
                if !names.iter().any(|known| known == name) {
                    names.push(name.to_owned());
                }
            }
        };
        if let Some(pod) = pod
            && let Some(pod) = self.get(&format!("pods/{pod}")).await
        {
            collect(&pod["spec"]["imagePullSecrets"]);
        }
        if let Some(account) = account_name(&self.token)
            && let Some(account) = self.get(&format!("serviceaccounts/{account}")).await
        {
            collect(&account["imagePullSecrets"]);
        }
        let mut files = Vec::new();
        for name in names {
            let Some(secret) = self.get(&format!("secrets/{name}")).await else { continue };
            files.extend(config_of(&secret, &name));
        }
        files
    }
}

/// The service account's name, which stands in its token (`system:serviceaccount:NAMESPACE:NAME`).
fn account_name(token: &str) -> Option<String> {
    let payload = URL_SAFE_NO_PAD.decode(token.split('.').nth(1)?).ok()?;
    let value: Value = serde_json::from_slice(&payload).ok()?;
    let name = value["sub"].as_str()?.strip_prefix("system:serviceaccount:")?.split_once(':')?.1;
    Some(name.to_owned())
}

/// The config file in a secret of the type `kubernetes.io/dockerconfigjson`, or of the older `dockercfg`.
fn config_of(secret: &Value, name: &str) -> Option<ConfigFile> {
    let data = |key: &str| {
        let bytes = STANDARD.decode(secret["data"][key].as_str()?).ok()?;
        String::from_utf8(bytes).ok()
    };
    let text = data(".dockerconfigjson")
        .or_else(|| data(".dockercfg").map(|auths| format!("{{\"auths\":{auths}}}")))?;
    ConfigFile::parse(format!("the pull secret {name}"), &text).ok().map(ConfigFile::without_helpers)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn both_kinds_of_pull_secret_are_read() {
        let auths = r#"{"reg.io":{"username":"u","password":"p"}}"#;
        let secret = json!({ "data": { ".dockercfg": STANDARD.encode(auths) } });
        assert!(config_of(&secret, "s").unwrap().entry("reg.io", "a").is_some());
        let whole = format!("{{\"auths\":{auths},\"credsStore\":\"evil\"}}");
        let secret = json!({ "data": { ".dockerconfigjson": STANDARD.encode(whole) } });
        let file = config_of(&secret, "s").unwrap();
        assert!(file.entry("reg.io", "a").is_some());
        assert_eq!(file.helper_for("reg.io"), None, "a secret of the cluster starts no program");
    }

    #[test]
    fn the_service_account_s_name_is_in_its_token() {
        let payload = URL_SAFE_NO_PAD.encode(r#"{"sub":"system:serviceaccount:ci:builder"}"#);
        assert_eq!(account_name(&format!("x.{payload}.y")).as_deref(), Some("builder"));
        assert_eq!(account_name("opaque"), None);
    }
}
