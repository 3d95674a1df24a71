//! From a request to a plan: what to mount where, in which order, and what to execute.

use std::ffi::{CString, OsStr, OsString};
use std::fs::File;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use rustix::mount::MountFlags;
use rustix::thread::CapabilitySet;

use crate::error::SandboxError;
use crate::plan::{Action, Contents, Layers, Plan, Program, RootPlan, What};
use crate::request::{Mount, MountSource, Network, RunRequest};
use crate::rung::{Enclosure, Rung, Users};
use crate::sys::{Namespaces, Strings};
use crate::target::Missing;
use kiln_rootfs::Tree;

/// Where programs are looked for if the environment has no PATH.
const DEFAULT_PATH: &[u8] = b"/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What docker hides in /proc and /sys.
const MASKED: [&str; 11] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
];

/// What is shut to the step in the folder of its supervisor, which has rights that the step lacks. Docker's process 1 is the
/// step itself: there a search of the whole tree comes across nothing that it may not read. Where the step sees the pod's
/// processes, the same goes for each of them ([`What::ShutProcesses`]).
const SHUT: [&str; 2] = ["/proc/1/fdinfo", "/proc/1/task/1/fdinfo"];

/// What docker makes read-only in /proc.
const READONLY: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// The plan of a step. What it reads from files is taken out of `request`.
pub(crate) fn step(request: &mut RunRequest) -> Result<Plan, SandboxError> {
    let enclosure = request.enclosure;
    let root = root_plan(enclosure, &request.tree)?;
    let mut actions = Vec::new();
    if enclosure.rung().mounts() {
        actions.extend(surroundings(enclosure));
        for (path, bytes) in
            [("/etc/resolv.conf", request.resolv_conf.take()), ("/etc/hosts", request.hosts.take())]
        {
            actions.extend(bytes.map(|bytes| etc_file(path, bytes)));
        }
        for mount in request.mounts.drain(..) {
            actions.push(lend(mount)?);
        }
    }
    let (namespaces, users) = namespaces(request);
    if users == Users::Single {
        own_everything(&mut actions);
    }
    let hostname = request.hostname.take().filter(|_| namespaces.uts).map(String::into_bytes);
    Ok(Plan { namespaces, users, hostname, root, actions, program: Some(program(request)?) })
}

/// The plan of a probe: the surroundings of a step, `checks`, and no program.
pub(crate) fn trial(enclosure: Enclosure, tree: &Tree, checks: Vec<Action>) -> Result<Plan, SandboxError> {
    let mut actions: Vec<_> = if enclosure.rung().mounts() { surroundings(enclosure) } else { Vec::new() };
    actions.extend(checks);
    let namespaces = rung_namespaces(enclosure);
    let root = root_plan(enclosure, tree)?;
    Ok(Plan { namespaces, users: enclosure.users, hostname: None, root, actions, program: None })
}

/// Where there is one id only, it owns what the step is lent.
fn own_everything(actions: &mut [Action]) {
    for action in actions {
        if let What::Memory { uid, gid, .. } = &mut action.what {
            (*uid, *gid) = (0, 0);
        }
    }
}

fn rung_namespaces(enclosure: Enclosure) -> Namespaces {
    let mount = enclosure.rung().mounts();
    let user = enclosure.users != Users::Pod;
    Namespaces { user, mount, ipc: mount, pid: enclosure.pids, net: false, uts: mount }
}

fn namespaces(request: &RunRequest) -> (Namespaces, Users) {
    let enclosure = request.enclosure;
    let mut namespaces = rung_namespaces(enclosure);
    let mut users = enclosure.users;
    if request.network == Network::None {
        namespaces.net = true;
        let may = rustix::thread::capabilities(None)
            .is_ok_and(|sets| sets.effective.contains(CapabilitySet::SYS_ADMIN));
        if users == Users::Pod && !may {
            namespaces.user = true;
            users = if rustix::process::geteuid().is_root() { Users::All } else { Users::Single };
        }
    }
    (namespaces, users)
}

