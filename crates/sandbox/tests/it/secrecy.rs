//! A step that would like to know what Kiln knows.

use std::fs;
use std::process::id;

use crate::machine::Stage;

#[test]
fn kilns_files_outside_the_tree_are_not_there() {
    for stage in Stage::every() {
        fs::write(stage.beside("config.json"), "hunter2").unwrap();
        let path = stage.beside("config.json");
        let ran = stage.run(&format!("busybox cat {}; busybox ls -a /", path.display()));
        assert!(!ran.stdout.contains("hunter2"), "{}", stage.rung());
        assert!(ran.stderr.contains("No such file"), "{}", ran.stderr);
    }
}

#[test]
fn no_process_outside_the_step_can_be_looked_into() {
    for stage in Stage::each_mounting() {
        let script = format!(
            "for p in /proc/[0-9]*; do
               [ $p = /proc/$$ ] && continue
               busybox readlink $p/exe | busybox grep -q busybox && continue
               for f in environ mem root/etc/passwd cwd/. fd/0 maps auxv; do
                 # That of a process that is just ending opens, and is empty.
                 [ $(busybox head -c 1 $p/$f 2>/dev/null | busybox wc -c) = 1 ] && echo read $p/$f
               done
               busybox readlink $p/fd/0 $p/cwd $p/root >/dev/null 2>&1 && echo read links of $p
             done; busybox ls -d /proc/{} /proc/1/root/ 2>&1; echo end",
            id()
        );
        let ran = stage.run(&script);
        assert!(ran.stdout.ends_with("end\n"), "{}", ran.stderr);
        let told: Vec<_> = ran.stdout.lines().filter(|line| line.starts_with("read")).collect();
        assert_eq!(told, Vec::<&str>::new(), "{}", stage.rung());
    }
}

#[test]
fn the_pods_mounts_can_not_be_brought_back() {
    for stage in Stage::each_mounting() {
        let ran = stage.run(
            "busybox umount /proc 2>&1; busybox mount -t proc proc /tmp 2>&1; busybox mount -o remount,rw /sys 2>&1; \
             busybox chroot /proc/1/root /bin/true 2>&1; echo end",
        );
        assert!(ran.stdout.ends_with("end\n"));
        let refused =
            ran.stdout.lines().filter(|line| line.contains("ermi") || line.contains("ot perm")).count();
        assert!(refused >= 3, "{}: {}", stage.rung(), ran.stdout);
    }
}
