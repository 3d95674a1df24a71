//! Errors and warnings as values: what is wrong, where, and what to write instead.

use std::fmt;

use crate::Span;

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Severity {
    /// The file can't be used.
    Error,
    /// The file can be used, but hardly means what it says.
    Warning,
}

/// An error or a warning with its place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diagnostic {
    /// How bad it is.
    pub severity: Severity,
    /// Which check found it.
    pub rule: Rule,
    /// Where.
    pub span: Span,
    /// What is wrong: one line, without the place.
    pub message: String,
    /// What to do about it.
    pub hint: Option<String>,
}

impl Diagnostic {
    /// A syntax error.
    pub fn error(span: Span, message: impl Into<String>) -> Self {
        Self { severity: Severity::Error, rule: Rule::Syntax, span, message: message.into(), hint: None }
    }

    /// What the check `rule` found.
    pub fn warning(rule: Rule, span: Span, message: impl Into<String>) -> Self {
        Self { severity: Severity::Warning, rule, span, message: message.into(), hint: None }
    }

    /// The same with a hint.
    #[must_use]
    pub fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// The same with "did you mean" if there is something near.
    #[must_use]
    pub fn with_suggestion(self, near: Option<String>) -> Self {
        match near {
            Some(near) => self.with_hint(format!("did you mean {near}?")),
            None => self,
        }
    }
}

/// Message and hint in one line; without the place, which only the source's owner can print.
impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        match &self.hint {
            Some(hint) => write!(f, "; {hint}"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for Diagnostic {}

macro_rules! rules {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// Every check there is. The names are BuildKit's.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[non_exhaustive]
        pub enum Rule {
            /// An error of syntax: no check, and nothing can skip it.
            Syntax,
            $($(#[$doc])* $name,)*
        }

        impl Rule {
            /// The checks that can be skipped by name.
            pub const CHECKS: &'static [Self] = &[$(Self::$name,)*];

            /// The name in output and in `# check=skip=`.
            pub fn name(self) -> &'static str {
                match self {
                    Self::Syntax => "Syntax",
                    $(Self::$name => stringify!($name),)*
                }
            }
        }
    };
}

rules! {
    /// A stage's name has upper-case letters.
    StageNameCasing,
    /// `FROM … as`, or `from … AS`.
    FromAsCasing,
    /// An empty line inside an instruction.
    NoEmptyContinuation,
    /// A keyword's case differs from that of most keywords.
    ConsistentInstructionCasing,
    /// Two stages of one name.
    DuplicateStageName,
    /// A stage called `scratch` or `context`.
    ReservedStageName,
    /// CMD or ENTRYPOINT in shell form.
    JSONArgsRecommended,
    /// MAINTAINER.
    MaintainerDeprecated,
    /// FROM uses an ARG that is not declared before it.
    UndefinedArgInFrom,
    /// WORKDIR is relative, and none was set before.
    WorkdirRelativePath,
    /// A variable that nothing defines.
    UndefinedVar,
    /// A second CMD, ENTRYPOINT or HEALTHCHECK in a stage.
    MultipleInstructionsDisallowed,
    /// ENV or LABEL without `=`.
    LegacyKeyValueFormat,
    /// The base image is for another platform.
    InvalidBaseImagePlatform,
    /// `FROM --platform=$TARGETPLATFORM`.
    RedundantTargetPlatform,
    /// ARG or ENV of a name that looks like a secret's.
    SecretsUsedInArgOrEnv,
    /// FROM is empty or no image name unless build arguments are given.
    InvalidDefaultArgInFrom,
    /// `FROM --platform` with a fixed value.
    FromPlatformFlagConstDisallowed,
    /// COPY or ADD of a file that .dockerignore excludes.
    CopyIgnoredFile,
    /// A comment above a stage or ARG that does not start with its name. Only where asked for.
    InvalidDefinitionDescription,
    /// EXPOSE with an upper-case protocol.
    ExposeProtoCasing,
    /// EXPOSE with an address or a host port.
    ExposeInvalidFormat,
}

impl Rule {
    /// The check of this name, if there is one.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::CHECKS.iter().copied().find(|rule| rule.name() == name)
    }

    /// Whether the check runs only where `# check=experimental=` asks for it.
    pub fn is_experimental(self) -> bool {
        self == Self::InvalidDefinitionDescription
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
