//! What a step is lent, on every rung, and that nothing of it is left in the tree.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Seek, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;

use kiln_sandbox::{Cancel, Exit, Mount, MountSource, RunRequest, Rung, SandboxError};

use crate::machine::{Ran, Stage, copy_this_program, ran, ran_until};

fn with(stage: &Stage, mounts: Vec<(MountSource, &str)>, script: &str) -> Ran {
    ran(lent(stage, mounts, script)).unwrap()
}

fn lent(stage: &Stage, mounts: Vec<(MountSource, &str)>, script: &str) -> RunRequest {
    let mount = |(source, target): (MountSource, &str)| Mount { source, target: PathBuf::from(target) };
    RunRequest { mounts: mounts.into_iter().map(mount).collect(), ..stage.request(script) }
}

fn bind(path: PathBuf, readonly: bool) -> MountSource {
    MountSource::Bind { path, readonly }
}

fn file(text: &str, mode: u32, uid: u32, gid: u32) -> MountSource {
    let mut contents = tempfile::tempfile().unwrap();
    contents.write_all(text.as_bytes()).unwrap();
    contents.rewind().unwrap();
    MountSource::File { contents, mode, uid, gid }
}

/// The tree is as before, and on rung overlay not even copied up.
fn assert_untouched(stage: &Stage, before: &[String]) {
    assert_eq!(stage.listing(), before, "{}", stage.rung());
    if stage.rung() == Rung::Overlay {
        let left = stage.left();
        assert!(left.iter().all(|path| stage.tree(path).is_dir()), "{left:?}");
    }
}

#[test]
fn a_directory_is_lent_and_its_mount_point_is_gone_afterwards() {
    for stage in Stage::every() {
        let source = stage.beside("source");
        fs::create_dir_all(source.join("sub")).unwrap();
        fs::write(source.join("sub/f"), "lent").unwrap();
        let before = stage.listing();
        let ran = with(&stage, vec![(bind(source.clone(), true), "/a/b/c")], "busybox cat /a/b/c/sub/f");
        assert_eq!(ran.stdout, "lent\n", "{}: {}", stage.rung(), ran.stderr);
        assert_untouched(&stage, &before);
        assert_eq!(fs::read_to_string(source.join("sub/f")).unwrap(), "lent");
    }
}

#[test]
fn a_target_that_was_there_comes_back_unchanged() {
    for stage in Stage::every() {
        let source = stage.beside("source");
        fs::create_dir(&source).unwrap();
        fs::create_dir(stage.tree("data")).unwrap();
        fs::write(stage.tree("data/own"), "the image's own").unwrap();
        fs::write(stage.tree("file"), "the image's file").unwrap();
        let before = stage.listing();
        let mounts = vec![(bind(source, false), "/data"), (file("lent", 0o644, 0, 0), "/file")];
        let ran = with(&stage, mounts, "busybox ls /data; busybox cat /file; echo x > /data/new");
        assert_eq!(ran.stdout, "lent\n", "{}: {}", stage.rung(), ran.stderr);
        assert_untouched(&stage, &before);
    }
}

#[test]
fn what_is_written_to_a_cache_is_kept_and_what_is_deleted_is_gone() {
    for stage in Stage::every() {
        let cache = stage.beside("cache");
        fs::create_dir(&cache).unwrap();
        fs::write(cache.join("old"), "").unwrap();
        fs::set_permissions(&cache, fs::Permissions::from_mode(0o700)).unwrap();
        let script = "busybox rm /cache/old && echo new > /cache/new && busybox ls /cache";
        let ran = with(&stage, vec![(bind(cache.clone(), false), "/cache")], script);
        assert_eq!(ran.stdout, "new\n", "{}: {}", stage.rung(), ran.stderr);
        assert!(!cache.join("old").exists());
        assert_eq!(fs::read_to_string(cache.join("new")).unwrap(), "new\n");
        assert_eq!(fs::metadata(&cache).unwrap().mode() & 0o7777, 0o700);
    }
}

#[test]
fn a_cache_that_the_step_deletes_is_there_again_and_empty() {
    for stage in Stage::every() {
        let cache = stage.beside("cache");
        fs::create_dir(&cache).unwrap();
        fs::write(cache.join("old"), "").unwrap();
        with(&stage, vec![(bind(cache.clone(), false), "/root/cache")], "busybox rm -rf /root/cache");
        assert_eq!(fs::read_dir(&cache).unwrap().count(), 0, "{}", stage.rung());
        assert!(!stage.result("root").exists());
    }
}

