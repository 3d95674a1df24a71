//! The texts of history entries, in the words that BuildKit's frontend uses, so that tools which read them go on working.

use std::fmt::Write as _;

use kiln_oci::{Healthcheck, History};

/// The comment that marks an entry as Kiln's.
pub(crate) const COMMENT: &str = "kiln.dockerfile.v1";

/// An entry without its time, which is known when the image is assembled.
pub(crate) fn entry(created_by: String, has_layer: bool) -> History {
    History { created_by, comment: COMMENT.to_owned(), empty_layer: !has_layer, ..History::default() }
}

/// RUN's entry: build args first, after their count, as docker has always written them.
pub(crate) fn run(argv: &[String], build_args: &[(String, String)]) -> String {
    let mut words = Vec::new();
    if !build_args.is_empty() {
        words.push(format!("|{}", build_args.len()));
        words.extend(build_args.iter().map(|(key, value)| format!("{key}={value}")));
    }
    words.extend(argv.iter().cloned());
    format!("RUN {} # buildkit", words.join(" "))
}

/// A list as Go prints quoted strings: `["a" "b"]`.
pub(crate) fn quoted(words: &[String]) -> String {
    let words: Vec<String> = words.iter().map(|word| go_quote(word)).collect();
    format!("[{}]", words.join(" "))
}

/// A list as Go prints strings: `[a b]`.
pub(crate) fn plain(words: &[String]) -> String {
    format!("[{}]", words.join(" "))
}

fn go_quote(text: &str) -> String {
    let mut quoted = String::from("\"");
    for c in text.chars() {
        match c {
            '"' => quoted.push_str("\\\""),
            '\\' => quoted.push_str("\\\\"),
            '\n' => quoted.push_str("\\n"),
            '\t' => quoted.push_str("\\t"),
            '\r' => quoted.push_str("\\r"),
            '\u{7}' => quoted.push_str("\\a"),
            '\u{8}' => quoted.push_str("\\b"),
            '\u{c}' => quoted.push_str("\\f"),
            '\u{b}' => quoted.push_str("\\v"),
            c if is_printable(c) => quoted.push(c),
            c if c.is_ascii() => _ = write!(quoted, "\\x{:02x}", c as u32),
            c if c as u32 <= 0xffff => _ = write!(quoted, "\\u{:04x}", c as u32),
            c => _ = write!(quoted, "\\U{:08x}", c as u32),
        }
    }
    quoted.push('"');
    quoted
}

/// Letters, marks, numbers, punctuation, symbols and the plain space.
fn is_printable(c: char) -> bool {
    // The standard library knows it for `Debug`; a mark is only escaped where it stands first.
    !format!("a{c}").escape_debug().to_string().contains("\\u{")
}

/// HEALTHCHECK's entry, as Go prints the struct.
pub(crate) fn healthcheck(check: &Healthcheck) -> String {
    format!(
        "HEALTHCHECK {{Test:{} Interval:{} Timeout:{} StartPeriod:{} StartInterval:{} Retries:{}}}",
        plain(&check.test),
        duration(check.interval),
        duration(check.timeout),
        duration(check.start_period),
        duration(check.start_interval),
        check.retries
    )
}

/// A duration in nanoseconds as Go prints it: `1m30s`, `1.5s`, `20ms`, `0s`.
fn duration(nanos: i64) -> String {
    let (sign, total) = (if nanos < 0 { "-" } else { "" }, nanos.unsigned_abs());
    let decimal = |value: u64, unit: u64| {
        let text = format!("{}.{:0width$}", value / unit, value % unit, width = unit.ilog10() as usize);
        text.trim_end_matches('0').trim_end_matches('.').to_owned()
    };
    let text = match total {
        0 => "0s".to_owned(),
        1..1_000 => format!("{total}ns"),
        1_000..1_000_000 => format!("{}µs", decimal(total, 1_000)),
        1_000_000..1_000_000_000 => format!("{}ms", decimal(total, 1_000_000)),
        _ => {
            let minutes = total / 60_000_000_000;
            let seconds = decimal(total % 60_000_000_000, 1_000_000_000);
            match (minutes / 60, minutes % 60) {
                (0, 0) => format!("{seconds}s"),
                (0, minutes) => format!("{minutes}m{seconds}s"),
                (hours, minutes) => format!("{hours}h{minutes}m{seconds}s"),
            }
        }
    };
    format!("{sign}{text}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_written_as_go_writes_them() {
        for (nanos, text) in [
            (0, "0s"),
            (5_000_000_000, "5s"),
            (90_000_000_000, "1m30s"),
            (3_600_000_000_000, "1h0m0s"),
            (1_500_000_000, "1.5s"),
            (20_000_000, "20ms"),
            (1_500, "1.5µs"),
        ] {
            assert_eq!(duration(nanos), text);
        }
    }

    #[test]
    fn a_list_is_quoted_as_go_quotes_it() {
        let words = ["a\nb", "é\u{1}", "\u{7f}\u{200b}", "e\u{301}", "\u{e0001}", "\"\\"].map(str::to_owned);
        let shown = r#"["a\nb" "é\x01" "\x7f\u200b" "MARK" "\U000e0001" "\"\\"]"#.replace("MARK", "e\u{301}");
        assert_eq!(quoted(&words), shown);
    }

    #[test]
    fn build_args_come_first_in_a_run_entry() {
        let argv = ["/bin/sh".to_owned(), "-c".to_owned(), "echo".to_owned()];
        assert_eq!(run(&argv, &[("A".into(), "1".into())]), "RUN |1 A=1 /bin/sh -c echo # buildkit");
        assert_eq!(run(&argv, &[]), "RUN /bin/sh -c echo # buildkit");
    }
}
