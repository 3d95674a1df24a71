//! RUN: who it runs as, what it sees, what it is lent; then the sandbox runs it.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs::File;
use std::io::{Seek as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;

use kiln_plan::{RunStep, Step};
use kiln_rootfs::{Tree, TreePath, View, resolve};
use kiln_sandbox::{Exit, Mount, MountSource, Network, RunRequest, Rung, SandboxError, Stream, User};

use crate::copy::make_directory;
use crate::error::BuildError;
use crate::event::Event;
use crate::stage::StageWork;
use crate::users::{Identity, identity};

/// Runs the step in the stage's tree, as part of the step that is open there.
pub(crate) fn run(work: &StageWork, step: &Step, run: &RunStep) -> Result<(), BuildError> {
    let session = &work.session;
    if run.security == kiln_dockerfile::Security::Insecure {
        return Err(BuildError::other(
            "--security=insecure can't be granted: a pod has no privilege to pass on; leave the flag out",
        ));
    }
    let trees = work.trees_in_use()?;
    let view = trees.snapshotter().view(work.place).map_err(BuildError::other)?;
    let who = who(view.as_ref(), &run.user)?;
    make_directories(work, run, trees.enclosure.rung(), &who)?;
    let (tree, rung) =
        (trees.snapshotter().begin(work.place).map_err(BuildError::other)?, trees.enclosure.rung());
    open_root(&tree)?;
    let mut request = RunRequest::new(trees.enclosure, tree, run.argv.iter().map(OsString::from));
    request.env = environment(run, who.home.as_deref());
    request.cwd = PathBuf::from(&run.workdir);
    request.network = match run.network {
        kiln_dockerfile::Network::None => Network::None,
        kiln_dockerfile::Network::Default | kiln_dockerfile::Network::Host => Network::Default,
    };
    if rung != Rung::Root {
        request.resolv_conf = std::fs::read("/etc/resolv.conf").ok();
        request.hosts = std::fs::read("/etc/hosts").ok().map(with_own_name);
        request.hostname = Some(HOSTNAME.to_owned());
    }
    let lent = crate::mounts::lend(work, run, &who)?;
    // The primary group is among the supplementary ones: else a file that denies it to others would not be denied.
    let groups = std::iter::once(who.gid).chain(who.groups.iter().copied());
    let groups = groups.collect::<BTreeSet<u32>>().into_iter().collect();
    request.user = User { uid: who.uid, gid: who.gid, groups };
    request.env.extend(lent.env);
    request.mounts = lent.mounts;
    if let Some(script) = &run.script {
        request.mounts.push(file_mount(
            &format!("/dev/pipes/{}", script.name),
            script.content.as_bytes(),
            0o755,
        )?);
    }
    let output = |stream: Stream, line: &[u8]| {
        let mut line = line.to_vec();
        line.push(b'\n');
        session.tell(Event::Output { error: stream == Stream::Stderr, line });
    };
    let ended = kiln_sandbox::run(request, &output, &session.cancel);
    drop((lent.kept, lent.relays));
    match ended {
        Ok(exit) if exit.success() => Ok(()),
        Ok(Exit::Code(code)) => {
            let code = u8::try_from(code).unwrap_or(255);
            Err(failed(work, step, format!("exit code {code}"), code))
        }
        Ok(Exit::Signal(signal)) => Err(failed(work, step, format!("ended by signal {signal}"), 255)),
        Err(SandboxError::Cancelled) => Err(BuildError::Cancelled),
        Err(error @ SandboxError::Program { .. }) => Err(failed(work, step, error.to_string(), 127)),
        Err(error) => Err(BuildError::other(error)),
    }
}

/// What a step's machine is called, where it can be called anything: as with `docker build`, and not by the name of a pod,
/// which would be another one in each build.
const HOSTNAME: &str = "buildkitsandbox";

/// The pod's /etc/hosts, and the step's own name.
fn with_own_name(mut hosts: Vec<u8>) -> Vec<u8> {
    if hosts.last().is_some_and(|byte| *byte != b'\n') {
        hosts.push(b'\n');
    }
    hosts.extend_from_slice(format!("127.0.0.1\t{HOSTNAME}\n").as_bytes());
    hosts
}

/// Each step finds `/` open to everybody, whatever a base or an earlier step made of it: no layer says anything of the
/// root, so what holds in a container is what holds in the next step.
fn open_root(tree: &Tree) -> Result<(), BuildError> {
    let path = match tree {
        Tree::Overlay { upper, .. } => upper,
        Tree::Directory { path } => path,
        // The pod's own root is the pod's.
        Tree::Host => return Ok(()),
    };
    let open = || -> std::io::Result<()> {
        if std::fs::metadata(path)?.permissions().mode() & 0o7777 != 0o755 {
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755))?;
        }
        Ok(())
    };
    open().map_err(|source| BuildError::Write { path: path.clone(), source })
}

