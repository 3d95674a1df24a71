//! RUN: the command line with its heredocs, the environment and the mounts, and what of them goes into the key.

use kiln_dockerfile::{Command, Diagnostic, Instruction, Mount, MountKind, Run};

use crate::fold::{Fold, Shown, absolute};
use crate::stages::{Numbers, error};
use crate::{ContentOf, ContentQuestion, Late, Op, Recipe, RunMount, RunStep, Script, TreeSource, history};

/// Where a script given as a heredoc is put.
const PIPES: &str = "/dev/pipes/";

impl Fold<'_, '_> {
    pub(crate) fn run(&mut self, instruction: &Instruction, run: &Run) -> Result<(), Diagnostic> {
        let (argv, script) = self.command_line(instruction, run)?;
        let mut mounts = Vec::new();
        for flag in &run.mounts {
            let mount = flag.resolve(&self.env)?;
            mounts.push(self.mount(mount, flag.value.span)?);
        }
        let proxy = self
            .stages
            .request
            .build_args
            .iter()
            .filter(|(name, _)| is_proxy(name))
            .flat_map(|(name, value)| {
                [(name.to_ascii_uppercase(), value.clone()), (name.to_ascii_lowercase(), value.clone())]
            })
            .collect();
        let step = RunStep {
            argv,
            script,
            env: self.env.0.clone(),
            proxy,
            user: self.config.config.user.clone(),
            workdir: absolute("/", &self.config.config.working_dir),
            mounts,
            network: run.network,
            security: run.security,
        };
        let (recipe, late) = self.run_recipe(&step);
        let entry = history::run(&step.argv, &self.shown_args());
        self.note(entry, true);
        self.push(Shown::of(instruction), Op::Run(Box::new(step)), recipe, late);
        Ok(())
    }

    /// The build args as history shows them: each name once, with the value it has now.
    fn shown_args(&self) -> Vec<(String, String)> {
        let mut shown: Vec<(String, String)> = Vec::new();
        for (name, value) in &self.build_args {
            let value = self.env.value(name).or_else(|| value.clone()).unwrap_or_default();
            match shown.iter_mut().find(|(other, _)| other == name) {
                Some((_, old)) => *old = value,
                None => shown.push((name.clone(), value)),
            }
        }
        shown
    }

    /// A lone heredoc is the script itself, or a file where it names its interpreter; others go to the shell whole.
    fn command_line(
        &self,
        instruction: &Instruction,
        run: &Run,
    ) -> Result<(Vec<String>, Option<Script>), Diagnostic> {
        let Command::Shell(line) = &run.command else { return Ok((self.argv(&run.command), None)) };
        let Some(first) = run.heredocs.first() else { return Ok((self.argv(&run.command), None)) };
        if !is_lone_heredoc(line) {
            let mut text = line.clone();
            for heredoc in &run.heredocs {
                text.push('\n');
                text.push_str(&heredoc.written);
                text.push_str(&heredoc.name);
            }
            return Ok((self.with_shell(text), None));
        }
        if !first.content.starts_with("#!") {
            return Ok((self.with_shell(first.content.clone()), None));
        }
        if first.name.contains('/') {
            let message = format!("RUN <<{}: a script's name must not hold a slash", first.name);
            return Err(error(instruction.span, message, None));
        }
        let script = Script { name: first.name.clone(), content: first.content.clone() };
        Ok((self.with_shell(format!("{PIPES}{}", first.name)), Some(script)))
    }

    fn mount(&self, mut mount: Mount, span: kiln_dockerfile::Span) -> Result<RunMount, Diagnostic> {
        let source = match mount.kind {
            MountKind::Bind | MountKind::Cache if !mount.from.is_empty() => {
                self.tree_source(&mount.from, span, Numbers::Names)?
            }
            MountKind::Bind => TreeSource::Context,
            _ => TreeSource::Empty,
        };
        if mount.kind == MountKind::Cache && mount.id.is_empty() {
            mount.id = clean(&mount.target);
        }
        match mount.kind {
            // Their usual places are given to them where they are lent.
            MountKind::Secret | MountKind::Ssh if mount.target.is_empty() => {}
            _ => mount.target = absolute(&self.config.config.working_dir, &mount.target),
        }
        if mount.target == "/" {
            return Err(error(span, "--mount: the target can't be /", None));
        }
        Ok(RunMount { mount, source })
    }

