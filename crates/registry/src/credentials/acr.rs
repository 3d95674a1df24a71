//! Azure's Container Registry: a token of Entra ID (service principal, workload identity or managed identity) is exchanged
//! at the registry for a refresh token ("Azure Container Registry", AAD-OAuth.md).

use std::time::Duration;

use kiln_cloud::{Exchange, FORM, azure, form, member};
use kiln_oci::Redacted;

use super::{Environment, Login, LoginSecret};

/// The domains of registries, each with the resource that a token for them is for.
const CLOUDS: [(&str, &str); 4] = [
    (".azurecr.io", "https://management.azure.com/"),
    (".azurecr.cn", "https://management.chinacloudapi.cn/"),
    (".azurecr.us", "https://management.usgovcloudapi.net/"),
    (".azurecr.de", "https://management.microsoftazure.de/"),
];
/// The registry's refresh token is good for three hours.
const FRESH: Duration = Duration::from_secs(3600);

/// Whether Azure runs the registry `host`.
pub(super) fn serves(host: &str) -> bool {
    resource(host).is_some()
}

fn resource(host: &str) -> Option<&'static str> {
    let of = |suffix: &str| host.strip_suffix(suffix).is_some_and(|name| !name.is_empty());
    CLOUDS.iter().find(|(suffix, _)| of(suffix)).map(|(_, resource)| *resource)
}

/// A login for `host`.
pub(super) async fn login(
    host: &str,
    environment: &Environment,
    exchange: &Exchange,
) -> Result<Option<Login>, String> {
    exchange_at(&format!("https://{host}"), host, environment, exchange).await.map(Some)
}

/// `base` is the registry's address.
pub(super) async fn exchange_at(
    base: &str,
    host: &str,
    environment: &Environment,
    exchange: &Exchange,
) -> Result<Login, String> {
    let resource = resource(host).ok_or_else(|| format!("{host} is no registry of Azure's"))?;
    let (token, source) = azure::token(environment, resource, exchange).await?;
    let mut fields =
        vec![("grant_type", "access_token"), ("service", host), ("access_token", token.as_str())];
    if let Some(tenant) = environment.get("AZURE_TENANT_ID") {
        fields.push(("tenant", tenant));
    }
    let request = exchange
        .client
        .post(format!("{base}/oauth2/exchange"))
        .header("content-type", FORM)
        .body(form(&fields));
    let answer = exchange.json(request, host).await?;
    let secret = LoginSecret::IdentityToken(Redacted::new(member(&answer, "refresh_token", host)?));
    Ok(Login { secret, source: source.to_owned(), expires: None }.valid_for(FRESH))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_azure_s_hosts_get_azure_s_token() {
        assert!(serves("me.azurecr.io") && serves("me.azurecr.cn"));
        for host in
            ["azurecr.io", ".azurecr.io", "me.azurecr.io.evil.org", "meazurecr.io", "me.azurecr.io:5000"]
        {
            assert!(!serves(host), "{host}");
        }
    }
}
