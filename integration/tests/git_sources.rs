//! Repositories as contexts and as sources of ADD, from git's own servers: `git http-backend`, and sshd.

use std::path::Path;
use std::process::{Command, Output};

use kiln_integration::servers::{Cut, GitServer, Repo, Sshd};
use kiln_integration::{Bench, Built, kiln};

/// Builds `FROM scratch`, `COPY` of what is named, from a context that is not a directory.
fn build(
    bench: &Bench,
    context: &str,
    dockerfile: &str,
    flags: &[&str],
    variables: &[(&str, &str)],
) -> Built {
    let layout = tempfile::tempdir_in(bench.directory.path()).unwrap().keep();
    let file = bench.directory.path().join("Dockerfile");
    // The first layer is the base's for `files`: one that holds nothing else.
    let text = dockerfile.replace("FROM scratch\n", "FROM scratch\nCOPY <<E /base\nE\n");
    std::fs::write(&file, text).unwrap();
    let mut command = Command::new(kiln());
    command.arg("executor").arg("--context").arg(context).arg("--dockerfile").arg(&file);
    command.arg("--scratch-dir").arg(bench.directory.path().join("scratch"));
    command
        .arg("--oci-layout-path")
        .arg(&layout)
        .args(["--no-push", "--reproducible", "-v", "debug"])
        .args(flags);
    command
        .env("GIT_PULL_METHOD", "http")
        .env("HOME", bench.directory.path())
        .envs(variables.iter().copied());
    Built { output: command.output().unwrap(), layout }
}

const COPY_ALL: &str = "FROM scratch\nCOPY f d* /x/\n";

