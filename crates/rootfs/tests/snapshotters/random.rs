//! Random steps on every snapshotter, checked against the model.

use std::collections::BTreeMap;

use kiln_rootfs::{DeltaBuilder, TreePath, View, Whiteouts};
use proptest::prelude::*;

use crate::bench::{Bench, Layer, Rung, rungs, view_of};
use crate::model::{Model, Op, build, lines_of, perform};

fn path() -> impl Strategy<Value = String> {
    // Few names, so that operations meet; one that sorts between a directory and what is in it.
    let name = prop::sample::select(vec!["a", "b", "a-", "c"]);
    prop::collection::vec(name, 1..4).prop_map(|parts| parts.join("/"))
}

fn op() -> impl Strategy<Value = Op> {
    let content = prop::sample::select(vec![&b""[..], b"one", b"two", b"three"]).prop_map(<[u8]>::to_vec);
    let mtime = 1..4i64;
    let mode = prop::sample::select(vec![0o755, 0o700, 0o644, 0o1777, 0o4711]);
    prop_oneof![
        4 => (path(), content, mtime.clone()).prop_map(|(path, content, mtime)| Op::Write { path, content, mtime }),
        1 => path().prop_map(|path| Op::OpenAndLeave { path }),
        1 => path().prop_map(|path| Op::WriteTheSame { path }),
        2 => (path(), mode.clone()).prop_map(|(path, mode)| Op::Chmod { path, mode }),
        1 => path().prop_map(|path| Op::ChmodAndBack { path }),
        1 => (path(), 0..3u32, 0..3u32).prop_map(|(path, uid, gid)| Op::Chown { path, owner: (uid, gid) }),
        1 => (path(), mtime.clone()).prop_map(|(path, mtime)| Op::Touch { path, mtime }),
        1 => (path(), prop::option::of("[xy]{1,2}")).prop_map(|(path, value)| Op::SetXattr { path, value }),
        2 => (path(), path()).prop_map(|(from, to)| Op::Link { from, to }),
        2 => (path(), path(), mtime).prop_map(|(path, target, mtime)| Op::Symlink { path, target, mtime }),
        1 => path().prop_map(|path| Op::Fifo { path }),
        2 => (path(), path()).prop_map(|(from, to)| Op::Rename { from, to }),
        1 => path().prop_map(|path| Op::RenameAndBack { path }),
        3 => path().prop_map(|path| Op::Delete { path }),
        5 => (path(), mode).prop_map(|(path, mode)| Op::Mkdir { path, mode }),
        2 => path().prop_map(|path| Op::DeleteAndMkdir { path }),
        1 => path().prop_map(|dir| Op::ComeAndGo { dir }),
    ]
}

/// A step: a RUN, or a COPY (whose delta is laid on top).
#[derive(Clone, Debug)]
struct Step {
    copy: bool,
    ops: Vec<Op>,
}

fn step() -> impl Strategy<Value = Step> {
    (prop::bool::weighted(0.3), prop::collection::vec(op(), 1..14)).prop_map(|(copy, ops)| Step { copy, ops })
}

/// Does what the model allows of a step to the model. Gives what was done, each with the model before and after.
fn plan(model: &mut Model, step: &Step) -> Vec<(Op, Model, Model)> {
    let mut done = Vec::new();
    for op in step.ops.iter().filter(|op| !matches!(op, Op::Delete { path } if path.is_empty())) {
        if model.allows(op) && (!step.copy || model.allows_in_delta(op)) {
            let before = model.clone();
            model.apply(op);
            done.push((op.clone(), before, model.clone()));
        }
    }
    done
}

/// Builds a delta of `planned` and lays it on the tree. Gives the layer.
fn copy(bench: &mut Bench, planned: &[(Op, Model, Model)]) -> Layer {
    let below = bench.snapshotter.view(0).unwrap();
    let mut builder = DeltaBuilder::new(&bench.dir.path().join("delta"), &*below).unwrap();
    for (op, _, after) in planned {
        build(&mut builder, op, after);
        assert_eq!(shown(&builder), after.lines(), "the builder as a view after {op:?}");
    }
    let delta = builder.finish().unwrap();
    let layer = Layer::write(&mut *delta.changes(below).unwrap());
    bench.snapshotter.apply(0, delta).unwrap();
    layer
}

