//! What the planner asks, and what it was told.

use std::collections::BTreeMap;

use kiln_dockerfile::Span;
use kiln_oci::{Digest, ImageConfig, Platform};

use crate::ImageName;

/// Something that only I/O can answer. The caller answers into [`Facts`] and plans again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Question {
    /// What is this image?
    Base(BaseQuestion),
    /// What do these files hold?
    Content(ContentQuestion),
}

/// What is this image, for this platform?
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BaseQuestion {
    /// Its name.
    pub image: ImageName,
    /// The platform that is wanted.
    pub platform: Platform,
    /// The instruction that names it, for error messages.
    pub span: Span,
    /// A stage whose name is near, if the image turns out not to exist.
    pub near: Option<String>,
}

/// What was found about an image.
#[derive(Clone, Debug)]
pub struct BaseFact {
    /// The digest of its manifest for the platform.
    pub manifest: Digest,
    /// Its config.
    pub config: ImageConfig,
}

/// What do these files hold? The answer is a digest over path, type, mode, link target and content.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ContentQuestion {
    /// Where they are.
    pub of: ContentOf,
    /// The source words, expanded.
    pub words: Vec<String>,
    /// `--exclude`.
    pub excludes: Vec<String>,
    /// `--parents`.
    pub parents: bool,
}

/// Where files are.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ContentOf {
    /// The build context, less what .dockerignore names.
    Context,
    /// The named context.
    Named(String),
    /// What the URLs in `words` give.
    Url,
    /// The commits that the git addresses in `words` mean now.
    Git,
    /// A stage's tree, once it has run: answered late, by [`crate::BuildPlan::content_questions`].
    Stage(usize),
}

/// The answers so far.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    bases: BTreeMap<(ImageName, String), BaseFact>,
    contents: BTreeMap<ContentQuestion, [u8; 32]>,
    parts: BTreeMap<ContentQuestion, Parts>,
}

/// Names and digests of the parts of some files: they say what changed, and are in no key.
pub type Parts = Vec<(String, [u8; 32])>;

impl Facts {
    /// Answers a [`BaseQuestion`].
    pub fn base(&mut self, image: ImageName, platform: &Platform, fact: BaseFact) {
        self.bases.insert((image, platform.to_string()), fact);
    }

    /// Answers a [`ContentQuestion`].
    pub fn content(&mut self, question: ContentQuestion, digest: [u8; 32]) {
        self.contents.insert(question, digest);
    }

    /// Adds to the answer of a [`ContentQuestion`] what its parts hold.
    pub fn parts(&mut self, question: ContentQuestion, parts: Parts) {
        self.parts.insert(question, parts);
    }

    pub(crate) fn find_parts(&self, question: &ContentQuestion) -> &[(String, [u8; 32])] {
        self.parts.get(question).map_or(&[], Vec::as_slice)
    }

    pub(crate) fn find_base(&self, image: &ImageName, platform: &Platform) -> Option<&BaseFact> {
        self.bases.get(&(image.clone(), platform.to_string()))
    }

    pub(crate) fn find_content(&self, question: &ContentQuestion) -> Option<&[u8; 32]> {
        self.contents.get(question)
    }
}