#[test]
fn a_cache_on_another_file_system_is_copied_there_and_back() {
    let Some(stage) = Stage::new(Rung::Chroot) else { return };
    let other = tempfile::tempdir_in("/dev/shm").unwrap();
    fs::write(other.path().join("kept"), "1").unwrap();
    fs::write(other.path().join("gone"), "1").unwrap();
    let inode = fs::metadata(other.path().join("kept")).unwrap().ino();
    let script =
        "busybox rm /cache/gone; busybox mkdir /cache/d; echo 2 > /cache/d/new; busybox ln -s x /cache/l";
    with(&stage, vec![(bind(other.path().into(), false), "/cache")], script);
    assert!(!other.path().join("gone").exists());
    assert_eq!(fs::read_to_string(other.path().join("d/new")).unwrap(), "2\n");
    assert_eq!(fs::read_link(other.path().join("l")).unwrap(), PathBuf::from("x"));
    assert_eq!(fs::metadata(other.path().join("kept")).unwrap().ino(), inode);
}

#[test]
fn a_read_only_directory_is_never_changed() {
    for stage in Stage::every() {
        let source = stage.beside("source");
        fs::create_dir(&source).unwrap();
        fs::write(source.join("f"), "old").unwrap();
        let script = "echo new > /s/f; echo new > /s/g; echo done";
        let ran = with(&stage, vec![(bind(source.clone(), true), "/s")], script);
        assert_eq!(ran.stdout, "done\n", "{}", stage.rung());
        assert_eq!(fs::read_to_string(source.join("f")).unwrap(), "old");
        assert!(!source.join("g").exists());
        assert_eq!(ran.stderr.contains("Read-only file system"), stage.rung().mounts(), "{}", ran.stderr);
    }
}

#[test]
fn a_single_file_is_lent_and_written_through() {
    for stage in Stage::every() {
        let source = stage.beside("one");
        fs::write(&source, "1").unwrap();
        let before = stage.listing();
        let ran = with(
            &stage,
            vec![(bind(source.clone(), false), "/d/one")],
            "busybox cat /d/one; echo 2 > /d/one",
        );
        assert_eq!(ran.stdout, "1\n", "{}: {}", stage.rung(), ran.stderr);
        assert_eq!(fs::read_to_string(&source).unwrap(), "2\n");
        assert_untouched(&stage, &before);
    }
}

#[test]
fn a_secret_has_its_mode_and_owner_and_is_on_no_disk_afterwards() {
    for stage in Stage::every() {
        let before = stage.listing();
        let mounts = vec![(file("hunter2", 0o440, 1000, 1001), "/run/secrets/key")];
        let script = "busybox cat /run/secrets/key; echo; busybox stat -c '%a %u:%g' /run/secrets/key";
        let ran = with(&stage, mounts, script);
        assert_eq!(ran.stdout, "hunter2\n440 1000:1001\n", "{}: {}", stage.rung(), ran.stderr);
        assert_untouched(&stage, &before);
        assert!(!stage.result("run").exists(), "{}", stage.rung());
    }
}

#[test]
fn a_secret_is_gone_when_the_step_fails_is_cancelled_or_never_starts() {
    for stage in Stage::every() {
        let secret = || vec![(file("hunter2", 0o400, 0, 0), "/key")];
        assert_eq!(with(&stage, secret(), "exit 3").exit, Exit::Code(3));
        assert!(!stage.result("key").exists(), "{}", stage.rung());

        let mut missing = lent(&stage, secret(), "");
        missing.argv = vec!["/nosuch".into()];
        assert!(matches!(ran(missing), Err(SandboxError::Program { .. })));
        assert!(!stage.result("key").exists(), "{}", stage.rung());

        let mut broken = lent(&stage, secret(), "true");
        let source = bind("/nosuch/source".into(), true);
        broken.mounts.push(Mount { source, target: "/later".into() });
        assert!(ran(broken).is_err());
        assert!(!stage.result("key").exists(), "{}", stage.rung());

        let cancel = Cancel::new().unwrap();
        let switch = cancel.clone();
        std::thread::spawn(move || {
            std::thread::sleep(std::time::Duration::from_millis(300));
            switch.cancel();
        });
        let result = ran_until(lent(&stage, secret(), "busybox sleep 60"), &cancel);
        assert!(matches!(result, Err(SandboxError::Cancelled)));
        assert!(!stage.result("key").exists(), "{}", stage.rung());
    }
}

