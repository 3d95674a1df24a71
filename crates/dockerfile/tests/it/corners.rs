//! What the tables can't show: values, places, triggers, mounts.

use std::collections::BTreeMap;

use kiln_dockerfile::{
    Command, Diagnostic, Dockerfile, Kind, Mount, MountKind, Network, Sharing, Source, Word, describe,
    describe_errors, parse, parse_trigger, to_text,
};

fn file(text: &str) -> (Source, Dockerfile) {
    let source = Source::new("Dockerfile", text);
    let file = parse(&source).unwrap_or_else(|errors| panic!("{text}\n{errors:?}"));
    (source, file)
}

fn mount(flag: &str, scope: &BTreeMap<String, String>) -> Result<Mount, Diagnostic> {
    let (_, file) = file(&format!("FROM a\nRUN --mount={flag} x\n"));
    let Kind::Run(run) = &file.instructions[1].kind else { panic!("no RUN") };
    run.mounts[0].resolve(scope)
}

#[test]
fn places_point_into_the_source_across_continuation_lines() {
    let (source, file) =
        file("FROM --platform=linux/amd64 img AS x\nCOPY --from=x \\\n  # no\n  a \\\n  \"b\" /c\n");
    let Kind::From(from) = &file.instructions[0].kind else { panic!("no FROM") };
    assert_eq!(source.slice(from.image.span), "img");
    assert_eq!(source.slice(from.platform.as_ref().unwrap().span), "linux/amd64");
    assert_eq!(source.slice(from.name_word.as_ref().unwrap().span), "x");
    let Kind::Copy(copy) = &file.instructions[1].kind else { panic!("no COPY") };
    let sources: Vec<&str> = copy.sources.iter().map(|word| source.slice(word.span)).collect();
    assert_eq!(sources, ["a", "\"b\""]);
    assert_eq!(source.slice(copy.destination.span), "/c");
    assert_eq!(source.slice(file.instructions[1].span), &source.text[37..source.text.len() - 1]);
    assert_eq!(file.instructions[1].text, "COPY --from=x   a   \"b\" /c");
}

#[test]
fn keys_and_values_have_their_own_places() {
    let (source, file) = file("FROM a\nENV one=1 two=\"2 3\"\nARG x=y\n");
    let Kind::Env(pairs) = &file.instructions[1].kind else { panic!("no ENV") };
    assert_eq!(source.slice(pairs[1].key.span), "two");
    assert_eq!(source.slice(pairs[1].value.span), "\"2 3\"");
    let Kind::Arg(declarations) = &file.instructions[2].kind else { panic!("no ARG") };
    assert_eq!(source.slice(declarations[0].value.as_ref().unwrap().span), "y");
}

