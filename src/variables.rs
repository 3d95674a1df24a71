//! The environment variables that Kiln reads: the second part of docs/flags.md.

/// Name and meaning, by subject.
pub(crate) const VARIABLES: [(&str, &[(&str, &str)]); 8] = [
    (
        "In the place of flags",
        &[
            ("KANIKO_DIR", "`--kaniko-dir`"),
            ("KILN_SCRATCH_DIR", "`--scratch-dir`"),
            ("KANIKO_NO_PUSH", "`--no-push`, over which it wins; a switch as Go reads it"),
            ("KANIKO_CLEANUP", "`--cleanup`"),
            ("KANIKO_PRE_CLEANUP", "`--pre-cleanup`"),
            ("KANIKO_PRESERVE_CONTEXT", "`--preserve-context`"),
            ("KANIKO_REGISTRY_MIRROR", "`--registry-mirror`, with commas or semicolons between"),
            ("KANIKO_REGISTRY_MAP", "`--registry-map`"),
            ("KANIKO_PRINT_PLAN", "print the plan of `--dryrun`, then build"),
            ("SOURCE_DATE_EPOCH", "the time of new files and of the image, in seconds since 1970"),
        ],
    ),
    (
        "Transport",
        &[
            ("HTTP_PROXY", "the proxy for HTTP; lower case is read, too"),
            ("HTTPS_PROXY", "the proxy for HTTPS; lower case is read, too"),
            ("NO_PROXY", "hosts, domains and networks that are spoken to directly; lower case is read, too"),
            ("SSL_CERT_FILE", "certificate authorities to trust beside the usual ones"),
            ("SSL_CERT_DIR", "folders of such files, with colons between"),
            ("FF_KANIKO_DISABLE_HTTP2", "HTTP/1.1 only"),
            ("UPSTREAM_CLIENT_TYPE", "appended to the user agent"),
            ("BUILDER_OUTPUT", "Cloud Build's folder: `images` in it gets a line of JSON for each push"),
        ],
    ),
    (
        "Logins of registries",
        &[
            (
                "DOCKER_CONFIG",
                "the folder of config.json; without it, `.docker` of the kaniko directory and of `HOME`",
            ),
            ("DOCKER_AUTH_CONFIG", "what stands in a config.json; comes before the file"),
            ("REGISTRY_AUTH_FILE", "podman's file of logins"),
            ("XDG_RUNTIME_DIR", "`containers/auth.json` below it is read"),
            ("XDG_CONFIG_HOME", "`containers/auth.json` below it is read; without it, below `~/.config`"),
            (
                "KANIKO_<HOST>_USER",
                "with `KANIKO_<HOST>_PASSWORD`: a login; the host in upper case, `.` and `-` as `_`, or a parent domain of it",
            ),
            ("CI_REGISTRY", "GitLab's registry, with the two below"),
            ("CI_REGISTRY_USER", "who we are there"),
            ("CI_REGISTRY_PASSWORD", "and the password"),
        ],
    ),
    (
        "Git",
        &[
            ("GIT_TOKEN", "a token, sent as the user's name, to servers that the command line names"),
            ("GIT_USERNAME", "a user's name, where there is no token"),
            ("GIT_PASSWORD", "and the password"),
            ("GIT_PULL_METHOD", "how `git://` is spoken: `https` (without it) or `http`"),
            ("SSH_AUTH_SOCK", "an SSH agent"),
            (
                "SSH_KNOWN_HOSTS",
                "files of known servers, with colons between, in the place of those in `.ssh`",
            ),
        ],
    ),
    (
        "Amazon: ECR and S3",
        &[
            ("AWS_ACCESS_KEY_ID", "a key, with the secret below"),
            ("AWS_SECRET_ACCESS_KEY", "its secret"),
            ("AWS_SESSION_TOKEN", "the token of a temporary key"),
            ("AWS_REGION", "the region; without it, a bucket's is found out"),
            ("AWS_DEFAULT_REGION", "the same"),
            ("AWS_PROFILE", "the profile in `~/.aws`"),
            ("AWS_DEFAULT_PROFILE", "the same"),
            ("AWS_CONFIG_FILE", "in the place of `~/.aws/config`"),
            ("AWS_SHARED_CREDENTIALS_FILE", "in the place of `~/.aws/credentials`"),
            ("AWS_WEB_IDENTITY_TOKEN_FILE", "the service account's token (IRSA), with the role below"),
            ("AWS_ROLE_ARN", "the role to take on"),
            ("AWS_ROLE_SESSION_NAME", "and what the session is called"),
            ("AWS_CONTAINER_CREDENTIALS_FULL_URI", "the agent of EKS pod identity or ECS"),
            ("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", "the same, on ECS's own address"),
            ("AWS_CONTAINER_AUTHORIZATION_TOKEN", "what the agent wants to see"),
            ("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", "the same in a file"),
            ("AWS_EC2_METADATA_SERVICE_ENDPOINT", "the instance's metadata server, if it is elsewhere"),
            ("AWS_EC2_METADATA_DISABLED", "`true`: the metadata server is not asked"),
            ("AWS_ENDPOINT_URL", "where all of Amazon's services are"),
            ("AWS_ENDPOINT_URL_STS", "where the token service is"),
            ("AWS_ENDPOINT_URL_S3", "where S3 is"),
            ("S3_ENDPOINT", "where S3 is: MinIO, Ceph and others"),
            ("S3_FORCE_PATH_STYLE", "`true`: the bucket is in the path, not in the host's name"),
        ],
    ),
    (
        "Google: Artifact Registry and Cloud Storage",
        &[
            ("GOOGLE_APPLICATION_CREDENTIALS", "a key file, a user's credentials or an external account"),
            ("CLOUDSDK_CONFIG", "gcloud's folder, if it is not `~/.config/gcloud`"),
            ("GCE_METADATA_HOST", "the metadata server, if it is elsewhere"),
            ("STORAGE_EMULATOR_HOST", "a stand-in of Cloud Storage, which gets no login"),
            (
                "CLOUDSDK_API_ENDPOINT_OVERRIDES_STORAGE",
                "another address of Cloud Storage's API, with its version",
            ),
        ],
    ),
    (
        "Azure: Container Registry and Blob Storage",
        &[
            ("AZURE_STORAGE_ACCESS_KEY", "the storage account's key"),
            ("AZURE_STORAGE_SAS_TOKEN", "a shared access signature, where the URL has none"),
            (
                "AZURE_STORAGE_SERVICE_ENDPOINT",
                "where the account is, in the place of `https://ACCOUNT.blob.core.windows.net`",
            ),
            (
                "AZURE_CLIENT_ID",
                "a service principal, a workload identity or one of several managed identities",
            ),
            ("AZURE_TENANT_ID", "whose it is"),
            ("AZURE_CLIENT_SECRET", "the service principal's secret"),
            ("AZURE_FEDERATED_TOKEN_FILE", "the service account's token (workload identity)"),
            ("AZURE_AUTHORITY_HOST", "who gives tokens, in the sovereign clouds"),
            ("IDENTITY_ENDPOINT", "App Service's identity endpoint, with the header below"),
            ("IDENTITY_HEADER", "what that wants to see"),
            ("AZURE_POD_IDENTITY_AUTHORITY_HOST", "the metadata server, if it is elsewhere"),
        ],
    ),
    (
        "The machine",
        &[
            ("HOME", "the folder in which `.docker`, `.aws`, `.ssh` and `.config/gcloud` are"),
            ("PATH", "where credential helpers are looked for"),
            ("KUBERNETES_SERVICE_HOST", "the cluster, asked for the pod's pull secrets"),
            ("KUBERNETES_SERVICE_PORT", "and its port"),
            ("HOSTNAME", "the pod's own name"),
        ],
    ),
];

