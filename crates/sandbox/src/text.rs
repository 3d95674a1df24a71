//! Paths in fixed buffers, for the time between fork and exec when nothing may be allocated.

use std::ffi::CStr;
use std::os::fd::{AsRawFd, BorrowedFd};

use rustix::io::Errno;

/// Longest path that the kernel takes.
const LONGEST: usize = 4095;

/// A path, or any other C string, in a buffer of its own. Invariant: the byte after the last is NUL, and none before.
#[derive(Clone)]
pub(crate) struct Text {
    bytes: [u8; LONGEST + 1],
    len: usize,
}

impl Text {
    pub(crate) const fn new() -> Self {
        Self { bytes: [0; LONGEST + 1], len: 0 }
    }

    /// A copy of `bytes`; fails with ENAMETOOLONG, or EINVAL for a NUL inside.
    pub(crate) fn from(bytes: &[u8]) -> Result<Self, Errno> {
        let mut text = Self::new();
        text.append(bytes)?;
        Ok(text)
    }

    pub(crate) fn append(&mut self, more: &[u8]) -> Result<(), Errno> {
        let end = self.len + more.len();
        if end > LONGEST {
            return Err(Errno::NAMETOOLONG);
        }
        if more.contains(&0) {
            return Err(Errno::INVAL);
        }
        self.bytes[self.len..end].copy_from_slice(more);
        self.bytes[end] = 0;
        self.len = end;
        Ok(())
    }

    /// Appends a number in decimal digits.
    pub(crate) fn append_number(&mut self, number: u32) -> Result<(), Errno> {
        let mut digits = [0_u8; 10];
        let mut rest = number;
        let mut start = digits.len();
        loop {
            start -= 1;
            digits[start] = b'0' + u8::try_from(rest % 10).unwrap_or_default();
            rest /= 10;
            if rest == 0 {
                return self.append(&digits[start..]);
            }
        }
    }

    pub(crate) fn clear(&mut self) {
        self.truncate(0);
    }

    fn truncate(&mut self, len: usize) {
        self.len = len;
        self.bytes[len] = 0;
    }

    /// Adds a component, with a slash before it unless it is the first.
    pub(crate) fn push(&mut self, component: &[u8]) -> Result<(), Errno> {
        if self.len > 0 {
            self.append(b"/")?;
        }
        self.append(component)
    }

    /// Takes the last component off again.
    pub(crate) fn pop(&mut self) {
        let slash = self.as_bytes().iter().rposition(|&byte| byte == b'/');
        self.truncate(slash.unwrap_or(0));
    }

    pub(crate) fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }

    pub(crate) fn as_c_str(&self) -> &CStr {
        CStr::from_bytes_until_nul(&self.bytes).unwrap_or_default()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.len == 0
    }
}

impl std::fmt::Debug for Text {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        std::fmt::Debug::fmt(self.as_c_str(), f)
    }
}

/// `/proc/self/fd/N`: what `fd` refers to, as a path for calls that take only paths.
pub(crate) fn path_of(fd: BorrowedFd<'_>) -> Result<Text, Errno> {
    let mut text = Text::from(b"/proc/self/fd/")?;
    text.append_number(u32::try_from(fd.as_raw_fd()).map_err(|_| Errno::BADF)?)?;
    Ok(text)
}

/// The number that a name in /proc is, if it is one.
pub(crate) fn number(digits: &[u8]) -> Option<i32> {
    if digits.is_empty() {
        return None;
    }
    digits.iter().try_fold(0_i32, |value, &digit| match digit {
        b'0'..=b'9' => value.checked_mul(10)?.checked_add(i32::from(digit - b'0')),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn components_come_off_as_they_went_on() {
        let mut text = Text::new();
        text.push(b"usr").unwrap();
        text.push(b"lib").unwrap();
        assert_eq!(text.as_c_str(), c"usr/lib");
        text.pop();
        assert_eq!(text.as_c_str(), c"usr");
        text.pop();
        assert!(text.is_empty());
    }

    #[test]
    fn numbers_are_written_in_decimal() {
        for number in [0, 9, 10, 4_294_967_295_u32] {
            let mut text = Text::new();
            text.append_number(number).unwrap();
            assert_eq!(text.as_bytes(), number.to_string().as_bytes());
        }
    }

    #[test]
    fn what_is_too_long_is_refused_and_changes_nothing() {
        let mut text = Text::from(&[b'a'; LONGEST]).unwrap();
        assert_eq!(text.append(b"b"), Err(Errno::NAMETOOLONG));
        assert_eq!(text.as_bytes().len(), LONGEST);
    }
}
