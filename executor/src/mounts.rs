//! `RUN --mount`: what each option means on this machine.

use std::collections::{BTreeMap, HashMap};
use std::ffi::OsString;
use std::fs::{self, File};
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use kiln_dockerfile::{MountKind, Sharing};
use kiln_oci::Digest;
use kiln_plan::{RunMount, RunStep, TreeSource};
use kiln_rootfs::{DeltaBuilder, EmptyView, Kind, TreePath, View, resolve};
use kiln_sandbox::{Mount, MountSource, Relay};
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use crate::error::BuildError;
use crate::run_step::memory_file;
use crate::stage::StageWork;
use crate::users::Identity;

/// What a step is lent.
#[derive(Default)]
pub(crate) struct Lent {
    pub(crate) mounts: Vec<Mount>,
    /// Secrets that the step gets as variables.
    pub(crate) env: Vec<(OsString, OsString)>,
    /// Locks, held while the step runs.
    pub(crate) kept: Vec<File>,
    /// Ways to ssh agents, open while the step runs.
    pub(crate) relays: Vec<Relay>,
    /// How many ssh mounts there were.
    agents: usize,
}

/// The cache mounts of a step so far, by the names of their directories: another mount of that name is the same one.
type Caches = BTreeMap<String, PathBuf>;

/// Works out every mount of a step, and the pod's own volumes and devices.
pub(crate) fn lend(work: &StageWork, run: &RunStep, who: &Identity) -> Result<Lent, BuildError> {
    let ordered = in_order(&run.mounts);
    let mut lent = Lent { kept: cache_locks(work, &ordered)?, ..Lent::default() };
    let mut caches = Caches::new();
    for mount in ordered {
        match mount.mount.kind {
            MountKind::Bind => bind(work, mount, &mut lent)?,
            MountKind::Cache => cache(work, mount, &mut caches, &mut lent)?,
            MountKind::Tmpfs => {
                let size = Some(mount.mount.size).filter(|size| *size > 0);
                let readonly = mount.mount.readonly;
                let source = MountSource::Tmpfs { size, mode: mount.mount.mode.unwrap_or(0o1777), readonly };
                lent.mounts.push(Mount { source, target: target(mount) });
            }
            MountKind::Secret => secret(work, mount, who, &mut lent)?,
            MountKind::Ssh => ssh(work, run, mount, &mut lent)?,
        }
    }
    lent.mounts = last_of_each(std::mem::take(&mut lent.mounts));
    let isolation = &work.session.request.isolation;
    for flag in &isolation.run_mounts {
        let source = MountSource::Bind { path: flag.source.clone(), readonly: flag.readonly };
        lent.mounts.push(Mount { source, target: flag.target.clone() });
    }
    for device in &isolation.devices {
        lent.mounts.push(Mount { source: MountSource::Device(device.clone()), target: device.clone() });
    }
    Ok(lent)
}

/// Mounts in the order in which they are made: by their targets, so that none hides another that lies below it; then
/// secrets and agents as written.
fn in_order(mounts: &[RunMount]) -> Vec<&RunMount> {
    let group = |mount: &RunMount| match mount.mount.kind {
        MountKind::Bind | MountKind::Cache | MountKind::Tmpfs => 0,
        MountKind::Secret => 1,
        MountKind::Ssh => 2,
    };
    let mut ordered: Vec<&RunMount> = mounts.iter().collect();
    ordered.sort_by(|one, other| {
        let by_target = if group(one) == 0 && group(other) == 0 {
            one.mount.target.cmp(&other.mount.target)
        } else {
            std::cmp::Ordering::Equal
        };
        group(one).cmp(&group(other)).then(by_target)
    });
    ordered
}

