//! Log lines on standard error: `INFO[0012] message` as kaniko's users know them, in colour on a terminal, or JSON.

use std::fmt;
use std::io::IsTerminal as _;
use std::time::Instant;

use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

use crate::cli::values::LogFlags;

/// Starts logging as `flags` say. Progress bars, if there are any, are moved out of the way by `writer`.
pub(crate) fn start(flags: &LogFlags, progress: &crate::progress::Progress) {
    let level = match flags.verbosity.as_str() {
        "trace" => Level::TRACE,
        "debug" => Level::DEBUG,
        "warn" => Level::WARN,
        "error" | "fatal" | "panic" => Level::ERROR,
        _ => Level::INFO,
    };
    let style = match flags.log_format.as_str() {
        "json" => Style::Json,
        "color" if std::io::stderr().is_terminal() => Style::Color,
        _ => Style::Text,
    };
    let format = Lines { style, timestamp: flags.log_timestamp, began: Instant::now() };
    let progress = progress.clone();
    // Libraries' own messages are of interest only to those who ask for them.
    let filter = tracing_subscriber::EnvFilter::new(match level {
        Level::TRACE => "trace".to_owned(),
        Level::DEBUG => "info,kiln=debug".to_owned(),
        other => format!("error,kiln={}", other.as_str().to_ascii_lowercase()),
    });
    let started = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .event_format(format)
        .with_writer(move || progress.stderr())
        .try_init();
    // A second start in one process changes nothing: only tests do that.
    drop(started);
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Style {
    Text,
    Color,
    Json,
}

struct Lines {
    style: Style,
    timestamp: bool,
    began: Instant,
}

#[derive(Default)]
struct Words {
    message: String,
    fields: Vec<(String, String)>,
}

impl Visit for Words {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if field.name() == "message" {
            self.message = format!("{value:?}");
        } else {
            self.fields.push((field.name().to_owned(), format!("{value:?}")));
        }
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == "message" {
            value.clone_into(&mut self.message);
        } else {
            self.fields.push((field.name().to_owned(), value.to_owned()));
        }
    }
}

impl<S, N> FormatEvent<S, N> for Lines
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, _: &FmtContext<'_, S, N>, mut out: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let mut words = Words::default();
        event.record(&mut words);
        let level = *event.metadata().level();
        let time = if self.timestamp || self.style == Style::Json {
            crate::clock::now_text()
        } else {
            String::new()
        };
        if self.style == Style::Json {
            let mut line = serde_json::Map::new();
            line.insert(
                "level".into(),
                level.as_str().to_ascii_lowercase().replace("warn", "warning").into(),
            );
            line.insert("msg".into(), words.message.into());
            line.insert("time".into(), time.into());
            line.extend(words.fields.into_iter().map(|(key, value)| (key, value.into())));
            return writeln!(out, "{}", serde_json::Value::Object(line));
        }
        let name = match level {
            Level::ERROR => "ERRO",
            Level::WARN => "WARN",
            Level::INFO => "INFO",
            Level::DEBUG => "DEBU",
            Level::TRACE => "TRAC",
        };
        let colour = match level {
            Level::ERROR => 31,
            Level::WARN => 33,
            _ => 36,
        };
        let stamp = if self.timestamp { time } else { format!("{:04}", self.began.elapsed().as_secs()) };
        if self.style == Style::Color {
            write!(out, "\x1b[{colour}m{name}\x1b[0m[{stamp}] {}", words.message)?;
        } else {
            write!(out, "{name}[{stamp}] {}", words.message)?;
        }
        for (key, value) in words.fields {
            write!(out, " {key}={value}")?;
        }
        writeln!(out)
    }
}
