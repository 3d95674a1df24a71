//! `tests/cases/files`: Dockerfiles and what they mean.

use std::fmt::Write as _;

use kiln_dockerfile::{Source, describe, describe_errors, parse};
use serde_json::Value;

use crate::{assert_unchanged, case_files};

/// The case's text with its invisible characters.
pub(crate) fn unfold(text: &str) -> String {
    let text = text
        .replace('␉', "\t")
        .replace('␍', "\r")
        .replace('␠', " ")
        .replace('␀', "\0")
        .replace('␈', "\u{feff}");
    text.strip_suffix("␄\n").map(str::to_owned).unwrap_or(text)
}

/// Each case of a file: name, text.
pub(crate) fn cases(text: &str) -> impl Iterator<Item = (&str, &str)> {
    text.split("=== ").skip(1).map(|case| {
        let (name, rest) = case.split_once('\n').unwrap();
        (name, rest.split_once("---\n").unwrap_or_else(|| panic!("{name} has no ---")).0)
    })
}

/// The whole file as it has to be.
pub(crate) fn written(text: &str, mean: impl Fn(&str) -> String) -> String {
    let mut all = text.split("=== ").next().unwrap().to_owned();
    for (name, case) in cases(text) {
        let _ = write!(all, "=== {name}\n{case}---\n{}\n", mean(&unfold(case)));
    }
    all.truncate(all.trim_end().len());
    all.push('\n');
    all
}

fn lines(value: &Value) -> String {
    if value[0] == value[1] { value[0].to_string() } else { format!("{}-{}", value[0], value[1]) }
}

fn meaning(text: &str) -> String {
    let source = Source::new("Dockerfile", text);
    let mut out = String::new();
    match parse(&source) {
        Ok(file) => {
            let value = describe(&source, &file);
            if value["escape"] != "\\" {
                let _ = writeln!(out, "escape {}", value["escape"]);
            }
            for directive in value["directives"].as_array().unwrap() {
                let _ = writeln!(
                    out,
                    "{} directive {} {}",
                    directive["line"], directive["name"], directive["value"]
                );
            }
            for instruction in value["instructions"].as_array().unwrap() {
                let mut rest = instruction.as_object().unwrap().clone();
                let keyword = rest.remove("keyword").unwrap();
                let place = lines(&rest.remove("lines").unwrap());
                rest.remove("span");
                rest.remove("text");
                shorten(&mut rest);
                let _ = writeln!(out, "{place} {} {}", keyword.as_str().unwrap(), Value::Object(rest));
            }
        }
        Err(errors) => {
            for error in describe_errors(&source, &errors)["errors"].as_array().unwrap() {
                let place = format!("{}:{}", lines(&error["lines"]), error["column"]);
                let _ = writeln!(out, "! {place}: {}", error["message"].as_str().unwrap());
            }
        }
    }
    out
}

/// Leaves out what is as it is where nothing is said.
fn shorten(object: &mut serde_json::Map<String, Value>) {
    let empty = Value::Array(Vec::new());
    object.retain(|key, value| {
        !(matches!(key.as_str(), "flags" | "heredocs" | "mounts") && *value == empty
            || (key.ends_with("_ns") || key == "retries") && *value == 0)
    });
    for mount in object.get_mut("mounts").and_then(Value::as_array_mut).into_iter().flatten() {
        mount.as_object_mut().unwrap().retain(|key, value| {
            key == "readonly" || !(value.is_null() || *value == 0 || *value == "" || *value == false)
        });
    }
}

#[test]
fn files_mean_what_the_cases_say() {
    let mut count = 0;
    for (path, text) in case_files("files") {
        count += cases(&text).count();
        assert_unchanged(&path, &text, &written(&text, meaning));
    }
    assert!(count >= 150, "{count} cases");
}
