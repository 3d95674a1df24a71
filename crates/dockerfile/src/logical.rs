//! Logical lines: directives, comments, continuation lines and heredoc bodies. What comes out is one text per
//! instruction, with a map back to the file.

use crate::split::heredoc_words;
use crate::{Diagnostic, Directive, Heredoc, Rule, Source, Span};

/// One instruction's text, continuation lines joined.
pub(crate) struct Logical {
    pub(crate) text: String,
    /// Offsets in `text` where a piece begins, and where it came from.
    map: Vec<(usize, usize)>,
    pub(crate) span: Span,
    pub(crate) lines: (u32, u32),
    pub(crate) heredocs: Vec<Heredoc>,
}

impl Logical {
    /// The place in the file of a range of the text.
    pub(crate) fn span_of(&self, start: usize, end: usize) -> Span {
        let from = |offset: usize| {
            let piece = self.map.iter().rev().find(|(begin, _)| *begin <= offset);
            piece.map_or(self.span.start as usize, |(begin, source)| source + offset - begin)
        };
        let last = if end > start { from(end - 1) + 1 } else { from(start) };
        Span::new(from(start), last.max(from(start)))
    }

    /// A text that stands for itself: an ONBUILD trigger.
    pub(crate) fn nested(&self, start: usize) -> Self {
        let map = std::iter::once((0, self.span_of(start, start).start as usize))
            .chain(
                self.map
                    .iter()
                    .filter(|(begin, _)| *begin > start)
                    .map(|(begin, source)| (begin - start, *source)),
            )
            .collect();
        Self {
            text: self.text[start..].to_owned(),
            map,
            span: self.span,
            lines: self.lines,
            heredocs: self.heredocs.clone(),
        }
    }
}

/// What a file is made of.
#[derive(Default)]
pub(crate) struct File {
    pub(crate) escape: char,
    pub(crate) directives: Vec<Directive>,
    pub(crate) lines: Vec<Logical>,
    pub(crate) warnings: Vec<Diagnostic>,
    pub(crate) errors: Vec<Diagnostic>,
}

struct Reader<'a> {
    /// The physical lines: offset and text with its newline.
    lines: Vec<(usize, &'a str)>,
    at: usize,
    file: File,
}

/// Splits a file.
pub(crate) fn split(source: &Source) -> File {
    let bom = if source.text.starts_with('\u{feff}') { '\u{feff}'.len_utf8() } else { 0 };
    let mut offset = bom;
    let mut lines = Vec::new();
    for line in source.text[bom..].split_inclusive('\n') {
        lines.push((offset, line));
        offset += line.len();
    }
    let mut reader = Reader { lines, at: 0, file: File { escape: '\\', ..File::default() } };
    reader.directives();
    while reader.at < reader.lines.len() {
        reader.instruction();
    }
    reader.file
}

fn is_comment(line: &str) -> bool {
    line.trim_start().starts_with('#')
}

fn bare(line: &str) -> &str {
    line.trim_end_matches(['\r', '\n'])
}

