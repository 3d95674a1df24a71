//! The JSON form: a list of strings in brackets. Whatever begins with a bracket and is no JSON at all is the shell form.

/// What an argument text is.
pub(crate) enum Form {
    /// A list of strings.
    Exec(Vec<String>),
    /// Anything else.
    Shell,
}

/// Reads the JSON form.
///
/// Fails if the text is a JSON list that holds something else than strings: that is a mistake, never meant for a shell.
pub(crate) fn read(text: &str) -> Result<Form, &'static str> {
    let text = text.trim();
    if !text.starts_with('[') {
        return Ok(Form::Shell);
    }
    let Ok(values) = serde_json::from_str::<Vec<serde_json::Value>>(text) else { return Ok(Form::Shell) };
    let strings = values.into_iter().map(|value| match value {
        serde_json::Value::String(text) => Some(text),
        _ => None,
    });
    strings
        .collect::<Option<Vec<_>>>()
        .map(Form::Exec)
        .ok_or("only string type is allowed in JSON format arrays")
}
