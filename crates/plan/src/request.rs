//! What a person asked for, as far as it shapes the plan.

use std::collections::BTreeMap;

use kiln_oci::Platform;

use crate::ImageName;

/// A request to build a Dockerfile.
#[derive(Clone, Debug)]
pub struct Request {
    /// `--build-arg`.
    pub build_args: BTreeMap<String, String>,
    /// `--target`: names or numbers; none means the last stage. The first is the one that is pushed.
    pub targets: Vec<String>,
    /// The platform to build for.
    pub platform: Platform,
    /// Whether `--platform` was given: the image then says that platform, whatever its base says.
    pub platform_given: bool,
    /// The platform that RUN runs on.
    pub build_platform: Platform,
    /// `--label`: they win over LABEL and enter no key.
    pub labels: BTreeMap<String, String>,
    /// `--build-context`, by name.
    pub named_contexts: BTreeMap<String, NamedContext>,
    /// What shapes the bytes of new layers.
    pub shape: LayerShape,
    /// Whether keys are wanted that need the content of files: the layer cache is on.
    pub content_keys: bool,
}

impl Request {
    /// A request for `platform` with nothing else asked for.
    pub fn new(platform: Platform) -> Self {
        Self {
            build_args: BTreeMap::new(),
            targets: Vec::new(),
            build_platform: platform.clone(),
            platform,
            platform_given: false,
            labels: BTreeMap::new(),
            named_contexts: BTreeMap::new(),
            shape: LayerShape::default(),
            content_keys: false,
        }
    }

    /// The named context that `name` means, whatever the case of its letters.
    pub(crate) fn named_context(&self, name: &str) -> Option<(&str, &NamedContext)> {
        if name.eq_ignore_ascii_case("scratch") || name.eq_ignore_ascii_case("context") {
            return None;
        }
        let normal = |text: &str| {
            let mut reference = text.parse::<kiln_oci::Reference>().ok()?;
            reference.tag = reference.tag_or_latest();
            Some(reference.to_string())
        };
        self.named_contexts
            .iter()
            .find(|(key, _)| {
                key.eq_ignore_ascii_case(name) || (normal(key).is_some() && normal(key) == normal(name))
            })
            .map(|(key, context)| (key.as_str(), context))
    }
}

/// What a named context is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NamedContext {
    /// `docker-image://REF` or `oci-layout://DIR`.
    Image(ImageName),
    /// A directory, archive or repository: files only.
    Files,
}

/// What shapes the bytes of a new layer besides its files: part of every key.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LayerShape {
    /// `--reproducible`, or SOURCE_DATE_EPOCH: times later than this (seconds since 1970) become this.
    pub mtime_limit: Option<i64>,
    /// `--compression` and its level, as text.
    pub compression: String,
    /// `--ignore-path`, sorted.
    pub ignored: Vec<String>,
    /// `--snapshot-mode`, where it isn't `full`.
    pub snapshot_mode: String,
}
