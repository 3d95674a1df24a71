//! The checks that need no variables: names, casing, comments.

use std::collections::BTreeSet;

use super::{Report, warning};
use crate::ast::{From, Instruction, Kind};
use crate::{Dockerfile, Rule};

pub(super) fn check(file: &Dockerfile, report: &mut Report) {
    check_each(file, report);
    check_names(file, report);
    check_casing(file, report);
}

/// What one instruction alone tells.
pub(super) fn check_each(file: &Dockerfile, report: &mut Report) {
    for instruction in &file.instructions {
        match &instruction.kind {
            Kind::Maintainer(_) => report.add(
                instruction,
                warning(Rule::MaintainerDeprecated, instruction.keyword_span, "MAINTAINER is deprecated")
                    .with_hint("write LABEL org.opencontainers.image.authors=NAME"),
            ),
            Kind::From(from) => check_from(instruction, from, report),
            Kind::Arg(declarations) => {
                let names: Vec<&str> =
                    declarations.iter().map(|declaration| declaration.key.raw.as_str()).collect();
                check_description(instruction, &names, report);
            }
            _ => {}
        }
    }
}

fn check_from(instruction: &Instruction, from: &From, report: &mut Report) {
    let (Some(name), Some(written)) = (&from.name, &from.name_word) else { return };
    if written.raw.to_lowercase() != written.raw {
        let message = format!("the stage name {} has upper-case letters", written.raw);
        report.add(
            instruction,
            warning(Rule::StageNameCasing, written.span, message).with_hint(format!("write {name}")),
        );
    }
    // FROM … AS name: the word before the last one.
    let as_ = instruction.text.split_whitespace().rev().nth(1).unwrap_or("");
    let keyword = instruction.keyword.as_str();
    let wanted = if keyword == keyword.to_lowercase() {
        as_.to_lowercase()
    } else if keyword == keyword.to_uppercase() {
        as_.to_uppercase()
    } else {
        // The check for keywords has something to say about that one.
        as_.to_owned()
    };
    if as_ != wanted {
        let message = format!("{as_} and {keyword} are not in the same case");
        let found = warning(Rule::FromAsCasing, instruction.keyword_span, message);
        report.add(instruction, found.with_hint(format!("write {wanted}")));
    }
    check_description(instruction, &[name], report);
}

/// A comment right above a stage or an argument describes it, and begins with its name.
fn check_description(instruction: &Instruction, names: &[&str], report: &mut Report) {
    let Some(comment) = instruction.comments.last() else { return };
    let first = comment.split(' ').next().unwrap_or("");
    if names.is_empty() || names.contains(&first) {
        return;
    }
    let keyword = instruction.kind.keyword();
    let name = if let [name] = names { name } else { "NAME" };
    let message = format!("the comment above this {keyword} does not describe it");
    let found = warning(Rule::InvalidDefinitionDescription, instruction.keyword_span, message);
    report.add(
        instruction,
        found.with_hint(format!("write # {name} and what it is, or # alone below the comment")),
    );
}

fn check_names(file: &Dockerfile, report: &mut Report) {
    let mut seen = BTreeSet::new();
    for instruction in &file.instructions {
        let Kind::From(From { name: Some(name), name_word: Some(word), .. }) = &instruction.kind else {
            continue;
        };
        if matches!(name.as_str(), "context" | "scratch") {
            let message = format!("{name} as a stage's name hides what {name} means elsewhere");
            report.add_to_file(warning(Rule::ReservedStageName, word.span, message));
        }
        if !seen.insert(name) {
            let message = format!("two stages are called {name}");
            report.add_to_file(warning(Rule::DuplicateStageName, word.span, message));
        }
    }
}

/// Keywords are in the case that most keywords are in. ARGs before the first FROM don't count.
fn check_casing(file: &Dockerfile, report: &mut Report) {
    let keywords =
        || file.instructions.iter().skip_while(|instruction| !matches!(instruction.kind, Kind::From(_)));
    let (mut lower, mut upper) = (0, 0);
    for instruction in keywords() {
        let keyword = &instruction.keyword;
        if *keyword == keyword.to_lowercase() {
            lower += 1;
        } else if *keyword == keyword.to_uppercase() {
            upper += 1;
        }
    }
    for instruction in keywords() {
        let keyword = &instruction.keyword;
        let (wanted, case) =
            if lower > upper { (keyword.to_lowercase(), "lower") } else { (keyword.to_uppercase(), "upper") };
        if *keyword != wanted {
            let message = format!("{keyword} is not in {case} case, as most keywords here are");
            let found = warning(Rule::ConsistentInstructionCasing, instruction.keyword_span, message);
            report.add_to_file(found.with_hint(format!("write {wanted}")));
        }
    }
}
