//! Bytes as a .dockerignore. The first line is a path, and what `filepath.Match` is asked about.

#![no_main]

use kiln_dockerfile::{Ignore, go_match};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let text = String::from_utf8_lossy(bytes);
    let (path, list) = text.split_once('\n').unwrap_or(("a/b/c", &text));
    for pattern in list.lines() {
        let _ = go_match(pattern, path);
    }
    let Ok(ignore) = Ignore::parse(list) else { return };
    let is_plain = path.split('/').all(|part| !matches!(part, "" | "." | ".."));
    let ignored = ignore.is_ignored(path, false);
    if is_plain {
        for (at, _) in path.match_indices('/') {
            assert!(ignored || !ignore.can_skip_dir(&path[..at]), "{path:?} below {:?}", &path[..at]);
        }
    }
    let cleaned = ignore.patterns().iter().map(|pattern| {
        let sign = if pattern.is_exception() { "!" } else { "" };
        format!("{sign}{}", pattern.text())
    });
    // A pattern that is only white space, or begins with a second sign, does not survive another cleaning.
    if ignore
        .patterns()
        .iter()
        .all(|pattern| pattern.text().trim() == pattern.text() && !pattern.text().starts_with('!'))
    {
        let again = Ignore::from_patterns(cleaned).expect("cleaned patterns are patterns");
        assert_eq!(again.is_ignored(path, false), ignored);
    }
});
