//! `RUN --mount`: its options, before and after variables are known.

use crate::shell::{self, Rules};
use crate::suggest::nearest;
use crate::{Diagnostic, Mount, MountFlag, MountKind, Scope, Sharing, Span, Word, word};

const KEYS: &[&str] = &[
    "type",
    "from",
    "source",
    "target",
    "readonly",
    "id",
    "sharing",
    "required",
    "size",
    "mode",
    "uid",
    "gid",
    "src",
    "dst",
    "destination",
    "ro",
    "rw",
    "readwrite",
    "env",
];
const KINDS: &[(&str, MountKind)] = &[
    ("bind", MountKind::Bind),
    ("cache", MountKind::Cache),
    ("tmpfs", MountKind::Tmpfs),
    ("secret", MountKind::Secret),
    ("ssh", MountKind::Ssh),
];
const SHARINGS: &[(&str, Sharing)] =
    &[("shared", Sharing::Shared), ("private", Sharing::Private), ("locked", Sharing::Locked)];

impl MountKind {
    /// The name after `type=`.
    pub fn name(self) -> &'static str {
        KINDS.iter().find(|(_, kind)| *kind == self).map_or("", |(name, _)| name)
    }
}

impl Sharing {
    /// The name after `sharing=`.
    pub fn name(self) -> &'static str {
        SHARINGS.iter().find(|(_, sharing)| *sharing == self).map_or("", |(name, _)| name)
    }
}

impl MountFlag {
    /// The mount, its values expanded and checked.
    pub fn resolve(&self, scope: &dyn Scope) -> Result<Mount, Diagnostic> {
        Ok(Options::read(self, Some(scope))?.mount)
    }

    /// The values that variables can stand in.
    pub(crate) fn values(&self) -> Vec<Word> {
        let fields = fields(&self.value.raw).unwrap_or_default();
        let values = fields.iter().filter_map(|field| Some(field.split_once('=')?.1));
        values.map(|raw| Word { raw: raw.to_owned(), ..self.value.clone() }).collect()
    }

    /// The options as far as they are known without variables, checked as far.
    pub(crate) fn outline(&self) -> Result<Options, Diagnostic> {
        Options::read(self, None)
    }
}

/// A mount's options, and what variables leave open.
pub(crate) struct Options {
    pub(crate) mount: Mount,
    /// `type` as written where a variable decides it.
    pub(crate) open_kind: Option<String>,
    /// `sharing` as written where a variable decides it.
    pub(crate) open_sharing: Option<String>,
    readonly_said: bool,
    span: Span,
}

impl Options {
    fn read(flag: &MountFlag, scope: Option<&dyn Scope>) -> Result<Self, Diagnostic> {
        let span = flag.value.span;
        let fields =
            fields(&flag.value.raw).map_err(|why| Diagnostic::error(span, format!("--mount: {why}")))?;
        let mut options = Self {
            mount: Mount {
                kind: MountKind::Bind,
                from: String::new(),
                source: String::new(),
                target: String::new(),
                readonly: false,
                id: String::new(),
                sharing: None,
                required: false,
                size: 0,
                env: None,
                mode: None,
                uid: None,
                gid: None,
            },
            open_kind: None,
            open_sharing: None,
            readonly_said: false,
            span,
        };
        for field in &fields {
            let Some((key, raw)) = field.split_once('=') else {
                options.bare(field)?;
                continue;
            };
            let key = key.to_lowercase();
            match scope {
                Some(scope) => {
                    let value = shell::read(raw, Rules::new(flag.value.escape), scope)
                        .map_err(|why| word::failure(raw, &why, span))?
                        .text;
                    options.set(&key, &value, field)?;
                }
                None => options.set_unexpanded(&key, raw, field, flag.value.escape)?,
            }
        }
        options.finish()?;
        Ok(options)
    }

    fn fail<T>(&self, message: String) -> Result<T, Diagnostic> {
        Err(Diagnostic::error(self.span, message))
    }

    /// An option without `=`.
    fn bare(&mut self, field: &str) -> Result<(), Diagnostic> {
        match field.to_lowercase().as_str() {
            "readonly" | "ro" => self.set_readonly(true),
            "readwrite" | "rw" => self.set_readonly(false),
            "required" => {
                self.needs("required", &[MountKind::Secret, MountKind::Ssh])?;
                self.mount.required = true;
            }
            _ => {
                let error = Diagnostic::error(self.span, format!("--mount: {field} has no value"));
                let near = nearest(field, KEYS.iter().copied()).filter(|_| !KEYS.contains(&field));
                return Err(match near {
                    Some(near) => error.with_suggestion(Some(near)),
                    None => error.with_hint(format!("write {field}=VALUE")),
                });
            }
        }
        Ok(())
    }

