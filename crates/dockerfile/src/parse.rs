//! The loop over a file: directives, comments, logical lines, heredocs; instructions in order and every error in order.

use crate::ast::{Directive, Dockerfile, Instruction, Kind};
use crate::heredoc::{self, Body, Marker};
use crate::instruction::Line;
use crate::logical::{Lines, Logical, RawLine, continued};
use crate::{CheckOptions, Diagnostic, Rule, Source, Span};

/// Reads a Dockerfile, or gives every error of it, in its order.
pub fn parse(source: &Source) -> Result<Dockerfile, Vec<Diagnostic>> {
    let mut reading = read(&source.text);
    reading.check_order();
    reading.finish()
}

/// Reads a trigger from an image's config: one instruction, and none that can't be a trigger.
pub fn parse_trigger(text: &str) -> Result<Instruction, Vec<Diagnostic>> {
    let mut file = read(text).finish()?;
    let whole = Span::new(0, text.len());
    let (Some(instruction), true) = (file.instructions.pop(), file.instructions.is_empty()) else {
        return Err(vec![Diagnostic::error(whole, "an ONBUILD trigger has to be a single instruction")]);
    };
    if let Kind::From(_) = instruction.kind {
        return Err(vec![Diagnostic::error(instruction.keyword_span, "FROM can't be a trigger of ONBUILD")]);
    }
    Ok(instruction)
}

/// A file as far as it could be read.
struct Reading {
    escape: char,
    directives: Vec<Directive>,
    entries: Vec<Entry>,
    errors: Vec<Diagnostic>,
    warnings: Vec<Diagnostic>,
    /// Where "there is nothing here" is said.
    start: usize,
}

/// A logical line, read or not.
struct Entry {
    span: Span,
    lines: (u32, u32),
    keyword: String,
    keyword_span: Span,
    /// Whether a stage begins here, be it a broken one.
    is_from: bool,
    read: Result<Instruction, Vec<Diagnostic>>,
}

/// What stands before the first wrong instruction.
pub(crate) fn right_part(text: &str) -> Dockerfile {
    let Reading { escape, directives, entries, warnings, .. } = read(text);
    let instructions = entries.into_iter().map_while(|entry| entry.read.ok()).collect();
    Dockerfile { escape, directives, instructions, warnings }
}

/// Where each instruction is, wrong ones included: its place, and its first and last line.
pub(crate) fn extents(text: &str) -> Vec<(Span, (u32, u32))> {
    read(text).entries.into_iter().map(|entry| (entry.span, entry.lines)).collect()
}

fn read(text: &str) -> Reading {
    let lines = Lines::new(text);
    let start = lines.offset();
    let mut reader = Reader {
        lines,
        escape: '\\',
        directives: Vec::new(),
        in_directives: true,
        has_shebang: false,
        comments: Vec::new(),
        entries: Vec::new(),
        errors: Vec::new(),
        warnings: Vec::new(),
    };
    while let Some(line) = reader.lines.next() {
        reader.first_line(line);
    }
    let Reader { escape, directives, entries, errors, warnings, .. } = reader;
    Reading { escape, directives, entries, errors, warnings, start }
}

impl Reading {
    /// Before the first FROM there is only ARG.
    fn check_order(&mut self) {
        for entry in self.entries.iter_mut().take_while(|entry| !entry.is_from) {
            let Ok(instruction) = &entry.read else { continue };
            if matches!(instruction.kind, Kind::Arg(_)) {
                continue;
            }
            let message = format!("{} stands before the first FROM", entry.keyword.to_uppercase());
            let error = Diagnostic::error(entry.keyword_span, message);
            entry.read = Err(vec![error.with_hint("only ARG can; write FROM first")]);
        }
    }

    fn finish(mut self) -> Result<Dockerfile, Vec<Diagnostic>> {
        if self.entries.is_empty() {
            let span = Span::new(self.start, self.start);
            self.errors
                .push(Diagnostic::error(span, "the file has no instructions").with_hint("write FROM first"));
        }
        let mut instructions = Vec::new();
        for entry in self.entries {
            match entry.read {
                Ok(instruction) => instructions.push(instruction),
                Err(errors) => self.errors.extend(errors),
            }
        }
        if self.errors.is_empty() {
            let (escape, directives, warnings) = (self.escape, self.directives, self.warnings);
            return Ok(Dockerfile { escape, directives, instructions, warnings });
        }
        Err(self.errors)
    }
}

