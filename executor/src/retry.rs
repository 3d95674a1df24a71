//! `--image-fs-extract-retry`: unpacking a base image is tried again where the disk or the registry is moody.

use std::time::Duration;

use crate::error::BuildError;
use crate::event::Event;
use crate::session::Session;

/// The wait before the first further try; each later one is twice as long.
const FIRST: Duration = Duration::from_secs(1);

/// Does `work` until it succeeds, at most as often as `--image-fs-extract-retry` says beyond the first time.
pub(crate) fn retried(
    session: &Session,
    what: &str,
    work: impl FnMut() -> Result<(), BuildError>,
) -> Result<(), BuildError> {
    let pause = |wait: Duration, error: &BuildError| {
        session.tell(Event::Warning(format!(
            "{what} failed and is tried again in {} s: {error}",
            wait.as_secs()
        )));
        let until = std::time::Instant::now() + wait;
        while std::time::Instant::now() < until {
            session.check_cancelled()?;
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    };
    attempts(session.request.isolation.extract_retry, pause, work)
}

fn attempts(
    more: u32,
    pause: impl Fn(Duration, &BuildError) -> Result<(), BuildError>,
    mut work: impl FnMut() -> Result<(), BuildError>,
) -> Result<(), BuildError> {
    let mut wait = FIRST;
    for _ in 0..more {
        match work() {
            Ok(()) => return Ok(()),
            Err(error @ BuildError::Cancelled) => return Err(error),
            Err(error) => pause(wait, &error)?,
        }
        wait = wait.saturating_mul(2);
    }
    work()
}

#[cfg(test)]
mod tests {
    use std::cell::{Cell, RefCell};

    use super::*;

    fn run(more: u32, failures: u32) -> (bool, u32, Vec<u64>) {
        let (calls, waits) = (Cell::new(0), RefCell::new(Vec::new()));
        let pause = |wait: Duration, _: &BuildError| {
            waits.borrow_mut().push(wait.as_secs());
            Ok(())
        };
        let result = attempts(more, pause, || {
            calls.set(calls.get() + 1);
            if calls.get() > failures { Ok(()) } else { Err(BuildError::other("no luck")) }
        });
        (result.is_ok(), calls.get(), waits.into_inner())
    }

    #[test]
    fn it_is_tried_again_as_often_as_asked_for_and_waits_longer_each_time() {
        assert_eq!(run(0, 0), (true, 1, vec![]));
        assert_eq!(run(0, 1), (false, 1, vec![]));
        assert_eq!(run(3, 2), (true, 3, vec![1, 2]));
        assert_eq!(run(3, 9), (false, 4, vec![1, 2, 4]));
    }
}
