//! How an image was made: SLSA provenance, version 1. No secret's value comes in here.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value, json};

/// What the build used, by address and digest.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Material {
    /// Where it was: a package URL for images, an address else.
    pub uri: String,
    /// The digest's algorithm, as in `sha256`.
    pub algorithm: String,
    /// The digest, in hexadecimal.
    pub digest: String,
}

/// What is known of a build.
#[derive(Clone, Debug, Default)]
pub struct Provenance {
    /// The Dockerfile, as it was named.
    pub dockerfile: String,
    /// The context, where it is a remote one.
    pub context: Option<Material>,
    /// The stage asked for.
    pub target: Option<String>,
    /// The platform that was built for.
    pub platform: String,
    /// The platform that built.
    pub builder_platform: String,
    /// Build arguments; with `detailed` only, since people put into them what they should not.
    pub build_args: BTreeMap<String, String>,
    /// Labels from the command line.
    pub labels: BTreeMap<String, String>,
    /// The names of secrets.
    pub secrets: Vec<String>,
    /// The names of SSH agents.
    pub ssh: Vec<String>,
    /// Whether build arguments, secrets' names and the Dockerfile's text are told.
    pub detailed: bool,
    /// The Dockerfile's text; told with `detailed` only.
    pub source: String,
    /// What was used.
    pub materials: Vec<Material>,
    /// Whether all that was used is among the materials: nothing came from a local context.
    pub complete: bool,
    /// Whether nothing ran, or nothing that ran had a network.
    pub hermetic: bool,
    /// Whether the same inputs give the same image.
    pub reproducible: bool,
    /// What built it, as an address.
    pub builder: String,
    /// Which build this was.
    pub invocation: String,
    /// When it began and ended, RFC 3339.
    pub times: Option<(String, String)>,
}

/// What a build of a Dockerfile is called. Readers take this one as they take BuildKit's: the fields are the same.
const BUILD_TYPE: &str = "https://github.com/moby/buildkit/blob/master/docs/attestations/slsa-definitions.md";

impl Provenance {
    /// The predicate.
    pub fn predicate(&self) -> Value {
        let mut materials = self.materials.clone();
        materials.sort();
        materials.dedup();
        let dependencies: Vec<Value> = materials
            .iter()
            .map(|material| json!({"uri": material.uri, "digest": { &material.algorithm: material.digest }}))
            .collect();
        let mut metadata = json!({
            "invocationID": self.invocation,
            "buildkit_hermetic": self.hermetic,
            "buildkit_reproducible": self.reproducible,
            "buildkit_completeness": { "request": self.detailed, "resolvedDependencies": self.complete },
        });
        if let Some((began, ended)) = &self.times {
            metadata["startedOn"] = json!(began);
            metadata["finishedOn"] = json!(ended);
        }
        if self.detailed {
            metadata["buildkit_metadata"] = json!({
                "source": { "infos": [{ "filename": self.dockerfile, "language": "Dockerfile", "data": STANDARD.encode(&self.source) }] },
            });
        }
        json!({
            "buildDefinition": {
                "buildType": BUILD_TYPE,
                "externalParameters": {
                    "configSource": self.config_source(),
                    "request": self.request(),
                },
                "internalParameters": { "builderPlatform": self.builder_platform },
                "resolvedDependencies": dependencies,
            },
            "runDetails": { "builder": { "id": self.builder }, "metadata": metadata },
        })
    }

    fn config_source(&self) -> Value {
        let mut source = json!({ "path": self.dockerfile });
        if let Some(context) = &self.context {
            source["uri"] = json!(context.uri);
            source["digest"] = json!({ &context.algorithm: context.digest });
        }
        source
    }

    fn request(&self) -> Value {
        let mut args = Map::new();
        args.insert("filename".to_owned(), json!(self.dockerfile));
        args.insert("platform".to_owned(), json!(self.platform));
        if let Some(target) = &self.target {
            args.insert("target".to_owned(), json!(target));
        }
        for (name, value) in &self.labels {
            args.insert(format!("label:{name}"), json!(value));
        }
        if self.detailed {
            for (name, value) in &self.build_args {
                args.insert(format!("build-arg:{name}"), json!(value));
            }
        }
        let mut request = json!({ "frontend": "dockerfile.v0", "args": args });
        if self.context.is_none() {
            request["locals"] = json!([{ "name": "context" }, { "name": "dockerfile" }]);
        }
        if self.detailed {
            let names = |ids: &[String]| ids.iter().map(|id| json!({ "id": id })).collect::<Vec<_>>();
            request["secrets"] = json!(names(&self.secrets));
            request["ssh"] = json!(names(&self.ssh));
        }
        request
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn provenance(detailed: bool) -> Provenance {
        let material =
            |uri: &str| Material { uri: uri.into(), algorithm: "sha256".into(), digest: "ab".into() };
        Provenance {
            dockerfile: "Dockerfile".into(),
            build_args: [("TOKEN".to_owned(), "hunter2".to_owned())].into(),
            secrets: vec!["npm".into()],
            materials: vec![material("pkg:docker/b"), material("pkg:docker/a"), material("pkg:docker/b")],
            detailed,
            ..Provenance::default()
        }
    }

    #[test]
    fn materials_are_told_once_and_in_order() {
        let predicate = provenance(false).predicate();
        let dependencies = predicate["buildDefinition"]["resolvedDependencies"].as_array().unwrap();
        let uris: Vec<_> = dependencies.iter().map(|d| d["uri"].as_str().unwrap()).collect();
        assert_eq!(uris, ["pkg:docker/a", "pkg:docker/b"]);
        assert_eq!(dependencies[0]["digest"]["sha256"], "ab");
    }

    #[test]
    fn build_arguments_are_told_only_when_details_are_asked_for() {
        let short = provenance(false).predicate().to_string();
        assert!(!short.contains("hunter2") && !short.contains("npm"), "{short}");
        let long = provenance(true).predicate();
        let request = &long["buildDefinition"]["externalParameters"]["request"];
        assert_eq!(request["args"]["build-arg:TOKEN"], "hunter2");
        assert_eq!(request["secrets"][0]["id"], "npm");
    }
}
