//! Makes bytes an archive again.

const BLOCK: usize = 512;

/// Sets the checksum of every header that is found by going from one to the next, and the lengths of PAX records.
///
/// With `all`, modes become numbers, and sizes that lead beyond the end are set to what there is.
pub fn archive(bytes: &mut [u8], all: bool) {
    let mut at = 0;
    while let Some(header) = bytes.get_mut(at..at + BLOCK) {
        if header.iter().all(|byte| *byte == 0) {
            return;
        }
        let kind = header[156];
        let holds_data = !matches!(kind, b'1'..=b'6');
        let mut size = if holds_data { number(&header[124..136]) } else { 0 };
        let mut data = at + BLOCK;
        let mut more = kind == b'S' && header[482] != 0;
        let beyond = bytes.len() - data;
        if all {
            for byte in &mut bytes[at + 100..at + 107] {
                *byte = b'0' | *byte & 7;
            }
            size = size.min(beyond);
            bytes[at + 124..at + 136].copy_from_slice(format!("{size:011o}\0").as_bytes());
        }
        set_sum(&mut bytes[at..at + BLOCK]);
        // Maps of sparse files stand before the data.
        while more && let Some(map) = bytes.get(data..data + BLOCK) {
            more = map[504] != 0;
            data += BLOCK;
        }
        let end = data.saturating_add(size).min(bytes.len());
        if matches!(kind, b'x' | b'g') && data < end {
            records(&mut bytes[data..end]);
        }
        at = end.next_multiple_of(BLOCK);
    }
}

/// A number in octal digits, or in base 256.
fn number(field: &[u8]) -> usize {
    if field[0] & 0x80 != 0 {
        return field[4..].iter().fold(0, |value, byte| value << 8 | usize::from(*byte));
    }
    let digits =
        field.iter().skip_while(|byte| **byte == b' ').take_while(|byte| (b'0'..=b'7').contains(byte));
    digits.fold(0, |value, digit| value << 3 | usize::from(digit - b'0'))
}

fn set_sum(header: &mut [u8]) {
    header[148..156].fill(b' ');
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
}

/// Sets each record's length to what its line has, in as many digits as stand there.
fn records(mut data: &mut [u8]) {
    while let Some(end) = data.iter().position(|byte| *byte == b'\n') {
        let (line, rest) = data.split_at_mut(end + 1);
        let digits = line.iter().take_while(|byte| byte.is_ascii_digit()).count();
        let text = format!("{:0digits$}", line.len());
        if digits > 0 && text.len() == digits {
            line[..digits].copy_from_slice(text.as_bytes());
        }
        data = rest;
    }
}
