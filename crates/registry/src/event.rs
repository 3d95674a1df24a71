//! What a registry tells its caller while it works. The library prints nothing: the caller makes bars, lines or JSON of
//! these, and a test a `Vec`.

use std::time::Duration;

use kiln_oci::{Digest, Repository};

/// News of a transfer. No event holds a secret.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event {
    /// More of a blob has arrived.
    Received {
        /// Which blob.
        digest: Digest,
        /// How much of it is here, in bytes from its start.
        bytes: u64,
        /// Its size.
        of: u64,
    },
    /// More of a blob was sent.
    Sent {
        /// Which blob.
        digest: Digest,
        /// How much of it was handed to the network, in bytes from its start. A resumed upload may go back.
        bytes: u64,
        /// Its size.
        of: u64,
    },
    /// A blob needn't be sent: the repository has it.
    Present {
        /// Which blob.
        digest: Digest,
        /// Where it is.
        repository: Repository,
    },
    /// A blob needn't be sent: it was mounted from another repository of the same registry.
    Mounted {
        /// Which blob.
        digest: Digest,
        /// Where it was.
        from: Repository,
    },
    /// A request failed and will be repeated.
    Retrying {
        /// What was tried, on what and where.
        what: String,
        /// How it failed.
        why: String,
        /// The number of the coming repetition, from 1.
        attempt: u32,
        /// How many repetitions there may be.
        of: u32,
        /// The pause until then.
        after: Duration,
    },
    /// A mirror failed, and the next place is asked.
    FallingBack {
        /// The host that failed.
        from: String,
        /// The host that is asked now.
        to: String,
        /// How it failed.
        why: String,
    },
    /// A registry is spoken to without TLS.
    PlainHttp {
        /// The registry's host.
        host: String,
    },
    /// What is said about a manifest is in the registry, but in no list there.
    NotListed {
        /// The manifest that something is said about.
        subject: Digest,
        /// How listing it failed.
        why: String,
    },
    /// A source of credentials could not be used; the next one is asked.
    CredentialsFailed {
        /// The source: a file, a helper program, a cloud.
        source: String,
        /// How it failed.
        why: String,
    },
}
