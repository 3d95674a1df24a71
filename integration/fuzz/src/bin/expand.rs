//! Bytes as a word, and as the body of a heredoc. The first line is a variable's value.

#![no_main]

use std::collections::BTreeMap;

use kiln_dockerfile::{Span, Word, expand_heredoc};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let text = String::from_utf8_lossy(bytes);
    let (value, raw) = text.split_once('\n').unwrap_or(("", &text));
    let scope = BTreeMap::from([("a".to_owned(), value.to_owned()), ("b".to_owned(), String::new())]);
    for escape in ['\\', '`'] {
        let word = Word { raw: raw.to_owned(), span: Span::default(), escape };
        let expanded = word.expand(&scope);
        assert_eq!(expanded.is_ok(), word.expand_words(&scope).is_ok());
        word.literal();
        let _ = expand_heredoc(raw, escape, &scope);
        if let Ok(expansion) = word.expand(&()) {
            assert!(expansion.used.iter().all(|name| raw.contains(name.as_str())));
            assert!(expansion.undefined.iter().all(|name| expansion.used.contains(name)));
        }
        if let Ok(expansion) = expanded
            && !raw.contains(['$', '\'', '"', escape])
        {
            assert_eq!(expansion.text, raw);
        }
    }
});
