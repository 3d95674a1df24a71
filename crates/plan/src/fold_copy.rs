//! COPY and ADD: sources and destination made absolute, and what of them goes into the key.

use kiln_dockerfile::{AddOptions, Copy, Diagnostic, Instruction, Span, Word, expand_heredoc};

use crate::fold::{Fold, Shown, absolute};
use crate::recipe::{LINKED, PARENT};
use crate::stages::{Numbers, error};
use crate::{
    AddStep, ContentOf, ContentQuestion, CopySource, CopyStep, InlineFile, Late, Op, Recipe, TreeSource,
};

impl Fold<'_, '_> {
    pub(crate) fn copy(
        &mut self,
        instruction: &Instruction,
        copy: &Copy,
        add: Option<&AddOptions>,
    ) -> Result<(), Diagnostic> {
        let from = match &copy.from {
            Some(word) => {
                if self.expand(word)? != word.literal() {
                    let message = format!("--from={}: variables are not expanded here", word.raw);
                    let hint = "name a stage for it above: FROM $VAR AS name, with a global ARG".to_owned();
                    return Err(error(word.span, message, Some(hint)));
                }
                self.tree_source(&word.literal(), word.span, Numbers::Stages)?
            }
            None => TreeSource::Context,
        };
        let mut sources = Vec::new();
        let mut shown = Vec::new();
        for word in &copy.sources {
            let text = self.expand(word)?;
            shown.push(text.clone());
            sources.push(source(text, word, add.is_some())?);
        }
        let mut inline = Vec::new();
        for heredoc in &copy.heredocs {
            if heredoc.name.trim_start_matches('/').contains('/') {
                let message =
                    format!("<<{}: the name of a heredoc's file must not hold a slash", heredoc.name);
                let hint = "name the directory in the destination".to_owned();
                return Err(error(instruction.span, message, Some(hint)));
            }
            let content = if heredoc.expand {
                expand_heredoc(&heredoc.content, '\\', &self.env)?
            } else {
                heredoc.content.clone()
            };
            shown.push(format!("<<{}", heredoc.name));
            inline.push(InlineFile { name: heredoc.name.clone(), content });
        }
        let target = self.expand(&copy.destination)?;
        let step = CopyStep {
            from,
            sources,
            inline,
            destination: destination(&self.config.config.working_dir, &target),
            chown: self.flag(copy.chown.as_ref())?,
            chmod: self.flag(copy.chmod.as_ref())?,
            link: copy.link,
            parents: copy.parents,
            // Patterns are taken as they are written.
            excludes: copy.excludes.iter().map(Word::literal).collect(),
            add: add.map(|options| self.add_step(options)).transpose()?,
        };
        check(&step, copy)?;
        if let Some(chown) = step.chown.as_deref().filter(|chown| is_named(chown)) {
            let span = copy.chown.as_ref().map_or(instruction.span, |word| word.span);
            if step.link && step.chmod.is_none() {
                let message =
                    format!("--chown={chown}: --link never looks at the image below, where names are kept");
                let hint = "give numbers, as in --chown=1000:1000, or leave --link out".to_owned();
                return Err(error(span, message, Some(hint)));
            }
            self.need_names(span, &format!("--chown={chown}"))?;
        }
        let keyword = if add.is_some() { "ADD" } else { "COPY" };
        let mut words = vec![keyword.to_owned()];
        words.extend(step.parents.then(|| "--parents".to_owned()));
        words.extend(step.chown.as_ref().map(|chown| format!("--chown={chown}")));
        words.extend(step.chmod.as_ref().map(|chmod| format!("--chmod={chmod}")));
        words.extend(shown);
        words.push(target);
        self.note(format!("{} # buildkit", words.join(" ")), true);
        let (recipe, late) = self.copy_recipe(&step);
        self.push(Shown::of(instruction), Op::Copy(Box::new(step)), recipe, late);
        Ok(())
    }

    /// Fails where names of users have to be looked up and there is no file yet to look them up in.
    pub(crate) fn need_names(&self, span: Span, what: &str) -> Result<(), Diagnostic> {
        if !self.is_bare() {
            return Ok(());
        }
        let message =
            format!("{what}: the stage begins with nothing: there is no /etc/passwd that knows the name");
        Err(error(span, message, Some("give a number, or copy an /etc/passwd first".to_owned())))
    }

    fn flag(&self, word: Option<&Word>) -> Result<Option<String>, Diagnostic> {
        let text = word.map(|word| self.expand(word)).transpose()?;
        Ok(text.filter(|text| !text.is_empty()))
    }

    fn add_step(&self, options: &AddOptions) -> Result<AddStep, Diagnostic> {
        Ok(AddStep {
            checksum: self.flag(options.checksum.as_ref())?,
            keep_git_dir: options.keep_git_dir,
            unpack: options.unpack,
        })
    }

