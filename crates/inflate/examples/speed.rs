//! How long gzip streams take: `cargo run --release -p kiln-inflate --example speed -- FILE...` decompresses each file here
//! and by flate2, in turn, and prints seconds and the ratio.

#![expect(clippy::disallowed_methods, clippy::print_stdout, reason = "an example that measures")]

use std::io::{self, BufRead, BufReader, Read};
use std::time::Instant;

use kiln_inflate::GzipReader;

const TURNS: usize = 5;

fn main() -> io::Result<()> {
    let files = std::env::args().skip(1).map(std::fs::read).collect::<io::Result<Vec<_>>>()?;
    let (mut ours, mut theirs) = (f64::MAX, f64::MAX);
    for _ in 0..TURNS {
        let began = Instant::now();
        let mut length = 0;
        for file in &files {
            let mut reader = GzipReader::new(BufReader::with_capacity(128 << 10, file.as_slice()));
            loop {
                let there = reader.fill_buf()?.len();
                if there == 0 {
                    break;
                }
                reader.consume(there);
                length += there;
            }
        }
        ours = ours.min(began.elapsed().as_secs_f64());
        let began = Instant::now();
        let mut buffer = vec![0; 256 << 10];
        for file in &files {
            let input = BufReader::with_capacity(128 << 10, file.as_slice());
            let mut reader = flate2::bufread::MultiGzDecoder::new(input);
            loop {
                match reader.read(&mut buffer)? {
                    0 => break,
                    there => length -= there,
                }
            }
        }
        theirs = theirs.min(began.elapsed().as_secs_f64());
        assert_eq!(length, 0, "both read as much");
    }
    println!("kiln {ours:.3} s, flate2 {theirs:.3} s, ratio {:.2}", ours / theirs);
    Ok(())
}
