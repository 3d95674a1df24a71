//! SPDX 2.3, as JSON: the image as a package, and every package that was found in it.

use std::collections::{BTreeMap, BTreeSet};

use kiln_oci::Digest;
use serde_json::{Value, json};

use crate::inventory::Inventory;
use crate::package::Package;

/// A document to be written.
#[derive(Debug)]
pub struct Spdx<'a> {
    /// What the image is called.
    pub name: &'a str,
    /// Its digest: of its manifest.
    pub digest: &'a Digest,
    /// Its package URL, if it has a name in a registry.
    pub purl: Option<String>,
    /// What is in it.
    pub inventory: &'a Inventory,
    /// When it was looked at, RFC 3339, in UTC.
    pub created: &'a str,
    /// What looked, as in `kiln-1.2.3`.
    pub tool: &'a str,
}

/// The package that stands for the image.
const IMAGE: &str = "SPDXRef-Image";
const NOTHING: &str = "NOASSERTION";

impl Spdx<'_> {
    /// The document. The same image, time and tool give the same bytes.
    pub fn document(&self) -> Value {
        let mut packages = vec![self.image()];
        let mut relationships = vec![json!({
            "spdxElementId": "SPDXRef-DOCUMENT",
            "relationshipType": "DESCRIBES",
            "relatedSpdxElement": IMAGE,
        })];
        for (purl, (package, places)) in self.distinct() {
            let id = identifier(package, &purl);
            packages.push(entry(&id, package, &purl, &places));
            relationships.push(json!({
                "spdxElementId": IMAGE, "relationshipType": "CONTAINS", "relatedSpdxElement": id,
            }));
        }
        let mut document = json!({
            "spdxVersion": "SPDX-2.3",
            "dataLicense": "CC0-1.0",
            "SPDXID": "SPDXRef-DOCUMENT",
            "name": self.name,
            "documentNamespace": format!("https://kiln.dev/spdx/{}", self.digest.to_string().replace(':', "-")),
            "creationInfo": { "created": self.created, "creators": [format!("Tool: {}", self.tool)] },
            "packages": packages,
            "relationships": relationships,
        });
        let unread: Vec<String> = self.inventory.unread().collect();
        if !unread.is_empty() {
            document["comment"] = json!(format!("Not read: {}", unread.join("; ")));
        }
        document
    }

    /// Every package once, by its package URL, with the files that tell of it.
    fn distinct(&self) -> BTreeMap<String, (&Package, BTreeSet<&str>)> {
        let distribution = self.inventory.distribution();
        let mut packages: BTreeMap<String, (&Package, BTreeSet<&str>)> = BTreeMap::new();
        for (path, package) in self.inventory.packages() {
            packages
                .entry(package.purl(distribution))
                .or_insert_with(|| (package, BTreeSet::new()))
                .1
                .insert(path);
        }
        packages
    }

    fn image(&self) -> Value {
        let mut package = json!({
            "SPDXID": IMAGE,
            "name": self.name,
            "versionInfo": self.digest.to_string(),
            "downloadLocation": NOTHING,
            "filesAnalyzed": false,
            "licenseConcluded": NOTHING,
            "licenseDeclared": NOTHING,
            "copyrightText": NOTHING,
            "primaryPackagePurpose": "CONTAINER",
            "checksums": [{
                "algorithm": self.digest.algorithm().name().to_ascii_uppercase(),
                "checksumValue": self.digest.hex(),
            }],
        });
        if let Some(purl) = &self.purl {
            package["externalRefs"] = references(purl);
        }
        if let Some(distribution) = self.inventory.distribution() {
            package["comment"] = json!(format!("The image says that it is {}.", distribution.name));
        }
        package
    }
}

fn references(purl: &str) -> Value {
    json!([{
        "referenceCategory": "PACKAGE-MANAGER", "referenceType": "purl", "referenceLocator": purl,
    }])
}

/// Letters, digits, dots and dashes are all that an identifier may have; the digest keeps what that would make equal
/// apart.
fn identifier(package: &Package, purl: &str) -> String {
    let clean: String =
        package.name.chars().map(|c| if c.is_ascii_alphanumeric() || c == '.' { c } else { '-' }).collect();
    let digest = Digest::of(purl.as_bytes()).hex();
    format!("SPDXRef-Package-{}-{clean}-{}", package.ecosystem.name(), &digest[..16])
}

fn entry(id: &str, package: &Package, purl: &str, places: &BTreeSet<&str>) -> Value {
    let version =
        package.epoch.map_or(package.version.clone(), |epoch| format!("{epoch}:{}", package.version));
    let places: Vec<String> = places.iter().map(|path| format!("/{path}")).collect();
    let mut entry = json!({
        "SPDXID": id,
        "name": package.name,
        "versionInfo": version,
        "downloadLocation": NOTHING,
        "filesAnalyzed": false,
        "licenseConcluded": NOTHING,
        "licenseDeclared": NOTHING,
        "copyrightText": NOTHING,
        "sourceInfo": format!("told by {}", places.join(", ")),
        "externalRefs": references(purl),
    });
    if let Some(license) = package.license.as_deref().filter(|license| !license.is_empty()) {
        if is_expression(license) {
            entry["licenseDeclared"] = json!(license);
        } else {
            entry["licenseComments"] = json!(format!("declared as: {license}"));
        }
    }
    if let Some(supplier) = package.supplier.as_deref().filter(|supplier| !supplier.is_empty()) {
        entry["supplier"] = json!(format!("Organization: {supplier}"));
    }
    entry
}

