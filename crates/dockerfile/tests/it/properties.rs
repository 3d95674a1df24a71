//! What holds for every text.

use std::collections::BTreeMap;

use kiln_dockerfile::{
    Ignore, Source, Span, Word, describe, describe_errors, expand_heredoc, go_match, parse, parse_trigger,
    to_text,
};
use proptest::prelude::*;
use serde_json::Value;

/// Pieces that mean something to the parser, in random order.
fn soup(pieces: &'static [&'static str], most: usize) -> impl Strategy<Value = String> {
    prop::collection::vec(prop::sample::select(pieces), 0..most).prop_map(|parts| parts.concat())
}

const ANYTHING: &[&str] = &[
    "FROM",
    "RUN",
    "run",
    "COPY",
    "ADD",
    "ENV",
    "ARG",
    "LABEL",
    "ONBUILD",
    "HEALTHCHECK",
    "CMD",
    "NONE",
    "SHELL",
    "VOLUME",
    "EXPOSE",
    "USER",
    "WORKDIR",
    "STOPSIGNAL",
    "MAINTAINER",
    "ENTRYPOINT",
    " ",
    " ",
    " ",
    "  ",
    "\t",
    "\n",
    "\n",
    "\r\n",
    "\r",
    "\u{b}",
    "\u{a0}",
    "\u{feff}",
    "\\",
    "\\\n",
    "`",
    "`\n",
    "#",
    "# escape=`\n",
    "# check=skip=all\n",
    "# syntax=x",
    "=",
    "a",
    "b",
    "x=y",
    "'",
    "\"",
    "$",
    "${",
    "}",
    ":-",
    "$x",
    "<<",
    "<<-",
    "<<EOF",
    "<<'E'",
    "EOF\n",
    "E\n",
    "3<<x",
    "x\n",
    "--",
    "--from=",
    "--mount=type=",
    "cache,target=/c",
    "--link",
    "--chown=",
    "[",
    "]",
    "[\"a\", \"b\"]",
    ",",
    "{",
    "/",
    ".",
    "é",
    "\u{0}",
    "😀",
];

const ARGUMENTS: &[&str] = &[
    "a",
    "b",
    "/d/",
    " ",
    " ",
    "  ",
    "\t",
    "\u{b}",
    "\u{a0}",
    "\\\n",
    "\\ \n",
    "\\\n# c\n",
    "\\\n\n",
    "\\",
    "'",
    "\"",
    "$x",
    "${x:-",
    "}",
    "<<A",
    "<<-A",
    "<<'A'",
    "<<\"B\"",
    "<<A\\ B",
    "4<<A",
    "\nA\n",
    "\n\tA\n",
    "\nB\n",
    "\n\t\tx\nA\n",
    "\nA B\n",
    "\r\nA\r\n",
    "=",
    "x=y",
    "--",
    "-- --z",
    "[\"a\", \"b c\"]",
    "[\"",
    "\\u00e9",
    "\"]",
    "`",
    "é",
    "#",
];

/// One instruction behind FROM: most of these are right.
fn instruction() -> impl Strategy<Value = String> {
    let keyword = prop::sample::select(
        &[
            "RUN ",
            "RUN ",
            "COPY ",
            "COPY ",
            "ADD ",
            "ENV a=b ",
            "ENV ",
            "ARG ",
            "LABEL ",
            "CMD ",
            "ONBUILD RUN ",
            "ONBUILD COPY ",
            "HEALTHCHECK CMD ",
            "HEALTHCHECK NONE",
            "VOLUME ",
            "EXPOSE ",
            "USER ",
            "WORKDIR ",
            "STOPSIGNAL ",
            "MAINTAINER ",
            "entrypoint ",
            "from ",
            "SHELL ",
            "ARG --x='y z' ",
            "# comment\nRUN ",
            "\nRUN ",
            "# check=skip=all\nUSER ",
            "\n# escape=`\nUSER ",
            "RUN --mount=type=bind,target='/a b' ",
            "COPY --exclude=\"a b\" ",
        ][..],
    );
    (keyword, soup(ARGUMENTS, 12)).prop_map(|(keyword, rest)| format!("{keyword}{rest}"))
}

fn file() -> impl Strategy<Value = String> {
    let head = prop::sample::select(
        &["", "# escape=`\n", "# syntax=a\n# escape=\\\n", "\n# escape=`\n", "ARG a=b\n"][..],
    );
    (head, prop::collection::vec(instruction(), 1..4))
        .prop_map(|(head, lines)| format!("{head}FROM alpine\n{}", lines.join("\n")))
}

