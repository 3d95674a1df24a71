//! The work that is measured: for each workload the same Dockerfile, for Kiln and for buildah.

use crate::measure::Job;
use crate::setup::Setup;

/// One row of the table.
pub(crate) struct Workload {
    pub(crate) name: &'static str,
    pub(crate) what: &'static str,
    pub(crate) kiln: Job,
    /// What it is compared with: its name, and the work.
    pub(crate) other: Option<Job>,
    pub(crate) other_name: &'static str,
    /// The ratio of wall times that Kiln is to stay below.
    pub(crate) most: Option<f64>,
    /// The same for Kiln's memory, in MB.
    pub(crate) memory: f64,
}

/// What the machine can do with the same data.
pub(crate) struct Limit {
    pub(crate) name: &'static str,
    pub(crate) what: &'static str,
    pub(crate) job: Job,
}

pub(crate) const TIME: &str = "command time -o $TIMED -f '%U %S %M'";
pub(crate) const CLEAN: &str = "$BUILDAH rmi -a -f >/dev/null 2>&1 || true; rm -rf scratch store volume other; mkdir scratch; \
     find registry -size +1000M -delete";

/// Shell lines that write the Dockerfile `name`.
pub(crate) fn dockerfile(setup: &Setup, name: &str, text: &str) -> String {
    format!("cat > {name}.dockerfile <<'END'\n{}\nEND\n", text.replace("$HOST", &setup.host))
}

/// Kiln's line: a build of `name` with the context `context`.
fn kiln(name: &str, context: &str, flags: &str) -> String {
    format!(
        "{TIME} $KILN executor --context $WORK/{context} --dockerfile $WORK/{name}.dockerfile --scratch-dir $WORK/scratch \
         --isolation=overlay --insecure-registry $HOST --destination $HOST/out/$RANDOM$RANDOM:1 {flags}"
    )
}

/// buildah's: build and push.
fn buildah(name: &str, context: &str, flags: &str) -> String {
    format!(
        "to=$HOST/out/$RANDOM$RANDOM:1; {TIME} bash -c \"$BUILDAH bud -q --layers --tls-verify=false --isolation chroot \
         {flags} -f $WORK/{name}.dockerfile -t $to $WORK/{context} && $BUILDAH push -q --tls-verify=false $to\""
    )
}

/// The same Dockerfile for both, from nothing.
fn cold(
    setup: &Setup,
    name: &'static str,
    what: &'static str,
    text: &str,
    context: &str,
    most: f64,
) -> Workload {
    let before = format!("{}{CLEAN}", dockerfile(setup, name, text));
    Workload {
        name,
        what,
        kiln: Job { before: before.clone(), line: kiln(name, context, "") },
        other: Some(Job { before, line: buildah(name, context, "") }),
        other_name: "buildah",
        most: Some(most),
        memory: 100.0,
    }
}

fn ten_runs() -> String {
    let runs = (0..10)
        .map(|n| format!("RUN echo {n} > /file-{n} && mkdir -p /opt/d{n} && cp /etc/passwd /opt/d{n}/\n"));
    format!("FROM $HOST/base:1\n{}", runs.collect::<String>())
}

const STAGES: &str = "FROM $HOST/base:1 AS one\nRUN echo 'int main(){return 0;}' > /m.c && gcc -O2 -o /one /m.c\n\
     FROM $HOST/base:1 AS two\nRUN python3 -c 'print(sum(range(3000000)))' > /two\n\
     FROM $HOST/base:1\nCOPY --from=one /one /\nCOPY --from=two /two /\nRUN cat /one /two > /three";

const BIG: &str = "FROM $HOST/base:1\n\
     RUN head -c 2400000000 /dev/urandom > /noise && yes text | head -c 100000000 > /text";

const WARM: &str = "$KILN warmer --cache-dir $WORK/volume --image $HOST/base:1 --unpack --insecure-registry $HOST >/dev/null 2>&1";

