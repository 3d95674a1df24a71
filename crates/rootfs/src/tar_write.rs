//! Canonical tar entries: ustar headers, with PAX records only for what ustar can't say. The same metadata gives the
//! same bytes.

use std::io::{self, Write};

use crate::{Kind, Meta, Timestamp, TreePath};

const BLOCK: u64 = 512;

/// What an entry is.
#[derive(Clone, Copy)]
pub(crate) enum HeaderKind<'a> {
    New(Kind),
    HardLink(&'a TreePath),
}

/// Writes an archive.
pub(crate) struct TarWriter<W> {
    out: W,
}

impl<W: Write> TarWriter<W> {
    pub(crate) fn new(out: W) -> Self {
        Self { out }
    }

    /// Writes a header. A file's content follows by [`TarWriter::data`] and [`TarWriter::pad`].
    pub(crate) fn header(
        &mut self,
        path: &TreePath,
        kind: HeaderKind<'_>,
        meta: &Meta,
        xattrs: &[(Vec<u8>, Vec<u8>)],
    ) -> io::Result<()> {
        let mut name = path.as_bytes().to_vec();
        let directory = matches!(kind, HeaderKind::New(Kind::Directory));
        if name.is_empty() {
            name.extend_from_slice(b"./");
        } else if directory {
            name.push(b'/');
        }
        let (type_flag, link) = match &kind {
            HeaderKind::HardLink(first) => (b'1', first.as_bytes().to_vec()),
            HeaderKind::New(Kind::Symlink) => (b'2', meta.link.clone().unwrap_or_default()),
            HeaderKind::New(Kind::CharDevice) => (b'3', Vec::new()),
            HeaderKind::New(Kind::BlockDevice) => (b'4', Vec::new()),
            HeaderKind::New(Kind::Directory) => (b'5', Vec::new()),
            HeaderKind::New(Kind::Fifo) => (b'6', Vec::new()),
            HeaderKind::New(Kind::File | Kind::Socket) => (b'0', Vec::new()),
        };
        let size = if type_flag == b'0' { meta.size } else { 0 };
        let mut records = Vec::new();
        let mut header = tar::Header::new_ustar();
        set_name(&mut header, &name, &mut records);
        if link.len() <= 100 {
            header.as_mut_bytes()[157..157 + link.len()].copy_from_slice(&link);
        } else {
            record(&mut records, b"linkpath", &link);
        }
        header.set_mode(meta.mode);
        set_number(&mut header, &mut records, "uid", u64::from(meta.uid), 8, tar::Header::set_uid);
        set_number(&mut header, &mut records, "gid", u64::from(meta.gid), 8, tar::Header::set_gid);
        set_number(&mut header, &mut records, "size", size, 12, tar::Header::set_size);
        set_time(&mut header, &mut records, meta.mtime);
        if let (Some((major, minor)), HeaderKind::New(_)) = (meta.rdev, &kind) {
            header.set_device_major(major)?;
            header.set_device_minor(minor)?;
        }
        for (key, value) in xattrs {
            record(&mut records, &[b"SCHILY.xattr.", key.as_slice()].concat(), value);
        }
        header.as_mut_bytes()[156] = type_flag;
        header.set_cksum();
        if !records.is_empty() {
            self.extended(&records)?;
        }
        self.out.write_all(header.as_bytes())
    }

    fn extended(&mut self, records: &[u8]) -> io::Result<()> {
        let mut header = tar::Header::new_ustar();
        let name = b"PaxHeaders/entry";
        header.as_mut_bytes()[..name.len()].copy_from_slice(name);
        header.set_mode(0);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.set_size(records.len() as u64);
        header.as_mut_bytes()[156] = b'x';
        header.set_cksum();
        self.out.write_all(header.as_bytes())?;
        self.out.write_all(records)?;
        self.pad(records.len() as u64)
    }

    /// Writes a piece of a file's content.
    pub(crate) fn data(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.out.write_all(bytes)
    }