#[test]
fn a_literal_word_keeps_its_variables() {
    let (source, _) = file("FROM a\n");
    let word = |raw: &str| Word { raw: raw.to_owned(), span: kiln_dockerfile::Span::default(), escape: '\\' };
    assert_eq!(word(r#""a b" 'c' \d $e ${f:-g}"#).literal(), "a b c d $e ${f:-g}");
    assert_eq!(word("it's").literal(), "it's");
    assert_eq!(source.line_col(0), (1, 1));
}

#[test]
fn the_error_of_a_word_is_at_the_word() {
    let (source, file) = file("FROM a\nUSER ${x\n");
    let Kind::User(user) = &file.instructions[1].kind else { panic!("no USER") };
    let error = user.expand(&()).unwrap_err();
    assert_eq!(source.slice(error.span), "${x");
    assert_eq!(error.message, "can't expand ${x: } is missing");
}

#[test]
fn mounts_are_resolved_with_variables() {
    let scope = BTreeMap::from([
        ("T".to_owned(), "cache".to_owned()),
        ("D".to_owned(), "/a,b".to_owned()),
        ("M".to_owned(), "0700".to_owned()),
    ]);
    let found = mount("type=$T,target=$D,mode=$M,sharing=${S:-locked}", &scope).unwrap();
    assert_eq!(found.kind, MountKind::Cache);
    assert_eq!(
        (found.target.as_str(), found.mode, found.sharing),
        ("/a,b", Some(0o700), Some(Sharing::Locked))
    );
    assert!(!found.readonly);
    let found = mount("target=/a", &scope).unwrap();
    assert_eq!((found.kind, found.readonly), (MountKind::Bind, true));
}

#[test]
fn what_a_variable_brings_in_is_checked() {
    let scope = BTreeMap::from([("T".to_owned(), "cach".to_owned()), ("M".to_owned(), "9".to_owned())]);
    let message = |flag| mount(flag, &scope).unwrap_err().to_string();
    assert_eq!(message("type=$T,target=/a"), "--mount: type=$T: no such type of mount; did you mean cache?");
    assert_eq!(message("type=cache,target=/a,mode=$M"), "--mount: mode=$M: no octal mode, such as 0755");
    assert_eq!(message("type=cache,target=${X:?}"), "can't expand ${X:?}: X: has to be set");
    assert_eq!(
        message("type=$X,target=/a"),
        "--mount: type=$X: no such type of mount; write one of bind, cache, tmpfs, secret, ssh"
    );
}

#[test]
fn triggers_are_read_as_instructions() {
    let trigger = parse_trigger("RUN --network=none <<A\nmake\nA").unwrap();
    let Kind::Run(run) = &trigger.kind else { panic!("no RUN") };
    assert_eq!(run.network, Network::None);
    assert_eq!(run.heredocs[0].content, "make\n");
    assert!(matches!(parse_trigger("copy . /x").unwrap().kind, Kind::Copy(_)));
    for wrong in ["", "FROM a", "RUN a\nRUN b", "COPPY a b", "RUN <<A\nx"] {
        assert!(parse_trigger(wrong).is_err(), "{wrong}");
    }
}

#[test]
fn a_trigger_survives_the_image_config() {
    let (_, file) = file("FROM a\nONBUILD COPY <<-A b /c/\n\t\tx\n\tA\n");
    let Kind::Onbuild(onbuild) = &file.instructions[1].kind else { panic!("no ONBUILD") };
    let Kind::Copy(copy) = parse_trigger(&onbuild.trigger).unwrap().kind else { panic!("no COPY") };
    assert_eq!((copy.heredocs[0].content.as_str(), copy.heredocs[0].written.as_str()), ("x\n", "\t\tx\n"));
    assert_eq!(copy.sources[0].raw, "b");
}

#[test]
fn a_file_that_ends_in_an_escape_is_printed_so_that_it_still_does() {
    for text in ["FROM a\nUSER b \\ \\", "FROM a\nONBUILD USER b \\ \\", "FROM a\nUSER b \\\u{b}\nUSER c\n"] {
        let (source, first) = file(text);
        let printed = to_text(&first);
        let (printed_source, second) = file(&printed);
        let instructions = |source, file| describe(source, file)["instructions"].as_array().unwrap().len();
        assert_eq!(instructions(&source, &first), instructions(&printed_source, &second), "{printed:?}");
        assert_eq!(first.instructions.last().unwrap().text, second.instructions.last().unwrap().text);
    }
}

#[test]
fn comments_and_directives_are_printed_too() {
    let text = "# escape=`\n# check=skip=all\n\n# one\n# two\nFROM a\n# three\nRUN b\n";
    assert_eq!(to_text(&file(text).1), text);
}

#[test]
fn a_heredoc_is_kept_with_and_without_its_tabs() {
    let (_, file) = file("FROM a\nRUN cat <<-A\n\tx\n\t\ty\n\tA\n");
    let Kind::Run(run) = &file.instructions[1].kind else { panic!("no RUN") };
    assert_eq!(run.command, Command::Shell("cat <<-A".to_owned()));
    assert_eq!(
        (run.heredocs[0].content.as_str(), run.heredocs[0].written.as_str()),
        ("x\ny\n", "\tx\n\t\ty\n")
    );
}

#[test]
fn the_json_of_errors_has_the_first_one_twice() {
    let source = Source::new("f", "FROM a\nCOPPY x y\n\nRUN --network=x \\\n  y\n");
    let value = describe_errors(&source, &parse(&source).unwrap_err());
    assert_eq!(value["version"], 1);
    assert_eq!(value["error"], value["errors"][0]);
    assert_eq!(value["error"]["lines"].to_string(), "[2,2]");
    assert_eq!(value["error"]["column"], 1);
    assert_eq!(value["error"]["message"], "unknown instruction COPPY; did you mean COPY?");
    assert_eq!(value["errors"][1]["lines"].to_string(), "[4,5]");
}

#[test]
fn the_json_of_a_file_has_the_keys_of_its_form() {
    let (source, file) =
        file("# syntax=docker/dockerfile:1\nFROM debian:12 AS build\nRUN --mount=type=cache,target=/c x\n");
    let value = describe(&source, &file);
    assert_eq!(value["version"], 1);
    assert_eq!(value["escape"], "\\");
    assert_eq!(
        value["directives"][0].to_string(),
        r#"{"line":1,"name":"syntax","value":"docker/dockerfile:1"}"#
    );
    let mount = &value["instructions"][1]["mounts"][0];
    let keys: Vec<&String> = mount.as_object().unwrap().keys().collect();
    let expected = [
        "env", "from", "gid", "id", "mode", "readonly", "required", "sharing", "size", "source", "target",
        "type", "uid",
    ];
    assert_eq!(keys, expected);
    assert!(mount["env"].is_null() && mount["mode"].is_null() && mount["size"] == 0 && mount["id"] == "");
}
