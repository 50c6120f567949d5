//! Fetching over HTTP, from plain threads.
//!
//! A [`Fetch`] owns a runtime of one thread that drives the sockets; whoever reads a [`Body`] waits for it as for a file.
//! reqwest's own blocking client was rejected: it knows no limit for a server that falls silent in the middle of a
//! body, only one for the whole transfer. Must not be used from inside an async task (use `spawn_blocking`).

use std::io::{self, Read};
use std::time::Duration;

use bytes::Bytes;
use reqwest::header::HeaderMap;
use tokio::runtime::{Builder, Runtime};

/// A server that does not take a connection for this long is away: one lost SYN is sent again after 1 and 3 s.
const CONNECT_LIMIT: Duration = Duration::from_secs(10);
/// A server that sends nothing for this long is away; a busy one is only slow.
const SILENCE_LIMIT: Duration = Duration::from_secs(60);
/// How often a request is tried when the server is away or cuts the answer.
pub const ATTEMPTS: u32 = 3;
/// Waiting time before the second attempt; doubles with each.
const PAUSE: Duration = Duration::from_millis(250);

/// Why a fetch failed.
#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    /// The client could not be made.
    #[error("setting up the HTTP client")]
    Setup(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The server has no such thing.
    #[error("{url}: not found")]
    NotFound {
        /// What was asked for.
        url: String,
    },
    /// The server answered with an error.
    #[error("{url}: the server answered {status}")]
    Status {
        /// What was asked for.
        url: String,
        /// The status code.
        status: u16,
    },
    /// The server could not be reached, or the connection was cut.
    #[error("{url}: {}", if *.received == 0 { "no answer".to_owned() } else { format!("cut after {received} bytes") })]
    Connection {
        /// What was asked for.
        url: String,
        /// Bytes of the body that came.
        received: u64,
        /// Why.
        #[source]
        source: reqwest::Error,
    },
    /// The answer is larger than it may be.
    #[error("{url}: more than {limit} bytes")]
    TooLarge {
        /// What was asked for.
        url: String,
        /// The limit.
        limit: u64,
    },
}

impl FetchError {
    /// Whether another attempt may help.
    pub fn is_passing(&self) -> bool {
        match self {
            Self::Connection { .. } => true,
            Self::Status { status, .. } => *status >= 500 || *status == 429,
            Self::Setup(_) | Self::NotFound { .. } | Self::TooLarge { .. } => false,
        }
    }
}

/// An HTTP client for plain threads.
pub struct Fetch {
    runtime: Runtime,
    client: reqwest::Client,
}

impl Fetch {
    /// Makes a client with a runtime of its own.
    pub fn new() -> Result<Self, FetchError> {
        Self::with(super::tls::client())
    }

    /// Makes a client of these settings.
    pub fn with(settings: reqwest::ClientBuilder) -> Result<Self, FetchError> {
        let runtime = Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("fetch")
            .enable_all()
            .build()
            .map_err(|error| FetchError::Setup(error.into()))?;
        let client = settings
            .user_agent(concat!("rackstep/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(CONNECT_LIMIT)
            .read_timeout(SILENCE_LIMIT)
            .build()
            .map_err(|error| FetchError::Setup(error.into()))?;
        Ok(Self { runtime, client })
    }

    /// Asks for `url`; the body is read while it comes.
    pub fn get(&self, url: &str) -> Result<Body<'_>, FetchError> {
        let answer = self.send(url, |client| client.get(url))?;
        match answer.status {
            404 | 410 => Err(FetchError::NotFound { url: url.to_owned() }),
            200..300 => Ok(answer.body),
            status => Err(FetchError::Status { url: url.to_owned(), status }),
        }
    }

    /// Sends what `request` makes and gives the answer, whatever its status.
    pub fn send(
        &self,
        url: &str,
        request: impl FnOnce(&reqwest::Client) -> reqwest::RequestBuilder,
    ) -> Result<Answer<'_>, FetchError> {
        let request = request(&self.client);
        let response = // Inside `async`: its timers want the runtime when they are made, not only when they run.
            self.runtime.block_on(async { request.send().await })
            .map_err(|source| FetchError::Connection { url: url.to_owned(), received: 0, source })?;
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        let body = Body {
            fetch: self,
            url: url.to_owned(),
            length: response.content_length(),
            response,
            pending: Bytes::new(),
            received: 0,
            failure: None,
        };
        Ok(Answer { status, headers, body })
    }

    /// Fetches all of a small thing, with a few attempts.
    pub fn get_whole(&self, url: &str, limit: u64) -> Result<Vec<u8>, FetchError> {
        self.attempt(|| self.get(url)?.read_whole(limit))
    }

    /// Tries `act` again while its failure is one that may pass.
    pub fn attempt<T>(&self, act: impl FnMut() -> Result<T, FetchError>) -> Result<T, FetchError> {
        attempt(FetchError::is_passing, act)
    }
}

/// Tries `act` again, a few times, while its failure is one that may pass.
pub fn attempt<T, E: std::fmt::Display>(
    is_passing: impl Fn(&E) -> bool,
    mut act: impl FnMut() -> Result<T, E>,
) -> Result<T, E> {
    let mut attempt = 1;
    loop {
        match act() {
            Err(error) if is_passing(&error) && attempt < ATTEMPTS => {
                tracing::debug!(%error, attempt, "trying again");
                pause_before(attempt);
                attempt += 1;
            }
            outcome => return outcome,
        }
    }
}

/// Waits before the attempt after `attempt`.
pub fn pause_before(attempt: u32) {
    std::thread::sleep(PAUSE * 2u32.pow(attempt.saturating_sub(1).min(6)));
}

/// What a server answered.
pub struct Answer<'f> {
    /// The status code.
    pub status: u16,
    /// The headers.
    pub headers: HeaderMap,
    /// The body, not read yet.
    pub body: Body<'f>,
}

/// The body of an answer, read like a file.
pub struct Body<'f> {
    fetch: &'f Fetch,
    url: String,
    /// Bytes that the server announced.
    pub length: Option<u64>,
    response: reqwest::Response,
    pending: Bytes,
    received: u64,
    /// Why reading failed; kept because `io::Error` goes through decoders that hide it.
    pub failure: Option<FetchError>,
}

impl Body<'_> {
    /// Bytes that came so far.
    pub fn received(&self) -> u64 {
        self.received
    }

    /// Reads all of a small thing.
    pub fn read_whole(mut self, limit: u64) -> Result<Vec<u8>, FetchError> {
        let mut bytes = Vec::new();
        if let Err(error) = (&mut self).take(limit + 1).read_to_end(&mut bytes) {
            return Err(self.failure.unwrap_or_else(|| FetchError::Setup(error.into())));
        }
        if bytes.len() as u64 > limit {
            return Err(FetchError::TooLarge { url: self.url, limit });
        }
        Ok(bytes)
    }
}

impl Read for Body<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.pending.is_empty() {
            match self.fetch.runtime.block_on(async { self.response.chunk().await }) {
                Ok(Some(bytes)) => {
                    self.received += bytes.len() as u64;
                    self.pending = bytes;
                }
                Ok(None) => return Ok(0),
                Err(source) => {
                    let (url, received) = (self.url.clone(), self.received);
                    self.failure = Some(FetchError::Connection { url, received, source });
                    return Err(io::Error::new(io::ErrorKind::ConnectionAborted, "the connection was cut"));
                }
            }
        }
        let count = self.pending.len().min(buffer.len());
        buffer[..count].copy_from_slice(&self.pending.split_to(count));
        Ok(count)
    }
}
