//! What all parts of one build share.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock};

use kiln_attest::Material;
use kiln_cache::{BuildRecord, Images, LayerSource, StepCache};
use kiln_context::{
    Access, ContextView, Fetched, Item, Parts, Selector, SteadyView, digest, digest_parts, fetch, select,
};
use kiln_dockerfile::{Diagnostic, Ignore, Source, Span};
use kiln_oci::Digest;
use kiln_plan::{ContentOf, ContentQuestion, Hit, Hits, StepKey, StepKeys};
use kiln_registry::Registry;
use kiln_rootfs::{DirectoryView, View};
use kiln_sandbox::Cancel;
use kiln_store::{Blob, ReadWrite, Store};

use crate::copy::Downloaded;
use crate::error::BuildError;
use crate::event::{Event, Observer};
use crate::image::Layer;
use crate::repository::Repositories;
use crate::request::BuildRequest;
use crate::scratch::Scratch;
use crate::uploads::Uploads;

/// Where the bytes of a layer can be had.
#[derive(Clone, Debug)]
pub(crate) enum LayerOrigin {
    /// A base image's.
    Image(LayerSource),
    /// A cached step's.
    Cached(Hit),
    /// Made here: in the scratch store.
    Made,
}

/// One build's surroundings.
pub(crate) struct Session {
    pub(crate) request: BuildRequest,
    pub(crate) registry: Registry,
    pub(crate) on: Observer,
    pub(crate) cancel: Cancel,
    pub(crate) source: Source,
    pub(crate) ignore: Ignore,
    pub(crate) context: Fetched,
    pub(crate) named: HashMap<String, Fetched>,
    pub(crate) access: Access,
    pub(crate) repositories: Repositories,
    pub(crate) images: Images,
    pub(crate) cache: StepCache,
    pub(crate) blobs: Store<ReadWrite>,
    pub(crate) origins: Mutex<HashMap<Digest, LayerOrigin>>,
    /// What was fetched from the web, by its address.
    pub(crate) downloads: tokio::sync::Mutex<HashMap<String, (Downloaded, Digest)>>,
    /// The records of this build, to be put into the cache in the end.
    pub(crate) records: Mutex<Vec<(StepKey, BuildRecord)>>,
    /// The cache mounts that are kept in the layer cache.
    pub(crate) cache_mounts: Mutex<crate::mount_cache::Used>,
    /// Steps whose results are right on this rung only: they stay out of the layer cache.
    pub(crate) unshared: Mutex<HashSet<StepKey>>,
    /// Results of this build's own steps.
    pub(crate) made: Mutex<Hits>,
    pub(crate) runtime: tokio::runtime::Handle,
    /// The image's own blobs, on their way to its destinations.
    pub(crate) uploads: Uploads,
    /// Layers that were sent to a destination while they were written.
    pub(crate) early: crate::early::Early,
    /// Results of steps, on their way to the layer cache.
    pub(crate) cache_uploads: Uploads,
    /// Layers that are being written.
    pub(crate) writing: crate::layers::Gate,
    pub(crate) view: OnceLock<Arc<dyn View>>,
    pub(crate) named_views: Mutex<HashMap<String, Arc<dyn View>>>,
    /// Last: it is removed when all the rest is gone.
    pub(crate) scratch: Scratch,
}

/// More parts of one copy than these are not told apart.
const MOST_PARTS: usize = 128;

/// A tree of files that are there before the build: the context, or a named one.
#[derive(Clone)]
pub(crate) struct ContextTree {
    pub(crate) view: Arc<dyn View>,
    pub(crate) place: String,
}

impl ContextTree {
    /// The digest that answers the planner.
    pub(crate) fn digest(&self, question: &ContentQuestion) -> Result<[u8; 32], BuildError> {
        let items = self.items(question)?;
        digest(self.view.as_ref(), &items).map_err(BuildError::other)
    }

