//! `make bench`: Kiln beside Debian's buildah, and both beside what the machine can do at best, on the same work in one
//! run. Writes a table with ratios and a chart.

#![expect(clippy::disallowed_methods, reason = "a program that measures reads its own arguments")]

mod far;
mod machine;
mod measure;
mod promises;
mod report;
mod setup;
mod workloads;

use std::path::PathBuf;
use std::process::ExitCode;

use measure::{Figures, measure};
use promises::promises;
use report::Kept;
use setup::Setup;
use workloads::{Workload, limits, workloads};

/// What was asked for.
struct Request {
    kiln: PathBuf,
    /// Images, stores and registries are here. The base image is kept for the next time.
    work: PathBuf,
    /// The table and the chart are written here.
    out: PathBuf,
    runs: usize,
    /// Only workloads whose names begin so.
    only: Vec<String>,
}

const USAGE: &str = "bench --kiln FILE --work DIR --out DIR [--runs N] [--only NAME]...";

fn request() -> Result<Request, String> {
    let (mut kiln, mut work, mut out, mut runs, mut only) = (None, None, None, 3, Vec::new());
    let mut arguments = std::env::args().skip(1);
    while let Some(flag) = arguments.next() {
        let value = arguments.next().ok_or_else(|| format!("{flag} lacks its value; {USAGE}"))?;
        match flag.as_str() {
            "--kiln" => kiln = Some(PathBuf::from(value)),
            "--work" => work = Some(PathBuf::from(value)),
            "--out" => out = Some(PathBuf::from(value)),
            "--runs" => runs = value.parse().map_err(|_| format!("--runs {value} is no number"))?,
            "--only" => only.push(value),
            _ => return Err(format!("{flag} is unknown; {USAGE}")),
        }
    }
    let need = |value: Option<PathBuf>| value.ok_or_else(|| USAGE.to_owned());
    Ok(Request { kiln: need(kiln)?, work: need(work)?, out: need(out)?, runs, only })
}

/// What came of one workload.
pub(crate) struct Outcome {
    workload: Workload,
    kiln: Option<Figures>,
    other: Option<Figures>,
}

fn main() -> ExitCode {
    match request().and_then(|request| run(&request)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn run(request: &Request) -> Result<(), String> {
    let setup = Setup::make(&request.kiln, &request.work)?;
    let wanted = |name: &str| {
        request.only.is_empty() || request.only.iter().any(|only| name.starts_with(only.as_str()))
    };
    let mut limit_figures = Vec::new();
    for limit in limits(&setup).into_iter().filter(|limit| wanted(limit.name)) {
        eprintln!("limit: {}", limit.name);
        let figures =
            (0..request.runs).map(|_| measure(&setup, &limit.job)).collect::<Result<Vec<_>, _>>()?;
        limit_figures.push((limit.name, limit.what, Figures::median(figures)));
    }
    let mut kept = Vec::new();
    for promise in promises().into_iter().filter(|promise| wanted(promise.name)) {
        eprintln!("promise: {}", promise.name);
        let figures = (0..request.runs).map(|_| (promise.figure)(&setup)).collect::<Result<Vec<_>, _>>()?;
        kept.push(Kept { figure: measure::middle(figures), promise });
        report::write(&setup.work, &[], &limit_figures, &kept, request.runs)?;
    }
    // What was not measured now must not vanish from the figures.
    let out = if request.only.is_empty() { &request.out } else { &setup.work };
    let mut results = Vec::new();
    for workload in workloads(&setup).into_iter().filter(|workload| wanted(workload.name)) {
        let (mut kiln, mut other) = (Vec::new(), Vec::new());
        // In turn, so that a machine that slows down does so for both.
        for number in 0..request.runs {
            eprintln!("{}: {} of {}", workload.name, number + 1, request.runs);
            kiln.push(measure(&setup, &workload.kiln)?);
            if let Some(job) = &workload.other {
                other.push(measure(&setup, job)?);
            }
        }
        let (kiln, other) = (Figures::median(kiln), Figures::median(other));
        results.push(Outcome { workload, kiln, other });
        // Each time: whoever ends it early keeps what was measured.
        report::write(&setup.work, &results, &limit_figures, &kept, request.runs)?;
    }
    report::write(out, &results, &limit_figures, &kept, request.runs)?;
    eprintln!("see {}", out.join("performance.md").display());
    Ok(())
}
