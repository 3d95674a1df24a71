//! The base image of the cases, as a layout on disk: busybox, passwd and group, and a config with a PATH.

use std::path::Path;

use kiln_oci::Digest;
use serde_json::json;

/// Writes the layout into the new directory `into`.
pub fn base_layout(into: &Path) {
    let blobs = into.join("blobs/sha256");
    std::fs::create_dir_all(&blobs).unwrap();
    let put = |bytes: &[u8]| {
        let digest = Digest::of(bytes);
        std::fs::write(blobs.join(digest.hex()), bytes).unwrap();
        (digest.to_string(), bytes.len())
    };
    let archive = into.join("base.tar");
    crate::base_tar(&archive);
    let tar = std::fs::read(&archive).unwrap();
    std::fs::remove_file(&archive).unwrap();
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    std::io::Write::write_all(&mut gzip, &tar).unwrap();
    let (layer, layer_size) = put(&gzip.finish().unwrap());
    let time = "2001-09-09T01:46:40Z";
    let config = json!({
        "architecture": architecture(), "os": "linux", "created": time, "config": {"Env": ["PATH=/bin"]},
        "rootfs": {"type": "layers", "diff_ids": [Digest::of(&tar).to_string()]},
        "history": [{"created": time, "created_by": "base"}],
    });
    let (config, config_size) = put(config.to_string().as_bytes());
    let manifest = json!({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": {
            "mediaType": "application/vnd.oci.image.config.v1+json", "digest": config, "size": config_size,
        },
        "layers": [{
            "mediaType": "application/vnd.oci.image.layer.v1.tar+gzip", "digest": layer, "size": layer_size,
        }],
    });
    let (manifest, size) = put(manifest.to_string().as_bytes());
    let index = json!({"schemaVersion": 2, "manifests": [{
        "mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": manifest, "size": size,
    }]});
    std::fs::write(into.join("index.json"), index.to_string()).unwrap();
    std::fs::write(into.join("oci-layout"), "{\"imageLayoutVersion\":\"1.0.0\"}").unwrap();
}

fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}