    /// As [`ContextTree::digest`], with the digests of the parts.
    pub(crate) fn digest_parts(
        &self,
        question: &ContentQuestion,
    ) -> Result<([u8; 32], kiln_plan::Parts), BuildError> {
        let items = self.items(question)?;
        let mut parts = Parts::new(MOST_PARTS);
        let digest = digest_parts(self.view.as_ref(), &items, &mut parts).map_err(BuildError::other)?;
        Ok((digest, parts.into_list()))
    }

    fn items(&self, question: &ContentQuestion) -> Result<Vec<Item>, BuildError> {
        let selector = Selector {
            words: question.words.clone(),
            parents: question.parents,
            excludes: question.excludes.clone(),
            place: self.place.clone(),
        };
        select(self.view.as_ref(), &selector).map_err(BuildError::other)
    }
}

impl Session {
    /// Tells the observer.
    pub(crate) fn tell(&self, event: Event) {
        (self.on)(event);
    }

    /// The Dockerfile's errors, for showing.
    pub(crate) fn wrong(&self, errors: Vec<Diagnostic>) -> BuildError {
        BuildError::Dockerfile { source_text: Box::new(self.source.clone()), errors }
    }

    /// An error of the instruction at `span`.
    pub(crate) fn at(&self, span: Span, cause: impl Into<String>, hint: Option<String>) -> BuildError {
        let instruction = self
            .source
            .text
            .get(span.start as usize..span.end as usize)
            .and_then(|text| text.lines().next())
            .unwrap_or_default();
        BuildError::Step {
            source_text: Box::new(self.source.clone()),
            line: self.source.line_col(span.start).0,
            span,
            instruction: instruction.trim_end_matches('\\').trim().to_owned(),
            cause: cause.into(),
            hint,
        }
    }

    /// Fails if the build was told to stop.
    pub(crate) fn check_cancelled(&self) -> Result<(), BuildError> {
        if self.cancel.is_cancelled() { Err(BuildError::Cancelled) } else { Ok(()) }
    }

    /// Stops what still runs: the build has failed.
    pub(crate) fn cancel_rest(&self) {
        self.cancel.cancel();
    }

    /// The context or a named context, as COPY sees it.
    pub(crate) fn context_tree(&self, of: &ContentOf) -> Result<ContextTree, BuildError> {
        if let ContentOf::Named(name) = of {
            self.named_tree(name)
        } else {
            if let Some(view) = self.view.get() {
                return Ok(ContextTree { view: Arc::clone(view), place: "the build context".to_owned() });
            }
            let plain = DirectoryView::open(&self.context.root).map_err(BuildError::other)?;
            let view = Arc::new(ContextView::new(Arc::new(plain), self.ignore.clone()));
            let view = self.view.get_or_init(|| Arc::new(SteadyView::new(view)));
            Ok(ContextTree { view: Arc::clone(view), place: "the build context".to_owned() })
        }
    }

    pub(crate) fn named_tree(&self, name: &str) -> Result<ContextTree, BuildError> {
        let place = format!("the named context {name}");
        let mut views = self.named_views.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some(view) = views.get(name) {
            return Ok(ContextTree { view: Arc::clone(view), place });
        }
        let fetched = self
            .named
            .get(name)
            .ok_or_else(|| BuildError::other(format!("there is no --build-context {name}")))?;
        let plain = DirectoryView::open(&fetched.root).map_err(BuildError::other)?;
        let ignore = read_ignore(&fetched.root.join(".dockerignore"))?.unwrap_or_default();
        let view = Arc::new(ContextView::new(Arc::new(plain), ignore));
        let view: Arc<dyn View> = Arc::new(SteadyView::new(view));
        views.insert(name.to_owned(), Arc::clone(&view));
        Ok(ContextTree { view, place })
    }

    /// Remembers where a layer's bytes are.
    pub(crate) fn remember(&self, digest: &Digest, origin: LayerOrigin) {
        let mut origins = self.origins.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        origins.entry(digest.clone()).or_insert(origin);
    }

    /// Where a layer's bytes are.
    pub(crate) fn origin(&self, digest: &Digest) -> LayerOrigin {
        let origins = self.origins.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        origins.get(digest).cloned().unwrap_or(LayerOrigin::Made)
    }

