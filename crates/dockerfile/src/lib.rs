//! Dockerfile text to instructions with spans, word expansion, and `.dockerignore`. Pure: no I/O, no clock.
//!
//! Start with [`parse`], [`Dockerfile`] and [`Word`]. The semantics are those of BuildKit's stable frontend.

pub mod ast;
mod build;
mod diagnostic;
mod expand;
mod glob;
mod ignore;
mod json_form;
mod logical;
mod mount;
mod source;
mod split;
mod word;

pub use ast::*;
pub use build::{nearest, parse, parse_trigger};
pub use diagnostic::{Diagnostic, Rule, Severity};
pub use expand::{Expansion, Scope, expand_heredoc};
pub use glob::{BadPattern, go_match};
pub use ignore::{Ignore, Pattern};
pub use source::{Source, Span};
pub use word::Word;
