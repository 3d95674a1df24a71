//! The text that everything else points into.

/// A named text: a Dockerfile, or what plays its part.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    /// What messages call it: a path, or `-`.
    pub name: String,
    /// The text, byte order mark and line ends as they are.
    pub text: String,
}

/// A byte range of [`Source::text`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Span {
    /// The first byte.
    pub start: u32,
    /// One past the last byte.
    pub end: u32,
}

impl Source {
    /// A source from its name and text.
    pub fn new(name: impl Into<String>, text: impl Into<String>) -> Self {
        Self { name: name.into(), text: text.into() }
    }

    /// A source from bytes. What is no UTF-8 becomes U+FFFD.
    pub fn from_bytes(name: impl Into<String>, bytes: &[u8]) -> Self {
        Self::new(name, String::from_utf8_lossy(bytes))
    }

    /// Line and column of a byte offset, both counted from 1, the column in characters. An offset beyond the end
    /// means the end.
    pub fn line_col(&self, offset: u32) -> (u32, u32) {
        let mut end = (offset as usize).min(self.text.len());
        while !self.text.is_char_boundary(end) {
            end -= 1;
        }
        let before = &self.text[..end];
        let line_start = before.rfind('\n').map_or(0, |at| at + 1);
        let line = before.bytes().filter(|byte| *byte == b'\n').count();
        let in_line = before[line_start..].trim_start_matches('\u{feff}');
        (number(line) + 1, number(in_line.chars().count()) + 1)
    }

    /// The text at `span`, as far as it lies in this source.
    pub fn slice(&self, span: Span) -> &str {
        self.text.get(span.start as usize..span.end as usize).unwrap_or("")
    }
}

impl Span {
    /// A span from offsets. Texts beyond 4 GiB are cut there.
    pub fn new(start: usize, end: usize) -> Self {
        Self { start: number(start), end: number(end.max(start)) }
    }

    /// The smallest span that holds both.
    #[must_use]
    pub fn to(self, other: Self) -> Self {
        Self { start: self.start.min(other.start), end: self.end.max(other.end) }
    }
}

pub(crate) fn number(value: usize) -> u32 {
    u32::try_from(value).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_count_characters_and_not_the_byte_order_mark() {
        let source = Source::new("f", "\u{feff}ab\nßx\n");
        assert_eq!(source.line_col(3), (1, 1));
        assert_eq!(source.line_col(8), (2, 2));
        assert_eq!(source.line_col(7), (2, 1), "inside a character");
        assert_eq!(source.line_col(999), (3, 1));
    }

    #[test]
    fn bytes_that_are_no_text_are_replaced() {
        assert_eq!(Source::from_bytes("f", b"a\xffb").text, "a\u{fffd}b");
    }
}
