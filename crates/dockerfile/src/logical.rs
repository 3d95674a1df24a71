//! Physical lines to logical ones: comments go, continuation lines are joined, and every byte keeps its place in the source.

use std::ops::Range;

use crate::Span;

/// A line of the source with its line end.
#[derive(Clone, Copy)]
pub(crate) struct RawLine<'a> {
    /// Offset of its first byte.
    pub(crate) start: usize,
    /// The text, line end included.
    pub(crate) text: &'a str,
    /// Counted from 1.
    pub(crate) number: u32,
}

impl<'a> RawLine<'a> {
    /// The text without its line end.
    pub(crate) fn body(&self) -> &'a str {
        self.text.trim_end_matches(['\r', '\n'])
    }

    /// The whole line's place, without its line end.
    pub(crate) fn span(&self) -> Span {
        Span::new(self.start, self.start + self.body().len())
    }

    pub(crate) fn is_comment(&self) -> bool {
        self.text.trim_start().starts_with('#')
    }

    pub(crate) fn is_blank(&self) -> bool {
        self.text.trim_start().is_empty()
    }
}

/// The lines of a text, the byte order mark skipped.
pub(crate) struct Lines<'a> {
    text: &'a str,
    at: usize,
    number: u32,
}

impl<'a> Lines<'a> {
    pub(crate) fn new(text: &'a str) -> Self {
        let at = if text.starts_with('\u{feff}') { '\u{feff}'.len_utf8() } else { 0 };
        Self { text, at, number: 0 }
    }

    /// The number of the line that was read last.
    pub(crate) fn number(&self) -> u32 {
        self.number
    }

    /// The offset of the next line.
    pub(crate) fn offset(&self) -> usize {
        self.at
    }
}

impl<'a> Iterator for Lines<'a> {
    type Item = RawLine<'a>;

    fn next(&mut self) -> Option<RawLine<'a>> {
        let rest = &self.text[self.at..];
        if rest.is_empty() {
            return None;
        }
        let length = rest.find('\n').map_or(rest.len(), |at| at + 1);
        let line = RawLine { start: self.at, text: &rest[..length], number: self.number + 1 };
        self.at += length;
        self.number += 1;
        Some(line)
    }
}

/// A joined line, and where each of its parts was.
#[derive(Default)]
pub(crate) struct Logical {
    text: String,
    /// Offsets in `text` and in the source at which parts begin, ascending.
    parts: Vec<(usize, usize)>,
}

impl Logical {
    /// Adds `text`, which stands at `offset` of the source.
    pub(crate) fn push(&mut self, text: &str, offset: usize) {
        self.parts.push((self.text.len(), offset));
        self.text.push_str(text);
    }

    /// All of it.
    pub(crate) fn whole(&self) -> Fragment<'_> {
        Fragment { line: self, start: 0, end: self.text.len() }
    }

    fn place(&self, offset: usize) -> usize {
        let part = self.parts.partition_point(|(start, _)| *start <= offset).saturating_sub(1);
        self.parts.get(part).map_or(0, |(start, source)| source + (offset - start))
    }

    fn span(&self, range: Range<usize>) -> Span {
        let start = self.place(range.start);
        let end = if range.is_empty() { start } else { self.place(range.end - 1) + 1 };
        Span::new(start, end)
    }
}

/// A piece of a logical line.
#[derive(Clone, Copy)]
pub(crate) struct Fragment<'a> {
    line: &'a Logical,
    start: usize,
    end: usize,
}

impl<'a> Fragment<'a> {
    pub(crate) fn text(&self) -> &'a str {
        &self.line.text[self.start..self.end]
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.start == self.end
    }

    pub(crate) fn span(&self) -> Span {
        self.line.span(self.start..self.end)
    }

    /// A piece of this piece, by byte offsets in it.
    pub(crate) fn sub(&self, range: Range<usize>) -> Self {
        Self { line: self.line, start: self.start + range.start, end: self.start + range.end }
    }

    pub(crate) fn from(&self, start: usize) -> Self {
        Self { start: self.start + start, ..*self }
    }

    pub(crate) fn trim(&self) -> Self {
        self.trim_start().trim_end()
    }

    pub(crate) fn trim_start(&self) -> Self {
        Self { start: self.end - self.text().trim_start().len(), ..*self }
    }

    pub(crate) fn trim_end(&self) -> Self {
        Self { end: self.start + self.text().trim_end().len(), ..*self }
    }

    /// The piece before the first run of blanks, and the one behind it if there is such a run.
    pub(crate) fn split_blank(&self) -> (Self, Option<Self>) {
        let text = self.text();
        let Some(at) = text.find(is_blank) else { return (*self, None) };
        let behind = text.len() - text[at..].trim_start_matches(is_blank).len();
        (self.sub(0..at), Some(self.from(behind)))
    }

    /// The pieces between runs of blanks.
    pub(crate) fn split_blanks(&self) -> Vec<Self> {
        let mut pieces = Vec::new();
        let mut rest = (!self.is_empty()).then_some(*self);
        while let Some(piece) = rest {
            let (first, behind) = piece.split_blank();
            pieces.push(first);
            rest = behind;
        }
        pieces
    }
}

/// What separates arguments. Other white space of Unicode does not.
fn is_blank(c: char) -> bool {
    matches!(c, '\t' | '\u{b}' | '\u{c}' | '\r' | ' ')
}

/// The line without the escape character that continues it on the next line, and whether there was one.
///
/// It must be the last character but blanks and tabs, and no second escape may stand before it.
pub(crate) fn continued(line: &str, escape: char) -> (&str, bool) {
    let Some(body) = line.trim_end_matches([' ', '\t']).strip_suffix(escape) else { return (line, false) };
    if body.ends_with(escape) { (line, false) } else { (body, true) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_doubled_escape_does_not_continue() {
        assert_eq!(continued("a \\ \t", '\\'), ("a ", true));
        assert_eq!(continued("\\", '\\'), ("", true));
        assert_eq!(continued("a\\\\", '\\'), ("a\\\\", false));
        assert_eq!(continued("a\\\\\\", '\\'), ("a\\\\\\", false));
        assert_eq!(continued("a`", '\\'), ("a`", false));
        assert_eq!(continued("a`", '`'), ("a", true));
    }

    #[test]
    fn places_survive_joining() {
        let mut line = Logical::default();
        line.push("RUN a ", 10);
        line.push("  b", 30);
        let words = line.whole().split_blanks();
        assert_eq!(words.iter().map(Fragment::text).collect::<Vec<_>>(), ["RUN", "a", "b"]);
        assert_eq!(words[2].span(), Span { start: 32, end: 33 });
        assert_eq!(line.whole().span(), Span { start: 10, end: 33 });
    }
}
