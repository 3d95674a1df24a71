//! Compression of layers: blocks of one size, compressed side by side, written in order. The result depends on the bytes
//! and the level, not on the number of threads.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex};

use kiln_oci::media_type::Compression;

/// The size of a block: one gzip member.
const BLOCK: usize = 1 << 20;

/// What is tried first of a block, at its start, in its middle and at its end: if none of these shrinks, the block is
/// stored.
const SAMPLE: usize = 16 << 10;

/// The levels that are taken where none is asked for.
const GZIP_LEVEL: i32 = 6;
const ZSTD_LEVEL: i32 = 3;

/// Compresses what is written to it into `W`.
pub(crate) enum Compressor<W: Write> {
    Plain(W),
    Gzip(Gzip<W>),
    Zstd(zstd::Encoder<'static, W>),
}

impl<W: Write> Compressor<W> {
    pub(crate) fn new(
        out: W,
        compression: Compression,
        level: Option<i32>,
        threads: usize,
    ) -> io::Result<Self> {
        Ok(match compression {
            Compression::None => Self::Plain(out),
            Compression::Gzip => {
                Self::Gzip(Gzip::new(out, level.unwrap_or(GZIP_LEVEL).clamp(0, 12), threads)?)
            }
            Compression::Zstd => {
                let mut encoder = zstd::Encoder::new(out, level.unwrap_or(ZSTD_LEVEL).clamp(1, 22))?;
                encoder.include_checksum(true)?;
                // One worker or many give the same bytes; none at all gives others.
                encoder.multithread(u32::try_from(threads.max(1)).unwrap_or(1))?;
                Self::Zstd(encoder)
            }
        })
    }

    /// Writes what is left, and gives the output back.
    pub(crate) fn finish(self) -> io::Result<W> {
        match self {
            Self::Plain(out) => Ok(out),
            Self::Gzip(gzip) => gzip.finish(),
            Self::Zstd(encoder) => encoder.finish(),
        }
    }
}

impl<W: Write> Write for Compressor<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Plain(out) => out.write(bytes),
            Self::Gzip(gzip) => gzip.write(bytes),
            Self::Zstd(encoder) => encoder.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

type Answer = Receiver<io::Result<Vec<u8>>>;

struct Job {
    block: Vec<u8>,
    answer: SyncSender<io::Result<Vec<u8>>>,
}

/// gzip as members of one block each, which every reader takes for one stream (RFC 1952, section 2.2).
pub(crate) struct Gzip<W: Write> {
    out: W,
    block: Vec<u8>,
    jobs: Option<SyncSender<Job>>,
    waiting: VecDeque<Answer>,
    threads: usize,
    workers: Vec<std::thread::JoinHandle<()>>,
    written: bool,
}

impl<W: Write> Gzip<W> {
    fn new(out: W, level: i32, threads: usize) -> io::Result<Self> {
        let threads = threads.max(1);
        let (sender, receiver) = sync_channel::<Job>(threads);
        let receiver = Arc::new(Mutex::new(receiver));
        let mut workers = Vec::new();
        for _ in 0..threads {
            let receiver = Arc::clone(&receiver);
            let worker = std::thread::Builder::new().name("compress".to_owned()).spawn(move || {
                let mut member = Member::new(level);
                loop {
                    let job = receiver.lock().unwrap_or_else(std::sync::PoisonError::into_inner).recv();
                    let Ok(Job { block, answer }) = job else { return };
                    // Nobody waits for it any more if the writer failed.
                    drop(answer.send(member.compress(&block)));
                }
            });
            workers.push(worker?);
        }
        Ok(Self {
            out,
            block: Vec::with_capacity(BLOCK),
            jobs: Some(sender),
            waiting: VecDeque::new(),
            threads,
            workers,
            written: false,
        })
    }

    fn submit(&mut self) -> io::Result<()> {
        let block = std::mem::replace(&mut self.block, Vec::with_capacity(BLOCK));
        let (answer, receiver) = sync_channel(1);
        let sent = self.jobs.as_ref().map(|jobs| jobs.send(Job { block, answer }));
        if !matches!(sent, Some(Ok(()))) {
            return Err(io::Error::other("the compressing threads are gone"));
        }
        self.waiting.push_back(receiver);
        self.written = true;
        while self.waiting.len() > self.threads * 2 {
            self.take()?;
        }
        Ok(())
    }