/// A repository with two commits, a tag on the first, and a branch on it too.
fn repository(root: &Path) -> (Repo, String, String) {
    let repo = Repo::new(root, "r");
    repo.file("f", "one\n").file("d/run.sh", "#!/bin/sh\n").file("Dockerfile", "FROM scratch\nCOPY f /own\n");
    let run = repo.work().join("d/run.sh");
    std::fs::set_permissions(&run, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    std::os::unix::fs::symlink("f", repo.work().join("d/link")).unwrap();
    let first = repo.commit();
    repo.git(&["tag", "-a", "v1", "-m", "a tag"]);
    repo.git(&["branch", "old"]);
    repo.file("f", "two\n");
    let second = repo.commit();
    repo.bare(&["update-ref", "refs/pull/7/head", &first]);
    (repo, first, second)
}

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

#[test]
fn a_revision_is_named_by_branch_tag_commit_or_any_reference() {
    let bench = Bench::new();
    let (_repo, first, second) = repository(bench.directory.path());
    let server = GitServer::start(bench.directory.path(), None);
    let url = server.url("r");
    let through_git = url.replace("http://", "git://");
    for (context, content) in [
        (url.clone(), "two"),
        (through_git, "two"),
        (format!("{url}#main"), "two"),
        (format!("{url}#refs/heads/old"), "one"),
        (format!("{url}#v1"), "one"),
        (format!("{url}#refs/pull/7/head"), "one"),
        (format!("{url}#{first}"), "one"),
        (format!("{url}#refs/heads/main#{first}"), "one"),
        (format!("{url}#{second}"), "two"),
    ] {
        let built = build(&bench, &context, COPY_ALL, &[], &[]);
        let files = built.succeeded().files();
        assert!(
            files.contains(&format!("/x/f 0644 0:0 {:?}", format!("{content}\n"))),
            "{context}: {files:?}"
        );
        assert!(files.iter().any(|line| line.starts_with("/x/run.sh 0755 0:0")), "{context}: {files:?}");
        assert!(files.iter().any(|line| line == "/x/link -> f"), "{context}: {files:?}");
    }
    let built = build(&bench, &url, COPY_ALL, &["--git", "branch=old"], &[]);
    assert!(built.succeeded().files().contains(&"/x/f 0644 0:0 \"one\\n\"".to_owned()));
    let built = build(&bench, &format!("{url}#mian"), COPY_ALL, &[], &[]);
    assert!(built.log().contains("did you mean \"main\"?"), "{}", built.log());
    assert_eq!(built.output.status.code(), Some(1));
}

#[test]
fn an_image_from_a_repository_is_the_one_from_a_directory() {
    let bench = Bench::new();
    let (repo, ..) = repository(bench.directory.path());
    let server = GitServer::start(bench.directory.path(), None);
    let directory = build(&bench, repo.work().to_str().unwrap(), COPY_ALL, &[], &[]);
    let cloned = build(&bench, &server.url("r"), COPY_ALL, &[], &[]);
    assert_eq!(directory.succeeded().digest(), cloned.succeeded().digest());
}

/// Adds a file that no compression makes small, so that a pack has more than a megabyte.
fn noise(repo: &Repo) {
    let mut bytes = vec![0; 1 << 20];
    std::io::Read::read_exact(&mut std::fs::File::open("/dev/urandom").unwrap(), &mut bytes).unwrap();
    std::fs::write(repo.work().join("d/noise"), bytes).unwrap();
    repo.commit();
}

#[test]
fn a_transfer_that_breaks_begins_again_and_gives_the_same_image() {
    let bench = Bench::new();
    let (repo, ..) = repository(bench.directory.path());
    noise(&repo);
    let directory = build(&bench, repo.work().to_str().unwrap(), COPY_ALL, &[], &[]);
    let server = GitServer::start(bench.directory.path(), None);
    let keys = bench.directory.path().join("keys");
    std::fs::create_dir(&keys).unwrap();
    let ssh = Sshd::start(&keys);
    let again = |log: &str| log.matches("a git transfer can't be resumed, so it begins again").count();
    // In the middle of the pack, three times.
    let cut = Cut::start(server.port(), 3, 300_000);
    let built = build(&bench, &format!("http://127.0.0.1:{}/r.git", cut.port()), COPY_ALL, &[], &[]);
    assert_eq!(built.succeeded().digest(), directory.succeeded().digest());
    assert_eq!((cut.cut(), again(&built.log())), (3, 3), "{}", built.log());
    let cut = Cut::start(ssh.port, 3, 300_000);
    let home = ssh.home_for("user", cut.port());
    let user = String::from_utf8(Command::new("id").arg("-un").output().unwrap().stdout).unwrap();
    let url = format!("ssh://{}@127.0.0.1:{}{}", user.trim(), cut.port(), repo.path().display());
    let built = build(&bench, &url, COPY_ALL, &[], &[("HOME", home.to_str().unwrap())]);
    assert_eq!(built.succeeded().digest(), directory.digest());
    assert_eq!((cut.cut(), again(&built.log())), (3, 3), "{}", built.log());
    // ADD goes the same way.
    let cut = Cut::start(server.port(), 1, 300_000);
    let line = format!("FROM scratch\nADD http://127.0.0.1:{}/r.git /x\n", cut.port());
    let built = build(&bench, bench.context().to_str().unwrap(), &line, &[], &[]);
    assert!(built.succeeded().files().contains(&"/x/f 0644 0:0 \"two\\n\"".to_owned()));
    assert_eq!((cut.cut(), again(&built.log())), (1, 1), "{}", built.log());
}

/// How many bytes; `make test-all` moves 2 GB.
#[expect(clippy::disallowed_methods, reason = "a test program reads its own environment")]
fn large() -> usize {
    std::env::var("KILN_CONTEXT_BYTES")
        .map_or(32 << 20, |text| text.parse().expect("it is a number of bytes"))
}

/// Memory that is a process's own, in kB: what is mapped from a file can be given back any time.
fn own_memory(process: u32) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"))?;
    line.trim().trim_end_matches(" kB").parse().ok()
}

