//! `--chmod`: octal, or symbolic as chmod(1) has it.

/// A change of permissions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    /// These permissions.
    Octal(u32),
    /// What each clause says, one after another.
    Symbolic(Vec<Clause>),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Clause {
    /// Bits 0o700, 0o070, 0o007 of whom it is about.
    who: u32,
    operator: char,
    what: What,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum What {
    /// Permissions as in `rwxXst`.
    Bits { read: bool, write: bool, execute: bool, execute_if_any: bool, set_id: bool, sticky: bool },
    /// Those of the user (6), the group (3) or others (0): how far to shift.
    CopyOf(u32),
}

impl Mode {
    /// Reads the flag.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let fail =
            || format!("--chmod={text}: write an octal number up to 7777, or clauses such as u=rwX,go=rX");
        if text.starts_with(|c: char| c.is_ascii_digit()) {
            let mode = u32::from_str_radix(text, 8).ok().filter(|mode| *mode <= 0o7777);
            return mode.map(Self::Octal).ok_or_else(fail);
        }
        let mut clauses = Vec::new();
        for clause in text.split(',') {
            let start = clause.find(['+', '-', '=']).ok_or_else(fail)?;
            let mut who = 0;
            for c in clause[..start].chars() {
                who |= match c {
                    'u' => 0o700,
                    'g' => 0o070,
                    'o' => 0o007,
                    'a' => 0o777,
                    _ => return Err(fail()),
                };
            }
            if who == 0 {
                who = 0o777;
            }
            let mut rest = &clause[start..];
            while let Some(operator) = rest.chars().next() {
                let end = rest[1..].find(['+', '-', '=']).map_or(rest.len(), |end| end + 1);
                let what = permissions(&rest[1..end]).ok_or_else(fail)?;
                clauses.push(Clause { who, operator, what });
                rest = &rest[end..];
            }
        }
        Ok(Self::Symbolic(clauses))
    }

    /// What an entry with these permissions has afterwards.
    pub(crate) fn apply(&self, mode: u32, directory: bool) -> u32 {
        match self {
            Self::Octal(mode) => *mode,
            Self::Symbolic(clauses) => {
                clauses.iter().fold(mode, |mode, clause| clause.apply(mode, directory))
            }
        }
    }

    /// The permissions of directories that a copy has to make: setuid, setgid and sticky are left out.
    pub(crate) fn of_parents(&self) -> u32 {
        match self {
            Self::Octal(mode) => *mode & 0o777,
            Self::Symbolic(_) => 0o755,
        }
    }
}

fn permissions(text: &str) -> Option<What> {
    match text {
        "u" => return Some(What::CopyOf(6)),
        "g" => return Some(What::CopyOf(3)),
        "o" => return Some(What::CopyOf(0)),
        _ => {}
    }
    let known = text.chars().all(|c| "rwxXst".contains(c));
    known.then(|| What::Bits {
        read: text.contains('r'),
        write: text.contains('w'),
        execute: text.contains('x'),
        execute_if_any: text.contains('X'),
        set_id: text.contains('s'),
        sticky: text.contains('t'),
    })
}

impl Clause {
    fn apply(&self, mode: u32, directory: bool) -> u32 {
        let mut special = 0;
        let each = match &self.what {
            What::CopyOf(shift) => mode >> shift & 7,
            What::Bits { read, write, execute, execute_if_any, set_id, sticky } => {
                let runs = *execute || (*execute_if_any && (directory || mode & 0o111 != 0));
                if *set_id {
                    special |= if self.who & 0o700 != 0 { 0o4000 } else { 0 };
                    special |= if self.who & 0o070 != 0 { 0o2000 } else { 0 };
                }
                special |= if *sticky { 0o1000 } else { 0 };
                u32::from(*read) << 2 | u32::from(*write) << 1 | u32::from(runs)
            }
        };
        let bits = (each << 6 | each << 3 | each) & self.who;
        match self.operator {
            '+' => mode | bits | special,
            '-' => mode & !(bits | special),
            _ => {
                let mut cleared = self.who;
                cleared |= if self.who & 0o700 != 0 { 0o4000 } else { 0 };
                cleared |= if self.who & 0o070 != 0 { 0o2000 } else { 0 };
                cleared |= if self.who == 0o777 { 0o1000 } else { 0 };
                mode & !cleared | bits | special
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Mode;

    #[test]
    fn clauses_work_as_chmods() {
        for (text, before, directory, after) in [
            ("755", 0o600, false, 0o755),
            ("0600", 0o755, true, 0o600),
            ("4755", 0, false, 0o4755),
            ("go=u", 0o640, false, 0o666),
            ("u=rwX,go=rX", 0o600, false, 0o644),
            ("u=rwX,go=rX", 0o700, false, 0o755),
            ("u=rwX,go=rX", 0o600, true, 0o755),
            ("a-w", 0o666, false, 0o444),
            ("+x", 0o644, false, 0o755),
            ("u+s,g+s", 0o755, false, 0o6755),
            ("+t", 0o755, true, 0o1755),
            ("g=u-w", 0o750, false, 0o750),
            ("o=", 0o777, false, 0o770),
        ] {
            assert_eq!(Mode::parse(text).unwrap().apply(before, directory), after, "{text} on {before:o}");
        }
    }

    #[test]
    fn nonsense_is_refused() {
        for text in ["", "999", "77777", "q+x", "u*x", "u+q", "rwx"] {
            assert!(Mode::parse(text).is_err(), "{text}");
        }
    }
}
