//! Upwards, while a blob is still being written: it is sent as it grows, and gets its digest at the end. One attempt:
//! who needs the blob there sends it in the usual way if this one fails.

use std::collections::BTreeSet;
use std::sync::atomic::Ordering;
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use http::Method;
use http::header::CONTENT_TYPE;
use kiln_oci::{Descriptor, Repository};
use oci_client::RegistryOperation;
use tokio::sync::{mpsc, oneshot};
use url::Url;

use crate::bearer::Scope;
use crate::registry::{Registry, scope};
use crate::retry::Failure;
use crate::route::{Direction, Place};
use crate::transport::{Ask, Pace, Payload, To};
use crate::upload::{OCTETS, location, received};
use crate::{Attempt, Event, RegistryError};

/// A blob that is being written somewhere else.
pub struct GrowingBlob {
    /// Its bytes, in order. The channel is closed after the last ones.
    pub pieces: mpsc::Receiver<Bytes>,
    /// What it became. A sender that is dropped says that it became nothing.
    pub becomes: oneshot::Receiver<Descriptor>,
}

impl Registry {
    /// Whether [`Registry::push_growing`] fits the options: it takes one of several connections for as long as the blob
    /// grows, and sends it in one request.
    pub fn takes_growing(&self) -> bool {
        let options = &self.transport().options;
        options.max_concurrency > 1 && options.chunk_size.is_none()
    }

    /// Sends a blob to `repository` while it grows (OCI distribution-spec 1.1, "Pushing a blob in chunks", with one chunk
    /// whose length nobody knows yet).
    ///
    /// Gives `false` if the blob became nothing, or other bytes arrived than it has: the registry is told to forget them.
    /// Fails as any request does; nothing is repeated.
    pub async fn push_growing(
        &self,
        repository: &Repository,
        blob: GrowingBlob,
    ) -> Result<bool, RegistryError> {
        let place = Place::origin(repository, Direction::Push);
        self.push_growing_once(&place, blob).await.map_err(|failure| failure.error)
    }

    async fn push_growing_once(&self, place: &Place, blob: GrowingBlob) -> Result<bool, Failure> {
        let at = place.attempt("push", format!("a layer of {}/{}", place.host, place.path));
        let scopes = scope(&place.path, RegistryOperation::Push);
        let path = format!("/v2/{}/blobs/uploads/", place.path);
        let ask = Ask::new(Method::POST, To::Path(path), &scopes, &at);
        let answer = self.transport().send(place, ask).await?.success().await?;
        let begun = location(&answer)?
            .ok_or_else(|| Failure::never(answer.protocol("it began an upload and did not say where")))?;
        drop(answer);

        let pace = Arc::new(Pace::default());
        let becomes = Arc::new(OnceLock::new());
        let payload = Payload::Stream {
            body: self.body(blob.pieces, Arc::clone(&pace), Arc::clone(&becomes)),
            length: None,
            pace: Arc::clone(&pace),
        };
        let ask = Ask::new(Method::PATCH, To::Url(begun.clone()), &scopes, &at)
            .header(CONTENT_TYPE, OCTETS)
            .apart()
            .payload(payload);
        let became = async {
            let became = blob.becomes.await.ok();
            became.inspect(|became| drop(becomes.set(became.clone())))
        };
        let (answer, became) = tokio::join!(self.transport().send(place, ask), became);
        let answer = answer?.success().await?;
        let arrived = received(&answer);
        let mut url = location(&answer)?.unwrap_or(begun);
        drop(answer);

        let sent = pace.sent.load(Ordering::Relaxed);
        let whole =
            |became: &Descriptor| became.size == sent && arrived.is_none_or(|arrived| arrived == sent);
        let Some(became) = became.filter(whole) else {
            self.forget(place, url, &scopes, &at).await;
            return Ok(false);
        };
        url.query_pairs_mut().append_pair("digest", &became.digest.to_string());
        let ask = Ask::new(Method::PUT, To::Url(url), &scopes, &at)
            .header(CONTENT_TYPE, OCTETS)
            .commits(became.size);
        self.transport().send(place, ask).await?.success().await?;
        Ok(true)
    }

    /// The pieces as they come. News of them can be told once it is known what they are of.
    fn body(
        &self,
        pieces: mpsc::Receiver<Bytes>,
        pace: Arc<Pace>,
        becomes: Arc<OnceLock<Descriptor>>,
    ) -> reqwest::Body {
        let observer = self.transport().options.observer.clone();
        let body = futures::stream::unfold(pieces, move |mut pieces| {
            let (pace, becomes, observer) = (Arc::clone(&pace), Arc::clone(&becomes), observer.clone());
            async move {
                pace.starving.store(true, Ordering::Relaxed);
                let piece = pieces.recv().await;
                pace.starving.store(false, Ordering::Relaxed);
                let piece = piece?;
                let length = piece.len() as u64;
                let bytes = pace.sent.fetch_add(length, Ordering::Relaxed) + length;
                if let (Some(observer), Some(Descriptor { digest, size, .. })) = (observer, becomes.get()) {
                    observer(Event::Sent { digest: digest.clone(), bytes, of: *size });
                }
                Some((Ok::<_, std::io::Error>(piece), pieces))
            }
        });
        reqwest::Body::wrap_stream(body)
    }

    /// Tells the registry that nothing more will come. It forgets uploads by itself, so a failure means nothing.
    async fn forget(&self, place: &Place, url: Url, scopes: &BTreeSet<Scope>, at: &Attempt) {
        let _ = self.transport().send(place, Ask::new(Method::DELETE, To::Url(url), scopes, at)).await;
    }
}
