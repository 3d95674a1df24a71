//! Image configs: OCI image-spec 1.1 (config.md) with docker's additions (Healthcheck, OnBuild, Shell). Members that
//! this model doesn't know are kept and written again.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value};

use crate::{DiffId, Platform};

/// An image config.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ImageConfig {
    /// When the image was made, RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created: Option<String>,
    /// Who made it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub author: String,
    /// Go's name of the architecture.
    #[serde(default)]
    pub architecture: String,
    /// For example `v7`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub variant: Option<String>,
    /// For example `linux`.
    #[serde(default)]
    pub os: String,
    /// The operating system's version, for Windows.
    #[serde(rename = "os.version", default, skip_serializing_if = "Option::is_none")]
    pub os_version: Option<String>,
    /// What a container of the image is started with.
    #[serde(default, deserialize_with = "null_is_default")]
    pub config: RunConfig,
    /// The layers.
    #[serde(default, deserialize_with = "null_is_default")]
    pub rootfs: RootFs,
    /// One entry per instruction.
    #[serde(default, deserialize_with = "null_is_default", skip_serializing_if = "Vec::is_empty")]
    pub history: Vec<History>,
    /// Members that this crate doesn't know.
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

/// The layers of an image, by what they are before compression.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RootFs {
    /// Always `layers`.
    #[serde(rename = "type", default = "layers")]
    pub kind: String,
    /// The diff IDs, base first.
    #[serde(default, deserialize_with = "null_is_default")]
    pub diff_ids: Vec<DiffId>,
}

impl Default for RootFs {
    fn default() -> Self {
        Self { kind: layers(), diff_ids: Vec::new() }
    }
}

fn layers() -> String {
    "layers".to_owned()
}

/// What a container is started with: docker's names, in docker's order.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct RunConfig {
    /// `user[:group]`, as written in USER.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub user: String,
    /// `port/protocol`, as keys.
    #[serde(default, deserialize_with = "null_is_default", skip_serializing_if = "BTreeMap::is_empty")]
    pub exposed_ports: BTreeMap<String, Value>,
    /// `NAME=value`.
    #[serde(default, deserialize_with = "null_is_default", skip_serializing_if = "Vec::is_empty")]
    pub env: Vec<String>,
    /// ENTRYPOINT; `None` where there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub entrypoint: Option<Vec<String>>,
    /// CMD; `None` where there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cmd: Option<Vec<String>>,
    /// HEALTHCHECK.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub healthcheck: Option<Healthcheck>,
    /// Whether CMD is already escaped, for Windows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub args_escaped: Option<bool>,
    /// VOLUME, as keys.
    #[serde(default, deserialize_with = "null_is_default", skip_serializing_if = "BTreeMap::is_empty")]
    pub volumes: BTreeMap<String, Value>,
    /// WORKDIR, absolute.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub working_dir: String,
    /// ONBUILD triggers for the next build.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on_build: Option<Vec<String>>,
    /// LABEL.
    #[serde(default, deserialize_with = "null_is_default", skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// STOPSIGNAL.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub stop_signal: String,
    /// SHELL.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shell: Option<Vec<String>>,
    /// Members that this crate doesn't know (Hostname, AttachStdin, StopTimeout, …).
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

/// HEALTHCHECK; durations in nanoseconds, 0 where not set.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Healthcheck {
    /// `["NONE"]`, `["CMD", …]` or `["CMD-SHELL", "…"]`.
    #[serde(default, deserialize_with = "null_is_default", skip_serializing_if = "Vec::is_empty")]
    pub test: Vec<String>,
    /// `--interval`.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub interval: i64,
    /// `--timeout`.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub timeout: i64,
    /// `--start-period`.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub start_period: i64,
    /// `--start-interval`.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub start_interval: i64,
    /// `--retries`.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub retries: i64,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it so")]
fn is_zero(number: &i64) -> bool {
    *number == 0
}

/// One entry of an image's history.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct History {
    /// When, RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created: Option<String>,
    /// The instruction.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub created_by: String,
    /// Who.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub author: String,
    /// A note.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub comment: String,
    /// Whether the instruction made no layer.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub empty_layer: bool,
    /// Members that this crate doesn't know.
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

/// Docker writes `null` for empty lists and maps.
fn null_is_default<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(
    deserializer: D,
) -> Result<T, D::Error> {
    Ok(Option::<T>::deserialize(deserializer)?.unwrap_or_default())
}

impl ImageConfig {
    /// The config of an image without layers, for `platform`: what `FROM scratch` starts with.
    pub fn scratch(platform: &Platform) -> Self {
        Self {
            architecture: platform.architecture.clone(),
            os: platform.os.clone(),
            variant: platform.variant.clone(),
            ..Self::default()
        }
    }

    /// The platform that the config names. Configs of old bases may name none.
    pub fn platform(&self) -> Option<Platform> {
        if self.architecture.is_empty() {
            return None;
        }
        let os = if self.os.is_empty() { "linux" } else { &self.os };
        Some(Platform::new(os, &self.architecture, self.variant.as_deref()))
    }
}

impl RunConfig {
    /// The value of the environment variable `name`.
    pub fn env(&self, name: &str) -> Option<&str> {
        self.env.iter().rev().find_map(|entry| match entry.split_once('=') {
            Some((key, value)) => (key == name).then_some(value),
            None => (entry == name).then_some(""),
        })
    }

    /// Sets the environment variable `name`, in its place if it was there.
    pub fn set_env(&mut self, name: &str, value: &str) {
        let entry = format!("{name}={value}");
        let place =
            self.env.iter_mut().find(|old| old.split_once('=').map_or(old.as_str(), |(key, _)| key) == name);
        match place {
            Some(old) => *old = entry,
            None => self.env.push(entry),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nulls_of_docker_are_read_and_unknown_members_are_kept() {
        let text = r#"{"architecture":"amd64","os":"linux","config":{"Env":null,"Labels":null,"Hostname":"h",
            "ExposedPorts":{"80/tcp":{}},"Cmd":["sh"]},"rootfs":{"type":"layers","diff_ids":null},"history":null,
            "moby.buildkit.x":{"a":1}}"#;
        let config: ImageConfig = serde_json::from_str(text).unwrap();
        let again: Value = serde_json::to_value(&config).unwrap();
        assert_eq!(again["config"]["Hostname"], "h");
        assert_eq!(again["moby.buildkit.x"]["a"], 1);
        assert!(config.config.env.is_empty());
    }

    #[test]
    fn a_sparse_config_is_read() {
        let config: ImageConfig = serde_json::from_str("{}").unwrap();
        assert_eq!(config.platform(), None);
        assert_eq!(config.rootfs.kind, "layers");
        assert!(serde_json::from_str::<ImageConfig>(r#"{"config":null,"rootfs":null}"#).is_ok());
    }

    #[test]
    fn a_variable_set_again_keeps_its_place() {
        let mut config = RunConfig { env: vec!["A=1".into(), "B=2".into()], ..RunConfig::default() };
        config.set_env("A", "3");
        config.set_env("C", "x=y");
        assert_eq!(config.env, ["A=3", "B=2", "C=x=y"]);
        assert_eq!(config.env("C"), Some("x=y"));
    }
}
