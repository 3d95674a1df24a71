//! .dockerignore and `--exclude`: lists of patterns in which the last match wins.

use crate::go_match::{BadPattern, go_match};
use crate::regex::Regex;

/// One pattern of a list, compiled.
#[derive(Clone, Debug)]
pub struct Pattern {
    /// Cleaned, without the `!`.
    text: String,
    exception: bool,
    matcher: Matcher,
}

#[derive(Clone, Debug)]
enum Matcher {
    /// The path itself.
    Exact,
    /// A path that begins so: `dir/**`.
    Prefix(String),
    /// A path that ends so, or that is this without its leading slash: `**/name`.
    Suffix(String),
    Regex(Regex),
}

/// A compiled .dockerignore, or a list of `--exclude` patterns.
#[derive(Clone, Debug, Default)]
pub struct Ignore {
    patterns: Vec<Pattern>,
}

impl Pattern {
    /// Compiles a pattern; a leading `!` makes it an exception. An empty pattern is `None`.
    ///
    /// Fails with [`BadPattern`] if Go's matcher or its regular expressions refuse it.
    pub fn new(text: &str) -> Result<Option<Self>, BadPattern> {
        let trimmed = text.trim();
        if trimmed.is_empty() {
            return Ok(None);
        }
        let cleaned = clean(trimmed);
        let bad = |why| BadPattern { pattern: text.to_owned(), why };
        let (exception, text) = match cleaned.strip_prefix('!') {
            Some("") => return Err(bad("behind the ! a pattern has to follow")),
            Some(rest) => (true, rest.to_owned()),
            None => (false, cleaned),
        };
        go_match(&text, ".").map_err(|error| bad(error.why))?;
        let matcher = compile(&text)
            .ok_or_else(|| bad("no regular expression can be made of it; escape its brackets"))?;
        Ok(Some(Self { text, exception, matcher }))
    }

    /// Whether it is an exception: what it matches is not ignored.
    pub fn is_exception(&self) -> bool {
        self.exception
    }

    /// The pattern, cleaned, without the `!`.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Whether the path itself matches: its parents are not looked at, nor the `!`.
    pub fn matches(&self, path: &str) -> bool {
        match &self.matcher {
            Matcher::Exact => path == self.text,
            Matcher::Prefix(prefix) => path.starts_with(prefix),
            Matcher::Suffix(suffix) => path.ends_with(suffix) || suffix.strip_prefix('/') == Some(path),
            Matcher::Regex(regex) => regex.is_match(path),
        }
    }

    /// The pattern without `**` or `*` as its last component.
    fn stem(&self) -> &str {
        let text = self.text.strip_suffix("/**").unwrap_or(&self.text);
        text.strip_suffix("/*").unwrap_or(text)
    }
}

impl Ignore {
    /// Reads a .dockerignore.
    ///
    /// A line that begins with `#` is a comment; blanks around a pattern and a `/` before it go; `!` makes an exception.
    /// Fails with the first bad pattern.
    pub fn parse(text: &str) -> Result<Self, BadPattern> {
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        let lines = text.split('\n').map(|line| line.strip_suffix('\r').unwrap_or(line));
        let patterns = lines.filter(|line| !line.starts_with('#')).filter_map(|line| {
            let line = line.trim();
            let (sign, pattern) = match line.strip_prefix('!') {
                Some(rest) => ("!", rest.trim()),
                None => ("", line),
            };
            if line.is_empty() {
                return None;
            }
            let cleaned = if pattern.is_empty() { String::new() } else { clean(pattern) };
            let relative = cleaned.strip_prefix('/').filter(|rest| !rest.is_empty()).unwrap_or(&cleaned);
            Some(format!("{sign}{relative}"))
        });
        Self::from_patterns(patterns)
    }

    /// A list of patterns as `--exclude` gives them: no comments, and a leading `/` stays.
    pub fn from_patterns(patterns: impl IntoIterator<Item = impl AsRef<str>>) -> Result<Self, BadPattern> {
        let patterns = patterns.into_iter().filter_map(|pattern| Pattern::new(pattern.as_ref()).transpose());
        Ok(Self { patterns: patterns.collect::<Result<_, _>>()? })
    }

    /// Whether nothing is ignored.
    pub fn is_empty(&self) -> bool {
        self.patterns.is_empty()
    }

