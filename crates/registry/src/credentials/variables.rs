//! Logins that stand in environment variables: kaniko's `KANIKO_<HOST>_USER` and GitLab's `CI_REGISTRY_USER`.

use super::{Environment, Login};
use crate::credentials::docker_config::server_key;

/// `KANIKO_<HOST>_USER` and `_PASSWORD`: upper case, `-`, `.` and `:` as `_`; parent domains are tried after the host.
pub(super) fn kaniko(environment: &Environment, host: &str) -> Option<Login> {
    let mut name = host;
    loop {
        let upper: String = name
            .chars()
            .map(|c| if matches!(c, '-' | '.' | ':') { '_' } else { c.to_ascii_uppercase() })
            .collect();
        let user = environment.get(&format!("KANIKO_{upper}_USER"));
        let password = environment.get(&format!("KANIKO_{upper}_PASSWORD"));
        if let (Some(user), Some(password)) = (user, password) {
            return Some(Login::basic(user, password, format!("KANIKO_{upper}_USER")));
        }
        name = name.split_once('.')?.1;
    }
}

/// `CI_REGISTRY`, `CI_REGISTRY_USER` and `CI_REGISTRY_PASSWORD`, for exactly that host and no other.
pub(super) fn gitlab(environment: &Environment, host: &str) -> Option<Login> {
    let registry = environment.get("CI_REGISTRY")?;
    if registry.starts_with("http://") || server_key(registry).0 != server_key(host).0 {
        return None;
    }
    let user = environment.get("CI_REGISTRY_USER")?;
    let password = environment.get("CI_REGISTRY_PASSWORD")?;
    Some(Login::basic(user, password, "CI_REGISTRY_USER"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::LoginSecret;

    fn user(login: Option<Login>) -> Option<String> {
        match login?.secret {
            LoginSecret::Basic { user, .. } => Some(user),
            _ => None,
        }
    }

    #[test]
    fn a_parent_domain_serves_its_hosts_and_no_lookalike() {
        let environment: Environment =
            [("KANIKO_EXAMPLE_COM_USER", "me"), ("KANIKO_EXAMPLE_COM_PASSWORD", "p")].into_iter().collect();
        assert_eq!(user(kaniko(&environment, "reg.example.com")).as_deref(), Some("me"));
        assert_eq!(user(kaniko(&environment, "example.com")).as_deref(), Some("me"));
        assert_eq!(user(kaniko(&environment, "badexample.com")), None);
        assert_eq!(user(kaniko(&environment, "example.com.evil.org")), None);
    }

    #[test]
    fn a_name_without_its_password_is_no_login() {
        let environment: Environment = [("KANIKO_A_IO_USER", "me")].into_iter().collect();
        assert!(kaniko(&environment, "a.io").is_none());
    }

    #[test]
    fn gitlab_s_login_goes_to_gitlab_s_registry_only() {
        let environment: Environment = [
            ("CI_REGISTRY", "registry.gitlab.com"),
            ("CI_REGISTRY_USER", "ci"),
            ("CI_REGISTRY_PASSWORD", "job-token"),
        ]
        .into_iter()
        .collect();
        assert_eq!(user(gitlab(&environment, "registry.gitlab.com")).as_deref(), Some("ci"));
        assert!(gitlab(&environment, "registry.gitlab.com.evil.org").is_none());
        assert!(gitlab(&environment, "registry.gitlab.com:5000").is_none());
    }
}
