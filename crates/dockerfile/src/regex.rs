//! The few regular expressions that a .dockerignore pattern can become.
//!
//! moby/patternmatcher turns a pattern into a Go regular expression, character by character, and matches with that. What
//! comes out is odd in places (a `*` in brackets, a `^` outside of them), and such patterns match what the expression
//! says, not what was meant. So the expression is made here in the same way, and run by simulating all its states at
//! once: time is linear in the name, whatever the pattern.

/// One step of an expression.
#[derive(Clone, Debug)]
enum Step {
    /// One character of a set.
    One(Set),
    /// Any number of them.
    Many(Set),
    /// `(.*/)?`: the next step stands for the inside, and may be left out with it.
    Directories,
    /// The inside: any characters, left behind a slash.
    Inside,
    /// The start of the name.
    Start,
    /// The end of the name.
    End,
    /// Between a word character and another one, or not.
    Boundary(bool),
}

#[derive(Clone, Debug)]
struct Set {
    negated: bool,
    ranges: Vec<(char, char)>,
}

impl Set {
    fn only(c: char) -> Self {
        Self { negated: false, ranges: vec![(c, c)] }
    }

    fn but(c: char) -> Self {
        Self { negated: true, ranges: vec![(c, c)] }
    }

    fn has(&self, c: char) -> bool {
        self.ranges.iter().any(|(low, high)| (*low..=*high).contains(&c)) != self.negated
    }
}

/// A compiled expression, anchored at both ends.
#[derive(Clone, Debug)]
pub(crate) struct Regex {
    steps: Vec<Step>,
    /// What every match begins with: most names are refused by it.
    prefix: String,
}

impl Regex {
    /// Compiles what patternmatcher makes of a pattern. `None` if Go could not compile it.
    pub(crate) fn new(expression: &str) -> Option<Self> {
        let mut steps = Vec::new();
        let mut rest = expression;
        while !rest.is_empty() {
            rest = step(rest, &mut steps)?;
        }
        let literal = |step: &Step| match step {
            Step::One(Set { negated: false, ranges }) => match ranges.as_slice() {
                [(low, high)] if low == high => Some(*low),
                _ => None,
            },
            _ => None,
        };
        let prefix = steps.iter().map_while(literal).collect();
        Some(Self { steps, prefix })
    }

    pub(crate) fn is_match(&self, name: &str) -> bool {
        if !name.starts_with(&self.prefix) {
            return false;
        }
        let mut now = vec![false; self.steps.len() + 1];
        let mut next = now.clone();
        let mut chars = name.chars();
        self.enter(&mut now, 0, None, name.chars().next());
        while let Some(c) = chars.next() {
            let after = chars.clone().next();
            next.fill(false);
            for (at, step) in self.steps.iter().enumerate().filter(|(at, _)| now[*at]) {
                match step {
                    Step::One(set) if set.has(c) => self.enter(&mut next, at + 1, Some(c), after),
                    Step::Many(set) if set.has(c) => self.enter(&mut next, at, Some(c), after),
                    Step::Inside => {
                        if c != '\n' {
                            self.enter(&mut next, at, Some(c), after);
                        }
                        if c == '/' {
                            self.enter(&mut next, at + 1, Some(c), after);
                        }
                    }
                    _ => {}
                }
            }
            std::mem::swap(&mut now, &mut next);
            if !now.contains(&true) {
                return false;
            }
        }
        now[self.steps.len()]
    }

    /// Marks a step and those that can be reached from it without a character.
    fn enter(&self, states: &mut [bool], at: usize, before: Option<char>, after: Option<char>) {
        if std::mem::replace(&mut states[at], true) {
            return;
        }
        let mut on = |at| self.enter(states, at, before, after);
        match self.steps.get(at) {
            Some(Step::Many(_)) => on(at + 1),
            Some(Step::Directories) => {
                on(at + 1);
                on(at + 2);
            }
            Some(Step::Start) if before.is_none() => on(at + 1),
            Some(Step::End) if after.is_none() => on(at + 1),
            Some(Step::Boundary(wanted)) => {
                let is_word = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric() || c == '_');
                if (is_word(before) != is_word(after)) == *wanted {
                    on(at + 1);
                }
            }
            _ => {}
        }
    }
}