    /// Waits for the oldest block and writes it.
    fn take(&mut self) -> io::Result<()> {
        if let Some(receiver) = self.waiting.pop_front() {
            let member = receiver.recv().map_err(|_| io::Error::other("a compressing thread is gone"))??;
            self.out.write_all(&member)?;
        }
        Ok(())
    }

    fn finish(mut self) -> io::Result<W> {
        if !self.block.is_empty() || !self.written {
            self.submit()?;
        }
        while !self.waiting.is_empty() {
            self.take()?;
        }
        self.jobs = None;
        for worker in self.workers {
            worker.join().map_err(|_| io::Error::other("a compressing thread panicked"))?;
        }
        Ok(self.out)
    }
}

impl<W: Write> Write for Gzip<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let length = bytes.len().min(BLOCK - self.block.len());
        self.block.extend_from_slice(&bytes[..length]);
        if self.block.len() == BLOCK {
            self.submit()?;
        }
        Ok(length)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Makes gzip members.
struct Member {
    compressor: libdeflater::Compressor,
    quick: libdeflater::Compressor,
    store: libdeflater::Compressor,
    probe: Vec<u8>,
}

impl Member {
    fn new(level: i32) -> Self {
        let compressor = |level: i32| {
            let level = libdeflater::CompressionLvl::new(level).unwrap_or_default();
            libdeflater::Compressor::new(level)
        };
        Self { compressor: compressor(level), quick: compressor(1), store: compressor(0), probe: Vec::new() }
    }

    fn compress(&mut self, block: &[u8]) -> io::Result<Vec<u8>> {
        let mut shrinks = block.len() < 4 * SAMPLE;
        for at in [0, (block.len() / 2).saturating_sub(SAMPLE / 2), block.len().saturating_sub(SAMPLE)] {
            shrinks = shrinks || self.shrinks(&block[at..at + SAMPLE])?;
        }
        let compressor = if shrinks { &mut self.compressor } else { &mut self.store };
        let mut member = vec![0; compressor.gzip_compress_bound(block.len())];
        let length = compressor.gzip_compress(block, &mut member).map_err(io::Error::other)?;
        member.truncate(length);
        // The header says "made on Linux" and holds no time: the same everywhere.
        if let Some(os) = member.get_mut(9) {
            *os = 0xff;
        }
        Ok(member)
    }

    fn shrinks(&mut self, sample: &[u8]) -> io::Result<bool> {
        self.probe.resize(self.quick.deflate_compress_bound(sample.len()), 0);
        let length = self.quick.deflate_compress(sample, &mut self.probe).map_err(io::Error::other)?;
        Ok(length < sample.len() / 100 * 98)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::*;

    fn compressed(data: &[u8], compression: Compression, threads: usize) -> Vec<u8> {
        let mut compressor = Compressor::new(Vec::new(), compression, None, threads).unwrap();
        compressor.write_all(data).unwrap();
        compressor.finish().unwrap()
    }

    fn noise(length: usize) -> Vec<u8> {
        let mut state = 1u64;
        let mut next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 56) as u8
        };
        (0..length).map(|_| next()).collect()
    }

    #[test]
    fn what_is_compressed_comes_back_whatever_its_size() {
        for size in [0, 1, BLOCK - 1, BLOCK, BLOCK + 1, 5 * BLOCK + 7] {
            let data: Vec<u8> = noise(size / 2).into_iter().chain(vec![b'x'; size - size / 2]).collect();
            let mut back = Vec::new();
            let gzip = compressed(&data, Compression::Gzip, 2);
            flate2::read::MultiGzDecoder::new(gzip.as_slice()).read_to_end(&mut back).unwrap();
            assert_eq!(back, data, "{size}");
            let zstd = compressed(&data, Compression::Zstd, 2);
            assert_eq!(zstd::decode_all(zstd.as_slice()).unwrap(), data);
        }
    }

    #[test]
    fn the_number_of_threads_changes_no_byte() {
        let data: Vec<u8> = (0..3 * BLOCK).map(|n| u8::try_from(n / 7 % 251).unwrap()).collect();
        for compression in [Compression::Gzip, Compression::Zstd] {
            assert_eq!(
                compressed(&data, compression, 1),
                compressed(&data, compression, 4),
                "{compression:?}"
            );
        }
    }

    #[test]
    fn what_does_not_shrink_is_stored() {
        let data = noise(4 * BLOCK);
        let size = compressed(&data, Compression::Gzip, 1).len();
        assert!(size < data.len() + data.len() / 500, "{size}");
    }
}