fn root_plan(enclosure: Enclosure, tree: &Tree) -> Result<RootPlan, SandboxError> {
    match (enclosure.rung(), tree) {
        (Rung::Overlay, Tree::Overlay { lowers, upper, work }) => {
            // Left by a mount with `volatile` that may have been of the same directories; it would be refused again.
            forget_volatile(work);
            Ok(RootPlan::Overlay(layers(lowers, Some((upper, work)))?))
        }
        (Rung::Directory, Tree::Directory { path }) => Ok(RootPlan::Directory(c_path(path)?)),
        (Rung::Chroot, Tree::Directory { path }) => Ok(RootPlan::Chroot(c_path(path)?)),
        (Rung::Root, Tree::Host) => Ok(RootPlan::Host),
        (rung, tree) => Err(SandboxError::Request(format!("rung {rung} can't enter the tree {tree:?}"))),
    }
}

/// Removes the mark of a volatile mount. Overlayfs makes it, and the directories above it, without any permission.
pub(crate) fn forget_volatile(work: &Path) {
    let inner = work.join("work");
    for path in [&inner, &inner.join("incompat"), &inner.join("incompat/volatile")] {
        let _ = std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o700));
    }
    let _ = std::fs::remove_dir_all(inner.join("incompat"));
}

fn layers(lowers: &[PathBuf], writable: Option<(&PathBuf, &PathBuf)>) -> Result<Layers, SandboxError> {
    let lowers = lowers.iter().map(|path| c_path(path)).collect::<Result<_, _>>()?;
    let writable = writable.map(|(upper, work)| Ok::<_, SandboxError>((c_path(upper)?, c_path(work)?)));
    Ok(Layers { lowers, writable: writable.transpose()? })
}

/// What every step gets where mounts work: /proc, /sys and /dev.
fn surroundings(enclosure: Enclosure) -> Vec<Action> {
    let plain = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    let mut actions = vec![
        if enclosure.pids {
            new("/proc", c"proc", plain, c"", false)
        } else {
            bind("/proc", c"/proc", Missing::Directory, false, false)
        },
        Action { optional: true, ..bind("/sys", c"/sys", Missing::Directory, true, false) },
        new("/dev", c"tmpfs", MountFlags::NOSUID, c"mode=0755,size=65536k", false),
    ];
    for (device, path) in [
        (c"/dev/null", "/dev/null"),
        (c"/dev/zero", "/dev/zero"),
        (c"/dev/full", "/dev/full"),
        (c"/dev/random", "/dev/random"),
        (c"/dev/urandom", "/dev/urandom"),
        (c"/dev/tty", "/dev/tty"),
    ] {
        let optional = path != "/dev/null";
        actions.push(Action { optional, ..bind(path, device, Missing::File, false, true) });
    }
    let terminals = c"newinstance,ptmxmode=0666,mode=0620,gid=5";
    let mut pts = new("/dev/pts", c"devpts", MountFlags::NOSUID | MountFlags::NOEXEC, terminals, true);
    if let What::New { instead, .. } = &mut pts.what {
        *instead = Some(c"newinstance,ptmxmode=0666,mode=0620".to_owned());
    }
    let shm = new("/dev/shm", c"tmpfs", plain, c"mode=1777,size=65536k", true);
    let queue = new("/dev/mqueue", c"mqueue", plain, c"", true);
    actions.extend([pts, shm, queue].map(|action| Action { optional: true, ..action }));
    for (path, to) in [
        ("/dev/ptmx", c"pts/ptmx"),
        ("/dev/fd", c"/proc/self/fd"),
        ("/dev/stdin", c"/proc/self/fd/0"),
        ("/dev/stdout", c"/proc/self/fd/1"),
        ("/dev/stderr", c"/proc/self/fd/2"),
        ("/dev/core", c"/proc/kcore"),
    ] {
        let call = format!("symlink({path})");
        actions.push(inside(path, call, Missing::Nothing, What::Symlink { to: to.to_owned() }));
    }
    let shut = if enclosure.pids { &SHUT[..] } else { &[] };
    if !enclosure.pids {
        let call = "shutting the pod's processes".to_owned();
        let action = inside("/proc", call, Missing::Nothing, What::ShutProcesses);
        actions.push(Action { optional: true, ..action });
    }
    for path in MASKED.iter().chain(shut) {
        let action = inside(path, format!("masking {path}"), Missing::Nothing, What::Mask);
        actions.push(Action { optional: true, ..action });
    }
    for path in READONLY {
        let action = inside(path, format!("making {path} read-only"), Missing::Nothing, What::Readonly);
        actions.push(Action { optional: true, ..action });
    }
    actions
}

