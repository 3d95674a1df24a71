//! Whole builds by the real binary, each compared with the files and the config that the reference asks for.

use kiln_integration::{Bench, Built};

fn files(dockerfile: &str, prepare: impl Fn(&Bench)) -> Vec<String> {
    let bench = Bench::new();
    prepare(&bench);
    bench.build(dockerfile, &[]).succeeded().files()
}

fn config(dockerfile: &str) -> serde_json::Value {
    Bench::new().build(dockerfile, &[]).succeeded().config()
}

fn fails(dockerfile: &str, code: i32, words: &[&str]) {
    let bench = Bench::new();
    let built = bench.build(dockerfile, &[]);
    assert_eq!(built.output.status.code(), Some(code), "{}", built.log());
    for word in words {
        assert!(built.log().contains(word), "{word:?} is missing in {}", built.log());
    }
    let left: Vec<_> = std::fs::read_dir(bench.directory.path().join("scratch"))
        .map(|entries| entries.flatten().map(|entry| entry.file_name()).collect())
        .unwrap_or_default();
    assert!(left.is_empty(), "scratch is left behind: {left:?}");
}

#[test]
fn a_multi_stage_build_takes_what_the_first_stage_made() {
    let files = files(
        "FROM base AS build\nARG WHO=world\nWORKDIR /src\nRUN echo \"hello $WHO\" > greeting\nFROM base\nCOPY --from=build /src/greeting /\n",
        |_| {},
    );
    assert_eq!(files, ["/greeting 0644 0:0 \"hello world\\n\""]);
}

#[test]
fn run_leaves_only_what_it_changed() {
    let bench = Bench::new();
    let built = bench.build(
        "FROM base\nRUN cat /etc/passwd > /dev/null; touch /etc/passwd.new; rm /etc/passwd.new; echo x >> /etc/group; mkdir /a; chmod 700 /a; ln -s a /b\n",
        &[],
    );
    assert_eq!(built.succeeded().last_layer(), ["a/", "b", "etc/", "etc/group"]);
}

#[test]
fn what_is_deleted_is_gone() {
    let files = files("FROM base\nRUN mkdir -p /d/e && touch /d/e/f /d/g\nRUN rm -r /d/e\n", |_| {});
    assert_eq!(files, ["/d 0755 0:0 dir", "/d/g 0644 0:0 \"\""]);
}

#[test]
fn owners_and_modes_are_as_the_flags_say() {
    let files = files(
        "FROM base\nCOPY --chown=ana f /new/dir/f\nCOPY --chown=5:6 --chmod=600 f /g\nCOPY --chmod=u=rwX,go=rX d /d/\nCOPY f /home/ana/\n",
        |bench| _ = bench.file("f", "x").file("d/sub/h", "y"),
    );
    assert_eq!(
        files,
        [
            "/d 0755 0:0 dir",
            "/d/sub 0755 0:0 dir",
            "/d/sub/h 0644 0:0 \"y\"",
            "/g 0600 5:6 \"x\"",
            "/home 0755 0:0 dir",
            "/home/ana 0755 0:0 dir",
            "/home/ana/f 0644 0:0 \"x\"",
            "/new 0755 1000:1001 dir",
            "/new/dir 0755 1000:1001 dir",
            "/new/dir/f 0644 1000:1001 \"x\"",
        ]
    );
}

#[test]
fn ignored_files_are_not_copied_from_the_context_but_from_stages() {
    let files = files(
        "FROM base AS a\nRUN echo s > /x.log\nFROM base\nCOPY . /c/\nCOPY --from=a /x.log /\n",
        |bench| _ = bench.file(".dockerignore", "*\n!keep\n!base.tar").file("keep", "k").file("y.log", "l"),
    );
    // The base itself can't be ignored here: it is what the first stage adds.
    assert!(files.iter().any(|line| line.starts_with("/c/keep ")), "{files:?}");
    assert!(files.iter().any(|line| line.starts_with("/x.log ")), "{files:?}");
    assert!(!files.iter().any(|line| line.contains("y.log")), "{files:?}");
}

#[test]
fn heredocs_are_scripts_and_files() {
    let files = files(
        "FROM base\nARG A=1\nRUN <<EOF\necho one > /a\necho two >> /a\nEOF\nCOPY <<X <<\"Y\" /d/\nA is $A\nX\nA is $A\nY\nRUN <<S\n#!/bin/sh\necho $0 > /s\nS\n",
        |_| {},
    );
    assert_eq!(
        files,
        [
            "/a 0644 0:0 \"one\\ntwo\\n\"",
            "/d 0755 0:0 dir",
            "/d/X 0644 0:0 \"A is 1\\n\"",
            "/d/Y 0644 0:0 \"A is $A\\n\"",
            "/s 0644 0:0 \"/dev/pipes/S\\n\"",
        ]
    );
}

