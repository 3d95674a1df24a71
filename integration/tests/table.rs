//! Every build of `cases/`: the whole tree, what each layer holds, and the config. `make bless` writes down what comes out
//! as what must come out; look at the difference before it is committed.

#![expect(clippy::disallowed_methods, reason = "a test program reads its own environment")]

use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use kiln_integration::base::base_layout;
use kiln_integration::case::Case;

/// One difference, as a person wants to see it.
fn difference(section: &str, expected: &str, found: &str) -> String {
    let (old, new): (Vec<&str>, Vec<&str>) = (expected.lines().collect(), found.lines().collect());
    let gone = old.iter().filter(|line| !new.contains(line)).map(|line| format!("  - {line}\n"));
    let come = new.iter().filter(|line| !old.contains(line)).map(|line| format!("  + {line}\n"));
    let lines: String = gone.chain(come).collect();
    format!("{section}:\n{}", if lines.is_empty() { "  the order differs\n".to_owned() } else { lines })
}

fn check(case: &Case, base: &Path, bless: bool) -> Option<String> {
    let found = match case.run(&kiln_integration::kiln(), base) {
        Ok(found) => found,
        Err(why) => return Some(format!("{}: {why}", case.name)),
    };
    let expected = case.expected();
    if found == expected {
        return None;
    }
    if bless {
        case.bless(&found);
    }
    let names: std::collections::BTreeSet<&String> = expected.keys().chain(found.keys()).collect();
    let text = |map: &std::collections::BTreeMap<String, String>, name: &String| {
        map.get(name).cloned().unwrap_or_default()
    };
    let differences: String = names
        .into_iter()
        .filter(|name| expected.get(*name) != found.get(*name))
        .map(|name| difference(name, &text(&expected, name), &text(&found, name)))
        .collect();
    Some(format!("{}\n{differences}", case.name))
}

/// Runs the cases whose names begin with one of `groups`.
fn table(groups: &[&str]) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("cases");
    let only = std::env::var("CASE").unwrap_or_default();
    let cases: Vec<Case> = Case::all(&folder)
        .into_iter()
        .filter(|case| case.name.contains(&only) && groups.contains(&group(case)))
        .collect();
    let bless = std::env::var_os("KILN_BLESS").is_some();
    let base = tempfile::tempdir().unwrap();
    base_layout(base.path());
    let (next, failures) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while let Some(case) = cases.get(next.fetch_add(1, Ordering::Relaxed)) {
                    failures.lock().unwrap().extend(check(case, base.path(), bless));
                }
            });
        }
    });
    let failures = failures.into_inner().unwrap();
    assert!(
        bless || failures.is_empty(),
        "{} of {} cases differ:\n\n{}",
        failures.len(),
        cases.len(),
        failures.join("\n")
    );
}

fn group(case: &Case) -> &str {
    case.name.split('-').next().unwrap_or_default()
}

const OTHERS: [&str; 4] = ["ign", "nc", "stage", "layers"];

#[test]
fn add_gives_what_its_cases_name() {
    table(&["add"]);
}

#[test]
fn metadata_gives_what_its_cases_name() {
    table(&["cfg"]);
}

#[test]
fn copy_gives_what_its_cases_name() {
    table(&["copy"]);
}

#[test]
fn heredocs_and_mounts_give_what_their_cases_name() {
    table(&["heredoc", "mnt"]);
}

#[test]
fn run_gives_what_its_cases_name() {
    table(&["run"]);
}

#[test]
fn syntax_and_sources_give_what_their_cases_name() {
    table(&["syntax"]);
    table(&OTHERS);
}

#[test]
fn every_case_is_in_one_of_the_groups() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("cases");
    let cases = Case::all(&folder);
    assert!(cases.len() >= 80, "{} cases", cases.len());
    let known = ["add", "cfg", "copy", "heredoc", "mnt", "run", "syntax"];
    for case in &cases {
        let group = group(case);
        assert!(known.contains(&group) || OTHERS.contains(&group), "{}: in no group", case.name);
    }
}
