//! HTTP clients that speak TLS: ring, and the certificates that this machine trusts.
//!
//! Every client of the program is made here. reqwest's own way was rejected: it looks for the machine's certificates
//! whenever a client is made and fails where there are none, as in an installer's initramfs, which speaks plain HTTP.
//! Here such a machine has clients that trust no TLS server.

use std::sync::LazyLock;

use rustls::pki_types::CertificateDer;
use rustls::{ClientConfig, RootCertStore};

/// The machine's certificates, read once: `SSL_CERT_FILE`, `SSL_CERT_DIR`, or where distributions keep them.
static ROOTS: LazyLock<RootCertStore> = LazyLock::new(|| {
    let mut roots = RootCertStore::empty();
    let found = rustls_native_certs::load_native_certs();
    for error in &found.errors {
        tracing::debug!(%error, "reading the machine's certificates");
    }
    // What this library does not understand is left out, as by every other program: one odd entry must not end them all.
    roots.add_parsable_certificates(found.certs);
    roots
});

static MACHINE: LazyLock<ClientConfig> = LazyLock::new(|| trust(ROOTS.clone()));

/// A client's settings, without a limit of time.
#[expect(clippy::disallowed_methods, reason = "the one place")]
pub fn client() -> reqwest::ClientBuilder {
    reqwest::Client::builder().tls_backend_preconfigured(MACHINE.clone())
}

/// The same for a client that blocks.
#[expect(clippy::disallowed_methods, reason = "the one place")]
pub fn blocking_client() -> reqwest::blocking::ClientBuilder {
    reqwest::blocking::Client::builder().tls_backend_preconfigured(MACHINE.clone())
}

/// A client's settings that trust these authorities besides the machine's own.
#[expect(clippy::disallowed_methods, reason = "the one place")]
pub fn client_trusting(authorities: Vec<CertificateDer<'static>>) -> reqwest::ClientBuilder {
    if authorities.is_empty() {
        return client();
    }
    let mut roots = ROOTS.clone();
    roots.add_parsable_certificates(authorities);
    reqwest::Client::builder().tls_backend_preconfigured(trust(roots))
}

fn trust(roots: RootCertStore) -> ClientConfig {
    ClientConfig::builder().with_root_certificates(roots).with_no_client_auth()
}
