//! Answering the planner: it is asked for a plan until it has no more questions; images of one round are looked up side
//! by side.

use std::collections::BTreeMap;
use std::sync::Arc;

use kiln_cache::{ImageName as CacheName, ResolvedImage};
use kiln_dockerfile::Dockerfile;
use kiln_plan::{
    BaseFact, BaseQuestion, BuildPlan, ContentOf, ContentQuestion, Facts, ImageName, Planning, Question, plan,
};

use crate::error::BuildError;
use crate::event::Event;
use crate::session::{LayerOrigin, Session};

/// The images that the plan names, as they were found: by name and platform.
pub(crate) type Found = BTreeMap<(ImageName, String), Arc<ResolvedImage>>;

/// More rounds than this mean that the planner asks for what it was told.
const MAX_ROUNDS: usize = 100;

/// Plans the build for one platform. What was found out for another one is not asked again.
pub(crate) async fn make(
    session: &Arc<Session>,
    file: &Dockerfile,
    request: &kiln_plan::Request,
    facts: &mut Facts,
    images: &mut Found,
) -> Result<BuildPlan, BuildError> {
    for _ in 0..MAX_ROUNDS {
        session.check_cancelled()?;
        match plan(file, request, facts) {
            Ok(Planning::Ready(plan)) => return Ok(plan),
            Ok(Planning::Asks(questions)) => answer(session, questions, facts, images).await?,
            Err(errors) => return Err(session.wrong(errors)),
        }
    }
    Err(BuildError::other(
        "the plan is not finished after a hundred rounds of questions: this is a mistake in Kiln",
    ))
}

async fn answer(
    session: &Arc<Session>,
    questions: Vec<Question>,
    facts: &mut Facts,
    images: &mut Found,
) -> Result<(), BuildError> {
    let bases = questions.iter().filter_map(|question| match question {
        Question::Base(base) => Some(base.clone()),
        Question::Content(_) => None,
    });
    let found = futures::future::join_all(bases.map(|base| resolve(session, base))).await;
    for result in found {
        let (question, image) = result?;
        for layer in &image.layers {
            session.remember(&layer.descriptor().digest, LayerOrigin::Image(layer.clone()));
        }
        let fact =
            BaseFact { manifest: image.manifest.digest().clone(), config: image.config.value().clone() };
        session.tell(Event::Base {
            image: question.image.to_string(),
            digest: image.manifest.digest().clone(),
            local: image.layers.iter().all(kiln_cache::LayerSource::is_here),
        });
        facts.base(question.image.clone(), &question.platform, fact);
        images.insert((question.image, question.platform.to_string()), Arc::new(image));
    }
    for question in questions {
        if let Question::Content(question) = question {
            let (digest, parts) = content(session, &question).await?;
            facts.parts(question.clone(), parts);
            facts.content(question, digest);
        }
    }
    Ok(())
}

async fn resolve(
    session: &Session,
    question: BaseQuestion,
) -> Result<(BaseQuestion, ResolvedImage), BuildError> {
    let text = question.image.to_string();
    let name: CacheName =
        text.parse().map_err(|error| session.at(question.span, format!("{error}"), None))?;
    match session.images.resolve(&name, &question.platform).await {
        Ok(image) => Ok((question, image)),
        Err(cause) => {
            let hint = question.near.as_ref().map(|near| format!("did you mean the stage {near:?}?"));
            Err(session.at(question.span, cause.to_string(), hint))
        }
    }
}

/// The digest of what files hold, for a key, and those of their parts, for explanations.
async fn content(
    session: &Arc<Session>,
    question: &ContentQuestion,
) -> Result<([u8; 32], kiln_plan::Parts), BuildError> {
    let whole = |digest| (digest, Vec::new());
    match &question.of {
        ContentOf::Url => crate::remote::digest(session, question).await.map(whole),
        ContentOf::Git => crate::repository::digest(session, question).await.map(whole),
        ContentOf::Context | ContentOf::Named(_) => {
            let (session, question) = (Arc::clone(session), question.clone());
            blocking(move || session.context_tree(&question.of)?.digest_parts(&question)).await
        }
        ContentOf::Stage(_) => {
            Err(BuildError::other("a stage's files were asked for before it ran: this is a mistake in Kiln"))
        }
    }
}

/// Runs what blocks away from the threads that wait for the network.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, BuildError> + Send + 'static,
) -> Result<T, BuildError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(_) => Err(BuildError::Cancelled),
        },
    }
}
