//! The patterns of `${x#p}`, `${x%p}` and `${x/p/r}`: `*` and `?`, an escape before `*`, `?` and itself, no brackets.
//!
//! Neither wildcard crosses a line end. A search tries each pair of pattern and text positions once, so that no pattern is slow.

enum Token {
    One,
    Many,
    Literal(char),
}

/// A compiled pattern.
pub(crate) struct Glob {
    tokens: Vec<Token>,
}

/// Which of two matches that start at one place is taken.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Greed {
    Shortest,
    Longest,
}

impl Glob {
    /// Fails, with the escape that it can't read, on an escape before anything but `*`, `?`, the backslash, `/` and `}`.
    pub(crate) fn new(pattern: &[char]) -> Result<Self, String> {
        let mut tokens = Vec::new();
        let mut rest = pattern.iter().copied().peekable();
        while let Some(c) = rest.next() {
            tokens.push(match c {
                '*' => Token::Many,
                '?' => Token::One,
                '\\' => match rest.peek() {
                    Some('}' | '/') => continue,
                    Some(&escaped @ ('*' | '?' | '\\')) => {
                        rest.next();
                        Token::Literal(escaped)
                    }
                    Some(other) => return Err(format!("\\{other}")),
                    None => return Err("\\".to_owned()),
                },
                other => Token::Literal(other),
            });
        }
        Ok(Self { tokens })
    }

    /// Where a match that starts at `start` ends.
    pub(crate) fn match_at(&self, text: &[char], start: usize, greed: Greed) -> Option<usize> {
        let width = text.len() - start + 1;
        let mut seen = vec![false; (self.tokens.len() + 1) * width];
        let mut open = vec![(0, start)];
        while let Some((token, at)) = open.pop() {
            let mark = &mut seen[token * width + (at - start)];
            if std::mem::replace(mark, true) {
                continue;
            }
            match self.tokens.get(token) {
                None => return Some(at),
                Some(Token::Many) => {
                    let skip = (token + 1, at);
                    let more = text.get(at).is_some_and(|c| *c != '\n').then_some((token, at + 1));
                    // The last one pushed is tried first.
                    if greed == Greed::Longest {
                        open.push(skip);
                        open.extend(more);
                    } else {
                        open.extend(more);
                        open.push(skip);
                    }
                }
                Some(Token::One) if text.get(at).is_some_and(|c| *c != '\n') => {
                    open.push((token + 1, at + 1));
                }
                Some(Token::Literal(c)) if text.get(at) == Some(c) => open.push((token + 1, at + 1)),
                Some(_) => {}
            }
        }
        None
    }

    /// The leftmost match at or after `from`.
    pub(crate) fn find(&self, text: &[char], from: usize) -> Option<(usize, usize)> {
        (from..=text.len()).find_map(|start| Some((start, self.match_at(text, start, Greed::Longest)?)))
    }
}

/// `value` without its start that matches.
pub(crate) fn trim_start(pattern: &str, value: &str, greed: Greed) -> Result<String, String> {
    let pattern: Vec<char> = pattern.chars().collect();
    let value: Vec<char> = value.chars().collect();
    let end = Glob::new(&pattern)?.match_at(&value, 0, greed).unwrap_or(0);
    Ok(value[end..].iter().collect())
}

/// `value` without its end that matches: pattern and value are turned round, so that the nearest match is found first.
pub(crate) fn trim_end(pattern: &str, value: &str, greed: Greed) -> Result<String, String> {
    let value: Vec<char> = value.chars().rev().collect();
    let start = Glob::new(&reverse(pattern))?.match_at(&value, 0, greed).unwrap_or(0);
    Ok(value[start..].iter().rev().collect())
}

/// A pattern from its end, with each escape still before what it escapes.
fn reverse(pattern: &str) -> Vec<char> {
    let mut units: Vec<Vec<char>> = Vec::new();
    let mut rest = pattern.chars();
    while let Some(c) = rest.next() {
        let mut unit = vec![c];
        if c == '\\' {
            unit.extend(rest.next());
        }
        units.push(unit);
    }
    units.into_iter().rev().flatten().collect()
}

/// Every match, or the first, becomes `by`.
pub(crate) fn replace(pattern: &str, value: &str, by: &str, all: bool) -> Result<String, String> {
    let pattern: Vec<char> = pattern.chars().collect();
    let glob = Glob::new(&pattern)?;
    let text: Vec<char> = value.chars().collect();
    let mut result = String::new();
    let mut copied = 0;
    let mut from = 0;
    let mut last_end = None;
    while let Some((start, end)) = glob.find(&text, from) {
        // An empty match right behind another one is none.
        if !(start == end && last_end == Some(end)) {
            result.extend(&text[copied..start]);
            if all {
                push_template(&mut result, by, &text[start..end]);
            } else {
                result.push_str(by);
            }
            copied = end;
            last_end = Some(end);
        }
        from = if end > start { end } else { end + 1 };
        if !all || from > text.len() {
            break;
        }
    }
    result.extend(&text[copied..]);
    Ok(result)
}

/// BuildKit gives the replacement of all matches to Go's regular expressions, where `$$` is a dollar, `$0` the match, and
/// any other `$name` nothing.
fn push_template(result: &mut String, template: &str, matched: &[char]) {
    let mut rest = template;
    while let Some(at) = rest.find('$') {
        result.push_str(&rest[..at]);
        let after = &rest[at + 1..];
        if let Some(tail) = after.strip_prefix('$') {
            result.push('$');
            rest = tail;
            continue;
        }
        let braced = after.strip_prefix('{');
        let text = braced.unwrap_or(after);
        let end = text.find(|c: char| c != '_' && !c.is_alphanumeric()).unwrap_or(text.len());
        let name = &text[..end];
        let tail = match braced {
            Some(_) => text[end..].strip_prefix('}'),
            None => Some(&text[end..]),
        };
        match tail {
            Some(tail) if !name.is_empty() => {
                if name == "0" {
                    result.extend(matched);
                }
                rest = tail;
            }
            _ => {
                result.push('$');
                rest = after;
            }
        }
    }
    result.push_str(rest);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_of_many_stars_is_quick() {
        let pattern = "*a".repeat(200);
        let value = "a".repeat(199);
        assert_eq!(trim_start(&pattern, &value, Greed::Longest).unwrap(), value);
    }

    #[test]
    fn an_empty_match_right_behind_another_is_none() {
        assert_eq!(replace("*", "abc", "x", true).unwrap(), "x");
        assert_eq!(replace("", "abc", "-", true).unwrap(), "-a-b-c-");
    }
}
