//! Splitting an instruction's text: keyword, flags, words, heredoc markers. Positions are offsets in the text.

use crate::{Heredoc, Span};

/// A piece of a text and where it begins and ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Piece {
    pub(crate) text: String,
    pub(crate) start: usize,
    pub(crate) end: usize,
}

/// A flag as it was written: quotes and escapes removed.
pub(crate) fn flags(text: &str, mut at: usize) -> (Vec<Piece>, usize) {
    let mut flags = Vec::new();
    loop {
        let rest = &text[at..];
        let start = at + rest.len() - rest.trim_start().len();
        if !text[start..].starts_with("--") {
            return (flags, start);
        }
        let mut word = String::new();
        let mut quote = None;
        let mut end = text.len();
        let mut chars = text[start..].char_indices();
        while let Some((offset, c)) = chars.next() {
            match quote {
                None if c.is_whitespace() => {
                    end = start + offset;
                    break;
                }
                None if c == '"' || c == '\'' => quote = Some(c),
                Some(open) if c == open => quote = None,
                _ if c == '\\' => word.extend(chars.next().map(|(_, c)| c)),
                _ => word.push(c),
            }
        }
        at = end;
        if word == "--" {
            let rest = &text[at..];
            return (flags, at + rest.len() - rest.trim_start().len());
        }
        flags.push(Piece { text: word, start, end });
    }
}

/// Words at blanks, whatever quotes say: for FROM, COPY, ADD, EXPOSE, VOLUME.
pub(crate) fn plain_words(text: &str, at: usize) -> Vec<Piece> {
    let mut words = Vec::new();
    let mut start = None;
    for (offset, c) in text[at..].char_indices() {
        let blank = matches!(c, ' ' | '\t' | '\r' | '\u{b}' | '\u{c}' | '\n');
        match (blank, start) {
            (true, Some(begin)) => {
                words.push(Piece {
                    text: text[begin..at + offset].to_owned(),
                    start: begin,
                    end: at + offset,
                });
                start = None;
            }
            (false, None) => start = Some(at + offset),
            _ => {}
        }
    }
    if let Some(begin) = start {
        words.push(Piece { text: text[begin..].to_owned(), start: begin, end: text.len() });
    }
    words
}

/// Words at blanks that are neither quoted nor escaped; quotes and escapes are kept: for ENV, LABEL, ARG.
pub(crate) fn quoted_words(text: &str, at: usize, escape: char) -> Vec<Piece> {
    let mut words = Vec::new();
    let mut word: Option<(usize, String)> = None;
    let mut quote = None;
    let mut chars = text[at..].char_indices().peekable();
    while let Some((offset, c)) = chars.next() {
        let here = at + offset;
        if quote.is_none() && c.is_whitespace() {
            words.extend(word.take().map(|(start, text)| Piece { text, start, end: here }));
            continue;
        }
        let (_, current) = word.get_or_insert_with(|| (here, String::new()));
        if c == escape && quote != Some('\'') {
            // An escape character at the very end means nothing.
            if let Some((_, next)) = chars.next() {
                current.push(c);
                current.push(next);
            }
            continue;
        }
        match quote {
            None if c == '"' || c == '\'' => quote = Some(c),
            Some(open) if c == open => quote = None,
            _ => {}
        }
        current.push(c);
    }
    words.extend(word.map(|(start, word)| Piece { text: word, start, end: text.len() }));
    words
}

/// The heredocs that a line announces, without their bodies.
pub(crate) fn heredoc_words(text: &str) -> Result<Vec<Heredoc>, String> {
    let mut found = Vec::new();
    for word in shell_words(text) {
        found.extend(heredoc(&word)?);
    }
    Ok(found)
}

/// Words as a shell sees them: quotes and escapes kept, blanks after `<<` part of the word.
fn shell_words(text: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut word = String::new();
    let mut quote = None;
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        match quote {
            Some(open) => {
                word.push(c);
                if c == open {
                    quote = None;
                } else if c == '\\' && open == '"' {
                    word.extend(chars.next());
                }
            }
            None if c.is_whitespace() => {
                if !word.is_empty() {
                    words.push(std::mem::take(&mut word));
                }
            }
            None => {
                word.push(c);
                match c {
                    '"' | '\'' => quote = Some(c),
                    '\\' => word.extend(chars.next()),
                    '<' if chars.peek() == Some(&'<') => {
                        word.extend(chars.next());
                        while let Some(blank) = chars.next_if(|c| matches!(c, ' ' | '\t')) {
                            word.push(blank);
                        }
                    }
                    _ => {}
                }
            }
        }
    }
    if !word.is_empty() {
        words.push(word);
    }
    words
}

/// Reads `[fd]<<[-]NAME`. Anything else is no heredoc.
///
/// Fails if the name's quotes are open.
pub(crate) fn heredoc(word: &str) -> Result<Option<Heredoc>, String> {
    let digits = word.len() - word.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let Some(rest) = word[digits..].strip_prefix("<<") else { return Ok(None) };
    let (rest, strip_tabs) = rest.strip_prefix('-').map_or((rest, false), |rest| (rest, true));
    let rest = rest.trim_start();
    if rest.is_empty() || rest.contains('<') {
        return Ok(None);
    }
    let mut name = String::new();
    let mut expand = true;
    let mut quote = None;
    let mut chars = rest.chars();
    while let Some(c) = chars.next() {
        match quote {
            None if c.is_whitespace() => return Ok(None),
            None if c == '"' || c == '\'' => (quote, expand) = (Some(c), false),
            Some(open) if c == open => quote = None,
            None if c == '\\' => name.extend(chars.next()),
            _ => name.push(c),
        }
    }
    if quote.is_some() {
        return Err(format!("the heredoc's name {rest} has an open quote"));
    }
    let fd = word[..digits].parse().unwrap_or(0);
    if name.is_empty() {
        return Ok(None);
    }
    Ok(Some(Heredoc { name, expand, strip_tabs, fd, content: String::new(), span: Span::default() }))
}
