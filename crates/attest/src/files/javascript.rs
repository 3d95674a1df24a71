//! JavaScript: the lock files of npm, yarn and pnpm, and what is installed below `node_modules`.

use serde_json::Value;

use super::{Unread, json};
use crate::package::{Ecosystem, Package};

/// Whether a `package.json` in `directory` is an installed package's: `node_modules/NAME` or `node_modules/@SCOPE/NAME`.
pub(super) fn is_installed(directory: &str) -> bool {
    let mut parts = directory.rsplit('/');
    let (_, above) = (parts.next(), parts.next());
    match above {
        Some("node_modules") => true,
        Some(scope) if scope.starts_with('@') => parts.next() == Some("node_modules"),
        _ => false,
    }
}

pub(super) fn package_json(bytes: &[u8]) -> Result<Vec<Package>, Unread> {
    let value = json(bytes)?;
    let (Some(name), Some(version)) = (value["name"].as_str(), value["version"].as_str()) else {
        return Ok(Vec::new());
    };
    let mut package = Package::new(Ecosystem::Npm, name, version);
    package.license = value["license"].as_str().or(value["license"]["type"].as_str()).map(str::to_owned);
    Ok(vec![package])
}

/// Version 1 lists packages by name, nested; 2 and 3 list them by the path that they are installed at.
pub(super) fn package_lock(bytes: &[u8]) -> Result<Vec<Package>, Unread> {
    let value = json(bytes)?;
    let mut found = Vec::new();
    if let Some(packages) = value["packages"].as_object() {
        for (path, entry) in packages {
            let Some((_, by_path)) = path.rsplit_once("node_modules/") else { continue };
            let name = entry["name"].as_str().unwrap_or(by_path);
            if let (Some(version), false) = (entry["version"].as_str(), entry["link"] == true) {
                let mut package = Package::new(Ecosystem::Npm, name, version);
                package.license = entry["license"].as_str().map(str::to_owned);
                found.push(package);
            }
        }
    } else {
        nested(&value, &mut found, 0);
    }
    Ok(found)
}

fn nested(value: &Value, found: &mut Vec<Package>, depth: usize) {
    if depth > 64 {
        return;
    }
    for (name, entry) in value["dependencies"].as_object().into_iter().flatten() {
        if let Some(version) = entry["version"].as_str() {
            // A git address or a file in place of a version says nothing about which one it is.
            if version.starts_with(|c: char| c.is_ascii_digit()) {
                found.push(Package::new(Ecosystem::Npm, name, version));
            }
        }
        nested(entry, found, depth + 1);
    }
}

/// An entry begins with the ranges that it answers, at the line's beginning, and goes on with its version, indented:
/// `version "1.0"` in the first yarn's form, `version: 1.0` in the second's.
pub(super) fn yarn_lock(text: &str) -> Vec<Package> {
    let mut found = Vec::new();
    let mut name: Option<String> = None;
    for line in text.lines() {
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        if !line.starts_with(' ') {
            let first = line.trim_end_matches(':').split(", ").next().unwrap_or_default().trim_matches('"');
            let local = first.contains("@workspace:") || first.contains("@link:") || first == "__metadata";
            name = (!local).then(|| name_of(first).to_owned());
            continue;
        }
        let version = line.trim().strip_prefix("version").map(|rest| rest.trim_matches([':', ' ', '"']));
        if let (Some(version), true) = (version, line.starts_with("  ") && !line.starts_with("   "))
            && let Some(name) = name.take()
        {
            found.push(Package::new(Ecosystem::Npm, name, version));
        }
    }
    found
}

/// The name in `name@range` or `@scope/name@range`.
fn name_of(pattern: &str) -> &str {
    match pattern.get(1..).and_then(|rest| rest.find('@')) {
        Some(place) => &pattern[..=place],
        None => pattern,
    }
}

