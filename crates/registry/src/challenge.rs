//! `WWW-Authenticate`: what a registry wants to see (RFC 9110, section 11.6.1; distribution's "Token Authentication").

use http::HeaderMap;

/// What a registry wants to see.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Challenge {
    /// A user's name and password.
    Basic,
    /// A token from the server `realm`.
    Bearer { realm: String, service: Option<String>, scope: Option<String> },
}

/// The challenge that we answer: Bearer if there is one, else Basic. Others can't be answered.
pub(crate) fn read(headers: &HeaderMap) -> Option<Challenge> {
    let all: Vec<_> = headers
        .get_all(http::header::WWW_AUTHENTICATE)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(parse)
        .collect();
    let bearer = all.iter().find_map(|(scheme, parameters)| {
        let get = |name: &str| {
            parameters.iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.clone())
        };
        scheme.eq_ignore_ascii_case("bearer").then(|| get("realm")).flatten().map(|realm| Challenge::Bearer {
            realm,
            service: get("service"),
            scope: get("scope"),
        })
    });
    let basic =
        || all.iter().any(|(scheme, _)| scheme.eq_ignore_ascii_case("basic")).then_some(Challenge::Basic);
    bearer.or_else(basic)
}

type Parsed = Vec<(String, Vec<(String, String)>)>;

/// Takes `Bearer realm="a",service="b", Basic realm="c"` apart.
fn parse(text: &str) -> Parsed {
    let mut challenges: Parsed = Vec::new();
    for part in split_quoted(text) {
        let part = part.trim();
        // A word before the first `=` that has a space in it begins with a scheme.
        let head = part.split('=').next().unwrap_or_default().trim_end();
        let rest = match head.split_once(char::is_whitespace) {
            Some((scheme, _)) => {
                challenges.push((scheme.to_owned(), Vec::new()));
                part[scheme.len()..].trim_start()
            }
            None if !part.contains('=') && !part.is_empty() => {
                challenges.push((part.to_owned(), Vec::new()));
                continue;
            }
            None => part,
        };
        if let (Some((key, value)), Some((_, parameters))) = (rest.split_once('='), challenges.last_mut()) {
            parameters.push((key.trim().to_owned(), unquote(value.trim())));
        }
    }
    challenges
}

fn split_quoted(text: &str) -> Vec<&str> {
    let (mut parts, mut start, mut quoted, mut escaped) = (Vec::new(), 0, false, false);
    for (at, c) in text.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' if quoted => escaped = true,
            '"' => quoted = !quoted,
            ',' if !quoted => {
                parts.push(&text[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    parts.push(&text[start..]);
    parts
}

fn unquote(text: &str) -> String {
    let Some(inner) = text.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')) else {
        return text.to_owned();
    };
    let mut value = String::new();
    let mut characters = inner.chars();
    while let Some(c) = characters.next() {
        value.extend(if c == '\\' { characters.next() } else { Some(c) });
    }
    value
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn challenge(lines: &[&str]) -> Option<Challenge> {
        let mut headers = HeaderMap::new();
        for line in lines {
            headers.append("www-authenticate", line.parse().unwrap());
        }
        read(&headers)
    }

    #[test]
    fn a_scope_may_hold_commas() {
        assert_eq!(
            challenge(&[
                r#"Bearer realm="https://auth.io/token",service="reg",scope="repository:a/b:pull,push""#
            ]),
            Some(Challenge::Bearer {
                realm: "https://auth.io/token".into(),
                service: Some("reg".into()),
                scope: Some("repository:a/b:pull,push".into())
            })
        );
    }

    #[test]
    fn bearer_is_preferred_wherever_it_stands() {
        for lines in [
            &[r#"Basic realm="x", bearer realm=https://t.io"#][..],
            &[r#"Basic realm="x""#, "Bearer realm=\"https://t.io\""],
            &[r#"Bearer realm="https://t.io", Basic realm="a, b""#],
        ] {
            assert_eq!(
                challenge(lines),
                Some(Challenge::Bearer { realm: "https://t.io".into(), service: None, scope: None }),
                "{lines:?}"
            );
        }
        assert_eq!(challenge(&["Basic realm=\"x\""]), Some(Challenge::Basic));
        assert_eq!(challenge(&["Basic"]), Some(Challenge::Basic));
        assert_eq!(challenge(&["Negotiate"]), None);
        assert_eq!(challenge(&["Bearer"]), None);
    }

    fn quoted(text: &str) -> String {
        format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))
    }

    proptest! {
        #[test]
        fn what_is_quoted_is_read_back(realm in "[ -~]{0,30}", service in "[ -~]{0,30}", scope in "[ -~]{0,30}") {
            let text = format!(
                "Negotiate, Bearer realm={}, service={},scope={}, Basic realm=\"x\"",
                quoted(&realm), quoted(&service), quoted(&scope)
            );
            let expected = Challenge::Bearer { realm, service: Some(service), scope: Some(scope) };
            prop_assert_eq!(challenge(&[&text]), Some(expected));
        }

        #[test]
        fn any_header_is_taken_apart(text in "[ =,\"\\\\a-bé]{0,40}") {
            for (scheme, parameters) in parse(&text) {
                prop_assert!(text.contains(&scheme));
                for (name, _) in parameters {
                    prop_assert!(text.contains(&name));
                }
            }
        }
    }
}
