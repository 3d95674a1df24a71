//! The crate's behaviour against loopback registries that do wrong what a script says.

#![expect(clippy::unwrap_used, reason = "a test that can't go on may panic")]

mod auth;
mod faults;
mod fetch;
mod growing;
mod mirrors;
mod parts;
mod proxies;
mod pull;
mod push;
mod redirects;
mod referrers;
mod tls;
mod tokens;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use kiln_oci::{Reference, Repository};
use kiln_registry::{Event, Registry, RegistryOptions, RetryPolicy};
use kiln_testkit::{LayerBuilder, TestImage, TestRegistry, image};

/// Retries without waiting, and a short patience.
fn quick() -> RetryPolicy {
    RetryPolicy {
        base: Duration::from_millis(1),
        stall: Duration::from_millis(500),
        ..RetryPolicy::default()
    }
}

fn options() -> RegistryOptions {
    RegistryOptions { retries: quick(), ..RegistryOptions::default() }
}

fn registry() -> Registry {
    Registry::new(options()).unwrap()
}

/// A registry whose events are kept.
fn observed(mut options: RegistryOptions) -> (Registry, Arc<Mutex<Vec<Event>>>) {
    let events: Arc<Mutex<Vec<Event>>> = Arc::default();
    let sink = Arc::clone(&events);
    options.observer = Some(Arc::new(move |event| sink.lock().unwrap().push(event)));
    (Registry::new(options).unwrap(), events)
}

fn repository(server: &TestRegistry, path: &str) -> Repository {
    Repository::new(&server.host(), path).unwrap()
}

fn reference(server: &TestRegistry, name: &str) -> Reference {
    format!("{}/{name}", server.host()).parse().unwrap()
}

fn small_image() -> TestImage {
    let layer = LayerBuilder::from_text("/etc dir 0755 0:0\n/etc/issue file 0644 0:0 \"Kiln\"").build();
    image(vec![layer], &serde_json::json!({ "Env": ["A=b"] }))
}

/// Bytes that don't repeat soon.
fn bytes(size: usize) -> Vec<u8> {
    let mut state = 1_u64;
    (0..size)
        .map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 56) as u8
        })
        .collect()
}
