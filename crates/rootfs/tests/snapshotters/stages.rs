//! Bases, forks, deltas and cached layers: how the tree of a stage comes about.

use std::fs;
use std::io::{Cursor, Read as _};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::Path;
use std::sync::Arc;

use kiln_rootfs::{BaseLayer, DeltaBuilder, HostSnapshotter, Snapshotter as _, TreePath, View, Whiteouts};

use crate::bench::{Bench, Layer, Rung, options, rungs, view_of};
use crate::cases::small_base;
use crate::model::{lines_of, set_mtime};

fn text(view: &dyn View, path: &str) -> String {
    let mut text = String::new();
    view.open(&path.into()).unwrap().read_to_string(&mut text).unwrap();
    text
}

fn view(bench: &Bench, stage: usize) -> Arc<dyn View> {
    bench.snapshotter.view(stage).unwrap()
}

#[test]
fn a_layer_may_occur_twice_in_one_image() {
    let (_dir, base) = small_base();
    let other = tempfile::tempdir().unwrap();
    fs::create_dir(other.path().join("etc")).unwrap();
    fs::write(other.path().join("etc/motd"), "other").unwrap();
    let other = Layer::of(other.path());
    for rung in rungs() {
        let mut bench = Bench::new(rung);
        bench.base(0, &[base.clone(), other.clone(), base.clone()]);
        assert_eq!(text(&*view(&bench, 0), "etc/motd"), "hello", "{rung:?}");
        let layer = bench.run(0, |root| assert_eq!(fs::read(root.join("etc/motd")).unwrap(), b"hello"));
        assert_eq!(layer.names(), Vec::<String>::new(), "{rung:?}");
        bench.base(1, &[base.clone(), other.clone()]);
        assert_eq!(text(&*view(&bench, 1), "etc/motd"), "other", "{rung:?}");
    }
}

#[test]
fn an_image_without_layers_is_an_empty_tree() {
    for rung in rungs() {
        let mut bench = Bench::new(rung);
        bench.base(0, &[]);
        let layer = bench.run(0, |root| {
            fs::write(root.join("first"), "1").unwrap();
            set_mtime(&root.join("first"), 1);
        });
        assert_eq!(layer.names(), ["first"], "{rung:?}");
    }
}

#[test]
fn the_root_looks_as_the_topmost_layer_says_that_says_anything() {
    let base = tempfile::tempdir().unwrap();
    fs::set_permissions(base.path(), fs::Permissions::from_mode(0o711)).unwrap();
    set_mtime(base.path(), 5);
    let base = Layer::of(base.path());
    assert_eq!(base.names(), ["."]);
    let (_dir, plain) = {
        // A layer without an entry for the root.
        let mut bench = Bench::new(Rung::Directory);
        bench.base(0, &[]);
        let layer = bench.run(0, |root| fs::write(root.join("x"), "x").unwrap());
        assert_eq!(layer.names(), ["x"]);
        (bench, layer)
    };
    for rung in rungs() {
        let mut bench = Bench::new(rung);
        bench.base(0, &[base.clone(), plain.clone()]);
        let layer = bench.run(0, |root| assert_eq!(fs::metadata(root).unwrap().mode() & 0o7777, 0o711));
        assert_eq!(layer.names(), Vec::<String>::new(), "{rung:?}");
        let meta = view(&bench, 0).stat(&TreePath::root()).unwrap().unwrap();
        assert_eq!(meta.mode, 0o711, "{rung:?}");
    }
}

#[test]
fn an_unpacked_layer_is_used_where_it_lies_and_never_written_to() {
    let (_dir, base) = small_base();
    let volume = tempfile::tempdir().unwrap();
    base.extract(volume.path(), Whiteouts::ToOverlay);
    let before = lines_of(&view_of(volume.path()));
    let (diff_id, path) = (base.blob.diff_id, volume.path().to_owned());
    for rung in rungs() {
        let mut bench = Bench::new(rung);
        let layer = BaseLayer::Unpacked { diff_id, path: path.clone() };
        bench.snapshotter.base(0, &[layer]).unwrap();
        let layer = bench.run(0, |root| {
            fs::write(root.join("etc/motd"), "HELLO").unwrap();
            set_mtime(&root.join("etc/motd"), 1000);
            fs::remove_dir_all(root.join("usr")).unwrap();
        });
        assert_eq!(layer.names(), ["etc", "etc/motd", ".wh.usr"], "{rung:?}");
        assert_eq!(lines_of(&view_of(volume.path())), before, "{rung:?}");
    }
}

