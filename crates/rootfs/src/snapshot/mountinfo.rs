//! Reads the text of `/proc/self/mountinfo` (proc(5)): where something is mounted in the container. What is mounted
//! there belongs to the pod and not to the image, so rung `root` neither deletes it nor records it.

/// The places in `text` where something is mounted, as absolute paths, without the root itself, sorted and each once.
///
/// Lines that can't be read are passed over: a kernel may add fields, and a line without a mount point names none.
pub fn mount_points(text: &[u8]) -> Vec<Vec<u8>> {
    let mut points: Vec<Vec<u8>> = text
        .split(|byte| *byte == b'\n')
        .filter_map(|line| line.split(|byte| *byte == b' ').nth(4))
        .map(unescape)
        .filter(|point| point.first() == Some(&b'/') && point.len() > 1)
        .collect();
    points.sort();
    points.dedup();
    points
}

/// Turns `\040` and its like back into the byte that the kernel wrote so.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&first, tail)) = rest.split_first() {
        if let (b'\\', Some(byte)) = (first, tail.get(..3).and_then(octal)) {
            out.push(byte);
            rest = &tail[3..];
        } else {
            out.push(first);
            rest = tail;
        }
    }
    out
}

fn octal(digits: &[u8]) -> Option<u8> {
    let mut value = 0u32;
    for digit in digits {
        if !(b'0'..=b'7').contains(digit) {
            return None;
        }
        value = value * 8 + u32::from(digit - b'0');
    }
    u8::try_from(value).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const POD: &[u8] = b"\
1206 973 0:245 / / rw,relatime master:387 - overlay overlay rw,lowerdir=/var/lib/l/A
1207 1206 0:249 / /proc rw,nosuid,nodev,noexec,relatime - proc proc rw
1208 1206 0:250 / /dev rw,nosuid - tmpfs tmpfs rw,size=65536k,mode=755
1209 1208 0:251 / /dev/pts rw,nosuid,noexec,relatime - devpts devpts rw
1212 1206 8:1 /var/lib/kubelet/pods/x/etc-hosts /etc/hosts rw,relatime - ext4 /dev/sda1 rw
1213 1206 8:1 /vol /with\\040space\\134 rw,relatime shared:3 master:4 - ext4 /dev/sda1 rw
1214 1206 8:1 /vol /dev rw,relatime - ext4 /dev/sda1 rw
";

    #[test]
    fn every_mount_point_but_the_root_is_listed_once() {
        let points = mount_points(POD);
        let texts: Vec<_> = points.iter().map(|point| String::from_utf8_lossy(point).into_owned()).collect();
        assert_eq!(texts, ["/dev", "/dev/pts", "/etc/hosts", "/proc", "/with space\\"]);
    }

    #[test]
    fn lines_that_make_no_sense_are_passed_over() {
        assert!(mount_points(b"\n1 2\nx y z a relative rw\n\xff\xfe").is_empty());
    }

    #[test]
    fn a_backslash_without_three_octal_digits_stays() {
        assert_eq!(unescape(br"a\04\999\040"), br"a\04\999 ".to_vec());
    }
}
