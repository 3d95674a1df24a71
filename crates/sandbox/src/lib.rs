//! Runs a RUN step: namespaces, mounts, chroot, signals.