#[test]
fn a_fork_goes_its_own_way() {
    let (_dir, base) = small_base();
    for rung in rungs() {
        let mut bench = Bench::new(rung);
        bench.base(0, std::slice::from_ref(&base));
        bench.run(0, |root| fs::write(root.join("etc/motd"), "stage 0").unwrap());
        bench.snapshotter.leave(0, &[TreePath::root()]).unwrap();
        bench.snapshotter.fork(1, 0).unwrap();
        let layer = bench.run(1, |root| {
            fs::write(root.join("etc/only"), "stage 1").unwrap();
            // Left as it was, though its inode may be another one than in stage 0.
            fs::set_permissions(root.join("etc/motd"), fs::Permissions::from_mode(0o600)).unwrap();
            fs::set_permissions(root.join("etc/motd"), fs::Permissions::from_mode(0o644)).unwrap();
        });
        assert_eq!(layer.names(), ["etc", "etc/only"], "{rung:?}");
        assert_eq!(text(&*view(&bench, 1), "etc/motd"), "stage 0", "{rung:?}");
        assert!(view(&bench, 0).stat(&"etc/only".into()).unwrap().is_none(), "{rung:?}");
        bench.snapshotter.leave(1, &[]).unwrap();
        bench.snapshotter.fork(2, 0).unwrap();
        let layer = bench.run(2, |root| assert!(!root.join("etc/only").exists()));
        assert_eq!(layer.names(), Vec::<String>::new(), "{rung:?}");
    }
}

#[test]
fn a_stage_that_begins_where_another_ended_gets_back_what_was_touched_and_no_more() {
    let (_dir, base) = small_base();
    let mut bench = Bench::new(Rung::Host);
    bench.base(0, std::slice::from_ref(&base));
    bench.run(0, |root| {
        for name in ["left alone", "rewritten", "one name", "secretly rewritten"] {
            fs::write(root.join(name), "1").unwrap();
            set_mtime(&root.join(name), 7);
        }
        fs::hard_link(root.join("one name"), root.join("other name")).unwrap();
    });
    bench.snapshotter.leave(0, &[TreePath::root()]).unwrap();
    let root = bench.dir.path().join("root");
    let inode = |name: &str| fs::metadata(root.join(name)).unwrap().ino();
    let (left, shared) = (inode("left alone"), inode("one name"));
    // A file that is open keeps its inode number from the copies that take its place.
    let _held = ["left alone", "one name"].map(|name| fs::File::open(root.join(name)).unwrap());
    let spoil = |root: &Path| {
        fs::write(root.join("rewritten"), "2").unwrap();
        // The same length, and the old time given back.
        fs::write(root.join("secretly rewritten"), "2").unwrap();
        set_mtime(&root.join("secretly rewritten"), 7);
        fs::write(root.join("other name"), "2").unwrap();
        fs::remove_file(root.join("etc/motd")).unwrap();
        fs::create_dir_all(root.join("etc/motd/is a directory now")).unwrap();
        fs::write(root.join("new"), "2").unwrap();
    };
    for stage in 1..4 {
        bench.snapshotter.fork(stage, 0).unwrap();
        for name in ["left alone", "rewritten", "one name", "other name", "secretly rewritten"] {
            assert_eq!(fs::read(root.join(name)).unwrap(), b"1", "stage {stage}, {name}");
        }
        assert_eq!(fs::read(root.join("etc/motd")).unwrap(), b"hello", "stage {stage}");
        assert!(!root.join("new").exists(), "stage {stage}");
        assert_eq!(inode("left alone"), left, "stage {stage}: it was copied");
        assert_eq!(inode("one name"), inode("other name"), "stage {stage}: two files now");
        assert_eq!(inode("one name") == shared, stage == 1, "stage {stage}");
        let layer = bench.run(stage, spoil);
        let mut names = layer.names();
        names.sort();
        assert_eq!(
            names,
            [
                "etc",
                "etc/motd",
                "etc/motd/is a directory now",
                "new",
                "one name",
                "other name",
                "rewritten",
                "secretly rewritten",
            ],
            "stage {stage}"
        );
        bench.snapshotter.leave(stage, &[]).unwrap();
    }
    // What comes from elsewhere in between takes nothing away.
    bench.base(8, &[]);
    bench.snapshotter.leave(8, &[]).unwrap();
    bench.snapshotter.fork(9, 0).unwrap();
    assert_eq!(text(&*view(&bench, 9), "etc/motd"), "hello");
    assert_eq!(text(&*view(&bench, 9), "rewritten"), "1");
}

