//! `RUN --mount`: the options of one mount, with BuildKit's defaults and refusals.

use crate::{Diagnostic, Mount, MountFlag, MountKind, Scope, Sharing};

impl MountFlag {
    /// The mount that is meant, with its variables put in.
    ///
    /// Fails on an unknown type, key or value, and on options that don't fit the type.
    pub fn resolve(&self, scope: &dyn Scope) -> Result<Mount, Diagnostic> {
        let fail = |message: String| Diagnostic::error(self.value.span, format!("--mount: {message}"));
        let mut mount = Mount {
            kind: MountKind::Bind,
            from: String::new(),
            source: String::new(),
            target: String::new(),
            readonly: true,
            id: String::new(),
            sharing: None,
            required: false,
            size: 0,
            env: None,
            mode: None,
            uid: None,
            gid: None,
        };
        let mut writable = None;
        for field in fields(&self.value.raw) {
            let (key, value) = match field.split_once('=') {
                Some((key, value)) => (key.trim().to_ascii_lowercase(), Some(value)),
                None => (field.trim().to_ascii_lowercase(), None),
            };
            let value = match value {
                Some(text) => {
                    let word = crate::Word::new(text, self.value.span, self.value.escape);
                    Some(word.expand(scope)?.text)
                }
                None => None,
            };
            if let Some(readwrite) = option(&mut mount, &key, value.as_deref()).map_err(fail)? {
                writable = Some(readwrite);
            }
        }
        let default = matches!(mount.kind, MountKind::Cache | MountKind::Tmpfs);
        mount.readonly = !writable.unwrap_or(default);
        check(&mount).map_err(fail)?;
        Ok(mount)
    }
}

/// Comma-separated fields; a field in double quotes may hold commas, as in CSV.
fn fields(text: &str) -> Vec<String> {
    let mut fields = vec![String::new()];
    let mut quoted = false;
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        let last = fields.len() - 1;
        match c {
            '"' if quoted && chars.peek() == Some(&'"') => {
                chars.next();
                fields[last].push('"');
            }
            '"' if quoted || fields[last].is_empty() => quoted = !quoted,
            ',' if !quoted => fields.push(String::new()),
            c => fields[last].push(c),
        }
    }
    fields
}

/// Sets one option. Gives whether it says that the mount may be written, if it says anything about that.
fn option(mount: &mut Mount, key: &str, value: Option<&str>) -> Result<Option<bool>, String> {
    let flag = |value: Option<&str>| match value {
        None => Ok(true),
        Some(text) => match text {
            "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
            "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
            other => Err(format!("invalid value {other:?} for {key}: it is true or false")),
        },
    };
    match key {
        "readonly" | "ro" => return flag(value).map(|readonly| Some(!readonly)),
        "readwrite" | "rw" => return flag(value).map(Some),
        "required" => {
            mount.required = flag(value)?;
            return Ok(None);
        }
        _ => {}
    }
    let known = ["type", "from", "source", "src", "target", "dst", "destination", "id", "sharing", "size"];
    let Some(value) = value else {
        if known.contains(&key) || ["mode", "uid", "gid", "env"].contains(&key) {
            return Err(format!("{key} needs a value: write {key}=…"));
        }
        return Err(format!("unexpected key {key:?}"));
    };
    let number = |radix: u32| {
        u32::from_str_radix(value, radix)
            .map_err(|_| format!("invalid value {value:?} for {key}: it is a number"))
    };
    match key {
        "type" => mount.kind = kind(value)?,
        "from" => value.clone_into(&mut mount.from),
        "source" | "src" => value.clone_into(&mut mount.source),
        "target" | "dst" | "destination" => value.clone_into(&mut mount.target),
        "id" => value.clone_into(&mut mount.id),
        "sharing" => mount.sharing = Some(sharing(value)?),
        "size" => mount.size = size(value).ok_or_else(|| format!("invalid value {value:?} for size"))?,
        "mode" => mount.mode = Some(number(8)?),
        "uid" => mount.uid = Some(number(10)?),
        "gid" => mount.gid = Some(number(10)?),
        "env" => mount.env = Some(value.to_owned()),
        _ => return Err(format!("unexpected key {key:?}")),
    }
    Ok(None)
}

fn kind(value: &str) -> Result<MountKind, String> {
    Ok(match value.to_ascii_lowercase().as_str() {
        "bind" => MountKind::Bind,
        "cache" => MountKind::Cache,
        "tmpfs" => MountKind::Tmpfs,
        "secret" => MountKind::Secret,
        "ssh" => MountKind::Ssh,
        other => {
            return Err(format!("unsupported mount type {other:?}: it is bind, cache, tmpfs, secret or ssh"));
        }
    })
}

fn sharing(value: &str) -> Result<Sharing, String> {
    Ok(match value.to_ascii_lowercase().as_str() {
        "shared" => Sharing::Shared,
        "private" => Sharing::Private,
        "locked" => Sharing::Locked,
        other => return Err(format!("unsupported sharing value {other:?}: it is shared, private or locked")),
    })
}

/// A size as docker's units package reads it: `64m`, `1g`, a number of bytes.
fn size(text: &str) -> Option<u64> {
    let text = text.trim().to_ascii_lowercase();
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let number: u64 = text[..digits].parse().ok()?;
    let shift = match text[digits..].trim().trim_end_matches('b').trim_end_matches('i') {
        "" => 0,
        "k" => 10,
        "m" => 20,
        "g" => 30,
        "t" => 40,
        _ => return None,
    };
    number.checked_shl(shift)
}

fn check(mount: &Mount) -> Result<(), String> {
    use MountKind::{Cache, Secret, Ssh, Tmpfs};
    if mount.target.is_empty() && !matches!(mount.kind, Secret | Ssh) {
        return Err("target is required".to_owned());
    }
    if mount.sharing.is_some() && mount.kind != Cache {
        return Err("sharing is for cache mounts only".to_owned());
    }
    if mount.required && !matches!(mount.kind, Secret | Ssh) {
        return Err("required is for secret and ssh mounts only".to_owned());
    }
    if mount.size != 0 && mount.kind != Tmpfs {
        return Err("size is for tmpfs mounts only".to_owned());
    }
    if mount.env.is_some() && mount.kind != Secret {
        return Err("env is for secret mounts only".to_owned());
    }
    if mount.kind == Secret && !mount.from.is_empty() {
        return Err("a secret mount takes no from".to_owned());
    }
    if mount.kind == Secret && mount.id.is_empty() && mount.target.is_empty() && mount.source.is_empty() {
        return Err("a secret mount needs an id or a target".to_owned());
    }
    Ok(())
}
