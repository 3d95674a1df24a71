//! The databases of dpkg and apk, and `os-release`.

use super::Distribution;
use crate::package::{Ecosystem, Package};

/// os-release(5): `KEY=VALUE` lines, values quoted as in a shell.
pub(super) fn os_release(text: &str) -> Option<Distribution> {
    let value = |wanted: &str| {
        text.lines().find_map(|line| {
            let (key, value) = line.trim().split_once('=')?;
            (key == wanted).then(|| value.trim_matches(['"', '\'']).to_owned())
        })
    };
    let id = value("ID").filter(|id| !id.is_empty())?;
    let name = value("PRETTY_NAME").unwrap_or_else(|| id.clone());
    Some(Distribution { id, version: value("VERSION_ID").unwrap_or_default(), name })
}

/// dpkg's status file: paragraphs of fields (deb822). What is removed but for its configuration is not there.
pub(super) fn dpkg(text: &str) -> Vec<Package> {
    text.split("\n\n").filter_map(dpkg_paragraph).collect()
}

fn dpkg_paragraph(paragraph: &str) -> Option<Package> {
    let field = |wanted: &str| {
        paragraph.lines().find_map(|line| {
            // A line that begins with a blank goes on with the field before it.
            let (name, value) = line.split_once(':').filter(|_| !line.starts_with([' ', '\t']))?;
            name.eq_ignore_ascii_case(wanted).then(|| value.trim().to_owned())
        })
    };
    // Pieces of distroless images have no such field.
    if field("Status").is_some_and(|status| !status.ends_with(" installed")) {
        return None;
    }
    let mut package = Package::new(Ecosystem::Deb, field("Package")?, field("Version")?);
    package.architecture = field("Architecture");
    package.supplier = field("Maintainer");
    // `Source: glibc (2.36-9)` names the source's version where it is another one.
    package.upstream = field("Source").map(|source| match source.split_once(" (") {
        Some((name, version)) => format!("{name}@{}", version.trim_end_matches(')')),
        None => source,
    });
    Some(package)
}

/// apk's database: paragraphs of one-letter fields.
pub(super) fn apk(text: &str) -> Vec<Package> {
    text.split("\n\n")
        .filter_map(|paragraph| {
            let field = |wanted: &str| {
                paragraph.lines().find_map(|line| {
                    let (name, value) = line.split_once(':')?;
                    (name == wanted).then(|| value.trim().to_owned())
                })
            };
            let mut package = Package::new(Ecosystem::Apk, field("P")?, field("V")?);
            package.architecture = field("A");
            package.license = field("L");
            package.supplier = field("m");
            package.upstream = field("o").filter(|origin| *origin != package.name);
            Some(package)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dpkg_lists_what_is_installed() {
        let text = "Package: libc6\nStatus: install ok installed\nMaintainer: GNU Libc <l@d.org>\n\
                    Architecture: amd64\nSource: glibc (2.36-9)\nVersion: 2.36-9+deb12u4\nDescription: C\n Version: no\n\n\
                    Package: gone\nStatus: deinstall ok config-files\nVersion: 1\n\n\
                    Package: held\nStatus: hold ok installed\nVersion: 2\n";
        let found = dpkg(text);
        assert_eq!(found.iter().map(|p| p.name.as_str()).collect::<Vec<_>>(), ["libc6", "held"]);
        assert_eq!(found[0].version, "2.36-9+deb12u4");
        assert_eq!(found[0].upstream.as_deref(), Some("glibc@2.36-9"));
    }

    #[test]
    fn apk_lists_what_is_installed() {
        let text = "C:Q1abc=\nP:musl-utils\nV:1.2.4-r2\nA:x86_64\nL:MIT AND BSD-2-Clause\no:musl\nm:T <t@a.org>\nF:sbin\nR:ldconfig\n\nP:busybox\nV:1.36\n";
        let found = apk(text);
        assert_eq!(found.len(), 2);
        assert_eq!(found[0].upstream.as_deref(), Some("musl"));
        assert_eq!(found[0].license.as_deref(), Some("MIT AND BSD-2-Clause"));
    }

    #[test]
    fn a_distribution_says_who_it_is() {
        let found =
            os_release("NAME=\"Alpine Linux\"\nID=alpine\nVERSION_ID=3.19.1\nPRETTY_NAME=\"Alpine v3.19\"\n");
        let expected =
            Distribution { id: "alpine".into(), version: "3.19.1".into(), name: "Alpine v3.19".into() };
        assert_eq!(found, Some(expected));
        assert_eq!(os_release("NAME=x\n"), None);
    }
}