struct Reader<'a> {
    lines: Lines<'a>,
    escape: char,
    directives: Vec<Directive>,
    in_directives: bool,
    has_shebang: bool,
    /// The comments since the last instruction or empty comment.
    comments: Vec<String>,
    entries: Vec<Entry>,
    errors: Vec<Diagnostic>,
    warnings: Vec<Diagnostic>,
}

impl<'a> Reader<'a> {
    /// A line that may be a directive, a comment, or the first of an instruction.
    fn first_line(&mut self, line: RawLine<'a>) {
        if self.directive(line) {
            return;
        }
        if line.is_comment() {
            let comment = line.text.get(1..).unwrap_or("").trim();
            // A `#` behind blanks is still in there.
            if comment.is_empty() {
                self.comments.clear();
            } else {
                self.comments.push(comment.to_owned());
            }
            return;
        }
        let body = line.body();
        let indent = body.len() - body.trim_start().len();
        let (text, mut open) = continued(&body[indent..], self.escape);
        if !open && text.is_empty() {
            return;
        }
        let mut logical = Logical::default();
        let start = line.start + indent;
        logical.push(text, start);
        let mut last = line;
        let mut has_empty = false;
        while open {
            let Some(next) = self.lines.next() else { break };
            last = next;
            if next.is_comment() {
                continue;
            }
            if next.is_blank() {
                has_empty = true;
                continue;
            }
            let (text, more) = continued(next.body(), self.escape);
            logical.push(text, next.start);
            open = more;
        }
        if has_empty {
            let message = "Empty continuation line";
            self.warnings.push(Diagnostic::warning(Rule::NoEmptyContinuation, last.span(), message));
        }
        self.instruction(&logical, start, line.number, last);
    }

    /// Takes the line if it is a directive.
    fn directive(&mut self, line: RawLine<'a>) -> bool {
        let body = line.body().trim_start();
        if line.number == 1 && body.starts_with("#!") {
            self.has_shebang = true;
            return false;
        }
        let Some((name, value, at)) = body.strip_prefix('#').and_then(split_directive) else {
            self.in_directives = false;
            return false;
        };
        // Behind a shebang line BuildKit still finds the other directives, and takes this one for a comment.
        if !self.in_directives || (self.has_shebang && name == "escape") {
            return false;
        }
        let value_start = line.start + line.body().len() - at;
        let value_span = Span::new(value_start, value_start + value.len());
        let fail = |message: String| Diagnostic::error(line.span(), message);
        if self.directives.iter().any(|directive| directive.name == name) {
            self.errors
                .push(fail(format!("the directive {name} is given twice")).with_hint("keep one of them"));
            return true;
        }
        match (name.as_str(), value) {
            ("escape", "\\") => self.escape = '\\',
            ("escape", "`") => self.escape = '`',
            ("escape", other) => {
                let error = Diagnostic::error(value_span, format!("{other} can't be the escape character"));
                self.errors.push(error.with_hint("write \\ or `"));
            }
            ("check", options) => {
                if let Err(why) = CheckOptions::parse(options) {
                    let error = Diagnostic::error(value_span, why);
                    self.errors.push(error.with_hint(
                        "write skip=NAMES, error=true or experimental=NAMES, with ; between them",
                    ));
                }
            }
            _ => {}
        }
        let value = value.to_owned();
        self.directives.push(Directive { name, value, line: line.number, span: line.span() });
        true
    }