    fn run_recipe(&mut self, step: &RunStep) -> (Recipe, Vec<Late>) {
        let mut late = Vec::new();
        let mut recipe = self.recipe("run");
        recipe.add_list("command", &step.argv);
        if let Some(script) = &step.script {
            recipe.add("script", &script.content);
        }
        recipe.add("user", &step.user);
        recipe.add("working directory", &step.workdir);
        let mut env = step.env.clone();
        env.sort();
        for (name, value) in env {
            recipe.add(format!("env {name}"), value);
        }
        recipe.add("network", format!("{:?}", step.network));
        recipe.add("security", format!("{:?}", step.security));
        for (place, mount) in step.mounts.iter().enumerate() {
            recipe.add_list(format!("mount {place}"), mount_fields(&mount.mount));
            let words = [mount.mount.source.clone()];
            let source = self.source_key(&mount.source, &words, &[], false);
            let field = format!("mount {place} source");
            recipe.add(&field, source);
            late.extend(self.late(mount, field));
        }
        (recipe, late)
    }

    /// What to ask of the stage whose files are mounted. A whole tree is not asked for: hashing it takes longer than most
    /// steps.
    fn late(&self, mount: &RunMount, field: String) -> Option<Late> {
        let TreeSource::Stage(place) = mount.source else { return None };
        let whole = absolute("/", &mount.mount.source) == "/";
        let wanted = mount.mount.kind == MountKind::Bind && !whole && self.stages.request.content_keys;
        let question = ContentQuestion {
            of: ContentOf::Stage(place),
            words: vec![mount.mount.source.clone()],
            excludes: Vec::new(),
            parents: false,
        };
        wanted.then_some(Late { field, question })
    }
}

/// A path as Go's `path.Clean` leaves it: a relative one stays relative.
fn clean(path: &str) -> String {
    if path.starts_with('/') {
        return absolute("/", path);
    }
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." if parts.last().is_some_and(|last| *last != "..") => _ = parts.pop(),
            part => parts.push(part),
        }
    }
    if parts.is_empty() { ".".to_owned() } else { parts.join("/") }
}

/// A mount's options as they go into a key. A secret's value isn't there to be found: only its id.
fn mount_fields(mount: &Mount) -> Vec<String> {
    let number = |value: Option<u32>| value.map_or_else(String::new, |value| value.to_string());
    vec![
        format!("{:?}", mount.kind),
        mount.source.clone(),
        mount.target.clone(),
        mount.readonly.to_string(),
        mount.id.clone(),
        mount.required.to_string(),
        mount.size.to_string(),
        mount.env.clone().unwrap_or_default(),
        number(mount.mode),
        number(mount.uid),
        number(mount.gid),
    ]
}

/// Whether the command is one heredoc and nothing else.
fn is_lone_heredoc(line: &str) -> bool {
    let rest = line.trim().trim_start_matches(|c: char| c.is_ascii_digit());
    let Some(word) = rest.strip_prefix("<<") else { return false };
    let word = word.strip_prefix('-').unwrap_or(word);
    if word.contains('<') || word.is_empty() {
        return false;
    }
    let mut quote = None;
    for c in word.chars() {
        match quote {
            Some(open) if c == open => quote = None,
            None if c == '"' || c == '\'' => quote = Some(c),
            None if c.is_whitespace() => return false,
            Some(_) | None => {}
        }
    }
    true
}

/// The build args that need no ARG: they reach RUN, but no key and no history.
pub(crate) fn is_proxy(name: &str) -> bool {
    ["http_proxy", "https_proxy", "ftp_proxy", "no_proxy", "all_proxy"]
        .iter()
        .any(|proxy| name.eq_ignore_ascii_case(proxy))
}

#[cfg(test)]
mod tests {
    use super::{clean, is_lone_heredoc};

    #[test]
    fn a_cache_without_an_id_is_known_by_its_target_as_it_is_written_but_clean() {
        for (path, id) in [("/a//b/", "/a/b"), ("a/./b/..", "a"), ("../x", "../x"), ("", "."), ("/..", "/")] {
            assert_eq!(clean(path), id, "{path:?}");
        }
    }

    #[test]
    fn a_heredoc_with_a_command_beside_it_is_not_alone() {
        for line in ["<<EOF", "<<-EOF", "<<\"E F\"", "3<<EOF ", "<<'EOF'"] {
            assert!(is_lone_heredoc(line), "{line}");
        }
        for line in ["cat <<EOF", "<<EOF cat", "<<A <<B", "<<EOF >x", "<<"] {
            assert!(!is_lone_heredoc(line), "{line}");
        }
    }
}