/// Of several mounts at one place the last, where the first stood: what is mounted below it in between stays in sight.
fn last_of_each(mounts: Vec<Mount>) -> Vec<Mount> {
    let mut kept: Vec<Mount> = Vec::with_capacity(mounts.len());
    for mount in mounts {
        match kept.iter_mut().find(|other| other.target == mount.target) {
            Some(other) => *other = mount,
            None => kept.push(mount),
        }
    }
    kept
}

fn target(mount: &RunMount) -> PathBuf {
    PathBuf::from(&mount.mount.target)
}

fn bind(work: &StageWork, mount: &RunMount, lent: &mut Lent) -> Result<(), BuildError> {
    let tree = work.tree(&mount.source)?;
    let path = resolve(tree.view.as_ref(), &TreePath::new(&mount.mount.source)).map_err(BuildError::other)?;
    if tree.view.stat(&path).map_err(BuildError::other)?.is_none() {
        return Err(nothing_at(mount, &tree.place));
    }
    let real = tree.view.real_path(&path).map_err(BuildError::other)?;
    let path = match real {
        // What a step writes into a bind mount is thrown away: it gets a copy.
        Some(path) if mount.mount.readonly => path,
        _ => copied(work, &tree.view, &path)?,
    };
    let readonly = mount.mount.readonly;
    lent.mounts.push(Mount { source: MountSource::Bind { path, readonly }, target: target(mount) });
    Ok(())
}

/// A part of a tree as plain files on disk.
fn copied(work: &StageWork, view: &Arc<dyn View>, path: &TreePath) -> Result<PathBuf, BuildError> {
    let room = work.session.directory("binds")?;
    let into = tempfile::tempdir_in(room).map_err(BuildError::other)?.keep();
    let mut builder = DeltaBuilder::new(&into, &EmptyView).map_err(BuildError::other)?;
    copy_into(&mut builder, view.as_ref(), path, &TreePath::new("x"), &mut Links::new())?;
    builder.finish().map_err(BuildError::other)?;
    Ok(into.join("x"))
}

/// The first copy of each file with several names.
type Links = HashMap<(u64, u64), TreePath>;

fn copy_into(
    builder: &mut DeltaBuilder<'_>,
    view: &dyn View,
    from: &TreePath,
    to: &TreePath,
    links: &mut Links,
) -> Result<(), BuildError> {
    let Some(meta) = view.stat(from).map_err(BuildError::other)? else { return Ok(()) };
    let xattrs = view.xattrs(from).map_err(BuildError::other)?;
    match meta.kind {
        Kind::Directory => {
            builder.put_dir(to, &meta, &xattrs).map_err(BuildError::other)?;
            for name in view.list(from).map_err(BuildError::other)? {
                copy_into(builder, view, &from.join(&name), &to.join(&name), links)?;
            }
            // Again, for its time: what came into it has moved that.
            builder.put_dir(to, &meta, &xattrs).map_err(BuildError::other)
        }
        Kind::File => {
            if meta.nlink > 1 {
                if let Some(first) = links.get(&meta.inode) {
                    return builder.hardlink(to, first).map_err(BuildError::other);
                }
                links.insert(meta.inode, to.clone());
            }
            let file = view.open(from).map_err(BuildError::other)?;
            builder.put_file(to, &file, &meta, &xattrs).map_err(BuildError::other)
        }
        Kind::Symlink => {
            let link = meta.link.clone().unwrap_or_default();
            builder.put_symlink(to, &link, &meta, &xattrs).map_err(BuildError::other)
        }
        Kind::Socket => Ok(()),
        _ => builder.put_special(to, &meta, &xattrs).map_err(BuildError::other),
    }
}

