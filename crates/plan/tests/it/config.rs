//! Metadata folds into the image config, one instruction after another.

use crate::{base, last_config, plan_with, planned, request};

fn created_by(text: &str) -> Vec<String> {
    last_config(text).history.into_iter().map(|entry| entry.created_by).collect()
}

#[test]
fn history_is_written_as_buildkit_writes_it() {
    let entries = created_by(
        "FROM b\nARG A=1\nENV B=2 C=$A\nRUN echo $B\nCOPY --chown=1:2 x y /d/\nWORKDIR w\nCMD [\"a\", \"b c\"]\n\
         ENTRYPOINT e\nLABEL k=v\nEXPOSE 80 90/udp\nVOLUME /v\nUSER u\nSTOPSIGNAL SIGINT\nSHELL [\"/bin/bash\", \"-c\"]\n\
         HEALTHCHECK --interval=5s CMD x\n",
    );
    assert_eq!(
        entries,
        [
            "ARG A=1",
            "ENV B=2 C=1",
            "RUN |1 A=1 /bin/sh -c echo $B # buildkit",
            "COPY --chown=1:2 x y /d/ # buildkit",
            "WORKDIR /w",
            "CMD [\"a\" \"b c\"]",
            "ENTRYPOINT [\"/bin/sh\" \"-c\" \"e\"]",
            "LABEL k=v",
            "EXPOSE [80/tcp 90/udp]",
            "VOLUME [/v]",
            "USER u",
            "STOPSIGNAL SIGINT",
            "SHELL [/bin/bash -c]",
            "HEALTHCHECK {Test:[CMD-SHELL x] Interval:5s Timeout:0s StartPeriod:0s StartInterval:0s Retries:0}",
        ]
    );
}

#[test]
fn entrypoint_clears_a_command_of_the_base_and_not_one_of_this_file() {
    assert_eq!(last_config("FROM b\nENTRYPOINT [\"e\"]\n").config.cmd, None);
    let kept = last_config("FROM b\nCMD [\"c\"]\nENTRYPOINT [\"e\"]\n").config.cmd;
    assert_eq!(kept, Some(vec!["c".to_owned()]));
    assert!(last_config("FROM b\n").config.cmd.is_some());
}

#[test]
fn one_instruction_sees_the_environment_from_before_it() {
    let config = last_config("FROM b\nENV A=1\nENV A=2 B=$A\n");
    assert_eq!(config.config.env, ["PATH=/bin", "A=2", "B=1"]);
}

#[test]
fn of_env_and_arg_the_later_one_wins() {
    let text = |lines: &str| {
        let plan = planned(&format!("FROM b\n{lines}\nRUN x\n"));
        match &plan.stages[0].steps[0].op {
            kiln_plan::Op::Run(run) => run.env.iter().find(|(key, _)| key == "X").unwrap().1.clone(),
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(text("ARG X=arg\nENV X=env"), "env");
    assert_eq!(text("ENV X=env\nARG X=arg"), "arg");
}

#[test]
fn a_path_is_always_set() {
    let plan = plan_with("FROM scratch\n", &request(), &base(&[], &[])).unwrap();
    assert!(plan.stages[0].config.config.env("PATH").unwrap().contains("/usr/bin"));
}

#[test]
fn labels_of_the_command_line_win() {
    let mut request = request();
    request.labels.insert("k".into(), "cli".into());
    let plan = plan_with("FROM b\nLABEL k=file l=file\n", &request, &base(&[], &[])).unwrap();
    let labels = &plan.stages[0].config.config.labels;
    assert_eq!((labels["k"].as_str(), labels["l"].as_str()), ("cli", "file"));
}

#[test]
fn a_relative_workdir_follows_the_last_one() {
    assert_eq!(last_config("FROM b\nWORKDIR /a/b\nWORKDIR ../c\n").config.working_dir, "/a/c");
    assert!(planned("FROM b\nWORKDIR /\n").stages[0].steps.is_empty());
}

#[test]
fn proxies_reach_run_and_neither_history_nor_key() {
    let mut with = request();
    with.build_args.insert("http_proxy".into(), "http://p".into());
    let text = "FROM b\nRUN x\n";
    let (a, b) = (
        plan_with(text, &with, &base(&[], &[])).unwrap(),
        plan_with(text, &request(), &base(&[], &[])).unwrap(),
    );
    assert_eq!(a.stages[0].steps[0].keys, b.stages[0].steps[0].keys);
    assert_eq!(a.stages[0].config.history, b.stages[0].config.history);
    match &a.stages[0].steps[0].op {
        kiln_plan::Op::Run(run) => assert!(run.proxy.iter().any(|(key, _)| key == "HTTP_PROXY")),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_lone_heredoc_is_the_script_and_a_shebang_makes_it_a_file() {
    let argv = |text: &str| match &planned(text).stages[0].steps[0].op {
        kiln_plan::Op::Run(run) => (run.argv.clone(), run.script.clone()),
        other => panic!("{other:?}"),
    };
    assert_eq!(argv("FROM b\nRUN <<EOF\na\nb\nEOF\n").0[2], "a\nb\n");
    let (command, script) = argv("FROM b\nRUN <<EOF\n#!/bin/x\nb\nEOF\n");
    assert_eq!(command[2], "/dev/pipes/EOF");
    assert_eq!(script.unwrap().content, "#!/bin/x\nb\n");
    assert_eq!(argv("FROM b\nRUN cat <<A <<B\n1\nA\n2\nB\n").0[2], "cat <<A <<B\n1\nA\n2\nB");
}