    fn set_readonly(&mut self, readonly: bool) {
        self.mount.readonly = readonly;
        self.readonly_said = true;
    }

    /// A value that may still hold variables: what they decide is left open.
    fn set_unexpanded(&mut self, key: &str, raw: &str, field: &str, escape: char) -> Result<(), Diagnostic> {
        if key == "from" && raw.find('$').is_some_and(|at| at + 1 != raw.len()) {
            let error =
                Diagnostic::error(self.span, format!("--mount: {field}: no variables can stand in from"));
            return Err(
                error.with_hint("write FROM with the variable and AS a name, and mount from that name")
            );
        }
        if !raw.contains(['$', '\'', '"', escape]) {
            return self.set(key, raw, field);
        }
        match key {
            "type" => self.open_kind = Some(raw.to_owned()),
            "sharing" => self.open_sharing = Some(raw.to_owned()),
            "from" | "source" | "src" | "target" | "dst" | "destination" | "id" | "env" => {
                return self.set(key, raw, field);
            }
            _ if KEYS.contains(&key) => {}
            _ => return self.set(key, raw, field),
        }
        Ok(())
    }

    fn set(&mut self, key: &str, value: &str, field: &str) -> Result<(), Diagnostic> {
        let bad = |what: &str| Diagnostic::error(self.span, format!("--mount: {field}: {what}"));
        match key {
            "type" => {
                let kind = KINDS.iter().find(|(name, _)| *name == value.to_lowercase());
                let names = || KINDS.iter().map(|(name, _)| *name);
                self.mount.kind = kind.ok_or_else(|| among(bad("no such type of mount"), value, names()))?.1;
                self.open_kind = None;
            }
            "from" => value.clone_into(&mut self.mount.from),
            "source" | "src" => value.clone_into(&mut self.mount.source),
            "target" | "dst" | "destination" => value.clone_into(&mut self.mount.target),
            "readonly" | "ro" => {
                let value = truth(value).ok_or_else(|| bad("neither true nor false"))?;
                self.set_readonly(value);
            }
            "readwrite" | "rw" => {
                let value = truth(value).ok_or_else(|| bad("neither true nor false"))?;
                self.set_readonly(!value);
            }
            "required" => {
                let value = truth(value).ok_or_else(|| bad("neither true nor false"))?;
                self.needs(key, &[MountKind::Secret, MountKind::Ssh])?;
                self.mount.required = value;
            }
            "size" => {
                let size = size(value).ok_or_else(|| bad("no size, such as 64m or 1g"))?;
                self.needs(key, &[MountKind::Tmpfs])?;
                self.mount.size = size;
            }
            "id" => value.clone_into(&mut self.mount.id),
            "sharing" => {
                let sharing = SHARINGS.iter().find(|(name, _)| *name == value.to_lowercase());
                let names = || SHARINGS.iter().map(|(name, _)| *name);
                let sharing = sharing.ok_or_else(|| among(bad("no such way of sharing"), value, names()))?;
                self.mount.sharing = Some(sharing.1);
                self.open_sharing = None;
            }
            "mode" => {
                self.mount.mode = Some(unsigned(value, 8).ok_or_else(|| bad("no octal mode, such as 0755"))?);
            }
            "uid" => self.mount.uid = Some(unsigned(value, 10).ok_or_else(|| bad("no user id"))?),
            "gid" => self.mount.gid = Some(unsigned(value, 10).ok_or_else(|| bad("no group id"))?),
            "env" => self.mount.env = Some(value.to_owned()),
            _ => {
                let error = Diagnostic::error(self.span, format!("--mount: {field}: no such option"));
                return Err(error.with_suggestion(nearest(key, KEYS.iter().copied())));
            }
        }
        Ok(())
    }

    /// Fails unless the mount is of one of `kinds`, as far as its kind is known.
    fn needs(&self, key: &str, kinds: &[MountKind]) -> Result<(), Diagnostic> {
        if self.open_kind.is_some() || kinds.contains(&self.mount.kind) {
            return Ok(());
        }
        let names: Vec<&str> = kinds.iter().map(|kind| kind.name()).collect();
        let names = names.join(" or ");
        let error = Diagnostic::error(
            self.span,
            format!("--mount: {key} does not belong to a mount of type {}", self.mount.kind.name()),
        );
        Err(error.with_hint(format!("it belongs to {names}; type has to stand before it")))
    }

