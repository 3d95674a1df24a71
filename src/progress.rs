//! Progress bars, one per blob, where there is a terminal; a line now and then where there is none.

use std::collections::HashMap;
use std::io::{self, Write};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use kiln_oci::Digest;

/// How long a transfer goes on before a line says how far it is.
const QUIET: Duration = Duration::from_secs(10);

/// All transfers that are under way.
#[derive(Clone)]
pub(crate) struct Progress(Arc<Inner>);

struct Inner {
    bars: MultiProgress,
    terminal: bool,
    running: Mutex<HashMap<(Digest, bool), Transfer>>,
    sources: Mutex<HashMap<String, Transfer>>,
}

struct Transfer {
    bar: Option<ProgressBar>,
    said: Instant,
}

impl Progress {
    /// Bars if standard error is a terminal.
    pub(crate) fn new() -> Self {
        let terminal = io::IsTerminal::is_terminal(&io::stderr());
        Self(Arc::new(Inner {
            bars: MultiProgress::new(),
            terminal,
            running: Mutex::default(),
            sources: Mutex::default(),
        }))
    }

    /// `done` of `of` bytes of a blob went in (or out, for an upload).
    pub(crate) fn transfer(&self, digest: &Digest, upload: bool, done: u64, of: u64) {
        let mut running = self.0.running.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let key = (digest.clone(), upload);
        if done >= of {
            if let Some(Transfer { bar: Some(bar), .. }) = running.remove(&key) {
                bar.finish_and_clear();
            }
            return;
        }
        let word = if upload { "push" } else { "pull" };
        let transfer = running.entry(key).or_insert_with(|| Transfer {
            bar: self.0.terminal.then(|| self.0.bars.add(bar(of, format!("{word} {}", digest.short())))),
            said: Instant::now(),
        });
        match &transfer.bar {
            Some(bar) => bar.set_position(done),
            None if transfer.said.elapsed() >= QUIET => {
                transfer.said = Instant::now();
                let percent = done.saturating_mul(100).checked_div(of).unwrap_or(0);
                tracing::info!("{word} {}: {percent}% of {}", digest.short(), size(of));
            }
            None => {}
        }
    }

    /// `done` bytes of a context came; how many there are is rarely known before.
    pub(crate) fn source(&self, source: &str, done: u64) {
        let mut sources = self.0.sources.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let transfer = sources.entry(source.to_owned()).or_insert_with(|| Transfer {
            bar: self.0.terminal.then(|| self.0.bars.add(counter(source.to_owned()))),
            said: Instant::now(),
        });
        match &transfer.bar {
            Some(bar) => bar.set_position(done),
            None if transfer.said.elapsed() >= QUIET => {
                transfer.said = Instant::now();
                tracing::info!("{source}: {}", size(done));
            }
            None => {}
        }
    }

    /// A context is there.
    pub(crate) fn source_done(&self, source: &str) {
        let mut sources = self.0.sources.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some(Transfer { bar: Some(bar), .. }) = sources.remove(source) {
            bar.finish_and_clear();
        }
    }

    /// Standard error, with the bars moved out of the way while a line is written.
    pub(crate) fn stderr(&self) -> Stderr {
        Stderr { progress: self.clone(), line: Vec::new() }
    }

    fn write(&self, line: &[u8]) {
        let write = || {
            // Nobody is left to be told when standard error is closed.
            _ = io::stderr().lock().write_all(line);
        };
        if self.0.terminal { self.0.bars.suspend(write) } else { write() }
    }
}

fn bar(of: u64, name: String) -> ProgressBar {
    let style = ProgressStyle::with_template("{msg:18} {bar:30} {bytes}/{total_bytes} {bytes_per_sec}");
    ProgressBar::new(of).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar())).with_message(name)
}

fn counter(name: String) -> ProgressBar {
    let style = ProgressStyle::with_template("{spinner} {msg} {bytes} {bytes_per_sec}");
    let bar = ProgressBar::new_spinner().with_message(name);
    bar.with_style(style.unwrap_or_else(|_| ProgressStyle::default_spinner()))
}

/// A number of bytes for people.
pub(crate) fn size(bytes: u64) -> String {
    #[expect(clippy::cast_precision_loss, reason = "shown with one decimal")]
    let number = bytes as f64;
    match bytes {
        0..1_000 => format!("{bytes} B"),
        1_000..1_000_000 => format!("{:.1} kB", number / 1e3),
        1_000_000..1_000_000_000 => format!("{:.1} MB", number / 1e6),
        _ => format!("{:.2} GB", number / 1e9),
    }
}

/// A line on its way to standard error.
pub(crate) struct Stderr {
    progress: Progress,
    line: Vec<u8>,
}

impl Write for Stderr {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.line.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Stderr {
    fn drop(&mut self) {
        self.progress.write(&self.line);
    }
}
