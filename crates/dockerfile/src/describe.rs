//! What a file means as JSON, for people and tools: `kiln parse --json`.

use serde_json::{Map, Value, json};

use crate::ast::{Command, Copy, Heredoc, Instruction, Kind, MountFlag, Pair, Run};
use crate::parse::extents;
use crate::{Diagnostic, Dockerfile, Source, Word, lint};

/// The version of the form.
const VERSION: u32 = 1;

/// A file that is right: its directives, instructions and warnings. Nothing is expanded.
pub fn describe(source: &Source, file: &Dockerfile) -> Value {
    let directives = file
        .directives
        .iter()
        .map(|directive| json!({"name": directive.name, "value": directive.value, "line": directive.line}));
    json!({
        "version": VERSION,
        "escape": file.escape.to_string(),
        "directives": directives.collect::<Vec<_>>(),
        "instructions": file.instructions.iter().map(instruction).collect::<Vec<_>>(),
        "warnings": describe_warnings(source, file, &lint(source, file)),
    })
}

/// What checks found, as the `warnings` of [`describe`] and of `kiln lint`.
pub fn describe_warnings(source: &Source, file: &Dockerfile, warnings: &[Diagnostic]) -> Value {
    let describe = |warning: &Diagnostic| {
        let (line, column) = source.line_col(warning.span.start);
        let within = |instruction: &&Instruction| {
            warning.span.start >= instruction.span.start && warning.span.end <= instruction.span.end
        };
        let lines = match file.instructions.iter().find(within) {
            Some(instruction) if warning.rule != crate::Rule::NoEmptyContinuation => instruction.lines,
            _ => (line, line),
        };
        json!({
            "check": warning.rule.name(),
            "lines": [lines.0, lines.1],
            "line": line,
            "column": column,
            "message": warning.to_string(),
        })
    };
    warnings.iter().map(describe).collect()
}

/// A file that is wrong: all its errors in order, and the first of them again.
pub fn describe_errors(source: &Source, errors: &[Diagnostic]) -> Value {
    let extents = extents(&source.text);
    let describe = |error: &Diagnostic| {
        let (line, column) = source.line_col(error.span.start);
        let within =
            extents.iter().find(|(span, _)| error.span.start >= span.start && error.span.end <= span.end);
        let lines = within.map_or((line, line), |(_, lines)| *lines);
        json!({
            "lines": [lines.0, lines.1],
            "line": line,
            "column": column,
            "message": error.to_string(),
        })
    };
    let errors: Vec<Value> = errors.iter().map(describe).collect();
    json!({"version": VERSION, "error": errors.first(), "errors": errors})
}

fn instruction(instruction: &Instruction) -> Value {
    let flags = instruction.flags.iter().map(|flag| json!({"name": flag.name, "value": flag.value}));
    let mut object = Map::new();
    object.insert("keyword".to_owned(), json!(instruction.kind.keyword()));
    object.insert("lines".to_owned(), json!([instruction.lines.0, instruction.lines.1]));
    object.insert("span".to_owned(), json!([instruction.span.start, instruction.span.end]));
    object.insert("text".to_owned(), json!(instruction.text));
    object.insert("flags".to_owned(), flags.collect());
    if let Value::Object(more) = kind(&instruction.kind) {
        object.extend(more);
    }
    Value::Object(object)
}

fn kind(kind: &Kind) -> Value {
    match kind {
        Kind::From(from) => json!({"image": from.image.raw, "name": from.name}),
        Kind::Arg(declarations) => {
            let args = declarations.iter().map(|declaration| {
                json!({"key": declaration.key.raw, "value": declaration.value.as_ref().map(|value| &value.raw)})
            });
            json!({"args": args.collect::<Vec<_>>()})
        }
        Kind::Env(list) | Kind::Label(list) => pairs(list),
        Kind::Run(value) => run(value),
        Kind::Cmd(value) | Kind::Entrypoint(value) => command(value),
        Kind::Shell(list) => json!({"form": "exec", "command": list}),
        Kind::Copy(value) | Kind::Add(value, _) => copy(value),
        Kind::Workdir(word) | Kind::User(word) | Kind::Stopsignal(word) => json!({"value": word.raw}),
        Kind::Maintainer(text) => json!({"value": text}),
        Kind::Volume(words) => json!({"paths": raws(words)}),
        Kind::Expose(words) => json!({"ports": raws(words)}),
        Kind::Healthcheck(health) => {
            let mut value = match &health.command {
                Some(value) => command(value),
                None => json!({"form": "none", "command": []}),
            };
            value["interval_ns"] = json!(health.interval);
            value["timeout_ns"] = json!(health.timeout);
            value["start_period_ns"] = json!(health.start_period);
            value["start_interval_ns"] = json!(health.start_interval);
            value["retries"] = json!(health.retries);
            value
        }
        Kind::Onbuild(onbuild) => json!({"trigger": onbuild.trigger}),
    }
}

fn raws(words: &[Word]) -> Vec<&str> {
    words.iter().map(|word| word.raw.as_str()).collect()
}

fn pairs(list: &[Pair]) -> Value {
    let pairs =
        list.iter().map(|pair| json!({"key": pair.key.raw, "value": pair.value.raw, "legacy": pair.legacy}));
    json!({"pairs": pairs.collect::<Vec<_>>()})
}

fn command(command: &Command) -> Value {
    match command {
        Command::Shell(text) if text.is_empty() => json!({"form": "shell", "command": []}),
        Command::Shell(text) => json!({"form": "shell", "command": [text]}),
        Command::Exec(list) => json!({"form": "exec", "command": list}),
    }
}

fn run(run: &Run) -> Value {
    let mut value = command(&run.command);
    value["heredocs"] = heredocs(&run.heredocs);
    value["mounts"] = run.mounts.iter().map(mount).collect();
    value
}

fn copy(copy: &Copy) -> Value {
    json!({
        "sources": raws(&copy.sources),
        "destination": copy.destination.raw,
        "heredocs": heredocs(&copy.heredocs),
    })
}

fn heredocs(heredocs: &[Heredoc]) -> Value {
    let describe = |heredoc: &Heredoc| {
        json!({
            "name": heredoc.name,
            "expand": heredoc.expand,
            "strip_tabs": heredoc.strip_tabs,
            "fd": heredoc.fd,
            "content": heredoc.content,
        })
    };
    heredocs.iter().map(describe).collect()
}

/// A mount's options as far as they are known; the parser has refused what is wrong with them.
fn mount(flag: &MountFlag) -> Value {
    let Ok(options) = flag.outline() else { return Value::Null };
    let mount = &options.mount;
    let sharing = mount.sharing.map_or("", |sharing| sharing.name());
    json!({
        "type": options.open_kind.as_deref().unwrap_or(mount.kind.name()),
        "from": mount.from,
        "source": mount.source,
        "target": mount.target,
        "readonly": mount.readonly,
        "id": mount.id,
        "sharing": options.open_sharing.as_deref().unwrap_or(sharing),
        "required": mount.required,
        "size": mount.size,
        "env": mount.env,
        "mode": mount.mode,
        "uid": mount.uid,
        "gid": mount.gid,
    })
}
