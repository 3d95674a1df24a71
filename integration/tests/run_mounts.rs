//! What a step is lent, as other processes see it: cache mounts of two builds at a time, an ssh agent and a server that
//! lets its key in, secrets that are nowhere afterwards.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use kiln_integration::servers::Sshd;
use kiln_integration::{Bench, Built};

/// Builds `one` and `two` at a time, with the same cache mounts.
fn at_a_time(bench: (&Bench, &Bench), dockerfile: &str, volume: &Path) -> (Built, Built) {
    let flag = format!("--cache-mount-dir={}", volume.display());
    std::thread::scope(|scope| {
        let other = scope.spawn(|| bench.1.build(dockerfile, &[&flag]));
        (bench.0.build(dockerfile, &[&flag]), other.join().unwrap())
    })
}

/// A step that stays until it has seen another one in the cache, or two seconds have passed; it says what it saw.
fn meeting(sharing: &str) -> String {
    format!(
        "FROM base\nRUN --mount=type=cache,id=c,target=/c,sharing={sharing} \
         touch /c/$(cat /proc/sys/kernel/random/uuid); n=0; while [ $n -lt 20 ] && [ $(ls /c | wc -l) -lt 2 ]; do sleep 0.1; n=$((n+1)); done; \
         ls /c | wc -l > /seen\n"
    )
}

fn seen(built: &Built) -> String {
    built.succeeded().files().concat()
}

#[test]
fn shared_cache_mounts_of_two_builds_are_one_directory_at_the_same_time() {
    let (one, two) = (Bench::new(), Bench::new());
    let volume = one.directory.path().join("mounts");
    let built = at_a_time((&one, &two), &meeting("shared"), &volume);
    for built in [&built.0, &built.1] {
        assert_eq!(seen(built), "/seen 0644 0:0 \"2\\n\"");
    }
}

#[test]
fn private_cache_mounts_of_two_builds_never_meet_and_are_used_again() {
    let (one, two) = (Bench::new(), Bench::new());
    let volume = one.directory.path().join("mounts");
    let built = at_a_time((&one, &two), &meeting("private"), &volume);
    for built in [&built.0, &built.1] {
        assert_eq!(seen(built), "/seen 0644 0:0 \"1\\n\"");
    }
    let later = "FROM base\nRUN --mount=type=cache,id=c,target=/c,sharing=private ls /c | wc -l > /seen\n";
    let built = one.build(later, &[&format!("--cache-mount-dir={}", volume.display())]);
    assert_eq!(seen(&built), "/seen 0644 0:0 \"1\\n\"");
}

#[test]
fn a_locked_cache_mount_keeps_others_out_until_the_step_is_over() {
    let (one, two) = (Bench::new(), Bench::new());
    let volume = one.directory.path().join("mounts");
    let dockerfile = "FROM base\nRUN --mount=type=cache,id=c,target=/c,sharing=locked \
                      test ! -e /c/busy && touch /c/busy && sleep 1 && rm /c/busy && echo x >> /c/log && cat /c/log > /seen\n";
    let built = at_a_time((&one, &two), dockerfile, &volume);
    let mut seen = [seen(&built.0), seen(&built.1)];
    seen.sort();
    assert_eq!(seen, ["/seen 0644 0:0 \"x\\n\"", "/seen 0644 0:0 \"x\\nx\\n\""]);
}

/// An agent of OpenSSH's with one key in it.
struct Agent {
    process: Child,
    socket: PathBuf,
}

