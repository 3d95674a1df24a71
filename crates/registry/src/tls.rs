//! TLS for each host: Mozilla's roots, built in, beside the files that were given; client certificates; and, where it
//! was asked for, no verification. The provider (ring) is named here and installed nowhere.

use std::collections::{BTreeSet, HashSet};
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};

use crate::RegistryError;
use crate::options::TlsOptions;
use crate::scheme::same_host;

/// The certificates that were read when the registry was made.
#[derive(Debug)]
pub(crate) struct Trust {
    provider: Arc<CryptoProvider>,
    roots: RootCertStore,
    registry_roots: Vec<(String, Vec<CertificateDer<'static>>)>,
    identities: Vec<(String, Identity)>,
}

#[derive(Debug)]
struct Identity {
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
}

impl Trust {
    /// Reads all files that `options` names.
    ///
    /// Fails with [`RegistryError::Options`] for a file that was named for a host and can't be used. Folders and files
    /// of general trust may be missing, and what is no certificate in them is passed over.
    pub(crate) fn read(options: &TlsOptions) -> Result<Self, RegistryError> {
        let mut authorities = Authorities::built_in();
        for file in &options.ca_files {
            authorities.add_file(file);
        }
        for folder in &options.ca_dirs {
            let entries = fs::read_dir(folder).into_iter().flatten().flatten();
            for path in entries.map(|entry| entry.path()) {
                authorities.add_file(&path);
            }
        }
        let mut registry_roots = Vec::new();
        for (host, file) in &options.registry_certificates {
            let found = certificates(file).map_err(|why| unusable("the registry certificate", file, why))?;
            registry_roots.push((host.clone(), found));
        }
        let mut identities = Vec::new();
        for (host, chain, key) in &options.client_certificates {
            let identity = Identity {
                chain: certificates(chain).map_err(|why| unusable("the client certificate", chain, why))?,
                key: PrivateKeyDer::from_pem_file(key)
                    .map_err(|error| unusable("the client certificate's key", key, error.to_string()))?,
            };
            identities.push((host.clone(), identity));
        }
        Ok(Self {
            provider: Arc::new(rustls::crypto::ring::default_provider()),
            roots: authorities.roots,
            registry_roots,
            identities,
        })
    }

    /// Whether `host` has certificates of its own.
    pub(crate) fn is_special(&self, host: &str) -> bool {
        self.registry_roots.iter().any(|(name, _)| same_host(name, host))
            || self.identities.iter().any(|(name, _)| same_host(name, host))
    }

    /// The hosts that have certificates of their own.
    pub(crate) fn special_hosts(&self) -> BTreeSet<String> {
        let roots = self.registry_roots.iter().map(|(name, _)| name);
        roots.chain(self.identities.iter().map(|(name, _)| name)).cloned().collect()
    }

    /// The TLS configuration for `host`, or for any host without certificates of its own.
    pub(crate) fn config(
        &self,
        host: Option<&str>,
        verify: bool,
        http2: bool,
    ) -> Result<ClientConfig, RegistryError> {
        let failed = |error: rustls::Error| {
            unusable(
                "the TLS configuration of",
                Path::new(host.unwrap_or("all registries")),
                error.to_string(),
            )
        };
        let is_ours = |name: &str| host.is_some_and(|host| same_host(name, host));
        let builder = ClientConfig::builder_with_provider(Arc::clone(&self.provider))
            .with_safe_default_protocol_versions()
            .map_err(failed)?;
        let builder = if verify {
            let mut roots = self.roots.clone();
            for (_, own) in self.registry_roots.iter().filter(|(name, _)| is_ours(name)) {
                roots.add_parsable_certificates(own.iter().cloned());
            }
            builder.with_root_certificates(roots)
        } else {
            let verifier = Arc::new(AnyCertificate(Arc::clone(&self.provider)));
            builder.dangerous().with_custom_certificate_verifier(verifier)
        };
        let mut config = match self.identities.iter().find(|(name, _)| is_ours(name)) {
            Some((_, identity)) => builder
                .with_client_auth_cert(identity.chain.clone(), identity.key.clone_key())
                .map_err(failed)?,
            None => builder.with_no_client_auth(),
        };
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        if http2 {
            config.alpn_protocols.insert(0, b"h2".to_vec());
        }
        Ok(config)
    }
}

/// Certificate authorities for all hosts, each once. The folders of a distribution have every one of them under several
/// names and in a bundle, and what is read here, every command waits for.
struct Authorities {
    roots: RootCertStore,
    seen: HashSet<CertificateDer<'static>>,
    /// Files that were read, by device and inode.
    files: HashSet<(u64, u64)>,
}

impl Authorities {
    fn built_in() -> Self {
        let (seen, files) = (HashSet::new(), HashSet::new());
        let mut authorities = Self { roots: RootCertStore::empty(), seen, files };
        authorities.add(webpki_root_certs::TLS_SERVER_ROOT_CERTS.iter().cloned());
        authorities
    }

