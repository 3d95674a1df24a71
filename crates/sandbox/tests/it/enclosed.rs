//! What a step sees: its tree, its user, its environment, and the surroundings that it is given.

use std::fs::{self, File};
use std::io::Write;

use kiln_sandbox::{Exit, Network, RunRequest, Rung, SandboxError, User, Users};

use crate::machine::{Stage, ran};

#[test]
fn a_step_changes_its_tree_and_tells_its_exit_code() {
    for stage in Stage::every() {
        let ran = stage.run("echo out; echo err >&2; echo new > /new; exit 7");
        assert_eq!(ran.exit, Exit::Code(7), "{}", stage.rung());
        assert_eq!((ran.stdout.as_str(), ran.stderr.as_str()), ("out\n", "err\n"));
        assert_eq!(fs::read_to_string(stage.result("new")).unwrap(), "new\n");
    }
}

#[test]
fn a_signal_is_told_as_one() {
    for stage in Stage::every() {
        assert_eq!(stage.run("kill -9 $$").exit, Exit::Signal(9), "{}", stage.rung());
    }
}

#[test]
fn the_environment_is_exactly_what_the_request_says() {
    for stage in Stage::every() {
        let request = RunRequest {
            env: vec![("A".into(), "1".into()), ("B".into(), "x y".into())],
            argv: ["/bin/busybox", "env"].map(Into::into).to_vec(),
            ..stage.request("")
        };
        assert_eq!(ran(request).unwrap().stdout, "A=1\nB=x y\n", "{}", stage.rung());
    }
}

#[test]
fn user_groups_working_directory_and_mask_are_as_asked() {
    for stage in Stage::every() {
        fs::create_dir(stage.tree("home")).unwrap();
        fs::set_permissions(stage.tree("tmp"), std::os::unix::fs::PermissionsExt::from_mode(0o1777)).unwrap();
        let request = RunRequest {
            cwd: "/home".into(),
            user: User { uid: 1000, gid: 1001, groups: vec![1001, 27, 44] },
            ..stage.request("pwd; busybox id; umask; busybox touch /tmp/f; busybox stat -c '%u:%g %a' /tmp/f; echo x > /dev/stdout")
        };
        let ran = ran(request).unwrap();
        let lines: Vec<_> = ran.stdout.lines().collect();
        assert_eq!(lines[0], "/home", "{}", stage.rung());
        let mut groups: Vec<_> = lines[1].rsplit('=').next().unwrap().split(',').collect();
        groups.sort_unstable();
        assert_eq!(groups, ["1001", "27", "44"]);
        assert!(lines[1].starts_with("uid=1000 gid=1001 "), "{}", lines[1]);
        assert_eq!(lines[2..4], ["0022", "1000:1001 644"]);
        assert!(stage.rung() == Rung::Chroot || lines[4] == "x", "{}", ran.stderr);
    }
}

#[test]
fn root_has_the_capabilities_that_docker_gives_and_no_others() {
    for stage in Stage::every() {
        let script = "while read name value; do case $name in Cap*) echo $name $value;; esac; done < /status";
        fs::write(stage.tree("status"), "").unwrap();
        let script =
            if stage.rung().mounts() { script.replace("/status", "/proc/self/status") } else { continue };
        let ran = stage.run(&script);
        let lines: Vec<_> = ran.stdout.lines().collect();
        assert_eq!(lines[0], "CapInh: 0000000000000000");
        for (line, name) in lines[1..4].iter().zip(["CapPrm", "CapEff", "CapBnd"]) {
            assert_eq!(*line, format!("{name}: 00000000a80425fb"), "{}", stage.rung());
        }
    }
}

#[test]
fn standard_input_is_the_given_file_or_empty() {
    for stage in Stage::every() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"from a file").unwrap();
        std::io::Seek::rewind(&mut file).unwrap();
        let request = RunRequest { stdin: Some(file), ..stage.request("busybox cat") };
        assert_eq!(ran(request).unwrap().stdout, "from a file\n", "{}", stage.rung());
        assert_eq!(stage.run("busybox cat").stdout, "");
    }
}

#[test]
fn devices_work_and_leave_no_trace() {
    for stage in Stage::every() {
        let before = stage.listing();
        let ran = stage.run(
            "echo x > /dev/null && busybox head -c 4 /dev/zero | busybox wc -c && busybox head -c 4 /dev/urandom | \
             busybox wc -c; echo x > /dev/full; test -c /dev/tty && test -c /dev/random && echo all",
        );
        assert_eq!(ran.stdout, "4\n4\nall\n", "{}: {}", stage.rung(), ran.stderr);
        assert!(ran.stderr.contains("No space left"), "{}", ran.stderr);
        assert_eq!(stage.listing(), before, "{}", stage.rung());
        if stage.rung() == Rung::Overlay {
            assert_eq!(stage.left(), Vec::<String>::new());
        }
    }
}

#[test]
fn where_mounts_work_a_step_has_proc_sys_pts_and_shared_memory() {
    for stage in Stage::each_mounting() {
        let ran = stage.run(
            "test -d /sys/class && test -e /dev/pts/ptmx && echo x > /dev/shm/x && test -e /proc/self/status \
             && echo s | busybox tee /dev/stderr > /dev/null && ! echo 1 > /sys/kernel/profiling \
             && ! echo 1 > /proc/sys/vm/drop_caches && echo fine",
        );
        assert!(ran.stdout.contains("fine"), "{}: {}", stage.rung(), ran.stderr);
    }
}

