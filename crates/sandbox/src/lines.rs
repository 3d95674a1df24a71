//! A stream of bytes cut into lines, of bounded length.

/// Longer lines are handed out in pieces of this many bytes.
const LONGEST: usize = 64 * 1024;

/// Collects bytes until a line is whole.
#[derive(Debug, Default)]
pub(crate) struct Lines(Vec<u8>);

impl Lines {
    /// Takes in bytes and gives every line that they complete to `each`, without its line feed.
    pub(crate) fn feed(&mut self, mut bytes: &[u8], each: &mut dyn FnMut(&[u8])) {
        while let Some(end) = bytes.iter().position(|&byte| byte == b'\n') {
            let (line, rest) = bytes.split_at(end);
            bytes = &rest[1..];
            if self.0.is_empty() && line.len() <= LONGEST {
                each(line);
            } else {
                self.collect(line, each);
                each(&self.0);
                self.0.clear();
            }
        }
        self.collect(bytes, each);
    }

    /// Gives what is left of a last line that has no end.
    pub(crate) fn finish(&mut self, each: &mut dyn FnMut(&[u8])) {
        if !self.0.is_empty() {
            each(&self.0);
            self.0.clear();
        }
    }

    fn collect(&mut self, mut bytes: &[u8], each: &mut dyn FnMut(&[u8])) {
        while self.0.len() + bytes.len() > LONGEST {
            let (fits, rest) = bytes.split_at(LONGEST - self.0.len());
            self.0.extend_from_slice(fits);
            each(&self.0);
            self.0.clear();
            bytes = rest;
        }
        self.0.extend_from_slice(bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cut(pieces: &[&[u8]]) -> Vec<Vec<u8>> {
        let (mut lines, mut seen) = (Lines::default(), Vec::new());
        for piece in pieces {
            lines.feed(piece, &mut |line| seen.push(line.to_vec()));
        }
        lines.finish(&mut |line| seen.push(line.to_vec()));
        seen
    }

    #[test]
    fn lines_are_whole_however_the_bytes_come() {
        assert_eq!(
            cut(&[b"a\nb", b"c", b"\n\nd"]),
            [b"a".to_vec(), b"bc".to_vec(), b"".to_vec(), b"d".to_vec()]
        );
    }

    #[test]
    fn a_last_line_without_an_end_is_given_too() {
        assert_eq!(cut(&[b"a\nb"]), [b"a", b"b"]);
        assert_eq!(cut(&[b"a\n"]), [b"a"]);
    }

    #[test]
    fn an_endless_line_comes_in_pieces() {
        let piece = vec![b'x'; 50_000];
        let seen = cut(&[&piece, &piece, &piece, b"\nend"]);
        let lengths: Vec<_> = seen.iter().map(Vec::len).collect();
        assert_eq!(lengths, [LONGEST, LONGEST, 150_000 - 2 * LONGEST, 3]);
    }
}
