//! What people see: standard output, errors with the source line and a caret.

use std::fmt::Write as _;
use std::io::Write as _;

use annotate_snippets::{AnnotationKind, Level, Renderer, Snippet};
use kiln_dockerfile::{Diagnostic, Severity, Source};
use kiln_executor::BuildError;

use crate::exit::Outcome;

/// Writes to standard output. Nobody is left to be told when it is closed.
pub(crate) fn out(text: &str) {
    let mut stdout = std::io::stdout().lock();
    _ = stdout.write_all(text.as_bytes());
    _ = stdout.flush();
}

/// Writes to standard error.
pub(crate) fn err(text: &str) {
    _ = std::io::stderr().lock().write_all(text.as_bytes());
}

/// Says what failed.
pub(crate) fn failed(text: &str) -> Outcome {
    err(&format!("error: {text}\n"));
    Outcome::Failed
}

/// A finding with its source line, a caret and its hint.
pub(crate) fn diagnostic(source: &Source, finding: &Diagnostic) -> String {
    let level = match finding.severity {
        Severity::Error => Level::ERROR,
        Severity::Warning => Level::WARNING,
    };
    let end = (finding.span.end as usize).min(source.text.len());
    let start = (finding.span.start as usize).min(end);
    // The first line says enough: instructions may go on for pages.
    let end = source.text[start..end].find('\n').map_or(end, |length| start + length);
    let title = match finding.severity {
        Severity::Error => finding.message.clone(),
        Severity::Warning => format!("{}: {}", finding.rule.name(), finding.message),
    };
    let snippet =
        Snippet::source(&source.text).path(&source.name).annotation(AnnotationKind::Primary.span(start..end));
    let group = level.primary_title(title).element(snippet);
    let mut text = Renderer::plain().render(&[group]);
    text.push('\n');
    if let Some(hint) = &finding.hint {
        _ = writeln!(text, "  = hint: {hint}");
    }
    text
}

/// A failed build: what, where in the Dockerfile, what to do.
pub(crate) fn build_error(error: &BuildError) -> Outcome {
    match error {
        BuildError::Dockerfile { source_text, errors } => {
            for finding in errors {
                err(&diagnostic(source_text, finding));
            }
            err(&format!("error: {} in {}\n", count(errors.len()), source_text.name));
        }
        BuildError::Step { source_text, span, cause, hint, .. } => {
            let mut finding = Diagnostic {
                severity: Severity::Error,
                rule: kiln_dockerfile::Rule::Syntax,
                span: *span,
                message: cause.clone(),
                hint: hint.clone(),
            };
            finding.span = *span;
            err(&diagnostic(source_text, &finding));
        }
        BuildError::RunFailed { source_text, span, how, .. } => {
            let finding = Diagnostic {
                severity: Severity::Error,
                rule: kiln_dockerfile::Rule::Syntax,
                span: *span,
                message: format!("RUN failed: {how}"),
                hint: None,
            };
            err(&diagnostic(source_text, &finding));
        }
        other => err(&format!("error: {other}\n")),
    }
    match error.exit_code() {
        1 => Outcome::Failed,
        code => Outcome::StepFailed(code),
    }
}

fn count(errors: usize) -> String {
    if errors == 1 { "1 error".to_owned() } else { format!("{errors} errors") }
}
