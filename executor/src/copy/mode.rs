//! `--chmod`: octal, or symbolic as chmod(1) has it.

/// A change of permissions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    /// These permissions.
    Octal(u32),
    /// What is done to them, one after another.
    Symbolic(Vec<Change>),
}

/// One thing that is done to permissions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    Set(u32),
    Clear(u32),
    /// Set where the file could be run by somebody before all changes, or is a directory.
    SetIfRuns(u32),
    /// The permissions of user (6), group (3) or others (0): how far to shift; `to` has the bits of those who get them.
    Copy {
        from: u32,
        to: u32,
        operator: u8,
    },
}

/// The bits of user, group and others, setuid and setgid included.
const ALL: u32 = 0o6777;
const STICKY: u32 = 0o1000;

impl Mode {
    /// Reads the flag.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let fail =
            || format!("--chmod={text}: write an octal number up to 7777, or clauses such as u=rwX,go=rX");
        if text.starts_with(|c: char| c.is_ascii_digit()) {
            let mode = u32::from_str_radix(text, 8).ok().filter(|mode| *mode <= 0o7777);
            return mode.map(Self::Octal).ok_or_else(fail);
        }
        let mut changes = Vec::new();
        for clause in text.split(',') {
            let start = clause.find(['+', '-', '=']).ok_or_else(fail)?;
            let mut who = 0;
            for c in clause[..start].chars() {
                who |= match c {
                    'u' => 0o4700,
                    'g' => 0o2070,
                    'o' => 0o007,
                    'a' => ALL,
                    _ => return Err(fail()),
                };
            }
            let mut rest = &clause.as_bytes()[start..];
            while let Some((operator, words)) = rest.split_first() {
                let end = words.iter().position(|c| b"+-=".contains(c)).unwrap_or(words.len());
                action(who, *operator, &words[..end], &mut changes).ok_or_else(fail)?;
                rest = &words[end..];
            }
        }
        Ok(Self::Symbolic(changes))
    }

    /// What an entry with these permissions has afterwards.
    pub(crate) fn apply(&self, before: u32, directory: bool) -> u32 {
        let changes = match self {
            Self::Octal(mode) => return *mode,
            Self::Symbolic(changes) => changes,
        };
        let runs = directory || before & 0o111 != 0;
        changes.iter().fold(before, |mode, change| match *change {
            Change::Set(bits) => mode | bits,
            Change::Clear(bits) => mode & !bits,
            Change::SetIfRuns(bits) => mode | if runs { bits } else { 0 },
            Change::Copy { from, to, operator } => {
                let each = mode >> from & 7;
                let bits = (each << 6 | each << 3 | each) & to;
                match operator {
                    b'+' => mode | bits,
                    b'-' => mode & !bits,
                    _ => mode & !(to & 0o777) | bits,
                }
            }
        })
    }

    /// The permissions of directories that a copy has to make: setuid, setgid and sticky are left out.
    pub(crate) fn of_parents(&self) -> u32 {
        match self {
            Self::Octal(mode) => *mode & 0o777,
            Self::Symbolic(_) => 0o755,
        }
    }
}

/// One operator with its letters, as BSD's chmod reads them: setuid and setgid are no matter of others, nor is the sticky
/// bit, which `=` leaves alone unless it is named.
fn action(who: u32, operator: u8, letters: &[u8], changes: &mut Vec<Change>) -> Option<()> {
    let whose = |who: u32| if who == 0 { ALL } else { who };
    let special = who == 0 || who & 0o770 != 0;
    let (mut who, mut bits, mut if_runs, mut replaced) = (who, 0, 0, operator != b'=');
    let flush = |changes: &mut Vec<Change>, who: u32, bits: u32| {
        if operator == b'=' {
            changes.push(Change::Clear(whose(who)));
        }
        let bits = bits & whose(who);
        changes.push(if operator == b'-' { Change::Clear(bits) } else { Change::Set(bits) });
    };
    for letter in letters {
        match letter {
            b'r' => bits |= 0o444,
            b'w' => bits |= 0o222,
            b'x' => bits |= 0o111,
            b'X' if operator == b'-' => bits |= 0o111,
            b'X' => if_runs |= 0o111,
            b's' if special => bits |= 0o6000,
            b't' if special => {
                who |= STICKY;
                bits |= STICKY;
            }
            b's' | b't' => {}
            b'u' | b'g' | b'o' => {
                if bits != 0 {
                    flush(changes, who, bits);
                    bits = 0;
                }
                replaced = true;
                if if_runs != 0 {
                    changes.push(Change::SetIfRuns(if_runs & whose(who)));
                    if_runs = 0;
                }
                let from = match letter {
                    b'u' => 6,
                    b'g' => 3,
                    _ => 0,
                };
                changes.push(Change::Copy { from, to: whose(who) & 0o777, operator });
            }
            _ => return None,
        }
    }
    if bits != 0 || !replaced {
        flush(changes, who, bits);
    }
    if if_runs != 0 {
        changes.push(Change::SetIfRuns(if_runs & whose(who)));
    }
    Some(())
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
            ("a=rwx", 0o1755, true, 0o1777),
            ("=t", 0o1755, true, 0o1755),
            ("o+t", 0o755, true, 0o755),
            ("o+s", 0o755, false, 0o755),
            ("u+t", 0o755, true, 0o1755),
            ("a-x,a+X", 0o755, false, 0o755),
            ("a-x,a+X", 0o644, false, 0o644),
            ("u=rwX", 0o4700, false, 0o700),
            ("g=ur", 0o710, false, 0o740),
            ("u=g", 0o4750, false, 0o4550),
            ("+s", 0o755, false, 0o6755),
            ("a+rx,go-w,u=rwx", 0o666, false, 0o755),
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
