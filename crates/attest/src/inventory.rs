//! What an image holds: it is shown the layers entry by entry, base first, and keeps what is still there at the end.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;

use crate::files::{Catalog, Distribution, Found, read};
use crate::package::Package;

/// The packages of an image, gathered from its layers.
#[derive(Debug, Default)]
pub struct Inventory {
    layer: usize,
    files: BTreeMap<String, Kept>,
    unread: BTreeMap<String, (usize, String)>,
    /// Layers that could not be had, and why.
    missing: Vec<String>,
    /// Directories in which this layer has something, and from which what is lower has been removed.
    cleared: BTreeSet<String>,
}

#[derive(Debug)]
struct Kept {
    layer: usize,
    catalog: Catalog,
    found: Found,
}

impl Inventory {
    /// Nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// The next layer begins: whiteouts count for what was before it.
    pub fn next_layer(&mut self) {
        self.layer += 1;
        self.cleared.clear();
    }

    /// Goes on without a layer that could not be had; `why` names it.
    pub fn missing_layer(&mut self, why: String) {
        self.missing.push(why);
        self.next_layer();
    }

    /// A regular file of this layer: reads from it if it tells of packages. Paths have no slash in front.
    pub fn file(&mut self, path: &str, size: u64, mode: u32, content: &mut dyn Read) {
        self.forget(path, false);
        let Some(catalog) = Catalog::of(path, size, mode) else { return };
        match read(catalog, path, size, content) {
            Ok(found) if found.is_empty() => {}
            Ok(found) => _ = self.files.insert(path.to_owned(), Kept { layer: self.layer, catalog, found }),
            Err(why) => _ = self.unread.insert(path.to_owned(), (self.layer, why.to_string())),
        }
    }

    /// A hard link of this layer to `target`.
    pub fn link(&mut self, path: &str, target: &str) {
        self.forget(path, false);
        // A file's name matters: a link under a name that tells nothing is nothing.
        let Some(kept) = self.files.get(target) else { return };
        if Catalog::of(path, u64::MAX, 0o755) == Some(kept.catalog) {
            let (catalog, found) = (kept.catalog, kept.found.clone());
            self.files.insert(path.to_owned(), Kept { layer: self.layer, catalog, found });
        }
    }

    /// A directory of this layer.
    pub fn directory(&mut self, path: &str) {
        if self.files.get(path).is_some_and(|kept| kept.layer < self.layer) {
            self.files.remove(path);
        }
        self.unread.remove(path);
    }

    /// Something else, or a whiteout, of this layer: what lower layers have there, and below, is gone.
    pub fn gone(&mut self, path: &str) {
        self.forget(path, false);
    }

    /// A directory of this layer hides what lower layers have in it.
    pub fn opaque(&mut self, path: &str) {
        self.forget(path, true);
    }

    /// What lower layers have below `path` is gone, and what they have there unless `only_below`.
    fn forget(&mut self, path: &str, only_below: bool) {
        let layer = self.layer;
        if !only_below {
            if self.files.get(path).is_some_and(|kept| kept.layer < layer) {
                self.files.remove(path);
            }
            if self.unread.get(path).is_some_and(|(of, _)| *of < layer) {
                self.unread.remove(path);
            }
        }
        // Nothing comes back to a lower layer: once is enough, however often a layer says it.
        if self.cleared.contains(path) {
            return;
        }
        let below = if path.is_empty() { String::new() } else { format!("{path}/") };
        let files = remove_below(&mut self.files, &below, |kept| kept.layer < layer);
        let unread = remove_below(&mut self.unread, &below, |(of, _)| *of < layer);
        if files || unread {
            self.cleared.insert(path.to_owned());
        }
    }

    /// The distribution that the image says it is.
    pub fn distribution(&self) -> Option<&Distribution> {
        ["etc/os-release", "usr/lib/os-release"]
            .iter()
            .find_map(|path| self.files.get(*path)?.found.distribution.as_ref())
    }

    /// The packages, each with the path that tells of it, in the order of paths. The same package told of by two files is
    /// there twice.
    pub fn packages(&self) -> impl Iterator<Item = (&str, &Package)> {
        self.files
            .iter()
            .flat_map(|(path, kept)| kept.found.packages.iter().map(move |package| (path.as_str(), package)))
    }