#[test]
fn a_large_repository_takes_less_than_64_megabytes_of_memory() {
    const FILE: usize = 4 << 20;
    let bench = Bench::new();
    let repo = Repo::new(bench.directory.path(), "r");
    let mut noise = std::fs::File::open("/dev/urandom").unwrap();
    for number in 0..large() / FILE {
        let mut bytes = vec![0; FILE];
        std::io::Read::read_exact(&mut noise, &mut bytes).unwrap();
        std::fs::write(repo.work().join(format!("f{number}")), bytes).unwrap();
    }
    // git would look for differences between the files, for minutes.
    for (key, value) in [("core.compression", "0"), ("core.bigFileThreshold", "1m")] {
        repo.git(&["config", key, value]);
        repo.bare(&["config", key, value]);
    }
    repo.commit();
    std::fs::remove_dir_all(repo.work()).unwrap();
    let server = GitServer::start(bench.directory.path(), None);
    let file = bench.directory.path().join("Dockerfile");
    std::fs::write(&file, "FROM scratch\nLABEL a=b\n").unwrap();
    let mut child = Command::new(kiln())
        .args(["executor", "--no-push", "--context", &server.url("r"), "--dockerfile"])
        .arg(&file)
        .arg("--scratch-dir")
        .arg(bench.directory.path().join("scratch"))
        .env("HOME", bench.directory.path())
        .spawn()
        .unwrap();
    let mut most = 0;
    let status = loop {
        most = own_memory(child.id()).unwrap_or(0).max(most);
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
    };
    assert!(status.success());
    println!("{} bytes of git: {most} kB", large());
    assert!(most > 0 && most < 64 << 10, "it took {most} kB");
}

#[test]
fn a_server_that_always_breaks_off_is_given_up_with_the_reason() {
    let bench = Bench::new();
    let (repo, ..) = repository(bench.directory.path());
    noise(&repo);
    let server = GitServer::start(bench.directory.path(), None);
    let cut = Cut::start(server.port(), 100, 300_000);
    let built = build(&bench, &format!("http://127.0.0.1:{}/r.git", cut.port()), COPY_ALL, &[], &[]);
    assert_eq!(built.output.status.code(), Some(1), "{}", built.log());
    assert!(built.log().contains("given up after 5 more attempts"), "{}", built.log());
    assert_eq!(cut.cut(), 6);
}

#[test]
fn a_repository_that_is_no_repository_is_said_to_be_none() {
    let bench = Bench::new();
    std::fs::create_dir(bench.directory.path().join("empty.git")).unwrap();
    let server = GitServer::start(bench.directory.path(), None);
    let built = build(&bench, &server.url("empty"), COPY_ALL, &[], &[]);
    assert_eq!(built.output.status.code(), Some(1), "{}", built.log());
    assert!(built.log().contains("no such repository"), "{}", built.log());
    // What answers, and isn't git.
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let web = runtime.block_on(kiln_testkit::StandIn::start());
    web.answer("GET", "/r.git/info/refs", 200, "<html>hello</html>");
    let built = build(&bench, &format!("{}/r.git", web.url()), COPY_ALL, &[], &[]);
    assert_eq!(built.output.status.code(), Some(1), "{}", built.log());
    assert!(built.log().contains("/r.git"), "{}", built.log());
    assert_eq!(web.asked().len(), 1, "an answer that makes no sense is no broken connection");
}

#[test]
fn git_options_are_for_named_contexts_too() {
    let bench = Bench::new();
    let _repo = repository(bench.directory.path());
    let server = GitServer::start(bench.directory.path(), None);
    let (named, context) = (format!("src={}", server.url("r")), bench.context());
    let copy = "FROM scratch\nCOPY --from=src f /\n";
    let flags = ["--build-context", &named, "--git", "branch=old"];
    let built = build(&bench, context.to_str().unwrap(), copy, &flags, &[]);
    assert!(built.succeeded().files().contains(&"/f 0644 0:0 \"one\\n\"".to_owned()));
    assert!(!built.log().contains("--git is for git contexts"), "{}", built.log());
    let none = build(&bench, context.to_str().unwrap(), "FROM scratch\nLABEL a=b\n", &flags[2..], &[]);
    assert!(none.succeeded().log().contains("--git is for git contexts"), "{}", none.log());
}

