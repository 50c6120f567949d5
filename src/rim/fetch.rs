//! Fetching over HTTP, from plain threads.
//!
//! A [`Fetch`] owns a runtime of one thread that drives the sockets; whoever reads a [`Body`] waits for it as for a file.
//! reqwest's own blocking client was rejected: it knows no limit for a server that falls silent in the middle of a
//! body, only one for the whole transfer. Must not be used from inside an async task (use `spawn_blocking`).
//!
//! What a server can make us do is bounded: by a size before an answer is read, by a least rate while it comes
//! ([`LeastRate`]), and by redirects that lead to HTTP and HTTPS alone.

use std::io::{self, Read};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

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

/// Redirects that are followed for one answer.
const REDIRECTS: usize = 10;
/// Bytes a second that a server must send, unless the person says otherwise: a slow modem gives as much.
pub const DEFAULT_LEAST_RATE: u64 = 4 << 10;
/// Over how much waiting the rate is taken: shorter stalls are nobody's fault.
const RATE_WINDOW: Duration = Duration::from_secs(60);

static LEAST_RATE: AtomicU64 = AtomicU64::new(DEFAULT_LEAST_RATE);

/// Sets the rate, in bytes a second, below which clients made from now on give a server up; 0: never.
pub fn set_least_rate(bytes_a_second: u64) {
    LEAST_RATE.store(bytes_a_second, Ordering::Relaxed);
}

/// Below which rate a server is given up. Only waiting for the server counts: whoever reads slowly is not its fault.
#[derive(Debug, Clone, Copy)]
struct LeastRate {
    /// Bytes a second; 0: any.
    rate: u64,
    window: Duration,
}

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
    /// The answer comes too slowly.
    #[error("{url}: {received} bytes came, the last of them at less than {rate} bytes a second (--min-rate)")]
    TooSlow {
        /// What was asked for.
        url: String,
        /// Bytes of the body that came.
        received: u64,
        /// The least rate.
        rate: u64,
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
            Self::Connection { .. } | Self::TooSlow { .. } => true,
            Self::Status { status, .. } => *status >= 500 || *status == 429,
            Self::Setup(_) | Self::NotFound { .. } | Self::TooLarge { .. } => false,
        }
    }
}

