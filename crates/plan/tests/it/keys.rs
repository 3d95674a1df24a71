//! What changes a key, and what doesn't.

use kiln_plan::{ContentOf, Facts, Planning, Question, Request, StepKey, plan};

use crate::{base, plan_with, request};

fn keyed() -> Request {
    Request { content_keys: true, ..request() }
}

fn keys_with(text: &str, request: &Request) -> Vec<StepKey> {
    let plan = plan_with(text, request, &base(&[], &[])).unwrap();
    plan.stages.iter().flat_map(|stage| &stage.steps).map(|step| step.keys.recipe).collect()
}

fn keys(text: &str) -> Vec<StepKey> {
    keys_with(text, &keyed())
}

#[test]
fn every_relevant_input_changes_the_key() {
    let before = keys("FROM b\nARG A=1\nENV E=1\nUSER u\nWORKDIR /w\nRUN x\n");
    for other in [
        "FROM c\nARG A=1\nENV E=1\nUSER u\nWORKDIR /w\nRUN x\n",
        "FROM b\nARG A=2\nENV E=1\nUSER u\nWORKDIR /w\nRUN x\n",
        "FROM b\nARG A=1\nENV E=2\nUSER u\nWORKDIR /w\nRUN x\n",
        "FROM b\nARG A=1\nENV E=1\nUSER v\nWORKDIR /w\nRUN x\n",
        "FROM b\nARG A=1\nENV E=1\nUSER u\nWORKDIR /v\nRUN x\n",
        "FROM b\nARG A=1\nENV E=1\nUSER u\nWORKDIR /w\nRUN y\n",
        "FROM b\nARG A=1\nENV E=1\nUSER u\nWORKDIR /w\nRUN --mount=type=cache,target=/c x\n",
        "FROM b\nARG A=1\nENV E=1\nUSER u\nWORKDIR /w\nRUN --network=none x\n",
        "FROM b\nARG A=1\nENV E=1\nUSER u\nWORKDIR /w\nSHELL [\"/bin/bash\", \"-c\"]\nRUN x\n",
    ] {
        assert_ne!(before.last(), keys(other).last(), "{other}");
    }
}

#[test]
fn labels_and_other_stages_and_the_order_of_arguments_change_nothing() {
    let before = keys("FROM b\nARG A=1\nARG B=2\nRUN x\n");
    assert_eq!(before, keys("FROM b\nLABEL l=1\nARG A=1\nARG B=2\nEXPOSE 80\nRUN x\n"));
    assert_eq!(before, keys("FROM b\nARG B=2\nARG A=1\nRUN x\n"));
    assert_eq!(before, keys("FROM z AS unused\nRUN z\nFROM b\nARG A=1\nARG B=2\nRUN x\n"));
    let mut labelled = keyed();
    labelled.labels.insert("a".into(), "b".into());
    assert_eq!(before, keys_with("FROM b\nARG A=1\nARG B=2\nRUN x\n", &labelled));
}

#[test]
fn a_changed_base_of_a_source_stage_is_a_miss() {
    let text = |base: &str| format!("FROM {base} AS a\nRUN x\nFROM scratch\nCOPY --from=a /f /\n");
    assert_ne!(keys(&text("b")).last(), keys(&text("c")).last());
}

#[test]
fn what_shapes_the_layer_is_in_the_key() {
    let mut reproducible = keyed();
    reproducible.shape.mtime_limit = Some(0);
    let text = "FROM b\nRUN x\n";
    assert_ne!(keys(text), keys_with(text, &reproducible));
}

#[test]
fn a_linked_copy_has_one_key_whatever_is_below_it() {
    let text = |base: &str, flag: &str| format!("FROM {base}\nCOPY {flag} x /\n");
    assert_eq!(keys(&text("b", "--link")), keys(&text("c", "--link")));
    assert_ne!(keys(&text("b", "")), keys(&text("c", "")));
}

/// Plans `text` with the answers of `plan_with`, and the given answer for what stages hold.
fn second_keys(text: &str, artefact: [u8; 32]) -> Vec<Option<StepKey>> {
    let file = kiln_dockerfile::parse(&kiln_dockerfile::Source::new("Dockerfile", text)).unwrap();
    let mut facts = Facts::default();
    let request = keyed();
    loop {
        match plan(&file, &request, &facts).unwrap() {
            Planning::Asks(questions) => {
                for question in questions {
                    match question {
                        Question::Base(q) => {
                            let manifest = kiln_oci::Digest::of(q.image.to_string().as_bytes());
                            let fact = kiln_plan::BaseFact { manifest, config: base(&[], &[]) };
                            facts.base(q.image, &q.platform, fact);
                        }
                        Question::Content(q) => facts.content(q, [1; 32]),
                    }
                }
            }
            Planning::Ready(ready) => {
                let late = ready.content_questions(0);
                assert!(!late.is_empty(), "nothing is copied from the stage");
                assert!(late.iter().all(|question| question.of == ContentOf::Stage(0)));
                for question in late {
                    facts.content(question, artefact);
                }
                let Planning::Ready(ready) = plan(&file, &request, &facts).unwrap() else {
                    panic!("asks again")
                };
                return ready.stages.last().unwrap().steps.iter().map(|step| step.keys.content).collect();
            }
        }
    }
}

#[test]
fn an_unchanged_artefact_stops_the_ripple() {
    let text =
        |command: &str| format!("FROM b AS a\nRUN {command}\nFROM b\nCOPY --from=a /out /\nRUN last\n");
    let before = second_keys(&text("make"), [7; 32]);
    assert_eq!(before, second_keys(&text("make -j"), [7; 32]));
    assert!(before.iter().all(Option::is_some));
    assert_ne!(before, second_keys(&text("make"), [8; 32]));
}