#[test]
fn a_git_context_keeps_its_history_folder_and_is_a_repository() {
    let bench = Bench::new();
    let (_repo, _, second) = repository(bench.directory.path());
    let server = GitServer::start(bench.directory.path(), None);
    let url = server.url("r");
    let dockerfile = "FROM scratch\nCOPY . /src/\n";
    let built = build(&bench, &url.replace("http://", "http://s3cret@"), dockerfile, &[], &[]);
    assert!(!built.succeeded().log().contains("s3cret"), "{}", built.log());
    let files = built.files();
    assert!(!files.iter().any(|line| line.contains("s3cret")), "no token in the image");
    let into = bench.directory.path().join("unpacked");
    unpack(&built, &into);
    let git = |words: &[&str]| {
        let output = Command::new("git")
            .args(["-c", "safe.directory=*", "-C"])
            .arg(into.join("src"))
            .args(words)
            .output()
            .unwrap();
        assert!(output.status.success(), "git {words:?}: {}", text(&output));
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    };
    assert_eq!(git(&["rev-parse", "HEAD"]), second);
    assert_eq!(git(&["rev-parse", "--abbrev-ref", "HEAD"]), "main");
    assert_eq!(git(&["status", "--porcelain"]), "");
    assert_eq!(git(&["rev-list", "--count", "HEAD"]), "1", "shallow by default");
    assert_eq!(git(&["remote", "get-url", "origin"]), url);
    git(&["fsck"]);
    let whole = build(&bench, &url, dockerfile, &["--git", "depth=0", "--git", "single-branch=false"], &[]);
    std::fs::remove_dir_all(&into).unwrap();
    unpack(whole.succeeded(), &into);
    assert_eq!(git(&["rev-list", "--count", "HEAD"]), "2");
    assert!(git(&["branch", "-r"]).contains("origin/old"));
}

/// Unpacks the last layer of an image.
fn unpack(built: &Built, into: &Path) {
    std::fs::create_dir_all(into).unwrap();
    let manifest = built.manifest();
    let digest =
        manifest["layers"].as_array().unwrap().last().unwrap()["digest"].as_str().unwrap().to_owned();
    let blob = built.layout.join("blobs/sha256").join(digest.trim_start_matches("sha256:"));
    let status = Command::new("tar").arg("-xzf").arg(blob).arg("-C").arg(into).status().unwrap();
    assert!(status.success());
}

#[test]
fn a_folder_of_the_repository_can_be_the_root() {
    let bench = Bench::new();
    let _repo = repository(bench.directory.path());
    let server = GitServer::start(bench.directory.path(), None);
    let url = server.url("r");
    let copy = "FROM scratch\nCOPY . /x/\n";
    for (context, flags) in [(format!("{url}#:d"), vec![]), (url.clone(), vec!["--context-sub-path", "d"])] {
        let files = build(&bench, &context, copy, &flags, &[]).succeeded().files();
        assert!(files.iter().any(|line| line.starts_with("/x/run.sh")), "{files:?}");
        assert!(!files.iter().any(|line| line.contains(".git")), "{files:?}");
    }
    let built = build(&bench, &format!("{url}#main:nope"), copy, &[], &[]);
    assert!(built.log().contains("no folder nope"), "{}", built.log());
}

#[test]
fn submodules_are_fetched_when_asked_for_with_relative_addresses() {
    let bench = Bench::new();
    let root = bench.directory.path();
    let inner = Repo::new(root, "inner");
    inner.file("deep", "inner\n").commit();
    let sub = Repo::new(root, "sub");
    sub.git(&["submodule", "--quiet", "add", "../inner.git", "nested"]);
    sub.file("s", "sub\n").commit();
    let repo = Repo::new(root, "r");
    repo.git(&["submodule", "--quiet", "add", "../sub.git", "m"]);
    repo.file("f", "top\n").commit();
    // A later commit of the submodule isn't the one that is named.
    sub.file("s", "later\n").commit();
    let server = GitServer::start(root, None);
    let dockerfile = "FROM scratch\nCOPY . /x/\n";
    let built = build(&bench, &server.url("r"), dockerfile, &[], &[]);
    assert!(built.succeeded().log().contains("has submodules, which were not fetched"), "{}", built.log());
    let built = build(&bench, &server.url("r"), dockerfile, &["--git", "recurse-submodules=true"], &[]);
    let files = built.succeeded().files();
    assert!(files.contains(&"/x/m/s 0644 0:0 \"sub\\n\"".to_owned()), "{files:?}");
    assert!(files.contains(&"/x/m/nested/deep 0644 0:0 \"inner\\n\"".to_owned()), "{files:?}");
    let into = root.join("unpacked");
    unpack(&built, &into);
    let output = Command::new("git")
        .args(["-c", "safe.directory=*", "submodule", "status", "--recursive"])
        .current_dir(into.join("x"))
        .env("GIT_CONFIG_COUNT", "1")
        .env("GIT_CONFIG_KEY_0", "safe.directory")
        .env("GIT_CONFIG_VALUE_0", "*")
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", text(&output));
}