fn inside(target: &str, call: String, missing: Missing, what: What) -> Action {
    Action { call, target: target.into(), missing, inside: true, optional: false, what }
}

fn new(
    target: &str,
    kind: &std::ffi::CStr,
    flags: MountFlags,
    options: &std::ffi::CStr,
    inside: bool,
) -> Action {
    let call = format!("mount({}, {target})", kind.to_string_lossy());
    let what = What::New { kind: kind.to_owned(), flags, options: options.to_owned(), instead: None };
    Action { call, target: target.into(), missing: Missing::Directory, inside, optional: false, what }
}

fn bind(target: &str, source: &std::ffi::CStr, missing: Missing, readonly: bool, inside: bool) -> Action {
    let call = format!("mount({}, MS_BIND)", source.to_string_lossy());
    let what = What::Bind { source: source.to_owned(), readonly };
    Action { call, target: target.into(), missing, inside, optional: false, what }
}

/// A file in /etc that the pod's network needs. A private copy: what the step writes there is gone afterwards.
fn etc_file(path: &str, bytes: Vec<u8>) -> Action {
    let what = What::Memory { contents: Contents::Bytes(bytes), mode: 0o644, uid: 0, gid: 0 };
    let call = format!("mounting {path}");
    Action { call, target: path.into(), missing: Missing::File, inside: false, optional: false, what }
}

/// Refuses targets that nothing can be mounted at.
pub(crate) fn check_target(mount: &Mount) -> Result<(), SandboxError> {
    let target = &mount.target;
    let below_root = target.components().any(|part| matches!(part, std::path::Component::Normal(_)));
    if target.is_absolute() && below_root {
        return Ok(());
    }
    let kind = mount.source.kind();
    let target = target.display();
    Err(SandboxError::Request(format!("a {kind} mount can't be at {target}: name an absolute path below /")))
}

fn lend(mount: Mount) -> Result<Action, SandboxError> {
    check_target(&mount)?;
    let kind = mount.source.kind();
    let call = format!("mounting {kind} at {}", mount.target.display());
    let target = mount.target.into_os_string().into_vec();
    let action = |missing, what| Action { call, target, missing, inside: false, optional: false, what };
    Ok(match mount.source {
        MountSource::Bind { path, readonly } => {
            action(like(&path)?, What::Bind { source: c_path(&path)?, readonly })
        }
        MountSource::Overlay { lowers, writable, source } => {
            let writable = writable.as_ref().map(|(upper, work)| (upper, work));
            let missing = like_in_layers(&lowers, &source);
            let layers = layers(&lowers, writable)?;
            action(missing, What::Stack { layers, source: source.into_os_string().into_vec() })
        }
        MountSource::Tmpfs { size, mode, readonly } => {
            let size = size.map(|size| format!(",size={size}")).unwrap_or_default();
            let options = c_bytes(format!("mode=0{mode:o}{size}").into_bytes())?;
            let mut flags = MountFlags::NOSUID | MountFlags::NODEV;
            flags.set(MountFlags::RDONLY, readonly);
            action(Missing::Directory, What::New { kind: c"tmpfs".to_owned(), flags, options, instead: None })
        }
        MountSource::File { contents, mode, uid, gid } => {
            action(Missing::File, What::Memory { contents: Contents::File(contents), mode, uid, gid })
        }
        MountSource::Socket(path) | MountSource::Device(path) => {
            action(Missing::File, What::Bind { source: c_path(&path)?, readonly: false })
        }
    })
}

/// The kind of mount point that fits what lies at `path`.
fn like(path: &Path) -> Result<Missing, SandboxError> {
    let meta = std::fs::metadata(path).map_err(|error| {
        SandboxError::io(format!("looking at the mount source {}", path.display()), error)
    })?;
    Ok(if meta.is_dir() { Missing::Directory } else { Missing::File })
}