/// Runs `steps` on a rung, the first of them as the base image, and checks the outcome of each. Gives the layers.
fn run(rung: Rung, steps: &[Step]) -> Vec<Layer> {
    let mut bench = Bench::new(rung);
    let (base, stacked) = (bench.fresh("base"), bench.fresh("stacked"));
    let mut model = Model::default();
    for (op, before, _) in plan(&mut model, &Step { copy: false, ops: steps[0].ops.clone() }) {
        perform(&base, &op, &before);
    }
    model.commit();
    let base = Layer::of(&base);
    bench.base(0, std::slice::from_ref(&base));
    base.extract(&stacked, Whiteouts::Apply);
    let mut layers = vec![base];
    for step in &steps[1..] {
        let before = model.clone();
        let planned = plan(&mut model, step);
        let what: Vec<&Op> = planned.iter().map(|(op, ..)| op).collect();
        let layer = if step.copy {
            copy(&mut bench, &planned)
        } else {
            bench.run(0, |root| planned.iter().for_each(|(op, before, _)| perform(root, op, before)))
        };
        layer.extract(&stacked, Whiteouts::Apply);
        assert_eq!(lines_of(&view_of(&stacked)), model.lines(), "{rung:?}: layers stacked after {what:?}");
        let view = bench.snapshotter.view(0).unwrap();
        assert_eq!(shown(&*view), model.lines(), "{rung:?}: the view after {what:?}");
        if before.lines() == model.lines() && !step.copy {
            assert_eq!(layer.names(), Vec::<String>::new(), "{rung:?}: nothing changed in {what:?}");
        }
        model.commit();
        layers.push(layer);
    }
    layers
}

/// What a view shows but for what the bench's own root holds: an ignored directory, and one that was empty.
fn shown(view: &dyn View) -> Vec<String> {
    let own = |line: &String| line.starts_with("/proc") || line.starts_with("/etc ");
    lines_of(view).into_iter().filter(|line| !own(line)).collect()
}

/// All that can be seen of a tree, the times of directories too.
fn exactly(view: &dyn View) -> Vec<String> {
    let mut lines = lines_of(view);
    let mut waiting = vec![TreePath::root()];
    while let Some(path) = waiting.pop() {
        let meta = view.stat(&path).unwrap().unwrap();
        lines.push(format!("{path} {:?}", meta.mtime));
        if meta.is_dir() {
            waiting.extend(view.list(&path).unwrap().iter().map(|name| path.join(name)));
        }
    }
    lines
}

/// Lets stage after stage begin where stage 0 ended, each with steps of its own, on the rung that has one tree.
fn begin_again(base: &Step, first: &Step, others: &[Step]) {
    let mut bench = Bench::new(Rung::Host);
    let directory = bench.fresh("base");
    let mut model = Model::default();
    for (op, before, _) in plan(&mut model, base) {
        perform(&directory, &op, &before);
    }
    model.commit();
    bench.base(0, &[Layer::of(&directory)]);
    let planned = plan(&mut model, first);
    bench.run(0, |root| planned.iter().for_each(|(op, before, _)| perform(root, op, before)));
    model.commit();
    bench.snapshotter.leave(0, &[TreePath::root()]).unwrap();
    let was = exactly(&*bench.snapshotter.view(0).unwrap());
    for (number, step) in others.iter().enumerate() {
        let stage = number + 1;
        bench.snapshotter.fork(stage, 0).unwrap();
        assert_eq!(exactly(&*bench.snapshotter.view(stage).unwrap()), was, "stage {stage}");
        let mut model = model.clone();
        let planned = plan(&mut model, step);
        bench.run(stage, |root| planned.iter().for_each(|(op, before, _)| perform(root, op, before)));
        let shown = shown(&*bench.snapshotter.view(stage).unwrap());
        assert_eq!(shown, model.lines(), "stage {stage} after {planned:?}");
        bench.snapshotter.leave(stage, &[]).unwrap();
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, max_shrink_iters: 400, ..ProptestConfig::default() })]

    #[test]
    fn a_stage_that_begins_where_another_ended_finds_that_tree(
        base in step(), first in step(), others in prop::collection::vec(step(), 3..5),
    ) {
        begin_again(&base, &first, &others);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, max_shrink_iters: 400, ..ProptestConfig::default() })]

    #[test]
    fn stacked_layers_equal_the_tree_and_are_the_same_on_every_rung(
        steps in prop::collection::vec(step(), 2..5),
    ) {
        let mut digests: BTreeMap<Vec<String>, Vec<Rung>> = BTreeMap::new();
        let mut names = Vec::new();
        for rung in rungs() {
            let layers = run(rung, &steps);
            names.push((rung, layers.iter().map(Layer::names).collect::<Vec<_>>()));
            let all = layers.iter().map(|layer| layer.blob.digest.to_string()).collect();
            digests.entry(all).or_default().push(rung);
        }
        prop_assert!(digests.len() == 1, "layers differ between rungs: {digests:#?} {names:#?}");
    }
}
