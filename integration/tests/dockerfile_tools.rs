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
