//! Findings as SARIF 2.1.0, which code hosts read.

use kiln_dockerfile::{Diagnostic, Rule, Severity, Source};
use serde_json::{Value, json};

/// A log with one run: the rules that were broken, and where.
pub(crate) fn sarif(source: &Source, found: &[Diagnostic]) -> Value {
    let mut rules: Vec<Rule> = Vec::new();
    let mut results = Vec::new();
    for finding in found {
        let known = rules.iter().position(|rule| *rule == finding.rule);
        let index = known.unwrap_or_else(|| {
            rules.push(finding.rule);
            rules.len() - 1
        });
        results.push(result(source, finding, index));
    }
    let rules: Vec<Value> = rules.iter().map(|rule| json!({"id": rule.name()})).collect();
    json!({
        "$schema": "https://json.schemastore.org/sarif-2.1.0.json",
        "version": "2.1.0",
        "runs": [{
            "tool": {"driver": {"name": "kiln", "version": env!("CARGO_PKG_VERSION"), "rules": rules}},
            "columnKind": "unicodeCodePoints",
            "results": results,
        }],
    })
}

fn result(source: &Source, finding: &Diagnostic, rule: usize) -> Value {
    let (line, column) = source.line_col(finding.span.start);
    let (end_line, end_column) = source.line_col(finding.span.end.max(finding.span.start));
    let text = match &finding.hint {
        Some(hint) => format!("{} ({hint})", finding.message),
        None => finding.message.clone(),
    };
    json!({
        "ruleId": finding.rule.name(),
        "ruleIndex": rule,
        "level": if finding.severity == Severity::Error { "error" } else { "warning" },
        "message": {"text": text},
        "locations": [{"physicalLocation": {
            "artifactLocation": {"uri": uri(&source.name)},
            "region": {
                "startLine": line, "startColumn": column, "endLine": end_line, "endColumn": end_column,
            },
        }}],
    })
}

/// A path as a reference: what has a meaning of its own in one is escaped (RFC 3986).
fn uri(path: &str) -> String {
    let escaped = |byte: u8| match byte {
        b'/' | b'.' | b'-' | b'_' | b'~' => char::from(byte).to_string(),
        byte if byte.is_ascii_alphanumeric() => char::from(byte).to_string(),
        byte => format!("%{byte:02X}"),
    };
    path.bytes().map(escaped).collect()
}

#[cfg(test)]
mod tests {
    use super::uri;

    #[test]
    fn a_path_is_a_reference() {
        assert_eq!(uri("a b/Dockerfile:x#é"), "a%20b/Dockerfile%3Ax%23%C3%A9");
    }
}