/// All workloads, in the order of the table.
pub(crate) fn workloads(setup: &Setup) -> Vec<Workload> {
    let many = "FROM $HOST/base:1\nCOPY . /srv\nRUN find /srv -type f | wc -l > /count";
    let mut all = vec![
        cold(
            setup,
            "hello",
            "COPY and RUN on busybox",
            "FROM $HOST/small:1\nCOPY hello /\nRUN cat /hello > /out",
            "small",
            0.5,
        ),
        cold(setup, "ten-runs", "ten small RUNs on the 1 GB image, cold", &ten_runs(), "small", 0.45),
        cold(setup, "many-files", "COPY of 20,000 files, 400 MB, and a RUN over them", many, "many", 0.3),
        cold(
            setup,
            "copy-one",
            "COPY of one file on the 1 GB image",
            "FROM $HOST/base:1\nCOPY hello /app/hello",
            "small",
            0.1,
        ),
        cold(setup, "stages", "three stages, two of them side by side", STAGES, "small", 0.5),
        cold(setup, "big-layer", "a RUN that writes 2.5 GB, most of it incompressible", BIG, "small", 0.4),
    ];
    all.extend(warmed(setup));
    all.push(on_root(setup));
    all.extend(cached(setup));
    all.extend(warmer());
    all.extend(far(setup));
    all
}

/// What goes from and to a registry that is far away.
fn far(setup: &Setup) -> Vec<Workload> {
    let rows = [
        (
            "far",
            "COPY and RUN on busybox, from and to a registry 40 ms away",
            "FROM $HOST/small:1\nCOPY hello /\nRUN cat /hello > /out",
            "small",
        ),
        (
            "far-layer",
            "the same with 60 MB that don't compress",
            "FROM $HOST/small:1\nCOPY noise /\nRUN cat /noise > /out",
            "noise",
        ),
    ];
    let away =
        |line: String| line.replace("$HOST", "$FAR").replace("--insecure-registry $FAR", "--skip-tls-verify");
    let row = |(name, what, text, context): (&'static str, _, &str, &str)| {
        let file = dockerfile(setup, name, &text.replace("$HOST", setup.far()));
        let before = format!("{file}{CLEAN}");
        Workload {
            name,
            what,
            kiln: Job { before: before.clone(), line: away(kiln(name, context, "")) },
            other: Some(Job { before, line: away(buildah(name, context, "")) }),
            other_name: "buildah",
            most: None,
            memory: 100.0,
        }
    };
    rows.into_iter().map(row).collect()
}

/// Kiln with a warmed volume beside buildah, which has none.
fn warmed(setup: &Setup) -> Option<Workload> {
    let (name, text) = ("ten-runs-warmed", ten_runs());
    let before = format!("{}{CLEAN}", dockerfile(setup, name, &text));
    Some(Workload {
        name,
        what: "ten small RUNs, from a volume warmed with --unpack",
        kiln: Job {
            before: format!("{before}; {WARM}"),
            line: kiln(name, "small", "--cache-dir $WORK/volume"),
        },
        other: Some(Job { before, line: buildah(name, "small", "") }),
        other_name: "buildah, cold",
        most: Some(0.1),
        memory: 100.0,
    })
}

/// Rung root, measured by busybox, which takes the kernel's kilobytes for pages: in a container with a pod's capabilities, where the seccomp profile refuses namespaces and mounts.
fn on_root(setup: &Setup) -> Workload {
    let (name, text) = ("ten-runs-root", ten_runs());
    let before = format!("{}{CLEAN}; rm -rf result; mkdir result", dockerfile(setup, name, &text));
    let line = "podman run --rm --security-opt seccomp=$REPOSITORY/integration/pod/runtime-default-like.json \
         -v $WORK/result:/result -v $WORK/small:/workspace:ro -v $WORK/ten-runs-root.dockerfile:/kaniko/Dockerfile:ro kiln-bench \
         /kaniko/busybox time -v -o /result/time /kaniko/executor --context /workspace --dockerfile /kaniko/Dockerfile \
         --isolation=root --insecure-registry $HOST --destination $HOST/out/$RANDOM$RANDOM:1; \
         awk -F': ' -v page=$(getconf PAGESIZE) '/User time/{u=$2} /System time/{s=$2} /Maximum resident/{m=$2} \
         END{print u, s, m * 1024 / page}' result/time > $TIMED";
    Workload {
        name,
        what: "ten small RUNs, cold, on rung root: mounts refused",
        kiln: Job { before: before.clone(), line: line.to_owned() },
        other: Some(Job { before, line: buildah(name, "small", "") }),
        other_name: "buildah, on the host",
        most: Some(0.8),
        memory: 100.0,
    }
}