    fn add(&mut self, certificates: impl IntoIterator<Item = CertificateDer<'static>>) {
        let new = certificates.into_iter().filter(|certificate| self.seen.insert(certificate.clone()));
        self.roots.add_parsable_certificates(new);
    }

    /// Adds what is in a file, if it is one and has certificates.
    fn add_file(&mut self, path: &Path) {
        let Ok(meta) = fs::metadata(path) else { return };
        if meta.is_file() && self.files.insert((meta.dev(), meta.ino())) {
            self.add(certificates(path).unwrap_or_default());
        }
    }
}

fn unusable(what: &'static str, path: &Path, why: String) -> RegistryError {
    RegistryError::Options { what, path: PathBuf::from(path), why }
}

fn certificates(file: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let found: Vec<_> = CertificateDer::pem_file_iter(file)
        .map_err(|error| error.to_string())?
        .collect::<Result<_, _>>()
        .map_err(|error| error.to_string())?;
    if found.is_empty() { Err("there is no PEM certificate in it".to_owned()) } else { Ok(found) }
}

/// Accepts any certificate (`--skip-tls-verify`). Signatures are still checked, so that the handshake is a real one.
#[derive(Debug)]
struct AnyCertificate(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, signature, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, signature, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_authority_counts_once_in_however_many_files_it_is() {
        use base64::Engine as _;

        let built_in = Trust::read(&TlsOptions::default()).unwrap().roots.len();
        let folder = tempfile::tempdir().unwrap();
        let pem = |certificate: &[u8]| {
            let text = base64::engine::general_purpose::STANDARD.encode(certificate);
            format!("-----BEGIN CERTIFICATE-----\n{text}\n-----END CERTIFICATE-----\n")
        };
        let known = pem(&webpki_root_certs::TLS_SERVER_ROOT_CERTS[0]);
        let own = rcgen::generate_simple_self_signed(["own".to_owned()]).unwrap().cert.pem();
        fs::write(folder.path().join("bundle.pem"), known.clone() + &own).unwrap();
        fs::write(folder.path().join("own.pem"), own).unwrap();
        fs::write(folder.path().join("known.pem"), known).unwrap();
        std::os::unix::fs::symlink("own.pem", folder.path().join("1a2b3c4d.0")).unwrap();
        fs::create_dir(folder.path().join("folder")).unwrap();
        let options = TlsOptions {
            ca_files: vec![folder.path().join("bundle.pem")],
            ca_dirs: vec![folder.path().to_owned()],
            ..TlsOptions::default()
        };
        assert_eq!(Trust::read(&options).unwrap().roots.len(), built_in + 1);
    }

    #[test]
    fn a_missing_ca_file_is_no_error_and_a_missing_registry_certificate_is() {
        let options = TlsOptions { ca_files: vec!["/no/such/file".into()], ..TlsOptions::default() };
        let trust = Trust::read(&options).unwrap();
        assert!(trust.roots.len() > 50);
        assert!(trust.config(None, true, true).is_ok());
        let options = TlsOptions {
            registry_certificates: vec![("reg.io".into(), "/no/such/file".into())],
            ..TlsOptions::default()
        };
        let error = Trust::read(&options).unwrap_err().to_string();
        assert!(error.contains("/no/such/file"), "{error}");
    }
}
