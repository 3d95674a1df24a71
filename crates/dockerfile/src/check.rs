//! `# check=skip=A,B;error=true`: which checks a file wants, and how badly.

use crate::{Dockerfile, Rule};

/// What a `# check=` says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CheckOptions {
    /// No check runs but experimental ones that are asked for.
    pub skip_all: bool,
    /// Checks that don't run, by name.
    pub skip: Vec<String>,
    /// All experimental checks run.
    pub experimental_all: bool,
    /// Experimental checks that run, by name.
    pub experimental: Vec<String>,
    /// Findings are errors.
    pub error: bool,
}

impl CheckOptions {
    /// Reads what stands behind `check=`: up to its first blank. Says what is wrong with it.
    pub fn parse(value: &str) -> Result<Self, String> {
        let mut options = Self::default();
        let value = value.split(' ').next().unwrap_or("").trim();
        if value.is_empty() {
            return Ok(options);
        }
        let names = |list: &str| list.split(',').map(|name| name.trim().to_owned()).collect();
        for part in value.splitn(3, ';') {
            let (key, value) = part.split_once('=').ok_or_else(|| format!("{part} is no option of check"))?;
            match (key.trim(), value.trim()) {
                ("skip", "all") => options.skip_all = true,
                ("skip", list) => options.skip = names(list),
                ("experimental", "all") => options.experimental_all = true,
                ("experimental", list) => options.experimental = names(list),
                ("error", "1" | "t" | "T" | "true" | "TRUE" | "True") => options.error = true,
                ("error", "0" | "f" | "F" | "false" | "FALSE" | "False") => options.error = false,
                ("error", other) => return Err(format!("check: error={other} is neither true nor false")),
                (other, _) => return Err(format!("{other} is no option of check")),
            }
        }
        Ok(options)
    }

    /// Whether a check runs.
    pub fn runs(&self, rule: Rule) -> bool {
        let named = |list: &[String]| list.iter().any(|name| name == rule.name());
        if rule.is_experimental() {
            self.experimental_all || named(&self.experimental)
        } else {
            !self.skip_all && !named(&self.skip)
        }
    }

    /// These options and what a comment above an instruction adds to them.
    pub(crate) fn with(&self, comment: Self) -> Self {
        let join = |a: &[String], b: Vec<String>| a.iter().cloned().chain(b).collect();
        Self {
            skip_all: self.skip_all || comment.skip_all,
            skip: join(&self.skip, comment.skip),
            experimental_all: self.experimental_all || comment.experimental_all,
            experimental: join(&self.experimental, comment.experimental),
            error: self.error,
        }
    }
}

impl Dockerfile {
    /// What the file's `# check=` says.
    pub fn check_options(&self) -> CheckOptions {
        let directive = self.directives.iter().find(|directive| directive.name == "check");
        directive.and_then(|directive| CheckOptions::parse(&directive.value).ok()).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_read_up_to_the_first_blank() {
        let options = CheckOptions::parse("skip=StageNameCasing,FromAsCasing;error=true and more").unwrap();
        assert!(options.error && !options.runs(Rule::StageNameCasing) && options.runs(Rule::UndefinedVar));
        assert!(!CheckOptions::parse("skip=all").unwrap().runs(Rule::UndefinedVar));
        let options = CheckOptions::parse("experimental=all;skip=all").unwrap();
        assert!(options.runs(Rule::InvalidDefinitionDescription));
        assert!(!CheckOptions::default().runs(Rule::InvalidDefinitionDescription));
    }

    #[test]
    fn unknown_options_are_errors() {
        for value in ["skip", "error=maybe", "skip=all;foo=bar"] {
            assert!(CheckOptions::parse(value).is_err(), "{value}");
        }
    }
}
