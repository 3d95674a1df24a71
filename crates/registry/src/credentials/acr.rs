//! Azure's Container Registry: a token of Entra ID (service principal, workload identity or managed identity) is exchanged
//! at the registry for a refresh token ("Azure Container Registry", AAD-OAuth.md).

use std::time::Duration;

use kiln_oci::Redacted;

use super::exchange::{Exchange, FORM, form, member, read_file};
use super::{Environment, Login, LoginSecret};

const RESOURCE: &str = "https://management.azure.com/";
/// The registry's refresh token is good for three hours.
const FRESH: Duration = Duration::from_secs(3600);

/// Whether Azure runs the registry `host`.
pub(super) fn serves(host: &str) -> bool {
    [".azurecr.io", ".azurecr.cn", ".azurecr.us", ".azurecr.de"]
        .iter()
        .any(|suffix| host.strip_suffix(suffix).is_some_and(|name| !name.is_empty()))
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
    let (token, source) = entra(environment, exchange).await?;
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

/// Entra ID's token, and where it came from.
async fn entra(environment: &Environment, exchange: &Exchange) -> Result<(String, &'static str), String> {
    let get = |name| environment.get(name);
    let authority = get("AZURE_AUTHORITY_HOST").unwrap_or("https://login.microsoftonline.com");
    let authority = authority.trim_end_matches('/');
    let scope = format!("{RESOURCE}.default");
    if let (Some(client), Some(tenant)) = (get("AZURE_CLIENT_ID"), get("AZURE_TENANT_ID")) {
        let mut fields =
            vec![("grant_type", "client_credentials"), ("client_id", client), ("scope", scope.as_str())];
        let assertion;
        let source = if let Some(secret) = get("AZURE_CLIENT_SECRET") {
            fields.push(("client_secret", secret));
            Some("the service principal AZURE_CLIENT_ID")
        } else if let Some(file) = get("AZURE_FEDERATED_TOKEN_FILE") {
            assertion = read_file(file)?;
            fields.push(("client_assertion_type", "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"));
            fields.push(("client_assertion", &assertion));
            Some("the workload identity AZURE_CLIENT_ID")
        } else {
            None
        };
        if let Some(source) = source {
            let url = format!("{authority}/{tenant}/oauth2/v2.0/token");
            let request = exchange.client.post(&url).header("content-type", FORM).body(form(&fields));
            let answer = exchange.json(request, authority).await?;
            return Ok((member(&answer, "access_token", authority)?, source));
        }
    }
    let mut fields = vec![("resource", RESOURCE)];
    if let Some(client) = get("AZURE_CLIENT_ID") {
        fields.push(("client_id", client));
    }
    let server = "Azure's identity endpoint";
    let request = if let (Some(endpoint), Some(header)) = (get("IDENTITY_ENDPOINT"), get("IDENTITY_HEADER")) {
        fields.push(("api-version", "2019-08-01"));
        exchange.client.get(format!("{endpoint}?{}", form(&fields))).header("x-identity-header", header)
    } else {
        fields.push(("api-version", "2018-02-01"));
        let base = get("AZURE_POD_IDENTITY_AUTHORITY_HOST").unwrap_or("http://169.254.169.254");
        let url = format!("{}/metadata/identity/oauth2/token?{}", base.trim_end_matches('/'), form(&fields));
        exchange.client.get(url).header("metadata", "true")
    };
    let answer = exchange.nearby_json(request, server).await?;
    Ok((member(&answer, "access_token", server)?, "Azure's managed identity"))
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
