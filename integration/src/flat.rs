//! An image in a layout as text: its whole tree, what each layer holds, its config.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Write as _;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use crate::case::EPOCH;

/// An image's documents, and where its blobs are.
pub struct Image {
    layout: PathBuf,
    manifest: serde_json::Value,
    config: serde_json::Value,
}

/// A file of the tree; names that are hard links of each other share one.
#[derive(Clone, Debug, PartialEq)]
struct Node {
    number: usize,
    is_dir: bool,
    text: String,
}

/// One entry of a layer.
enum Entry {
    Node(Node),
    Link(String),
    Gone,
}

impl Image {
    /// The first image of a layout.
    pub fn read(layout: &Path) -> Self {
        let index: serde_json::Value =
            serde_json::from_slice(&std::fs::read(layout.join("index.json")).unwrap()).unwrap();
        let mut image = Self {
            layout: layout.to_owned(),
            manifest: serde_json::Value::Null,
            config: serde_json::Value::Null,
        };
        image.manifest = image.json(&index["manifests"][0]["digest"]);
        image.config = image.json(&image.manifest["config"]["digest"]);
        image
    }

    fn blob(&self, digest: &serde_json::Value) -> Vec<u8> {
        let hex = digest.as_str().unwrap().trim_start_matches("sha256:");
        std::fs::read(self.layout.join("blobs/sha256").join(hex)).unwrap()
    }

    fn json(&self, digest: &serde_json::Value) -> serde_json::Value {
        serde_json::from_slice(&self.blob(digest)).unwrap()
    }

    /// The layers' entries: path (a directory's ends in a slash) and what it is.
    fn layers(&self) -> Vec<Vec<(String, Entry)>> {
        let mut number = 0;
        let layers = self.manifest["layers"].as_array().unwrap().iter();
        layers
            .map(|layer| {
                let bytes = self.blob(&layer["digest"]);
                let mut tar = tar::Archive::new(flate2::read::MultiGzDecoder::new(bytes.as_slice()));
                tar.entries().unwrap().map(|entry| read_entry(&mut entry.unwrap(), &mut number)).collect()
            })
            .collect()
    }

    fn tree(&self) -> BTreeMap<String, Node> {
        let mut tree: BTreeMap<String, Node> = BTreeMap::new();
        for layer in self.layers() {
            for (path, entry) in &layer {
                if let Entry::Gone = entry {
                    tree.retain(|other, _| other != path && !other.starts_with(&format!("{path}/")));
                }
            }
            for (path, entry) in layer {
                let path = path.trim_end_matches('/').to_owned();
                let node = match entry {
                    Entry::Gone => continue,
                    Entry::Node(node) => node,
                    Entry::Link(first) => {
                        tree.get(&first).unwrap_or_else(|| panic!("{path}: no {first}")).clone()
                    }
                };
                if !node.is_dir {
                    tree.retain(|other, _| !other.starts_with(&format!("{path}/")));
                }
                tree.insert(path, node);
            }
        }
        tree
    }

    /// The tree, an entry a line, without those that are as in `base`; those that are gone follow a minus.
    pub fn tree_beside(&self, base: &Self) -> String {
        let (tree, below) = (self.tree(), base.tree());
        let mut names: HashMap<usize, Vec<&str>> = HashMap::new();
        for (path, node) in &tree {
            names.entry(node.number).or_default().push(path);
        }
        let mut text = String::new();
        for path in below.keys().filter(|path| !tree.contains_key(*path)) {
            writeln!(text, "- {path}").unwrap();
        }
        for (path, node) in &tree {
            if below.get(path).is_some_and(|old| old.text == node.text) {
                continue;
            }
            write!(text, "{path} {}", node.text).unwrap();
            if let Some(names) = names.get(&node.number).filter(|names| names.len() > 1) {
                write!(text, " = {}", names.join(" ")).unwrap();
            }
            text.push('\n');
        }
        text
    }

    /// The names in each layer above the first `skip`, a layer a line.
    pub fn layers_text(&self, skip: usize) -> String {
        let mut text = String::new();
        // A base of its own takes the place of the one that is left out.
        for layer in self.layers().into_iter().skip(skip) {
            let names: Vec<String> = layer
                .iter()
                .map(|(path, entry)| match entry {
                    Entry::Gone => format!("-{path}"),
                    _ => path.clone(),
                })
                .collect();
            writeln!(text, "[{}]", names.join(" ")).unwrap();
        }
        text
    }

