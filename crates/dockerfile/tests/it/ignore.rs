//! `tests/cases/ignore`: lists of patterns and what they hide.

use kiln_dockerfile::{BadPattern, Ignore};

use crate::case_files;

#[test]
fn paths_are_ignored_as_the_table_says() {
    let mut count = 0;
    let mut wrong = Vec::new();
    for (path, text) in case_files("ignore") {
        let mut list: Vec<String> = Vec::new();
        let mut reading = false;
        let mut excludes = false;
        for (number, line) in text.lines().enumerate() {
            if let "@patterns" | "@excludes" = line {
                list.clear();
                reading = true;
                excludes = line == "@excludes";
                continue;
            }
            let (verdict, name) = line.split_once(' ').unwrap_or((line, ""));
            if !matches!(verdict, "ignored" | "kept" | "skipped" | "walked" | "bad") {
                if reading {
                    list.push(line.replace('␠', " ").replace('␍', "\r"));
                }
                continue;
            }
            reading = false;
            count += 1;
            let found = judge(&list, excludes, verdict, name);
            if found != Ok(true) {
                wrong.push(format!("{}:{}: {line}: {found:?}", path.display(), number + 1));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(count >= 150, "{count} cases");
}

fn judge(list: &[String], excludes: bool, verdict: &str, name: &str) -> Result<bool, BadPattern> {
    let ignore = if excludes { Ignore::from_patterns(list) } else { Ignore::parse(&list.join("\n")) };
    if verdict == "bad" {
        return Ok(ignore.is_err());
    }
    let ignore = ignore?;
    Ok(match verdict {
        "ignored" => ignore.is_ignored(name, false) && ignore.is_ignored(name, true),
        "kept" => !ignore.is_ignored(name, false),
        "skipped" => ignore.can_skip_dir(name),
        _ => !ignore.can_skip_dir(name),
    })
}