/// Identifiers of licences that are common enough for packages to name them, from the SPDX list. A word that is not among
/// them is told as the package said it, and not as an expression: it would make the document invalid.
const LICENSES: &[&str] = &[
    "0BSD",
    "AFL-2.1",
    "AFL-3.0",
    "AGPL-3.0-only",
    "AGPL-3.0-or-later",
    "Apache-1.1",
    "Apache-2.0",
    "Artistic-1.0",
    "Artistic-1.0-Perl",
    "Artistic-2.0",
    "BSD-1-Clause",
    "BSD-2-Clause",
    "BSD-2-Clause-Patent",
    "BSD-3-Clause",
    "BSD-3-Clause-Clear",
    "BSD-4-Clause",
    "BSL-1.0",
    "BlueOak-1.0.0",
    "CC-BY-3.0",
    "CC-BY-4.0",
    "CC-BY-SA-3.0",
    "CC-BY-SA-4.0",
    "CC0-1.0",
    "CDDL-1.0",
    "CDDL-1.1",
    "CPL-1.0",
    "EPL-1.0",
    "EPL-2.0",
    "EUPL-1.2",
    "FTL",
    "GFDL-1.3-only",
    "GFDL-1.3-or-later",
    "GPL-1.0-only",
    "GPL-1.0-or-later",
    "GPL-2.0-only",
    "GPL-2.0-or-later",
    "GPL-3.0-only",
    "GPL-3.0-or-later",
    "HPND",
    "ICU",
    "IJG",
    "ISC",
    "LGPL-2.0-only",
    "LGPL-2.0-or-later",
    "LGPL-2.1-only",
    "LGPL-2.1-or-later",
    "LGPL-3.0-only",
    "LGPL-3.0-or-later",
    "LPPL-1.3c",
    "Libpng",
    "MIT",
    "MIT-0",
    "MPL-1.1",
    "MPL-2.0",
    "MS-PL",
    "NCSA",
    "OFL-1.1",
    "OLDAP-2.8",
    "OpenSSL",
    "PHP-3.0",
    "PHP-3.01",
    "PSF-2.0",
    "PostgreSQL",
    "Python-2.0",
    "Ruby",
    "SSH-OpenSSH",
    "Sleepycat",
    "TCL",
    "Unicode-3.0",
    "Unicode-DFS-2016",
    "Unlicense",
    "Vim",
    "W3C",
    "WTFPL",
    "X11",
    "ZPL-2.1",
    "Zlib",
    "blessing",
    "bzip2-1.0.6",
    "curl",
    "libpng-2.0",
    "libtiff",
    "zlib-acknowledgement",
];

/// Whether a text is an SPDX licence expression over known licences (SPDX 2.3, annex D).
fn is_expression(text: &str) -> bool {
    let spaced = text.replace('(', " ( ").replace(')', " ) ");
    let (mut depth, mut wants_license) = (0i32, true);
    for word in spaced.split_whitespace() {
        match word {
            "(" if wants_license => depth += 1,
            ")" if !wants_license && depth > 0 => depth -= 1,
            "AND" | "OR" if !wants_license => wants_license = true,
            license if wants_license && LICENSES.contains(&license.trim_end_matches('+')) => {
                wants_license = false;
            }
            _ => return false,
        }
    }
    depth == 0 && !wants_license
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_expression_is_told_in_the_package_s_own_words() {
        for text in ["MIT", "MIT AND BSD-2-Clause", "(MIT OR Apache-2.0) AND ISC", "GPL-2.0-or-later"] {
            assert!(is_expression(text), "{text}");
        }
        for text in ["", "GPLv2+", "MIT Apache-2.0", "(MIT", "MIT)", "MIT AND", "AND MIT", "BSD, see COPYING"]
        {
            assert!(!is_expression(text), "{text}");
        }
    }

    #[test]
    fn a_package_that_two_files_tell_of_is_there_once_with_both() {
        let mut inventory = Inventory::new();
        let lock = b"[[package]]\nname = \"serde\"\nversion = \"1.0.0\"\n";
        for path in ["a/Cargo.lock", "b/Cargo.lock"] {
            inventory.file(path, lock.len() as u64, 0o644, &mut lock.as_slice());
        }
        let digest = Digest::of(b"x");
        let spdx = Spdx {
            name: "app",
            digest: &digest,
            purl: None,
            inventory: &inventory,
            created: "1970-01-01T00:00:00Z",
            tool: "kiln-0",
        };
        let document = spdx.document();
        assert_eq!(document["packages"].as_array().unwrap().len(), 2);
        assert_eq!(document["packages"][1]["sourceInfo"], "told by /a/Cargo.lock, /b/Cargo.lock");
        assert_eq!(document["relationships"].as_array().unwrap().len(), 2);
        assert_eq!(document, spdx.document());
    }
}
