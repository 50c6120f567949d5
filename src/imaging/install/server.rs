//! Talks to the rack server: inventory in, answer out, events as they happen.
//!
//! 1. The inventory is sent until it is answered, a bounded number of times: without an answer nothing is done.
//! 2. Events go through a thread of their own; the newest progress replaces an unsent one, and a server that does not
//!    answer never holds up or fails the imaging.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::steps::Step;
use crate::model::Progress;
use crate::model::imaging::{ImagingAnswer, Inventory, MachineEvent};

/// How often the inventory is sent; with [`RETRY_AFTER`] about two minutes, enough for a server that restarts.
const ATTEMPTS: u32 = 24;
const RETRY_AFTER: Duration = Duration::from_secs(5);
/// How long one exchange may take.
const EXCHANGE_TIMEOUT: Duration = Duration::from_secs(10);
/// Progress within a step is told no more often than this.
const PROGRESS_EVERY: Duration = Duration::from_secs(1);
/// How often the last word (`done`, `failed`) is tried.
const LAST_WORD_ATTEMPTS: u32 = 3;

/// Why the server gave no answer.
#[derive(Debug, thiserror::Error)]
#[error("asking {url} what to do, {attempts} times")]
pub struct ServerError {
    url: String,
    attempts: u32,
    #[source]
    source: reqwest::Error,
}

/// The rack server, as one machine sees it.
#[derive(Debug, Clone)]
pub struct RackServer {
    base: String,
    secret: String,
    client: reqwest::blocking::Client,
}

impl RackServer {
    /// The server at `url`, for the machine with the card `mac` (lower case, parts divided by '-') and the attempt's secret.
    pub fn new(url: &str, mac: &str, secret: &str) -> Result<Self, ServerError> {
        let base = format!("{}/v1/machines/{mac}", url.trim_end_matches('/'));
        let client = crate::rim::tls::blocking_client()
            .timeout(EXCHANGE_TIMEOUT)
            .build()
            .map_err(|source| ServerError { url: base.clone(), attempts: 0, source })?;
        Ok(Self { base, secret: secret.to_owned(), client })
    }

    /// Sends what was seen and gives the answer. Sending it again is harmless: it is the same machine looking the same.
    pub fn ask(&self, inventory: &Inventory) -> Result<ImagingAnswer, ServerError> {
        let url = format!("{}/inventory", self.base);
        let mut attempts = 0;
        loop {
            attempts += 1;
            let answer = self
                .client
                .post(&url)
                .bearer_auth(&self.secret)
                .json(inventory)
                .send()
                .and_then(|response| response.error_for_status()?.json::<ImagingAnswer>());
            match answer {
                Ok(answer) => return Ok(answer),
                Err(source) if attempts >= ATTEMPTS || is_final(&source) => {
                    return Err(ServerError { url, attempts, source: source.without_url() });
                }
                Err(error) => {
                    tracing::warn!(%error, attempts, "the rack server does not answer");
                    thread::sleep(RETRY_AFTER);
                }
            }
        }
    }

    fn tell(&self, event: &MachineEvent) -> Result<(), reqwest::Error> {
        let request = self.client.post(format!("{}/events", self.base)).bearer_auth(&self.secret);
        request.json(event).send()?.error_for_status()?;
        Ok(())
    }
}

/// An answer that will be the same next time: the request is wrong, or we do not understand each other.
fn is_final(error: &reqwest::Error) -> bool {
    error.is_decode() || error.status().is_some_and(|status| status.is_client_error())
}

/// Tells the server what happens, without ever waiting for it.
#[derive(Debug)]
pub struct Reporter {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
    order: Option<String>,
    now: Mutex<Now>,
}

/// Where the work is.
#[derive(Debug)]
struct Now {
    step: Step,
    stage: String,
    done: u64,
    total: Option<u64>,
    told: Instant,
}

#[derive(Debug, Default)]
struct Shared {
    queue: Mutex<Queue>,
    filled: Condvar,
}