#[test]
fn mounts_are_seen_by_the_step_and_are_in_no_layer() {
    let bench = Bench::new();
    bench.file("f", "from the context");
    let secret = bench.directory.path().join("secret");
    std::fs::write(&secret, "hunter2").unwrap();
    let flag = format!("id=s,src={}", secret.display());
    let built = bench.build(
        "FROM base\nRUN --mount=type=bind,source=f,target=/m/f --mount=type=tmpfs,target=/t --mount=type=secret,id=s \
         --mount=type=secret,id=s,env=S --mount=type=cache,target=/cache \
         test \"$(cat /m/f)\" = 'from the context' && touch /t/x /cache/y && test \"$(cat /run/secrets/s)$S\" = \"$(echo aHVudGVyMmh1bnRlcjI= | base64 -d)\" && wc -c < /run/secrets/s > /length\n",
        &["--secret", &flag],
    );
    assert_eq!(built.succeeded().last_layer(), ["length"]);
    assert!(!built.log().contains("hunter2"), "{}", built.log());
}

#[test]
fn a_step_runs_as_user_in_workdir_with_home() {
    let bench = Bench::new();
    let built = bench.build("FROM base\nWORKDIR /w\nUSER ana\nRUN id; pwd; echo $HOME; env\n", &[]);
    let log = built.succeeded().log();
    for word in ["uid=1000(ana) gid=1001(ana)", "1001(ana)", "33(web)", "/w\n", "/home/ana"] {
        assert!(log.contains(word), "{word}: {log}");
    }
    assert!(!log.contains("CARGO"), "the builder's environment leaks: {log}");
}

#[test]
fn metadata_folds_into_the_config() {
    let config = config(
        "FROM base\nENV A=1\nLABEL l=v\nEXPOSE 80\nVOLUME /v\nUSER ana\nWORKDIR /w\nCMD [\"c\"]\nENTRYPOINT [\"e\"]\nSTOPSIGNAL SIGINT\nHEALTHCHECK CMD true\nONBUILD RUN x\n",
    );
    let inner = &config["config"];
    assert_eq!(inner["Env"], serde_json::json!(["PATH=/bin", "A=1"]));
    assert_eq!(inner["Labels"]["l"], "v");
    assert_eq!(inner["ExposedPorts"], serde_json::json!({"80/tcp": {}}));
    assert_eq!(inner["Volumes"], serde_json::json!({"/v": {}}));
    assert_eq!(inner["User"], "ana");
    assert_eq!(inner["WorkingDir"], "/w");
    assert_eq!(inner["Entrypoint"], serde_json::json!(["e"]));
    assert_eq!(inner["Cmd"], serde_json::json!(["c"]));
    assert_eq!(inner["OnBuild"], serde_json::json!(["RUN x"]));
    let layers = config["rootfs"]["diff_ids"].as_array().unwrap().len();
    let history = config["history"].as_array().unwrap();
    assert_eq!(history.iter().filter(|entry| entry["empty_layer"] != true).count(), layers);
}

#[test]
fn a_daemon_that_a_step_leaves_is_ended_with_it() {
    let bench = Bench::new();
    let before = std::time::Instant::now();
    bench
        .build("FROM base\nRUN nohup sleep 300 > /dev/null 2>&1 & sleep 300 & echo started\n", &[])
        .succeeded();
    assert!(before.elapsed().as_secs() < 60);
}

#[test]
fn a_failed_run_gives_its_own_code_and_its_line() {
    fails(
        "FROM base\nRUN echo last words; sh -c 'exit 7'\n",
        7,
        &["Dockerfile:5", "exit code 7", "last words"],
    );
    fails("FROM base\nRUN kill -9 $$\n", 255, &["signal 9"]);
    fails("FROM base\nRUN [\"/nope\"]\n", 127, &["/nope"]);
}

#[test]
fn what_is_wrong_is_said_with_its_line_and_what_to_do() {
    fails("FROM base\nCOPY nope /\n", 1, &["Dockerfile:5", "nope", "the build context"]);
    fails("FROM base\nCOPPY a b\n", 1, &["COPPY", "COPY"]);
    fails("FROM base AS builder\nFROM base\nCOPY --from=biulder /x /\n", 1, &["builder"]);
    fails("FROM base\nUSER nobody\nRUN true\n", 1, &["nobody", "/etc/passwd"]);
    fails("FROM base\nRUN --security=insecure true\n", 1, &["--security=insecure"]);
}

fn layers(built: &Built) -> usize {
    built.manifest()["layers"].as_array().unwrap().len()
}

#[test]
fn one_snapshot_is_one_layer() {
    let bench = Bench::new();
    let dockerfile = "FROM base\nRUN echo a > /a\nRUN echo b > /b\nMAINTAINER me\n";
    let built = bench.build(dockerfile, &["--single-snapshot"]);
    assert_eq!(layers(built.succeeded()), 2);
    assert_eq!(built.last_layer(), ["a", "b"]);
}

