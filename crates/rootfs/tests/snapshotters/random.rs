//! Random steps on every snapshotter, checked against the model.

use std::collections::BTreeMap;

use kiln_rootfs::Whiteouts;
use proptest::prelude::*;

use crate::bench::{Bench, Layer, RUNGS, Rung, view_of};
use crate::model::{Model, Op, lines_of, perform};

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

/// Does what the model allows of `ops` to the model, and gives the list of what was done, each with the model before.
fn plan(model: &mut Model, ops: &[Op]) -> Vec<(Op, Model)> {
    let mut done = Vec::new();
    for op in ops.iter().filter(|op| !matches!(op, Op::Delete { path } if path.is_empty())) {
        if model.allows(op) {
            let before = model.clone();
            model.apply(op);
            done.push((op.clone(), before));
        }
    }
    done
}

/// Runs `steps` on a rung, the first of them as the base image, and checks the outcome of each. Gives the layers.
fn run(rung: Rung, steps: &[Vec<Op>]) -> Vec<Layer> {
    let mut bench = Bench::new(rung);
    let (base, stacked) = (bench.fresh("base"), bench.fresh("stacked"));
    let mut model = Model::default();
    for (op, before) in plan(&mut model, &steps[0]) {
        perform(&base, &op, &before);
    }
    model.commit();
    let base = Layer::of(&base);
    bench.base(0, std::slice::from_ref(&base));
    base.extract(&stacked, Whiteouts::Apply);
    let mut layers = vec![base];
    for ops in &steps[1..] {
        let before = model.clone();
        let planned = plan(&mut model, ops);
        let layer = bench.run(0, |root| planned.iter().for_each(|(op, before)| perform(root, op, before)));
        layer.extract(&stacked, Whiteouts::Apply);
        assert_eq!(lines_of(&view_of(&stacked)), model.lines(), "{rung:?}: layers stacked after {planned:?}");
        let view = bench.snapshotter.view(0).unwrap();
        let seen: Vec<String> =
            lines_of(&*view).into_iter().filter(|line| !line.starts_with("/proc")).collect();
        let seen = if rung == Rung::Host { without_etc(seen) } else { seen };
        assert_eq!(seen, model.lines(), "{rung:?}: the view after {planned:?}");
        if before.lines() == model.lines() {
            assert_eq!(layer.names(), Vec::<String>::new(), "{rung:?}: nothing changed in {planned:?}");
        }
        model.commit();
        layers.push(layer);
    }
    layers
}

/// The bench's own root holds an ignored directory; what is above it stays when a base is extracted.
fn without_etc(lines: Vec<String>) -> Vec<String> {
    lines.into_iter().filter(|line| !line.starts_with("/etc ")).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, max_shrink_iters: 400, ..ProptestConfig::default() })]

    #[test]
    fn stacked_layers_equal_the_tree_and_are_the_same_on_every_rung(
        steps in prop::collection::vec(prop::collection::vec(op(), 1..14), 2..5),
    ) {
        let mut digests: BTreeMap<Vec<String>, Vec<Rung>> = BTreeMap::new();
        let mut names = Vec::new();
        for rung in RUNGS {
            let layers = run(rung, &steps);
            names.push((rung, layers.iter().map(Layer::names).collect::<Vec<_>>()));
            let all = layers.iter().map(|layer| layer.blob.digest.to_string()).collect();
            digests.entry(all).or_default().push(rung);
        }
        prop_assert!(digests.len() == 1, "layers differ between rungs: {digests:#?} {names:#?}");
    }
}