    /// What looked like a list of packages and could not be read, as sentences.
    pub fn unread(&self) -> impl Iterator<Item = String> {
        let files = self.unread.iter().map(|(path, (_, why))| format!("/{path}: {why}"));
        self.missing.iter().cloned().chain(files)
    }
}

/// Removes what is lower of what `below` begins. Gives whether something else was left there.
fn remove_below<V>(map: &mut BTreeMap<String, V>, below: &str, is_lower: impl Fn(&V) -> bool) -> bool {
    let those = map.range(below.to_owned()..).take_while(|(name, _)| name.starts_with(below));
    let mut any_left = false;
    let mut gone = Vec::new();
    for (name, value) in those {
        if is_lower(value) {
            gone.push(name.clone());
        } else {
            any_left = true;
        }
    }
    for name in gone {
        map.remove(&name);
    }
    any_left
}

#[cfg(test)]
mod tests {
    use super::*;

    fn add(inventory: &mut Inventory, path: &str, text: &str) {
        inventory.file(path, text.len() as u64, 0o644, &mut text.as_bytes());
    }

    fn names(inventory: &Inventory) -> Vec<String> {
        inventory.packages().map(|(path, package)| format!("{path} {}", package.name)).collect()
    }

    const LOCK: &str = "[[package]]\nname = \"serde\"\nversion = \"1.0.0\"\n";

    #[test]
    fn what_later_layers_remove_or_replace_is_not_there() {
        let mut inventory = Inventory::new();
        add(&mut inventory, "a/Cargo.lock", LOCK);
        add(&mut inventory, "b/c/Cargo.lock", LOCK);
        add(&mut inventory, "b-side/Cargo.lock", LOCK);
        add(&mut inventory, "d/Cargo.lock", LOCK);
        inventory.next_layer();
        inventory.gone("b");
        add(&mut inventory, "a/Cargo.lock", &LOCK.replace("serde", "toml"));
        add(&mut inventory, "d/e/Cargo.lock", LOCK);
        // The mark may come after what the same layer puts there.
        inventory.opaque("d");
        assert_eq!(
            names(&inventory),
            ["a/Cargo.lock toml", "b-side/Cargo.lock serde", "d/e/Cargo.lock serde"]
        );
    }

    #[test]
    fn a_link_to_a_list_is_a_list_and_a_directory_in_its_place_is_none() {
        let mut inventory = Inventory::new();
        add(&mut inventory, "a/Cargo.lock", LOCK);
        inventory.link("b/Cargo.lock", "a/Cargo.lock");
        inventory.link("b/notes", "a/Cargo.lock");
        assert_eq!(names(&inventory), ["a/Cargo.lock serde", "b/Cargo.lock serde"]);
        inventory.next_layer();
        inventory.directory("a/Cargo.lock");
        inventory.directory("b");
        assert_eq!(names(&inventory), ["b/Cargo.lock serde"]);
    }

    #[test]
    fn a_layer_may_say_a_thing_over_and_over() {
        let mut inventory = Inventory::new();
        add(&mut inventory, "d/old/package-lock.json", "{");
        inventory.next_layer();
        let began = std::time::Instant::now();
        for number in 0..40_000 {
            add(&mut inventory, &format!("d/{number}/package-lock.json"), "{");
            inventory.opaque("d");
            inventory.gone("d");
        }
        // Takes a second; looked through each time, it would take minutes.
        assert!(began.elapsed().as_secs() < 20);
        assert_eq!(inventory.unread().count(), 40_000);
        add(&mut inventory, "e/package-lock.json", "{");
        inventory.next_layer();
        inventory.opaque("d");
        assert_eq!(inventory.unread().count(), 1);
    }

    #[test]
    fn what_cannot_be_read_is_said_and_forgotten_with_its_file() {
        let mut inventory = Inventory::new();
        add(&mut inventory, "app/package-lock.json", "{");
        assert_eq!(inventory.unread().count(), 1);
        inventory.next_layer();
        inventory.gone("app");
        assert_eq!(inventory.unread().count(), 0);
    }
}