    /// Brings the layer of a hit to this machine.
    pub(crate) async fn bring(&self, hit: &Hit) -> Result<Blob, BuildError> {
        let on = |done| {
            let (digest, of) = (hit.digest.clone(), hit.size);
            self.tell(Event::Transfer { digest, upload: false, done, of });
        };
        let blob = self.cache.fetch(hit, &self.blobs, &on).await;
        blob.ok_or_else(|| BuildError::Lost { digest: hit.digest.clone() })
    }

    /// Notes what a step came to, in case that the build is planned again, and for other platforms.
    pub(crate) fn note_made(&self, keys: &StepKeys, layer: &Layer) {
        if !self.request.cache.enabled && self.request.platforms.len() == 1 {
            return;
        }
        let mut made = self.made.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        made.extend(keys.all().map(|key| {
            let hit = Hit {
                key,
                digest: layer.descriptor.digest.clone(),
                diff_id: layer.diff_id,
                size: layer.descriptor.size,
                media_type: layer.descriptor.media_type.clone(),
                origin: "this build".to_owned(),
                created: self.request.now,
            };
            (key, hit)
        }));
    }

    /// What this build made so far, as hits.
    pub(crate) fn made(&self) -> Hits {
        self.made.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone()
    }

    /// What came from elsewhere, for provenance: files of the web, repositories, the context, and those of the named ones
    /// that were read. A login in an address is not told.
    pub(crate) async fn materials(&self, named: &BTreeSet<String>) -> Vec<Material> {
        let downloads = self.downloads.lock().await;
        let material = |(url, (_, digest)): (&String, &(Downloaded, Digest))| {
            let uri = crate::attest::remote_address(url).unwrap_or_else(|| "an address".to_owned());
            let (algorithm, digest) = (digest.algorithm().name().to_owned(), digest.hex());
            Material { uri, algorithm, digest }
        };
        let read = named.iter().filter_map(|name| self.named.get(name));
        let contexts = std::iter::once(&self.context).chain(read);
        let pins = contexts.filter_map(|context| context.pin.clone()).chain(self.repositories.pins());
        let pinned = pins.map(|pin| crate::attest::material(&pin));
        downloads.iter().map(material).chain(pinned).collect()
    }

    /// A new directory below the scratch directory.
    pub(crate) fn directory(&self, name: &str) -> Result<PathBuf, BuildError> {
        self.scratch.directory(name).map_err(BuildError::other)
    }
}

/// The patterns of an ignore file; `None` if it isn't there.
pub(crate) fn read_ignore(path: &Path) -> Result<Option<Ignore>, BuildError> {
    let Ok(bytes) = std::fs::read(path) else { return Ok(None) };
    let ignore = Ignore::parse(&String::from_utf8_lossy(&bytes));
    ignore.map(Some).map_err(|bad| BuildError::other(format!("{}: {bad}", path.display())))
}

/// Fails unless files can be given to anybody, which takes user 0: it is asked for before any file is made.
pub(crate) fn check_user() -> Result<(), BuildError> {
    let user = rustix::process::geteuid();
    if user.is_root() {
        return Ok(());
    }
    Err(BuildError::other(format!(
        "Kiln runs as user {}, who can't make files of the owners that an image has: set \
         securityContext.runAsUser: 0 for the container. It takes no privilege and no capability beyond a pod's \
         default ones; with hostUsers: false, user 0 of the pod is nobody on the node",
        user.as_raw()
    )))
}

/// Gets the context and the named contexts.
pub(crate) fn fetch_contexts(
    request: &BuildRequest,
    scratch: &Scratch,
    access: &Access,
) -> Result<(Fetched, HashMap<String, Fetched>), BuildError> {
    let context = fetch(&request.context, &scratch.directory("context").map_err(BuildError::other)?, access)
        .map_err(BuildError::other)?;
    let mut named = HashMap::new();
    for (number, (name, place)) in request.named_contexts.iter().enumerate() {
        let directory = scratch.directory(&format!("context-{number}")).map_err(BuildError::other)?;
        named.insert(name.clone(), fetch(place, &directory, access).map_err(BuildError::other)?);
    }
    Ok((context, named))
}