/// Takes the locks of a step's cache mounts: always in the same order, so that no two steps wait for each other, and each
/// once, as the first mount of a name says. Private mounts never wait.
fn cache_locks(work: &StageWork, mounts: &[&RunMount]) -> Result<Vec<File>, BuildError> {
    let mut wanted: BTreeMap<String, Sharing> = BTreeMap::new();
    for mount in mounts.iter().filter(|mount| mount.mount.kind == MountKind::Cache) {
        wanted.entry(cache_name(mount)).or_insert(mount.mount.sharing.unwrap_or(Sharing::Shared));
    }
    wanted.retain(|_, sharing| *sharing != Sharing::Private);
    let lock = |(name, sharing): (String, Sharing)| {
        let alone = sharing == Sharing::Locked;
        let directory = work.session.request.cache.mounts.join(name);
        fs::create_dir_all(&directory)
            .map_err(|source| BuildError::Write { path: directory.clone(), source })?;
        crate::mount_cache::lock(&work.session, &directory.join("lock"), alone)
    };
    wanted.into_iter().map(lock).collect()
}

fn cache(work: &StageWork, mount: &RunMount, caches: &mut Caches, lent: &mut Lent) -> Result<(), BuildError> {
    let name = cache_name(mount);
    let path = match caches.get(&name) {
        Some(path) => path.clone(),
        None => cache_directory(work, mount, &name, lent)?,
    };
    caches.insert(name, path.clone());
    let source = MountSource::Bind { path, readonly: mount.mount.readonly };
    lent.mounts.push(Mount { source, target: target(mount) });
    Ok(())
}

/// The directory of a cache mount, begun if it is new. A private one is nobody else's while the step runs.
fn cache_directory(
    work: &StageWork,
    mount: &RunMount,
    name: &str,
    lent: &mut Lent,
) -> Result<PathBuf, BuildError> {
    let root = &work.session.request.cache.mounts;
    let doing = |path: &Path, source| BuildError::Write { path: path.to_owned(), source };
    let mut directory = root.join(name).join("files");
    fs::create_dir_all(root.join(name)).map_err(|error| doing(&directory, error))?;
    if mount.mount.sharing == Some(Sharing::Private) {
        let mut number = 0;
        let mut path = root.join(name).join("lock");
        let own = loop {
            let own = File::create(&path).map_err(|error| doing(&path, error))?;
            if flock(&own, FlockOperation::NonBlockingLockExclusive) != Err(Errno::WOULDBLOCK) {
                break own;
            }
            number += 1;
            directory = root.join(name).join(format!("files-{number}"));
            path = root.join(name).join(format!("lock-{number}"));
        };
        lent.kept.push(own);
    }
    let session = &work.session;
    if session.request.cache.remote_mounts
        && mount.source == TreeSource::Empty
        && directory.ends_with("files")
    {
        let lock = root.join(name).join("lock");
        crate::mount_cache::begin(session, work.platform(), name, &directory, &lock)?;
    }
    if !directory.exists() {
        begin_cache(work, mount, &directory)?;
    }
    Ok(directory)
}

/// The name of a cache's directory. What it begins with is part of it: a cache that another mount began otherwise is
/// another cache.
fn cache_name(mount: &RunMount) -> String {
    let options = &mount.mount;
    let mut text = options.id.clone();
    if options.mode.is_some() || options.uid.is_some() || options.gid.is_some() {
        let (mode, uid, gid) =
            (options.mode.unwrap_or(0o755), options.uid.unwrap_or(0), options.gid.unwrap_or(0));
        text = [text, format!("owned {mode:o} {uid} {gid}")].join("\0");
    }
    if mount.source != TreeSource::Empty {
        text = [text, format!("from {} {}", options.from, options.source)].join("\0");
    }
    Digest::of(text.as_bytes()).hex()
}

