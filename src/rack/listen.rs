//! Accepts connections within bounds, so that nobody who only connects keeps a machine from being answered.
//!
//! 1. A head that does not come within [`HEAD_ARRIVES`] ends its connection, and so does an idle one; so does a client that
//!    takes less than [`LEAST`] of an answer in [`PATIENCE`];
//! 2. an address has at most [`PER_ADDRESS`] connections: beyond that the oldest that never asked anything goes, or, where all
//!    have asked, the new one; 3. there are at most [`ALL`], and as many open files as the system allows.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::extract::ConnectInfo;
use hyper::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service as _, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use rustix::process::{Resource, getrlimit, setrlimit};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, watch};

use super::dhcp::stop_asked;
use super::pace::{Pace, Paced};

/// How long the head of a request may take.
const HEAD_ARRIVES: Duration = Duration::from_secs(10);
/// How long an answer may come forward by less than [`LEAST`].
const PATIENCE: Duration = Duration::from_secs(60);
/// Bytes. The kernel takes them in lumps, so a client that goes on at some ten kilobytes a second passes.
const LEAST: u64 = 64 << 10;
/// What hyper holds of a connection, a request's head among it. Hundreds of downloads must not hold much.
const HELD: usize = 64 << 10;
/// A host that pulls has some ten; a router before a rack may have many.
const PER_ADDRESS: usize = 128;
/// Each costs some kilobytes.
const ALL: usize = 4096;
/// After a failed accept (no file descriptors left).
const PAUSE: Duration = Duration::from_millis(100);

/// Connections by address, oldest first.
#[derive(Debug, Default)]
struct Connections(Mutex<HashMap<IpAddr, VecDeque<Arc<Connection>>>>);

#[derive(Debug, Default)]
struct Connection {
    has_asked: AtomicBool,
    evicted: Notify,
}

impl Connections {
    /// A place for one more from `peer`, if there is one.
    fn admit(&self, peer: IpAddr) -> Option<Arc<Connection>> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let is_full = all.values().map(VecDeque::len).sum::<usize>() >= ALL;
        let of_peer = all.entry(peer).or_default();
        if is_full || of_peer.len() >= PER_ADDRESS {
            let silent = of_peer.iter().position(|known| !known.has_asked.load(Ordering::Relaxed))?;
            if let Some(oldest) = of_peer.remove(silent) {
                oldest.evicted.notify_one();
            }
        }
        let new = Arc::new(Connection::default());
        of_peer.push_back(new.clone());
        Some(new)
    }

    fn leave(&self, peer: IpAddr, connection: &Arc<Connection>) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(of_peer) = all.get_mut(&peer) {
            of_peer.retain(|known| !Arc::ptr_eq(known, connection));
            if of_peer.is_empty() {
                all.remove(&peer);
            }
        }
    }
}

/// Serves `app` until `stopped`; what is being answered then is answered to its end.
pub(super) async fn serve_connections(
    listener: TcpListener,
    app: Router,
    mut stopped: watch::Receiver<bool>,
) -> io::Result<()> {
    raise_file_limit();
    let connections = Arc::new(Connections::default());
    let mut tasks = tokio::task::JoinSet::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = stop_asked(&mut stopped) => break,
        };
        while tasks.try_join_next().is_some() {}
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "accepting a connection");
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        };
        let Some(connection) = connections.admit(peer.ip()) else { continue };
        let (app, connections, stopped) = (app.clone(), connections.clone(), stopped.clone());
        tasks.spawn(async move {
            serve_one(stream, peer, &connection, app, stopped).await;
            connections.leave(peer.ip(), &connection);
        });
    }
    while tasks.join_next().await.is_some() {}
    Ok(())
}

async fn serve_one(
    stream: TcpStream,
    peer: SocketAddr,
    connection: &Arc<Connection>,
    app: Router,
    mut stopped: watch::Receiver<bool>,
) {
    // A release is thousands of small answers: without TCP_NODELAY each waits for the last one's acknowledgement.
    let _ = stream.set_nodelay(true);
    let (inner, asked) = (TowerToHyperService::new(app), connection.clone());
    let service = service_fn(move |mut request: Request<Incoming>| {
        asked.has_asked.store(true, Ordering::Relaxed);
        request.extensions_mut().insert(ConnectInfo(peer));
        inner.call(request)
    });
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(HEAD_ARRIVES).max_buf_size(HELD);
    let pace = Arc::new(Pace::default());
    let stream = Paced { stream, pace: pace.clone() };
    let mut serving = std::pin::pin!(builder.serve_connection(TokioIo::new(stream), service));
    tokio::select! {
        // Clients come and go; how a connection ended is nobody's trouble.
        _ = serving.as_mut() => return,
        () = connection.evicted.notified() => return,
        () = pace.stalled(PATIENCE, LEAST) => return,
        () = stop_asked(&mut stopped) => serving.as_mut().graceful_shutdown(),
    }
    let _ = serving.await;
}

/// As many open files as this process may have: the usual 1024 are fewer than a rack's connections.
fn raise_file_limit() {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    if let Err(error) = setrlimit(Resource::Nofile, limit) {
        tracing::warn!(%error, "the limit of open files stays");
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};

    use super::*;

    #[test]
    fn an_address_that_is_full_loses_what_never_asked() {
        let connections = Connections::default();
        let (peer, other) = ("10.77.0.9".parse().unwrap(), "10.77.0.11".parse().unwrap());
        let mut mine: Vec<_> = (0..PER_ADDRESS).map(|_| connections.admit(peer).unwrap()).collect();
        mine[0].has_asked.store(true, Ordering::Relaxed);
        let newest = connections.admit(peer).unwrap();
        assert!(connections.0.lock().unwrap()[&peer].iter().all(|known| !Arc::ptr_eq(known, &mine[1])));
        mine.push(newest);
        mine.iter().for_each(|known| known.has_asked.store(true, Ordering::Relaxed));
        assert!(connections.admit(peer).is_none());
        assert!(connections.admit(other).is_some(), "others are not touched by it");
        connections.leave(peer, &mine[0]);
        assert!(connections.admit(peer).is_some());
    }

    /// Half requests by the hundred from one address; a whole one is answered meanwhile, by that address even.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn half_requests_hold_nobody_up() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let app = Router::new().route("/", axum::routing::get(|| async { "here" }));
        let (stop, stopped) = watch::channel(false);
        let server = tokio::spawn(serve_connections(listener, app, stopped));
        let asked = tokio::task::spawn_blocking(move || {
            let half = |_| {
                let mut stream = std::net::TcpStream::connect(address).unwrap();
                stream.write_all(b"GET / HTTP/1.1\r\nHost: x\r\nX: ").unwrap();
                stream
            };
            let held: Vec<_> = (0..3 * PER_ADDRESS).map(half).collect();
            let mut stream = std::net::TcpStream::connect(address).unwrap();
            stream.write_all(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).unwrap();
            drop(held);
            answer
        });
        let answer = asked.await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("here"), "{answer}");
        stop.send(true).unwrap();
        tokio::time::timeout(Duration::from_secs(20), server).await.unwrap().unwrap().unwrap();
    }
}
