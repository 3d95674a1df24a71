//! `tests/cases/expansion`: words and what they come to.

use std::collections::BTreeMap;

use kiln_dockerfile::{Diagnostic, Span, Word, expand_heredoc};

use crate::case_files;

struct Setting {
    scope: BTreeMap<String, String>,
    escape: char,
    mode: String,
}

impl Setting {
    fn change(&mut self, directive: &str) {
        match directive.split_once(' ').unwrap() {
            ("env", pair) => {
                let (name, value) = pair.split_once('=').unwrap();
                self.scope.insert(name.to_owned(), value.to_owned());
            }
            ("unset", name) => drop(self.scope.remove(name)),
            ("escape", escape) => self.escape = escape.chars().next().unwrap(),
            ("mode", mode) => mode.clone_into(&mut self.mode),
            (other, _) => panic!("@{other}"),
        }
    }

    fn expand(&self, raw: &str) -> Result<String, Diagnostic> {
        let word = Word { raw: raw.to_owned(), span: Span::default(), escape: self.escape };
        Ok(match self.mode.as_str() {
            "text" => word.expand(&self.scope)?.text,
            "undefined" => word.expand(&self.scope)?.undefined.join(" "),
            "words" => {
                let words = word.expand_words(&self.scope)?;
                words.iter().map(|word| format!("[{word}]")).collect::<Vec<_>>().join(" ")
            }
            "heredoc" => expand_heredoc(raw, self.escape, &self.scope)?,
            other => panic!("@mode {other}"),
        })
    }
}

#[test]
fn words_expand_as_the_table_says() {
    let mut count = 0;
    let mut wrong = Vec::new();
    for (path, text) in case_files("expansion") {
        let mut setting = Setting { scope: BTreeMap::new(), escape: '\\', mode: "text".to_owned() };
        for (number, line) in
            text.lines().enumerate().filter(|(_, line)| !line.is_empty() && !line.starts_with('#'))
        {
            if let Some(directive) = line.strip_prefix('@') {
                setting.change(directive);
                continue;
            }
            let (raw, expected) =
                line.split_once(" =>").unwrap_or_else(|| panic!("{}: {line}", path.display()));
            let expected = expected.strip_prefix(' ').unwrap_or(expected);
            let found = setting.expand(raw).map_err(|error| error.to_string());
            let fits = match expected.strip_prefix("! ") {
                Some(part) => found.as_ref().is_err_and(|error| error.contains(part)),
                None => found.as_deref() == Ok(expected),
            };
            count += 1;
            if !fits {
                wrong.push(format!("{}:{}: {line}\n    found {found:?}", path.display(), number + 1));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(count >= 150, "{count} cases");
}