/// A cache directory begins with what `from` and `source` say, or empty.
fn begin_cache(work: &StageWork, mount: &RunMount, directory: &Path) -> Result<(), BuildError> {
    let doing = |source| BuildError::Write { path: directory.to_owned(), source };
    // The empty tree has no other directory than its root.
    if mount.source != TreeSource::Empty || !TreePath::new(&mount.mount.source).is_root() {
        let tree = work.tree(&mount.source)?;
        let path =
            resolve(tree.view.as_ref(), &TreePath::new(&mount.mount.source)).map_err(BuildError::other)?;
        // With an owner or a mode of its own, the whole of a tree is an empty directory that has them.
        let dressed = is_dressed(mount) && path.is_root();
        let found = tree.view.stat(&path).map_err(BuildError::other)?;
        if found.is_none() {
            return Err(nothing_at(mount, &tree.place));
        }
        if found.is_some_and(|meta| meta.is_dir()) && !dressed {
            let made = copied(work, &tree.view, &path)?;
            if fs::rename(&made, directory).is_ok() {
                return Ok(());
            }
            // Another file system: copied again.
            let view = kiln_rootfs::DirectoryView::open(&made).map_err(BuildError::other)?;
            let mut builder = DeltaBuilder::new(directory, &EmptyView).map_err(BuildError::other)?;
            copy_into(&mut builder, &view, &TreePath::root(), &TreePath::root(), &mut Links::new())?;
            return builder.finish().map(|_| ()).map_err(BuildError::other);
        }
    }
    fs::create_dir_all(directory).map_err(doing)?;
    let mode = mount.mount.mode.unwrap_or(0o755);
    fs::set_permissions(directory, fs::Permissions::from_mode(mode)).map_err(doing)?;
    if mount.mount.uid.is_some() || mount.mount.gid.is_some() {
        chown(directory, Some(mount.mount.uid.unwrap_or(0)), Some(mount.mount.gid.unwrap_or(0)))
            .map_err(doing)?;
    }
    Ok(())
}

fn nothing_at(mount: &RunMount, place: &str) -> BuildError {
    BuildError::other(format!("--mount: there is no {} in {place}", mount.mount.source))
}

/// Whether a cache mount says who owns what it begins with, or its mode.
fn is_dressed(mount: &RunMount) -> bool {
    mount.mount.uid.is_some() || mount.mount.gid.is_some() || mount.mount.mode.is_some()
}

fn secret(work: &StageWork, mount: &RunMount, who: &Identity, lent: &mut Lent) -> Result<(), BuildError> {
    let options = &mount.mount;
    let base = |path: &str| path.rsplit('/').next().unwrap_or_default().to_owned();
    let id = match (options.id.is_empty(), options.source.is_empty()) {
        (false, _) => options.id.clone(),
        (true, false) => options.source.clone(),
        (true, true) => base(&options.target),
    };
    let Some(secret) = work.session.request.secrets.get(&id) else {
        if options.required {
            return Err(BuildError::other(format!(
                "--mount: the secret {id:?} is required; give --secret id={id},src=FILE"
            )));
        }
        // The variable is there all the same.
        lent.env.extend(options.env.as_ref().map(|name| (name.into(), OsString::new())));
        return Ok(());
    };
    let value = secret.value.expose();
    if let Some(name) = &options.env {
        let text = std::os::unix::ffi::OsStringExt::from_vec(value.clone());
        lent.env.push((name.into(), text));
    }
    if options.env.is_some() && options.target.is_empty() {
        return Ok(());
    }
    let target = if options.target.is_empty() {
        format!("/run/secrets/{}", base(&id))
    } else {
        options.target.clone()
    };
    let contents = memory_file(value)?;
    let (uid, gid) = (options.uid.unwrap_or(0), options.gid.unwrap_or(0));
    // Without an owner of its own, only root can read it: as with BuildKit.
    let _ = who;
    let source = MountSource::File { contents, mode: options.mode.unwrap_or(0o400), uid, gid };
    lent.mounts.push(Mount { source, target: PathBuf::from(target) });
    Ok(())
}

