//! How the values of flags are read: as kaniko's Go libraries read them.

use std::time::Duration;

use clap::Args;

/// A boolean as Go's strconv reads it.
pub(crate) fn boolean(text: &str) -> Result<bool, String> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
        other => Err(format!("{other:?} is neither true nor false")),
    }
}

/// A duration as Go's time package reads it: `6h`, `1h30m`, `1.5s`, `0`.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    let fail = || format!("{text:?} is not a duration; write 6h, 1h30m or 90s");
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    let mut rest = text;
    let mut total = 0.0;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(fail)?;
        let number: f64 = rest[..digits].parse().map_err(|_| fail())?;
        let unit_length =
            rest[digits..].find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(rest.len() - digits);
        let seconds = match &rest[digits..digits + unit_length] {
            "ns" => 1e-9,
            "us" | "µs" => 1e-6,
            "ms" => 1e-3,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            "d" => 86400.0,
            _ => return Err(fail()),
        };
        total += number * seconds;
        rest = &rest[digits + unit_length..];
    }
    if text.is_empty() { Err(fail()) } else { Duration::try_from_secs_f64(total).map_err(|_| fail()) }
}

/// A number of bytes: `500000000`, `500MB`, `20Gi`.
pub(crate) fn bytes(text: &str) -> Result<u64, String> {
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let fail = || format!("{text:?} is not a size; write 20Gi, 500MB or a number of bytes");
    let number: f64 = text[..digits].parse().map_err(|_| fail())?;
    let unit = match text[digits..].trim().to_ascii_lowercase().trim_end_matches('b') {
        "" => 1.0,
        "k" => 1e3,
        "m" => 1e6,
        "g" => 1e9,
        "t" => 1e12,
        "ki" => 1024.0,
        "mi" => 1024f64.powi(2),
        "gi" => 1024f64.powi(3),
        "ti" => 1024f64.powi(4),
        _ => return Err(fail()),
    };
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "sizes are positive and far below 2^53"
    )]
    let size = (number * unit) as u64;
    Ok(size)
}

/// `KEY=VALUE`; the value may hold spaces and `=`.
pub(crate) fn pair(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err(format!("{text:?} is not of the form KEY=VALUE")),
    }
}

/// How much is logged, and how.
#[derive(Args, Debug, Clone)]
#[command(next_help_heading = "Log")]
pub(crate) struct LogFlags {
    /// What is logged: trace, debug, info, warn or error (panic and fatal mean error)
    #[arg(short, long, default_value = "info", value_parser = ["trace", "debug", "info", "warn", "error", "fatal", "panic"])]
    pub(crate) verbosity: String,
    /// How it is logged
    #[arg(long, default_value = "color", value_parser = ["text", "color", "json"])]
    pub(crate) log_format: String,
    /// Begin each line with the time
    #[arg(long, num_args = 0..=1, default_missing_value = "true", require_equals = true, value_parser = boolean, action = clap::ArgAction::Set, default_value = "false")]
    pub(crate) log_timestamp: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn go_durations_are_read() {
        assert_eq!(duration("1h30m").unwrap(), Duration::from_secs(5400));
        assert_eq!(duration("336h").unwrap(), Duration::from_secs(336 * 3600));
        assert_eq!(duration("1.5s").unwrap(), Duration::from_millis(1500));
        for text in ["", "1", "h", "1x", "1.2.3s", "-5s"] {
            assert!(duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn sizes_are_read_with_units() {
        assert_eq!(bytes("20Gi").unwrap(), 20 << 30);
        assert_eq!(bytes("500MB").unwrap(), 500_000_000);
        assert_eq!(bytes("7").unwrap(), 7);
        assert!(bytes("x").is_err());
    }
}
