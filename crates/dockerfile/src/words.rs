//! Splitting arguments into words that keep their quotes: what ENV, LABEL and ARG are made of.

use crate::logical::Fragment;
use crate::{Span, Word};

/// The words of `rest`. Blanks inside quotes and behind an escape don't split; quotes and escapes stay. An escape at
/// the very end is dropped.
pub(crate) fn split(rest: Fragment<'_>, escape: char) -> Vec<Word> {
    let text = rest.text();
    let mut words = Vec::new();
    let mut word = String::new();
    let mut start = None;
    let mut quote = None;
    let mut chars = text.char_indices();
    let finish = |word: &mut String, start: &mut Option<usize>, end: usize, words: &mut Vec<Word>| {
        if let Some(start) = start.take().filter(|_| !word.is_empty()) {
            words.push(Word { raw: std::mem::take(word), span: rest.sub(start..end).span(), escape });
        }
    };
    while let Some((at, c)) = chars.next() {
        if quote.is_none() && c.is_whitespace() {
            finish(&mut word, &mut start, at, &mut words);
            continue;
        }
        start.get_or_insert(at);
        match quote {
            Some(open) if c == open => quote = None,
            None if c == '\'' || c == '"' => quote = Some(c),
            _ => {}
        }
        if c == escape && quote != Some('\'') {
            let Some((_, escaped)) = chars.next() else {
                continue;
            };
            word.push(c);
            word.push(escaped);
            continue;
        }
        word.push(c);
    }
    finish(&mut word, &mut start, text.len(), &mut words);
    words
}

/// A word cut at its first `=`.
pub(crate) fn cut(word: &Word) -> Option<(Word, Word)> {
    let (key, value) = word.raw.split_once('=')?;
    // Only an escape at the very end of a word is not in it, so offsets from the start are right unless the word was
    // continued on another line; then the pieces are where the word is.
    let whole = (word.span.end - word.span.start) as usize >= word.raw.len()
        && (word.span.end - word.span.start) as usize <= word.raw.len() + word.escape.len_utf8();
    let at = word.span.start as usize;
    let spans = if whole {
        (
            Span::new(at, at + key.len()),
            Span { start: Span::new(at + key.len() + 1, 0).start, end: word.span.end },
        )
    } else {
        (word.span, word.span)
    };
    let piece = |raw: &str, span| Word { raw: raw.to_owned(), span, escape: word.escape };
    Some((piece(key, spans.0), piece(value, spans.1)))
}
