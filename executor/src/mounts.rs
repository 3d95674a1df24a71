//! `RUN --mount`: what each option means on this machine.

use std::collections::BTreeMap;
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

/// Works out every mount of a step, and the pod's own volumes and devices.
pub(crate) fn lend(work: &StageWork, run: &RunStep, who: &Identity) -> Result<Lent, BuildError> {
    let mut lent = Lent { kept: cache_locks(work, run)?, ..Lent::default() };
    for mount in &run.mounts {
        match mount.mount.kind {
            MountKind::Bind => bind(work, mount, &mut lent)?,
            MountKind::Cache => cache(work, mount, &mut lent)?,
            MountKind::Tmpfs => {
                let size = Some(mount.mount.size).filter(|size| *size > 0);
                let readonly = mount.mount.readonly;
                let source = MountSource::Tmpfs { size, mode: mount.mount.mode.unwrap_or(0o1777), readonly };
                lent.mounts.push(Mount { source, target: target(mount) });
            }
            MountKind::Secret => secret(work, mount, who, &mut lent)?,
            MountKind::Ssh => ssh(work, mount, &mut lent)?,
        }
    }
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
    copy_into(&mut builder, view.as_ref(), path, &TreePath::new("x"))?;
    builder.finish().map_err(BuildError::other)?;
    Ok(into.join("x"))
}

fn copy_into(
    builder: &mut DeltaBuilder<'_>,
    view: &dyn View,
    from: &TreePath,
    to: &TreePath,
) -> Result<(), BuildError> {
    let Some(meta) = view.stat(from).map_err(BuildError::other)? else { return Ok(()) };
    let xattrs = view.xattrs(from).map_err(BuildError::other)?;
    match meta.kind {
        Kind::Directory => {
            builder.put_dir(to, &meta, &xattrs).map_err(BuildError::other)?;
            for name in view.list(from).map_err(BuildError::other)? {
                copy_into(builder, view, &from.join(&name), &to.join(&name))?;
            }
            // Again, for its time: what came into it has moved that.
            builder.put_dir(to, &meta, &xattrs).map_err(BuildError::other)
        }
        Kind::File => {
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
/// once. Private mounts never wait.
fn cache_locks(work: &StageWork, run: &RunStep) -> Result<Vec<File>, BuildError> {
    let mut wanted: BTreeMap<String, bool> = BTreeMap::new();
    for mount in run.mounts.iter().filter(|mount| mount.mount.kind == MountKind::Cache) {
        match mount.mount.sharing.unwrap_or(Sharing::Shared) {
            Sharing::Private => {}
            sharing => *wanted.entry(cache_name(mount)).or_default() |= sharing == Sharing::Locked,
        }
    }
    let lock = |(name, alone): (String, bool)| {
        let directory = work.session.request.cache.mounts.join(name);
        fs::create_dir_all(&directory)
            .map_err(|source| BuildError::Write { path: directory.clone(), source })?;
        crate::mount_cache::lock(&work.session, &directory.join("lock"), alone)
    };
    wanted.into_iter().map(lock).collect()
}

fn cache(work: &StageWork, mount: &RunMount, lent: &mut Lent) -> Result<(), BuildError> {
    let root = &work.session.request.cache.mounts;
    let doing = |path: &Path, source| BuildError::Write { path: path.to_owned(), source };
    let name = cache_name(mount);
    let mut directory = root.join(&name).join("files");
    fs::create_dir_all(root.join(&name)).map_err(|error| doing(&directory, error))?;
    if mount.mount.sharing == Some(Sharing::Private) {
        let mut number = 0;
        let mut path = root.join(&name).join("lock");
        let own = loop {
            let own = File::create(&path).map_err(|error| doing(&path, error))?;
            if flock(&own, FlockOperation::NonBlockingLockExclusive) != Err(Errno::WOULDBLOCK) {
                break own;
            }
            number += 1;
            directory = root.join(&name).join(format!("files-{number}"));
            path = root.join(&name).join(format!("lock-{number}"));
        };
        lent.kept.push(own);
    }
    let session = &work.session;
    if session.request.cache.remote_mounts
        && mount.source == TreeSource::Empty
        && directory.ends_with("files")
    {
        let lock = root.join(&name).join("lock");
        crate::mount_cache::begin(session, work.platform(), &name, &directory, &lock)?;
    }
    if !directory.exists() {
        begin_cache(work, mount, &directory)?;
    }
    let source = MountSource::Bind { path: directory, readonly: mount.mount.readonly };
    lent.mounts.push(Mount { source, target: target(mount) });
    Ok(())
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
            copy_into(&mut builder, &view, &TreePath::root(), &TreePath::root())?;
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
/// where no agent was given.
fn ssh(work: &StageWork, mount: &RunMount, lent: &mut Lent) -> Result<(), BuildError> {
    let options = &mount.mount;
    let id = if options.id.is_empty() { "default" } else { &options.id };
    let target = if options.target.is_empty() {
        format!("/run/buildkit/ssh_agent.{}", lent.agents)
    } else {
        options.target.clone()
    };
    if lent.agents == 0 {
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

    fn name(id: &str, uid: Option<u32>, mode: Option<u32>) -> String {
        let mount = Mount {
            kind: MountKind::Cache,
            from: String::new(),
            source: String::new(),
            target: "/x".to_owned(),
            readonly: false,
            id: id.to_owned(),
            sharing: Some(Sharing::Locked),
            required: false,
            size: 0,
            env: None,
            mode,
            uid,
            gid: None,
        };
        cache_name(&RunMount { mount, source: TreeSource::Empty })
    }

    #[test]
    fn a_cache_is_told_by_its_id_and_by_what_it_begins_with() {
        assert_eq!(name("a", None, None), name("a", None, None));
        assert_ne!(name("a", None, None), name("b", None, None));
        assert_ne!(name("a", None, None), name("a", Some(5), None));
        assert_eq!(name("a", Some(5), None), name("a", Some(5), Some(0o755)));
    }
}