    fn instruction(&mut self, logical: &Logical, start: usize, first: u32, last: RawLine<'a>) {
        let line = Line::new(logical.whole(), self.escape);
        let mut end = last.start + last.body().len();
        let mut errors = Vec::new();
        let mut bodies = Vec::new();
        if line.takes_heredocs() && line.whole.text().contains("<<") {
            match heredoc::markers(line.whole.text()) {
                Err(why) => errors.push(Diagnostic::error(line.rest.span(), why)),
                Ok(markers) => {
                    for marker in markers {
                        match self.body(&line, marker, &mut end) {
                            Ok(body) => bodies.push(body),
                            Err(error) => {
                                errors.push(error);
                                break;
                            }
                        }
                    }
                }
            }
        }
        let is_from = line.name == "FROM" || (line.near_keyword().as_deref() == Some("FROM"));
        let span = Span::new(start, end);
        let lines = (first, self.lines.number());
        let read = match line.read(bodies) {
            Err(more) => {
                errors.extend(more);
                errors.sort_by_key(|error| error.span.start);
                Err(errors)
            }
            Ok(_) if !errors.is_empty() => Err(errors),
            Ok(kind) => Ok(Instruction {
                keyword: line.keyword.text().to_owned(),
                keyword_span: line.keyword.span(),
                span,
                lines,
                flags: line.flags.clone(),
                text: line.whole.trim().text().to_owned(),
                comments: std::mem::take(&mut self.comments),
                kind,
            }),
        };
        self.comments.clear();
        self.entries.push(Entry {
            span,
            lines,
            keyword: line.keyword.text().to_owned(),
            keyword_span: line.keyword.span(),
            is_from,
            read,
        });
    }

    /// Takes lines up to the terminator.
    fn body(&mut self, line: &Line<'_>, marker: Marker, end: &mut usize) -> Result<Body, Diagnostic> {
        let start = self.lines.offset();
        let mut content = String::new();
        for raw in self.lines.by_ref() {
            *end = raw.start + raw.body().len();
            let text = if marker.strip_tabs { raw.body().trim_start_matches('\t') } else { raw.body() };
            if text == marker.name {
                return Ok(Body { marker, content, span: Span::new(start, raw.start) });
            }
            content.push_str(raw.text);
        }
        let text = line.whole.text();
        let place = text.find(&marker.raw).map_or(line.rest, |at| line.whole.sub(at..at + marker.raw.len()));
        let error = Diagnostic::error(place.span(), format!("the heredoc {} is not ended", marker.raw));
        Err(error.with_hint(format!("write a line that is {} and nothing else", marker.name)))
    }
}

/// Name, value, and how many bytes before the line's end the value begins.
pub(crate) fn split_directive(text: &str) -> Option<(String, &str, usize)> {
    const BLANKS: [char; 5] = ['\t', '\n', '\u{c}', '\r', ' '];
    let text = text.trim_start();
    let (name, value) = text.split_once('=')?;
    let name = name.trim_end_matches(BLANKS);
    if !name.starts_with(|c: char| c.is_ascii_alphabetic())
        || !name.bytes().all(|b| b.is_ascii_alphanumeric())
    {
        return None;
    }
    let name = name.to_ascii_lowercase();
    let value = value.trim_start_matches(BLANKS);
    let at = value.len();
    let value = value.trim_end_matches(BLANKS);
    (matches!(name.as_str(), "syntax" | "escape" | "check") && !value.is_empty()).then_some((name, value, at))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn errors(text: &str) -> Vec<String> {
        let source = Source::new("Dockerfile", text);
        let errors = parse(&source).expect_err(text);
        errors.iter().map(|error| format!("{}: {error}", source.line_col(error.span.start).0)).collect()
    }

    #[test]
    fn every_error_is_reported_in_order() {
        let text = "# escape=x\nRUN early\nFROM a\nCOPPY a b\nRUN <<EOF --x\nCOPY not an instruction\nEOF\nCOPY --frm=x a\n";
        assert_eq!(
            errors(text),
            [
                "1: x can't be the escape character; write \\ or `",
                "2: RUN stands before the first FROM; only ARG can; write FROM first",
                "4: unknown instruction COPPY; did you mean COPY?",
                "8: COPY has no flag --frm; did you mean --from?",
                "8: COPY needs a source and a destination; write COPY source destination",
            ]
        );
    }

    #[test]
    fn a_misspelt_from_is_reported_once() {
        assert_eq!(errors("FORM alpine\nRUN x\n"), ["1: unknown instruction FORM; did you mean FROM?"]);
    }
}