/// Builds of which a cache repository holds all steps, or all but the last.
fn cached(setup: &Setup) -> Vec<Workload> {
    let cache = "--cache --cache-copy-layers --cache-repo $HOST/cache/kiln";
    let theirs = "--cache-from $HOST/cache/buildah --cache-to $HOST/cache/buildah";
    let fill = |name: &str, context: &str| {
        let (ours, others) = (kiln(name, context, cache), buildah(name, context, theirs));
        (
            format!("TIMED=/dev/null; {ours} >/dev/null 2>&1"),
            format!("TIMED=/dev/null; {others} >/dev/null 2>&1"),
        )
    };
    let name = "cached";
    let (ours, others) = fill(name, "small");
    let file = dockerfile(setup, name, &ten_runs());
    let mut all = vec![Workload {
        name,
        what: "ten small RUNs, all cached remotely",
        kiln: Job { before: format!("{file}{CLEAN}; {ours}; {CLEAN}"), line: kiln(name, "small", cache) },
        other: Some(Job {
            before: format!("{file}{CLEAN}; {others}; {CLEAN}"),
            line: buildah(name, "small", theirs),
        }),
        other_name: "buildah",
        most: Some(0.04),
        memory: 64.0,
    }];
    let text = format!("{}COPY hello /late\nRUN cat /late > /later", ten_runs());
    let (before, after) = ("rm -rf late; cp -r small late", "echo $RANDOM$RANDOM > late/hello");
    for (name, what, warm, flags, most) in [
        ("late", "one late COPY changed, then a RUN; the rest cached remotely", "true", "", 0.4),
        ("late-warmed", "the same, from a warmed volume", WARM, "--cache-dir $WORK/volume", 0.1),
    ] {
        let file = dockerfile(setup, name, &text);
        let (ours, others) = fill(name, "late");
        let start = format!("{file}{CLEAN}; {before}");
        all.push(Workload {
            name,
            what,
            kiln: Job {
                before: format!("{start}; {ours}; {CLEAN}; {after}; {warm}"),
                line: kiln(name, "late", &format!("{cache} {flags}")),
            },
            other: Some(Job {
                before: format!("{start}; {others}; {CLEAN}; {after}"),
                line: buildah(name, "late", theirs),
            }),
            other_name: "buildah",
            most: Some(most),
            memory: 100.0,
        });
    }
    all
}

/// The warmer, beside what copies an image without keeping it safe.
fn warmer() -> Vec<Workload> {
    let line = format!(
        "{TIME} $KILN warmer --cache-dir $WORK/volume --image $HOST/base:1 --insecure-registry $HOST"
    );
    let copy =
        format!("{TIME} skopeo copy -q --src-tls-verify=false docker://$HOST/base:1 oci:$WORK/other:1");
    let job = |before: String, line: &str| Job { before, line: line.to_owned() };
    vec![
        Workload {
            name: "warmer",
            what: "warming an empty volume with the image, verified and synced",
            kiln: job(CLEAN.to_owned(), &line),
            other: Some(job(CLEAN.to_owned(), &copy)),
            other_name: "skopeo copy, not synced",
            most: None,
            memory: 64.0,
        },
        Workload {
            name: "warmer-again",
            what: "warming it again",
            kiln: job(format!("{CLEAN}; TIMED=/dev/null; {line} >/dev/null 2>&1"), &line),
            other: Some(job(format!("{CLEAN}; TIMED=/dev/null; {copy}"), &copy)),
            other_name: "skopeo copy",
            most: None,
            memory: 64.0,
        },
    ]
}

/// What the machine can do with the base image's layers, one core each where nothing else is said.
pub(crate) fn limits(_: &Setup) -> Vec<Limit> {
    let limit = |name, what, before: &str, line: String| Limit {
        name,
        what,
        job: Job { before: before.to_owned(), line },
    };
    let none = "rm -rf limit; mkdir limit";
    vec![
        limit(
            "limit-gzip",
            "gzip -dc of the layers",
            none,
            format!(
                "{TIME} bash -c 'for blob in $(find base/blobs -size +1M); do gzip -dc $blob > /dev/null; done'"
            ),
        ),
        limit(
            "limit-sha256",
            "sha256sum of the uncompressed layers",
            none,
            format!("{TIME} sha256sum split/0.tar split/1.tar split/2.tar"),
        ),
        limit(
            "limit-tar",
            "tar x of the uncompressed layers",
            none,
            format!(
                "{TIME} bash -c 'for n in 0 1 2; do mkdir -p limit/$n; tar -C limit/$n -xf split/$n.tar; done'"
            ),
        ),
        limit(
            "limit-cp",
            "cp -a of the extracted layers",
            "rm -rf limit limit-copy; mkdir limit; for n in 0 1 2; do mkdir -p limit/$n; tar -C limit/$n -xf split/$n.tar; done",
            format!("{TIME} cp -a limit limit-copy"),
        ),
    ]
}
