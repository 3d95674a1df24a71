//! A cache registry that is slow, asks for patience, or dies while layers come: the build ends right, whether the layers
//! are wanted for a tree or on their way to another registry.

use std::time::{Duration, Instant};

use kiln_integration::Bench;
use kiln_testkit::{Fault, Route};

use crate::relay::{THREE, push};
use crate::{Remote, reused, warnings};

/// Something new on top: all that is below has to be here.
fn with_a_step(dockerfile: &str) -> String {
    format!("{dockerfile}RUN cat /small > /after; wc -l < /numbers >> /after\n")
}

/// What the last step of [`with_a_step`] wrote, read out of the layer that was pushed.
fn after(remote: &Remote, repository: &str) -> String {
    let (_, raw) = remote.manifest(repository, "1").expect("the image was pushed");
    let manifest: serde_json::Value = serde_json::from_slice(&raw).unwrap();
    let layer =
        manifest["layers"].as_array().unwrap().last().unwrap()["digest"].as_str().unwrap().parse().unwrap();
    let bytes = remote.blob(repository, &layer).expect("the layer was pushed");
    let mut tar = tar::Archive::new(flate2::read::MultiGzDecoder::new(&bytes[..]));
    let mut entries = tar.entries().unwrap();
    let mut entry =
        entries.find(|entry| entry.as_ref().unwrap().path().unwrap().ends_with("after")).unwrap().unwrap();
    std::io::read_to_string(&mut entry).unwrap()
}

#[test]
fn layers_of_a_cache_that_asks_for_patience_are_waited_for() {
    let (bench, one, two) = (Bench::new(), Remote::start(), Remote::start());
    push(&bench, &one, &format!("{}/app:1", one.host()), THREE, &[], None).succeeded();
    let patience = || vec![Fault::RetryAfter(429, 1), Fault::RetryAfter(503, 1), Fault::RetryAfter(429, 1)];
    for (name, text) in [("app", THREE.to_owned()), ("more", with_a_step(THREE))] {
        one.on(Route::Blob, patience());
        let built =
            push(&bench, &one, &format!("{}/{name}:1", two.host()), &text, &["--no-push-cache"], None);
        assert_eq!((reused(built.succeeded()), warnings(&built).len()), (3, 0), "{}", built.log());
    }
    assert_eq!(two.manifest("app", "1"), one.manifest("app", "1"));
    assert_eq!(after(&two, "more"), "small\n500000\n");
}

#[test]
fn a_cache_registry_that_dies_while_layers_come_costs_a_warning() {
    for (name, text) in [("app", THREE.to_owned()), ("more", with_a_step(THREE))] {
        let (bench, mut one, two) = (Bench::new(), Remote::start(), Remote::start());
        push(&bench, &one, &format!("{}/app:1", one.host()), THREE, &[], None).succeeded();
        let first = one.manifest("app", "1");
        // Some layers take seconds; by then it is gone.
        one.always(Route::Blob, Fault::Slow(100_000));
        let (cache, to) = (one.host(), format!("{}/{name}:1", two.host()));
        let built = std::thread::scope(|scope| {
            let building = scope.spawn(|| {
                let flags =
                    ["--image-download-retry=1", "--push-retry=0", &format!("--cache-repo={cache}/cache")];
                push(&bench, &two, &to, &text, &flags, None)
            });
            let began = Instant::now();
            while one.seen().iter().all(|seen| seen.route != Route::Blob)
                && began.elapsed() < Duration::from_secs(20)
            {
                std::thread::sleep(Duration::from_millis(20));
            }
            std::thread::sleep(Duration::from_millis(500));
            one.stop();
            building.join().unwrap()
        });
        built.succeeded();
        assert!((1..=4).contains(&warnings(&built).len()), "{:#?}", warnings(&built));
        if name == "app" {
            assert_eq!(two.manifest("app", "1"), first, "{}", built.log());
        } else {
            assert_eq!(after(&two, "more"), "small\n500000\n");
        }
    }
}

/// A kilobyte a second: what is small is waited for, what is large is made again before its time.
#[test]
fn layers_of_a_slow_cache_are_used_as_far_as_they_come() {
    let (bench, one, two) = (Bench::new(), Remote::start(), Remote::start());
    push(&bench, &one, &format!("{}/app:1", one.host()), THREE, &[], None).succeeded();
    let first = one.manifest("app", "1");
    one.always(Route::Blob, Fault::Slow(1000));
    let began = Instant::now();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let built =
                push(&bench, &one, &format!("{}/app:1", two.host()), THREE, &["--no-push-cache"], None);
            assert_eq!(two.manifest("app", "1"), first, "{}", built.succeeded().log());
            assert!(built.log().contains("too slow to wait for"), "{}", built.log());
        });
        scope.spawn(|| {
            let (bench, text) = (Bench::new(), with_a_step(THREE));
            let built =
                push(&bench, &one, &format!("{}/more:1", two.host()), &text, &["--no-push-cache"], None);
            assert_eq!(after(&two, "more"), "small\n500000\n", "{}", built.succeeded().log());
        });
    });
    assert!(began.elapsed() < Duration::from_secs(90), "{:?}", began.elapsed());
}