/// An HTTP client for plain threads.
pub struct Fetch {
    runtime: Runtime,
    client: reqwest::Client,
    least: LeastRate,
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
            .redirect(reqwest::redirect::Policy::custom(follow))
            .build()
            .map_err(|error| FetchError::Setup(error.into()))?;
        let least = LeastRate { rate: LEAST_RATE.load(Ordering::Relaxed), window: RATE_WINDOW };
        Ok(Self { runtime, client, least })
    }

    /// The same client with another least rate.
    #[cfg(test)]
    pub(crate) fn with_least_rate(self, rate: u64, window: Duration) -> Self {
        Self { least: LeastRate { rate, window }, ..self }
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
            limit: u64::MAX,
            waited: Duration::ZERO,
            since: 0,
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

/// Follows redirects to the web alone, and not for ever.
fn follow(attempt: reqwest::redirect::Attempt<'_>) -> reqwest::redirect::Action {
    let scheme = attempt.url().scheme();
    if !matches!(scheme, "http" | "https") {
        let why = format!("redirected to {scheme}:, which is neither http nor https");
        return attempt.error(why);
    }
    if attempt.previous().len() > REDIRECTS {
        return attempt.error("redirected too often");
    }
    attempt.follow()
}

/// Tries `act` again, a few times, while its failure is one that may pass.
pub fn attempt<T, E: std::fmt::Debug>(
    is_passing: impl Fn(&E) -> bool,
    mut act: impl FnMut() -> Result<T, E>,
) -> Result<T, E> {
    let mut attempt = 1;
    loop {
        match act() {
            Err(error) if is_passing(&error) && attempt < ATTEMPTS => {
                tracing::debug!(?error, attempt, "trying again");
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
    /// More bytes than this end it.
    limit: u64,
    /// Time spent waiting for the server since the rate was last looked at, and what had come by then.
    waited: Duration,
    since: u64,
    /// Why reading failed; kept because `io::Error` goes through decoders that hide it.
    pub failure: Option<FetchError>,
}

impl Body<'_> {
    /// Bytes that came so far.
    pub fn received(&self) -> u64 {
        self.received
    }

    /// Ends the body where it is larger than `limit`; one that is announced to be is not read at all.
    pub fn bound(&mut self, limit: u64) {
        self.limit = limit;
    }

    /// Reads all of a small thing.
    pub fn read_whole(mut self, limit: u64) -> Result<Vec<u8>, FetchError> {
        self.bound(limit);
        let mut bytes = Vec::new();
        match self.read_to_end(&mut bytes) {
            Ok(_) => Ok(bytes),
            Err(error) => Err(self.failure.unwrap_or_else(|| FetchError::Setup(error.into()))),
        }
    }

    fn is_too_large(&self) -> bool {
        self.received > self.limit || self.length.is_some_and(|length| length > self.limit)
    }

    /// Counts time spent on the server; true when it had its window and did not send enough.
    fn is_too_slow(&mut self, waited: Duration) -> bool {
        let LeastRate { rate, window } = self.fetch.least;
        self.waited += waited;
        if self.waited < window {
            return false;
        }
        let least = rate.saturating_mul(window.as_millis() as u64) / 1000;
        let came = self.received - self.since;
        (self.waited, self.since) = (Duration::ZERO, self.received);
        came < least
    }

    /// The next bytes of the body; none: its end.
    fn next_bytes(&mut self) -> Result<Option<Bytes>, FetchError> {
        if self.is_too_large() {
            return Err(FetchError::TooLarge { url: self.url.clone(), limit: self.limit });
        }
        let began = Instant::now();
        let chunk = self.fetch.runtime.block_on(async { self.response.chunk().await });
        let (url, received) = (self.url.clone(), self.received);
        let chunk = chunk.map_err(|source| FetchError::Connection { url, received, source })?;
        let Some(bytes) = chunk else { return Ok(None) };
        self.received += bytes.len() as u64;
        if self.is_too_large() {
            return Err(FetchError::TooLarge { url: self.url.clone(), limit: self.limit });
        }
        if self.is_too_slow(began.elapsed()) {
            let (url, received, rate) = (self.url.clone(), self.received, self.fetch.least.rate);
            return Err(FetchError::TooSlow { url, received, rate });
        }
        Ok(Some(bytes))
    }
}

impl Read for Body<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.pending.is_empty() {
            match self.next_bytes() {
                Ok(Some(bytes)) => self.pending = bytes,
                Ok(None) => return Ok(0),
                Err(error) => {
                    self.failure = Some(error);
                    return Err(io::Error::new(io::ErrorKind::ConnectionAborted, "the connection was cut"));
                }
            }
        }
        let count = self.pending.len().min(buffer.len());
        buffer[..count].copy_from_slice(&self.pending.split_to(count));
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::net::TcpListener;

    /// A server that gives every connection what `answer` writes, until the client has enough.
    fn serve(answer: impl Fn(&mut dyn Write) -> io::Result<()> + Send + 'static) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/x", listener.local_addr().unwrap());
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let mut request = [0; 1024];
                if stream.read(&mut request).is_ok() {
                    // The client hangs up when it has had enough.
                    let _ = answer(&mut stream);
                }
            }
        });
        url
    }

    fn fetch(rate: u64, window: Duration) -> Fetch {
        Fetch::new().unwrap().with_least_rate(rate, window)
    }

    #[test]
    fn a_byte_now_and_then_is_given_up() {
        let url = serve(|stream| {
            stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n")?;
            loop {
                stream.write_all(b"x")?;
                std::thread::sleep(Duration::from_millis(5));
            }
        });
        let slow = fetch(1 << 20, Duration::from_millis(200));
        let error = slow.get(&url).unwrap().read_whole(1 << 30).unwrap_err();
        assert!(matches!(error, FetchError::TooSlow { rate, .. } if rate == 1 << 20), "{error}");
        assert!(error.is_passing());
    }

    #[test]
    fn an_answer_is_bounded_before_it_is_read() {
        let announced = serve(|stream| {
            stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 60000000000\r\n\r\n")?;
            loop {
                stream.write_all(&[0; 4096])?;
            }
        });
        let endless = serve(|stream| {
            stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n")?;
            loop {
                stream.write_all(&[0; 4096])?;
            }
        });
        let client = fetch(DEFAULT_LEAST_RATE, RATE_WINDOW);
        let mut body = client.get(&announced).unwrap();
        body.bound(1 << 16);
        assert!(body.read(&mut [0; 16]).is_err());
        assert!(matches!(body.failure, Some(FetchError::TooLarge { limit: 65536, .. })));
        assert_eq!(body.received(), 0);
        let error = client.get_whole(&endless, 1 << 16).unwrap_err();
        assert!(matches!(error, FetchError::TooLarge { limit: 65536, .. }), "{error}");
    }

    #[test]
    fn redirects_lead_to_the_web_alone() {
        let good = serve(|stream| stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"));
        let client = fetch(DEFAULT_LEAST_RATE, RATE_WINDOW);
        for (location, followed) in
            [(good.as_str(), true), ("file:///etc/shadow", false), ("ftp://127.0.0.1/x", false)]
        {
            let head = format!("HTTP/1.1 302 Found\r\nLocation: {location}\r\nContent-Length: 0\r\n\r\n");
            let url = serve(move |stream| stream.write_all(head.as_bytes()));
            let answer = client.get(&url).and_then(|body| body.read_whole(16));
            assert_eq!(answer.as_deref().ok() == Some(b"ok"), followed, "{location}: {answer:?}");
        }
    }
}
