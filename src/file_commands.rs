//! `kiln parse` and `kiln lint`: what a Dockerfile means, and what is odd about it.

use std::io::Read as _;

use kiln_dockerfile::{
    Diagnostic, Severity, Source, describe, describe_errors, describe_warnings, lint as check,
    lint_before_error, parse as read,
};

use crate::cli::{LintFlags, ParseFlags};
use crate::exit::Outcome;
use crate::sarif::sarif;
use crate::show;

fn source(file: &str) -> Result<Source, String> {
    let mut bytes = Vec::new();
    let read = if file == "-" {
        std::io::stdin().lock().read_to_end(&mut bytes).map(|_| ())
    } else {
        std::fs::read(file).map(|found| bytes = found)
    };
    read.map_err(|error| format!("could not read {file}: {error}"))?;
    Ok(Source::from_bytes(if file == "-" { "stdin" } else { file }, &bytes))
}

fn json(value: &serde_json::Value) {
    show::out(&format!("{}\n", serde_json::to_string_pretty(value).unwrap_or_default()));
}

fn errors(source: &Source, found: &[Diagnostic]) -> Outcome {
    for error in found {
        show::err(&show::diagnostic(source, error));
    }
    Outcome::Failed
}

/// `kiln parse`.
pub(crate) fn parse(flags: &ParseFlags) -> Outcome {
    let source = match source(&flags.file) {
        Ok(source) => source,
        Err(why) => return show::failed(&why),
    };
    match read(&source) {
        Ok(file) if flags.json => {
            json(&describe(&source, &file));
            Outcome::Done
        }
        Ok(file) => {
            for instruction in &file.instructions {
                show::out(&format!("{:>4}  {}\n", instruction.lines.0, instruction.text));
            }
            Outcome::Done
        }
        Err(found) if flags.json => {
            json(&describe_errors(&source, &found));
            Outcome::Failed
        }
        Err(found) => errors(&source, &found),
    }
}

/// `kiln lint`.
pub(crate) fn lint(flags: &LintFlags) -> Outcome {
    let source = match source(&flags.file) {
        Ok(source) => source,
        Err(why) => return show::failed(&why),
    };
    let file = match read(&source) {
        Ok(file) => file,
        Err(found) => return lint_of_wrong_file(&source, &found, &flags.format),
    };
    let found = check(&source, &file);
    match flags.format.as_str() {
        "json" => json(&serde_json::json!({
            "version": 1,
            "warnings": describe_warnings(&source, &file, &found),
            "error": null,
        })),
        "sarif" => json(&sarif(&source, &found)),
        _ => found.iter().for_each(|finding| show::out(&show::diagnostic(&source, finding))),
    }
    let failed = found.iter().any(|finding| finding.severity == Severity::Error);
    if failed { Outcome::Failed } else { Outcome::Done }
}

/// What can be said about a file that has errors.
fn lint_of_wrong_file(source: &Source, found: &[Diagnostic], format: &str) -> Outcome {
    let (file, findings) = lint_before_error(source);
    match format {
        "json" => {
            let mut wrong = describe_errors(source, found);
            wrong["warnings"] = describe_warnings(source, &file, &findings);
            json(&wrong);
        }
        "sarif" => json(&sarif(source, &[&findings, found].concat())),
        _ => {
            for finding in &findings {
                show::out(&show::diagnostic(source, finding));
            }
            return errors(source, found);
        }
    }
    Outcome::Failed
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_page_about_lint_names_every_check() {
        let page = include_str!("../docs/dockerfile-tools.md");
        for rule in kiln_dockerfile::Rule::CHECKS {
            assert!(page.contains(&format!("| `{rule}` |")), "docs/dockerfile-tools.md lacks {rule}");
        }
    }
}
