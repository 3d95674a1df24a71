//! Keys of builds made by chance: every relevant input changes the last key, and nothing else does.

use kiln_oci::Digest;
use kiln_plan::{BaseFact, ContentQuestion, Facts, Planning, Question, Recipe, Request, StepKey, plan};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index;

use crate::golden::decode;
use crate::{base, request};

/// A build of one stage with a RUN, a COPY and a last RUN, as data.
#[derive(Clone, Debug)]
struct Build {
    image: String,
    args: Vec<String>,
    env: Vec<String>,
    user: String,
    workdir: String,
    shell: String,
    command: String,
    script: String,
    mounts: Vec<(String, String)>,
    network: bool,
    sources: Vec<String>,
    destination: String,
    owner: u16,
    mode: u16,
    excludes: Vec<String>,
    inline: String,
    content: u8,
    mtime_limit: Option<i64>,
    level: u8,
    ignored: Vec<String>,
    platform: bool,
    // What is in no key.
    label: String,
    port: u16,
    entrypoint: String,
    proxy: String,
    undeclared: String,
    other_stage: String,
    comment: String,
    reversed: bool,
}

fn word() -> impl Strategy<Value = String> {
    "[a-z][a-z0-9]{0,4}(-[a-z0-9]{1,3})?"
}

prop_compose! {
    fn relevant()(
        image in word(), args in vec(word(), 1..4), env in vec(word(), 1..4), user in word(), workdir in word(),
        shell in word(), command in word(), script in word(), mounts in vec((word(), word()), 1..3),
        network in any::<bool>(),
    )(
        sources in vec(word(), 1..4), destination in word(), owner in any::<u16>(), mode in 0_u16..0o777,
        excludes in vec(word(), 1..3), inline in word(), content in any::<u8>(),
        mtime_limit in proptest::option::of(0_i64..9), level in 0_u8..9, ignored in vec(word(), 1..3),
        platform in any::<bool>(), first in Just((image, args, env, user, workdir, shell, command, script, mounts, network)),
    ) -> Build {
        let (image, args, env, user, workdir, shell, command, script, mounts, network) = first;
        Build {
            image, args, env, user, workdir, shell, command, script, mounts, network, sources, destination, owner, mode,
            excludes, inline, content, mtime_limit, level, ignored, platform, label: String::new(), port: 1,
            entrypoint: String::new(), proxy: String::new(), undeclared: String::new(), other_stage: String::new(),
            comment: String::new(), reversed: false,
        }
    }
}

prop_compose! {
    fn build()(
        build in relevant(), label in word(), port in 1_u16..9999, entrypoint in word(), proxy in word(),
        undeclared in word(), other_stage in word(), comment in word(), reversed in any::<bool>(),
    ) -> Build {
        Build { label, port, entrypoint, proxy, undeclared, other_stage, comment, reversed, ..build }
    }
}

impl Build {
    fn dockerfile(&self) -> String {
        let mut args: Vec<String> =
            self.args.iter().enumerate().map(|(n, value)| format!("ARG A{n}={value}\n")).collect();
        if self.reversed {
            args.reverse();
        }
        let env: Vec<String> =
            self.env.iter().enumerate().map(|(n, value)| format!("ENV E{n}={value}\n")).collect();
        let mounts: Vec<String> = self
            .mounts
            .iter()
            .enumerate()
            .map(|(n, (id, target))| format!("--mount=type=cache,id={id},target=/{n}/{target} "))
            .collect();
        let excludes: Vec<String> = self.excludes.iter().map(|word| format!("--exclude={word} ")).collect();
        let network = if self.network { "--network=none " } else { "" };
        let Self { image, user, workdir, shell, command, script, destination, owner, mode, inline, .. } =
            self;
        let Self { label, port, entrypoint, other_stage, comment, .. } = self;
        format!(
            "FROM {other_stage} AS other\nRUN {other_stage}\nFROM {image}\n# {comment}\n{args}{env}LABEL l={label}\n\
             EXPOSE {port}\nENTRYPOINT [\"{entrypoint}\"]\nUSER {user}\nWORKDIR /{workdir}\nSHELL [\"{shell}\"]\n\
             RUN {mounts}{network}{command}\nRUN <<S\n#!{script}\nS\n\
             COPY --chown={owner} --chmod={mode:o} {excludes}{sources} <<I /{destination}/\n{inline}\nI\nRUN last\n",
            args = args.concat(),
            env = env.concat(),
            mounts = mounts.concat(),
            excludes = excludes.concat(),
            sources = self.sources.join(" "),
        )
    }

