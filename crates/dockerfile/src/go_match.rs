//! Go's `path/filepath.Match`: the wildcards of COPY and ADD sources.

/// A pattern that can't be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{pattern:?} is no pattern: {why}")]
pub struct BadPattern {
    /// The pattern.
    pub pattern: String,
    /// What is wrong with it, and what to write instead.
    pub why: &'static str,
}

enum Token {
    /// `?`: one character but `/`.
    One,
    Literal(char),
    /// `[…]`: also matches `/`.
    Class {
        negated: bool,
        ranges: Vec<(char, char)>,
    },
}

/// A run of tokens, and whether `*` stands before it.
struct Chunk {
    star: bool,
    tokens: Vec<Token>,
}

/// Whether `name` as a whole matches `pattern`, as Go's `path/filepath.Match` has it on Unix.
///
/// `*` and `?` don't match `/`, brackets do; `\` escapes; there is no `**`. A pattern that is wrong is an error whatever
/// the name. Earlier choices for `*` are not reconsidered, which only shows where brackets match a `/`.
pub fn go_match(pattern: &str, name: &str) -> Result<bool, BadPattern> {
    let chunks = parse(pattern)?;
    let name: Vec<char> = name.chars().collect();
    let mut at = 0;
    for (index, chunk) in chunks.iter().enumerate() {
        let is_last = index + 1 == chunks.len();
        if chunk.star && chunk.tokens.is_empty() {
            return Ok(!name[at..].contains(&'/'));
        }
        let fits = |start: usize| {
            let end = chunk.end(&name, start)?;
            (!is_last || end == name.len()).then_some(end)
        };
        let found = match fits(at) {
            None if chunk.star => {
                let reach = name[at..].iter().position(|c| *c == '/').unwrap_or(name.len() - at);
                (at + 1..=at + reach).find_map(fits)
            }
            found => found,
        };
        match found {
            Some(end) => at = end,
            None => return Ok(false),
        }
    }
    Ok(at == name.len())
}

impl Chunk {
    /// Where the chunk ends if it starts at `start`.
    fn end(&self, name: &[char], start: usize) -> Option<usize> {
        let mut at = start;
        for token in &self.tokens {
            let c = *name.get(at)?;
            let fits = match token {
                Token::One => c != '/',
                Token::Literal(literal) => c == *literal,
                Token::Class { negated, ranges } => {
                    ranges.iter().any(|(low, high)| (*low..=*high).contains(&c)) != *negated
                }
            };
            if !fits {
                return None;
            }
            at += 1;
        }
        Some(at)
    }
}

fn parse(pattern: &str) -> Result<Vec<Chunk>, BadPattern> {
    let bad = |why| BadPattern { pattern: pattern.to_owned(), why };
    let mut chunks = Vec::new();
    let mut chunk = Chunk { star: false, tokens: Vec::new() };
    let mut rest = pattern.chars().peekable();
    while let Some(c) = rest.next() {
        chunk.tokens.push(match c {
            '*' => {
                if chunk.star || !chunk.tokens.is_empty() {
                    if chunk.tokens.is_empty() {
                        continue;
                    }
                    chunks.push(chunk);
                }
                chunk = Chunk { star: true, tokens: Vec::new() };
                continue;
            }
            '?' => Token::One,
            '\\' => Token::Literal(rest.next().ok_or_else(|| bad("a \\ at its end escapes nothing"))?),
            '[' => class(&mut rest).map_err(bad)?,
            other => Token::Literal(other),
        });
    }
    if chunk.star || !chunk.tokens.is_empty() {
        chunks.push(chunk);
    }
    Ok(chunks)
}

fn class(rest: &mut std::iter::Peekable<std::str::Chars<'_>>) -> Result<Token, &'static str> {
    const OPEN: &str = "a [ has no ] behind it; write \\[ for the character";
    let negated = rest.next_if_eq(&'^').is_some();
    let mut ranges = Vec::new();
    loop {
        if !ranges.is_empty() && rest.next_if_eq(&']').is_some() {
            return Ok(Token::Class { negated, ranges });
        }
        let mut bound = || match rest.next() {
            None => Err(OPEN),
            Some('-') => Err("inside [ ] a - needs a character on both sides, or a \\ before it"),
            Some(']') => Err("[ ] holds nothing; write \\] for a ] inside it"),
            Some('\\') => rest.next().ok_or(OPEN),
            Some(c) => Ok(c),
        };
        let low = bound()?;
        let high = if rest.next_if_eq(&'-').is_some() {
            match rest.next() {
                None => return Err(OPEN),
                Some('-' | ']') => {
                    return Err("inside [ ] a - needs a character on both sides, or a \\ before it");
                }
                Some('\\') => rest.next().ok_or(OPEN)?,
                Some(c) => c,
            }
        } else {
            low
        };
        if rest.peek().is_none() {
            return Err(OPEN);
        }
        ranges.push((low, high));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_match_as_they_do_in_go() {
        for (pattern, name, expected) in [
            ("abc", "abc", true),
            ("*", "abc", true),
            ("*c", "abc", true),
            ("a*", "a", true),
            ("a*", "ab/c", false),
            ("a*/b", "abc/b", true),
            ("a*/b", "a/c/b", false),
            ("a*b*c*d*e*/f", "axbxcxdxexxx/f", true),
            ("a*b*c*d*e*/f", "axbxcxdxexxx/fff", false),
            ("a*b?c*x", "abxbbxdbxebxczzx", true),
            ("a*b?c*x", "abxbbxdbxebxczzy", false),
            ("ab[c]", "abc", true),
            ("ab[b-d]", "abc", true),
            ("ab[^e-g]", "abc", true),
            ("ab[^b-d]", "abc", false),
            ("a\\*b", "a*b", true),
            ("a\\*b", "ab", false),
            ("a?b", "a☺b", true),
            ("a[^a]b", "a☺b", true),
            ("a???b", "a☺b", false),
            ("[a-ζ]*", "α", true),
            ("*[a-ζ]", "A", false),
            ("a?b", "a/b", false),
            ("a[^x]b", "a/b", true),
            ("[\\]a]", "]", true),
            ("[\\-x]", "-", true),
            ("arr[[]0].txt", "arr[0].txt", true),
            ("**", "ab", true),
            ("**/a", "b/c/a", false),
            ("", "", true),
            ("", "a", false),
            ("*x", "xxx", true),
        ] {
            assert_eq!(go_match(pattern, name), Ok(expected), "{pattern} {name}");
        }
    }

    #[test]
    fn a_wrong_pattern_is_an_error_whatever_the_name() {
        for pattern in
            ["[]a]", "[-]", "[x-]", "[-x]", "[a-b-c]", "[", "[^", "[^bc", "a[", "a[b", "\\", "[a\\"]
        {
            assert!(go_match(pattern, "zzz").is_err(), "{pattern}");
        }
    }
}
