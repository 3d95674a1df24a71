//! Patterns: Go's `path.Match` for COPY and ADD, and the shell's for `${x#p}` and its kin.

/// A pattern that breaks the rules: an open `[`, a trailing escape.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("syntax error in pattern")]
pub struct BadPattern;

/// Whether `name` matches `pattern` by the rules of Go's `path.Match`: `*` and `?` match no slash, `[a-z]` and `[^a]`
/// are classes, a backslash takes the next character as it is.
pub fn go_match(pattern: &str, name: &str) -> Result<bool, BadPattern> {
    let pattern: Vec<char> = pattern.chars().collect();
    let name: Vec<char> = name.chars().collect();
    check(&pattern)?;
    Ok(matches(&pattern, &name))
}

/// Walks over the pattern to find what is wrong with it, whatever the name.
fn check(pattern: &[char]) -> Result<(), BadPattern> {
    let mut at = 0;
    while at < pattern.len() {
        at = match pattern[at] {
            '\\' if at + 1 == pattern.len() => return Err(BadPattern),
            '\\' => at + 2,
            '[' => class(&pattern[at..], None).ok_or(BadPattern)?.1 + at,
            _ => at + 1,
        };
    }
    Ok(())
}

/// Reads a class that begins with `[`. Gives whether `c` is in it, and its length; `None` if it is broken.
fn class(pattern: &[char], c: Option<char>) -> Option<(bool, usize)> {
    let mut at = 1;
    let negated = pattern.get(at) == Some(&'^');
    at += usize::from(negated);
    let mut found = false;
    let mut ranges = 0;
    loop {
        if *pattern.get(at)? == ']' && ranges > 0 {
            return Some((found != negated, at + 1));
        }
        let one = |at: &mut usize| -> Option<char> {
            match *pattern.get(*at)? {
                '-' | ']' => return None,
                '\\' => *at += 1,
                _ => {}
            }
            let c = *pattern.get(*at)?;
            *at += 1;
            pattern.get(*at)?;
            Some(c)
        };
        let low = one(&mut at)?;
        let high = if pattern[at] == '-' {
            at += 1;
            one(&mut at)?
        } else {
            low
        };
        found |= c.is_some_and(|c| low <= c && c <= high);
        ranges += 1;
    }
}

/// The usual two-pointer walk: on a mismatch, the last `*` takes one more character, unless that is a slash.
fn matches(pattern: &[char], name: &[char]) -> bool {
    let (mut p, mut n) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    loop {
        let step = match pattern.get(p) {
            Some('*') => {
                star = Some((p + 1, n));
                p += 1;
                continue;
            }
            None if n == name.len() => return true,
            None => None,
            Some(_) if n == name.len() => None,
            Some('?') => (name[n] != '/').then_some(1),
            Some('[') => {
                class(&pattern[p..], Some(name[n])).and_then(|(found, length)| found.then_some(length))
            }
            Some('\\') => (pattern.get(p + 1) == Some(&name[n])).then_some(2),
            Some(c) => (*c == name[n]).then_some(1),
        };
        if let Some(length) = step {
            p += length;
            n += 1;
            continue;
        }
        match star {
            Some((after, taken)) if taken < name.len() && name[taken] != '/' => {
                star = Some((after, taken + 1));
                (p, n) = (after, taken + 1);
            }
            _ => return false,
        }
    }
}

/// A pattern of `${x#p}`: `*` and `?` match anything, a backslash takes the next character as it is.
pub(crate) struct ShellPattern(Vec<Piece>);

enum Piece {
    Any,
    One,
    Char(char),
}

impl ShellPattern {
    pub(crate) fn new(pattern: &str) -> Self {
        let mut pieces = Vec::new();
        let mut chars = pattern.chars();
        while let Some(c) = chars.next() {
            pieces.push(match c {
                '*' => Piece::Any,
                '?' => Piece::One,
                '\\' => Piece::Char(chars.next().unwrap_or('\\')),
                c => Piece::Char(c),
            });
        }
        Self(pieces)
    }

    /// Whether the whole of `text` matches.
    fn is_match(&self, text: &[char]) -> bool {
        let (mut p, mut n) = (0, 0);
        let mut star = None;
        loop {
            match self.0.get(p) {
                Some(Piece::Any) => {
                    star = Some((p + 1, n));
                    p += 1;
                    continue;
                }
                None if n == text.len() => return true,
                Some(Piece::One) if n < text.len() => {
                    (p, n) = (p + 1, n + 1);
                    continue;
                }
                Some(Piece::Char(c)) if text.get(n) == Some(c) => {
                    (p, n) = (p + 1, n + 1);
                    continue;
                }
                _ => {}
            }
            match star {
                Some((after, taken)) if taken < text.len() => {
                    star = Some((after, taken + 1));
                    (p, n) = (after, taken + 1);
                }
                _ => return false,
            }
        }
    }

    pub(crate) fn trim_start(&self, text: &str, longest: bool) -> String {
        let chars: Vec<char> = text.chars().collect();
        let mut ends: Vec<usize> = (0..=chars.len()).collect();
        if longest {
            ends.reverse();
        }
        let end = ends.into_iter().find(|end| self.is_match(&chars[..*end])).unwrap_or(0);
        chars[end..].iter().collect()
    }

    pub(crate) fn trim_end(&self, text: &str, longest: bool) -> String {
        let chars: Vec<char> = text.chars().collect();
        let mut starts: Vec<usize> = (0..=chars.len()).collect();
        if !longest {
            starts.reverse();
        }
        let start = starts.into_iter().find(|start| self.is_match(&chars[*start..])).unwrap_or(chars.len());
        chars[..start].iter().collect()
    }

    /// Replaces the first match, or all of them; each as long as can be, from the left.
    pub(crate) fn replace(&self, text: &str, with: &str, all: bool) -> String {
        let chars: Vec<char> = text.chars().collect();
        let mut result = String::new();
        let mut at = 0;
        let mut done = false;
        while at <= chars.len() {
            let end = if done && !all {
                None
            } else {
                (at..=chars.len()).rev().find(|end| self.is_match(&chars[at..*end]))
            };
            match end {
                Some(end) if end > at => {
                    result.push_str(with);
                    at = end;
                    done = true;
                }
                _ => {
                    result.extend(chars.get(at));
                    at += 1;
                }
            }
        }
        result
    }
}

#[cfg(test)]
mod tests {
    use super::go_match;

    #[test]
    fn matching_is_gos() {
        for (pattern, name, expected) in [
            ("abc", "abc", true),
            ("*", "abc", true),
            ("*c", "abc", true),
            ("a*", "ab/c", false),
            ("a*/b", "abc/b", true),
            ("a*/b", "a/c/b", false),
            ("a*b*c*d*e*/f", "axbxcxdxe/f", true),
            ("ab[c]", "abc", true),
            ("ab[b-d]", "abc", true),
            ("ab[^c]", "abc", false),
            ("ab[^e-g]", "abc", true),
            ("a\\*b", "a*b", true),
            ("a\\*b", "ab", false),
            ("a?b", "a/b", false),
            ("arr[[]0].txt", "arr[0].txt", true),
            ("[\\]a]", "]", true),
            ("*x", "xxx", true),
            ("", "", true),
        ] {
            assert_eq!(go_match(pattern, name), Ok(expected), "{pattern} {name}");
        }
    }

    #[test]
    fn a_broken_pattern_is_an_error() {
        for pattern in ["[", "[]a]", "[-]", "[a-", "a[", "\\", "[^]"] {
            assert!(go_match(pattern, "a").is_err(), "{pattern}");
        }
    }
}