#[test]
fn a_tmpfs_is_empty_writable_and_gone_afterwards() {
    for stage in Stage::every() {
        fs::write(stage.tree("tmp/own"), "").unwrap();
        let before = stage.listing();
        let tmpfs = MountSource::Tmpfs { size: Some(1 << 20), mode: 0o1777, readonly: false };
        let script = "busybox ls /tmp; echo x > /tmp/f; busybox stat -c %a /tmp; \
                      busybox dd if=/dev/zero of=/tmp/big bs=1M count=2 2>/dev/null || echo full";
        let ran = with(&stage, vec![(tmpfs, "/tmp")], script);
        let full = if stage.rung().mounts() { "full\n" } else { "" };
        assert_eq!(ran.stdout, format!("1777\n{full}"), "{}: {}", stage.rung(), ran.stderr);
        assert_untouched(&stage, &before);
    }
}

/// Run by the next test, inside its step; by itself it does nothing.
#[test]
fn what_the_agent_says_is_passed_on() {
    let Ok(mut stream) = UnixStream::connect("/run/kiln-agent") else { return };
    let mut said = String::new();
    BufReader::new(stream.try_clone().unwrap()).read_line(&mut said).unwrap();
    stream.write_all(b"bye\n").unwrap();
    fs::write("/said", said).unwrap();
}

/// Greets whoever connects, until one of them says bye.
fn agent(listener: &UnixListener) {
    // A relay looks first whether anybody is there, and says nothing.
    while let Ok((mut stream, _)) = listener.accept() {
        let mut answer = String::new();
        let told = stream.write_all(b"hello\n").and_then(|()| BufReader::new(&stream).read_line(&mut answer));
        if told.is_ok() && answer == "bye\n" {
            return;
        }
    }
}

#[test]
fn a_socket_answers_inside_the_step() {
    for stage in Stage::every() {
        copy_this_program(&stage);
        for relayed in [false, true] {
            // On another file system it can't be linked, so on rung chroot it is relayed.
            let shm = tempfile::tempdir_in("/dev/shm").unwrap();
            let path = if relayed { shm.path().join("agent") } else { stage.beside("agent") };
            let listener = UnixListener::bind(&path).unwrap();
            let server = std::thread::spawn(move || agent(&listener));
            let script = "exec /bin/talk --exact mounts::what_the_agent_says_is_passed_on > /log 2>&1";
            let ran = with(&stage, vec![(MountSource::Socket(path.clone()), "/run/kiln-agent")], script);
            let said = fs::read_to_string(stage.result("said")).unwrap_or_default();
            assert_eq!(said, "hello\n", "{} {relayed} {:?}", stage.rung(), ran.exit);
            server.join().unwrap();
            fs::remove_file(&path).unwrap();
            fs::remove_file(stage.result("said")).unwrap();
            assert!(!stage.result("run").exists());
        }
    }
}

#[test]
fn a_device_is_usable_inside_the_step() {
    for stage in Stage::every() {
        let before = stage.listing();
        let mounts = vec![(MountSource::Device("/dev/zero".into()), "/dev/fuse")];
        let ran = with(&stage, mounts, "busybox head -c 3 /dev/fuse | busybox wc -c");
        assert_eq!(ran.stdout, "3\n", "{}: {}", stage.rung(), ran.stderr);
        assert_untouched(&stage, &before);
    }
}

#[test]
fn targets_are_found_through_the_images_symlinks_and_never_outside_the_tree() {
    for stage in Stage::every() {
        std::os::unix::fs::symlink("/run", stage.tree("var-run")).unwrap();
        std::os::unix::fs::symlink("../../../..", stage.tree("up")).unwrap();
        let before = stage.listing();
        let mounts =
            vec![(file("1", 0o444, 0, 0), "/var-run/x"), (file("2", 0o444, 0, 0), "/up/kiln-escape")];
        let ran = with(&stage, mounts, "busybox cat /run/x /kiln-escape");
        assert_eq!(ran.stdout, "12\n", "{}: {}", stage.rung(), ran.stderr);
        assert!(!PathBuf::from("/kiln-escape").exists());
        assert_untouched(&stage, &before);
    }
}

