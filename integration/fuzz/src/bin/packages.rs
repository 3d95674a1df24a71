//! Bytes as every kind of file that tells of packages. The first byte says which.

#![no_main]

use kiln_attest::{Catalog, Inventory, Spdx};
use kiln_oci::Digest;

/// A path of each kind.
const PATHS: [&str; 22] = [
    "etc/os-release",
    "var/lib/dpkg/status",
    "var/lib/dpkg/status.d/base",
    "lib/apk/db/installed",
    "var/lib/rpm/Packages",
    "var/lib/rpm/Packages.db",
    "var/lib/rpm/rpmdb.sqlite",
    "app/package-lock.json",
    "node_modules/a/package.json",
    "yarn.lock",
    "pnpm-lock.yaml",
    "requirements.txt",
    "a.dist-info/METADATA",
    "Pipfile.lock",
    "uv.lock",
    "Cargo.lock",
    "go.sum",
    "bin/program",
    "Gemfile.lock",
    "specifications/a-1.0.gemspec",
    "vendor/composer/installed.json",
    "app.jar",
];

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let Some((which, content)) = bytes.split_first() else { return };
    let path = PATHS[usize::from(*which) % PATHS.len()];
    // Programs count by their size.
    let size = if path == "bin/program" { 1 << 20 } else { content.len() as u64 };
    assert!(Catalog::of(path, size, 0o755).is_some(), "{path}");
    let mut inventory = Inventory::new();
    inventory.file("usr/lib/os-release", 20, 0o644, &mut b"ID=x\nVERSION_ID=1\n".as_slice());
    inventory.file(path, size, 0o755, &mut &*content);
    // Another name of it, and of the layer above one that is gone.
    inventory.link("srv/app.jar", path);
    let length: usize =
        inventory.packages().map(|(_, package)| package.name.len() + package.version.len()).sum();
    // Whatever is told was read, maybe unpacked, and is there twice at most.
    assert!(length <= 4096 * content.len() + 4096, "{length} bytes of names from {}", content.len());
    let first = document(&inventory);
    assert_eq!(document(&inventory), first);
    let told = inventory.packages().count();
    inventory.next_layer();
    inventory.gone(path);
    assert!(inventory.packages().all(|(of, _)| of != path) && inventory.packages().count() <= told);
    assert!(!inventory.unread().any(|why| why.starts_with(&format!("/{path}:"))));
});

fn document(inventory: &Inventory) -> String {
    let spdx = Spdx {
        name: "image",
        digest: &Digest::of(b""),
        purl: None,
        inventory,
        created: "2026-01-01T00:00:00Z",
        tool: "kiln",
    };
    let document = spdx.document();
    let packages = document["packages"].as_array().expect("there is a list of packages");
    let mut ids: Vec<&str> = packages.iter().filter_map(|package| package["SPDXID"].as_str()).collect();
    let count = ids.len();
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), count, "two packages have one id");
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-');
    assert!(
        ids.iter().all(|id| id.strip_prefix("SPDXRef-").is_some_and(|id| id.chars().all(allowed))),
        "{ids:?}"
    );
    document.to_string()
}
