//! The layers of a stage: those that are there, and those that are still being written while later steps run.

use std::io::{self, Write};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;

use kiln_oci::Descriptor;
use kiln_plan::{Op, Step};
use kiln_rootfs::{Change, ChangeSource, LayerOptions, RootfsError, TreePath, Xattrs, write_layer};

use crate::early::{Ahead, Followed};
use crate::error::BuildError;
use crate::image::{ImageFormat, Layer};
use crate::session::{LayerOrigin, Session};

/// How many layers are written at a time, in all stages together: each has buffers, and all processors at work.
const AT_A_TIME: usize = 2;

/// A stage's layers, base first.
#[derive(Default)]
pub(crate) struct StageLayers {
    slots: Vec<Slot>,
}

enum Slot {
    There(Box<Layer>),
    Coming(JoinHandle<Result<Layer, BuildError>>),
    /// It could not be written, and whoever asked first was told why.
    Failed,
}

impl StageLayers {
    /// Layers that are there.
    pub(crate) fn new(layers: Vec<Layer>) -> Self {
        Self { slots: layers.into_iter().map(|layer| Slot::There(Box::new(layer))).collect() }
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.slots.len()
    }

    /// Adds a layer on top.
    pub(crate) fn push(&mut self, layer: Layer) {
        self.slots.push(Slot::There(Box::new(layer)));
    }

    /// Adds the layer that `write` writes in a thread of its own.
    pub(crate) fn begin(
        &mut self,
        write: impl FnOnce() -> Result<Layer, BuildError> + Send + 'static,
    ) -> Result<(), BuildError> {
        let thread = std::thread::Builder::new().name("write layer".to_owned()).spawn(write);
        self.slots.push(Slot::Coming(thread.map_err(BuildError::other)?));
        Ok(())
    }

    /// Fails if a layer could not be written, as far as that is known.
    pub(crate) fn check(&mut self) -> Result<(), BuildError> {
        for slot in &mut self.slots {
            if matches!(slot, Slot::Coming(thread) if thread.is_finished()) {
                slot.wait()?;
            }
        }
        Ok(())
    }

    /// The `count` lowest layers, once they are written.
    pub(crate) fn lowest(&mut self, count: usize) -> Result<Vec<Layer>, BuildError> {
        self.slots.iter_mut().take(count).map(Slot::wait).collect()
    }

    /// All layers, once they are written.
    pub(crate) fn finish(mut self) -> Result<Vec<Layer>, BuildError> {
        self.lowest(self.len())
    }
}

impl Slot {
    fn wait(&mut self) -> Result<Layer, BuildError> {
        let layer = match std::mem::replace(self, Self::Failed) {
            Self::There(layer) => *layer,
            Self::Failed => return Err(BuildError::other("a layer could not be written")),
            Self::Coming(thread) => match thread.join() {
                Ok(written) => written?,
                Err(panic) => std::panic::resume_unwind(panic),
            },
        };
        *self = Self::There(Box::new(layer.clone()));
        Ok(layer)
    }
}

/// Lets a few through at a time.
#[derive(Default)]
pub(crate) struct Gate {
    inside: Mutex<usize>,
    left: Condvar,
}

/// Somebody who was let through; leaves when dropped.
pub(crate) struct Inside<'a>(&'a Gate);

impl Gate {
    fn enter(&self) -> Inside<'_> {
        let mut inside = self.inside.lock().unwrap_or_else(PoisonError::into_inner);
        while *inside >= AT_A_TIME {
            inside = self.left.wait(inside).unwrap_or_else(PoisonError::into_inner);
        }
        *inside += 1;
        Inside(self)
    }
}

impl Drop for Inside<'_> {
    fn drop(&mut self) {
        *self.0.inside.lock().unwrap_or_else(PoisonError::into_inner) -= 1;
        self.0.left.notify_one();
    }
}

/// Fails at the next bytes once the build was told to stop.
struct UntilCancelled<'a, W> {
    out: W,
    session: &'a Session,
}

impl<W: Write> Write for UntilCancelled<'_, W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.session.cancel.is_cancelled() {
            return Err(io::Error::other("the build was told to stop"));
        }
        self.out.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

/// Changes without the tree's own root: an image says nothing of it, whatever a step does to its mode.
struct WithoutRoot<'a>(&'a mut dyn ChangeSource);

