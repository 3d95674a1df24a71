//! Bytes as what registries answer and people write: manifests, indexes, configs, references, digests, platforms.

#![no_main]

use std::fmt::{Debug, Display};
use std::str::FromStr;

use kiln_oci::media_type::{Compression, is_index, is_manifest, is_schema1};
use kiln_oci::{
    ChainId, DiffId, Digest, Document, ImageConfig, Index, Manifest, Platform, Reference, Repository, Tag,
};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    documents(bytes);
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    same_again::<Digest>(text);
    same_again::<DiffId>(text);
    same_again::<Tag>(text);
    same_again::<Repository>(text);
    if let Some(reference) = same_again::<Reference>(text) {
        check_reference(&reference);
    }
    if let Some(platform) = same_again::<Platform>(text) {
        assert_eq!(platform.rank(&platform), Some(0));
    }
    let kinds = [is_index(text), is_manifest(text), is_schema1(text), Compression::of_layer(text).is_some()];
    assert!(kinds.into_iter().filter(|is_it| *is_it).count() <= 1, "{text:?} is two things");
});

/// What is read from `text`, having seen that it is the same when it is printed and read again.
fn same_again<T: FromStr + Display + PartialEq + Debug>(text: &str) -> Option<T> {
    let value: T = text.parse().ok()?;
    let printed = value.to_string();
    assert!(
        printed.parse().is_ok_and(|again: T| again == value),
        "{text:?} is {value:?}, printed {printed:?}"
    );
    Some(value)
}

fn check_reference(reference: &Reference) {
    let repository = &reference.repository;
    assert!(Repository::new(repository.host(), repository.path()).is_ok_and(|again| again == *repository));
    // Names of paths are made of it.
    assert!(!repository.path().split('/').any(|part| matches!(part, "" | "." | "..")), "{reference:?}");
    assert!(!repository.host().contains('/') && !repository.host().is_empty());
    if let Some(pinned) = reference.pinned() {
        assert_eq!(same_again::<Reference>(&pinned.reference().to_string()), Some(pinned.reference()));
    }
    assert_eq!(reference.familiar().parse(), Ok(reference.clone()), "{:?}", reference.familiar());
}

fn documents(bytes: &[u8]) {
    if let Some(manifest) = document::<Manifest>(bytes) {
        manifest.media_type();
        for layer in &manifest.layers {
            Compression::of_layer(&layer.media_type);
        }
    }
    if let Some(index) = document::<Index>(bytes) {
        for wanted in
            ["linux/amd64", "linux/arm/v7", "linux/arm64"].map(|text| text.parse().expect("a platform"))
        {
            if let Some(chosen) = index.select(&wanted) {
                assert!(index.manifests.contains(chosen) && !chosen.is_attestation());
                let platform = chosen.image_platform();
                assert!(platform.is_none_or(|platform| wanted.rank(&platform).is_some()));
            }
        }
    }
    if let Some(config) = document::<ImageConfig>(bytes) {
        ChainId::of(&config.rootfs.diff_ids);
        config.platform();
    }
}

/// What is read, having seen that the bytes are kept and that it is the same when it is written and read again.
fn document<T: DeserializeOwned + Serialize + Clone + PartialEq + Debug>(bytes: &[u8]) -> Option<T> {
    let document = Document::<T>::read(bytes.into(), None).ok()?;
    assert!(document.raw() == bytes && *document.digest() == Digest::of(bytes));
    let written = Document::author(document.value().clone());
    let again = Document::<T>::read(written.raw().into(), Some(written.digest()))
        .expect("what is written can be read");
    // Fractions may lose their last digit. No member that Kiln knows is one.
    if !serde_json::to_value(document.value()).is_ok_and(|value| has_fraction(&value)) {
        assert_eq!(again.value(), document.value());
    }
    Some(document.value().clone())
}

fn has_fraction(value: &Value) -> bool {
    match value {
        Value::Number(number) => number.is_f64(),
        Value::Array(all) => all.iter().any(has_fraction),
        Value::Object(all) => all.values().any(has_fraction),
        _ => false,
    }
}