#[derive(Debug, Default)]
struct Queue {
    events: VecDeque<MachineEvent>,
    closed: bool,
}

impl Reporter {
    /// Starts to report to `server` about `order`.
    pub fn start(server: RackServer, order: Option<String>) -> Self {
        let shared = Arc::new(Shared::default());
        let thread = thread::spawn({
            let shared = Arc::clone(&shared);
            move || send_all(&shared, &server)
        });
        let now = Now { step: Step::Check, stage: String::new(), done: 0, total: None, told: Instant::now() };
        Self { shared, thread: Some(thread), order, now: Mutex::new(now) }
    }

    /// A step begins.
    pub fn enter(&self, step: Step) {
        self.now().step = step;
    }

    /// The last word (`done`, `failed`): waits until it is sent, or until that is hopeless.
    pub fn finish(mut self, step: &str, message: String) {
        self.put(MachineEvent { order: self.order.clone(), step: step.to_owned(), message, progress: None });
        self.close();
    }

    fn close(&mut self) {
        lock(&self.shared.queue).closed = true;
        self.shared.filled.notify_one();
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            tracing::warn!("the reporting thread ended badly");
        }
    }

    fn now(&self) -> MutexGuard<'_, Now> {
        lock(&self.now)
    }

    fn put(&self, event: MachineEvent) {
        let mut queue = lock(&self.shared.queue);
        let replaces =
            queue.events.back().is_some_and(|last| last.progress.is_some() && last.step == event.step);
        if replaces {
            queue.events.pop_back();
        }
        queue.events.push_back(event);
        drop(queue);
        self.shared.filled.notify_one();
    }

    fn tell(&self, now: &Now, message: String) {
        let progress = now.total.map(|total| (now.done.min(total), total));
        let step = now.step.name().to_owned();
        self.put(MachineEvent { order: self.order.clone(), step, message, progress });
    }
}

impl Drop for Reporter {
    fn drop(&mut self) {
        self.close();
    }
}

impl Progress for Reporter {
    fn begin(&self, stage: &str, total: Option<u64>) {
        let mut now = self.now();
        (now.stage, now.done, now.total, now.told) = (stage.to_owned(), 0, total, Instant::now());
        self.tell(&now, stage.to_owned());
    }

    fn advance(&self, amount: u64) {
        let mut now = self.now();
        now.done += amount;
        if now.total.is_some() && now.told.elapsed() >= PROGRESS_EVERY {
            now.told = Instant::now();
            self.tell(&now, now.stage.clone());
        }
    }

    fn end(&self, summary: &str) {
        let now = self.now();
        if !summary.is_empty() {
            self.tell(&now, format!("{}: {summary}", now.stage));
        }
    }
}

/// Sends events until the queue is closed and empty; gives up on the rest when the server is away at the end.
fn send_all(shared: &Shared, server: &RackServer) {
    while let Some((event, is_last)) = next(shared) {
        let attempts = if is_last { LAST_WORD_ATTEMPTS } else { 1 };
        for attempt in 1..=attempts {
            match server.tell(&event) {
                Ok(()) => break,
                Err(error) => {
                    tracing::warn!(%error, step = event.step, attempt, "event not told");
                    // Older ones that wait would each take as long to fail: only the newest is worth it.
                    let mut queue = lock(&shared.queue);
                    let old = queue.events.len().saturating_sub(1);
                    queue.events.drain(..old);
                }
            }
        }
    }
}

