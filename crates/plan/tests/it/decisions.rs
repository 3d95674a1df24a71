//! What is reused, what runs, what is skipped.

use kiln_oci::{DiffId, Digest};
use kiln_plan::{BuildPlan, Hit, Hits, StepKey, Verdict};

use crate::planned;

fn hit(key: StepKey) -> Hit {
    Hit {
        key,
        digest: Digest::of(&key.0),
        diff_id: DiffId(key.0),
        size: 1,
        media_type: String::new(),
        origin: "a test".into(),
        created: 0,
    }
}

fn with_hits(plan: BuildPlan, steps: &[(usize, usize)]) -> BuildPlan {
    let hits: Hits = steps
        .iter()
        .map(|(stage, step)| plan.stages[*stage].steps[*step].keys.recipe)
        .map(|key| (key, hit(key)))
        .collect();
    plan.decide(&hits)
}

fn verdicts(plan: &BuildPlan) -> Vec<String> {
    plan.stages
        .iter()
        .flat_map(|stage| &stage.steps)
        .map(|step| match step.verdict {
            Verdict::Reuse(_) => "reuse".into(),
            Verdict::Run { needs_tree } => format!("run {needs_tree}"),
            Verdict::Skip => "skip".into(),
        })
        .collect()
}

const TWO: &str = "FROM b AS a\nRUN make\nFROM b\nCOPY --from=a /out /\nRUN last\n";

#[test]
fn a_stage_whose_consumers_all_hit_is_not_built() {
    let plan = with_hits(planned(TWO), &[(1, 0), (1, 1)]);
    assert_eq!(verdicts(&plan), ["skip", "reuse", "reuse"]);
    assert!(!plan.stages[0].needed);
    assert!(!plan.stages[1].needs_tree);
}

#[test]
fn a_miss_does_not_end_the_probing() {
    let plan = with_hits(planned(TWO), &[(0, 0), (1, 1)]);
    assert_eq!(verdicts(&plan), ["reuse", "run false", "reuse"]);
    assert!(plan.stages[0].needs_tree);
}

#[test]
fn a_file_without_run_needs_no_tree() {
    let plan = planned("FROM b\nCOPY x /\nWORKDIR /w\n");
    assert_eq!(verdicts(&plan), ["run false", "run false"]);
    assert!(!plan.stages[0].needs_tree);
}

#[test]
fn a_base_stage_has_a_tree_where_its_child_needs_one() {
    let plan = planned("FROM b AS p\nCOPY x /\nFROM p\nRUN y\n");
    assert!(plan.stages[0].needs_tree);
    let plan = planned("FROM b AS p\nCOPY x /\nFROM p\nCOPY y /\n");
    assert!(!plan.stages[0].needs_tree);
}

#[test]
fn a_stage_waits_for_its_base_and_for_what_its_steps_read() {
    let plan = planned("FROM b AS a\nRUN x\nFROM b AS c\nRUN y\nFROM c\nCOPY --from=a /x /\n");
    assert_eq!(plan.dependencies(2), [0, 1]);
    assert!(plan.dependencies(1).is_empty());
}
