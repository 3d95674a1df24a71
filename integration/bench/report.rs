//! The table, as Markdown, and the chart, as SVG.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use crate::Outcome;
use crate::machine;
use crate::measure::Figures;
use crate::promises::Promise;

/// The limits: name, what, figures.
pub(crate) type Limits = [(&'static str, &'static str, Option<Figures>)];

/// A promise, and what was measured of it.
pub(crate) struct Kept {
    pub(crate) promise: Promise,
    pub(crate) figure: Option<f64>,
}

/// Writes `performance.md` and `performance.svg` into `out`.
pub(crate) fn write(
    out: &Path,
    results: &[Outcome],
    limits: &Limits,
    promises: &[Kept],
    runs: usize,
) -> Result<(), String> {
    let fail = |error: std::io::Error| format!("could not write to {}: {error}", out.display());
    fs::create_dir_all(out).map_err(fail)?;
    fs::write(out.join("performance.md"), table(results, limits, promises, runs)).map_err(fail)?;
    fs::write(out.join("performance.svg"), chart(results)).map_err(fail)
}

fn ratio(result: &Outcome) -> Option<f64> {
    Some(result.kiln?.wall / result.other?.wall.max(0.001))
}

fn table(results: &[Outcome], limits: &Limits, promises: &[Kept], runs: usize) -> String {
    let mut text = format!(
        "# Performance\n\nMade by `make bench`: {}. Each figure is the median of {runs} run{}; the two tools ran in turn. Only \
         the ratios mean anything on another machine. \"cpu\" is processor time in user mode and in the kernel, of everything \
         that the line started; memory is that of the largest process. The registry is Debian's docker-registry on the same \
         machine and disk; its work is in the wall time of both and in the processor time of neither. Where it is 40 ms \
         away, it speaks TLS and HTTP/2, and each byte is held up for 20 ms on its way there and on its way back.\n\n\
         ![wall time as a share of what it is compared with](performance.svg)\n\n",
        machine::describe(),
        if runs == 1 { "" } else { "s" },
    );
    text.push_str(
        "| workload | Kiln | compared with | wall ratio | at most | cpu ratio | Kiln's memory | theirs |\n\
         |---|---|---|---|---|---|---|---|\n",
    );
    for result in results {
        let (workload, Some(kiln)) = (&result.workload, result.kiln) else { continue };
        let other = result.other.map_or_else(String::new, |other| {
            format!("{}: {:.2} s, cpu {:.2} s", workload.other_name, other.wall, other.cpu)
        });
        let shown = |value: Option<f64>| value.map_or_else(String::new, |value| format!("{value:.2}"));
        let cpu = result.other.map(|other| kiln.cpu / other.cpu.max(0.001));
        let theirs = result.other.map_or_else(String::new, |other| format!("{:.0} MB", other.memory));
        let memory = if kiln.memory > workload.memory { " (too much)" } else { "" };
        _ = writeln!(
            text,
            "| {} | {:.2} s, cpu {:.2} s | {other} | {} | {} | {} | {:.0} MB{memory} | {theirs} |",
            workload.what,
            kiln.wall,
            kiln.cpu,
            shown(ratio(result)),
            shown(workload.most),
            shown(cpu),
            kiln.memory,
        );
    }
    if !promises.is_empty() {
        text.push_str("\nSingle figures, each measured beside what it is compared with:\n\n| figure | measured | at most |\n|---|---|---|\n");
    }
    for Kept { promise, figure } in promises {
        if let Some(figure) = figure {
            let digits = if promise.unit == "ms" { 1 } else { 2 };
            let (unit, most) = (promise.unit, promise.most);
            _ = writeln!(text, "| {} | {figure:.digits$} {unit} | {most} {unit} |", promise.what);
        }
    }
    if !limits.is_empty() {
        text.push_str("\nWhat this machine can do with the same layers (1 GB of files):\n\n| limit | wall | cpu |\n|---|---|---|\n");
    }
    for (_, what, figures) in limits {
        if let Some(figures) = figures {
            _ = writeln!(text, "| {what} | {:.2} s | {:.2} s |", figures.wall, figures.cpu);
        }
    }
    text
}

const ROW: usize = 34;
const LEFT: usize = 330;
const WIDTH: f64 = 420.0;

/// One bar a workload: Kiln's wall time as a share of the other's, with a mark where it is to stay below.
fn chart(results: &[Outcome]) -> String {
    let bars: Vec<(&str, f64, Option<f64>)> = results
        .iter()
        .filter_map(|result| Some((result.workload.what, ratio(result)?, result.workload.most)))
        .collect();
    let height = bars.len() * ROW + 50;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"830\" height=\"{height}\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n\
         <text x=\"10\" y=\"20\" font-size=\"14\">Wall time as a share of what it is compared with (less is better; 1 is as long)</text>\n"
    );
    for (row, (what, ratio, most)) in bars.iter().enumerate() {
        let top = row * ROW + 40;
        let (long, middle) = (ratio.min(1.2) / 1.2 * WIDTH, top + 14);
        let what = what.replace('&', "&amp;").replace('<', "&lt;");
        let colour = if most.is_some_and(|most| *ratio > most) { "#c2703d" } else { "#2f6f8f" };
        _ = writeln!(
            svg,
            "<text x=\"{}\" y=\"{middle}\" text-anchor=\"end\" font-size=\"11\">{what}</text>\n\
             <rect x=\"{LEFT}\" y=\"{top}\" width=\"{long:.1}\" height=\"20\" fill=\"{colour}\"/>\n\
             <text x=\"{:.1}\" y=\"{middle}\">{ratio:.2}</text>",
            LEFT - 8,
            LEFT as f64 + long + 6.0,
        );
        if let Some(most) = most {
            let at = LEFT as f64 + most / 1.2 * WIDTH;
            _ = writeln!(
                svg,
                "<line x1=\"{at:.1}\" y1=\"{top}\" x2=\"{at:.1}\" y2=\"{}\" stroke=\"#222222\" stroke-dasharray=\"3 2\"/>",
                top + 20
            );
        }
    }
    let one = LEFT as f64 + WIDTH / 1.2;
    _ = writeln!(
        svg,
        "<line x1=\"{one:.1}\" y1=\"34\" x2=\"{one:.1}\" y2=\"{}\" stroke=\"#999999\"/>\n</svg>",
        height - 10
    );
    svg
}