impl ChangeSource for WithoutRoot<'_> {
    fn next(&mut self) -> Result<Option<Change>, RootfsError> {
        loop {
            match self.0.next()? {
                Some(change) if change.path.is_root() => {}
                change => return Ok(change),
            }
        }
    }

    fn open(&mut self, path: &TreePath) -> Result<std::fs::File, RootfsError> {
        self.0.open(path)
    }

    fn xattrs(&mut self, path: &TreePath) -> Result<Xattrs, RootfsError> {
        self.0.xattrs(path)
    }
}

/// Writes `changes` as a layer into the scratch store, and to `ahead` meanwhile.
pub(crate) fn write(
    session: &Session,
    changes: &mut dyn ChangeSource,
    ahead: Option<Ahead>,
) -> Result<Layer, BuildError> {
    let _inside = session.writing.enter();
    session.check_cancelled()?;
    let request = &session.request.layers;
    let options = LayerOptions {
        compression: request.compression,
        level: request.level,
        mtime_limit: request.mtime_limit,
        ..LayerOptions::default()
    };
    let mut writer = Followed::new(session.blobs.writer(None).map_err(BuildError::other)?, ahead);
    let written =
        write_layer(&mut WithoutRoot(changes), &options, UntilCancelled { out: &mut writer, session });
    session.check_cancelled()?;
    let blob = written.map_err(BuildError::other)?;
    let media_type = ImageFormat::Oci.layer(blob.compression);
    let descriptor = Descriptor::new(media_type, blob.digest, blob.size);
    writer.commit(&descriptor, &session.early).map_err(BuildError::other)?;
    session.remember(&descriptor.digest, LayerOrigin::Made);
    Ok(Layer { descriptor, diff_id: blob.diff_id })
}

/// Where a layer that `step` makes may go before it is whole: to the first destination, if it is sure to be new there. What
/// COPY makes may be there already, and so may all that is made without the time of day.
pub(crate) fn ahead(session: &Session, step: &Step) -> Option<Ahead> {
    let output = &session.request.output;
    let new = matches!(step.op, Op::Run(_)) && session.request.layers.mtime_limit.is_none();
    if !output.push || !new || !session.registry.takes_growing() {
        return None;
    }
    Some(Ahead {
        registry: session.registry.clone(),
        runtime: session.runtime.clone(),
        to: output.destinations.first()?.repository.clone(),
    })
}

/// Begins to send a layer to the image's destinations.
pub(crate) fn send(session: &Arc<Session>, layer: &Layer) {
    if session.request.output.push {
        for destination in &session.request.output.destinations {
            let to = &destination.repository;
            crate::outputs::send_layer(session, to, &layer.descriptor, crate::outputs::Transit::Stop);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kiln_oci::{DiffId, Digest};

    fn layer(name: &str) -> Layer {
        let digest = Digest::of(name.as_bytes());
        Layer {
            descriptor: Descriptor::new(kiln_oci::media_type::OCI_LAYER_GZIP, digest.clone(), 1),
            diff_id: DiffId::from_digest(&digest).unwrap(),
        }
    }

    #[test]
    fn layers_keep_their_order_whichever_is_written_first() {
        let mut layers = StageLayers::new(vec![layer("base")]);
        let (go, wait) = std::sync::mpsc::channel::<()>();
        layers
            .begin(move || {
                wait.recv().unwrap();
                Ok(layer("slow"))
            })
            .unwrap();
        layers.begin(|| Ok(layer("quick"))).unwrap();
        layers.push(layer("there"));
        layers.check().unwrap();
        assert_eq!(layers.lowest(1).unwrap(), [layer("base")]);
        go.send(()).unwrap();
        let names = ["base", "slow", "quick", "there"];
        assert_eq!(layers.finish().unwrap(), names.map(layer));
    }

    #[test]
    fn a_layer_that_could_not_be_written_fails_the_stage() {
        let mut layers = StageLayers::default();
        layers.begin(|| Err(BuildError::other("no space"))).unwrap();
        assert!(layers.finish().is_err());
    }

    #[test]
    fn only_a_few_pass_a_gate() {
        let gate = Gate::default();
        let first = gate.enter();
        let _second = gate.enter();
        std::thread::scope(|scope| {
            let third = scope.spawn(|| drop(gate.enter()));
            std::thread::sleep(std::time::Duration::from_millis(10));
            assert!(!third.is_finished());
            drop(first);
        });
    }
}
