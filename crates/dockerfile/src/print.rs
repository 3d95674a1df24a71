//! A file back to text.

use std::fmt::Write as _;

use crate::ast::{Dockerfile, Heredoc, Instruction, Kind};
use crate::heredoc::{self, Marker};
use crate::instruction::Line;
use crate::logical::{Logical, continued};

/// Prints a file so that parsing the text gives the same instructions, with the same comments above them.
///
/// Each instruction is one line, as [`Instruction::text`] has it, and its heredocs.
pub fn to_text(file: &Dockerfile) -> String {
    let mut text = String::new();
    for directive in &file.directives {
        let _ = writeln!(text, "# {}={}", directive.name, directive.value);
    }
    // What follows is no directive, whatever it looks like.
    if file.instructions.first().is_some_and(|first| !first.comments.is_empty()) {
        text.push('\n');
    }
    for instruction in &file.instructions {
        for comment in &instruction.comments {
            let _ = writeln!(text, "# {comment}");
        }
        push(&mut text, instruction, file.escape);
    }
    text
}

fn push(text: &mut String, instruction: &Instruction, escape: char) {
    match &instruction.kind {
        // A trigger holds its heredocs, and keeps the blanks at its end.
        Kind::Onbuild(onbuild) => {
            text.push_str(&instruction.keyword);
            text.push(' ');
            text.push_str(&onbuild.trigger);
            if !onbuild.trigger.contains('\n') && continued(&onbuild.trigger, escape).1 {
                // Only the end of the file can have left an escape here, and another one in front of it goes again.
                text.push(escape);
            }
            text.push('\n');
        }
        kind => {
            text.push_str(&instruction.text);
            if continued(&instruction.text, escape).1 {
                // White space that the parser trims, but not where it looks for continuations.
                text.push('\u{b}');
            }
            text.push('\n');
            let heredocs: &[Heredoc] = match kind {
                Kind::Run(run) => &run.heredocs,
                Kind::Copy(copy) | Kind::Add(copy, _) => &copy.heredocs,
                _ => &[],
            };
            push_bodies(text, &instruction.text, heredocs, escape);
        }
    }
}

/// The body of each marker in the line. Of several with one name only the last one's counts.
fn push_bodies(text: &mut String, line: &str, heredocs: &[Heredoc], escape: char) {
    let mut logical = Logical::default();
    logical.push(line, 0);
    if !Line::new(logical.whole(), escape).takes_heredocs() || !line.contains("<<") {
        return;
    }
    let markers = heredoc::markers(line).unwrap_or_default();
    let is_copy = !line.get(..3).is_some_and(|keyword| keyword.eq_ignore_ascii_case("run"));
    for (at, marker) in markers.iter().enumerate() {
        let content = if is_copy { copied(marker, &markers[at + 1..], heredocs) } else { heredocs.get(at) };
        if let Some(heredoc) = content {
            text.push_str(&heredoc.written);
        }
        text.push_str(&marker.name);
        text.push('\n');
    }
}

fn copied<'a>(marker: &Marker, later: &[Marker], heredocs: &'a [Heredoc]) -> Option<&'a Heredoc> {
    if later.iter().any(|other| other.name == marker.name) {
        return None;
    }
    heredocs.iter().find(|heredoc| heredoc.name == marker.name)
}
