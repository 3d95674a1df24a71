//! A plan, for people and for tools.

use kiln_plan::{Base, BuildPlan, Op, Stage, Verdict};

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

fn verdict(verdict: &Verdict) -> String {
    match verdict {
        Verdict::Reuse(hit) => format!("hit in {}", hit.origin),
        Verdict::Run { .. } => "runs".to_owned(),
        Verdict::Skip => "skipped".to_owned(),
    }
}

/// The plan as a tree.
pub(crate) fn tree(plan: &BuildPlan) -> String {
    let mut lines = Vec::new();
    for (place, stage) in plan.stages.iter().enumerate() {
        let target = if plan.targets.contains(&place) { ", target" } else { "" };
        let needed = if stage.needed { "" } else { ", not needed" };
        let tree = if stage.needs_tree { ", with a file tree" } else { "" };
        lines.push(format!("stage {} from {}{target}{needed}{tree}", name(stage), base(plan, stage)));
        for (number, step) in stage.steps.iter().enumerate() {
            let branch = if number + 1 == stage.steps.len() { "└──" } else { "├──" };
            let line = step.lines.0;
            lines.push(format!(
                "{branch} {} line {line}: {} ({})",
                step.keys.recipe.short(),
                step.text,
                verdict(&step.verdict)
            ));
        }
    }
    lines.push(String::new());
    lines.join("\n")
}

/// The plan as JSON.
pub(crate) fn json(plan: &BuildPlan) -> String {
    let stages: Vec<serde_json::Value> = plan
        .stages
        .iter()
        .enumerate()
        .map(|(place, stage)| {
            let steps: Vec<serde_json::Value> = stage
                .steps
                .iter()
                .map(|step| {
                    let kind = match step.op {
                        Op::Run(_) => "run",
                        Op::Copy(_) => "copy",
                        Op::MakeDirectory(_) => "directory",
                    };
                    let (what, origin) = match &step.verdict {
                        Verdict::Reuse(hit) => ("hit", Some(hit.origin.clone())),
                        Verdict::Run { .. } => ("run", None),
                        Verdict::Skip => ("skip", None),
                    };
                    serde_json::json!({
                        "kind": kind, "line": step.lines.0, "text": step.text, "key": step.keys.recipe.hex(),
                        "verdict": what, "origin": origin,
                    })
                })
                .collect();
            serde_json::json!({
                "name": name(stage), "number": stage.number, "base": base(plan, stage), "needed": stage.needed,
                "target": plan.targets.contains(&place), "needsTree": stage.needs_tree, "steps": steps,
            })
        })
        .collect();
    format!("{}\n", serde_json::json!({"version": 1, "stages": stages}))
}
