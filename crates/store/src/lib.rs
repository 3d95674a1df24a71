//! OCI layouts and docker archives on disk, and the cache volume.
