//! Decompression of layers, in a thread of its own, so that it runs beside what is done with the bytes.

use std::io::{self, BufRead, BufReader, Read};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use kiln_oci::media_type::Compression;

/// How much is handed over at a time, and how many such pieces may wait: together they bound the memory.
const PIECE: usize = 256 << 10;
const WAITING: usize = 8;

/// The decompressed bytes of `input`. `said` is what the media type says; the bytes themselves decide, since registries
/// hold layers whose type lies.
///
/// The input is read to its end, so that a reader which verifies a digest there gets to do it.
pub fn decompress(input: impl Read + Send + 'static, said: Compression) -> impl Read + Send {
    let (sender, receiver) = sync_channel(WAITING);
    // The thread ends when the receiver is gone: its next send fails.
    let spawned = std::thread::Builder::new().name("decompress".to_owned()).spawn(move || {
        if let Err(error) = pump(input, said, &sender) {
            drop(sender.send(Err(error)));
        }
    });
    Pieces { receiver, current: Vec::new(), at: 0, failed: spawned.err() }
}

fn pump(input: impl Read, said: Compression, sender: &SyncSender<io::Result<Vec<u8>>>) -> io::Result<()> {
    let mut input = BufReader::with_capacity(128 << 10, input);
    let magic = input.fill_buf()?;
    let compression = match magic {
        [0x1f, 0x8b, ..] => Compression::Gzip,
        [0x28, 0xb5, 0x2f, 0xfd, ..] => Compression::Zstd,
        // An empty or tiny layer has no magic to go by.
        [] => said,
        _ => Compression::None,
    };
    match compression {
        Compression::None => send_all(&mut input, sender)?,
        Compression::Gzip => send_all(&mut flate2::bufread::MultiGzDecoder::new(&mut input), sender)?,
        Compression::Zstd => send_all(&mut zstd::Decoder::with_buffer(&mut input)?, sender)?,
    }
    // To the very end: there the digest is checked.
    io::copy(&mut input, &mut io::sink())?;
    Ok(())
}

fn send_all(input: &mut impl Read, sender: &SyncSender<io::Result<Vec<u8>>>) -> io::Result<()> {
    loop {
        let mut piece = vec![0; PIECE];
        let mut filled = 0;
        while filled < PIECE {
            match input.read(&mut piece[filled..]) {
                Ok(0) => break,
                Ok(length) => filled += length,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // What came before the error is read before it: an archive may have ended there.
                Err(error) => {
                    piece.truncate(filled);
                    drop(sender.send(Ok(piece)));
                    return Err(error);
                }
            }
        }
        piece.truncate(filled);
        if filled == 0 || sender.send(Ok(piece)).is_err() {
            return Ok(());
        }
    }
}

struct Pieces {
    receiver: Receiver<io::Result<Vec<u8>>>,
    current: Vec<u8>,
    at: usize,
    failed: Option<io::Error>,
}

impl Read for Pieces {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if let Some(error) = self.failed.take() {
            return Err(error);
        }
        while self.at == self.current.len() {
            match self.receiver.recv() {
                Ok(Ok(piece)) => (self.current, self.at) = (piece, 0),
                Ok(Err(error)) => return Err(error),
                Err(_) => return Ok(0),
            }
        }
        let length = buffer.len().min(self.current.len() - self.at);
        buffer[..length].copy_from_slice(&self.current[self.at..self.at + length]);
        self.at += length;
        Ok(length)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    fn read(bytes: Vec<u8>, said: Compression) -> io::Result<Vec<u8>> {
        let mut out = Vec::new();
        decompress(io::Cursor::new(bytes), said).read_to_end(&mut out).map(|_| out)
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
        decompress(io::Cursor::new(cut), Compression::Gzip).read_exact(&mut begin).unwrap();
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
        let input = FailsAtItsEnd(io::Cursor::new(gzip(b"x")));
        let mut out = Vec::new();
        let error = decompress(input, Compression::Gzip).read_to_end(&mut out).unwrap_err();
        assert!(error.to_string().contains("wrong digest"));
    }
}
