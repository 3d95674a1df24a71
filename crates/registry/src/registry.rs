//! The registry as its callers see it: a cheap handle on shared connections, tokens and limits.

use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use kiln_oci::Repository;
use oci_client::RegistryOperation;
use tokio::time::Instant;

use crate::bearer::Scope;
use crate::options::RegistryOptions;
use crate::retry::Tries;
use crate::route::{Direction, Place, places};
use crate::transport::Transport;
use crate::{Event, RegistryError};

/// How long a mirror that didn't answer is passed over.
const MIRROR_REST: Duration = Duration::from_secs(60);

/// All remote registries, as one thing to ask: it knows mirrors, logins and limits. Cheap to clone.
#[derive(Clone)]
pub struct Registry {
    pub(crate) shared: Arc<Shared>,
    reads: Direction,
    queued: bool,
}

pub(crate) struct Shared {
    pub(crate) transport: Transport,
    resting: Mutex<HashMap<String, Instant>>,
}

impl fmt::Debug for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Registry").field("options", &self.shared.transport.options).finish_non_exhaustive()
    }
}

impl Registry {
    /// A registry that works as `options` say. Connects to nothing yet.
    ///
    /// Fails with [`RegistryError::Options`] if a file or an address in the options can't be used.
    pub fn new(options: RegistryOptions) -> Result<Self, RegistryError> {
        let transport = Transport::new(options)?;
        let shared = Arc::new(Shared { transport, resting: Mutex::default() });
        Ok(Self { shared, reads: Direction::Pull, queued: true })
    }

    /// The same registry (connections, tokens and limits shared) for the layer cache: its pulls obey the flags of
    /// pushes (`--insecure`, not `--insecure-pull`) and go to no mirror.
    #[must_use]
    pub fn for_cache(&self) -> Self {
        Self { reads: Direction::Push, ..self.clone() }
    }

    /// The same registry, whose pulls of blobs wait for no turn, each over a connection of its own. For bytes that are
    /// handed on while they arrive: an upload has its turn already, and of two that wait for each other at one registry
    /// neither would get on; and what nobody reads for a while fills a connection that HTTP/2 would share.
    #[must_use]
    pub fn unqueued(&self) -> Self {
        Self { queued: false, ..self.clone() }
    }

    pub(crate) fn is_queued(&self) -> bool {
        self.queued
    }

    pub(crate) fn transport(&self) -> &Transport {
        &self.shared.transport
    }

    pub(crate) fn tries(&self, allowed: u32) -> Tries<'_> {
        let options = &self.transport().options;
        Tries::new(&options.retries, allowed, options.observer.as_deref().unwrap_or(&ignore))
    }

    /// The places to pull `repository` from.
    pub(crate) fn walk(&self, repository: &Repository) -> Walk<'_> {
        let mirrors = &self.transport().options.mirrors;
        let all = match self.reads {
            Direction::Pull => places(repository, mirrors),
            Direction::Push => vec![Place::origin(repository, Direction::Push)],
        };
        let no_fallback = all.last().is_some_and(|place| place.mirror_of.is_some());
        Walk { registry: self, places: all, next: 0, tried: Vec::new(), no_fallback }
    }
}

fn ignore(_: Event) {}

/// The scope for `operation` on `path`.
pub(crate) fn scope(path: &str, operation: RegistryOperation) -> BTreeSet<Scope> {
    BTreeSet::from([Scope { repository: path.to_owned(), operation }])
}

/// Goes from place to place until one serves.
pub(crate) struct Walk<'a> {
    registry: &'a Registry,
    places: Vec<Place>,
    next: usize,
    tried: Vec<RegistryError>,
    no_fallback: bool,
}

impl Walk<'_> {
    /// The next place to ask, and how often to try it again.
    pub(crate) fn next(&mut self) -> Option<(Place, u32)> {
        let most = self.registry.transport().options.retries.pull;
        loop {
            let place = self.places.get(self.next)?.clone();
            self.next += 1;
            let last = self.next == self.places.len();
            if !last && self.rests(&place.host) {
                continue;
            }
            // While there is somewhere else to go, patience is shorter.
            return Some((place, if last { most } else { most.min(1) }));
        }
    }

    fn rests(&self, host: &str) -> bool {
        let resting = self.registry.shared.resting.lock().unwrap_or_else(PoisonError::into_inner);
        resting.get(host).is_some_and(|until| Instant::now() < *until)
    }

    /// Takes note that `place` failed.
    pub(crate) fn failed(&mut self, place: &Place, error: RegistryError) {
        let transport = self.registry.transport();
        if let Some(next) = self.places.get(self.next) {
            if error.is_unreachable() {
                let until = Instant::now() + MIRROR_REST;
                let mut resting = self.registry.shared.resting.lock().unwrap_or_else(PoisonError::into_inner);
                resting.insert(place.host.clone(), until);
            }
            transport.observe(Event::FallingBack {
                from: place.host.clone(),
                to: next.host.clone(),
                why: error.to_string(),
            });
        }
        self.tried.push(error);
    }

    /// The error of all places together.
    pub(crate) fn finish(mut self) -> RegistryError {
        match self.tried.pop() {
            Some(only) if self.tried.is_empty() && !self.no_fallback => only,
            last => {
                self.tried.extend(last);
                RegistryError::Everywhere { tried: self.tried, no_fallback: self.no_fallback }
            }
        }
    }
}