#[test]
fn what_later_stages_want_outlives_the_stage_with_the_links_that_lead_there() {
    let (_dir, base) = small_base();
    for rung in rungs() {
        let mut bench = Bench::new(rung);
        bench.base(0, std::slice::from_ref(&base));
        bench.run(0, |root| {
            symlink("../lib/sub/../a.so", root.join("etc/link")).unwrap();
            fs::write(root.join("out"), "result").unwrap();
        });
        bench
            .snapshotter
            .leave(0, &["out".into(), "etc/link".into(), "lib/sub".into(), "no/such".into()])
            .unwrap();
        bench.base(1, &[]);
        let old = view(&bench, 0);
        assert_eq!(text(&*old, "out"), "result", "{rung:?}");
        let found = kiln_rootfs::resolve(&*old, &"etc/link".into()).unwrap();
        assert_eq!(found.to_string(), "/usr/lib/a.so", "{rung:?}");
        assert_eq!(text(&*old, "usr/lib/a.so"), "aaaa", "{rung:?}");
        assert_eq!(text(&*old, "usr/lib/sub/b.so"), "bbbb", "{rung:?}");
        let meta = old.stat(&"usr/lib".into()).unwrap().unwrap();
        assert_eq!(meta.mtime.secs, 1000, "{rung:?}");
    }
}

#[test]
fn a_delta_becomes_part_of_the_stage() {
    let (_dir, base) = small_base();
    let mut digests = Vec::new();
    for rung in rungs() {
        let mut bench = Bench::new(rung);
        bench.base(0, std::slice::from_ref(&base));
        let mut layers = Vec::new();
        for round in 0..3 {
            let below = view(&bench, 0);
            let mut builder = DeltaBuilder::new(&bench.dir.path().join("delta"), &*below).unwrap();
            let mut meta = below.stat(&"etc/motd".into()).unwrap().unwrap();
            meta.mtime.secs = 50 + round;
            let content = format!("round {round}");
            builder
                .put_content(&"etc/motd".into(), &mut Cursor::new(content.as_bytes()), &meta, &[])
                .unwrap();
            builder.remove(&"usr/lib".into()).unwrap();
            builder.mkdir_all(&"usr/lib/new".into(), Some((1, 2)), 0o750).unwrap();
            let delta = builder.finish().unwrap();
            layers.push(Layer::write(&mut *delta.changes(Arc::clone(&below)).unwrap()));
            bench.snapshotter.apply(0, delta).unwrap();
            assert_eq!(text(&*view(&bench, 0), "etc/motd"), content, "{rung:?}");
            // What a delta brought is no change of the step that follows.
            let layer = bench.run(0, |root| {
                assert_eq!(fs::read_to_string(root.join("etc/motd")).unwrap(), content);
                assert!(!root.join("usr/lib/a.so").exists());
            });
            assert_eq!(layer.names(), Vec::<String>::new(), "{rung:?}");
        }
        assert_eq!(
            layers[0].names(),
            ["etc", "etc/motd", "usr", "usr/lib", "usr/lib/.wh.a.so", "usr/lib/new", "usr/lib/.wh.sub"],
            "{rung:?}"
        );
        digests.push(layers.into_iter().map(|layer| layer.blob.digest).collect::<Vec<_>>());
    }
    digests.dedup();
    assert_eq!(digests.len(), 1, "{digests:#?}");
}

#[test]
fn a_cached_layer_becomes_part_of_the_stage() {
    let (_dir, base) = small_base();
    let cached = {
        let mut bench = Bench::new(Rung::Overlay);
        bench.base(0, std::slice::from_ref(&base));
        bench.run(0, |root| {
            fs::write(root.join("etc/cached"), "yes").unwrap();
            fs::remove_dir_all(root.join("usr/lib/sub")).unwrap();
        })
    };
    for rung in rungs() {
        let mut bench = Bench::new(rung);
        bench.base(0, std::slice::from_ref(&base));
        bench.run(0, |root| fs::write(root.join("before"), "b").unwrap());
        bench.snapshotter.apply_layer(0, cached.base()).unwrap();
        let layer = bench.run(0, |root| {
            assert!(root.join("etc/cached").exists() && !root.join("usr/lib/sub").exists());
            fs::remove_file(root.join("etc/cached")).unwrap();
        });
        assert_eq!(layer.names(), ["etc", "etc/.wh.cached"], "{rung:?}");
    }
}

