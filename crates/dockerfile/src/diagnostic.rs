//! Errors and warnings as values: where, what, and what to do.

use crate::Span;

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Severity {
    /// The build can't go on.
    Error,
    /// The build goes on.
    Warning,
}

/// Something to tell about a place in a Dockerfile.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diagnostic {
    /// How bad it is.
    pub severity: Severity,
    /// Which check found it.
    pub rule: Rule,
    /// Where.
    pub span: Span,
    /// What is wrong, in one sentence without a full stop.
    pub message: String,
    /// What to do.
    pub hint: Option<String>,
}

impl Diagnostic {
    /// An error.
    pub fn error(span: Span, message: impl Into<String>) -> Self {
        Self { severity: Severity::Error, rule: Rule::Syntax, span, message: message.into(), hint: None }
    }

    /// A warning of the check `rule`.
    pub fn warning(rule: Rule, span: Span, message: impl Into<String>) -> Self {
        Self { severity: Severity::Warning, rule, span, message: message.into(), hint: None }
    }

    /// The same with a hint.
    #[must_use]
    pub fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}

macro_rules! rules {
    ($($(#[$doc:meta])* $rule:ident,)*) => {
        /// The checks, by the names that BuildKit gives them; `Syntax` is for what is an error.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Rule { $($(#[$doc])* $rule,)* }

        impl Rule {
            /// All checks.
            pub const ALL: &'static [Self] = &[$(Self::$rule,)*];

            /// The name.
            pub fn name(self) -> &'static str {
                match self { $(Self::$rule => stringify!($rule),)* }
            }
        }
    };
}

rules! {
    /// The file is not a Dockerfile.
    Syntax,
    /// A stage's name has upper-case letters.
    StageNameCasing,
    /// `as` is written in another case than `FROM`.
    FromAsCasing,
    /// An empty line in a continued instruction.
    NoEmptyContinuation,
    /// Instructions are written in different cases.
    ConsistentInstructionCasing,
    /// Two stages have one name.
    DuplicateStageName,
    /// A stage is named `scratch` or `context`.
    ReservedStageName,
    /// The shell form where signals matter.
    JSONArgsRecommended,
    /// MAINTAINER.
    MaintainerDeprecated,
    /// FROM uses an ARG that nobody declares.
    UndefinedArgInFrom,
    /// A relative WORKDIR before any absolute one.
    WorkdirRelativePath,
    /// A variable that nobody declares.
    UndefinedVar,
    /// CMD, ENTRYPOINT or HEALTHCHECK twice in a stage.
    MultipleInstructionsDisallowed,
    /// `ENV key value`.
    LegacyKeyValueFormat,
    /// `--platform=$TARGETPLATFORM`.
    RedundantTargetPlatform,
    /// A secret in ARG or ENV.
    SecretsUsedInArgOrEnv,
    /// FROM is invalid when its ARGs have their defaults.
    InvalidDefaultArgInFrom,
    /// `--platform` with a constant.
    FromPlatformFlagConstDisallowed,
    /// COPY of a file that .dockerignore names.
    CopyIgnoredFile,
    /// A comment before ARG or FROM that is no description.
    InvalidDefinitionDescription,
    /// EXPOSE with a protocol in upper case.
    ExposeProtoCasing,
    /// EXPOSE with an address or a host port.
    ExposeInvalidFormat,
}
