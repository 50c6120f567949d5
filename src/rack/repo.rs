//! A release repo over HTTP and nothing else, for as long as somebody needs it.

use std::io;
use std::net::TcpListener;
use std::path::Path;

use axum::Router;
use axum::serve::ListenerExt;
use tokio::runtime::Runtime;

use super::files::FileRoot;

/// Serves until it is dropped.
#[derive(Debug)]
pub struct RepoServer {
    runtime: Option<Runtime>,
}

impl RepoServer {
    /// Serves `repo` below `path` on `listener`, whose network it stays in whoever calls this.
    pub fn start(listener: TcpListener, path: &str, repo: &Path) -> io::Result<Self> {
        let files = FileRoot::open(repo)?.router();
        let path = path.trim_end_matches('/');
        let router = match path {
            "" => files,
            path => Router::new().nest_service(path, files),
        };
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
        listener.set_nonblocking(true)?;
        let entered = runtime.enter();
        // A release is thousands of small answers: without TCP_NODELAY each waits for the last one's acknowledgement.
        let socket = tokio::net::TcpListener::from_std(listener)?.tap_io(|stream| {
            let _ = stream.set_nodelay(true);
        });
        drop(entered);
        runtime.spawn(async move {
            if let Err(error) = axum::serve(socket, router).await {
                tracing::warn!(%error, "serving the repo");
            }
        });
        Ok(Self { runtime: Some(runtime) })
    }
}

impl Drop for RepoServer {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            // Connections that are still open are nobody's any more.
            runtime.shutdown_background();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::TcpStream;

    use super::*;

    fn get(address: std::net::SocketAddr, path: &str) -> String {
        let mut stream = TcpStream::connect(address).unwrap();
        write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        text
    }

    #[test]
    fn files_below_a_path() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("config"), "[core]").unwrap();
        for (path, good, bad) in [("/", "/config", "/none"), ("/repo/", "/repo/config", "/config")] {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let address = listener.local_addr().unwrap();
            let server = RepoServer::start(listener, path, dir.path()).unwrap();
            assert!(get(address, good).ends_with("[core]"), "{path}");
            assert!(get(address, bad).starts_with("HTTP/1.1 404"), "{path}");
            drop(server);
        }
    }
}
