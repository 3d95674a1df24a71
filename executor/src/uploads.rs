//! What is sent away while later steps run. Tasks begin at once and are awaited at the end of the build; a blob that is
//! wanted in two repositories of one registry is sent to one and mounted from there.

use std::collections::HashMap;
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use kiln_oci::{Digest, Repository};
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::error::BuildError;

/// How far it has come that a blob is in its repository.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Progress {
    /// The registry is asked whether it has the blob.
    Asked,
    /// It has not, and its bytes are wanted.
    Wanted,
    /// The blob is there.
    There,
    /// It could not be sent.
    Failed,
}

type Arrival = watch::Receiver<Progress>;

/// Uploads of one kind. Callable from threads that run no task.
pub(crate) struct Uploads {
    runtime: Handle,
    tasks: Mutex<JoinSet<Result<(), BuildError>>>,
    blobs: Mutex<HashMap<(Repository, Digest), Arrival>>,
}

impl Uploads {
    /// No upload yet; tasks run on `runtime`.
    pub(crate) fn new(runtime: Handle) -> Self {
        Self { runtime, tasks: Mutex::default(), blobs: Mutex::default() }
    }

    /// Begins `work`. Its failure is what [`Uploads::finish`] fails with.
    pub(crate) fn spawn(&self, work: impl Future<Output = Result<(), BuildError>> + Send + 'static) {
        lock(&self.tasks).spawn_on(work, &self.runtime);
    }

    /// Begins to send the blob `digest` to `to` by `work`, unless that was begun before. `work` is told where else at that
    /// registry the blob is, or is on its way to since earlier, and tells when it wants the blob's bytes.
    pub(crate) fn send<W>(&self, to: &Repository, digest: &Digest, work: impl FnOnce(Sending) -> W)
    where
        W: Future<Output = Result<(), BuildError>> + Send + 'static,
    {
        let (told, arrival) = watch::channel(Progress::Asked);
        let elsewhere = {
            let mut blobs = lock(&self.blobs);
            let place = (to.clone(), digest.clone());
            // An upload that was stopped has no sender any more.
            let begun = |known: &Arrival| match *known.borrow() {
                Progress::There => true,
                Progress::Failed => false,
                Progress::Asked | Progress::Wanted => known.has_changed().is_ok(),
            };
            if blobs.get(&place).is_some_and(begun) {
                return;
            }
            // Only those that began before: of two that wait for each other neither would get on.
            let elsewhere = Elsewhere::find(&blobs, to, digest);
            blobs.insert(place, arrival);
            elsewhere
        };
        let told = Arc::new(told);
        let work = work(Sending { elsewhere, progress: Arc::clone(&told) });
        self.spawn(async move {
            let result = work.await;
            told.send_replace(if result.is_ok() { Progress::There } else { Progress::Failed });
            result
        });
    }

    /// Whether the upload of the blob to `to`, if one was begun, wants its bytes. Waits until the registry has said whether
    /// it has them.
    pub(crate) async fn wants_bytes(&self, to: &Repository, digest: &Digest) -> bool {
        let arrival = lock(&self.blobs).get(&(to.clone(), digest.clone())).cloned();
        let Some(mut arrival) = arrival else { return false };
        let known = arrival.wait_for(|progress| *progress != Progress::Asked).await;
        // The sender is gone where the upload was stopped.
        known.is_ok_and(|progress| *progress != Progress::There)
    }

    /// A repository of `to`'s registry, other than `to`, that has the blob; waits for one that it is on its way to.
    pub(crate) async fn elsewhere(&self, to: &Repository, digest: &Digest) -> Option<Repository> {
        let elsewhere = Elsewhere::find(&lock(&self.blobs), to, digest);
        elsewhere.arrived().await
    }

    /// Waits for all uploads, those that begin meanwhile too. Fails with the first failure, and stops the others then.
    pub(crate) async fn finish(&self) -> Result<(), BuildError> {
        loop {
            let mut tasks = std::mem::take(&mut *lock(&self.tasks));
            if tasks.is_empty() {
                return Ok(());
            }
            while let Some(ended) = tasks.join_next().await {
                match ended {
                    Ok(result) => result?,
                    Err(error) => match error.try_into_panic() {
                        Ok(panic) => std::panic::resume_unwind(panic),
                        Err(_) => return Err(BuildError::Cancelled),
                    },
                }
            }
        }
    }

    /// As [`Uploads::finish`], but stops what is not done after `limit`, and gives `false` then.
    pub(crate) async fn finish_within(&self, limit: Duration) -> Result<bool, BuildError> {
        match tokio::time::timeout(limit, self.finish()).await {
            Ok(result) => result.map(|()| true),
            Err(_) => Ok(false),
        }
    }

    /// Stops all uploads: what they were for is not wanted any more.
    pub(crate) fn stop(&self) {
        lock(&self.tasks).abort_all();
    }
}

/// An upload that is under way.
pub(crate) struct Sending {
    /// Where else at that registry the blob is, or is on its way to since earlier.
    pub(crate) elsewhere: Elsewhere,
    progress: Arc<watch::Sender<Progress>>,
}

