//! Bodies that end as a script says.

use std::future::Future as _;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use hyper::body::{Body, Frame, SizeHint};
use tokio::time::{Sleep, sleep};

/// The size of the pieces in which a body is sent.
const PIECE: usize = 16 * 1024;
/// How long bytes get to leave before the connection breaks.
const FLUSH: Duration = Duration::from_millis(20);

/// A body, and what comes after its bytes.
pub(super) struct Scripted {
    left: Bytes,
    end: End,
    length: Option<u64>,
    again: Bytes,
    /// Bytes in a tenth of a second, where that is limited.
    rate: Option<usize>,
    /// What was sent before a break has to leave first: hyper drops what is still in its buffer.
    pause: Option<Pin<Box<Sleep>>>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    Proper,
    Break,
    Never,
    Repeat,
}

impl Scripted {
    pub(super) fn new(bytes: Bytes, end: End) -> Self {
        let length = (end == End::Proper).then_some(bytes.len() as u64);
        Self { again: bytes.clone(), left: bytes, end, length, rate: None, pause: None }
    }

    /// The same body, so many bytes a second.
    pub(super) fn slowly(mut self, rate: usize) -> Self {
        self.rate = Some((rate / 10).max(1));
        self
    }
}

impl Body for Scripted {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        if self.left.is_empty() {
            match self.end {
                End::Proper => return Poll::Ready(None),
                End::Break => {
                    let pause = self.pause.get_or_insert_with(|| Box::pin(sleep(FLUSH)));
                    return pause
                        .as_mut()
                        .poll(context)
                        .map(|()| Some(Err(io::ErrorKind::ConnectionReset.into())));
                }
                End::Never => return Poll::Pending,
                End::Repeat if self.again.is_empty() => self.left = Bytes::from_static(&[0; 4096]),
                End::Repeat => self.left = self.again.clone(),
            }
        }
        if self.rate.is_some() {
            let pause = self.pause.get_or_insert_with(|| Box::pin(sleep(Duration::from_millis(100))));
            std::task::ready!(pause.as_mut().poll(context));
            self.pause = None;
        }
        let most = self.left.len().min(self.rate.unwrap_or(PIECE));
        let piece = self.left.split_to(most);
        Poll::Ready(Some(Ok(Frame::data(piece))))
    }

    fn size_hint(&self) -> SizeHint {
        self.length.map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}