/// The socket of an ssh agent, with the mode and owner that the step asks for. The variable names the first one, even
/// where no agent was given, unless the stage has set it.
fn ssh(work: &StageWork, run: &RunStep, mount: &RunMount, lent: &mut Lent) -> Result<(), BuildError> {
    let options = &mount.mount;
    let id = if options.id.is_empty() { "default" } else { &options.id };
    let target = if options.target.is_empty() {
        format!("/run/buildkit/ssh_agent.{}", lent.agents)
    } else {
        options.target.clone()
    };
    if lent.agents == 0 && !run.env.iter().any(|(name, _)| name == "SSH_AUTH_SOCK") {
        lent.env.push(("SSH_AUTH_SOCK".into(), target.clone().into()));
    }
    lent.agents += 1;
    let Some(agent) = work.session.request.ssh.get(id) else {
        if options.required {
            return Err(BuildError::other(format!(
                "--mount: the ssh agent {id:?} is required; give --ssh {id}=SOCKET"
            )));
        }
        return Ok(());
    };
    let room = tempfile::tempdir_in(work.session.directory("agents")?).map_err(BuildError::other)?.keep();
    let socket = room.join("socket");
    let dress = (options.mode.unwrap_or(0o600), options.uid.unwrap_or(0), options.gid.unwrap_or(0));
    let relay = Relay::start_as(agent, &socket, dress).map_err(|error| {
        BuildError::other(format!("could not reach the ssh agent {id:?} at {}: {error}", agent.display()))
    })?;
    lent.relays.push(relay);
    lent.mounts.push(Mount { source: MountSource::Socket(socket), target: PathBuf::from(target) });
    Ok(())
}

#[cfg(test)]
mod tests {
    use kiln_dockerfile::{Mount, Sharing};

    use super::*;

    fn mount(kind: MountKind) -> Mount {
        Mount {
            kind,
            from: String::new(),
            source: String::new(),
            target: "/x".to_owned(),
            readonly: false,
            id: String::new(),
            sharing: Some(Sharing::Locked),
            required: false,
            size: 0,
            env: None,
            mode: None,
            uid: None,
            gid: None,
        }
    }

    fn name(id: &str, uid: Option<u32>, mode: Option<u32>) -> String {
        let mount = Mount { id: id.to_owned(), uid, mode, ..mount(MountKind::Cache) };
        cache_name(&RunMount { mount, source: TreeSource::Empty })
    }

    fn named(kind: MountKind, target: &str) -> RunMount {
        let mount = Mount { target: target.to_owned(), ..mount(kind) };
        RunMount { mount, source: TreeSource::Empty }
    }

    #[test]
    fn mounts_are_made_by_target_and_secrets_over_them() {
        let mounts = [
            named(MountKind::Secret, "/b"),
            named(MountKind::Tmpfs, "/m/sub"),
            named(MountKind::Secret, "/a"),
            named(MountKind::Cache, "/m"),
        ];
        let order: Vec<&str> =
            in_order(&mounts).into_iter().map(|mount| mount.mount.target.as_str()).collect();
        assert_eq!(order, ["/m", "/m/sub", "/b", "/a"]);
    }

    #[test]
    fn of_two_mounts_at_one_place_the_last_counts() {
        let mount = |target: &str, size| kiln_sandbox::Mount {
            source: MountSource::Tmpfs { size: Some(size), mode: 0, readonly: false },
            target: PathBuf::from(target),
        };
        let kept = last_of_each(vec![mount("/m", 1), mount("/m/sub", 2), mount("/m", 3)]);
        let size = |mount: &kiln_sandbox::Mount| match mount.source {
            MountSource::Tmpfs { size, .. } => size,
            _ => None,
        };
        assert_eq!(kept.iter().map(size).collect::<Vec<_>>(), [Some(3), Some(2)]);
    }

    #[test]
    fn a_cache_is_told_by_its_id_and_by_what_it_begins_with() {
        assert_eq!(name("a", None, None), name("a", None, None));
        assert_ne!(name("a", None, None), name("b", None, None));
        assert_ne!(name("a", None, None), name("a", Some(5), None));
        assert_eq!(name("a", Some(5), None), name("a", Some(5), Some(0o755)));
    }
}