#[test]
fn logins_come_from_variables_and_go_to_their_server_only() {
    let bench = Bench::new();
    let _repo = repository(bench.directory.path());
    let server = GitServer::start(bench.directory.path(), Some("t0ken:"));
    let url = server.url("r");
    let built = build(&bench, &url, COPY_ALL, &[], &[("GIT_TOKEN", "t0ken")]);
    built.succeeded();
    build(&bench, &url.replace("http://", "http://t0ken@"), COPY_ALL, &[], &[]).succeeded();
    build(&bench, &url, COPY_ALL, &[], &[("GIT_USERNAME", "t0ken"), ("GIT_PASSWORD", "")]).succeeded();
    let refused = build(&bench, &url, COPY_ALL, &[], &[("GIT_TOKEN", "wr0ng")]);
    assert_eq!(refused.output.status.code(), Some(1));
    assert!(
        refused.log().contains("401") && refused.log().contains("refuses the login"),
        "{}",
        refused.log()
    );
    assert!(!refused.log().contains("wr0ng"), "{}", refused.log());
    let nobody = build(&bench, &url, COPY_ALL, &[], &[]);
    assert!(nobody.log().contains("it wants a login"), "{}", nobody.log());
    let missing = build(&bench, &server.url("nope"), COPY_ALL, &[], &[("GIT_TOKEN", "t0ken")]);
    assert!(missing.log().contains("no such repository"), "{}", missing.log());
    // A Dockerfile's address is somebody else's: it doesn't get the token.
    let before = server.logins().len();
    let dockerfile = format!("FROM scratch\nADD {url} /\n");
    let add = build(&bench, bench.context().to_str().unwrap(), &dockerfile, &[], &[("GIT_TOKEN", "t0ken")]);
    assert_eq!(add.output.status.code(), Some(1));
    assert!(server.logins()[before..].iter().all(String::is_empty));
    let header = base64_of("t0ken:");
    let secret = ("GIT_AUTH_HEADER", format!("Basic {header}"));
    let flags = ["--secret", "id=GIT_AUTH_HEADER,env=GIT_AUTH_HEADER"];
    let context = bench.context();
    build(&bench, context.to_str().unwrap(), &dockerfile, &flags, &[(secret.0, &secret.1)]).succeeded();
}

