//! Where a word's variables are looked up.

use kiln_dockerfile::Scope;

/// An ordered list of variables; setting one again keeps its place.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Environment(pub(crate) Vec<(String, String)>);

impl Environment {
    pub(crate) fn set(&mut self, name: &str, value: &str) {
        match self.0.iter_mut().find(|(key, _)| key == name) {
            Some((_, old)) => value.clone_into(old),
            None => self.0.push((name.to_owned(), value.to_owned())),
        }
    }

    pub(crate) fn from_entries(entries: &[String]) -> Self {
        let mut environment = Self::default();
        for entry in entries {
            let (key, value) = entry.split_once('=').unwrap_or((entry, ""));
            environment.set(key, value);
        }
        environment
    }
}

impl Scope for Environment {
    fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    fn names(&self) -> Vec<String> {
        self.0.iter().map(|(key, _)| key.clone()).collect()
    }
}