/// The same for a path in a stack of layers, as far as can be told without mounting it: the topmost layer that has the
/// very path decides. A wrong guess is refused by mount(2) with ENOTDIR.
fn like_in_layers(lowers: &[PathBuf], source: &Path) -> Missing {
    let relative = source.strip_prefix("/").unwrap_or(source);
    let found = lowers.iter().find_map(|layer| std::fs::metadata(layer.join(relative)).ok());
    match found {
        Some(meta) if !meta.is_dir() => Missing::File,
        _ => Missing::Directory,
    }
}

fn program(request: &RunRequest) -> Result<Program, SandboxError> {
    let name = request.argv.first().filter(|name| !name.is_empty());
    let name = name.ok_or_else(|| SandboxError::Request("the step has no program to run".into()))?;
    let variable =
        |(name, value): &(OsString, OsString)| c_bytes([name.as_bytes(), b"=", value.as_bytes()].concat());
    let arguments = request.argv.iter().map(|argument| c_bytes(argument.as_bytes().to_vec()));
    Ok(Program {
        candidates: candidates(name, &request.env)?,
        arguments: Strings::new(arguments.collect::<Result<_, _>>()?),
        environment: Strings::new(request.env.iter().map(variable).collect::<Result<_, _>>()?),
        cwd: c_path(&request.cwd)?,
        uid: request.user.uid,
        gid: request.user.gid,
        groups: request.user.groups.clone(),
        confined: request.enclosure.rung() != Rung::Root,
    })
}

/// Where a program may be: its name if that has a slash, else the name in each directory of PATH.
fn candidates(name: &OsStr, env: &[(OsString, OsString)]) -> Result<Vec<CString>, SandboxError> {
    if name.as_bytes().contains(&b'/') {
        return Ok(vec![c_bytes(name.as_bytes().to_vec())?]);
    }
    let path = env.iter().rev().find(|(name, _)| name == "PATH").map(|(_, value)| value.as_bytes());
    let path = path.unwrap_or(DEFAULT_PATH);
    let in_directory = |directory: &[u8]| {
        let directory = if directory.is_empty() { b"." } else { directory };
        c_bytes([directory, b"/", name.as_bytes()].concat())
    };
    path.split(|&byte| byte == b':').map(in_directory).collect()
}

fn c_path(path: &Path) -> Result<CString, SandboxError> {
    c_bytes(path.as_os_str().as_bytes().to_vec())
}

fn c_bytes(bytes: Vec<u8>) -> Result<CString, SandboxError> {
    CString::new(bytes).map_err(|error| {
        let shown = String::from_utf8_lossy(&error.clone().into_vec()).replace('\0', "\\0");
        let shown: String = shown.chars().take(80).collect();
        SandboxError::Request(format!("{shown:?} holds a NUL byte, which no program or path can be given"))
    })
}

/// Reads a whole file from its start, whatever its position.
pub(crate) fn read_from_start(mut file: &File) -> std::io::Result<Vec<u8>> {
    use std::io::{Read, Seek};
    file.rewind()?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(name: &str, env: &[(&str, &str)]) -> Vec<String> {
        let env: Vec<_> = env.iter().map(|(name, value)| (name.into(), value.into())).collect();
        let candidates = candidates(OsStr::new(name), &env).unwrap();
        candidates.into_iter().map(|candidate| candidate.into_string().unwrap()).collect()
    }

    #[test]
    fn a_name_with_a_slash_is_not_looked_for() {
        assert_eq!(found("./run", &[("PATH", "/bin")]), ["./run"]);
    }

    #[test]
    fn a_plain_name_is_looked_for_along_the_path_that_the_step_is_given() {
        assert_eq!(found("sh", &[("PATH", "/a:/b:")]), ["/a/sh", "/b/sh", "./sh"]);
        assert_eq!(found("sh", &[("PATH", "/a"), ("PATH", "/b")]), ["/b/sh"]);
        assert_eq!(found("sh", &[]).len(), 6);
    }

    #[test]
    fn mounts_at_the_root_or_at_relative_paths_are_refused() {
        for target in ["/", "/.", "x", "/.."] {
            let mount = Mount {
                source: MountSource::Tmpfs { size: None, mode: 0o1777, readonly: false },
                target: target.into(),
            };
            let error = lend(mount).unwrap_err();
            assert!(error.to_string().contains("name an absolute path below /"), "{error}");
        }
    }
}