/// What a file means, without places.
fn meaning(text: &str) -> Option<(Value, Vec<Value>)> {
    let source = Source::new("f", text);
    let file = parse(&source).ok()?;
    let mut value = describe(&source, &file);
    for instruction in value["instructions"].as_array_mut().unwrap() {
        let instruction = instruction.as_object_mut().unwrap();
        instruction.remove("lines");
        instruction.remove("span");
    }
    let checks = value["warnings"].as_array().unwrap().iter().map(|warning| warning["check"].clone());
    let checks = checks.filter(|check| check != "NoEmptyContinuation").collect();
    let keep = serde_json::json!([value["escape"], value["instructions"]]);
    Some((keep, checks))
}

/// Parses and checks that all places are in the text.
fn check_places(text: &str) {
    let source = Source::new("f", text);
    match parse(&source) {
        Ok(file) => {
            describe(&source, &file);
            let mut last = 0;
            for instruction in &file.instructions {
                assert!(instruction.lines.0 > last && instruction.lines.1 >= instruction.lines.0);
                last = instruction.lines.1;
                assert!(source.slice(instruction.span).len() >= instruction.keyword.len());
                for flag in &instruction.flags {
                    assert!(source.slice(flag.span).starts_with('-'), "{:?}", source.slice(flag.span));
                }
            }
        }
        Err(errors) => {
            assert!(!errors.is_empty());
            for error in &errors {
                assert!(error.span.end as usize <= text.len(), "{error:?}");
                assert!(text.get(error.span.start as usize..error.span.end as usize).is_some(), "{error:?}");
            }
            describe_errors(&source, &errors);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_bytes_make_the_parser_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        check_places(&Source::from_bytes("f", &bytes).text);
    }

    #[test]
    fn no_text_makes_the_parser_panic(text in soup(ANYTHING, 40)) {
        check_places(&text);
        let _ = parse_trigger(&text);
    }

    #[test]
    fn a_printed_file_means_the_same(text in file()) {
        check_places(&text);
        let source = Source::new("f", text.as_str());
        if let Ok(file) = parse(&source) {
            let printed = to_text(&file);
            prop_assert_eq!(meaning(&text), meaning(&printed), "printed: {:?}", printed);
        }
    }

    #[test]
    fn no_word_makes_expansion_panic(
        raw in soup(&["$", "${", "}", "a", "b", ":", "-", "+", "?", "#", "%", "/", "*", "\\", "'", "\"", " ", "<", "é", "`"], 30),
        value in soup(&["a", "b", "/", "é", "\n", "*", "\\"], 8),
    ) {
        let scope = BTreeMap::from([("a".to_owned(), value)]);
        for escape in ['\\', '`'] {
            let word = Word { raw: raw.clone(), span: Span::default(), escape };
            let _ = (word.expand(&scope), word.expand_words(&scope), word.literal(), expand_heredoc(&raw, escape, &scope));
        }
    }

    #[test]
    fn a_word_without_signs_is_itself(raw in "[a-zA-Z0-9_/.:=, -]{0,20}") {
        let word = Word { raw: raw.clone(), span: Span::default(), escape: '\\' };
        prop_assert_eq!(word.expand(&()).unwrap().text, raw.clone());
        prop_assert_eq!(word.literal(), raw);
    }

    #[test]
    fn what_a_walk_skips_is_ignored(
        patterns in prop::collection::vec(soup(&["!", "a", "b", "/", "/", "*", "**", "?", "[a]", "\\", ".", "^", "#", " "], 8), 0..5),
        path in "[ab]{1,2}(/[ab]{1,2}){1,3}",
    ) {
        if let Ok(ignore) = Ignore::parse(&patterns.join("\n")) {
            let ignored = ignore.is_ignored(&path, false);
            for (at, _) in path.match_indices('/') {
                if ignore.can_skip_dir(&path[..at]) {
                    prop_assert!(ignored, "{} below {}", path, &path[..at]);
                }
            }
        }
    }

    #[test]
    fn a_pattern_without_signs_matches_itself_alone(name in "[a-z./]{1,8}", other in "[a-z./]{1,8}") {
        prop_assert_eq!(go_match(&name, &name), Ok(true));
        prop_assert_eq!(go_match(&name, &other), Ok(name == other));
    }
}
