//! A file server that can cut, corrupt, lose and lie.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

/// What the server does wrong.
#[derive(Debug, Default, Clone)]
pub struct Faults {
    /// All connections end when this many more bytes of bodies were sent.
    pub cut_after: Option<usize>,
    /// Of files whose path contains this, the middle byte is flipped.
    pub flip: Option<String>,
    /// Files whose path contains this are not there.
    pub lose: Option<String>,
    /// Files whose path ends with the first come with these bytes.
    pub lie: Option<(String, Vec<u8>)>,
}

#[derive(Default)]
struct State {
    faults: Faults,
    /// Path → how often it was sent to its end.
    sent: BTreeMap<String, usize>,
}

/// A server for one directory; stops with the test's process.
pub struct Server {
    root: PathBuf,
    address: std::net::SocketAddr,
    state: Arc<Mutex<State>>,
}

impl Server {
    pub fn start(root: &Path) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let state = Arc::new(Mutex::new(State::default()));
        let server = Self { root: root.to_owned(), address, state };
        let (root, state) = (server.root.clone(), server.state.clone());
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (root, state) = (root.clone(), state.clone());
                std::thread::spawn(move || serve(&root, &state, stream));
            }
        });
        server
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Sets what goes wrong from now on, and forgets what was sent.
    pub fn set(&self, faults: Faults) {
        *self.state.lock().unwrap() = State { faults, sent: BTreeMap::new() };
    }

    /// How often each path that contains `part` was sent to its end.
    pub fn sent(&self, part: &str) -> BTreeMap<String, usize> {
        let state = self.state.lock().unwrap();
        state.sent.iter().filter(|(path, _)| path.contains(part)).map(|(p, n)| (p.clone(), *n)).collect()
    }
}

fn serve(root: &Path, state: &Mutex<State>, stream: TcpStream) -> Option<()> {
    stream.set_nodelay(true).ok()?;
    let mut reader = BufReader::new(stream.try_clone().ok()?);
    let mut stream = stream;
    loop {
        let mut request = String::new();
        if reader.read_line(&mut request).ok()? == 0 {
            return None;
        }
        let path = request.split(' ').nth(1)?.trim_start_matches('/').to_owned();
        let mut line = String::new();
        while line != "\r\n" {
            line.clear();
            if reader.read_line(&mut line).ok()? == 0 {
                return None;
            }
        }
        let faults = state.lock().unwrap().faults.clone();
        let hit = |part: &Option<String>| part.as_ref().is_some_and(|part| path.contains(part));
        let mut body = match std::fs::read(root.join(&path)) {
            Ok(body) if !hit(&faults.lose) => body,
            _ => {
                stream.write_all(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n").ok()?;
                continue;
            }
        };
        if hit(&faults.flip) && !body.is_empty() {
            let middle = body.len() / 2;
            body[middle] ^= 0x10;
        }
        if let Some((part, bytes)) = &faults.lie
            && path.ends_with(part)
        {
            body = bytes.clone();
        }
        let whole = body.len();
        if faults.cut_after.is_some() {
            let mut state = state.lock().unwrap();
            let left = state.faults.cut_after.unwrap_or(0);
            body.truncate(left);
            state.faults.cut_after = Some(left - body.len());
        }
        write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {whole}\r\n\r\n").ok()?;
        stream.write_all(&body).ok()?;
        if body.len() < whole {
            return None;
        }
        *state.lock().unwrap().sent.entry(path).or_default() += 1;
    }
}
