//! What the planner makes of whole Dockerfiles.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking, its helpers too")]

mod any_key;
mod config;
mod decisions;
mod golden;
mod keys;
mod stages;

use kiln_dockerfile::{Diagnostic, Source, parse};
use kiln_oci::{Digest, ImageConfig, Platform, RunConfig};
use kiln_plan::{BaseFact, BuildPlan, Facts, Planning, Question, Request, plan};

fn request() -> Request {
    Request::new("linux/amd64".parse().unwrap())
}

fn base(env: &[&str], on_build: &[&str]) -> ImageConfig {
    let texts = |list: &[&str]| list.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
    ImageConfig {
        os: "linux".into(),
        architecture: "amd64".into(),
        config: RunConfig {
            env: texts(env),
            cmd: Some(vec!["sh".into()]),
            on_build: Some(texts(on_build)).filter(|list| !list.is_empty()),
            ..RunConfig::default()
        },
        ..ImageConfig::default()
    }
}

/// Plans with every image known as `config`, and every content as what its question says.
fn plan_with(text: &str, request: &Request, config: &ImageConfig) -> Result<BuildPlan, Vec<Diagnostic>> {
    plan_from(text, request, |_: &str, _: &Platform| config.clone())
}

fn plan_from(
    text: &str,
    request: &Request,
    config: impl Fn(&str, &Platform) -> ImageConfig,
) -> Result<BuildPlan, Vec<Diagnostic>> {
    let file = parse(&Source::new("Dockerfile", text))?;
    let mut facts = Facts::default();
    for _ in 0..20 {
        match plan(&file, request, &facts)? {
            Planning::Ready(plan) => return Ok(plan),
            Planning::Asks(questions) => {
                for question in questions {
                    match question {
                        Question::Base(base) => {
                            let name = base.image.to_string();
                            let fact = BaseFact {
                                manifest: Digest::of(name.as_bytes()),
                                config: config(&name, &base.platform),
                            };
                            facts.base(base.image, &base.platform, fact);
                        }
                        Question::Content(content) => {
                            let mut digest = [0; 32];
                            digest.copy_from_slice(Digest::of(format!("{content:?}").as_bytes()).as_bytes());
                            facts.content(content, digest);
                        }
                    }
                }
            }
        }
    }
    panic!("the planner never has enough");
}

fn planned(text: &str) -> BuildPlan {
    plan_with(text, &request(), &base(&["PATH=/bin"], &[])).unwrap()
}

fn last_config(text: &str) -> ImageConfig {
    let plan = planned(text);
    plan.stages[plan.targets[0]].config.clone()
}

fn message(text: &str) -> String {
    match plan_with(text, &request(), &base(&[], &[])) {
        Ok(plan) => panic!("it was planned: {plan:?}"),
        Err(errors) => format!("{} {:?}", errors[0].message, errors[0].hint),
    }
}
