//! Rung root, whose steps change `/` itself: only ever inside a step on rung directory, which is a pod in small.
//!
//! The tests in `inside` are run there by this very program; anywhere else they do nothing.

use std::fs;

use kiln_sandbox::{Exit, Rung};

use crate::machine::{Stage, copy_this_program};

/// Made in the tree in which `/` may be changed.
const MARK: &str = "kiln-test-root";

#[test]
fn steps_on_rung_root_work_inside_a_pod_in_small() {
    let Some(stage) = Stage::new(Rung::Directory) else { return };
    copy_this_program(&stage);
    fs::create_dir_all(stage.tree("usr/bin")).unwrap();
    fs::copy(stage.tree("bin/busybox"), stage.tree("usr/bin/busybox")).unwrap();
    fs::write(stage.tree(MARK), "").unwrap();
    let ran = stage.run("/bin/talk --test-threads=1 host::inside 2>&1");
    assert_eq!(ran.exit, Exit::Code(0), "{}", ran.stdout);
    assert!(ran.stdout.contains("6 passed"), "{}", ran.stdout);
}

mod inside {
    use std::fs::{self, File};
    use std::io::Write;
    use std::os::unix::fs::MetadataExt;
    use std::path::{Path, PathBuf};

    use kiln_sandbox::{
        Cancel, Enclosure, Exit, Mount, MountSource, Network, RunRequest, Rung, SandboxError, Tree, probe,
    };

    use crate::machine::{is_running, list, ran, ran_until};

    fn enclosure() -> Option<Enclosure> {
        if !Path::new("/").join(super::MARK).exists() {
            return None;
        }
        let scratch = tempfile::tempdir().unwrap();
        Some(probe(scratch.path()).enclosure(Rung::Root).unwrap())
    }

    fn request(enclosure: Enclosure, mounts: Vec<(MountSource, &str)>, script: &str) -> RunRequest {
        let mount = |(source, target): (MountSource, &str)| Mount { source, target: PathBuf::from(target) };
        RunRequest {
            env: vec![("PATH".into(), "/bin".into())],
            mounts: mounts.into_iter().map(mount).collect(),
            ..RunRequest::new(enclosure, Tree::Host, ["/bin/busybox", "sh", "-c", script])
        }
    }

    fn bind(path: &str, readonly: bool) -> MountSource {
        MountSource::Bind { path: path.into(), readonly }
    }

    fn listing() -> Vec<String> {
        let mut lines = Vec::new();
        list(Path::new("/"), &["/proc", "/sys", "/dev", "/tmp"], &mut lines);
        lines.sort();
        lines
    }

    #[test]
    fn a_step_changes_the_root_itself() {
        let Some(enclosure) = enclosure() else { return };
        let ran = ran(request(enclosure, vec![], "echo made > /made; test -e /proc/self; exit 4")).unwrap();
        assert_eq!(ran.exit, Exit::Code(4));
        assert_eq!(fs::read_to_string("/made").unwrap(), "made\n");
        fs::remove_file("/made").unwrap();
    }

    #[test]
    fn what_is_lent_leaves_no_trace() {
        let Some(enclosure) = enclosure() else { return };
        fs::create_dir_all("/data/sub").unwrap();
        fs::write("/data/sub/own", "the image's").unwrap();
        fs::hard_link("/data/sub/own", "/data/too").unwrap();
        fs::create_dir_all("/tmp/source").unwrap();
        fs::write("/tmp/source/f", "lent").unwrap();
        fs::create_dir_all("/tmp/cache").unwrap();
        let before = listing();
        let mut contents = tempfile::tempfile().unwrap();
        contents.write_all(b"hunter2").unwrap();
        let mounts = vec![
            (MountSource::File { contents, mode: 0o400, uid: 0, gid: 0 }, "/run/secrets/key"),
            (bind("/tmp/source", true), "/data"),
            (bind("/tmp/cache", false), "/root/.cache"),
            (MountSource::Tmpfs { size: None, mode: 0o1777, readonly: false }, "/usr"),
        ];
        let script = "busybox cat /run/secrets/key /data/f; echo x > /root/.cache/x; busybox ls /usr /data";
        let ran = ran(request(enclosure, mounts, script)).unwrap();
        assert_eq!(ran.stdout, "hunter2lent/data:\nf\n\n/usr:\n", "{}", ran.stderr);
        assert_eq!(listing(), before);
        assert_eq!(fs::read_to_string("/tmp/cache/x").unwrap(), "x\n");
        assert_eq!(fs::metadata("/data/too").unwrap().nlink(), 2);
    }

    #[test]
    fn a_volume_lent_at_its_own_place_stays_there() {
        let Some(enclosure) = enclosure() else { return };
        fs::create_dir_all("/volume").unwrap();
        let mounts =
            vec![(bind("/volume", false), "/volume"), (MountSource::Device("/dev/zero".into()), "/dev/zero")];
        let before = fs::metadata("/volume").unwrap().created().ok();
        ran(request(enclosure, mounts, "echo x > /volume/x")).unwrap();
        assert!(Path::new("/volume/x").exists());
        assert_eq!(fs::metadata("/volume").unwrap().created().ok(), before);
        fs::remove_dir_all("/volume").unwrap();
    }

    #[test]
    fn a_cancelled_step_gives_back_what_was_lent() {
        let Some(enclosure) = enclosure() else { return };
        fs::create_dir_all("/tmp/cache2").unwrap();
        let before = listing();
        let cancel = Cancel::new().unwrap();
        let switch = cancel.clone();
        std::thread::spawn(move || {
            std::thread::sleep(std::time::Duration::from_millis(300));
            switch.cancel();
        });
        let script = "echo x > /c/x; (busybox setsid busybox sleep 8642 &); busybox sleep 60";
        let result = ran_until(request(enclosure, vec![(bind("/tmp/cache2", false), "/c")], script), &cancel);
        assert!(matches!(result, Err(SandboxError::Cancelled)));
        assert!(!is_running("8642"));
        assert!(Path::new("/tmp/cache2/x").exists());
        assert_eq!(listing(), before);
    }

    #[test]
    fn without_network_only_loopback_is_there() {
        let Some(enclosure) = enclosure() else { return };
        let request =
            RunRequest { network: Network::None, ..request(enclosure, vec![], "busybox ip addr; echo > /f") };
        let ran = match ran(request) {
            Ok(ran) => ran,
            // Under a seccomp profile that allows no namespaces, in words.
            Err(error) => return assert!(error.to_string().contains("--network=none needs"), "{error}"),
        };
        assert!(ran.stdout.contains("inet 127.0.0.1/8") && !ran.stdout.contains("2: "), "{}", ran.stdout);
        fs::remove_file("/f").unwrap();
    }

    #[test]
    fn the_environment_of_kiln_can_not_be_read() {
        let Some(enclosure) = enclosure() else { return };
        let me = std::process::id();
        let script =
            format!("busybox cat /proc/{me}/environ /proc/{me}/mem; busybox cat /proc/$PPID/environ");
        let ran = ran(request(enclosure, vec![], &script)).unwrap();
        assert_eq!(ran.stdout, "");
        assert!(File::open("/proc/self/environ").is_ok());
    }
}
