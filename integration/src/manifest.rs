//! Manifests of Kubernetes objects: read from YAML, held strictly against the types of the API, and cut down to the pods in
//! them.

use std::path::Path;

use k8s_openapi::api::{apps, batch, core, rbac};
use serde_json::Value;

/// The documents of a YAML file.
pub fn documents(path: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    parse(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The documents of a YAML text; empty ones are left out.
pub fn parse(text: &str) -> Result<Vec<Value>, String> {
    let documents: Vec<Value> = serde_saphyr::from_multiple(text).map_err(|error| error.to_string())?;
    Ok(documents.into_iter().filter(|document| !document.is_null()).collect())
}

/// What is wrong with `document` as an object of the Kubernetes API: what its type refuses, and every field that it does not
/// know.
pub fn faults(document: &Value) -> Vec<String> {
    let text = |name: &str| document[name].as_str().unwrap_or_default().to_owned();
    match (text("apiVersion").as_str(), text("kind").as_str()) {
        ("v1", "Pod") => strictly::<core::v1::Pod>(document),
        ("v1", "ConfigMap") => strictly::<core::v1::ConfigMap>(document),
        ("v1", "Secret") => strictly::<core::v1::Secret>(document),
        ("v1", "ServiceAccount") => strictly::<core::v1::ServiceAccount>(document),
        ("v1", "PersistentVolumeClaim") => strictly::<core::v1::PersistentVolumeClaim>(document),
        ("batch/v1", "Job") => strictly::<batch::v1::Job>(document),
        ("batch/v1", "CronJob") => strictly::<batch::v1::CronJob>(document),
        ("apps/v1", "DaemonSet") => strictly::<apps::v1::DaemonSet>(document),
        ("rbac.authorization.k8s.io/v1", "Role") => strictly::<rbac::v1::Role>(document),
        ("rbac.authorization.k8s.io/v1", "RoleBinding") => strictly::<rbac::v1::RoleBinding>(document),
        ("node.k8s.io/v1", "RuntimeClass") => strictly::<k8s_openapi::api::node::v1::RuntimeClass>(document),
        (version, kind) => vec![format!("{version} {kind} is no kind that is known here")],
    }
}

/// What is wrong with `value` as a `T`.
pub fn strictly<T: serde::de::DeserializeOwned>(value: &Value) -> Vec<String> {
    let mut unknown = Vec::new();
    let read: Result<T, _> =
        serde_ignored::deserialize(value, |path| unknown.push(format!("{path} is no field")));
    if let Err(error) = read {
        unknown.push(error.to_string());
    }
    unknown
}

/// The pods of a file, as Pod objects: the templates of Jobs, CronJobs and DaemonSets are cut out of them.
pub fn pods(path: &Path) -> Vec<Value> {
    documents(path).iter().filter_map(pod).collect()
}

/// The pod that `document` is or makes.
pub fn pod(document: &Value) -> Option<Value> {
    let template = match document["kind"].as_str()? {
        "Pod" => return Some(document.clone()),
        "Job" | "DaemonSet" => &document["spec"]["template"],
        "CronJob" => &document["spec"]["jobTemplate"]["spec"]["template"],
        _ => return None,
    };
    let mut pod = template.clone();
    pod["apiVersion"] = "v1".into();
    pod["kind"] = "Pod".into();
    pod["metadata"]["name"] = document["metadata"]["name"].clone();
    Some(pod)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_field_is_found_however_deep() {
        let good = "apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nspec:\n  containers:\n    - {name: b, image: c}\n";
        assert_eq!(faults(&parse(good).unwrap()[0]), Vec::<String>::new());
        let bad = good.replace("image: c", "image: c, imagePolicy: Never");
        let found = faults(&parse(&bad).unwrap()[0]).join("\n");
        assert!(found.contains("imagePolicy"), "{found}");
        let bad = good.replace("name: b", "name: [b]");
        assert_ne!(faults(&parse(&bad).unwrap()[0]), Vec::<String>::new());
    }

    #[test]
    fn a_key_given_twice_is_refused() {
        parse("a: 1\na: 2\n").unwrap_err();
    }
}
