//! Dockerfile text to instructions with spans; word expansion; .dockerignore; lint. Pure.
//!
//! Start with [`parse`] (a [`Source`] becomes a [`Dockerfile`], or all errors of the file), [`Word::expand`] (variables,
//! quotes and escapes) and [`Ignore`] (.dockerignore). Nothing here knows an image, a file system or the environment.
//! The reference is BuildKit's stable frontend: what it accepts is accepted, and means the same.

mod ast;
mod check;
mod describe;
mod diagnostic;
mod duration;
mod flags;
mod glob;
mod go_match;
mod heredoc;
mod ignore;
mod instruction;
mod json;
mod lint;
mod logical;
mod mount;
mod parse;
mod print;
mod regex;
mod shell;
mod source;
mod suggest;
mod word;
mod words;

pub use ast::*;
pub use check::CheckOptions;
pub use describe::{describe, describe_errors, describe_warnings};
pub use diagnostic::{Diagnostic, Rule, Severity};
pub use go_match::{BadPattern, go_match};
pub use heredoc::expand_heredoc;
pub use ignore::{Ignore, Pattern, Verdict};
pub use lint::{LintFacts, lint, lint_before_error, lint_with};
pub use parse::{parse, parse_trigger};
pub use print::to_text;
pub use source::{Source, Span};
pub use suggest::nearest;
pub use word::{Expansion, Scope, Word};
