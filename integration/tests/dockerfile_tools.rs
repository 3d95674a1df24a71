//! `kiln parse` and `kiln lint` as programs use them: what docs/dockerfile-tools.md promises.

use std::io::Write as _;
use std::process::{Command, Stdio};

use kiln_integration::kiln;
use serde_json::{Value, json};

/// Exit code and output of a command that reads `dockerfile` from standard input.
fn run(arguments: &[&str], dockerfile: &str) -> (i32, Value) {
    let mut child = Command::new(kiln())
        .args(arguments)
        .arg("-")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(dockerfile.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    (output.status.code().unwrap(), serde_json::from_slice(&output.stdout).unwrap())
}

#[test]
fn lint_prints_one_object_whether_the_file_is_right_or_wrong() {
    let (code, found) = run(&["lint", "--format", "json"], "FROM a AS b\nCMD echo hi\n");
    assert_eq!((code, &found["version"], &found["error"]), (0, &json!(1), &Value::Null));
    assert_eq!(found["warnings"][0]["check"], "JSONArgsRecommended");
    assert_eq!(found["warnings"][0]["lines"], json!([2, 2]));
    let (code, found) = run(&["lint", "--format", "json"], "FROM a\nCOPPY b c\n");
    assert_eq!((code, &found["version"], &found["warnings"]), (1, &json!(1), &json!([])));
    assert_eq!(found["error"]["lines"], json!([2, 2]));
    let (_, found) = run(&["lint", "--format", "json"], "FROM a AS B\nMAINTAINER c\nCOPPY d\nMAINTAINER e\n");
    let checks: Vec<&Value> = found["warnings"].as_array().unwrap().iter().map(|one| &one["check"]).collect();
    assert_eq!(checks, ["StageNameCasing", "MaintainerDeprecated"]);
}

#[test]
fn parse_says_what_each_instruction_holds() {
    let text =
        "FROM debian:12 AS Build\nRUN --mount=type=cache,target=/c <<EOF\nmake\nEOF\nCOPY --link a b /d/\n";
    let (code, found) = run(&["parse", "--json"], text);
    assert_eq!(code, 0, "{found}");
    let [from, run_, copy] = found["instructions"].as_array().unwrap().as_slice() else { panic!("{found}") };
    assert_eq!((&from["image"], &from["name"]), (&json!("debian:12"), &json!("build")));
    assert_eq!((&run_["form"], &run_["lines"]), (&json!("shell"), &json!([2, 4])));
    assert_eq!(run_["heredocs"][0]["content"], "make\n");
    assert_eq!(
        (&run_["mounts"][0]["type"], &run_["mounts"][0]["readonly"]),
        (&json!("cache"), &json!(false))
    );
    assert_eq!(copy["flags"], json!([{"name": "link", "value": null}]));
    assert_eq!((&copy["sources"], &copy["destination"]), (&json!(["a", "b"]), &json!("/d/")));
}

/// Fails unless `value` is an object with all of `needed`, and else only members of `known`.
fn members(value: &Value, needed: &[&str], known: &[&str]) {
    let object = value.as_object().unwrap_or_else(|| panic!("no object: {value}"));
    for name in needed {
        assert!(object.contains_key(*name), "{name} is missing: {value}");
    }
    for name in object.keys() {
        assert!(needed.contains(&name.as_str()) || known.contains(&name.as_str()), "{name}: {value}");
    }
}

#[test]
fn lint_in_sarif_is_what_the_standard_says_a_log_is() {
    for dockerfile in
        ["FROM a AS b\nCMD echo hi\nMAINTAINER é\nCMD echo é\n", "FROM a\n", "FROM a AS B\nCOPPY b c\n"]
    {
        let (_, log) = run(&["lint", "--format", "sarif"], dockerfile);
        // SARIF 2.1.0, 3.13 to 3.30: what each object must have, and the members that Kiln uses.
        members(&log, &["version", "runs"], &["$schema"]);
        assert_eq!(log["version"], "2.1.0");
        let [only] = log["runs"].as_array().unwrap().as_slice() else { panic!("{log}") };
        members(only, &["tool", "results"], &["columnKind"]);
        assert_eq!(only["columnKind"], "unicodeCodePoints");
        members(&only["tool"], &["driver"], &[]);
        members(&only["tool"]["driver"], &["name"], &["version", "rules"]);
        let rules = only["tool"]["driver"]["rules"].as_array().unwrap();
        rules.iter().for_each(|rule| members(rule, &["id"], &[]));
        for result in only["results"].as_array().unwrap() {
            members(result, &["message", "ruleId", "ruleIndex", "level", "locations"], &[]);
            members(&result["message"], &["text"], &[]);
            assert!(!result["message"]["text"].as_str().unwrap().is_empty());
            let rule = usize::try_from(result["ruleIndex"].as_u64().unwrap()).unwrap();
            assert_eq!(rules[rule]["id"], result["ruleId"]);
            assert!(["none", "note", "warning", "error"].contains(&result["level"].as_str().unwrap()));
            let [place] = result["locations"].as_array().unwrap().as_slice() else { panic!("{result}") };
            members(place, &["physicalLocation"], &[]);
            let place = &place["physicalLocation"];
            members(place, &["artifactLocation", "region"], &[]);
            members(&place["artifactLocation"], &["uri"], &[]);
            assert!(!place["artifactLocation"]["uri"].as_str().unwrap().contains([' ', ':', '#']), "{place}");
            let region = &place["region"];
            members(region, &["startLine", "startColumn", "endLine", "endColumn"], &[]);
            let number = |name: &str| region[name].as_u64().unwrap();
            let (start, end) =
                ((number("startLine"), number("startColumn")), (number("endLine"), number("endColumn")));
            assert!(start.0 >= 1 && start.1 >= 1 && end >= start, "{region}");
        }
    }
    let (_, log) = run(&["lint", "--format", "sarif"], "FROM a AS b\nCMD echo hi\n");
    assert_eq!(log["runs"][0]["results"][0]["ruleId"], "JSONArgsRecommended");
    assert_eq!(log["runs"][0]["results"][0]["locations"][0]["physicalLocation"]["region"]["startLine"], 2);
}