    /// Fills up the last block of a content of `size` bytes.
    pub(crate) fn pad(&mut self, size: u64) -> io::Result<()> {
        let missing = usize::try_from(size.next_multiple_of(BLOCK) - size).unwrap_or(0);
        self.out.write_all(&[0; 512][..missing])
    }

    /// Ends the archive.
    pub(crate) fn finish(mut self) -> io::Result<W> {
        self.out.write_all(&[0; 1024])?;
        Ok(self.out)
    }
}

/// The name, split at a slash into prefix and name where it is longer than 100 bytes, or as a PAX record.
fn set_name(header: &mut tar::Header, name: &[u8], records: &mut Vec<u8>) {
    if name.len() <= 100 {
        header.as_mut_bytes()[..name.len()].copy_from_slice(name);
        return;
    }
    let split = (0..name.len().saturating_sub(1))
        .filter(|place| name[*place] == b'/')
        .find(|place| *place <= 155 && *place > 0 && name.len() - place - 1 <= 100);
    if let Some(place) = split {
        let (prefix, rest) = (&name[..place], &name[place + 1..]);
        header.as_mut_bytes()[..rest.len()].copy_from_slice(rest);
        header.as_mut_bytes()[345..345 + prefix.len()].copy_from_slice(prefix);
    } else {
        record(records, b"path", name);
        header.as_mut_bytes()[..100].copy_from_slice(&name[..100]);
    }
}

/// A number in a field of `width` bytes, one of them for the zero at its end; as a PAX record where it doesn't fit.
fn set_number(
    header: &mut tar::Header,
    records: &mut Vec<u8>,
    name: &str,
    value: u64,
    width: u32,
    set: fn(&mut tar::Header, u64),
) {
    let fits = value < 1 << (3 * (width - 1));
    if !fits {
        record(records, name.as_bytes(), value.to_string().as_bytes());
    }
    set(header, if fits { value } else { 0 });
}

fn set_time(header: &mut tar::Header, records: &mut Vec<u8>, time: Timestamp) {
    let plain = u64::try_from(time.secs).ok().filter(|secs| *secs < 1 << 33);
    if plain.is_none() || time.nanos != 0 {
        record(records, b"mtime", pax_time(time).as_bytes());
    }
    header.set_mtime(plain.unwrap_or(0));
}

fn pax_time(time: Timestamp) -> String {
    if time.nanos == 0 {
        return time.secs.to_string();
    }
    let (sign, secs, nanos) = if time.secs < 0 {
        ("-", -(time.secs + 1), 1_000_000_000 - time.nanos)
    } else {
        ("", time.secs, time.nanos)
    };
    let fraction = format!("{nanos:09}");
    format!("{sign}{secs}.{}", fraction.trim_end_matches('0'))
}

/// `length key=value\n`; the length counts its own digits.
fn record(records: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    let rest = key.len() + value.len() + 3;
    let mut length = rest + 1;
    while rest + length.to_string().len() != length {
        length = rest + length.to_string().len();
    }
    records.extend_from_slice(length.to_string().as_bytes());
    records.push(b' ');
    records.extend_from_slice(key);
    records.push(b'=');
    records.extend_from_slice(value);
    records.push(b'\n');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_records_length_counts_its_own_digits() {
        for size in [1, 5, 90, 92, 93, 94, 95, 96, 986, 9981] {
            let mut records = Vec::new();
            record(&mut records, b"k", &vec![b'v'; size]);
            let text = String::from_utf8_lossy(&records);
            let said: usize = text.split(' ').next().unwrap().parse().unwrap();
            assert_eq!(said, records.len());
        }
    }

    #[test]
    fn times_are_written_exactly() {
        for (secs, nanos, text) in
            [(1, 500_000_000, "1.5"), (-2, 750_000_000, "-1.25"), (-3, 0, "-3"), (0, 1, "0.000000001")]
        {
            assert_eq!(pax_time(Timestamp { secs, nanos }), text);
        }
    }
}