impl Reader<'_> {
    fn directives(&mut self) {
        while let Some(&(offset, line)) = self.lines.get(self.at) {
            let line = bare(line);
            let Some((name, value)) = directive(line) else { return };
            self.at += 1;
            let name = name.to_ascii_lowercase();
            if !matches!(name.as_str(), "escape" | "syntax" | "check") {
                continue;
            }
            let span = Span::new(offset, offset + line.len());
            if self.file.directives.iter().any(|other| other.name == name) {
                let message = format!("only one {name} parser directive can be used");
                self.file.errors.push(Diagnostic::error(span, message));
                continue;
            }
            if name == "escape" {
                match value {
                    "\\" | "`" => self.file.escape = value.chars().next().unwrap_or('\\'),
                    _ => {
                        let message = format!("invalid escape character {value:?}");
                        let error = Diagnostic::error(span, message).with_hint("it is \\ or a backtick");
                        self.file.errors.push(error);
                    }
                }
            }
            let line = u32::try_from(self.at).unwrap_or(u32::MAX);
            self.file.directives.push(Directive { name, value: value.to_owned(), line, span });
        }
    }

    /// The line without its continuation mark, and whether there was one.
    fn continued<'l>(&self, line: &'l str) -> (&'l str, bool) {
        let trimmed = line.trim_end_matches([' ', '\t']);
        match trimmed.strip_suffix(self.file.escape) {
            Some(before) if !before.ends_with(self.file.escape) => (before, true),
            _ => (line, false),
        }
    }

    fn instruction(&mut self) {
        let first = self.at;
        let (offset, line) = self.lines[first];
        self.at += 1;
        let line = bare(line);
        if is_comment(line) || line.trim().is_empty() {
            return;
        }
        let indent = line.len() - line.trim_start().len();
        let (piece, mut open) = self.continued(&line[indent..]);
        let mut text = piece.to_owned();
        let mut map = vec![(0, offset + indent)];
        let mut end = offset + indent + piece.len();
        let mut empty = None;
        while open && self.at < self.lines.len() {
            let (offset, line) = self.lines[self.at];
            self.at += 1;
            let line = bare(line);
            if is_comment(line) {
                continue;
            }
            if line.trim().is_empty() {
                empty = Some(Span::new(offset, offset + line.len()));
                continue;
            }
            let piece;
            (piece, open) = self.continued(line);
            map.push((text.len(), offset));
            text.push_str(piece);
            end = offset + piece.len();
        }
        if text.trim().is_empty() {
            return;
        }
        if let Some(span) = empty {
            self.file.warnings.push(Diagnostic::warning(
                Rule::NoEmptyContinuation,
                span,
                format!("Empty continuation line in: {}", text.trim_end()),
            ));
        }
        let number = |index: usize| u32::try_from(index).unwrap_or(u32::MAX);
        let span = Span::new(offset + indent, end);
        let mut logical =
            Logical { text, map, span, lines: (number(first + 1), number(self.at)), heredocs: Vec::new() };
        if may_hold_heredocs(&logical.text) {
            match heredoc_words(&logical.text) {
                Ok(found) => self.heredocs(&mut logical, found),
                Err(why) => self.file.errors.push(Diagnostic::error(span, why)),
            }
            logical.lines.1 = number(self.at);
        }
        self.file.lines.push(logical);
    }

    fn heredocs(&mut self, logical: &mut Logical, found: Vec<Heredoc>) {
        for mut heredoc in found {
            let begin = self.lines.get(self.at).map_or(logical.span.end as usize, |(offset, _)| *offset);
            let mut terminated = false;
            while let Some(&(offset, line)) = self.lines.get(self.at) {
                self.at += 1;
                let stripped = if heredoc.strip_tabs { line.trim_start_matches('\t') } else { line };
                if bare(stripped) == heredoc.name {
                    heredoc.span = Span::new(begin, offset);
                    logical.span.end = Span::new(0, offset + bare(line).len()).end;
                    terminated = true;
                    break;
                }
                heredoc.content.push_str(stripped);
            }
            if !terminated {
                let message = format!("unterminated heredoc: no line is {:?}", heredoc.name);
                let hint = format!("end it with a line that holds {} alone", heredoc.name);
                self.file.errors.push(Diagnostic::error(logical.span, message).with_hint(hint));
            }
            logical.heredocs.push(heredoc);
        }
    }
}

fn may_hold_heredocs(text: &str) -> bool {
    if !text.contains("<<") {
        return false;
    }
    let mut words = text.split_whitespace().map(str::to_ascii_uppercase);
    let keyword = match words.next().as_deref() {
        Some("ONBUILD") => words.next().unwrap_or_default(),
        Some(other) => other.to_owned(),
        None => return false,
    };
    matches!(keyword.as_str(), "ADD" | "COPY" | "RUN")
}

/// `# name = value`.
fn directive(line: &str) -> Option<(&str, &str)> {
    let (name, value) = line.trim_start().strip_prefix('#')?.split_once('=')?;
    let (name, value) = (name.trim(), value.trim());
    let good = name.starts_with(|c: char| c.is_ascii_alphabetic())
        && name.chars().all(|c| c.is_ascii_alphanumeric());
    (good && !value.is_empty()).then_some((name, value))
}