fn next(shared: &Shared) -> Option<(MachineEvent, bool)> {
    let mut queue = lock(&shared.queue);
    loop {
        if let Some(event) = queue.events.pop_front() {
            return Some((event, queue.closed && queue.events.is_empty()));
        }
        if queue.closed {
            return None;
        }
        queue = shared.filled.wait(queue).unwrap_or_else(PoisonError::into_inner);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader, Read, Write};
    use std::net::TcpListener;
    use std::sync::mpsc::{Receiver, channel};

    use super::*;

    /// A server that gives each request the next of `answers`, and tells what it was asked: path and body.
    fn serve(answers: Vec<(u16, String)>) -> (String, Receiver<(String, String)>) {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let url = format!("http://{}/", listener.local_addr().unwrap());
        let (asked, questions) = channel();
        thread::spawn(move || {
            for (status, answer) in answers {
                let (mut stream, _) = listener.accept().unwrap();
                let mut reader = BufReader::new(stream.try_clone().unwrap());
                let (mut first, mut line, mut length) = (String::new(), String::new(), 0);
                reader.read_line(&mut first).unwrap();
                while reader.read_line(&mut line).unwrap() > 2 {
                    let header = line.to_lowercase();
                    if let Some(value) = header.strip_prefix("content-length:") {
                        length = value.trim().parse().unwrap();
                    }
                    line.clear();
                }
                let mut body = vec![0; length];
                reader.read_exact(&mut body).unwrap();
                asked.send((first, String::from_utf8(body).unwrap())).unwrap();
                let head = format!(
                    "HTTP/1.1 {status} X\r\nconnection: close\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
                    answer.len()
                );
                stream.write_all((head + &answer).as_bytes()).unwrap();
            }
        });
        (url, questions)
    }

    fn inventory() -> Inventory {
        Inventory { uuid: None, serial: None, uefi: true, memory: 1, cpus: 1, disks: vec![] }
    }

    #[test]
    fn inventory_in_answer_out() {
        let answer = ImagingAnswer::Refuse { reasons: vec!["not in the rack file".into()] };
        let (url, questions) = serve(vec![(200, serde_json::to_string(&answer).unwrap())]);
        let server = RackServer::new(&url, "52-54-00-00-00-01", "s").unwrap();
        assert_eq!(server.ask(&inventory()).unwrap(), answer);
        let (request, body) = questions.recv().unwrap();
        assert_eq!(request, "POST /v1/machines/52-54-00-00-00-01/inventory HTTP/1.1\r\n");
        assert_eq!(serde_json::from_str::<Inventory>(&body).unwrap(), inventory());
    }

    #[test]
    fn a_wrong_request_is_not_repeated() {
        let (url, _questions) = serve(vec![(404, String::new())]);
        let server = RackServer::new(&url, "52-54-00-00-00-01", "s").unwrap();
        let error = server.ask(&inventory()).unwrap_err();
        assert!(error.to_string().ends_with("/inventory what to do, 1 times"), "{error}");
    }

    #[test]
    fn the_last_word_is_repeated_and_comes_last() {
        let (url, questions) = serve(vec![(200, String::new()), (500, String::new()), (200, String::new())]);
        let server = RackServer::new(&url, "52-54-00-00-00-01", "s").unwrap();
        let reporter = Reporter::start(server, Some("o-1".into()));
        reporter.enter(Step::Wipe);
        reporter.begin("wiping", None);
        let first = questions.recv().unwrap().1;
        assert_eq!(first, r#"{"order":"o-1","step":"wipe","message":"wiping","progress":null}"#);
        reporter.finish("done", "ok".into());
        for _ in 0..2 {
            let last = questions.recv().unwrap().1;
            assert_eq!(last, r#"{"order":"o-1","step":"done","message":"ok","progress":null}"#);
        }
    }

    #[test]
    fn a_dead_server_holds_nobody_up() {
        // Bound and dropped: nobody listens there.
        let port = TcpListener::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap().port();
        let server = RackServer::new(&format!("http://127.0.0.1:{port}"), "52-54-00-00-00-01", "s").unwrap();
        let reporter = Reporter::start(server, None);
        for step in Step::ALL {
            reporter.enter(step);
            reporter.begin(step.title(), Some(10));
            reporter.advance(10);
            reporter.end("ok");
        }
        reporter.finish("failed", "no".into());
    }
}
