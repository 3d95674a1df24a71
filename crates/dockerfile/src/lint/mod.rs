//! BuildKit's build checks. They find what is allowed and hardly meant.
//!
//! Variables are followed from stage to stage as in a build. What only an image or a build's arguments could tell comes
//! with [`LintFacts`]; without them a base image sets nothing but PATH.

mod names;
mod secrets;
mod stages;
mod walk;

use std::collections::BTreeMap;

use crate::ast::Instruction;
use crate::check::CheckOptions;
use crate::parse::{right_part, split_directive};
use crate::{Diagnostic, Dockerfile, Ignore, Rule, Severity, Source, Span};

/// What a file alone does not tell.
#[derive(Clone, Debug)]
pub struct LintFacts<'a> {
    /// The context's .dockerignore, for [`Rule::CopyIgnoredFile`].
    pub ignore: Option<&'a Ignore>,
    /// The target platform.
    pub platform: String,
    /// The build's arguments.
    pub build_args: BTreeMap<String, String>,
    /// The environments of base images, by where their FROM begins in the text.
    pub environments: BTreeMap<u32, BTreeMap<String, String>>,
}

impl Default for LintFacts<'_> {
    fn default() -> Self {
        Self {
            ignore: None,
            platform: "linux/amd64".to_owned(),
            build_args: BTreeMap::new(),
            environments: BTreeMap::new(),
        }
    }
}

/// What the checks find in a file, in its order, with what the file says about checks honoured: findings are errors
/// under `# check=error=true`.
pub fn lint(_source: &Source, file: &Dockerfile) -> Vec<Diagnostic> {
    lint_with(file, &LintFacts::default())
}

/// The same, knowing more.
pub fn lint_with(file: &Dockerfile, facts: &LintFacts<'_>) -> Vec<Diagnostic> {
    let mut report = Report::new(file.check_options());
    for warning in &file.warnings {
        report.add_to_file(warning.clone());
    }
    stages::check(file, &mut report);
    walk::check(file, facts, &mut report);
    report.finish()
}

/// What can be said about a file that [`crate::parse`] refuses: the findings about single instructions before the first
/// wrong one, and about empty lines. The part that was read comes along.
pub fn lint_before_error(source: &Source) -> (Dockerfile, Vec<Diagnostic>) {
    let file = right_part(&source.text);
    let mut report = Report::new(file.check_options());
    for warning in &file.warnings {
        report.add_to_file(warning.clone());
    }
    stages::check_each(&file, &mut report);
    (file, report.finish())
}

/// Gathers what is found, and leaves out what is not asked for.
struct Report {
    options: CheckOptions,
    findings: Vec<Diagnostic>,
}

impl Report {
    fn new(options: CheckOptions) -> Self {
        Self { options, findings: Vec::new() }
    }

    fn finish(mut self) -> Vec<Diagnostic> {
        self.findings.sort_by_key(|finding| (finding.span.start, finding.rule));
        self.findings
    }

    /// A finding that only the file's own directive can silence.
    fn add_to_file(&mut self, finding: Diagnostic) {
        let options = self.options.clone();
        self.add_unless(finding, &options);
    }

    /// A finding about an instruction, which a comment above the instruction can silence too.
    fn add(&mut self, at: &Instruction, finding: Diagnostic) {
        let options = match comment_options(at) {
            Some(more) => self.options.with(more),
            None => self.options.clone(),
        };
        self.add_unless(finding, &options);
    }

    fn add_unless(&mut self, mut finding: Diagnostic, options: &CheckOptions) {
        if options.runs(finding.rule) {
            if options.error {
                finding.severity = Severity::Error;
            }
            self.findings.push(finding);
        }
    }
}

/// The first `# check=` right above an instruction, if it can be read.
fn comment_options(at: &Instruction) -> Option<CheckOptions> {
    let value = at.comments.iter().find_map(|comment| match split_directive(comment) {
        Some((name, value, _)) if name == "check" => Some(value),
        _ => None,
    })?;
    CheckOptions::parse(value).ok()
}

fn warning(rule: Rule, span: Span, message: impl Into<String>) -> Diagnostic {
    Diagnostic::warning(rule, span, message)
}