#[test]
fn one_step_can_hold_runs_deltas_and_cached_layers() {
    let (_dir, base) = small_base();
    let mut digests = Vec::new();
    for rung in rungs() {
        let mut bench = Bench::new(rung);
        bench.base(0, std::slice::from_ref(&base));
        bench.write(0, |root| {
            fs::write(root.join("etc/first"), "1").unwrap();
            fs::remove_dir_all(root.join("usr/lib/sub")).unwrap();
            fs::remove_file(root.join("usr/lib/a.so")).unwrap();
        });
        let below = view(&bench, 0);
        let mut builder = DeltaBuilder::new(&bench.dir.path().join("delta"), &*below).unwrap();
        builder.mkdir_all(&"usr/lib/sub/deep".into(), None, 0o755).unwrap();
        builder.remove(&"etc/first".into()).unwrap();
        let delta = builder.finish().unwrap();
        bench.snapshotter.apply(0, delta).unwrap();
        bench.write(0, |root| {
            assert!(root.join("usr/lib/sub/deep").is_dir() && !root.join("usr/lib/sub/b.so").exists());
            fs::write(root.join("last"), "3").unwrap();
        });
        let layer = bench.finish(0);
        let names = ["last", "usr", "usr/lib", "usr/lib/.wh.a.so", "usr/lib/sub", "usr/lib/sub/.wh.b.so"];
        assert_eq!(layer.names(), [&names[..], &["usr/lib/sub/deep"]].concat(), "{rung:?}");
        digests.push(layer.blob.digest);
    }
    digests.dedup();
    assert_eq!(digests.len(), 1);
}

#[test]
fn hard_links_to_files_of_layers_below_are_made() {
    let (_dir, base) = small_base();
    let mut archive = tar::Builder::new(Vec::new());
    for name in ["etc/again", "etc/once more"] {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::Link);
        header.set_size(0);
        header.set_mode(0o644);
        archive.append_link(&mut header, name, "etc/motd").unwrap();
    }
    let bytes = Arc::new(archive.into_inner().unwrap());
    let diff_id = kiln_oci::DiffId::from_digest(&kiln_oci::Digest::of(&bytes)).unwrap();
    for rung in rungs() {
        let mut bench = Bench::new(rung);
        let open = Arc::clone(&bytes);
        let links = BaseLayer::Blob {
            diff_id,
            open: Arc::new(move || Ok(Box::new(Cursor::new(open.to_vec())) as _)),
            compression: kiln_rootfs::Compression::None,
        };
        bench.snapshotter.base(0, &[base.base(), links]).unwrap();
        let layer = bench.run(0, |root| {
            assert_eq!(fs::read(root.join("etc/again")).unwrap(), b"hello");
            let inode = |name: &str| fs::metadata(root.join(name)).unwrap().ino();
            assert_eq!(inode("etc/again"), inode("etc/once more"));
        });
        assert_eq!(layer.names(), Vec::<String>::new(), "{rung:?}");
    }
}

#[test]
fn a_layer_that_is_not_what_its_image_names_is_refused() {
    let (_dir, base) = small_base();
    for rung in rungs() {
        let bench = Bench::new(rung);
        let mut layer = base.base();
        if let BaseLayer::Blob { diff_id, .. } = &mut layer {
            *diff_id = kiln_oci::DiffId([7; 32]);
        }
        let error = bench.snapshotter.base(0, &[layer]).unwrap_err().to_string();
        assert!(error.contains("0707"), "{rung:?}: {error}");
    }
}

