//! A package that was found, and its name in the form that scanners understand: a package URL.

use std::fmt::Write as _;

use crate::files::Distribution;

/// Which world a package is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Ecosystem {
    /// Debian's format.
    Deb,
    /// Alpine's format.
    Apk,
    /// The RPM format.
    Rpm,
    /// JavaScript.
    Npm,
    /// Python.
    Pypi,
    /// Rust.
    Cargo,
    /// Go modules.
    Go,
    /// Ruby.
    Gem,
    /// PHP.
    Composer,
    /// Java.
    Maven,
}

impl Ecosystem {
    /// Its type in package URLs.
    pub fn name(self) -> &'static str {
        match self {
            Self::Deb => "deb",
            Self::Apk => "apk",
            Self::Rpm => "rpm",
            Self::Npm => "npm",
            Self::Pypi => "pypi",
            Self::Cargo => "cargo",
            Self::Go => "golang",
            Self::Gem => "gem",
            Self::Composer => "composer",
            Self::Maven => "maven",
        }
    }

    fn of_distribution(self) -> bool {
        matches!(self, Self::Deb | Self::Apk | Self::Rpm)
    }
}

/// A package.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Package {
    /// Its world.
    pub ecosystem: Ecosystem,
    /// Its name, with its namespace before it where the world has some (`@scope/name`, `group/artifact`).
    pub name: String,
    /// Its version.
    pub version: String,
    /// Its architecture, by the distribution's own name.
    pub architecture: Option<String>,
    /// RPM's epoch.
    pub epoch: Option<u32>,
    /// The source package that it was built from.
    pub upstream: Option<String>,
    /// The licence, in the package's own words.
    pub license: Option<String>,
    /// Who made it.
    pub supplier: Option<String>,
}

impl Package {
    /// A package of which no more is known than its name and version.
    pub fn new(ecosystem: Ecosystem, name: impl Into<String>, version: impl Into<String>) -> Self {
        Self {
            ecosystem,
            name: name.into(),
            version: version.into(),
            architecture: None,
            epoch: None,
            upstream: None,
            license: None,
            supplier: None,
        }
    }

    /// The package URL (purl-spec 1.0).
    pub fn purl(&self, distribution: Option<&Distribution>) -> String {
        let mut url = format!("pkg:{}/", self.ecosystem.name());
        if self.ecosystem.of_distribution() {
            let vendor = distribution.map_or("unknown", |distribution| distribution.id.as_str());
            url.push_str(&encode(vendor));
            url.push('/');
        }
        let name = match self.ecosystem {
            Ecosystem::Pypi => self.name.to_ascii_lowercase().replace('_', "-"),
            Ecosystem::Deb | Ecosystem::Apk | Ecosystem::Go | Ecosystem::Composer => {
                self.name.to_ascii_lowercase()
            }
            _ => self.name.clone(),
        };
        let parts: Vec<String> = name.split('/').map(encode).collect();
        url.push_str(&parts.join("/"));
        if !self.version.is_empty() {
            url.push('@');
            url.push_str(&encode(&self.version));
        }
        let distro = distribution
            .filter(|_| self.ecosystem.of_distribution())
            .map(|found| format!("{}-{}", found.id, found.version).trim_end_matches('-').to_owned());
        // In the order of their names, as the specification asks.
        let qualifiers = [
            ("arch", self.architecture.clone()),
            ("distro", distro),
            ("epoch", self.epoch.map(|epoch| epoch.to_string())),
            ("upstream", self.upstream.clone()),
        ];
        let given: Vec<String> = qualifiers
            .into_iter()
            .filter_map(|(key, value)| Some(format!("{key}={}", encode(&value.filter(|v| !v.is_empty())?))))
            .collect();
        if !given.is_empty() {
            url.push('?');
            url.push_str(&given.join("&"));
        }
        url
    }
}

/// Percent-encodes what may not stand in a part of a package URL.
pub(crate) fn encode(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'.' | b'-' | b'_' | b'~' | b':' => {
                encoded.push(char::from(byte));
            }
            other => _ = write!(encoded, "%{other:02X}"),
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn package_urls_are_written_as_their_specification_says() {
        let debian = Distribution { id: "debian".into(), version: "12".into(), name: "Debian".into() };
        let mut curl = Package::new(Ecosystem::Deb, "curl", "7.88.1-10+deb12u5");
        curl.architecture = Some("amd64".into());
        assert_eq!(
            curl.purl(Some(&debian)),
            "pkg:deb/debian/curl@7.88.1-10%2Bdeb12u5?arch=amd64&distro=debian-12"
        );
        let scoped = Package::new(Ecosystem::Npm, "@angular/animation", "12.3.1");
        assert_eq!(scoped.purl(Some(&debian)), "pkg:npm/%40angular/animation@12.3.1");
        let python = Package::new(Ecosystem::Pypi, "Django_Filter", "1.0");
        assert_eq!(python.purl(None), "pkg:pypi/django-filter@1.0");
        let java = Package::new(Ecosystem::Maven, "org.apache.xmlgraphics/batik-anim", "1.9.1");
        assert_eq!(java.purl(None), "pkg:maven/org.apache.xmlgraphics/batik-anim@1.9.1");
        let mut bash = Package::new(Ecosystem::Rpm, "bash", "5.2-1.fc40");
        (bash.epoch, bash.upstream) = (Some(1), Some("bash-5.2-1.fc40.src.rpm".into()));
        assert_eq!(
            bash.purl(None),
            "pkg:rpm/unknown/bash@5.2-1.fc40?epoch=1&upstream=bash-5.2-1.fc40.src.rpm"
        );
    }
}
