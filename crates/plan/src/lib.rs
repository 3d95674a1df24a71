//! From instructions to decisions: stages are resolved, metadata folds into image configs, and what is left are steps
//! with cache keys. Pure: this crate asks for what it doesn't know and is called again with the answers.
//!
//! Start with [`plan`], [`BuildPlan`] and [`Recipe`]. It never opens a file, a socket or a clock, and runs nothing.

mod decide;
mod expose;
mod facts;
mod fold;
mod fold_copy;
mod fold_run;
mod history;
mod keys;
mod recipe;
mod request;
mod scope;
mod stages;
mod step;

pub use decide::{BuildPlan, Hit, Hits, Stage, Verdict};
pub use facts::{BaseFact, BaseQuestion, ContentOf, ContentQuestion, Facts, Parts, Question};
pub use recipe::{Field, Recipe, StepKey};
pub use request::{LayerShape, NamedContext, Request};
pub use stages::{Planning, plan};
pub use step::{
    AddStep, Base, CopySource, CopyStep, DirectoryStep, ImageName, InlineFile, Late, Op, RunMount, RunStep,
    Script, Step, StepKeys, TreeSource,
};
