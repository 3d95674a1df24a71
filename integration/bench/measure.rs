//! Runs a job and takes its figures: what GNU time says of the whole process tree.

use std::fs::{self, File};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use crate::setup::Setup;

/// Something to measure: shell lines that bring about the state before, and the line that is measured.
#[derive(Clone)]
pub(crate) struct Job {
    /// Not measured.
    pub(crate) before: String,
    /// Measured.
    pub(crate) line: String,
}

/// What a run took.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Figures {
    /// Seconds.
    pub(crate) wall: f64,
    /// Seconds of processor time, in user mode and in the kernel.
    pub(crate) cpu: f64,
    /// The largest process, in MB.
    pub(crate) memory: f64,
}

impl Figures {
    /// The middle of each figure. `None` of no runs.
    pub(crate) fn median(runs: Vec<Self>) -> Option<Self> {
        let middle = |figure: fn(&Self) -> f64| middle(runs.iter().map(figure).collect());
        Some(Self {
            wall: middle(|run| run.wall)?,
            cpu: middle(|run| run.cpu)?,
            memory: middle(|run| run.memory)?,
        })
    }
}

/// The middle one of some numbers.
pub(crate) fn middle(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied()
}

/// Runs `job` once.
pub(crate) fn measure(setup: &Setup, job: &Job) -> Result<Figures, String> {
    shell(setup, &job.before)?;
    let (figures, log) = (setup.work.join("figures"), setup.work.join("log"));
    // A job in a container writes the figures of what ran inside.
    let _ = fs::remove_file(&figures);
    let output =
        File::create(&log).map_err(|error| format!("could not create {}: {error}", log.display()))?;
    let errors = output.try_clone().map_err(|error| error.to_string())?;
    let timed = setup.work.join("timed");
    let began = Instant::now();
    let status = command(setup, &job.line)
        .env("TIMED", &timed)
        .stdout(output)
        .stderr(errors)
        .status()
        .map_err(|error| format!("could not start a shell: {error}"))?;
    let wall = began.elapsed().as_secs_f64();
    if !status.success() {
        let said = fs::read_to_string(&log).unwrap_or_default();
        return Err(format!("this failed: {}\n{said}", job.line));
    }
    let figures = read(&timed)?;
    Ok(Figures { wall, ..figures })
}

/// What GNU time wrote: the last line that it wrote.
fn read(path: &Path) -> Result<Figures, String> {
    let text =
        fs::read_to_string(path).map_err(|error| format!("no figures in {}: {error}", path.display()))?;
    let line = text.lines().last().unwrap_or_default();
    let numbers: Vec<f64> = line.split_whitespace().filter_map(|word| word.parse().ok()).collect();
    let [user, system, kilobytes] = numbers[..] else {
        return Err(format!("{line:?} is not what time writes"));
    };
    Ok(Figures { wall: 0.0, cpu: user + system, memory: kilobytes / 1000.0 })
}

/// Runs shell lines that are not measured.
pub(crate) fn shell(setup: &Setup, lines: &str) -> Result<(), String> {
    if lines.is_empty() {
        return Ok(());
    }
    let output = command(setup, lines).stdin(Stdio::null()).output();
    let output = output.map_err(|error| format!("could not start a shell: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    Err(format!("this failed: {lines}\n{}{said}", String::from_utf8_lossy(&output.stdout)))
}

fn command(setup: &Setup, lines: &str) -> Command {
    let mut command = Command::new("bash");
    command.args(["-euo", "pipefail", "-c", lines]).current_dir(&setup.work).envs(setup.variables());
    command
}