#[test]
fn the_host_rung_leaves_alone_what_is_ignored_and_gives_the_tree_back() {
    let (_dir, base) = small_base();
    let dir = tempfile::tempdir().unwrap();
    let (root, scratch) = (dir.path().join("root"), dir.path().join("root/kaniko/scratch"));
    fs::create_dir_all(&scratch).unwrap();
    fs::create_dir_all(root.join("etc")).unwrap();
    for (path, content) in [("etc/hosts", "the pod's"), ("kaniko/executor", "kiln"), ("bin", "sh")] {
        fs::write(root.join(path), content).unwrap();
    }
    let before = lines_of(&view_of(&root));
    let mut options = options();
    for path in ["kaniko", "etc/hosts"] {
        options.ignore.add(path.into());
    }
    let host = HostSnapshotter::new(root.clone(), scratch, options);
    host.preserve().unwrap();
    host.base(0, &[base.base()]).unwrap();
    assert!(!root.join("bin").exists());
    assert_eq!(fs::read(root.join("etc/hosts")).unwrap(), b"the pod's");
    assert_eq!(fs::read(root.join("etc/motd")).unwrap(), b"hello");
    host.begin(0).unwrap();
    fs::write(root.join("etc/hosts"), "changed by the kubelet").unwrap();
    let layer = Layer::write(&mut *host.changes(0).unwrap());
    assert_eq!(layer.names(), Vec::<String>::new());
    host.commit(0).unwrap();
    fs::write(root.join("etc/hosts"), "the pod's").unwrap();
    host.restore().unwrap();
    host.cleanup().unwrap();
    assert_eq!(lines_of(&view_of(&root)), before);
}

#[test]
fn cleaning_up_leaves_nothing_in_the_scratch_directory() {
    let (_dir, base) = small_base();
    for rung in rungs() {
        let mut bench = Bench::new(rung);
        bench.base(0, std::slice::from_ref(&base));
        bench.run(0, |root| fs::write(root.join("x"), "x").unwrap());
        bench.snapshotter.begin(0).unwrap();
        bench.snapshotter.cleanup().unwrap();
        assert_eq!(fs::read_dir(bench.dir.path().join("scratch")).unwrap().count(), 0, "{rung:?}");
        assert!(bench.snapshotter.view(0).is_err(), "{rung:?}");
    }
}

/// A root with what a pod has below /var/run, and an image that has a link there.
fn pod_with_a_token() -> (tempfile::TempDir, HostSnapshotter, Layer) {
    let image = tempfile::tempdir().unwrap();
    fs::create_dir_all(image.path().join("var")).unwrap();
    fs::create_dir_all(image.path().join("run/secrets")).unwrap();
    symlink("/run", image.path().join("var/run")).unwrap();
    fs::write(image.path().join("var/file"), "x").unwrap();
    fs::write(image.path().join("run/secrets/images"), "x").unwrap();
    let image = Layer::of(image.path());
    let dir = tempfile::tempdir().unwrap();
    let (root, scratch) = (dir.path().join("root"), dir.path().join("scratch"));
    fs::create_dir_all(root.join("var/run/secrets/kubernetes.io/token")).unwrap();
    fs::write(root.join("var/run/old"), "").unwrap();
    fs::create_dir_all(&scratch).unwrap();
    let mut options = options();
    options.ignore.add("var/run/secrets/kubernetes.io/token".into());
    let host = HostSnapshotter::new(root, scratch, options);
    (dir, host, image)
}

const TOKEN: &str = "secrets/kubernetes.io/token";

#[test]
fn what_the_pod_has_makes_way_where_the_image_has_a_link() {
    let (dir, host, image) = pod_with_a_token();
    let root = dir.path().join("root");
    host.base(0, &[image.base(), image.base()]).unwrap();
    assert_eq!(fs::read_link(root.join("var/run")).unwrap(), Path::new("/run"));
    assert!(root.join("run").join(TOKEN).is_dir() && !root.join("run/old").exists());
    assert_eq!(fs::read(root.join("run/secrets/images")).unwrap(), b"x");
    assert_eq!(fs::read(root.join("var/file")).unwrap(), b"x");
    host.begin(0).unwrap();
    fs::write(root.join("run/pid"), "1").unwrap();
    fs::write(root.join("run").join(TOKEN).join("new"), "the kubelet's").unwrap();
    let layer = Layer::write(&mut *host.changes(0).unwrap());
    assert_eq!(layer.names(), ["run", "run/pid"]);
    host.commit(0).unwrap();
    // A delta, or a cached layer, that puts something else there, or removes what is above it.
    let delta = |make: &dyn Fn(&mut DeltaBuilder<'_>)| {
        let mut builder = DeltaBuilder::new(&dir.path().join("delta"), &kiln_rootfs::EmptyView).unwrap();
        builder.mkdir_all(&"var".into(), None, 0o755).unwrap();
        make(&mut builder);
        builder.finish().unwrap()
    };
    let meta = kiln_rootfs::Meta::new(kiln_rootfs::Kind::Symlink, 0o777);
    host.apply(0, delta(&|builder| builder.put_symlink(&"var/run".into(), b"/run", &meta, &[]).unwrap()))
        .unwrap();
    let removal = {
        let mut bench = Bench::new(Rung::Directory);
        bench.base(0, std::slice::from_ref(&image));
        bench.run(0, |root| fs::remove_dir_all(root.join("var")).unwrap())
    };
    host.apply_layer(0, removal.base()).unwrap();
    assert!(root.join("run").join(TOKEN).is_dir() && !root.join("var").exists());
    // The next image has no link: the pod's things are where the pod has them.
    let (_other, base) = small_base();
    host.base(1, &[base.base()]).unwrap();
    assert!(root.join("var/run").join(TOKEN).join("new").exists() && !root.join("run").exists());
    host.begin(1).unwrap();
    fs::write(root.join("var/run/pid"), "1").unwrap();
    let layer = Layer::write(&mut *host.changes(1).unwrap());
    assert_eq!(layer.names(), ["var", "var/run", "var/run/pid"]);
}