    fn request(&self) -> Request {
        let mut request = Request { content_keys: true, ..request() };
        if self.platform {
            request.platform = "linux/arm64".parse().unwrap();
        }
        request.shape.mtime_limit = self.mtime_limit;
        request.shape.compression = format!("gzip {}", self.level);
        request.shape.ignored.clone_from(&self.ignored);
        request.labels.insert("label".to_owned(), self.label.clone());
        request.build_args.insert("HTTPS_PROXY".to_owned(), self.proxy.clone());
        request.build_args.insert("UNDECLARED".to_owned(), self.undeclared.clone());
        request
    }

    /// What a content question is answered with.
    fn answer(&self, question: &ContentQuestion) -> [u8; 32] {
        let mut digest = [0; 32];
        digest.copy_from_slice(Digest::of(format!("{} {question:?}", self.content).as_bytes()).as_bytes());
        digest
    }

    /// The key of the last step: all others are in it.
    fn key(&self) -> StepKey {
        let text = self.dockerfile();
        let file = kiln_dockerfile::parse(&kiln_dockerfile::Source::new("Dockerfile", &text)).expect(&text);
        let (request, mut facts) = (self.request(), Facts::default());
        loop {
            match plan(&file, &request, &facts).expect(&text) {
                Planning::Ready(plan) => {
                    return plan.stages.last().unwrap().steps.last().unwrap().keys.recipe;
                }
                Planning::Asks(questions) => {
                    for question in questions {
                        match question {
                            Question::Base(question) => {
                                let manifest = Digest::of(question.image.to_string().as_bytes());
                                let fact = BaseFact { manifest, config: base(&[], &[]) };
                                facts.base(question.image, &question.platform, fact);
                            }
                            Question::Content(question) => {
                                let answer = self.answer(&question);
                                facts.content(question, answer);
                            }
                        }
                    }
                }
            }
        }
    }
}

type Change = Box<dyn Fn(&mut Build)>;

/// Every way to change one relevant input, by name.
fn changes(at: Index) -> Vec<(&'static str, Change)> {
    let one = move |list: &mut Vec<String>| at.get_mut(list).push('x');
    vec![
        ("image", Box::new(|build| build.image.push('x'))),
        ("arg", Box::new(move |build| one(&mut build.args))),
        ("one arg more", Box::new(|build| build.args.push("v".to_owned()))),
        ("env", Box::new(move |build| one(&mut build.env))),
        ("one env more", Box::new(|build| build.env.push("v".to_owned()))),
        ("user", Box::new(|build| build.user.push('x'))),
        ("workdir", Box::new(|build| build.workdir.push('x'))),
        ("shell", Box::new(|build| build.shell.push('x'))),
        ("command", Box::new(|build| build.command.push('x'))),
        ("script", Box::new(|build| build.script.push('x'))),
        ("mount id", Box::new(move |build| at.get_mut(&mut build.mounts).0.push('x'))),
        ("mount target", Box::new(move |build| at.get_mut(&mut build.mounts).1.push('x'))),
        ("mount", Box::new(|build| build.mounts.push(("m".to_owned(), "t".to_owned())))),
        ("network", Box::new(|build| build.network = !build.network)),
        ("source", Box::new(move |build| one(&mut build.sources))),
        ("one source more", Box::new(|build| build.sources.push("v".to_owned()))),
        ("destination", Box::new(|build| build.destination.push('x'))),
        ("owner", Box::new(|build| build.owner = build.owner.wrapping_add(1))),
        ("mode", Box::new(|build| build.mode ^= 1)),
        ("exclude", Box::new(move |build| one(&mut build.excludes))),
        ("inline", Box::new(|build| build.inline.push('x'))),
        ("content", Box::new(|build| build.content = build.content.wrapping_add(1))),
        ("time", Box::new(|build| build.mtime_limit = Some(build.mtime_limit.map_or(0, |limit| limit + 1)))),
        ("level", Box::new(|build| build.level += 1)),
        ("ignored", Box::new(move |build| one(&mut build.ignored))),
        ("platform", Box::new(|build| build.platform = !build.platform)),
    ]
}

