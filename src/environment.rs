//! The one place that reads the environment: a snapshot, taken once at the start, from which values are passed down.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::PathBuf;

/// The process's environment and what it was started as.
#[derive(Clone)]
pub(crate) struct Environment {
    /// The variables whose names and values are text.
    pub(crate) variables: BTreeMap<String, String>,
    /// The command line, the program's name first.
    pub(crate) arguments: Vec<OsString>,
    /// The working directory.
    pub(crate) directory: PathBuf,
    /// The executable.
    pub(crate) executable: PathBuf,
    /// The folder of the executable.
    pub(crate) executable_directory: PathBuf,
}

impl Environment {
    /// Reads it.
    #[expect(clippy::disallowed_methods, reason = "this is the one place that reads the environment")]
    pub(crate) fn read() -> Self {
        let variables = std::env::vars_os()
            .filter_map(|(k, v)| Some((k.into_string().ok()?, v.into_string().ok()?)))
            .collect();
        let executable = std::env::current_exe().unwrap_or_default();
        Self {
            variables,
            arguments: std::env::args_os().collect(),
            directory: std::env::current_dir().unwrap_or_else(|_| PathBuf::from("/")),
            executable_directory: executable.parent().map(PathBuf::from).unwrap_or_default(),
            executable,
        }
    }

    /// The variable `name`, if it is set and not empty.
    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        self.variables.get(name).map(String::as_str).filter(|value| !value.is_empty())
    }

    /// A switch as Go's strconv reads it; unset or unreadable is `None`.
    pub(crate) fn switch(&self, name: &str) -> Option<bool> {
        self.get(name).and_then(|value| crate::cli::values::boolean(value).ok())
    }
}
