//! Answering the planner: it is asked for a plan until it has no more questions; questions of one round are answered
//! side by side.

use std::collections::BTreeMap;
use std::sync::Arc;

use kiln_cache::images::ResolvedImage;
use kiln_dockerfile::{Dockerfile, Span};
use kiln_oci::Platform;
use kiln_plan::{
    BaseFact, BaseQuestion, BuildPlan, ContentOf, ContentQuestion, Facts, ImageName, Planning, Question, plan,
};

use crate::error::BuildError;
use crate::session::Session;
use crate::event::Event;

/// The images that the plan names, as they were found: by name and platform.
pub(crate) type Images = BTreeMap<(ImageName, String), Arc<ResolvedImage>>;

/// More rounds than this mean that the planner asks for what it was told.
const MAX_ROUNDS: usize = 100;

/// Plans the build.
pub(crate) async fn make(
    session: &Session,
    file: &Dockerfile,
    facts: &mut Facts,
    images: &mut Images,
) -> Result<BuildPlan, BuildError> {
    for _ in 0..MAX_ROUNDS {
        match plan(file, &session.request.plan, facts) {
            Ok(Planning::Ready(plan)) => return Ok(plan),
            Ok(Planning::Asks(questions)) => answer(session, questions, facts, images).await?,
            Err(errors) => return Err(session.wrong(errors)),
        }
    }
    Err(BuildError::other("the plan is not finished after a hundred rounds of questions: this is a mistake in Kiln"))
}

async fn answer(
    session: &Session,
    questions: Vec<Question>,
    facts: &mut Facts,
    images: &mut Images,
) -> Result<(), BuildError> {
    let bases = questions.iter().filter_map(|question| match question {
        Question::Base(base) => Some(base.clone()),
        Question::Content(_) => None,
    });
    let found = futures::future::join_all(bases.map(|base| resolve(session, base))).await;
    for result in found {
        let (question, image) = result?;
        let fact =
            BaseFact { manifest: image.manifest.digest().clone(), config: image.config.value().clone() };
        (session.on)(Event::Base {
            image: question.image.to_string(),
            digest: image.manifest.digest().clone(),
            origin: image.origin.clone(),
        });
        facts.base(question.image.clone(), &question.platform, fact);
        images.insert((question.image, question.platform.to_string()), Arc::new(image));
    }
    for question in questions {
        if let Question::Content(question) = question {
            let digest = content(session, &question).await?;
            facts.content(question, digest);
        }
    }
    Ok(())
}

async fn resolve(
    session: &Session,
    question: BaseQuestion,
) -> Result<(BaseQuestion, ResolvedImage), BuildError> {
    let platform: &Platform = &question.platform;
    let found = session.images.resolve(&question.image, platform).await;
    match found {
        Ok(image) => Ok((question, image)),
        Err(cause) => {
            let hint = question.near.as_ref().map(|near| format!("did you mean the stage {near:?}?"));
            Err(session.at(question.span, cause.to_string(), hint))
        }
    }
}

/// The digest of what files hold, for a key.
async fn content(session: &Session, question: &ContentQuestion) -> Result<[u8; 32], BuildError> {
    match &question.of {
        ContentOf::Url | ContentOf::Git => {
            let Some(address) = question.words.first() else { return Ok([0; 32]) };
            session.remote(&question.of, address).await.map(|fetched| fetched.digest)
        }
        ContentOf::Context | ContentOf::Named(_) => {
            let tree = session.context_tree(&question.of).await?;
            let question = question.clone();
            session.blocking(move || tree.digest(&question)).await
        }
        ContentOf::Stage(_) => {
            Err(BuildError::other("a stage's files were asked for before it ran: this is a mistake in Kiln"))
        }
    }
}

/// Where an instruction stands, for messages.
pub(crate) fn line_of(session: &Session, span: Span) -> u32 {
    session.source.line_col(span.start).0
}