/// The keys below `packages:`, which name packages in the forms of all versions: `/name/1.0.0`, `/name@1.0.0(peer@2)`,
/// `name@1.0.0`.
pub(super) fn pnpm_lock(text: &str) -> Vec<Package> {
    let mut found = Vec::new();
    let mut inside = false;
    for line in text.lines() {
        if !line.starts_with(' ') && !line.trim().is_empty() {
            inside = line.trim_end() == "packages:";
            continue;
        }
        let key = line.strip_prefix("  ").filter(|rest| !rest.starts_with(' '));
        let Some(key) =
            key.and_then(|key| key.trim_end().strip_suffix(':').or(key.split_once(": ").map(|k| k.0)))
        else {
            continue;
        };
        let key = key.trim_matches(['\'', '"']).trim_start_matches('/');
        let key = key.split('(').next().unwrap_or(key);
        let split = match key.get(1..).and_then(|rest| rest.rfind('@')) {
            Some(place) => Some((&key[..=place], &key[place + 2..])),
            None => key.rsplit_once('/'),
        };
        if let Some((name, version)) = split.filter(|_| inside)
            && version.starts_with(|c: char| c.is_ascii_digit())
        {
            // Peers follow a version after an underscore in old forms.
            let version = version.split('_').next().unwrap_or(version);
            found.push(Package::new(Ecosystem::Npm, name, version));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listed(packages: &[Package]) -> Vec<String> {
        packages.iter().map(|package| format!("{} {}", package.name, package.version)).collect()
    }

    #[test]
    fn every_version_of_npm_s_lock_file_is_read() {
        let three = r#"{"lockfileVersion":3,"packages":{"":{"name":"app","version":"1.0.0"},
            "node_modules/a":{"version":"1.2.3","license":"MIT"},"node_modules/a/node_modules/@s/b":{"version":"2.0.0"},
            "node_modules/linked":{"resolved":"lib","link":true},"lib":{"version":"0.1.0"}}}"#;
        assert_eq!(listed(&package_lock(three.as_bytes()).unwrap()), ["a 1.2.3", "@s/b 2.0.0"]);
        let one = r#"{"lockfileVersion":1,"dependencies":{"a":{"version":"1.0.0","dependencies":{"b":{"version":"2.0.0"}}},
            "c":{"version":"git+https://x#abc"}}}"#;
        assert_eq!(listed(&package_lock(one.as_bytes()).unwrap()), ["a 1.0.0", "b 2.0.0"]);
        assert!(package_lock(b"{").is_err());
    }

    #[test]
    fn both_yarns_lock_files_are_read() {
        let first = "# yarn lockfile v1\n\n\"@babel/core@^7.0.0\", \"@babel/core@^7.1.0\":\n  version \"7.9.0\"\n  dependencies:\n    version \"^1\"\n\nms@2.0.0:\n  version \"2.0.0\"\n";
        assert_eq!(listed(&yarn_lock(first)), ["@babel/core 7.9.0", "ms 2.0.0"]);
        let second = "__metadata:\n  version: 6\n\n\"@babel/core@npm:^7.0.0\":\n  version: 7.9.0\n  resolution: \"x\"\n\n\"app@workspace:.\":\n  version: 0.0.0-use.local\n";
        assert_eq!(listed(&yarn_lock(second)), ["@babel/core 7.9.0"]);
    }

    #[test]
    fn every_version_of_pnpm_s_lock_file_is_read() {
        let text = "lockfileVersion: '9.0'\n\nimporters:\n  .:\n    x: 1\n\npackages:\n\n  '@s/a@1.0.0':\n    resolution: {}\n\n  b@2.0.0(react@18.0.0):\n    x: 1\n  /c@3.0.0:\n    x: 1\n  /@s/d/4.0.0_react@18.0.0:\n    x: 1\n  /e/5.0.0:\n    x: 1\n\nsnapshots:\n  f@6.0.0: {}\n";
        let found = listed(&pnpm_lock(text));
        assert!(
            found.contains(&"@s/a 1.0.0".to_owned()) && found.contains(&"b 2.0.0".to_owned()),
            "{found:?}"
        );
        assert!(found.contains(&"c 3.0.0".to_owned()) && found.contains(&"e 5.0.0".to_owned()), "{found:?}");
        assert!(!found.iter().any(|name| name.starts_with('f')), "{found:?}");
    }

    #[test]
    fn an_installed_package_lies_in_node_modules() {
        assert!(is_installed("app/node_modules/a") && is_installed("app/node_modules/@s/a"));
        assert!(!is_installed("app") && !is_installed("app/node_modules/a/lib"));
    }
}
