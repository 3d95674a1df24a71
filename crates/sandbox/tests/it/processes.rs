//! A step's processes: what it leaves behind is ended, what is cancelled ends soon, and steps don't disturb each other.

use std::fs;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use kiln_sandbox::{Cancel, Exit, Rung, SandboxError, run};

use crate::machine::{Stage, is_running, ran, ran_until};

/// A number that no other process has in its arguments, for sleep.
fn marker() -> String {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    format!("8{}{:03}", std::process::id(), NEXT.fetch_add(1, Ordering::SeqCst))
}

#[test]
fn a_daemon_that_keeps_the_output_open_does_not_hold_up_the_step() {
    for stage in Stage::every() {
        let marker = marker();
        let start = Instant::now();
        let ran =
            stage.run(&format!("(busybox setsid busybox sleep {marker} &) ; busybox sleep 0.2; echo done"));
        assert!(start.elapsed() < Duration::from_secs(5), "{}", stage.rung());
        assert_eq!((ran.exit, ran.stdout.as_str()), (Exit::Code(0), "done\n"));
        assert!(!is_running(&marker), "{}", stage.rung());
    }
}

#[test]
fn a_stopped_child_is_ended_too() {
    for stage in Stage::every() {
        let marker = marker();
        let ran = stage.run(&format!("busybox sleep {marker} & kill -STOP $!; busybox sleep 0.1; echo done"));
        assert_eq!(ran.stdout, "done\n", "{}: {:?} {}", stage.rung(), ran.exit, ran.stderr);
        assert!(!is_running(&marker), "{}", stage.rung());
    }
}

#[test]
fn a_whole_family_of_daemons_is_ended() {
    for stage in Stage::every() {
        let marker = marker();
        let script = format!(
            "for i in 1 2 3 4 5; do busybox setsid busybox sh -c 'busybox setsid busybox sh -c \"busybox sleep \
             {marker}; true\" & busybox sleep {marker}' & done; busybox sleep 0.3"
        );
        assert_eq!(stage.run(&script).exit, Exit::Code(0), "{}", stage.rung());
        assert!(!is_running(&marker), "{}", stage.rung());
    }
}

/// A search of the whole tree fails if there is something that it may not list: `find /` in a RUN did.
#[test]
fn nothing_of_the_supervisor_is_there_that_can_not_be_listed() {
    for stage in Stage::each_mounting() {
        for enclosure in [stage.enclosure, stage.enclosure.with_the_pods_processes()] {
            let mut request = stage.request("busybox find /proc/$PPID > /dev/null");
            request.enclosure = enclosure;
            let ran = ran(request).unwrap();
            assert_eq!(ran.exit, Exit::Code(0), "{enclosure}: {}", ran.stderr);
        }
    }
}

#[test]
fn a_step_that_kills_its_supervisor_gains_nothing_by_it() {
    for stage in Stage::every() {
        let marker = marker();
        let script = format!(
            "busybox setsid busybox sleep {marker} & busybox sleep {marker} & busybox sleep 0.2; kill -9 $PPID; \
             busybox sleep 1"
        );
        let start = Instant::now();
        match ran(stage.request(&script)) {
            Err(SandboxError::Supervisor(how)) => assert_eq!(how, "signal 9", "{}", stage.rung()),
            // As process 1 of its own namespace it can't be killed from inside.
            Ok(_) => assert!(stage.enclosure.own_pids(), "{}", stage.rung()),
            Err(error) => panic!("{error}"),
        }
        assert!(start.elapsed() < Duration::from_secs(5));
        // Where there is no mount namespace, one that left the session is out of reach, and dies with the pod.
        if stage.rung().mounts() {
            assert!(!is_running(&marker), "{}", stage.rung());
        }
    }
}

/// Run by the next test as a Kiln of its own, which is then killed; by itself it does nothing.
#[test]
fn a_kiln_that_will_be_killed() {
    let Ok(script) = fs::read_to_string("kiln-killed-script") else { return };
    for stage in Stage::each(&[Rung::Overlay]).into_iter().chain(Stage::new(Rung::Chroot)) {
        stage.run(&script);
    }
}

#[test]
fn a_step_ends_when_kiln_is_killed() {
    let folder = tempfile::tempdir().unwrap();
    let marker = marker();
    let script =
        format!("busybox setsid busybox sleep {marker} & trap '' TERM; busybox sleep {marker}; true");
    fs::write(folder.path().join("kiln-killed-script"), script).unwrap();
    let mut kiln = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "processes::a_kiln_that_will_be_killed"])
        .current_dir(folder.path())
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let in_time = |what: &dyn Fn() -> bool| {
        let start = Instant::now();
        while !what() {
            assert!(start.elapsed() < Duration::from_secs(10));
            thread::sleep(Duration::from_millis(20));
        }
    };
    in_time(&|| is_running(&marker));
    kiln.kill().unwrap();
    kiln.wait().unwrap();
    in_time(&|| !is_running(&marker));
}

