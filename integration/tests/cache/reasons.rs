//! What `--dryrun` says of a miss: which input changed since the last build.

use kiln_integration::Bench;
use serde_json::{Value, json};

use crate::{Remote, push_base, pushed};

struct Reasons {
    bench: Bench,
    remote: Remote,
    base: String,
}

impl Reasons {
    /// A build that was done once.
    fn of(dockerfile: &str) -> Self {
        let (bench, remote) = (Bench::new(), Remote::start());
        let base = push_base(&bench, &remote);
        bench.file("dir/one", "1").file("dir/sub/two", "2").file("three", "3");
        let reasons = Self { bench, remote, base };
        pushed(&reasons.bench, &reasons.remote, &reasons.text(dockerfile), &[]);
        reasons
    }

    fn text(&self, dockerfile: &str) -> String {
        format!("FROM {}\n{dockerfile}", self.base)
    }

    /// Verdict, changed inputs and changed files of each step; and the tree.
    fn plan(&self, dockerfile: &str, flags: &[&str]) -> (Vec<(Value, Value, Value)>, String) {
        let run = |dry: &str| {
            let flags: Vec<&str> = [dry].iter().chain(flags).copied().collect();
            pushed(&self.bench, &self.remote, &self.text(dockerfile), &flags)
        };
        let json: Value = serde_json::from_slice(&run("--dryrun=json").output.stdout).unwrap();
        let steps = json["stages"][0]["steps"].as_array().unwrap().iter();
        let steps =
            steps.map(|step| (step["verdict"].clone(), step["changed"].clone(), step["files"].clone()));
        (steps.collect(), String::from_utf8(run("--dryrun=text").output.stdout).unwrap())
    }
}

const FILE: &str = "ARG A=one\nRUN echo first > /first\nCOPY dir three /dir/\nRUN echo $A > /second\n";

fn missed(changed: Value, files: Value) -> (Value, Value, Value) {
    (json!("run"), changed, files)
}

fn hit() -> (Value, Value, Value) {
    (json!("hit"), Value::Null, Value::Null)
}

#[test]
fn an_edited_run_line_is_named() {
    let reasons = Reasons::of(FILE);
    let (steps, tree) = reasons.plan(&FILE.replace("echo $A", "echo again $A"), &[]);
    assert_eq!(steps, [hit(), hit(), missed(json!(["command"]), json!([]))]);
    assert!(tree.contains("(runs: changed since the last build: the command)"), "{tree}");
    let (steps, tree) = reasons.plan(&FILE.replace("echo first", "echo other"), &[]);
    let after = missed(json!([]), json!([]));
    assert_eq!(steps, [missed(json!(["command"]), json!([])), after.clone(), after]);
    assert!(tree.contains("(runs: a step before it changed since the last build)"), "{tree}");
}

#[test]
fn a_copied_file_that_changed_is_named() {
    let reasons = Reasons::of(FILE);
    reasons.bench.file("dir/sub/two", "changed");
    let (steps, tree) = reasons.plan(FILE, &[]);
    assert_eq!(steps[0], hit());
    assert_eq!(steps[1], missed(json!(["from"]), json!(["dir/sub/two"])));
    assert_eq!(steps[2], missed(json!([]), json!([])));
    assert!(tree.contains("changed since the last build: the files that it copies (dir/sub/two))"), "{tree}");
    reasons.bench.file("dir/sub/two", "2").file("dir/new", "n");
    let (steps, _) = reasons.plan(FILE, &[]);
    assert_eq!(steps[1], missed(json!(["from"]), json!(["dir/new"])));
}

#[test]
fn a_changed_argument_is_named_where_it_is_seen() {
    let reasons = Reasons::of(FILE);
    let (steps, tree) = reasons.plan(FILE, &["--build-arg=A=two"]);
    assert_eq!(steps[0], missed(json!(["env A"]), json!([])));
    assert_eq!(steps[2], missed(json!(["env A"]), json!([])));
    assert!(tree.contains("changed since the last build: env A"), "{tree}");
}

#[test]
fn a_base_that_is_another_image_now_is_named() {
    let reasons = Reasons::of(FILE);
    // Under the same tag.
    let destination = format!("--destination={}", reasons.base);
    let other = "FROM scratch\nADD base.tar /\nENV PATH=/bin OTHER=1\n";
    pushed(&reasons.bench, &reasons.remote, other, &[&destination]);
    let (steps, tree) = reasons.plan(FILE, &[]);
    assert_eq!(steps[0], missed(json!(["base image", "env OTHER"]), json!([])));
    assert_eq!(steps[1], missed(json!([]), json!([])));
    assert!(tree.contains("changed since the last build: base image, env OTHER"), "{tree}");
}