/// The part of the page.
pub(crate) fn markdown() -> String {
    let mut page =
        "\n## Environment variables\n\nA flag wins over its variable unless it is said otherwise.\n"
            .to_owned();
    for (subject, variables) in VARIABLES {
        let rows = variables.iter().map(|(name, meaning)| format!("| `{name}` | {meaning} |\n"));
        let head = format!("\n### {subject}\n\n| variable | meaning |\n|---|---|\n");
        page.extend(std::iter::once(head).chain(rows));
    }
    page
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    /// All files below a folder of sources, tests left out.
    fn sources(folder: &Path, into: &mut Vec<String>) {
        for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
            let path = entry.path();
            let name = entry.file_name().to_string_lossy().into_owned();
            if path.is_dir() {
                sources(&path, into);
            } else if name != "tests.rs" && name != "variables.rs" {
                let text = std::fs::read_to_string(&path).unwrap_or_default();
                into.push(text.split("#[cfg(test)]\nmod tests").next().unwrap_or_default().to_owned());
            }
        }
    }

    #[test]
    fn every_variable_that_is_read_is_on_the_page() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let mut texts = Vec::new();
        for folder in ["src", "crates/cloud/src", "crates/context/src", "crates/registry/src", "executor/src"]
        {
            sources(&root.join(folder), &mut texts);
        }
        assert!(texts.len() > 50);
        let page = markdown();
        let reads = ["get(\"", "switch(\"", "or(\"", "either(environment, \"", "place(\""];
        let mut read = Vec::new();
        for text in &texts {
            for call in reads {
                let names = text.split(call).skip(1).filter_map(|rest| rest.split('"').next());
                let is_variable = |name: &&str| {
                    name.len() > 3
                        && name.bytes().all(|b| b.is_ascii_uppercase() || b.is_ascii_digit() || b == b'_')
                };
                read.extend(names.filter(is_variable).map(str::to_owned));
            }
        }
        assert!(read.iter().any(|name| name == "GIT_TOKEN") && read.iter().any(|name| name == "AWS_REGION"));
        // What a Dockerfile knows, and secrets, are no variables of the environment.
        let others = ["TARGETPLATFORM"];
        for name in read.iter().filter(|name| !others.contains(&name.as_str())) {
            assert!(page.contains(&format!("`{name}`")), "{name} is read and not on the page");
        }
    }
}