#[test]
fn a_cached_build_gives_the_same_image_and_runs_nothing() {
    let bench = Bench::new();
    bench.file("f", "1");
    let cache = format!("--cache-repo=oci:{}", bench.directory.path().join("cache").display());
    let flags = ["--cache", "--cache-copy-layers", &cache];
    let dockerfile = "FROM base AS a\nCOPY f /f\nRUN echo made > /made\nFROM base\nCOPY --from=a /made /made\nRUN echo last\n";
    let first = bench.build(dockerfile, &flags);
    let again = bench.build(dockerfile, &flags);
    assert_eq!(first.succeeded().digest(), again.succeeded().digest());
    assert!(!again.log().contains("isolation:"), "{}", again.log());
    bench.file("f", "2");
    let changed = bench.build(dockerfile, &flags);
    assert!(
        changed.succeeded().log().contains("No cached layer found for cmd COPY f /f"),
        "{}",
        changed.log()
    );
}

#[test]
fn one_dockerfile_gives_one_digest_on_every_rung() {
    let bench = Bench::new();
    bench.file("f", "content");
    let dockerfile = "FROM base\nCOPY f /d/f\nRUN echo x >> /etc/group && mkdir -p /n/m && ln -s m /n/l && rm /home/ana -r && chmod 711 /root\n\
                      WORKDIR /w\nRUN touch a && ln a b && touch /etc/passwd\n";
    let mut digests = Vec::new();
    for rung in ["overlay", "directory", "chroot"] {
        let built = bench.build(dockerfile, &["--isolation", rung]);
        if !built.output.status.success() && built.log().contains("can't be used here") {
            continue;
        }
        digests.push((rung, built.succeeded().digest()));
    }
    assert!(!digests.is_empty(), "no rung works here");
    assert!(digests.iter().all(|(_, digest)| *digest == digests[0].1), "{digests:?}");
}

#[test]
fn a_build_without_run_unpacks_nothing_and_minds_the_base() {
    let bench = Bench::new();
    bench.file("f", "x");
    let base = bench.build("FROM base\nRUN mkdir -p /real && ln -s real /link && chmod 750 /real\n", &[]);
    let name = format!("app=oci-layout://{}", base.succeeded().layout.display());
    let built = bench.build("FROM app\nCOPY f /link/f\nCOPY f /real/g\n", &["--build-context", &name]);
    assert!(!built.succeeded().log().contains("isolation:"), "{}", built.log());
    let files = built.files();
    assert!(files.contains(&"/real 0750 0:0 dir".to_owned()), "{files:?}");
    assert!(files.contains(&"/real/f 0644 0:0 \"x\"".to_owned()), "{files:?}");
}

#[test]
fn build_checks_warn_and_fail_where_the_file_asks_for_it() {
    let bench = Bench::new();
    let built = bench.build("FROM base\nENV KEY value\n", &[]);
    assert!(built.succeeded().log().contains("LegacyKeyValueFormat"), "{}", built.log());
    let file = bench.directory.path().join("Strict");
    std::fs::write(&file, "# check=error=true\nFROM scratch\nCOPY base.tar /\nENV KEY value\n").unwrap();
    let output = std::process::Command::new(kiln_integration::kiln())
        .args(["executor", "--no-push", "-c"])
        .arg(bench.context())
        .arg("-f")
        .arg(&file)
        .arg("--scratch-dir")
        .arg(bench.directory.path().join("scratch"))
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    let log = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(log.contains("Strict:4"), "{log}");
}

#[test]
fn an_agents_socket_has_the_mode_and_owner_that_the_step_asks_for() {
    let bench = Bench::new();
    let agent = bench.directory.path().join("agent");
    let listener = std::os::unix::net::UnixListener::bind(&agent).unwrap();
    std::thread::spawn(move || listener.incoming().count());
    let built = bench.build(
        "FROM base\nRUN --mount=type=ssh stat -c '%F %a %u:%g' $SSH_AUTH_SOCK > /a\n\
         RUN --mount=type=ssh,id=b,target=/s/b,mode=0666,uid=7,gid=8 --mount=type=ssh stat -c '%F %a %u:%g' $SSH_AUTH_SOCK > /b\n\
         RUN --mount=type=ssh,id=none echo $SSH_AUTH_SOCK > /c\n",
        &["--ssh", &format!("default={}", agent.display()), "--ssh", &format!("b={}", agent.display())],
    );
    assert_eq!(
        built.succeeded().files(),
        [
            "/a 0644 0:0 \"socket 600 0:0\\n\"",
            "/b 0644 0:0 \"socket 666 7:8\\n\"",
            "/c 0644 0:0 \"/run/buildkit/ssh_agent.0\\n\"",
        ]
    );
}

#[test]
fn what_the_base_image_sets_is_no_undefined_variable() {
    let bench = Bench::new();
    let base = bench.build("FROM base\nENV PLACE=/j\n", &[]);
    let context = format!("img=oci-layout://{}", base.succeeded().layout.display());
    let built = bench
        .build("FROM img AS one\nWORKDIR $PLACE\nFROM one\nLABEL a=$NOPE\n", &["--build-context", &context]);
    let log = built.succeeded().log();
    assert_eq!(log.matches("UndefinedVar").count(), 1, "{log}");
    assert!(log.contains("$NOPE"), "{log}");
}
