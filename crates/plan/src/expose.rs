//! EXPOSE's port words, as docker reads them: `[[ip:]public:]port[-end][/protocol]`; only the container's ports count.

/// The `port/protocol` entries that one word means.
///
/// Fails with a sentence that says what is wrong with the word.
pub(crate) fn ports(word: &str) -> Result<Vec<String>, String> {
    let container = word.rsplit(':').next().unwrap_or(word);
    let (range, protocol) = container.split_once('/').unwrap_or((container, "tcp"));
    let protocol = if protocol.is_empty() { "tcp".to_owned() } else { protocol.to_ascii_lowercase() };
    if !matches!(protocol.as_str(), "tcp" | "udp" | "sctp") {
        return Err(format!("{word:?}: the protocol is tcp, udp or sctp, not {protocol:?}"));
    }
    let number = |text: &str| {
        // A sign before it is no harm.
        let text = text.strip_prefix('+').unwrap_or(text);
        if text.is_empty() || !text.bytes().all(|b| b.is_ascii_digit()) {
            return Err(format!(
                "{word:?} is not a port: write a number from 0 to 65535, a range, or port/protocol"
            ));
        }
        text.parse::<u16>().map_err(|_| format!("{word:?}: a port is at most 65535"))
    };
    let (first, last) = match range.split_once('-') {
        Some((first, last)) => (number(first)?, number(last)?),
        None => (number(range)?, number(range)?),
    };
    if last < first {
        return Err(format!("{word:?}: the range ends before it begins"));
    }
    Ok((first..=last).map(|port| format!("{port}/{protocol}")).collect())
}

#[cfg(test)]
mod tests {
    use super::ports;

    #[test]
    fn ranges_protocols_and_addresses_are_read() {
        assert_eq!(ports("80").unwrap(), ["80/tcp"]);
        assert_eq!(ports("53/UDP").unwrap(), ["53/udp"]);
        assert_eq!(ports("8000-8002/sctp").unwrap(), ["8000/sctp", "8001/sctp", "8002/sctp"]);
        assert_eq!(ports("127.0.0.1:8080:80").unwrap(), ["80/tcp"]);
        assert_eq!(ports("+80").unwrap(), ["80/tcp"]);
    }

    #[test]
    fn nonsense_is_refused() {
        for word in ["", "x", "80/x", "90-80", "70000", "/tcp", "-1"] {
            assert!(ports(word).is_err(), "{word}");
        }
    }
}
