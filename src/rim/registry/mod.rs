//! Container image registries: the pull half of the OCI distribution specification.
//!
//! 1. [`Registry::connect`] finds out how the registry wants to be spoken to: TLS, or plain HTTP where that is allowed;
//! 2. a request that is answered with a challenge is sent again with what the docker config knows, see [`credentials`];
//! 3. [`RegistryImage::open`] reads manifest and config, checks both digests and chooses the platform from an index;
//! 4. its layers stream through [`ImageSource`](crate::formats::image::source::ImageSource), each blob checked, cut downloads resumed.
//!
//! It never pushes, never trusts a tag (whoever asks by tag pins what came by digest), and never falls back from TLS for
//! a registry that is elsewhere, unless asked to.

mod auth;
mod blob;
mod challenge;
pub mod credentials;
mod error;
mod image;

use std::path::{Path, PathBuf};
use std::sync::Mutex;

use reqwest::header::{ACCEPT, AUTHORIZATION, HeaderValue, RANGE};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;

pub use credentials::Credentials;
pub use error::RegistryError;
pub use image::RegistryImage;

use super::fetch::{Answer, Fetch, FetchError, attempt};
use super::tls;
use crate::model::ImageRef;

/// Where Docker keeps authorities of single registries: `HOST:PORT/*.crt`.
const DOCKER_CERTS: &str = "/etc/docker/certs.d";

/// What this machine knows about registries.
#[derive(Debug, Clone, Default)]
pub struct Settings {
    /// Docker's directory of configuration.
    pub docker_config: Option<PathBuf>,
    /// Directory of authorities by registry.
    pub certs: Option<PathBuf>,
}

impl Settings {
    /// What the environment says.
    pub fn observe() -> Self {
        Self { docker_config: credentials::config_dir(), certs: Some(PathBuf::from(DOCKER_CERTS)) }
    }
}

/// One repository of a registry, reached.
pub struct Registry {
    fetch: Fetch,
    /// Scheme and host.
    base: String,
    image: ImageRef,
    credentials: Option<Credentials>,
    /// What the last challenge was answered with.
    authorization: Mutex<Option<HeaderValue>>,
}

impl Registry {
    /// Finds out how the registry of `image` is reached; `insecure` allows plain HTTP, which loopback may do anyway.
    pub fn connect(image: &ImageRef, insecure: bool, settings: &Settings) -> Result<Self, RegistryError> {
        let host = image.api_host();
        let authorities = match &settings.certs {
            Some(dir) => read_authorities(&dir.join(image.registry()))?,
            None => Vec::new(),
        };
        let fetch = Fetch::with(tls::client_trusting(authorities))?;
        let base = if insecure || image.is_loopback() {
            find_scheme(&fetch, host)?
        } else {
            format!("https://{host}")
        };
        let credentials = match &settings.docker_config {
            Some(dir) => credentials::find(dir, image)?,
            None => None,
        };
        Ok(Self { fetch, base, image: image.clone(), credentials, authorization: Mutex::new(None) })
    }

    /// The image that it was connected for.
    pub const fn image(&self) -> &ImageRef {
        &self.image
    }

    /// Asks for something of the repository; `from` is the first byte that is wanted.
    fn get(&self, rest: &str, accept: &str, from: u64) -> Result<Answer<'_>, RegistryError> {
        let url = format!("{}/v2/{}/{rest}", self.base, self.image.repository());
        let send = || {
            self.fetch.send(&url, |client| {
                let mut request = client.get(&url).header(ACCEPT, accept);
                if from > 0 {
                    request = request.header(RANGE, format!("bytes={from}-"));
                }
                match self.authorization() {
                    Some(value) => request.header(AUTHORIZATION, value),
                    None => request,
                }
            })
        };
        let mut answer = send()?;
        if answer.status == 401 {
            // Also after a while: tokens grow old during a long pull.
            self.authorize(&answer.headers)?;
            answer = send()?;
        }
        match answer.status {
            200..300 => Ok(answer),
            401 | 403 => Err(self.denied()),
            404 | 410 => Err(RegistryError::NotFound {
                what: rest.replacen("s/", " ", 1),
                image: Box::new(self.image.clone()),
            }),
            status => Err(FetchError::Status { url, status }.into()),
        }
    }

    /// Fetches all of a small thing and the media type that it came with.
    fn get_whole(
        &self,
        rest: &str,
        accept: &str,
        limit: u64,
    ) -> Result<(Vec<u8>, Option<String>), RegistryError> {
        attempt(RegistryError::is_passing, || {
            let answer = self.get(rest, accept, 0)?;
            let media_type = answer.headers.get(reqwest::header::CONTENT_TYPE);
            let media_type = media_type.and_then(|value| value.to_str().ok()).map(str::to_owned);
            Ok((answer.body.read_whole(limit)?, media_type))
        })
    }

    fn denied(&self) -> RegistryError {
        RegistryError::Denied {
            host: self.image.registry().to_owned(),
            repository: self.image.repository().to_owned(),
            known: self.credentials.is_some(),
        }
    }
}

/// TLS if the registry speaks it and we trust it, else in the clear. Asked without credentials.
fn find_scheme(fetch: &Fetch, host: &str) -> Result<String, RegistryError> {
    let ask = |scheme: &str| {
        let url = format!("{scheme}://{host}/v2/");
        fetch.send(&url, |client| client.get(&url)).map(|answer| answer.status)
    };
    let Err(no_tls) = ask("https") else { return Ok(format!("https://{host}")) };
    match ask("http")? {
        // What servers of TLS say to who speaks in the clear: then the first error is the true one.
        400 => Err(no_tls.into()),
        _ => Ok(format!("http://{host}")),
    }
}

/// Certificates in the `.crt` files of a directory; none if there is no such directory.
fn read_authorities(dir: &Path) -> Result<Vec<CertificateDer<'static>>, RegistryError> {
    let Ok(entries) = std::fs::read_dir(dir) else { return Ok(Vec::new()) };
    let mut found = Vec::new();
    for path in entries.filter_map(|entry| Some(entry.ok()?.path())) {
        if path.extension().is_none_or(|extension| extension != "crt") {
            continue;
        }
        let certificates: Result<Vec<_>, _> =
            CertificateDer::pem_file_iter(&path).and_then(|certificates| certificates.collect());
        let source = |error: rustls::pki_types::pem::Error| std::io::Error::other(error.to_string());
        found.extend(certificates.map_err(|error| RegistryError::Read { path, source: source(error) })?);
    }
    Ok(found)
}