    /// The recipe, and what to ask once the stage has run that files come from.
    pub(crate) fn copy_recipe(&mut self, step: &CopyStep) -> (Recipe, Vec<Late>) {
        let mut recipe = self.recipe(if step.add.is_some() { "add" } else { "copy" });
        // A linked copy is the same layer whatever is below it; names of owners are looked up below.
        let by_number =
            step.chown.as_deref().is_none_or(|chown| chown.bytes().all(|b| b.is_ascii_digit() || b == b':'));
        if step.link && step.chmod.is_none() && by_number {
            recipe = recipe.with(PARENT, LINKED);
        }
        let mut paths = Vec::new();
        for source in &step.sources {
            match source {
                CopySource::Path(path) => paths.push(path.clone()),
                CopySource::Http(url) => {
                    let digest = self.remote(ContentOf::Url, url);
                    recipe.add("url content", digest);
                }
                CopySource::Git(url) => {
                    let digest = self.remote(ContentOf::Git, url);
                    recipe.add("git commit", digest);
                }
            }
        }
        recipe.add_list(
            "sources",
            step.sources.iter().map(|source| match source {
                CopySource::Path(text) | CopySource::Http(text) | CopySource::Git(text) => text,
            }),
        );
        recipe.add_list("heredocs", step.inline.iter().flat_map(|file| [&file.name, &file.content]));
        recipe.add("destination", &step.destination);
        recipe.add_list("chown", &step.chown);
        recipe.add_list("chmod", &step.chmod);
        recipe.add("link", step.link.to_string());
        recipe.add("parents", step.parents.to_string());
        recipe.add_list("excludes", &step.excludes);
        if let Some(add) = &step.add {
            // So that a result that was found without being compared is not taken where a comparison is asked for.
            recipe.add_list("checksum", &add.checksum);
            recipe.add("keep git directory", add.keep_git_dir.unwrap_or(false).to_string());
            recipe.add("unpack", format!("{:?}", add.unpack));
        }
        let from = if paths.is_empty() {
            Vec::new()
        } else {
            self.source_key(&step.from, &paths, &step.excludes, step.parents)
        };
        recipe.add("from", from);
        let late = match step.from {
            TreeSource::Stage(place) if !paths.is_empty() && self.stages.request.content_keys => {
                let (of, excludes) = (ContentOf::Stage(place), step.excludes.clone());
                let question = ContentQuestion { of, words: paths, excludes, parents: step.parents };
                vec![Late { field: "from".to_owned(), question }]
            }
            _ => Vec::new(),
        };
        (recipe, late)
    }

    fn remote(&mut self, of: ContentOf, url: &str) -> Vec<u8> {
        self.content(ContentQuestion {
            of,
            words: vec![url.to_owned()],
            excludes: Vec::new(),
            parents: false,
        })
    }
}

/// Whether an owner has a name in it that has to be looked up: user or group.
pub(crate) fn is_named(owner: &str) -> bool {
    owner.splitn(2, ':').any(|part| !matches!(part, "" | "root") && part.parse::<u32>().is_err())
}

/// What a source word is. Only ADD takes URLs and git addresses.
fn source(text: String, word: &Word, add: bool) -> Result<CopySource, Diagnostic> {
    let kind = if is_git(&text) {
        CopySource::Git(text)
    } else if text.starts_with("http://") || text.starts_with("https://") {
        CopySource::Http(text)
    } else {
        return Ok(CopySource::Path(text));
    };
    if add {
        return Ok(kind);
    }
    let what = if matches!(kind, CopySource::Git(_)) { "a git address" } else { "a URL" };
    Err(error(word.span, format!("COPY can't take {what}"), Some("use ADD".to_owned())))
}

/// Whether a source is a git repository's address, as docker's rules have it.
fn is_git(text: &str) -> bool {
    if text.starts_with("git://") || text.starts_with("ssh://") {
        return true;
    }
    if text.starts_with("http://") || text.starts_with("https://") {
        let path = text.split(['#', '?']).next().unwrap_or(text);
        return path.strip_suffix(".git").is_some();
    }
    // user@host:path, as scp writes it.
    let plain = |text: &str, more: &str| {
        !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric() || more.contains(c))
    };
    let place = text.split_once('@').and_then(|(user, rest)| Some((user, rest.split_once(':')?.0)));
    place.is_some_and(|(user, host)| plain(user, "-_") && plain(host, "-."))
}

/// The destination, absolute and clean, with a slash at its end where it is written as a directory.
fn destination(workdir: &str, target: &str) -> String {
    let clean = absolute(workdir, target);
    let directory = target.is_empty()
        || target.ends_with('/')
        || target == "."
        || target == ".."
        || target.ends_with("/.")
        || target.ends_with("/..");
    if directory && clean != "/" { format!("{clean}/") } else { clean }
}

/// Flags that don't fit their sources.
fn check(step: &CopyStep, copy: &Copy) -> Result<(), Diagnostic> {
    let span = copy.destination.span;
    if let Some(add) = &step.add
        && add.checksum.is_some()
    {
        if step.sources.len() + step.inline.len() != 1 {
            return Err(error(span, "--checksum takes exactly one source", None));
        }
        if matches!(step.sources.first(), Some(CopySource::Path(_)) | None) {
            return Err(error(span, "--checksum takes a URL or a git address as source", None));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{destination, is_git};

    #[test]
    fn a_destination_keeps_the_slash_that_says_directory() {
        for (target, absolute) in [
            ("x", "/w/x"),
            ("x/", "/w/x/"),
            (".", "/w/"),
            ("", "/w/"),
            ("/", "/"),
            ("/a/../b", "/b"),
            ("/a/.", "/a/"),
            ("..", "/"),
        ] {
            assert_eq!(destination("/w", target), absolute, "{target:?}");
        }
    }

    #[test]
    fn git_addresses_are_told_from_urls_and_paths() {
        for text in ["git://h/r", "https://h/r.git#v1", "git@example.com:a/b", "ssh://git@h/r", "user@file:x"]
        {
            assert!(is_git(text), "{text}");
        }
        for text in
            ["https://h/a.tar.gz", "https://h/r.git/", "a@b", "dir/file.git", "d/user@file:x", "a.b@c:d"]
        {
            assert!(!is_git(text), "{text}");
        }
    }
}
