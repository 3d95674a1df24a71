//! Go: `go.sum`, and the build information that Go 1.18 and later put into every program. Older programs, which refer to
//! it by address, are not read.

use std::io::{self, Read};

use crate::package::{Ecosystem, Package};

/// Lines of module, version and checksum; those that end in `/go.mod` are of the file alone.
pub(super) fn sum(text: &str) -> Vec<Package> {
    let line = |line: &str| {
        let mut words = line.split_whitespace();
        let (module, version) = (words.next()?, words.next()?);
        (!version.ends_with("/go.mod")).then(|| Package::new(Ecosystem::Go, module, version))
    };
    text.lines().filter_map(line).collect()
}

/// How the information begins.
const MAGIC: &[u8] = b"\xff Go buildinf:";
/// The header's length; the texts follow it.
const HEADER: usize = 32;
/// The information is no longer than this.
const MOST: usize = 4 << 20;
/// Go's version, with the experiments that it was built with, is no longer than this.
const MOST_VERSION: usize = 4 << 10;
const PIECE: usize = 256 << 10;

/// Looks for build information in a program, which is read as a stream. Anything but an ELF file gives nothing.
pub(super) fn program(content: &mut dyn Read) -> io::Result<Vec<Package>> {
    let mut start = [0; 4];
    if content.read_exact(&mut start).is_err() || start != *b"\x7fELF" {
        return Ok(Vec::new());
    }
    let finder = memchr::memmem::Finder::new(MAGIC);
    let mut window: Vec<u8> = Vec::new();
    loop {
        let more = content.take(PIECE as u64).read_to_end(&mut window)?;
        let mut from = 0;
        while let Some(place) = finder.find(&window[from..]) {
            // Text that only talks of it, as in the Go tools themselves, has no sound header behind it.
            from += place;
            // A program can hold nothing else: what is behind us goes all at once.
            if from > MOST {
                window.drain(..from);
                from = 0;
            }
            let there = window.len() - from;
            if there < MOST {
                content.take((MOST - there) as u64).read_to_end(&mut window)?;
            }
            let found = information(&window[from..window.len().min(from + MOST)]);
            if !found.is_empty() {
                return Ok(found);
            }
            from += MAGIC.len();
        }
        if more == 0 {
            return Ok(Vec::new());
        }
        let keep = window.len().saturating_sub(MAGIC.len()).max(from);
        window.drain(..keep);
    }
}

fn information(bytes: &[u8]) -> Vec<Package> {
    // Flag 2: the texts stand right behind the header, each with its length before it.
    if bytes.len() < HEADER || bytes[15] & 2 == 0 {
        return Vec::new();
    }
    let Some((version, rest)) = counted(&bytes[HEADER..]).filter(|(version, _)| version.len() < MOST_VERSION)
    else {
        return Vec::new();
    };
    let Some(version) = std::str::from_utf8(version).ok().and_then(|text| text.strip_prefix("go")) else {
        return Vec::new();
    };
    let version = version.split(' ').next().unwrap_or(version);
    let mut found = vec![Package::new(Ecosystem::Go, "stdlib", version)];
    let Some((modules, _)) = counted(rest) else { return found };
    // Sixteen bytes before and after the text tell where it is.
    let modules = if modules.len() >= 33 { &modules[16..modules.len() - 16] } else { modules };
    for line in String::from_utf8_lossy(modules).lines() {
        let words: Vec<&str> = line.split('\t').collect();
        match words.as_slice() {
            ["dep", module, version, ..] => found.push(Package::new(Ecosystem::Go, *module, *version)),
            ["mod", module, version, ..] if *version != "(devel)" => {
                found.push(Package::new(Ecosystem::Go, *module, *version));
            }
            ["=>", module, version, ..] => {
                // The module before it was replaced by this one.
                found.pop();
                found.push(Package::new(Ecosystem::Go, *module, *version));
            }
            _ => {}
        }
    }
    found
}

/// A text with its length before it, as a variable number of bytes with seven bits each.
fn counted(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (mut length, mut shift) = (0usize, 0u32);
    for (place, byte) in bytes.iter().enumerate().take(5) {
        length |= usize::from(byte & 0x7f) << shift;
        shift += 7;
        if byte & 0x80 == 0 {
            let rest = &bytes[place + 1..];
            return (length <= rest.len()).then(|| rest.split_at(length));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn program_with(before: usize, modules: &str) -> Vec<u8> {
        let mut bytes = b"\x7fELF".to_vec();
        bytes.resize(before, 7);
        // As the Go tools hold it: the words without what follows them.
        bytes.extend(MAGIC);
        bytes.extend([0; 40]);
        bytes.extend(MAGIC);
        bytes.extend([8, 2]);
        bytes.extend([0; 16]);
        bytes.push(8);
        bytes.extend(b"go1.22.3");
        let text = format!("{}{modules}{}", "s".repeat(16), "e".repeat(16));
        let length = text.len();
        bytes.extend([u8::try_from(length & 0x7f).unwrap() | 0x80, u8::try_from(length >> 7).unwrap()]);
        bytes.extend(text.bytes());
        bytes.resize(bytes.len() + 5000, 0);
        bytes
    }

    #[test]
    fn a_program_tells_its_modules_wherever_the_list_lies() {
        let modules = "path\texample.com/app\nmod\texample.com/app\t(devel)\t\ndep\tgithub.com/A/b\tv1.2.3\th1:x=\n\
                       dep\tx.org/old\tv1.0.0\n=>\tx.org/new\tv2.0.0\th1:y=\nbuild\t-compiler=gc\n";
        for before in [4, 100, PIECE - 5, PIECE, PIECE + 1, 3 * PIECE - 9] {
            let found = program(&mut program_with(before, modules).as_slice()).unwrap();
            let names: Vec<_> = found.iter().map(|p| format!("{} {}", p.name, p.version)).collect();
            assert_eq!(names, ["stdlib 1.22.3", "github.com/A/b v1.2.3", "x.org/new v2.0.0"], "{before}");
        }
    }

    #[test]
    fn other_programs_tell_nothing() {
        assert!(program(&mut b"#!/bin/sh".as_slice()).unwrap().is_empty());
        assert!(
            program(&mut [b"\x7fELF".to_vec(), vec![0; 100_000]].concat().as_slice()).unwrap().is_empty()
        );
    }

    #[test]
    fn a_program_of_nothing_but_beginnings_is_read_once() {
        let began = std::time::Instant::now();
        let bytes = [b"\x7fELF".to_vec(), MAGIC.repeat(900_000)].concat();
        assert!(program(&mut bytes.as_slice()).unwrap().is_empty());
        let with_one = [bytes, program_with(4, "dep\tx.org/a\tv1.0.0\n")].concat();
        assert_eq!(program(&mut with_one.as_slice()).unwrap().len(), 2);
        assert!(began.elapsed().as_secs() < 20, "moving what is left at each of them takes minutes");
    }

    #[test]
    fn the_sums_of_files_alone_are_left_out() {
        let text = "golang.org/x/text v0.3.7 h1:a=\ngolang.org/x/text v0.3.7/go.mod h1:b=\ngolang.org/x/mod v0.1.0/go.mod h1:c=\n";
        assert_eq!(sum(text).len(), 1);
    }
}