    /// The config without times and digests; history an entry a line, `+` where it has a layer.
    pub fn config_text(&self) -> String {
        let mut config = self.config.clone();
        let map = config.as_object_mut().unwrap();
        map.remove("created");
        map.remove("rootfs");
        let history = map.remove("history").unwrap_or_default();
        let mut text = serde_json::to_string_pretty(&config).unwrap();
        text.push('\n');
        for entry in history.as_array().unwrap_or(&Vec::new()) {
            let sign = if entry["empty_layer"] == true { ' ' } else { '+' };
            writeln!(text, "{sign} {:?}", entry["created_by"].as_str().unwrap_or_default()).unwrap();
        }
        text
    }
}

fn read_entry<R: std::io::Read>(entry: &mut tar::Entry<'_, R>, number: &mut usize) -> (String, Entry) {
    let shown = |bytes: &[u8]| bytes.escape_ascii().to_string().replace("\\'", "'");
    let attributes = attributes(entry);
    let raw = entry.path_bytes().into_owned();
    let path = format!("/{}", shown(raw.strip_prefix(b"./").unwrap_or(&raw)));
    let name = path.trim_end_matches('/');
    if let Some((parent, gone)) = name.rsplit_once('/')
        && let Some(gone) = gone.strip_prefix(".wh.")
    {
        return (format!("{parent}/{gone}"), Entry::Gone);
    }
    let link = entry.link_name_bytes().map(|link| shown(&link));
    let header = entry.header().clone();
    let kind = header.entry_type();
    if kind.is_hard_link() {
        return (path, Entry::Link(format!("/{}", link.unwrap_or_default())));
    }
    *number += 1;
    let mode = header.mode().unwrap() & 0o7777;
    let mut text = match kind {
        tar::EntryType::Directory => "dir".to_owned(),
        tar::EntryType::Symlink => "link".to_owned(),
        tar::EntryType::Fifo => "fifo".to_owned(),
        tar::EntryType::Char => "char".to_owned(),
        tar::EntryType::Block => "block".to_owned(),
        _ => "file".to_owned(),
    };
    if kind != tar::EntryType::Symlink {
        write!(text, " {mode:04o}").unwrap();
    }
    write!(text, " {}:{}", header.uid().unwrap(), header.gid().unwrap()).unwrap();
    if kind.is_file() {
        let mut content = Vec::new();
        entry.read_to_end(&mut content).unwrap();
        let hash = kiln_oci::Digest::of(&content).hex();
        write!(text, " {} sha256:{}", content.len(), &hash[..16]).unwrap();
    }
    if let Some(link) = link {
        write!(text, " -> {link}").unwrap();
    }
    if matches!(kind, tar::EntryType::Char | tar::EntryType::Block) {
        let (major, minor) = (header.device_major().unwrap(), header.device_minor().unwrap());
        write!(text, " {},{}", major.unwrap_or(0), minor.unwrap_or(0)).unwrap();
    }
    for (key, value) in attributes {
        write!(text, " {key}={}", value.escape_ascii()).unwrap();
    }
    let mtime = header.mtime().unwrap();
    if mtime == EPOCH {
        text.push_str(" @build");
    } else {
        write!(text, " @{mtime}").unwrap();
    }
    (path, Entry::Node(Node { number: *number, is_dir: kind.is_dir(), text }))
}

/// Extended attributes, by name.
fn attributes<R: std::io::Read>(entry: &mut tar::Entry<'_, R>) -> Vec<(String, Vec<u8>)> {
    let Ok(Some(extensions)) = entry.pax_extensions() else { return Vec::new() };
    let mut found: Vec<(String, Vec<u8>)> = extensions
        .filter_map(Result::ok)
        .filter_map(|extension| {
            let name = extension.key().ok()?.strip_prefix("SCHILY.xattr.")?;
            Some((name.to_owned(), extension.value_bytes().to_owned()))
        })
        .collect();
    found.sort();
    found
}