    /// Whether there are exceptions.
    pub fn has_exceptions(&self) -> bool {
        self.patterns.iter().any(|pattern| pattern.exception)
    }

    /// The patterns in order.
    pub fn patterns(&self) -> &[Pattern] {
        &self.patterns
    }

    /// Whether a path is ignored: slash-separated, relative to the context. The context itself never is.
    ///
    /// A directory that is ignored still exists if something below it is not. Whether the path is a directory makes no
    /// difference to these patterns.
    pub fn is_ignored(&self, path: &str, _is_dir: bool) -> bool {
        let path = path.trim_matches('/');
        if path.is_empty() || path == "." || self.is_empty() {
            return false;
        }
        // Which patterns matched the parent, as if a walk came down from the context.
        let mut matched = vec![false; self.patterns.len()];
        let mut ignored = false;
        let ends = path.match_indices('/').map(|(at, _)| at).chain([path.len()]);
        for end in ends {
            ignored = self.step(&path[..end], &mut matched);
        }
        ignored
    }

    /// Judges one level of a path. A pattern that matched a parent matches below it; a pattern that could not change the
    /// outcome is not tried, so that it does not count as a match for what is below.
    fn step(&self, path: &str, matched: &mut [bool]) -> bool {
        let mut ignored = false;
        for (pattern, matched) in self.patterns.iter().zip(matched) {
            if !*matched && pattern.exception == ignored {
                *matched = pattern.matches(path);
            }
            if *matched {
                ignored = !pattern.exception;
            }
        }
        ignored
    }

    /// Whether a walk may pass over a directory: it is ignored, and no exception can bring back anything below it.
    pub fn can_skip_dir(&self, path: &str) -> bool {
        let path = path.trim_matches('/');
        if !self.is_ignored(path, true) {
            return false;
        }
        let below = format!("{path}/");
        self.patterns.iter().filter(|pattern| pattern.exception).all(|pattern| {
            let stem = pattern.stem();
            !stem.contains(['*', '[', ']', '?', '^', '\\']) && !format!("{stem}/").starts_with(&below)
        })
    }
}

/// The shortest path that means the same: Go's `filepath.Clean`.
pub(crate) fn clean(path: &str) -> String {
    let rooted = path.starts_with('/');
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." if parts.last().is_some_and(|last| *last != "..") => {
                parts.pop();
            }
            ".." if rooted => {}
            part => parts.push(part),
        }
    }
    let joined = parts.join("/");
    match (rooted, joined.is_empty()) {
        (true, _) => format!("/{joined}"),
        (false, true) => ".".to_owned(),
        (false, false) => joined,
    }
}

/// Goes through a pattern once, as patternmatcher does: `None` if Go could not compile what comes out.
fn compile(pattern: &str) -> Option<Matcher> {
    let mut matcher = Matcher::Exact;
    let mut expression = String::from("^");
    let mut is_regex = false;
    let mut chars = pattern.chars().peekable();
    let mut first = true;
    while let Some(c) = chars.next() {
        match c {
            '*' if chars.next_if_eq(&'*').is_some() => {
                // `**/` is `**`.
                chars.next_if_eq(&'/');
                if chars.peek().is_some() {
                    expression.push_str("(.*/)?");
                    is_regex = true;
                } else if !is_regex && matches!(matcher, Matcher::Exact) {
                    matcher = Matcher::Prefix(pattern[..pattern.len() - 2].to_owned());
                } else {
                    expression.push_str(".*");
                    is_regex = true;
                }
                if first {
                    matcher = Matcher::Suffix(pattern[2..].to_owned());
                    is_regex = false;
                }
            }
            '*' => {
                expression.push_str("[^/]*");
                is_regex = true;
            }
            '?' => {
                expression.push_str("[^/]");
                is_regex = true;
            }
            '.' | '+' | '(' | ')' | '|' | '{' | '}' | '$' => expression.extend(['\\', c]),
            '\\' => {
                expression.push('\\');
                if let Some(escaped) = chars.next() {
                    expression.push(escaped);
                    is_regex = true;
                }
            }
            '[' | ']' => {
                expression.push(c);
                is_regex = true;
            }
            other => expression.push(other),
        }
        first = false;
    }
    if is_regex {
        expression.push('$');
        return Regex::new(&expression).map(Matcher::Regex);
    }
    Some(matcher)
}
