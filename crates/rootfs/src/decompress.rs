//! Decompression of layers: in a thread of its own, so that it runs beside what is done with the bytes, or in the thread
//! that reads, where next to nothing is done with them.

use std::io::{self, BufRead, BufReader, Read};
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};

use kiln_inflate::{GzipReader, Piece};
use kiln_oci::media_type::Compression;

/// How much is handed over at a time, and how many such pieces may wait: together they bound the memory.
const PIECE: usize = Piece::SIZE;
const WAITING: usize = 8;

/// The decompressed bytes of `input`. `said` is what the media type says; the bytes themselves decide, since registries
/// hold layers whose type lies. They are told by what `input` gives first: four bytes at least, if it has them.
///
/// The input is read to its end, so that a reader which verifies a digest there gets to do it. Gzip's own sums are not looked
/// at: a layer's digest says more, and to sum all bytes up takes a twentieth of the time that inflating them does.
pub fn decompress(input: impl BufRead + Send + 'static, said: Compression) -> impl BufRead + Send {
    read_apart(Decoder::new(input, said))
}

/// The bytes of `input` as they are, which is read in a thread of its own, to its end: for another decompressor's.
pub fn apart(input: impl BufRead + Send + 'static) -> impl BufRead + Send {
    read_apart(Decoder { said: Compression::None, state: State::Plain(input) })
}

fn read_apart(mut decoder: Decoder<impl BufRead + Send + 'static>) -> Pieces {
    let (sender, receiver) = sync_channel(WAITING);
    let (done, used) = channel();
    // The thread ends when the receiver is gone: its next send fails.
    let spawned = std::thread::Builder::new().name("decompress".to_owned()).spawn(move || {
        let pieces = Outgoing { sender, used };
        if let Err(error) = pieces.send_all(&mut decoder) {
            drop(pieces.sender.send(Err(error)));
        }
    });
    Pieces { receiver, done, current: Piece::default(), failed: spawned.err() }
}

/// As [`decompress`], in the thread that reads: what is passed over is never copied.
pub(crate) fn decompress_here(input: impl BufRead, said: Compression) -> impl BufRead {
    Decoder::new(input, said)
}

/// Decompresses what it reads.
struct Decoder<R: BufRead> {
    said: Compression,
    state: State<R>,
}

enum State<R: BufRead> {
    /// Nothing was read yet.
    Unknown(R),
    Plain(R),
    Gzip(Box<GzipReader<R>>),
    Zstd(Box<BufReader<zstd::Decoder<'static, R>>>),
    /// It could not be set up, or has ended.
    Over,
}

impl<R: BufRead> Decoder<R> {
    fn new(input: R, said: Compression) -> Self {
        Self { said, state: State::Unknown(input) }
    }

    /// Looks at the first bytes.
    fn begin(&mut self) -> io::Result<()> {
        let State::Unknown(input) = &mut self.state else { return Ok(()) };
        let compression = match input.fill_buf()? {
            [0x1f, 0x8b, ..] => Compression::Gzip,
            [0x28, 0xb5, 0x2f, 0xfd, ..] => Compression::Zstd,
            // An empty or tiny layer has no magic to go by.
            [] => self.said,
            _ => Compression::None,
        };
        if let State::Unknown(input) = std::mem::replace(&mut self.state, State::Over) {
            self.state = match compression {
                Compression::None => State::Plain(input),
                Compression::Gzip => State::Gzip(Box::new(GzipReader::new(input).without_sums())),
                Compression::Zstd => {
                    let decoder = zstd::Decoder::with_buffer(input)?;
                    State::Zstd(Box::new(BufReader::with_capacity(PIECE, decoder)))
                }
            };
        }
        Ok(())
    }

    /// Reads what follows to the very end: there the digest is checked.
    fn finish(&mut self) -> io::Result<()> {
        let drain = |mut rest: R| io::copy(&mut rest, &mut io::sink()).map(|_| ());
        match std::mem::replace(&mut self.state, State::Over) {
            State::Unknown(rest) | State::Plain(rest) => drain(rest),
            State::Gzip(decoder) => drain(decoder.into_inner()),
            State::Zstd(decoder) => drain(decoder.into_inner().finish()),
            State::Over => Ok(()),
        }
    }

    /// The next piece, as large as there is, in the memory of `spare`. Empty at the end.
    ///
    /// What was decompressed before a failure comes with it.
    fn piece(&mut self, mut spare: Piece) -> (Piece, io::Result<()>) {
        if let Err(error) = self.begin() {
            return (Piece::default(), Err(error));
        }
        let (piece, filled) = match &mut self.state {
            State::Gzip(decoder) => {
                let filled = decoder.fill();
                (decoder.hand_over(spare), filled)
            }
            State::Plain(input) => {
                let filled = spare.read_from(input);
                (spare, filled)
            }
            State::Zstd(decoder) => {
                let filled = spare.read_from(decoder);
                (spare, filled)
            }
            State::Unknown(_) | State::Over => (Piece::default(), Ok(())),
        };
        let finished = if piece.unread().is_empty() { filled.and_then(|()| self.finish()) } else { filled };
        (piece, finished)
    }
}

impl<R: BufRead> BufRead for Decoder<R> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        self.begin()?;
        let ended = match &mut self.state {
            State::Plain(input) => input.fill_buf()?.is_empty(),
            State::Gzip(decoder) => decoder.fill_buf()?.is_empty(),
            State::Zstd(decoder) => decoder.fill_buf()?.is_empty(),
            State::Unknown(_) | State::Over => true,
        };
        if ended {
            self.finish()?;
        }
        // What is there already is given again.
        match &mut self.state {
            State::Plain(input) => input.fill_buf(),
            State::Gzip(decoder) => decoder.fill_buf(),
            State::Zstd(decoder) => decoder.fill_buf(),
            State::Unknown(_) | State::Over => Ok(&[]),
        }
    }

    fn consume(&mut self, length: usize) {
        match &mut self.state {
            State::Plain(input) => input.consume(length),
            State::Gzip(decoder) => decoder.consume(length),
            State::Zstd(decoder) => decoder.consume(length),
            State::Unknown(_) | State::Over => {}
        }
    }
}