fn failed(work: &StageWork, step: &Step, how: String, code: u8) -> BuildError {
    let source = &work.session.source;
    BuildError::RunFailed {
        source_text: Box::new(source.clone()),
        line: step.lines.0,
        span: step.span,
        instruction: step.text.clone(),
        how,
        code,
    }
}

/// What every container has, and what is left in the image where it wasn't there before.
const STANDARD: [&str; 3] = ["/dev", "/proc", "/sys"];

/// Directories that are missing are made before: the working directory, which belongs to the step's user, and those that
/// things are mounted on. They are part of the step's layer.
fn make_directories(work: &StageWork, run: &RunStep, rung: Rung, who: &Identity) -> Result<(), BuildError> {
    let trees = work.trees_in_use()?;
    let view = trees.snapshotter().view(work.place).map_err(BuildError::other)?;
    // On the root rung they are there, and they are not the image's.
    let standard = if rung == Rung::Root { &[][..] } else { &STANDARD };
    let mine = format!("{}:{}", who.uid, who.gid);
    let standard = standard.iter().map(|path| (*path, ""));
    for (path, owner) in standard.chain([(run.workdir.as_str(), mine.as_str())]) {
        let found = resolve(view.as_ref(), &TreePath::new(path)).map_err(BuildError::other)?;
        if view.stat(&found).map_err(BuildError::other)?.is_some() {
            continue;
        }
        trees.snapshotter().begin(work.place).map_err(BuildError::other)?;
        let room = work.session.directory("deltas")?;
        let into = tempfile::tempdir_in(room).map_err(BuildError::other)?.keep();
        let step = kiln_plan::DirectoryStep { path: path.to_owned(), owner: owner.to_owned() };
        let delta = make_directory(&step, view.as_ref(), &into).map_err(BuildError::other)?;
        trees.snapshotter().apply(work.place, delta).map_err(BuildError::other)?;
    }
    Ok(())
}

fn who(view: &dyn View, user: &str) -> Result<Identity, BuildError> {
    let text = |path| crate::copy::text(view, path);
    identity(user, &text("etc/passwd"), &text("etc/group")).map_err(BuildError::Other)
}

/// The environment exactly as the image and the build args have it, proxies, and HOME where nobody sets it.
fn environment(run: &RunStep, home: Option<&str>) -> Vec<(OsString, OsString)> {
    let mut env: Vec<(OsString, OsString)> = Vec::new();
    // A proxy that the command line names takes the place of one that the Dockerfile does.
    for (name, value) in run.proxy.iter().chain(&run.env) {
        if !env.iter().any(|(other, _)| other.to_str() == Some(name)) {
            env.push((name.into(), value.into()));
        }
    }
    // An empty one is none.
    if !run.env.iter().any(|(name, value)| name == "HOME" && !value.is_empty()) {
        env.retain(|(name, _)| name != "HOME");
        env.push(("HOME".into(), home.unwrap_or("/").into()));
    }
    env
}

/// A file of its own for a step, that never touches the disk where mounts work.
pub(crate) fn file_mount(target: &str, content: &[u8], mode: u32) -> Result<Mount, BuildError> {
    let contents = memory_file(content)?;
    Ok(Mount { source: MountSource::File { contents, mode, uid: 0, gid: 0 }, target: PathBuf::from(target) })
}

pub(crate) fn memory_file(content: &[u8]) -> Result<File, BuildError> {
    let make = || -> std::io::Result<File> {
        let mut file: File = rustix::fs::memfd_create("kiln", rustix::fs::MemfdFlags::CLOEXEC)?.into();
        file.write_all(content)?;
        file.rewind()?;
        Ok(file)
    };
    make().map_err(|error| BuildError::other(format!("could not make a file in memory: {error}")))
}
