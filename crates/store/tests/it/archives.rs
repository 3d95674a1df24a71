use std::io::{Read, Write};
use std::path::Path;

use kiln_oci::{Descriptor, DiffId, Digest, Document, Manifest, media_type};
use kiln_store::{ArchiveWriter, Choice, LocalImage, StoreError, find_kaniko_image, read_archive};

use crate::images::{TestImage, amd64, arm, image, reference};

fn written(image: &TestImage, names: &[&str]) -> Vec<u8> {
    let names: Vec<_> = names.iter().map(|name| reference(name)).collect();
    ArchiveWriter::new(Vec::new(), Path::new("test.tar"))
        .write(&image.manifest, &image.config, &names, image)
        .unwrap()
}

fn members(bytes: &[u8]) -> Vec<(String, Vec<u8>)> {
    let mut archive = tar::Archive::new(bytes);
    let entries = archive.entries().unwrap().map(|entry| {
        let mut entry = entry.unwrap();
        let mut content = Vec::new();
        entry.read_to_end(&mut content).unwrap();
        (entry.path().unwrap().display().to_string(), content)
    });
    entries.collect()
}

fn file(dir: &Path, bytes: &[u8]) -> std::path::PathBuf {
    let path = dir.join("image.tar");
    std::fs::File::create(&path).unwrap().write_all(bytes).unwrap();
    path
}

fn layer(image: &LocalImage, number: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    image.layers[number].open().unwrap().read_to_end(&mut bytes).unwrap();
    bytes
}

/// A tar of these files and links (`->` before the target).
fn tar_of(members: &[(&str, &[u8])]) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    for (name, bytes) in members {
        let mut header = tar::Header::new_gnu();
        header.set_mode(0o644);
        if let Some(target) = bytes.strip_prefix(b"->") {
            header.set_entry_type(tar::EntryType::Symlink);
            header.set_size(0);
            tar.append_link(&mut header, name, std::str::from_utf8(target).unwrap()).unwrap();
        } else {
            header.set_size(bytes.len() as u64);
            tar.append_data(&mut header, name, *bytes).unwrap();
        }
    }
    tar.into_inner().unwrap()
}

#[test]
fn an_archive_is_docker_s_and_a_layout_at_once() {
    let image = image(&amd64(), &[b"base", b"top", b"base"]);
    let bytes = written(
        &image,
        &[
            "debian:12",
            "r.example:5000/a/b",
            "x@sha256:0000000000000000000000000000000000000000000000000000000000000000",
        ],
    );
    let members = members(&bytes);
    let names: Vec<&str> = members.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(
        names[..6],
        ["blobs/", "blobs/sha256/", "oci-layout", "index.json", "manifest.json", "repositories"]
    );
    assert_eq!(names.len(), 10, "two documents, and each layer once");
    let json = |name: &str| -> serde_json::Value {
        serde_json::from_slice(&members.iter().find(|(member, _)| member == name).unwrap().1).unwrap()
    };
    let docker = json("manifest.json");
    assert_eq!(
        docker[0]["RepoTags"],
        serde_json::json!(["docker.io/library/debian:12", "r.example:5000/a/b:latest"])
    );
    assert_eq!(docker[0]["Layers"].as_array().unwrap().len(), 3);
    assert_eq!(json("index.json")["manifests"].as_array().unwrap().len(), 2);
    assert!(json("repositories")["docker.io/library/debian"]["12"].is_string());
    assert_eq!(
        bytes,
        written(&image, &["debian:12", "r.example:5000/a/b"]),
        "the same image, the same bytes"
    );
}

#[test]
fn an_archive_that_was_written_is_read_back() {
    let dir = tempfile::tempdir().unwrap();
    let image = image(&amd64(), &[b"base", b"top"]);
    let path = file(dir.path(), &written(&image, &["debian:12"]));
    for name in [None, Some("debian:12"), Some("docker.io/library/debian:12")] {
        let read =
            read_archive(&path, &Choice { name: name.map(str::to_owned), ..Choice::of(amd64()) }).unwrap();
        assert_eq!(read.manifest.raw(), image.manifest.raw());
        assert_eq!((layer(&read, 0), layer(&read, 1)), (b"base".to_vec(), b"top".to_vec()));
    }
    for choice in
        [Choice { name: Some("debian:13".to_owned()), ..Choice::of(amd64()) }, Choice::of(arm("v7"))]
    {
        let error = read_archive(&path, &choice).unwrap_err();
        assert!(
            matches!(&error, StoreError::NoImage { present, .. } if present.contains("debian:12")),
            "{error}"
        );
    }
}

