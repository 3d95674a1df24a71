//! A plan, for people and for tools.

use kiln_executor::{Forecast, Reason};
use kiln_plan::{Base, BuildPlan, Op, Stage, Step, Verdict};

use crate::progress::size;

fn base(plan: &BuildPlan, stage: &Stage) -> String {
    match &stage.base {
        Base::Scratch => "scratch".to_owned(),
        Base::Image(image) => image.to_string(),
        Base::Stage(place) => format!("stage {}", name(&plan.stages[*place])),
    }
}

fn name(stage: &Stage) -> String {
    stage.name.clone().unwrap_or_else(|| stage.number.to_string())
}

/// Why a step runs, as a half-sentence.
fn reason(reason: Option<&Reason>) -> String {
    match reason {
        None => String::new(),
        Some(Reason::NoCache) => ": no cache is asked, give --cache".to_owned(),
        Some(Reason::KindNotCached) => ": results of this kind are not cached".to_owned(),
        Some(Reason::Changed(what)) if what.inputs.is_empty() => {
            ": a step before it changed since the last build".to_owned()
        }
        Some(Reason::Changed(what)) => {
            let names: Vec<&str> = what.inputs.iter().map(|name| input(name)).collect();
            format!(": changed since the last build: {}{}", names.join(", "), files(&what.parts))
        }
        Some(Reason::Gone) => ": the last build's result expired or was removed".to_owned(),
        Some(Reason::Unknown) => ": the last build had no such step, or left no record".to_owned(),
    }
}

/// An input as people call it.
fn input(name: &str) -> &str {
    match name {
        "from" => "the files that it copies",
        "command" => "the command",
        name => name,
    }
}

/// So many files are named.
const NAMED: usize = 5;

fn files(parts: &[String]) -> String {
    let named: Vec<&str> =
        parts.iter().take(NAMED).map(String::as_str).filter(|name| !name.is_empty()).collect();
    match (named.len(), parts.len() - named.len()) {
        (0, _) => String::new(),
        (_, 0) => format!(" ({})", named.join(", ")),
        (_, more) => format!(" ({} and {more} more)", named.join(", ")),
    }
}

fn verdict(verdict: &Verdict, why: Option<&Reason>) -> String {
    match verdict {
        Verdict::Reuse(hit) => format!("hit in {}, {}", hit.origin, size(hit.size)),
        Verdict::Run { .. } => format!("runs{}", reason(why)),
        Verdict::Skip => "skipped".to_owned(),
    }
}

/// The plan as a tree.
pub(crate) fn tree(forecast: &Forecast) -> String {
    let plan = &forecast.plan;
    let mut lines = Vec::new();
    for (place, stage) in plan.stages.iter().enumerate() {
        let target = if plan.targets.contains(&place) { ", target" } else { "" };
        let needed = if stage.needed { "" } else { ", not needed" };
        let tree = if stage.needs_tree { ", with a file tree" } else { "" };
        lines.push(format!("stage {} from {}{target}{needed}{tree}", name(stage), base(plan, stage)));
        let downloads: Vec<_> =
            forecast.downloads.iter().filter(|download| download.stage == place).collect();
        let last = stage.steps.len() + downloads.len();
        for (number, step) in stage.steps.iter().enumerate() {
            let branch = if number + 1 == last { "└──" } else { "├──" };
            lines.push(format!(
                "{branch} {} line {}: {} ({})",
                step.keys.recipe.short(),
                step.lines.0,
                step.text,
                verdict(&step.verdict, forecast.reasons.get(&(place, number)))
            ));
        }
        for (number, download) in downloads.into_iter().enumerate() {
            let branch = if stage.steps.len() + number + 1 == last { "└──" } else { "├──" };
            lines.push(format!("{branch} downloads {} of {}", size(download.bytes), download.what));
        }
    }
    let runs = plan.stages.iter().flat_map(|stage| &stage.steps);
    let runs = runs.filter(|step| matches!(step.verdict, Verdict::Run { .. })).count();
    lines.push(format!("{runs} to run, {} to download", size(total(forecast))));
    lines.push(String::new());
    lines.join("\n")
}

fn total(forecast: &Forecast) -> u64 {
    forecast.downloads.iter().map(|download| download.bytes).sum()
}

/// The plan as JSON.
pub(crate) fn json(forecast: &Forecast) -> String {
    let plan = &forecast.plan;
    let stages: Vec<serde_json::Value> = plan
        .stages
        .iter()
        .enumerate()
        .map(|(place, stage)| {
            let steps = stage.steps.iter().enumerate();
            let steps = steps.map(|(number, step)| step_json(step, forecast.reasons.get(&(place, number))));
            serde_json::json!({
                "name": name(stage), "number": stage.number, "base": base(plan, stage), "needed": stage.needed,
                "target": plan.targets.contains(&place), "needsTree": stage.needs_tree,
                "steps": steps.collect::<Vec<_>>(),
            })
        })
        .collect();
    let downloads: Vec<serde_json::Value> = forecast
        .downloads
        .iter()
        .map(|download| {
            let stage = name(&plan.stages[download.stage]);
            serde_json::json!({"stage": stage, "what": download.what, "bytes": download.bytes})
        })
        .collect();
    let total = total(forecast);
    let whole = serde_json::json!({
        "version": 1, "stages": stages, "downloads": downloads, "downloadBytes": total,
    });
    format!("{whole}\n")
}

fn step_json(step: &Step, why: Option<&Reason>) -> serde_json::Value {
    let kind = match step.op {
        Op::Run(_) => "run",
        Op::Copy(_) => "copy",
        Op::MakeDirectory(_) => "directory",
    };
    let (what, origin, bytes) = match &step.verdict {
        Verdict::Reuse(hit) => ("hit", Some(hit.origin.clone()), Some(hit.size)),
        Verdict::Run { .. } => ("run", None, None),
        Verdict::Skip => ("skip", None, None),
    };
    let (reason, changed) = match why {
        None => (None, None),
        Some(Reason::NoCache) => (Some("noCache"), None),
        Some(Reason::KindNotCached) => (Some("kindNotCached"), None),
        Some(Reason::Changed(what)) => (Some("changed"), Some(what)),
        Some(Reason::Gone) => (Some("gone"), None),
        Some(Reason::Unknown) => (Some("unknown"), None),
    };
    let files = changed.map(|what| what.parts.clone());
    let changed = changed.map(|what| what.inputs.clone());
    serde_json::json!({
        "kind": kind, "line": step.lines.0, "text": step.text, "key": step.keys.recipe.hex(),
        "verdict": what, "origin": origin, "bytes": bytes, "reason": reason, "changed": changed,
        "files": files,
    })
}
