//! Lock files of Rust, Ruby and PHP, and what Ruby and PHP leave of what they installed.

use serde_json::Value;

use super::{Unread, json};
use crate::package::{Ecosystem, Package};

/// The `[[package]]` tables of `Cargo.lock`, `poetry.lock` and `uv.lock`, which their tools always write one key a line.
pub(super) fn toml_packages(text: &str, ecosystem: Ecosystem) -> Vec<Package> {
    let mut found = Vec::new();
    for table in text.split("\n[[package]]").skip(usize::from(!text.starts_with("[[package]]"))) {
        let own = table.split("\n[").next().unwrap_or(table);
        let value = |wanted: &str| {
            own.lines().find_map(|line| {
                let (key, value) = line.split_once(" = ")?;
                (key == wanted).then(|| value.trim().trim_matches('"').to_owned())
            })
        };
        // The project itself, in uv's words.
        if value("source").is_some_and(|source| source.contains("virtual =") || source.contains("editable ="))
        {
            continue;
        }
        if let (Some(name), Some(version)) = (value("name"), value("version")) {
            found.push(Package::new(ecosystem, name, version));
        }
    }
    found
}

/// The entries of `specs:`, four blanks deep: `name (1.2.3)`. Those deeper are what they need.
pub(super) fn gemfile_lock(text: &str) -> Vec<Package> {
    let mut section = "";
    let mut found = Vec::new();
    for line in text.lines() {
        if !line.starts_with(' ') {
            section = line.trim();
            continue;
        }
        let entry = line.strip_prefix("    ").filter(|rest| !rest.starts_with(' '));
        if let Some((name, version)) = entry.and_then(|entry| entry.split_once(" ("))
            && matches!(section, "GEM" | "GIT")
        {
            found.push(Package::new(Ecosystem::Gem, name, version.trim_end_matches(')')));
        }
    }
    found
}

/// `specifications/NAME-VERSION.gemspec`, perhaps with a platform after the version.
pub(super) fn gemspec(path: &str) -> Vec<Package> {
    let name = path.rsplit('/').next().unwrap_or(path).trim_end_matches(".gemspec");
    let begins = |rest: &str| rest.starts_with(|c: char| c.is_ascii_digit());
    let place = name.match_indices('-').map(|(at, _)| at).find(|at| begins(&name[at + 1..]));
    place.map(|at| Package::new(Ecosystem::Gem, &name[..at], &name[at + 1..])).into_iter().collect()
}

/// `composer.lock`, and `installed.json` in both of its forms.
pub(super) fn composer(bytes: &[u8]) -> Result<Vec<Package>, Unread> {
    let value = json(bytes)?;
    let lists = [&value["packages"], &value["packages-dev"], &value];
    let entries = lists.into_iter().filter_map(Value::as_array).flatten();
    Ok(entries
        .filter_map(|entry| {
            let version = entry["version"].as_str()?;
            let mut package =
                Package::new(Ecosystem::Composer, entry["name"].as_str()?, version.trim_start_matches('v'));
            let licenses: Vec<&str> =
                entry["license"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
            package.license = (!licenses.is_empty()).then(|| licenses.join(" OR "));
            Some(package)
        })
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listed(packages: &[Package]) -> Vec<String> {
        packages.iter().map(|package| format!("{} {}", package.name, package.version)).collect()
    }

    #[test]
    fn cargo_s_lock_file_is_read() {
        let text = "# made by cargo\nversion = 4\n\n[[package]]\nname = \"a\"\nversion = \"1.0.0\"\nsource = \"registry+x\"\n\n[[package]]\nname = \"b\"\nversion = \"0.2.0\"\ndependencies = [\n \"a\",\n]\n\n[metadata]\nname = \"no\"\n";
        assert_eq!(listed(&toml_packages(text, Ecosystem::Cargo)), ["a 1.0.0", "b 0.2.0"]);
    }

    #[test]
    fn ruby_s_files_are_read() {
        let text = "GEM\n  remote: https://rubygems.org/\n  specs:\n    rails (7.0.4)\n      activesupport (= 7.0.4)\n    racc (1.6.2)\n\nPATH\n  specs:\n    own (0.1)\n\nPLATFORMS\n  ruby\n\nDEPENDENCIES\n  rails (~> 7)\n";
        assert_eq!(listed(&gemfile_lock(text)), ["rails 7.0.4", "racc 1.6.2"]);
        assert_eq!(
            listed(&gemspec("usr/lib/ruby/gems/specifications/net-http-0.3.2.gemspec")),
            ["net-http 0.3.2"]
        );
    }

    #[test]
    fn php_s_files_are_read() {
        let lock = br#"{"packages":[{"name":"monolog/monolog","version":"v2.9.1","license":["MIT"]}],"packages-dev":[]}"#;
        assert_eq!(listed(&composer(lock).unwrap()), ["monolog/monolog 2.9.1"]);
        assert_eq!(listed(&composer(br#"[{"name":"a/b","version":"1.0"}]"#).unwrap()), ["a/b 1.0"]);
    }
}
