//! Python: what pip installed, and files that pin versions.

use super::{Unread, json};
use crate::package::{Ecosystem, Package};

/// `METADATA` or `PKG-INFO`: mail headers, then a text.
pub(super) fn metadata(text: &str) -> Vec<Package> {
    let head = text.split("\n\n").next().unwrap_or(text);
    let field = |wanted: &str| {
        head.lines().find_map(|line| {
            let (name, value) = line.split_once(':').filter(|_| !line.starts_with([' ', '\t']))?;
            name.eq_ignore_ascii_case(wanted)
                .then(|| value.trim().to_owned())
                .filter(|value| !value.is_empty())
        })
    };
    let (Some(name), Some(version)) = (field("Name"), field("Version")) else { return Vec::new() };
    let mut package = Package::new(Ecosystem::Pypi, name, version);
    package.license = field("License-Expression").or_else(|| field("License"));
    package.supplier = field("Author").or_else(|| field("Author-email"));
    vec![package]
}

/// `name==1.2.3`, with extras, hashes, markers and comments around it. What is not pinned says nothing.
pub(super) fn requirements(text: &str) -> Vec<Package> {
    let pinned = |line: &str| {
        let line = line.split(" #").next()?.split(';').next()?.trim();
        if line.starts_with(['#', '-']) {
            return None;
        }
        let (name, version) = line.split_once("==")?;
        let version =
            version.trim_start_matches('=').split([' ', '\t', '\\', ',']).find(|part| !part.is_empty())?;
        let name = name.split('[').next()?.trim();
        let known = !name.is_empty() && !name.contains(' ') && !version.contains('*');
        known.then(|| Package::new(Ecosystem::Pypi, name, version))
    };
    text.lines().filter_map(pinned).collect()
}

pub(super) fn pipfile_lock(bytes: &[u8]) -> Result<Vec<Package>, Unread> {
    let value = json(bytes)?;
    let mut found = Vec::new();
    for (name, entry) in value["default"].as_object().into_iter().flatten() {
        if let Some(version) = entry["version"].as_str().and_then(|version| version.strip_prefix("==")) {
            found.push(Package::new(Ecosystem::Pypi, name, version));
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_installed_wheel_is_read() {
        let text =
            "Metadata-Version: 2.1\nName: Flask\nVersion: 3.0.0\nLicense: BSD-3-Clause\n\nName: other\n";
        let found = metadata(text);
        assert_eq!((found[0].name.as_str(), found[0].version.as_str()), ("Flask", "3.0.0"));
        assert_eq!(found.len(), 1);
    }

    #[test]
    fn only_pinned_requirements_are_packages() {
        let text = "# pinned\nflask==3.0.0 # why\nrequests[socks]==2.31.0 ; python_version > '3'\n\
                    a==1.0 \\\n    --hash=sha256:abc\nb>=2\nc==1.*\n-r other.txt\n";
        let found = requirements(text);
        let names: Vec<_> = found.iter().map(|p| format!("{} {}", p.name, p.version)).collect();
        assert_eq!(names, ["flask 3.0.0", "requests 2.31.0", "a 1.0"]);
    }
}
