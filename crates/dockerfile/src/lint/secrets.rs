//! Names that look like a secret's.

const SECRET: &[&str] =
    &["apikey", "auth", "credential", "credentials", "key", "password", "pword", "passwd", "secret", "token"];
const HARMLESS: &[&str] = &["public", "file", "version"];

/// Whether one of the parts between underscores names a secret, and none says that it is harmless.
pub(super) fn looks_secret(name: &str) -> bool {
    let has =
        |list: &[&str]| name.split('_').any(|part| list.iter().any(|word| word.eq_ignore_ascii_case(part)));
    has(SECRET) && !has(HARMLESS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_parts_of_a_name_count() {
        for name in ["API_KEY", "DATABASE_PASSWORD", "GITHUB_TOKEN", "secret_MESSAGE", "AUTH", "apikey"] {
            assert!(looks_secret(name), "{name}");
        }
        for name in ["MONKEY", "PUBLIC_KEY", "TOKEN_FILE", "KEY_VERSION", "AUTHOR", "TOKENS", "PATH"] {
            assert!(!looks_secret(name), "{name}");
        }
    }
}
