//! Which stages there are, and what each begins with.

use kiln_plan::{Base, Op, TreeSource};

use crate::{base, message, plan_from, plan_with, planned, request};

#[test]
fn a_stage_that_nothing_needs_is_not_looked_up() {
    let asked = std::cell::RefCell::new(Vec::new());
    let plan = plan_from("FROM nosuch:image AS a\nFROM b\n", &request(), |name, _| {
        asked.borrow_mut().push(name.to_owned());
        base(&[], &[])
    })
    .unwrap();
    assert_eq!(asked.into_inner(), ["docker.io/library/b:latest"]);
    assert_eq!(plan.stages.len(), 1);
}

#[test]
fn stages_are_found_by_name_and_number_whatever_the_case() {
    let plan = planned("FROM b AS Build\nRUN x\nFROM scratch\nCOPY --from=BUILD /a /\nCOPY --from=0 /b /\n");
    let from: Vec<_> = plan.stages[1]
        .steps
        .iter()
        .map(|step| match &step.op {
            Op::Copy(copy) => copy.from.clone(),
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(from, [TreeSource::Stage(0), TreeSource::Stage(0)]);
    assert_eq!(planned("FROM b AS ONE\nRUN x\nFROM one\n").stages[1].base, Base::Stage(0));
}

#[test]
fn triggers_of_the_base_run_right_after_from() {
    let plan = plan_with(
        "FROM b\nRUN own\n",
        &request(),
        &base(&[], &["COPY --from=other:1 /x /", "ENV T=1", "RUN trigger"]),
    )
    .unwrap();
    let texts: Vec<_> = plan.stages[0].steps.iter().map(|step| step.text.clone()).collect();
    assert_eq!(texts, ["COPY --from=other:1 /x /", "RUN trigger", "RUN own"]);
    assert_eq!(plan.stages[0].config.config.on_build, None);
    assert_eq!(plan.stages[0].config.config.env("T"), Some("1"));
}

#[test]
fn triggers_of_an_earlier_stage_work_as_those_of_an_image() {
    let plan = planned("FROM b AS a\nRUN x\nFROM b AS base\nONBUILD COPY --from=a /f /\nFROM base\n");
    let last = plan.stages.last().unwrap();
    assert!(matches!(&last.steps[0].op, Op::Copy(copy) if copy.from == TreeSource::Stage(0)));
}

#[test]
fn args_before_the_first_from_serve_from_and_bare_args_only() {
    let plan = planned("ARG V=1\nARG TAG=x$V\nFROM b:$TAG\nARG TAG\nENV A=$TAG B=$V\n");
    assert_eq!(
        plan.stages[0].base,
        Base::Image(kiln_plan::ImageName::Reference("docker.io/library/b:x1".into()))
    );
    assert_eq!(plan.stages[0].config.config.env, ["PATH=/bin", "A=x1", "B="]);
}

#[test]
fn args_reach_child_stages() {
    let plan = planned("FROM b AS p\nARG X=1\nFROM p\nENV A=$X\nFROM b\nENV A=$X\n");
    assert_eq!(plan.stages.last().unwrap().config.config.env("A"), Some(""));
    let child = planned("FROM b AS p\nARG X=1\nFROM p\nENV A=$X\n");
    assert_eq!(child.stages[1].config.config.env("A"), Some("1"));
}

#[test]
fn a_target_is_a_name_and_several_are_planned() {
    let mut request = request();
    request.targets = vec!["one".into(), "TWO".into()];
    let plan =
        plan_with("FROM b AS zero\nFROM b AS one\nFROM b AS two\n", &request, &base(&[], &[])).unwrap();
    assert_eq!(plan.stages.iter().map(|stage| stage.number).collect::<Vec<_>>(), [1, 2]);
    assert_eq!(plan.targets, [0, 1]);
}

#[test]
fn what_is_wrong_is_said_with_what_to_do() {
    assert!(message("FROM b:$NOPE\n").contains("reference") || message("FROM b:$NOPE\n").contains("b:"));
    assert!(message("FROM $NOPE\n").contains("NOPE"));
    assert!(message("FROM b AS a\nCOPY --from=later /x /\nFROM b AS later\nFROM a\n").contains("later"));
    assert!(message("FROM b\nCOPY --from=7 /x /\n").contains("no such stage"));
    assert!(message("FROM b AS me\nCOPY --from=me /x /\n").contains("itself"));
    assert!(message("FROM b\nEXPOSE 99999\n").contains("99999"));
    assert!(message("FROM b\nSTOPSIGNAL NOPE\n").contains("NOPE"));
    assert!(message("FROM b\nCOPY https://x/y /\n").contains("ADD"));
}

#[test]
fn a_number_is_a_target_as_with_kaniko_unless_a_stage_has_it_for_a_name() {
    let mut request = request();
    request.targets = vec!["0".into()];
    let plan = plan_with("FROM b AS build\nFROM b\n", &request, &base(&[], &[])).unwrap();
    assert_eq!(plan.stages[plan.targets[0]].number, 0);
    request.targets = vec!["7".into()];
    let errors = plan_with("FROM b AS build\n", &request, &base(&[], &[])).unwrap_err();
    assert!(errors[0].message.contains("no such stage"), "{errors:?}");
}

#[test]
fn from_asks_for_a_stage_as_it_is_kept_and_copy_for_any_case() {
    let error = message("FROM b AS Foo\nFROM FOO\n");
    assert!(error.contains("lower") || error.contains("FOO"), "{error}");
    let plan = planned("FROM b AS Foo\nFROM b\nCOPY --from=FOO /x /\n");
    assert_eq!(plan.stages.len(), 2);
}

#[test]
fn an_unknown_target_gets_the_nearest_name() {
    let mut request = request();
    request.targets = vec!["biuld".into()];
    let errors = plan_with("FROM b AS build\n", &request, &base(&[], &[])).unwrap_err();
    assert!(errors[0].hint.as_deref().unwrap().contains("build"));
}

#[test]
fn the_platform_args_are_known_to_from_and_to_bare_args() {
    let plan = planned("FROM --platform=$BUILDPLATFORM b\nARG TARGETARCH\nENV A=$TARGETARCH B=$TARGETOS\n");
    assert_eq!(plan.stages[0].config.config.env, ["PATH=/bin", "A=amd64", "B="]);
}
