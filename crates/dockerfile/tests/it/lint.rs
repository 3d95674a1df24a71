//! `tests/cases/lint`: what the build checks find.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use kiln_dockerfile::{
    Ignore, LintFacts, Rule, Severity, Source, describe, lint, lint_before_error, lint_with, parse,
};

use crate::files::{cases, written};
use crate::{assert_unchanged, case_files};

fn findings(text: &str) -> String {
    let source = Source::new("Dockerfile", text);
    let file = parse(&source).unwrap_or_else(|errors| panic!("{text}\n{errors:?}"));
    let mut out = String::new();
    for finding in lint(&source, &file) {
        let (line, column) = source.line_col(finding.span.start);
        let severity = if finding.severity == Severity::Error { " (error)" } else { "" };
        let _ = writeln!(out, "{line}:{column}: {}{severity}: {finding}", finding.rule);
    }
    out
}

#[test]
fn checks_find_what_the_cases_say() {
    for (path, text) in case_files("lint") {
        assert!(cases(&text).count() > 0);
        assert_unchanged(&path, &text, &written(&text, findings));
    }
}

#[test]
fn every_check_but_the_one_about_pulled_images_has_a_case() {
    let all: String = case_files("lint").into_iter().map(|(_, text)| text).collect();
    for rule in Rule::CHECKS {
        // These two need more than the file.
        let elsewhere = matches!(rule, Rule::InvalidBaseImagePlatform | Rule::CopyIgnoredFile);
        assert!(elsewhere || all.contains(&format!(": {rule}: ")), "{rule}");
    }
}

fn rules(text: &str, facts: &LintFacts<'_>) -> Vec<String> {
    let source = Source::new("Dockerfile", text);
    let file = parse(&source).unwrap();
    let line = |offset| source.line_col(offset).0;
    lint_with(&file, facts)
        .iter()
        .map(|found| format!("{}: {}", line(found.span.start), found.rule))
        .collect()
}

#[test]
fn sources_that_the_ignore_file_hides_are_found() {
    let text = "FROM scratch AS a\nCOPY secret.txt ./docs/../docs/a keep /\nADD --chown=1 secret.txt https://x/secret.txt /\n\
                COPY --from=a secret.txt /\nCOPY . /\nCOPY /secret.txt /\n";
    let ignore = Ignore::parse("secret.txt\ndocs\n").unwrap();
    let facts = LintFacts { ignore: Some(&ignore), ..LintFacts::default() };
    assert_eq!(rules(text, &facts), ["2: CopyIgnoredFile", "2: CopyIgnoredFile", "3: CopyIgnoredFile"]);
    let ignore = Ignore::parse("secret.txt\n!x\n").unwrap();
    assert_eq!(rules(text, &LintFacts { ignore: Some(&ignore), ..LintFacts::default() }), [""; 0]);
    let ignore = Ignore::parse("*\n").unwrap();
    let facts = LintFacts { ignore: Some(&ignore), ..LintFacts::default() };
    assert_eq!(
        rules("FROM scratch\nCOPY . /\nCOPY ./ /\n", &facts),
        ["2: CopyIgnoredFile", "3: CopyIgnoredFile"]
    );
}

#[test]
fn what_the_base_image_and_the_build_set_is_defined() {
    let text = "ARG V\nFROM img:$V\nARG W\nUSER $JAVA_HOME$V\nENV x=$W\n";
    let found = ["2: InvalidDefaultArgInFrom", "4: UndefinedVar", "4: UndefinedVar"];
    assert_eq!(rules(text, &LintFacts::default()), found);
    let environment = BTreeMap::from([("JAVA_HOME".to_owned(), "/j".to_owned())]);
    let facts = LintFacts {
        environments: BTreeMap::from([(6, environment)]),
        build_args: BTreeMap::from([("V".to_owned(), "1".to_owned())]),
        ..LintFacts::default()
    };
    assert_eq!(
        rules(text, &facts),
        ["2: InvalidDefaultArgInFrom", "4: UndefinedVar"],
        "V is not declared in the stage"
    );
}

#[test]
fn warnings_point_at_whole_instructions_in_json() {
    let source = Source::new("f", "FROM a\nENV x=1 \\\n  y=$z\nRUN b \\\n\nc\n");
    let file = parse(&source).unwrap();
    let warnings = &describe(&source, &file)["warnings"];
    let lines = |at: usize| (warnings[at]["check"].as_str().unwrap(), warnings[at]["lines"].to_string());
    assert_eq!(lines(0), ("UndefinedVar", "[2,3]".to_owned()));
    assert_eq!(lines(1), ("NoEmptyContinuation", "[6,6]".to_owned()));
}

#[test]
fn a_file_with_an_error_is_checked_up_to_it() {
    let source = Source::new("f", "FROM a AS B\nMAINTAINER c\nCOPPY d\nMAINTAINER e\n");
    let found: Vec<Rule> = lint_before_error(&source).1.iter().map(|finding| finding.rule).collect();
    assert_eq!(found, [Rule::StageNameCasing, Rule::MaintainerDeprecated]);
}