#[test]
fn a_file_is_written_whole_or_not_at_all() {
    let dir = tempfile::tempdir().unwrap();
    let image = image(&amd64(), &[b"base"]);
    let path = dir.path().join("made/image.tar");
    ArchiveWriter::write_file(&path, &image.manifest, &image.config, &[], &image).unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), written(&image, &[]));
    let short = Document::author(Manifest::new(
        media_type::OCI_MANIFEST,
        image.manifest.value().config.clone(),
        vec![Descriptor::new(media_type::OCI_LAYER, Digest::of(b"base"), 100)],
    ));
    let error = ArchiveWriter::write_file(&path, &short, &image.config, &[], &image).unwrap_err();
    assert!(matches!(error, StoreError::Source { .. }), "{error}");
    assert_eq!(std::fs::read(&path).unwrap(), written(&image, &[]), "the old file is still there");
    assert_eq!(crate::images::names(dir.path().join("made")), ["image.tar"]);
}

#[test]
fn what_old_docker_saved_is_read_with_its_linked_layers() {
    let dir = tempfile::tempdir().unwrap();
    let image = image(&amd64(), &[b"base", b"top", b"base"]);
    let config = format!("{}.json", image.config.digest().hex());
    let manifest = serde_json::json!([{
        "Config": config, "RepoTags": ["debian:12"], "Layers": ["1/layer.tar", "2/layer.tar", "3/layer.tar"],
    }]);
    let bytes = tar_of(&[
        ("1/layer.tar", b"base"),
        ("2/layer.tar", b"top"),
        ("3/layer.tar", b"->../1/layer.tar"),
        (&config, image.config.raw()),
        ("./manifest.json", manifest.to_string().as_bytes()),
    ]);
    let read = read_archive(&file(dir.path(), &bytes), &Choice::of(amd64())).unwrap();
    assert_eq!(layer(&read, 2), b"base");
    assert_eq!(read.layers[1].descriptor.media_type, media_type::DOCKER_LAYER);
    assert_eq!(Some(read.layers[1].diff_id), DiffId::from_digest(&Digest::of(b"top")));
    assert_eq!(read.manifest.value().config.digest, *image.config.digest());
}

#[test]
fn compressed_layers_in_an_archive_are_known_by_their_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let image = image(&amd64(), &[b"base"]);
    let gzip = b"\x1f\x8b as if compressed";
    let manifest =
        serde_json::json!([{ "Config": "config.json", "RepoTags": null, "Layers": ["layer"] }]).to_string();
    let bytes = tar_of(&[
        ("config.json", image.config.raw()),
        ("layer", gzip),
        ("manifest.json", manifest.as_bytes()),
    ]);
    let read = read_archive(&file(dir.path(), &bytes), &Choice::of(amd64())).unwrap();
    assert_eq!(read.layers[0].descriptor.media_type, media_type::DOCKER_LAYER_GZIP);
    assert_eq!(read.layers[0].descriptor.digest, Digest::of(gzip));
    assert_eq!(layer(&read, 0), gzip);
}

#[test]
fn what_is_no_archive_is_refused_with_the_reason() {
    let dir = tempfile::tempdir().unwrap();
    let read =
        |bytes: &[u8]| read_archive(&file(dir.path(), bytes), &Choice::of(amd64())).unwrap_err().to_string();
    assert!(read(b"\x1f\x8b\x08\0").contains("gzip -d"));
    assert!(read(&tar_of(&[("hello", b"world")])).contains("neither a manifest.json"));
    assert!(read(&tar_of(&[("manifest.json", b"[")])).contains("can't be read"));
    assert!(read(&[7; 2000]).contains("read the archive"));
}

#[test]
fn an_image_that_old_kaniko_warmed_as_an_archive_is_found_by_digest() {
    let dir = tempfile::tempdir().unwrap();
    let image = image(&amd64(), &[b"base"]);
    let digest = image.manifest.digest();
    let config = image.config.digest().to_string();
    let layer_name = format!("{}.tar.gz", Digest::of(b"base").hex());
    let list =
        serde_json::json!([{ "Config": config, "RepoTags": null, "Layers": [layer_name] }]).to_string();
    let bytes =
        tar_of(&[(&config, image.config.raw()), (&layer_name, b"base"), ("manifest.json", list.as_bytes())]);
    std::fs::write(dir.path().join(digest.to_string()), bytes).unwrap();
    assert!(find_kaniko_image(dir.path(), digest, &amd64()).unwrap().is_none(), "half warmed");
    std::fs::write(dir.path().join(format!("{digest}.json")), image.manifest.raw()).unwrap();
    let found = find_kaniko_image(dir.path(), digest, &amd64()).unwrap().unwrap();
    assert_eq!(found.manifest.raw(), image.manifest.raw());
    assert_eq!(layer(&found, 0), b"base");
    std::fs::write(dir.path().join(format!("{digest}.json")), b"{}").unwrap();
    assert!(find_kaniko_image(dir.path(), digest, &amd64()).unwrap_err().is_damage());
}