    /// The rules that look at more than one option.
    fn finish(&mut self) -> Result<(), Diagnostic> {
        let mount = &self.mount;
        let kind = mount.kind;
        if !self.readonly_said {
            self.mount.readonly = !matches!(kind, MountKind::Cache | MountKind::Tmpfs);
        }
        if self.open_kind.is_some() {
            return Ok(());
        }
        let mount = &self.mount;
        let name = kind.name();
        if matches!(kind, MountKind::Bind | MountKind::Tmpfs) {
            for (key, given) in [("mode", mount.mode), ("uid", mount.uid), ("gid", mount.gid)] {
                if given.is_some() {
                    return self.fail(format!("--mount: a mount of type {name} has no {key}"));
                }
            }
        }
        let sharing = mount.sharing.is_some() || self.open_sharing.is_some();
        if sharing && kind != MountKind::Cache {
            return self.fail(format!("--mount: a mount of type {name} has no sharing"));
        }
        if kind == MountKind::Secret {
            if !mount.from.is_empty() {
                return self.fail("--mount: a secret is not taken from anywhere; remove from".to_owned());
            }
            if mount.source.is_empty() && mount.target.is_empty() && mount.id.is_empty() {
                return self.fail("--mount: a secret needs id, source or target".to_owned());
            }
            if !mount.source.is_empty() && !mount.id.is_empty() {
                return self.fail("--mount: a secret has either id or source, not both".to_owned());
            }
        }
        Ok(())
    }
}

fn among<'a>(error: Diagnostic, value: &str, names: impl Iterator<Item = &'a str> + Clone) -> Diagnostic {
    match nearest(&value.to_lowercase(), names.clone()) {
        Some(near) => error.with_suggestion(Some(near)),
        None => error.with_hint(format!("write one of {}", names.collect::<Vec<_>>().join(", "))),
    }
}

/// The fields of one line of CSV.
fn fields(line: &str) -> Result<Vec<String>, &'static str> {
    let line = line.strip_suffix('\n').map_or(line, |line| line.strip_suffix('\r').unwrap_or(line));
    if line.is_empty() {
        return Err("it has no options; write --mount=type=cache,target=/path");
    }
    let mut fields = Vec::new();
    let mut rest = line;
    loop {
        let Some(mut quoted) = rest.strip_prefix('"') else {
            let (field, behind) =
                rest.split_once(',').map_or((rest, None), |(field, behind)| (field, Some(behind)));
            if field.contains('"') {
                return Err("a quote stands inside an option; quote the whole option");
            }
            fields.push(field.to_owned());
            match behind {
                Some(behind) => rest = behind,
                None => return Ok(fields),
            }
            continue;
        };
        let mut field = String::new();
        loop {
            let (text, behind) = quoted.split_once('"').ok_or("a quote is not closed")?;
            field.push_str(text);
            if let Some(behind) = behind.strip_prefix('"') {
                field.push('"');
                quoted = behind;
            } else {
                quoted = behind;
                break;
            }
        }
        fields.push(field);
        if quoted.is_empty() {
            return Ok(fields);
        }
        rest = quoted.strip_prefix(',').ok_or("behind a closing quote only a comma can stand")?;
    }
}

/// Go's spellings of true and false.
fn truth(value: &str) -> Option<bool> {
    match value {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
        _ => None,
    }
}

/// Digits only: no sign.
fn unsigned(value: &str, radix: u32) -> Option<u32> {
    if value.starts_with(['+', '-']) { None } else { u32::from_str_radix(value, radix).ok() }
}

/// A number of bytes with a binary unit: `64m`, `1.5 GiB`, `10b`.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a size is cut to whole bytes, and one that is too large to the largest"
)]
fn size(value: &str) -> Option<u64> {
    let last = value.rfind(|c: char| c.is_ascii_digit() || c == '.' || c == ' ')?;
    let (digits, unit) = value.split_at(last + 1);
    let count: f64 = digits.strip_suffix(' ').unwrap_or(digits).parse().ok()?;
    if !count.is_finite() || count < 0.0 {
        return None;
    }
    let unit = unit.to_lowercase();
    let mut letters = unit.chars();
    let power = match letters.next() {
        None => 0,
        Some('b') if unit.len() == 1 => 0,
        Some('k') => 1,
        Some('m') => 2,
        Some('g') => 3,
        Some('t') => 4,
        Some('p') => 5,
        Some(_) => return None,
    };
    matches!(letters.as_str(), "" | "b" | "ib").then(|| (count * 1024_f64.powi(power)) as u64)
}