#[test]
fn a_stage_that_comes_back_makes_way_again() {
    let (dir, host, image) = pod_with_a_token();
    let root = dir.path().join("root");
    let inode = fs::metadata(root.join("var/run/secrets/kubernetes.io")).unwrap().ino();
    host.base(0, &[image.base()]).unwrap();
    host.leave(0, &[TreePath::root()]).unwrap();
    let (_other, base) = small_base();
    host.base(1, &[base.base()]).unwrap();
    host.leave(1, &[]).unwrap();
    host.fork(2, 0).unwrap();
    assert_eq!(fs::read_link(root.join("var/run")).unwrap(), Path::new("/run"));
    host.begin(2).unwrap();
    fs::write(root.join("run/pid"), "1").unwrap();
    let layer = Layer::write(&mut *host.changes(2).unwrap());
    assert_eq!(layer.names(), ["run", "run/pid"]);
    assert!(root.join("run").join(TOKEN).is_dir());
    // A mount could not have been moved by itself.
    let leads_there = root.join("run/secrets/kubernetes.io");
    assert_eq!(fs::metadata(leads_there).unwrap().ino(), inode, "the pod's own directory");
}

#[test]
fn a_directory_of_the_pods_that_can_not_make_way_is_left_out() {
    // The link leads nowhere.
    let image = tempfile::tempdir().unwrap();
    fs::create_dir_all(image.path().join("var")).unwrap();
    symlink("/nowhere", image.path().join("var/run")).unwrap();
    let image = Layer::of(image.path());
    let (dir, host, _) = pod_with_a_token();
    let root = dir.path().join("root");
    host.base(0, &[image.base()]).unwrap();
    assert!(root.join("var/run").join(TOKEN).is_dir());
    host.begin(0).unwrap();
    fs::write(root.join("var/run/pid"), "1").unwrap();
    fs::write(root.join("var/seen"), "1").unwrap();
    let layer = Layer::write(&mut *host.changes(0).unwrap());
    assert_eq!(layer.names(), ["var", "var/seen"]);
}

/// Moves an mtime back a little, as gVisor does when it forgets a file.
fn move_back(path: &Path) {
    let time = fs::metadata(path).unwrap().modified().unwrap() - std::time::Duration::from_micros(60);
    fs::File::options().write(true).open(path).unwrap().set_modified(time).unwrap();
}

#[test]
fn a_time_that_drifts_between_steps_is_no_change_where_inodes_are_not_stable() {
    let (_dir, base) = small_base();
    let dir = tempfile::tempdir().unwrap();
    let (root, scratch) = (dir.path().join("root"), dir.path().join("scratch"));
    fs::create_dir_all(&root).unwrap();
    fs::create_dir_all(&scratch).unwrap();
    let mut options = options();
    options.stable_inodes = false;
    let host = HostSnapshotter::new(root.clone(), scratch, options);
    host.base(0, &[base.base()]).unwrap();
    let step = |work: &dyn Fn()| {
        host.begin(0).unwrap();
        work();
        let layer = Layer::write(&mut *host.changes(0).unwrap());
        host.commit(0).unwrap();
        layer.names()
    };
    let file = root.join("file");
    assert_eq!(step(&|| fs::write(&file, "x").unwrap()), ["file"]);
    move_back(&file);
    // The kernel's clock ticks every few milliseconds.
    std::thread::sleep(std::time::Duration::from_millis(50));
    assert_eq!(step(&|| {}), Vec::<String>::new());
    assert_eq!(step(&|| move_back(&file)), ["file"], "set in a step, it is one");
}
