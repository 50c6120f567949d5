//! Small HTTP servers for one test: one that answers by itself, and one that stands before another and does harm.

// Each test takes what it needs of it.
#![allow(dead_code, clippy::unwrap_used)]

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

/// A request as it came.
#[derive(Debug, Clone)]
pub struct Request {
    /// Method, target and version.
    pub line: String,
    /// The header lines.
    pub headers: Vec<(String, String)>,
    /// The body.
    pub body: Vec<u8>,
}

impl Request {
    pub fn header(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(known, _)| known.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.as_str())
    }

    /// The target: path and query.
    pub fn target(&self) -> &str {
        self.line.split(' ').nth(1).unwrap_or_default()
    }

    fn read(from: &mut impl Read) -> io::Result<Option<Self>> {
        let mut bytes = Vec::new();
        let mut byte = [0];
        while !bytes.ends_with(b"\r\n\r\n") {
            // A client that tries TLS begins with 22.
            if from.read(&mut byte)? == 0 || byte[0] == 22 {
                return Ok(None);
            }
            bytes.push(byte[0]);
        }
        let text = String::from_utf8_lossy(&bytes).into_owned();
        let mut lines = text.trim_end().lines();
        let line = lines.next().unwrap_or_default().to_owned();
        let headers: Vec<(String, String)> = lines
            .filter_map(|line| line.split_once(':'))
            .map(|(name, value)| (name.to_owned(), value.trim().to_owned()))
            .collect();
        let mut request = Self { line, headers, body: Vec::new() };
        let length = request.header("content-length").and_then(|text| text.parse().ok()).unwrap_or(0);
        request.body = vec![0; length];
        from.read_exact(&mut request.body)?;
        Ok(Some(request))
    }
}

/// An answer as it goes out.
pub fn answer(status: &str, headers: &[(&str, &str)], body: &[u8]) -> Vec<u8> {
    let mut text = format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n", body.len());
    for (name, value) in headers {
        text += &format!("{name}: {value}\r\n");
    }
    [text.as_bytes(), b"\r\n", body].concat()
}

/// A server that keeps what it was asked; ends when it is dropped.
pub struct Server {
    pub address: SocketAddr,
    asked: Arc<Mutex<Vec<Request>>>,
    ends: Arc<AtomicBool>,
}

impl Server {
    /// Answers every request with what `handler` makes of it, bytes as they are.
    pub fn start(handler: impl Fn(&Request) -> Vec<u8> + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (asked, ends) = (Arc::new(Mutex::new(Vec::new())), Arc::new(AtomicBool::new(false)));
        let (log, stop, handler) = (asked.clone(), ends.clone(), Arc::new(handler));
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                if stop.load(Ordering::SeqCst) {
                    return;
                }
                let (log, handler) = (log.clone(), handler.clone());
                std::thread::spawn(move || {
                    let mut stream = stream.unwrap();
                    let Ok(Some(request)) = Request::read(&mut stream) else { return };
                    log.lock().unwrap().push(request.clone());
                    let _ = stream.write_all(&handler(&request));
                });
            }
        });
        Self { address, asked, ends }
    }

    /// A server that asks `upstream` (HOST:PORT) and sends what `change` makes of its answer: head and body.
    pub fn before(
        upstream: String,
        change: impl Fn(&Request, Vec<u8>, Vec<u8>) -> Vec<u8> + Send + Sync + 'static,
    ) -> Self {
        Self::start(move |request| {
            let (head, body) = ask(&upstream, request).unwrap();
            change(request, head, body)
        })
    }

    /// What it was asked so far, and forgets it.
    pub fn take_asked(&self) -> Vec<Request> {
        std::mem::take(&mut self.asked.lock().unwrap())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.ends.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(self.address);
    }
}

/// Passes a request on and gives head and body of the answer.
pub fn ask(upstream: &str, request: &Request) -> io::Result<(Vec<u8>, Vec<u8>)> {
    let mut stream = TcpStream::connect(upstream)?;
    let mut text = format!("{}\r\nConnection: close\r\n", request.line);
    for (name, value) in request.headers.iter().filter(|(name, _)| !name.eq_ignore_ascii_case("connection")) {
        text += &format!("{name}: {value}\r\n");
    }
    stream.write_all(&[text.as_bytes(), b"\r\n", &request.body].concat())?;
    let mut head = Vec::new();
    stream.read_to_end(&mut head)?;
    let end = head.windows(4).position(|window| window == b"\r\n\r\n").unwrap() + 4;
    let body = head.split_off(end);
    Ok((head, body))
}