impl Agent {
    fn start(directory: &Path, key: &Path) -> Self {
        let socket = directory.join("agent");
        let process =
            Command::new("ssh-agent").arg("-D").arg("-a").arg(&socket).stdout(Stdio::null()).spawn();
        let agent = Self { process: process.unwrap(), socket };
        let began = std::time::Instant::now();
        while !agent.socket.exists() {
            assert!(began.elapsed().as_secs() < 20, "ssh-agent makes its socket");
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        let added = Command::new("ssh-add").arg("-q").arg(key).env("SSH_AUTH_SOCK", &agent.socket).status();
        assert!(added.unwrap().success());
        agent
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Puts a program of this machine into the context, with the libraries that it needs.
fn bring(bench: &Bench, program: &str) {
    let found = Command::new("sh").args(["-c", &format!("command -v {program}")]).output().unwrap();
    let path = String::from_utf8(found.stdout).unwrap().trim().to_owned();
    let listed = Command::new("ldd").arg(&path).output().unwrap();
    let listed = String::from_utf8(listed.stdout).unwrap();
    let libraries = listed.split_whitespace().filter(|word| word.starts_with('/'));
    let root = bench.context().join("tools");
    for file in std::iter::once(path.as_str()).chain(libraries) {
        let to = root.join(file.trim_start_matches('/'));
        std::fs::create_dir_all(to.parent().unwrap()).unwrap();
        std::fs::copy(file, to).unwrap();
    }
}

#[test]
fn a_step_logs_in_at_an_ssh_server_with_the_key_of_the_agent_that_it_is_lent() {
    let bench = Bench::new();
    let place = bench.directory.path().join("sshd");
    std::fs::create_dir(&place).unwrap();
    let server = Sshd::start(&place);
    let agent = Agent::start(&place, &place.join("user"));
    bring(&bench, "ssh");
    std::fs::copy(place.join("known_hosts"), bench.context().join("known_hosts")).unwrap();
    let login = format!(
        "/usr/bin/ssh -F none -o UserKnownHostsFile=/known_hosts -o BatchMode=yes -p {} root@127.0.0.1 echo let in > /said",
        server.port
    );
    let dockerfile = |mount: &str| {
        format!(
            "FROM base\nCOPY tools known_hosts /\nRUN {mount}{login}\nRUN rm -rf /usr /lib* /known_hosts\n"
        )
    };
    let flag = format!("default={}", agent.socket.display());
    let built = bench.build(&dockerfile("--mount=type=ssh,required=true "), &["--ssh", &flag]);
    let files = built.succeeded().files();
    assert!(files.contains(&"/said 0644 0:0 \"let in\\n\"".to_owned()), "{files:?}");
    assert!(files.iter().all(|line| !line.contains("agent")), "{files:?}");
    let without = bench.build(&dockerfile(""), &["--ssh", &flag]);
    assert!(without.log().contains("Permission denied"), "{}", without.log());
}

/// All bytes of the files below `path`, those of gzip decompressed as well.
fn everything(path: &Path, bytes: &mut Vec<u8>) {
    for entry in std::fs::read_dir(path).unwrap().flatten() {
        let path = entry.path();
        bytes.extend_from_slice(path.as_os_str().as_encoded_bytes());
        if path.is_dir() {
            everything(&path, bytes);
        } else if let Ok(content) = std::fs::read(&path) {
            let mut gzip = flate2::read::MultiGzDecoder::new(content.as_slice());
            let _ = std::io::Read::read_to_end(&mut gzip, bytes);
            bytes.extend_from_slice(&content);
        }
    }
}

#[test]
fn a_secret_is_in_no_layer_no_config_no_log_and_nothing_that_is_kept() {
    let value = "hunter2-6f1c9";
    let bench = Bench::new();
    let secret = bench.directory.path().join("secret");
    std::fs::write(&secret, value).unwrap();
    let kept = tempfile::tempdir().unwrap();
    let flags = [
        format!("--secret=id=s,src={}", secret.display()),
        "--cache".to_owned(),
        format!("--cache-repo=oci:{}", kept.path().join("cache").display()),
        format!("--cache-mount-dir={}", kept.path().join("mounts").display()),
        "--verbosity=trace".to_owned(),
    ];
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    let dockerfile = "FROM base\nRUN --mount=type=secret,id=s,env=TOKEN --mount=type=secret,id=s,target=/etc/key \
                      --mount=type=cache,target=/c test \"$(cat /etc/key)\" = \"$TOKEN\" && test ${#TOKEN} = 13 && echo ok > /ok\n";
    let failing = "FROM base\nRUN --mount=type=secret,id=s,env=TOKEN false\n";
    let built = bench.build(dockerfile, &flags);
    assert!(built.succeeded().files().contains(&"/ok 0644 0:0 \"ok\\n\"".to_owned()));
    // Another value is no reason to run the step again: it is in no key.
    std::fs::write(&secret, "hunter2-000ff").unwrap();
    let again = bench.build(dockerfile, &flags);
    assert_eq!(again.succeeded().digest(), built.digest());
    let failed = bench.build(failing, &flags);
    assert!(!failed.output.status.success());
    let mut bytes = Vec::new();
    for folder in [&built.layout, &again.layout, &failed.layout, &kept.path().to_owned()] {
        everything(folder, &mut bytes);
    }
    for built in [&built, &again, &failed] {
        bytes.extend_from_slice(built.log().as_bytes());
    }
    let words: BTreeSet<&str> = ["hunter2-6f1c9", "hunter2-000ff"].into();
    for word in words {
        assert!(bytes.windows(word.len()).all(|window| window != word.as_bytes()), "{word} is somewhere");
    }
}
