//! What kind of place this is: a container or not, gVisor or not, and where there is room to work.

use std::fs;
use std::path::Path;

const GIB: u64 = 1 << 30;

/// Whether some sign of a container is found.
pub(crate) fn is_container() -> bool {
    let exists = |path: &str| Path::new(path).exists();
    if exists("/run/.containerenv") || exists("/.dockerenv") || exists("/etc/kiln-image") {
        return true;
    }
    if exists("/var/run/secrets/kubernetes.io/serviceaccount") || is_gvisor() {
        return true;
    }
    let cgroups = fs::read_to_string("/proc/1/cgroup").unwrap_or_default();
    if ["docker", "kubepods", "containerd", "crio", "libpod"].iter().any(|name| cgroups.contains(name)) {
        return true;
    }
    mount_of(Path::new("/")).is_some_and(|(kind, _)| kind == "overlay")
}

/// Whether the kernel is gVisor's. It tells so in its command line (`/vmlinuz-4.4.0-gvisor`); its version is that of Linux.
pub(crate) fn is_gvisor() -> bool {
    ["/proc/cmdline", "/proc/version", "/proc/sys/kernel/osrelease"]
        .iter()
        .any(|path| fs::read_to_string(path).is_ok_and(|text| text.to_lowercase().contains("gvisor")))
}

/// Whether `path` is a mount of its own, writable, no overlayfs, with 1 GiB free.
pub(crate) fn is_good_scratch(path: &Path) -> bool {
    let Some((kind, true)) = mount_of(path) else { return false };
    kind != "overlay" && has_room(path)
}

fn has_room(path: &Path) -> bool {
    let probe = tempfile::Builder::new().prefix(".kiln-").tempfile_in(path);
    let Ok(stat) = rustix::fs::statvfs(path) else { return false };
    probe.is_ok() && stat.f_bavail.saturating_mul(stat.f_frsize) >= GIB
}

/// The kind of file system mounted at `path` itself, and whether it is writable.
fn mount_of(path: &Path) -> Option<(String, bool)> {
    let text = fs::read_to_string("/proc/self/mountinfo").ok()?;
    let wanted = path.to_str()?;
    text.lines().rev().find_map(|line| {
        let (before, after) = line.split_once(" - ")?;
        let fields: Vec<&str> = before.split(' ').collect();
        let (point, options) = (fields.get(4)?, fields.get(5)?);
        let writable = options.split(',').any(|option| option == "rw");
        (*point == wanted).then(|| (after.split(' ').next().unwrap_or_default().to_owned(), writable))
    })
}
