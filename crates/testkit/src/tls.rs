//! Certificates for tests: an authority, a server on this machine, a client.

use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};
use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;

/// An authority that nobody trusts unless told to, with a server's and a client's certificate.
#[derive(Debug)]
pub struct TestAuthority {
    /// The authority's certificate, PEM.
    pub ca: String,
    /// The client's certificate, PEM.
    pub client: String,
    /// The client's key, PEM.
    pub client_key: String,
    server: String,
    server_key: String,
}

impl TestAuthority {
    /// A new authority.
    ///
    /// # Panics
    /// If the machine gives no random numbers.
    pub fn new() -> Self {
        let ca_key = KeyPair::generate().expect("random numbers");
        let mut params = CertificateParams::new(Vec::new()).expect("no names are valid names");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca = params.self_signed(&ca_key).expect("the key signs").pem();
        let issuer = Issuer::new(params, ca_key);
        let make = |names: Vec<String>, usage| {
            let key = KeyPair::generate().expect("random numbers");
            let mut params = CertificateParams::new(names).expect("the names are valid");
            params.extended_key_usages = vec![usage];
            let cert = params.signed_by(&key, &issuer).expect("the authority signs");
            (cert.pem(), key.serialize_pem())
        };
        let (server, server_key) = make(
            vec!["localhost".into(), "127.0.0.1".into(), "::1".into()],
            ExtendedKeyUsagePurpose::ServerAuth,
        );
        let (client, client_key) = make(vec!["client".into()], ExtendedKeyUsagePurpose::ClientAuth);
        Self { ca, client, client_key, server, server_key }
    }

    /// The certificate and the key of a server on this machine, PEM.
    pub fn server_pem(&self) -> (&str, &str) {
        (&self.server, &self.server_key)
    }

    /// The server's side of TLS; with `ask_client`, only clients of this authority get in. It offers HTTP/2 if `http2`.
    pub(crate) fn server_config(&self, ask_client: bool, http2: bool) -> Arc<rustls::ServerConfig> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let certificate =
            |pem: &str| CertificateDer::from_pem_slice(pem.as_bytes()).expect("it was made here");
        let builder = rustls::ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .expect("ring knows TLS 1.2 and 1.3");
        let builder = if ask_client {
            let mut roots = RootCertStore::empty();
            roots.add(certificate(&self.ca)).expect("it was made here");
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
                .build()
                .expect("the roots are valid");
            builder.with_client_cert_verifier(verifier)
        } else {
            builder.with_no_client_auth()
        };
        let key = PrivateKeyDer::from_pem_slice(self.server_key.as_bytes()).expect("it was made here");
        let mut config = builder.with_single_cert(vec![certificate(&self.server)], key).expect("they fit");
        if http2 {
            config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        }
        Arc::new(config)
    }
}

impl Default for TestAuthority {
    fn default() -> Self {
        Self::new()
    }
}
