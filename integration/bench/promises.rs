//! Single figures that Kiln keeps to: what a further step costs, and how near extraction and layer writing come to what
//! they are made of.

use crate::measure::{Job, measure};
use crate::setup::Setup;
use crate::workloads::{CLEAN, TIME, dockerfile};

/// A figure, and what it may be at most.
pub(crate) struct Promise {
    pub(crate) name: &'static str,
    pub(crate) what: &'static str,
    pub(crate) unit: &'static str,
    pub(crate) most: f64,
    /// Measures it once.
    pub(crate) figure: fn(&Setup) -> Result<f64, String>,
}

/// All promises, in the order of the table.
pub(crate) fn promises() -> Vec<Promise> {
    let promise = |name, what, unit, most, figure| Promise { name, what, unit, most, figure };
    vec![
        promise("step-overlay", "each further RUN on 60,000 files, rung overlay", "ms", 30.0, |setup| {
            further_step(setup, "overlay")
        }),
        promise("step-directory", "the same, rung directory", "ms", 300.0, |setup| {
            further_step(setup, "directory")
        }),
        promise("step-root", "the same, rung root", "ms", 300.0, |setup| further_step(setup, "root")),
        promise(
            "extract-one",
            "a warmed base on one core, to the slower of `gzip -dc` and `tar x` on it",
            "×",
            1.25,
            |setup| extraction(setup, "taskset -c 0", f64::max),
        ),
        promise(
            "extract-two",
            "the same with two cores, to the faster of `gzip -dc` and `tar x`",
            "×",
            1.0,
            |setup| extraction(setup, "taskset -c 0,1", f64::min),
        ),
        promise(
            "write-gzip",
            "writing the base's files as a layer, to compressing their archive with the same threads, gzip",
            "×",
            1.1,
            |setup| writing(setup, "gzip"),
        ),
        promise("write-zstd", "the same, zstd", "×", 1.1, |setup| writing(setup, "zstd")),
    ]
}

/// How many steps lie between the two that say what time it is.
const STEPS: u32 = 40;

/// The milliseconds that a RUN adds to a build, its shell and its `echo` included: of the time between the first step and
/// the last one, so that what the base image costs is not in it.
fn further_step(setup: &Setup, rung: &'static str) -> Result<f64, String> {
    let name = format!("steps-{rung}");
    let runs: String = (0..STEPS).map(|number| format!("RUN echo {number} > /file\n")).collect();
    let clock = "RUN cat /proc/uptime\n";
    let before = dockerfile(setup, &name, &format!("FROM $HOST/files:1\n{clock}{runs}{clock}"));
    let flags = format!("--isolation={rung} --insecure-registry $HOST --no-push");
    let line = if rung == "root" {
        format!(
            "podman run --rm --security-opt seccomp=$REPOSITORY/integration/pod/runtime-default-like.json \
             -v $WORK/small:/workspace:ro -v $WORK/{name}.dockerfile:/kaniko/Dockerfile:ro kiln-bench \
             /kaniko/executor --context /workspace --dockerfile /kaniko/Dockerfile {flags}; echo 0 0 0 > $TIMED"
        )
    } else {
        format!(
            "{TIME} $KILN executor --context $WORK/small --dockerfile $WORK/{name}.dockerfile \
             --scratch-dir $WORK/scratch {flags}"
        )
    };
    measure(setup, &Job { before: format!("{before}{CLEAN}"), line })?;
    let log = std::fs::read_to_string(setup.work.join("log")).map_err(|error| error.to_string())?;
    let seconds: Vec<f64> = log.lines().filter_map(uptime).collect();
    let [first, last] = seconds[..] else {
        return Err(format!("the steps did not say when they ran: {log}"));
    };
    Ok((last - first) / f64::from(STEPS + 1) * 1000.0)
}

/// The seconds since the machine was started, of a line that ends as `/proc/uptime` reads.
fn uptime(line: &str) -> Option<f64> {
    let mut words = line.rsplit(' ');
    let (idle, up) = (words.next()?, words.next()?);
    let is_number = |word: &str| word.split_once('.').is_some_and(|(_, hundredths)| hundredths.len() == 2);
    if is_number(idle) && is_number(up) { up.parse().ok() } else { None }
}

/// A build that does nothing but extract the base image from a volume, as a ratio to what `pick` picks of decompressing
/// and of unpacking alone. `pin` keeps all of them to some cores.
fn extraction(setup: &Setup, pin: &str, pick: fn(f64, f64) -> f64) -> Result<f64, String> {
    let name = "extract";
    let file = dockerfile(setup, name, "FROM $HOST/base:1\nRUN true");
    let warm = "$KILN warmer --cache-dir $WORK/volume --image $HOST/base:1 --insecure-registry $HOST >/dev/null 2>&1";
    let kiln = Job {
        before: format!("{file}{CLEAN}; {warm}"),
        line: format!(
            "{TIME} {pin} $KILN executor --context $WORK/small --dockerfile $WORK/{name}.dockerfile \
             --scratch-dir $WORK/scratch --isolation=overlay --insecure-registry $HOST --cache-dir $WORK/volume --no-push"
        ),
    };
    let gzip = Job {
        before: String::new(),
        line: format!(
            "{TIME} {pin} bash -c 'for blob in $(find base/blobs -size +1M); do gzip -dc $blob > /dev/null; done'"
        ),
    };
    let tar = Job {
        before: "rm -rf scratch limit; mkdir limit".to_owned(),
        line: format!(
            "{TIME} {pin} bash -c 'for n in 0 1 2; do mkdir -p limit/$n; tar -C limit/$n -xf split/$n.tar; done'"
        ),
    };
    let walls = [kiln, gzip, tar].into_iter().map(|job| measure(setup, &job).map(|figures| figures.wall));
    let walls = walls.collect::<Result<Vec<_>, _>>()?;
    Ok(walls[0] / pick(walls[1], walls[2]))
}

/// The ratio that the layer-writing example of `kiln-rootfs` finds: files, and one file that holds their archive.
fn writing(setup: &Setup, compression: &str) -> Result<f64, String> {
    let before = "rm -rf limit; mkdir limit; for n in 0 1 2; do tar -C limit -xf split/$n.tar; done; \
                  tar -C limit --sort=name -cf limit.tar .";
    let line = format!(
        "cd $REPOSITORY; cargo run --locked -q --release -p kiln-rootfs --example layer -- $WORK/limit $WORK/limit.tar \
         {compression} > $WORK/ratio; echo 0 0 0 > $TIMED"
    );
    measure(setup, &Job { before: before.to_owned(), line })?;
    let text = std::fs::read_to_string(setup.work.join("ratio")).map_err(|error| error.to_string())?;
    let last = text.split_whitespace().last().unwrap_or_default();
    last.parse().map_err(|_| format!("the example printed no ratio: {text}"))
}
