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
    let before = keys("FROM b\nARG A=1\nENV E=1\nUSER 7\nWORKDIR /w\nRUN x\n");
    for other in [
        "FROM c\nARG A=1\nENV E=1\nUSER 7\nWORKDIR /w\nRUN x\n",
        "FROM b\nARG A=2\nENV E=1\nUSER 7\nWORKDIR /w\nRUN x\n",
        "FROM b\nARG A=1\nENV E=2\nUSER 7\nWORKDIR /w\nRUN x\n",
        "FROM b\nARG A=1\nENV E=1\nUSER 8\nWORKDIR /w\nRUN x\n",
        "FROM b\nARG A=1\nENV E=1\nUSER 7\nWORKDIR /v\nRUN x\n",
        "FROM b\nARG A=1\nENV E=1\nUSER 7\nWORKDIR /w\nRUN y\n",
        "FROM b\nARG A=1\nENV E=1\nUSER 7\nWORKDIR /w\nRUN --mount=type=cache,target=/c x\n",
        "FROM b\nARG A=1\nENV E=1\nUSER 7\nWORKDIR /w\nRUN --network=none x\n",
        "FROM b\nARG A=1\nENV E=1\nUSER 7\nWORKDIR /w\nSHELL [\"/bin/bash\", \"-c\"]\nRUN x\n",
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

/// Plans `text`. Stages whose place is in `artefacts` have run, and what is read of them holds that.
fn all_keys(text: &str, artefacts: &[(usize, [u8; 32])]) -> Vec<Vec<StepKey>> {
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
                for (place, artefact) in artefacts {
                    let late = ready.content_questions(*place);
                    assert!(!late.is_empty(), "nothing is read from the stage");
                    assert!(late.iter().all(|question| question.of == ContentOf::Stage(*place)));
                    for question in late {
                        facts.content(question, *artefact);
                    }
                }
                let Planning::Ready(ready) = plan(&file, &request, &facts).unwrap() else {
                    panic!("asks again")
                };
                let steps = ready.stages.last().unwrap().steps.iter();
                return steps.map(|step| step.keys.all().collect()).collect();
            }
        }
    }
}

/// Whether each step of the last stage that was stored as `stored` is found as `sought`, and never by its recipe.
fn found(stored: &[Vec<StepKey>], sought: &[Vec<StepKey>]) -> bool {
    stored.len() == sought.len()
        && stored.iter().zip(sought).all(|(stored, sought)| {
            assert_ne!(stored[0], sought[0], "the recipes differ");
            sought.iter().any(|key| stored.contains(key))
        })
}

#[test]
fn an_unchanged_artefact_stops_the_ripple() {
    let text =
        |command: &str| format!("FROM b AS a\nRUN {command}\nFROM b\nCOPY --from=a /out /\nRUN last\n");
    let before = all_keys(&text("make"), &[(0, [7; 32])]);
    assert!(found(&before, &all_keys(&text("make -j"), &[(0, [7; 32])])));
    assert!(!found(&before, &all_keys(&text("make -j"), &[(0, [8; 32])])));
    assert!(!found(&before, &all_keys(&text("make -j"), &[])), "nothing is known before the stage has run");
}

#[test]
fn an_unchanged_artefact_stops_the_ripple_through_a_mount_too() {
    let text = |command: &str| {
        format!("FROM b AS a\nRUN {command}\nFROM b\nRUN --mount=from=a,source=/out,target=/o cp /o /p\n")
    };
    let before = all_keys(&text("make"), &[(0, [7; 32])]);
    assert!(found(&before, &all_keys(&text("make -j"), &[(0, [7; 32])])));
    assert!(!found(&before, &all_keys(&text("make -j"), &[(0, [8; 32])])));
}

#[test]
fn the_ripple_stops_in_a_chain_of_stages_whichever_of_them_changed() {
    let text = |first: &str, second: &str| {
        format!(
            "FROM b AS a\nRUN {first}\nFROM b AS c\nCOPY --from=a /out /\nRUN {second}\nFROM b\nCOPY --from=c /end /\nRUN last\n"
        )
    };
    let before = all_keys(&text("x", "y"), &[(0, [7; 32]), (1, [9; 32])]);
    // The stage between is found whole, so it does not run, and nothing is known of what it holds.
    assert!(found(&before, &all_keys(&text("x2", "y"), &[(0, [7; 32])])));
    assert!(found(&before, &all_keys(&text("x", "y2"), &[(1, [9; 32])])));
    assert!(found(&before, &all_keys(&text("x2", "y2"), &[(0, [8; 32]), (1, [9; 32])])));
    assert!(!found(&before, &all_keys(&text("x2", "y2"), &[(0, [8; 32]), (1, [8; 32])])));
}

#[test]
fn a_linked_copy_from_a_stage_is_found_by_content_whatever_is_below_it() {
    let text = |base: &str, command: &str| {
        format!("FROM b AS a\nRUN {command}\nFROM {base}\nCOPY --link --from=a /out /\n")
    };
    let before = all_keys(&text("b", "make"), &[(0, [7; 32])]);
    assert!(found(&before, &all_keys(&text("c", "make -j"), &[(0, [7; 32])])));
}

#[test]
fn a_step_has_few_keys_however_many_stages_it_reads() {
    let lines = |line: fn(usize) -> String| (0..6).map(line).collect::<Vec<_>>().concat();
    let stages = lines(|stage| format!("FROM b AS s{stage}\nRUN make {stage}\n"));
    let copies = lines(|stage| format!("COPY --from=s{stage} /out /{stage}\n"));
    let text = format!("{stages}FROM b\n{copies}");
    let artefacts: Vec<(usize, [u8; 32])> = (0..6).map(|stage| (stage, [7; 32])).collect();
    assert!(all_keys(&text, &artefacts).iter().all(|keys| keys.len() <= 5));
}

#[test]
fn triggers_of_the_base_have_keys_like_the_files_own_instructions() {
    let keys = |triggers: &[&str], text: &str| {
        let plan = plan_with(text, &keyed(), &base(&[], triggers)).unwrap();
        plan.stages[0].steps.iter().map(|step| step.keys.recipe).collect::<Vec<_>>()
    };
    let written = keys(&[], "FROM b\nENV A=1\nCOPY x /\nRUN y\n");
    assert_eq!(written, keys(&["ENV A=1", "COPY x /", "RUN y"], "FROM b\n"));
    assert_ne!(written.last(), keys(&["ENV A=2", "COPY x /", "RUN y"], "FROM b\n").last());
}

#[test]
fn what_a_run_can_not_see_changes_no_key() {
    let text = "FROM b\nARG A=1\nRUN x\n";
    let mut other = keyed();
    for (name, value) in [("HTTP_PROXY", "http://p"), ("UNDECLARED", "1"), ("no_proxy", "h")] {
        other.build_args.insert(name.into(), value.into());
    }
    assert_eq!(keys(text), keys_with(text, &other));
    other.build_args.insert("A".into(), "2".into());
    assert_ne!(keys(text), keys_with(text, &other));
    let secret = |id: &str, from: &str| format!("FROM b\nRUN --mount=type=secret,id={id},target=/s {from}\n");
    assert_ne!(
        keys(&secret("a", "x")),
        keys(&secret("b", "x")),
        "the id is seen, its value is not known here"
    );
}
