//! Image names and platforms, as far as the checks need them.

/// Whether a text can be the name of an image.
pub(super) fn is_image(text: &str) -> bool {
    if text.len() == 64 && text.bytes().all(|b| b.is_ascii_digit() || matches!(b, b'a'..=b'f')) {
        return false;
    }
    let (text, digest) = text.split_once('@').map_or((text, None), |(text, digest)| (text, Some(digest)));
    let (host, rest) = match text.split_once('/') {
        Some((host, rest)) if is_host_like(host) => (Some(host), rest),
        _ => (None, text),
    };
    let (path, tag) = rest.split_once(':').map_or((rest, None), |(path, tag)| (path, Some(tag)));
    host.is_none_or(is_host)
        && path.split('/').all(is_component)
        && tag.is_none_or(is_tag)
        && digest.is_none_or(is_digest)
}

fn is_host_like(part: &str) -> bool {
    part.contains(['.', ':']) || part == "localhost" || part.chars().any(char::is_uppercase)
}

fn is_host(host: &str) -> bool {
    let (name, port) = match host.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((address, port)) => {
            if address.is_empty() || !address.chars().all(|c| c.is_ascii_hexdigit() || c == ':') {
                return false;
            }
            ("v6", port.strip_prefix(':').or((!port.is_empty()).then_some("?")))
        }
        None => host.split_once(':').map_or((host, None), |(name, port)| (name, Some(port))),
    };
    let is_label = |label: &str| {
        label.chars().all(|c| c.is_ascii_alphanumeric() || c == '-')
            && label.starts_with(|c: char| c.is_ascii_alphanumeric())
            && label.ends_with(|c: char| c.is_ascii_alphanumeric())
    };
    name.split('.').all(is_label)
        && port.is_none_or(|port| !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit()))
}

/// Lower-case letters and digits with `.`, `_`, `__` or dashes between them.
fn is_component(part: &str) -> bool {
    let alphanumeric = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    part.starts_with(alphanumeric)
        && part.ends_with(alphanumeric)
        && part
            .split(alphanumeric)
            .all(|run| matches!(run, "" | "." | "_" | "__") || run.bytes().all(|b| b == b'-'))
}

fn is_tag(tag: &str) -> bool {
    let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    tag.len() <= 128 && tag.starts_with(word) && tag.chars().all(|c| word(c) || c == '.' || c == '-')
}

fn is_digest(digest: &str) -> bool {
    let Some((algorithm, hex)) = digest.split_once(':') else { return false };
    let is_part = |part: &str| {
        part.starts_with(|c: char| c.is_ascii_alphabetic()) && part.bytes().all(|b| b.is_ascii_alphanumeric())
    };
    algorithm.split(['-', '_', '+', '.']).all(is_part)
        && hex.len() >= 32
        && hex.bytes().all(|b| b.is_ascii_hexdigit())
}

const SYSTEMS: &[&str] = &[
    "aix",
    "android",
    "darwin",
    "dragonfly",
    "freebsd",
    "illumos",
    "ios",
    "js",
    "linux",
    "netbsd",
    "openbsd",
    "plan9",
    "solaris",
    "wasip1",
    "windows",
];
const ARCHITECTURES: &[&str] = &[
    "386", "amd64", "arm", "arm64", "loong64", "mips", "mips64", "mips64le", "mipsle", "ppc64", "ppc64le",
    "riscv64", "s390x", "wasm",
];

/// Operating system and architecture of a platform, or `None` if the text is none.
pub(super) fn platform(text: &str) -> Option<(String, String)> {
    let parts: Vec<&str> = text.split('/').collect();
    let is_part = |part: &&str| {
        !part.is_empty() && part.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-'))
    };
    let bare = parts[0].split('(').next().unwrap_or("");
    if !is_part(&bare) || !parts[1..].iter().all(is_part) {
        return None;
    }
    let system = match bare.to_lowercase().as_str() {
        "macos" => "darwin".to_owned(),
        other => other.to_owned(),
    };
    match parts.as_slice() {
        [_] if SYSTEMS.contains(&system.as_str()) => Some((system, "amd64".to_owned())),
        [one] => {
            let architecture = architecture(one);
            ARCHITECTURES.contains(&architecture.as_str()).then(|| ("linux".to_owned(), architecture))
        }
        [_, second] | [_, second, _] => Some((system, architecture(second))),
        _ => None,
    }
}

fn architecture(text: &str) -> String {
    match text.to_lowercase().as_str() {
        "x86_64" | "x86-64" => "amd64".to_owned(),
        "aarch64" => "arm64".to_owned(),
        "i386" => "386".to_owned(),
        "armhf" | "armel" => "arm".to_owned(),
        other => other.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn image_names_follow_the_grammar_of_distribution() {
        for name in
            ["alpine", "a/b:1", "localhost:5000/x", "[::1]:5000/x", "docker.io/library/a__b", "scratch"]
        {
            assert!(is_image(name), "{name}");
        }
        let digest = format!("a@sha256:{}", "0".repeat(64));
        assert!(is_image(&digest));
        for name in ["", "Alpine", "a:", ":1", "a//b", "a@x", "-a", "a b", "a/B", "host.x/", &"a".repeat(64)]
        {
            assert!(!is_image(name), "{name}");
        }
    }

    #[test]
    fn platforms_are_systems_architectures_or_both() {
        let pair = |a: &str, b: &str| Some((a.to_owned(), b.to_owned()));
        assert_eq!(platform("linux/aarch64"), pair("linux", "arm64"));
        assert_eq!(platform("arm64"), pair("linux", "arm64"));
        assert_eq!(platform("windows"), pair("windows", "amd64"));
        assert_eq!(platform("linux/arm/v7"), pair("linux", "arm"));
        assert_eq!(platform("what"), None);
        assert_eq!(platform("a/b/c/d"), None);
        assert_eq!(platform(""), None);
    }
}
