//! Entra ID's access tokens: a service principal, a workload identity, or a managed identity.

use crate::Environment;
use crate::exchange::{Exchange, FORM, form, member, read_file};

/// A token for `resource` (`https://storage.azure.com/`, with the slash at its end), and where it came from.
pub async fn token(
    environment: &Environment,
    resource: &str,
    exchange: &Exchange,
) -> Result<(String, &'static str), String> {
    let get = |name| environment.get(name);
    let authority = get("AZURE_AUTHORITY_HOST").unwrap_or_else(|| authority_for(resource));
    let authority = authority.trim_end_matches('/');
    let scope = format!("{resource}.default");
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
    let mut fields = vec![("resource", resource)];
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

/// Who gives tokens for `resource`, where nobody says so: each of Azure's clouds has its own.
fn authority_for(resource: &str) -> &'static str {
    let of = |domain: &str| resource.trim_end_matches('/').ends_with(domain);
    if of(".chinacloudapi.cn") {
        "https://login.chinacloudapi.cn"
    } else if of(".usgovcloudapi.net") {
        "https://login.microsoftonline.us"
    } else if of(".microsoftazure.de") {
        "https://login.microsoftonline.de"
    } else {
        "https://login.microsoftonline.com"
    }
}

#[cfg(test)]
mod tests {
    use super::authority_for;

    #[test]
    fn each_cloud_has_its_own_authority() {
        assert_eq!(authority_for("https://management.azure.com/"), "https://login.microsoftonline.com");
        assert_eq!(authority_for("https://storage.azure.com/"), "https://login.microsoftonline.com");
        assert_eq!(authority_for("https://management.chinacloudapi.cn/"), "https://login.chinacloudapi.cn");
        assert_eq!(
            authority_for("https://management.usgovcloudapi.net/"),
            "https://login.microsoftonline.us"
        );
    }
}