impl<R: BufRead> Read for Decoder<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut there = self.fill_buf()?;
        let length = there.read(buffer)?;
        self.consume(length);
        Ok(length)
    }
}

/// The decompressing thread's end.
struct Outgoing {
    sender: SyncSender<io::Result<Piece>>,
    /// Pieces that were read, to be filled again: new memory is cleared by the kernel, page by page.
    used: Receiver<Piece>,
}

impl Outgoing {
    fn send_all(&self, decoder: &mut Decoder<impl BufRead>) -> io::Result<()> {
        loop {
            let (piece, filled) = decoder.piece(self.used.try_recv().unwrap_or_default());
            // What came before a failure is read before it: an archive may have ended there.
            let ended = piece.unread().is_empty() || self.sender.send(Ok(piece)).is_err();
            filled?;
            if ended {
                return Ok(());
            }
        }
    }
}

/// The reader's end.
struct Pieces {
    receiver: Receiver<io::Result<Piece>>,
    done: Sender<Piece>,
    current: Piece,
    failed: Option<io::Error>,
}

impl BufRead for Pieces {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if let Some(error) = self.failed.take() {
            return Err(error);
        }
        while self.current.unread().is_empty() {
            match self.receiver.recv() {
                Ok(Ok(piece)) => {
                    let read = std::mem::replace(&mut self.current, piece);
                    // The thread that would fill it may have ended.
                    drop(self.done.send(read));
                }
                Ok(Err(error)) => return Err(error),
                Err(_) => return Ok(&[]),
            }
        }
        Ok(self.current.unread())
    }

    fn consume(&mut self, length: usize) {
        self.current.consume(length);
    }
}

impl Read for Pieces {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut there = self.fill_buf()?;
        let length = there.read(buffer)?;
        self.consume(length);
        Ok(length)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    fn read(bytes: Vec<u8>, said: Compression) -> io::Result<Vec<u8>> {
        let (mut out, mut here) = (Vec::new(), Vec::new());
        let apart = decompress(io::Cursor::new(bytes.clone()), said).read_to_end(&mut out);
        let same = decompress_here(io::Cursor::new(bytes), said).read_to_end(&mut here);
        assert_eq!((apart.is_ok(), &out), (same.is_ok(), &here));
        apart.map(|_| out)
    }

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    #[test]
    fn the_bytes_decide_and_not_the_media_type() {
        let data = vec![b'x'; 1 << 20];
        assert_eq!(read(gzip(&data), Compression::None).unwrap(), data);
        assert_eq!(read(zstd::encode_all(data.as_slice(), 1).unwrap(), Compression::Gzip).unwrap(), data);
        assert_eq!(read(data.clone(), Compression::Gzip).unwrap(), data);
    }

    #[test]
    fn several_gzip_members_are_one_layer() {
        let mut both = gzip(b"a");
        both.extend(gzip(b"b"));
        assert_eq!(read(both, Compression::Gzip).unwrap(), b"ab");
    }

    #[test]
    fn a_cut_stream_is_an_error() {
        let mut cut = gzip(&vec![7; 100_000]);
        cut.truncate(cut.len() / 2);
        assert!(read(cut, Compression::Gzip).is_err());
    }

    #[test]
    fn what_comes_before_the_break_is_read() {
        let data: Vec<u8> =
            (0..100_000_u32).flat_map(|number| (number ^ (number << 7)).to_le_bytes()).collect();
        let mut cut = gzip(&data);
        cut.truncate(cut.len() / 2);
        let mut begin = vec![0; 512];
        decompress(io::Cursor::new(cut.clone()), Compression::Gzip).read_exact(&mut begin).unwrap();
        assert_eq!(begin, data[..512]);
        decompress_here(io::Cursor::new(cut), Compression::Gzip).read_exact(&mut begin).unwrap();
        assert_eq!(begin, data[..512]);
    }

    struct FailsAtItsEnd(io::Cursor<Vec<u8>>);

    impl Read for FailsAtItsEnd {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            match self.0.read(buffer)? {
                0 => Err(io::Error::other("wrong digest")),
                length => Ok(length),
            }
        }
    }

    #[test]
    fn the_input_is_read_to_where_its_digest_is_checked() {
        let zstd = zstd::encode_all(b"x".as_slice(), 1).unwrap();
        for bytes in [gzip(b"x"), zstd, b"x".to_vec()] {
            let input = || BufReader::new(FailsAtItsEnd(io::Cursor::new(bytes.clone())));
            let mut out = Vec::new();
            let error = decompress(input(), Compression::Gzip).read_to_end(&mut out).unwrap_err();
            assert!(error.to_string().contains("wrong digest"));
            let error = decompress_here(input(), Compression::Gzip).read_to_end(&mut out).unwrap_err();
            assert!(error.to_string().contains("wrong digest"));
        }
    }
}