fn cancelled_after(stage: &Stage, script: &str, delay: Duration) -> Duration {
    let cancel = Cancel::new().unwrap();
    let switch = cancel.clone();
    let canceller = thread::spawn(move || {
        thread::sleep(delay);
        switch.cancel();
        Instant::now()
    });
    let result = ran_until(stage.request(script), &cancel);
    let took = canceller.join().unwrap().elapsed();
    assert!(matches!(result, Err(SandboxError::Cancelled)), "{}", stage.rung());
    took
}

#[test]
fn a_cancelled_step_is_told_first() {
    for stage in Stage::every() {
        let script = "trap 'echo told > /told; exit 0' TERM; busybox sleep 60 & wait";
        let took = cancelled_after(&stage, script, Duration::from_millis(500));
        assert!(took < Duration::from_secs(2), "{}: {took:?}", stage.rung());
        assert!(stage.result("told").exists(), "{}", stage.rung());
    }
}

#[test]
fn a_step_that_does_not_listen_is_ended_within_five_seconds() {
    for stage in Stage::every() {
        let marker = marker();
        let script = format!("trap '' TERM; while true; do busybox sleep {marker}; done");
        let took = cancelled_after(&stage, &script, Duration::from_millis(300));
        assert!(took < Duration::from_secs(4), "{}: {took:?}", stage.rung());
        assert!(!is_running(&marker), "{}", stage.rung());
    }
}

#[test]
fn a_stopped_step_can_be_cancelled() {
    for stage in Stage::every() {
        let took = cancelled_after(&stage, "kill -STOP $$", Duration::from_millis(300));
        assert!(took < Duration::from_secs(4), "{}: {took:?}", stage.rung());
    }
}

#[test]
fn nothing_starts_once_cancelled() {
    for stage in Stage::every() {
        let cancel = Cancel::new().unwrap();
        cancel.cancel();
        let result = ran_until(stage.request("echo x > /ran"), &cancel);
        assert!(matches!(result, Err(SandboxError::Cancelled)));
        assert!(!stage.result("ran").exists());
    }
}

#[test]
fn steps_side_by_side_keep_their_own_exit_codes() {
    for rung in [Rung::Overlay, Rung::Directory, Rung::Chroot] {
        let workers: Vec<_> = (0..8)
            .map(|number| {
                thread::spawn(move || {
                    let Some(stage) = Stage::new(rung) else { return };
                    for round in 0..5 {
                        let code = number * 8 + round;
                        let script = format!("(busybox sleep 50 &); echo {code}; exit {code}");
                        let ran = stage.run(&script);
                        assert_eq!((ran.exit, ran.stdout), (Exit::Code(code), format!("{code}\n")));
                    }
                })
            })
            .collect();
        for worker in workers {
            worker.join().unwrap();
        }
    }
}

#[test]
fn other_children_of_this_process_are_left_to_their_owners() {
    for stage in Stage::every() {
        let mut child = std::process::Command::new("/bin/sh").args(["-c", "exit 5"]).spawn().unwrap();
        stage.run("busybox sleep 0.2");
        assert_eq!(child.wait().unwrap().code(), Some(5));
    }
}

#[test]
fn much_output_arrives_whole_and_in_order() {
    for stage in Stage::every() {
        let ran = stage.run("busybox seq 1 300000; busybox seq 1 1000 >&2; busybox printf 'no end'");
        assert_eq!(ran.stdout.lines().count(), 300_001, "{}", stage.rung());
        assert!(ran.stdout.ends_with("\n300000\nno end\n"));
        assert!(ran.stderr.ends_with("\n999\n1000\n"));
    }
}

#[test]
fn a_line_without_an_end_takes_no_endless_memory() {
    for stage in Stage::each_mounting() {
        let longest = AtomicUsize::new(0);
        let output = |_, line: &[u8]| {
            longest.fetch_max(line.len(), Ordering::SeqCst);
        };
        let request = stage.request("busybox head -c 20000000 /dev/zero");
        run(request, &output, &Cancel::new().unwrap()).unwrap();
        assert_eq!(longest.load(Ordering::SeqCst), 64 * 1024);
    }
}

#[test]
fn no_zombie_descriptor_or_mount_is_left() {
    let open = || fs::read_dir("/proc/self/fd").unwrap().count();
    for stage in Stage::every() {
        let before = open();
        for _ in 0..20 {
            stage.run("(busybox sleep 50 &)");
        }
        // Other tests of this process run meanwhile; twenty steps would leave far more.
        assert!(open() < before + 100, "{}", stage.rung());
        // Others on this machine may mount meanwhile, elsewhere.
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        assert!(!mounts.contains(stage.beside("").to_str().unwrap()), "{}: {mounts}", stage.rung());
        let error = ran(stage.request("exec /nosuch")).unwrap();
        assert_eq!(error.exit, Exit::Code(127));
    }
}
