//! The JSON form of instructions: an array of strings, read as Go reads it.

use serde_json::Value;

/// What an argument text is.
#[derive(Debug, PartialEq)]
pub(crate) enum JsonForm {
    /// An array of strings.
    Strings(Vec<String>),
    /// An array that holds something else too, which is an error.
    Mixed,
    /// No JSON array: the other form of the instruction.
    No,
}

/// Reads an argument text. Text that only looks like an array, such as `["a"`, is [`JsonForm::No`].
pub(crate) fn read(text: &str) -> JsonForm {
    let text = text.trim_start();
    if !text.starts_with('[') {
        return JsonForm::No;
    }
    let Ok(values) = serde_json::from_str::<Vec<Value>>(&without_lone_surrogates(text)) else {
        return JsonForm::No;
    };
    let strings = values.into_iter().map(|value| match value {
        Value::String(text) => Some(text),
        _ => None,
    });
    strings.collect::<Option<_>>().map_or(JsonForm::Mixed, JsonForm::Strings)
}

/// Half a surrogate pair means U+FFFD to Go and is an error to others.
fn without_lone_surrogates(text: &str) -> String {
    let mut result = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('\\') {
        result.push_str(&rest[..at]);
        rest = &rest[at..];
        let length = match unit(rest) {
            Some(0xd800..=0xdbff) if matches!(rest.get(6..).and_then(unit), Some(0xdc00..=0xdfff)) => 12,
            Some(0xd800..=0xdfff) => {
                result.push_str("\\ufffd");
                rest = &rest[6..];
                continue;
            }
            Some(_) => 6,
            None => 1 + rest[1..].chars().next().map_or(0, char::len_utf8),
        };
        result.push_str(&rest[..length]);
        rest = &rest[length..];
    }
    result.push_str(rest);
    result
}

/// The code of the `\uXXXX` that the text starts with.
fn unit(text: &str) -> Option<u32> {
    let digits = text.strip_prefix("\\u")?.get(..4)?;
    if !digits.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    u32::from_str_radix(digits, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whole_arrays_of_strings_are_the_json_form() {
        let strings = |list: &[&str]| JsonForm::Strings(list.iter().map(ToString::to_string).collect());
        assert_eq!(read(r#"["a", "b\n\u00e9"]"#), strings(&["a", "b\né"]));
        assert_eq!(read(" []"), strings(&[]));
        assert_eq!(read(r#"["\ud83d\ude00", "\ud83d", "\\ud83d"]"#), strings(&["😀", "\u{fffd}", "\\ud83d"]));
        assert_eq!(read(r#"["a", 1]"#), JsonForm::Mixed);
        assert_eq!(read(r#"[["a"]]"#), JsonForm::Mixed);
        for text in [r#"["a""#, r#"["a",]"#, r#"["a"] b"#, "['a']", r#"{"a": 1}"#, r#""a""#, "", "[\"a\tb\"]"]
        {
            assert_eq!(read(text), JsonForm::No, "{text}");
        }
    }
}
