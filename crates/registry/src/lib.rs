//! The remote registry: credentials, mirrors, TLS, retries, streaming pull and push.
