//! Whole recipes, pinned: what goes into the key of each kind of step, field by field. A change here is a new version of
//! the encoding, and everybody's caches begin anew.

use std::fmt::Write as _;

use kiln_oci::Digest;
use kiln_plan::{
    BaseFact, BuildPlan, Facts, ImageName, NamedContext, Planning, Question, Recipe, Request, plan,
};

use crate::{base, request};

const RUNS: &str = r#"FROM base AS first
ARG A=one
ENV E=two
LABEL l=three
RUN plain $A
USER ana:web
WORKDIR /work
SHELL ["/bin/bash", "-c"]
RUN other shell
RUN ["exec", "form"]
RUN <<EOF
a lone heredoc
EOF
RUN <<SCRIPT
#!/usr/bin/python
print()
SCRIPT
RUN cat <<ONE <<TWO
1
ONE
2
TWO
RUN --network=none --security=insecure x
RUN --mount=type=cache,target=/c,sharing=locked,uid=1,gid=2,mode=0700 x
RUN --mount=type=secret,id=s,required,env=S --mount=type=ssh,id=k x
RUN --mount=type=tmpfs,target=/t,size=1m --mount=target=/d,source=dir,rw x
FROM first
RUN --mount=from=first,source=/o,target=/o --mount=from=image,target=/i --mount=from=named,target=/n x
"#;

const COPIES: &str = r#"FROM base AS first
RUN make
FROM base
COPY file /
COPY --chown=1:2 --chmod=0644 --exclude=*.o --exclude=tmp one two /there/
COPY --chown=ana file /
COPY --link file /linked
COPY --parents a/./b /parents/
COPY <<EOF <<"RAW" file /inline/
$PATH
EOF
$PATH
RAW
COPY --from=first /out /out
COPY --from=image /in /in
COPY --from=named . /named
ADD archive.tar /unpacked
ADD --unpack=false archive.tar /as-it-is
ADD https://example.com/file.tar.gz /
ADD --checksum=sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855 https://example.com/f /
ADD --keep-git-dir=true https://example.com/r.git#v1 /git
WORKDIR /work
USER ana
WORKDIR below
"#;

/// Names and values.
type Fields = Vec<(Vec<u8>, Vec<u8>)>;

/// The version and the fields of an encoded recipe.
pub(crate) fn decode(mut bytes: &[u8]) -> (Vec<u8>, Fields) {
    let mut frame = || {
        if bytes.is_empty() {
            return None;
        }
        let (length, rest) = bytes.split_at(8);
        let length = usize::try_from(u64::from_be_bytes(length.try_into().unwrap())).unwrap();
        let (value, rest) = rest.split_at(length);
        bytes = rest;
        Some(value.to_vec())
    };
    let version = frame().unwrap();
    let fields = std::iter::from_fn(|| Some((frame()?, frame().unwrap()))).collect();
    (version, fields)
}

/// Bytes as text: what is no letter, digit or sign stands in hexadecimal.
fn shown(bytes: &[u8]) -> String {
    if bytes.len() == 32 && bytes.iter().all(|byte| *byte == bytes[0]) {
        return format!("32 bytes {:02x}", bytes[0]);
    }
    bytes.escape_ascii().to_string().replace("\\x00", "·")
}

fn text_of(recipe: &Recipe) -> String {
    let (version, fields) = decode(&recipe.encode());
    let mut text = format!("  {}\n", shown(&version));
    for (name, value) in fields {
        writeln!(text, "  {} = {}", shown(&name), shown(&value)).unwrap();
    }
    text
}

/// Plans with images that are named by their names, and files that all hold the same.
fn planned(text: &str, request: &Request) -> BuildPlan {
    let file = kiln_dockerfile::parse(&kiln_dockerfile::Source::new("Dockerfile", text)).unwrap();
    let mut facts = Facts::default();
    loop {
        match plan(&file, request, &facts).unwrap() {
            Planning::Ready(plan) => return plan,
            Planning::Asks(questions) => {
                for question in questions {
                    match question {
                        Question::Base(question) => {
                            let manifest = Digest::of(question.image.to_string().as_bytes());
                            let fact = BaseFact { manifest, config: base(&["PATH=/bin"], &[]) };
                            facts.base(question.image, &question.platform, fact);
                        }
                        Question::Content(question) => facts.content(question, [0xc0; 32]),
                    }
                }
            }
        }
    }
}

fn recipes(text: &str, request: &Request) -> String {
    let plan = planned(text, request);
    let mut lines = String::new();
    for stage in &plan.stages {
        writeln!(lines, "stage {}", stage.number).unwrap();
        for step in &stage.steps {
            writeln!(lines, "{}\n  {}", step.text.escape_debug(), step.keys.recipe.hex()).unwrap();
            lines.push_str(&text_of(&step.recipe));
        }
    }
    lines
}

fn keyed() -> Request {
    let mut request = Request { content_keys: true, ..request() };
    request.named_contexts.insert("named".to_owned(), NamedContext::Files);
    let image = NamedContext::Image(ImageName::Layout("/layout".to_owned()));
    request.named_contexts.insert("image".to_owned(), image);
    request.targets = ["0", "1"].map(str::to_owned).to_vec();
    request
}

#[test]
fn recipes_of_run_are_pinned() {
    insta::assert_snapshot!(recipes(RUNS, &keyed()));
}

#[test]
fn recipes_of_what_places_files_are_pinned() {
    insta::assert_snapshot!(recipes(COPIES, &keyed()));
}

#[test]
fn what_shapes_a_layer_is_pinned() {
    let mut request = keyed();
    request.targets.clear();
    request.platform = "linux/arm/v7".parse().unwrap();
    request.shape.mtime_limit = Some(1_000_000_000);
    request.shape.compression = "zstd 3".to_owned();
    request.shape.ignored = ["/a", "/b"].map(str::to_owned).to_vec();
    request.shape.snapshot_mode = "time".to_owned();
    insta::assert_snapshot!(recipes("FROM scratch\nCOPY file /\n", &request));
}