impl Sending {
    /// Says that the registry has not got the blob.
    pub(crate) fn wants_bytes(&self) {
        self.progress.send_replace(Progress::Wanted);
    }
}

/// The other repositories of a registry that have a blob, or are getting it.
pub(crate) struct Elsewhere(Vec<(Repository, Arrival)>);

impl Elsewhere {
    fn find(blobs: &HashMap<(Repository, Digest), Arrival>, to: &Repository, digest: &Digest) -> Self {
        let others = blobs
            .iter()
            .filter(|((place, blob), _)| blob == digest && place.host() == to.host() && place != to);
        Self(others.map(|((place, _), arrival)| (place.clone(), arrival.clone())).collect())
    }

    /// One that has the blob; waits for those that are getting it.
    pub(crate) async fn arrived(&self) -> Option<Repository> {
        for (place, arrival) in &self.0 {
            let mut arrival = arrival.clone();
            // The sender is gone where the upload was stopped.
            if let Ok(ended) = arrival.wait_for(|now| matches!(now, Progress::There | Progress::Failed)).await
                && *ended == Progress::There
            {
                return Some(place.clone());
            }
        }
        None
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    fn repository(path: &str) -> Repository {
        Repository::new("registry.example", path).unwrap()
    }

    #[tokio::test]
    async fn a_blob_is_sent_to_a_repository_once() {
        let uploads = Uploads::new(Handle::current());
        let (sent, digest) = (Arc::new(AtomicUsize::new(0)), Digest::of(b"layer"));
        for _ in 0..3 {
            let sent = Arc::clone(&sent);
            uploads.send(&repository("a"), &digest, |_| async move {
                sent.fetch_add(1, Ordering::Relaxed);
                Ok(())
            });
        }
        uploads.finish().await.unwrap();
        assert_eq!(sent.load(Ordering::Relaxed), 1);
    }

    #[tokio::test]
    async fn a_blob_that_is_on_its_way_elsewhere_is_waited_for() {
        let uploads = Uploads::new(Handle::current());
        let digest = Digest::of(b"layer");
        uploads.send(&repository("a"), &digest, |_| async {
            tokio::time::sleep(Duration::from_millis(20)).await;
            Ok(())
        });
        assert_eq!(uploads.elsewhere(&repository("b"), &digest).await, Some(repository("a")));
        assert_eq!(uploads.elsewhere(&repository("a"), &digest).await, None);
        assert_eq!(uploads.elsewhere(&repository("b"), &Digest::of(b"other")).await, None);
    }

    #[tokio::test]
    async fn a_blob_that_did_not_arrive_is_not_elsewhere_and_fails_the_rest() {
        let uploads = Uploads::new(Handle::current());
        let digest = Digest::of(b"layer");
        uploads.send(&repository("a"), &digest, |_| async { Err(BuildError::other("no")) });
        assert_eq!(uploads.elsewhere(&repository("b"), &digest).await, None);
        uploads.spawn(std::future::pending());
        assert!(uploads.finish().await.is_err());
    }

    #[tokio::test]
    async fn whoever_begins_later_waits_for_the_earlier_and_never_the_other_way_round() {
        let uploads = Uploads::new(Handle::current());
        let (digest, seen) = (Digest::of(b"layer"), Arc::new(Mutex::new(Vec::new())));
        for name in ["a", "b", "c"] {
            let seen = Arc::clone(&seen);
            uploads.send(&repository(name), &digest, |sending| async move {
                let from = sending.elsewhere.arrived().await;
                lock(&seen).push((name, from.is_some()));
                Ok(())
            });
        }
        uploads.finish().await.unwrap();
        let seen = lock(&seen).clone();
        assert_eq!(seen[0], ("a", false));
        assert!(seen[1..].iter().all(|(_, found)| *found), "{seen:?}");
    }

    #[tokio::test]
    async fn an_upload_wants_bytes_once_the_registry_has_said_that_it_has_none() {
        let uploads = Uploads::new(Handle::current());
        let digest = Digest::of(b"layer");
        let places = ["there", "missing", "broken", "nobodys"].map(repository);
        let (go, gone) = watch::channel(());
        uploads.send(&places[0], &digest, |_| {
            let mut gone = gone.clone();
            async move { gone.changed().await.map_err(BuildError::other) }
        });
        uploads.send(&places[1], &digest, |sending| async move {
            sending.wants_bytes();
            std::future::pending().await
        });
        uploads.send(&places[2], &digest, |_| async { Err(BuildError::other("no")) });
        let asked = async { uploads.wants_bytes(&places[0], &digest).await };
        let answer = async {
            tokio::time::sleep(Duration::from_millis(5)).await;
            go.send(()).unwrap();
        };
        assert!(!tokio::join!(asked, answer).0, "mounted");
        let wants = [true, true, false];
        for (place, wants) in places[1..].iter().zip(wants) {
            assert_eq!(uploads.wants_bytes(place, &digest).await, wants, "{place}");
        }
        uploads.stop();
    }

    #[tokio::test]
    async fn what_takes_too_long_is_stopped() {
        let uploads = Uploads::new(Handle::current());
        uploads.spawn(std::future::pending());
        assert!(!uploads.finish_within(Duration::from_millis(5)).await.unwrap());
    }
}