/// A recipe of one list, cut at these places, and of fields.
fn cut(bytes: &[u8], places: &[usize]) -> Vec<Vec<u8>> {
    let mut pieces = Vec::new();
    let mut from = 0;
    for &place in places.iter().chain([&bytes.len()]) {
        pieces.push(bytes[from..place].to_vec());
        from = place;
    }
    pieces
}

fn places(length: usize) -> impl Strategy<Value = Vec<usize>> {
    vec(0..=length, 0..5).prop_map(|mut places| {
        places.sort_unstable();
        places
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_change_of_a_relevant_input_changes_the_key(build in build(), at in any::<Index>()) {
        let before = build.key();
        for (what, change) in changes(at) {
            let mut other = build.clone();
            change(&mut other);
            prop_assert_ne!(before, other.key(), "{}:\n{}\n{}", what, build.dockerfile(), other.dockerfile());
        }
    }

    #[test]
    fn what_no_step_sees_changes_no_key(one in build(), other in build()) {
        let Build { label, port, entrypoint, proxy, undeclared, other_stage, comment, reversed, .. } = other;
        let other = Build { label, port, entrypoint, proxy, undeclared, other_stage, comment, reversed, ..one.clone() };
        prop_assert_eq!(one.key(), other.key(), "{}\n{}", one.dockerfile(), other.dockerfile());
    }

    #[test]
    fn inputs_whose_plain_concatenation_is_equal_have_different_keys(
        (bytes, one, other) in vec(any::<u8>(), 0..12)
            .prop_flat_map(|bytes| { let length = bytes.len(); (Just(bytes), places(length), places(length)) }),
    ) {
        let (one_cut, other_cut) = (cut(&bytes, &one), cut(&bytes, &other));
        let list = |pieces: &[Vec<u8>]| { let mut recipe = Recipe::new("run"); recipe.add_list("command", pieces); recipe.key() };
        let fields = |pieces: &[Vec<u8>]| {
            let mut recipe = Recipe::new("run");
            for piece in pieces {
                recipe.add("env", piece);
            }
            recipe.key()
        };
        prop_assert_eq!(one_cut == other_cut, list(&one_cut) == list(&other_cut));
        prop_assert_eq!(one_cut == other_cut, fields(&one_cut) == fields(&other_cut));
    }

    /// What can be read back was not lost: no two recipes have the same bytes.
    #[test]
    fn an_encoded_recipe_is_read_back(fields in vec((".{0,6}", vec(any::<u8>(), 0..9)), 0..6)) {
        let mut recipe = Recipe::new("k");
        for (name, value) in &fields {
            recipe.add(name.clone(), value);
        }
        let (_, found) = decode(&recipe.encode());
        let expected = std::iter::once((b"kind".to_vec(), b"k".to_vec()));
        let expected = expected.chain(fields.into_iter().map(|(name, value)| (name.into_bytes(), value)));
        prop_assert_eq!(found, expected.collect::<Vec<_>>());
    }
}