fn base64_of(text: &str) -> String {
    let output = Command::new("sh").args(["-c", &format!("printf %s '{text}' | base64")]).output().unwrap();
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

#[test]
fn add_takes_repositories_as_buildkit_does() {
    let bench = Bench::new();
    let (repo, first, second) = repository(bench.directory.path());
    let server = GitServer::start(bench.directory.path(), None);
    let url = server.url("r");
    let context = bench.context();
    let add = |line: &str, flags: &[&str]| {
        build(&bench, context.to_str().unwrap(), &format!("FROM scratch\n{line}\n"), flags, &[])
    };
    let built = add(&format!("ADD {url} /x"), &[]);
    let files = built.succeeded().files();
    assert!(files.contains(&"/x/f 0644 0:0 \"two\\n\"".to_owned()), "{files:?}");
    assert!(!files.iter().any(|line| line.contains(".git")), "{files:?}");
    let files = add(&format!("ADD --keep-git-dir=true {url}#v1 /x"), &[]).succeeded().files();
    // As BuildKit leaves it: HEAD is the commit, and few objects are files of their own.
    assert!(files.contains(&format!("/x/.git/HEAD 0644 0:0 \"{first}\\n\"")), "{files:?}");
    let object = format!("/x/.git/objects/{}/{} 0444", &first[..2], &first[2..]);
    assert!(files.iter().any(|line| line.starts_with(&object)), "{files:?}");
    assert!(!files.iter().any(|line| line.contains(".pack")), "{files:?}");
    assert!(files.contains(&"/x/f 0644 0:0 \"one\\n\"".to_owned()), "{files:?}");
    let files = add(&format!("ADD --chown=7:8 {url}?ref=old&subdir=d /x/"), &[]).succeeded().files();
    assert!(files.iter().any(|line| line.starts_with("/x/run.sh 0755 7:8")), "{files:?}");
    add(&format!("ADD --checksum={} {url}#v1 /x", &first[..12]), &[]).succeeded();
    let wrong = add(&format!("ADD --checksum={second} {url}#v1 /x"), &[]);
    assert!(wrong.log().contains(&first), "{}", wrong.log());
    // The key is the commit: a branch that moves is no hit, one that doesn't is.
    let cache = format!("oci:{}", bench.directory.path().join("cache").display());
    let cached = ["--cache", "--cache-copy-layers", "--cache-repo", cache.as_str()];
    let line = format!("ADD {url}#main /x");
    assert!(!add(&line, &cached).succeeded().log().contains("caching version of cmd: ADD"));
    assert!(add(&line, &cached).succeeded().log().contains("caching version of cmd: ADD"));
    repo.file("f", "three\n").commit();
    let moved = add(&line, &cached);
    assert!(!moved.succeeded().log().contains("caching version of cmd: ADD"), "{}", moved.log());
    assert!(moved.files().contains(&"/x/f 0644 0:0 \"three\\n\"".to_owned()));
}

#[test]
fn ssh_wants_a_key_and_a_known_server() {
    let bench = Bench::new();
    let (repo, ..) = repository(bench.directory.path());
    let keys = bench.directory.path().join("keys");
    std::fs::create_dir(&keys).unwrap();
    let server = Sshd::start(&keys);
    let user = String::from_utf8(Command::new("id").arg("-un").output().unwrap().stdout).unwrap();
    let url = format!("ssh://{}@127.0.0.1:{}{}", user.trim(), server.port, repo.path().display());
    let at = |home: &Path| {
        build(&bench, &url, COPY_ALL, &[], &[("HOME", home.to_str().unwrap()), ("PATH", "/nowhere")])
    };
    let built = at(&server.home("user", true));
    assert!(built.succeeded().files().contains(&"/x/f 0644 0:0 \"two\\n\"".to_owned()));
    let stranger = at(&server.home("stranger", true));
    assert!(stranger.log().contains("with none of these keys"), "{}", stranger.log());
    let unknown = at(&server.home("user", false));
    assert!(unknown.log().contains("which is not the one in known_hosts"), "{}", unknown.log());
    let nowhere = bench.directory.path().join("empty");
    std::fs::create_dir(&nowhere).unwrap();
    let nothing = at(&nowhere);
    assert!(nothing.log().contains("mount a known_hosts file"), "{}", nothing.log());
    let missing = build(
        &bench,
        &url.replace("r.git", "nope.git"),
        COPY_ALL,
        &[],
        &[("HOME", server.home("user", true).to_str().unwrap())],
    );
    assert!(missing.log().contains("the server says"), "{}", missing.log());
}

#[test]
fn pointers_of_git_lfs_are_reported() {
    let bench = Bench::new();
    let repo = Repo::new(bench.directory.path(), "r");
    let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n";
    repo.file(".gitattributes", "*.bin filter=lfs diff=lfs merge=lfs -text\n")
        .file("big.bin", pointer)
        .commit();
    let server = GitServer::start(bench.directory.path(), None);
    let built = build(&bench, &server.url("r"), "FROM scratch\nCOPY big.bin /\n", &[], &[]);
    assert!(built.succeeded().log().contains("big.bin are pointers to Git LFS objects"), "{}", built.log());
}

#[test]
fn a_named_context_can_be_a_repository() {
    let bench = Bench::new();
    let _repo = repository(bench.directory.path());
    let server = GitServer::start(bench.directory.path(), None);
    let named = format!("src={}#v1", server.url("r"));
    let context = bench.context();
    let built = build(
        &bench,
        context.to_str().unwrap(),
        "FROM scratch\nCOPY --from=src f /\n",
        &["--build-context", &named],
        &[],
    );
    assert!(built.succeeded().files().contains(&"/f 0644 0:0 \"one\\n\"".to_owned()));
}