/// Reads the first step of `rest`, and gives what is left.
fn step<'a>(rest: &'a str, steps: &mut Vec<Step>) -> Option<&'a str> {
    if let Some(rest) = rest.strip_prefix("(.*/)?") {
        steps.extend([Step::Directories, Step::Inside]);
        return Some(rest);
    }
    if let Some(rest) = rest.strip_prefix(".*") {
        steps.push(Step::Many(Set::but('\n')));
        return Some(rest);
    }
    let mut chars = rest.chars();
    let (step, rest) = match chars.next()? {
        '^' => (Step::Start, chars.as_str()),
        '$' => (Step::End, chars.as_str()),
        '[' => {
            let (set, rest) = class(chars.as_str())?;
            match rest.strip_prefix('*') {
                Some(rest) => (Step::Many(set), rest),
                None => (Step::One(set), rest),
            }
        }
        '\\' => (escape(chars.next()?)?, chars.as_str()),
        other => (Step::One(Set::only(other)), chars.as_str()),
    };
    steps.push(step);
    Some(rest)
}

/// What an escaped character means: itself if it is punctuation, and Go's meaning if it is a letter.
fn escape(c: char) -> Option<Step> {
    let set = |negated, ranges: &[(char, char)]| Step::One(Set { negated, ranges: ranges.to_vec() });
    Some(match c {
        'A' => Step::Start,
        'z' => Step::End,
        'b' => Step::Boundary(true),
        'B' => Step::Boundary(false),
        'd' | 'D' | 's' | 'S' | 'w' | 'W' => set(c.is_ascii_uppercase(), shorthand(c)),
        _ => Step::One(Set::only(control(c)?)),
    })
}

fn shorthand(c: char) -> &'static [(char, char)] {
    match c.to_ascii_lowercase() {
        'd' => &[('0', '9')],
        's' => &[('\t', '\n'), ('\u{c}', '\r'), (' ', ' ')],
        _ => &[('0', '9'), ('A', 'Z'), ('_', '_'), ('a', 'z')],
    }
}

fn control(c: char) -> Option<char> {
    match c {
        'a' => Some('\u{7}'),
        'f' => Some('\u{c}'),
        'n' => Some('\n'),
        'r' => Some('\r'),
        't' => Some('\t'),
        'v' => Some('\u{b}'),
        _ => (c.is_ascii() && !c.is_ascii_alphanumeric()).then_some(c),
    }
}

/// Reads a class from behind its `[`, and gives what is left behind its `]`.
fn class(text: &str) -> Option<(Set, &str)> {
    let (negated, mut rest) = match text.strip_prefix('^') {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    let mut ranges = Vec::new();
    let mut first = true;
    loop {
        if let Some(behind) = rest.strip_prefix(']').filter(|_| !first) {
            return Some((Set { negated, ranges }, behind));
        }
        // Only the first and the last `-` stand for themselves.
        if rest.starts_with('-') && !first && !rest.starts_with("-]") {
            return None;
        }
        first = false;
        if let Some((name, behind)) = rest.strip_prefix("[:").and_then(|inside| inside.split_once(":]")) {
            named(name, &mut ranges)?;
            rest = behind;
            continue;
        }
        if let Some(c @ ('d' | 's' | 'w')) = rest.strip_prefix('\\').and_then(|inside| inside.chars().next())
        {
            ranges.extend(shorthand(c));
            rest = &rest[2..];
            continue;
        }
        let (low, behind) = member(rest)?;
        rest = behind;
        let mut high = low;
        if let Some(behind) = rest.strip_prefix('-').filter(|behind| !behind.starts_with(']')) {
            (high, rest) = member(behind)?;
        }
        if high < low {
            return None;
        }
        ranges.push((low, high));
    }
}

fn member(text: &str) -> Option<(char, &str)> {
    let mut chars = text.chars();
    let c = match chars.next()? {
        '\\' => control(chars.next()?)?,
        other => other,
    };
    Some((c, chars.as_str()))
}

/// The members of `[:name:]`.
fn named(name: &str, ranges: &mut Vec<(char, char)>) -> Option<()> {
    ranges.extend::<&[(char, char)]>(match name {
        "alnum" => &[('0', '9'), ('A', 'Z'), ('a', 'z')],
        "alpha" => &[('A', 'Z'), ('a', 'z')],
        "ascii" => &[('\0', '\u{7f}')],
        "blank" => &[('\t', '\t'), (' ', ' ')],
        "cntrl" => &[('\0', '\u{1f}'), ('\u{7f}', '\u{7f}')],
        "digit" => &[('0', '9')],
        "graph" => &[('!', '~')],
        "lower" => &[('a', 'z')],
        "print" => &[(' ', '~')],
        "punct" => &[('!', '/'), (':', '@'), ('[', '`'), ('{', '~')],
        "space" => &[('\t', '\r'), (' ', ' ')],
        "upper" => &[('A', 'Z')],
        "word" => &[('0', '9'), ('A', 'Z'), ('a', 'z'), ('_', '_')],
        "xdigit" => &[('0', '9'), ('A', 'F'), ('a', 'f')],
        _ => return None,
    });
    Some(())
}