#[test]
fn the_pods_resolver_files_are_seen_and_are_in_no_layer() {
    for stage in Stage::every() {
        fs::create_dir(stage.tree("etc")).unwrap();
        fs::write(stage.tree("etc/hosts"), "the image's").unwrap();
        let before = stage.listing();
        let request = RunRequest {
            resolv_conf: Some(b"nameserver 192.0.2.1\n".to_vec()),
            hosts: Some(b"127.0.0.1 localhost\n".to_vec()),
            ..stage.request("busybox cat /etc/resolv.conf /etc/hosts; echo changed >> /etc/hosts")
        };
        let ran = ran(request).unwrap();
        assert_eq!(ran.stdout, "nameserver 192.0.2.1\n127.0.0.1 localhost\n", "{}", stage.rung());
        assert_eq!(stage.listing(), before, "{}", stage.rung());
        assert!(!stage.result("etc/resolv.conf").exists());
    }
}

#[test]
fn without_network_only_loopback_is_there() {
    for stage in Stage::each_mounting() {
        let request = RunRequest {
            network: Network::None,
            hostname: Some("step".into()),
            ..stage.request("busybox ip addr; busybox hostname; busybox ping -c 1 -w 2 127.0.0.1")
        };
        let ran = ran(request).unwrap();
        assert!(ran.stdout.contains("1: lo:") && !ran.stdout.contains("2: "), "{}", ran.stdout);
        assert!(ran.stdout.contains("\nstep\n"), "{}", ran.stdout);
        // In a pod with CAP_SYS_ADMIN alone there is no user namespace, and so nobody may bring loopback up.
        let sets = rustix::thread::capabilities(None).unwrap();
        let up = stage.enclosure.users() != Users::Pod
            || sets.effective.contains(rustix::thread::CapabilitySet::NET_ADMIN);
        assert_eq!(ran.stdout.contains("inet 127.0.0.1/8"), up, "{}: {}", stage.rung(), ran.stdout);
        assert_eq!(ran.exit == Exit::Code(0), up, "{}", ran.stdout);
    }
}

#[test]
fn a_program_that_is_not_there_is_named() {
    for stage in Stage::every() {
        let request = RunRequest { argv: vec!["nosuch".into()], ..stage.request("") };
        let error = ran(request).err().unwrap();
        assert_eq!(error.to_string(), "nosuch could not be started: ENOENT (No such file or directory)");
        let request = RunRequest { cwd: "/nosuch".into(), ..stage.request("true") };
        let error = ran(request).err().unwrap();
        assert!(matches!(error, SandboxError::Refused(_)), "{error}");
        assert!(error.to_string().contains("chdir(/nosuch) failed: ENOENT"), "{error}");
    }
}

#[test]
fn programs_are_looked_for_along_the_steps_own_path() {
    for stage in Stage::every() {
        let request =
            RunRequest { argv: ["busybox", "echo", "found"].map(Into::into).to_vec(), ..stage.request("") };
        assert_eq!(ran(request).unwrap().stdout, "found\n", "{}", stage.rung());
    }
}

#[test]
fn an_image_whose_proc_is_a_symlink_is_entered_all_the_same() {
    for stage in Stage::each_mounting() {
        std::os::unix::fs::symlink("/elsewhere/proc", stage.tree("proc")).unwrap();
        let before = stage.listing();
        let ran = stage.run("test -e /elsewhere/proc/self/status && echo seen");
        assert_eq!(ran.stdout, "seen\n", "{}: {}", stage.rung(), ran.stderr);
        assert_eq!(stage.listing(), before);
        assert!(!stage.result("elsewhere").exists());
    }
}

#[test]
fn more_layers_than_fit_a_page_are_stacked() {
    let Some(stage) = Stage::new(Rung::Overlay) else { return };
    let mut request = stage.request("busybox cat /f0 /f399");
    let mut lowers = Vec::new();
    for number in 0..400 {
        let name = format!("layer-with-a-rather-long-name-{number}");
        fs::create_dir(stage.beside(&name)).unwrap();
        fs::write(stage.beside(&name).join(format!("f{number}")), format!("{number} ")).unwrap();
        lowers.push(stage.beside(&name));
    }
    lowers.push(stage.tree(""));
    let (upper, work) = (stage.beside("upper"), stage.beside("work"));
    request.tree = kiln_sandbox::Tree::Overlay { lowers, upper, work };
    assert_eq!(ran(request).unwrap().stdout, "0 399 \n");
}

#[test]
fn a_step_after_a_step_works_on_the_same_directories() {
    for stage in Stage::every() {
        stage.run("echo 1 >> /f");
        stage.run("echo 2 >> /f");
        assert_eq!(fs::read_to_string(stage.result("f")).unwrap(), "1\n2\n", "{}", stage.rung());
    }
}

#[test]
fn a_file_descriptor_of_kilns_own_is_not_passed_on() {
    for stage in Stage::each_mounting() {
        let file = File::open("/etc/passwd").unwrap();
        rustix::io::fcntl_setfd(&file, rustix::io::FdFlags::empty()).unwrap();
        let ran = stage.run("busybox ls /proc/self/fd | busybox tr '\\n' ' '");
        // 3 is the directory that ls itself reads.
        assert_eq!(ran.stdout.trim(), "0 1 2 3", "{}", stage.rung());
    }
}