#[test]
fn mounts_nest() {
    for stage in Stage::every() {
        let cache = stage.beside("cache");
        fs::create_dir(&cache).unwrap();
        let before = stage.listing();
        let mounts = vec![(bind(cache.clone(), false), "/m2"), (file("conf", 0o444, 0, 0), "/m2/settings")];
        let ran = with(&stage, mounts, "busybox cat /m2/settings; echo x > /m2/kept");
        assert_eq!(ran.stdout, "conf\n", "{}: {}", stage.rung(), ran.stderr);
        assert_untouched(&stage, &before);
        assert!(cache.join("kept").exists());
        assert!(!cache.join("settings").exists(), "{}", stage.rung());
    }
}

#[test]
fn what_a_step_puts_beside_a_mount_point_stays() {
    for stage in Stage::every() {
        let ran = with(&stage, vec![(file("s", 0o444, 0, 0), "/a/b/secret")], "echo x > /a/b/own");
        assert_eq!(ran.exit, Exit::Code(0));
        let left = stage.left();
        assert!(left.contains(&"a/b/own".to_owned()) && !left.contains(&"a/b/secret".to_owned()), "{left:?}");
    }
}

#[test]
fn part_of_another_stages_layers_is_lent() {
    for stage in Stage::each_mounting() {
        for (layer, path) in [("one", "app/a"), ("two", "app/b")] {
            fs::create_dir_all(stage.beside(layer).join("app")).unwrap();
            fs::write(stage.beside(layer).join(path), path).unwrap();
        }
        fs::create_dir(stage.beside("u2")).unwrap();
        fs::create_dir(stage.beside("w2")).unwrap();
        let overlay = |layers: &[&str], writable, source: &str| MountSource::Overlay {
            lowers: layers.iter().map(|layer| stage.beside(layer)).collect(),
            writable,
            source: source.into(),
        };
        let mounts = vec![
            (overlay(&["one", "two"], None, "/app"), "/both"),
            (overlay(&["one"], None, "app"), "/single"),
            (overlay(&["one", "two"], None, "app/b"), "/file"),
            (overlay(&["one"], Some((stage.beside("u2"), stage.beside("w2"))), "/app"), "/written"),
        ];
        let script = "busybox ls /both /single; busybox cat /file; echo; echo x > /both/x; echo x > /written/x; \
                      busybox ls /written";
        let before = stage.listing();
        let ran = with(&stage, mounts, script);
        let expected = "/both:\na\nb\n\n/single:\na\napp/b\na\nx\n";
        assert_eq!(ran.stdout, expected, "{}: {}", stage.rung(), ran.stderr);
        assert!(ran.stderr.contains("Read-only file system"), "{}", ran.stderr);
        assert!(!stage.beside("one").join("app/x").exists());
        assert_untouched(&stage, &before);
    }
}

#[test]
fn on_rung_chroot_layers_are_refused_in_words() {
    let Some(stage) = Stage::new(Rung::Chroot) else { return };
    let source = MountSource::Overlay { lowers: vec![stage.beside("")], writable: None, source: "/".into() };
    let error = ran(lent(&stage, vec![(source, "/x")], "true")).err().unwrap();
    assert!(error.to_string().contains("can't be mounted at /x on rung chroot"), "{error}");
}

#[test]
fn a_missing_source_is_named() {
    for stage in Stage::every() {
        let request = lent(&stage, vec![(bind("/nosuch".into(), true), "/x")], "true");
        let error = ran(request).err().unwrap().to_string();
        assert!(error.contains("/nosuch") || error.contains("/x"), "{error}");
        assert!(!stage.result("x").exists());
    }
}

#[test]
fn contents_are_read_from_their_start_wherever_the_file_stands() {
    for stage in Stage::every() {
        let path = stage.beside("contents");
        fs::write(&path, "whole").unwrap();
        let mut contents = File::open(&path).unwrap();
        contents.read_to_string(&mut String::new()).unwrap();
        let source = MountSource::File { contents, mode: 0o444, uid: 0, gid: 0 };
        assert_eq!(with(&stage, vec![(source, "/f")], "busybox cat /f").stdout, "whole\n");
    }
}
