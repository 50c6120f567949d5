//! Files over HTTP: those below one directory, and single ones. GET, HEAD, one range, and what a cache asks.
//!
//! A release is thousands of small objects, so what one costs counts. `tower_http::services::ServeDir` goes to other threads
//! four times for each (metadata, open, read, read again); here the kernel is asked first for what it has in memory
//! (`RESOLVE_CACHED`, `RWF_NOWAIT`), which needs no other thread, and only what is not there goes to one, once.
//!
//! 1. A path is opened below its root by the kernel (`openat2`, `RESOLVE_BENEATH`): neither `..` nor a link leads out of it;
//! 2. regular files alone are answered, small ones in one piece, others piece by piece as they are taken.

use std::io::{self, IoSliceMut};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use hyper::body::{Body as HttpBody, Frame, SizeHint};
use percent_encoding::percent_decode_str;
use rustix::fs::{FileType, Mode, OFlags, ResolveFlags, fstat, openat2};
use rustix::io::{Errno, ReadWriteFlags, preadv2};
use tokio::task::{JoinHandle, spawn_blocking};

/// What a connection holds in memory of a file.
const PIECE: usize = 128 << 10;
/// `openat2` answers EAGAIN to `..` while anything is renamed anywhere.
const TRIES: usize = 64;

/// A directory whose files are served.
#[derive(Debug)]
pub(super) struct FileRoot(OwnedFd);

impl FileRoot {
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(Self(rustix::fs::open(path, flags, Mode::empty())?))
    }

    /// Serves everything below it.
    pub(super) fn router(self) -> Router {
        Router::new().fallback(answer).with_state(Arc::new(self))
    }

    /// Opens what a URL's path names; `resolve` besides staying below.
    fn find(&self, path: &[u8], resolve: ResolveFlags) -> Result<OpenFile, Errno> {
        // Without NONBLOCK a FIFO would wait for a writer.
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
        let resolve = resolve | ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
        OpenFile::new(openat2(&self.0, path, flags, Mode::empty(), resolve)?)
    }
}

async fn answer(State(root): State<Arc<FileRoot>>, method: Method, uri: Uri, headers: HeaderMap) -> Response {
    let path: Vec<u8> = percent_decode_str(uri.path().trim_start_matches('/')).collect();
    let found = match root.find(&path, ResolveFlags::CACHED) {
        // Not in memory; or an older kernel.
        Err(Errno::AGAIN | Errno::INVAL) => {
            let find = move || {
                let found = (0..TRIES).map(|_| root.find(&path, ResolveFlags::empty()));
                let mut found = found.skip_while(|found| matches!(found, Err(Errno::AGAIN)));
                found.next().unwrap_or(Err(Errno::AGAIN))
            };
            spawn_blocking(find).await.unwrap_or(Err(Errno::IO))
        }
        found => found,
    };
    match found {
        Ok(file) => file.answer(&method, &headers).await,
        Err(error) => refusal(error),
    }
}

/// Answers with one file, wherever it is.
pub(super) async fn answer_file(path: &Path, method: &Method, headers: &HeaderMap) -> Response {
    let path = path.to_owned();
    let open = move || {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
        OpenFile::new(rustix::fs::open(path, flags, Mode::empty())?)
    };
    match spawn_blocking(open).await.unwrap_or(Err(Errno::IO)) {
        Ok(file) => file.answer(method, headers).await,
        Err(error) => refusal(error),
    }
}

/// What cannot be opened because of its name is not there; the rest is our trouble.
fn refusal(error: Errno) -> Response {
    match error {
        Errno::MFILE | Errno::NFILE | Errno::NOMEM | Errno::IO | Errno::AGAIN => {
            tracing::warn!(error = %io::Error::from(error), "opening a file");
            StatusCode::SERVICE_UNAVAILABLE.into_response()
        }
        _ => StatusCode::NOT_FOUND.into_response(),
    }
}

#[derive(Debug)]
struct OpenFile {
    file: Arc<OwnedFd>,
    size: u64,
    modified: SystemTime,
    tag: String,
}

/// What of a file is asked for.
#[derive(Debug, PartialEq, Eq)]
enum Part {
    Whole,
    /// From one byte to before another.
    Range(u64, u64),
    Beyond,
}

impl OpenFile {
    fn new(file: OwnedFd) -> Result<Self, Errno> {
        let stat = fstat(&file)?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(Errno::NOENT);
        }
        let size = stat.st_size.cast_unsigned();
        let seconds = u64::try_from(stat.st_mtime).unwrap_or_default();
        let tag = format!("\"{seconds:x}.{:x}-{size:x}\"", stat.st_mtime_nsec);
        let modified = UNIX_EPOCH + Duration::from_secs(seconds);
        Ok(Self { file: Arc::new(file), size, modified, tag })
    }

    async fn answer(self, method: &Method, headers: &HeaderMap) -> Response {
        if method != Method::GET && method != Method::HEAD {
            return (StatusCode::METHOD_NOT_ALLOWED, [(header::ALLOW, "GET, HEAD")]).into_response();
        }
        let mut response = if self.is_known(headers) {
            StatusCode::NOT_MODIFIED.into_response()
        } else {
            match part_of(headers, &self) {
                Part::Whole => self.part(0, self.size, method).await,
                Part::Range(from, to) => {
                    let mut response = self.part(from, to, method).await;
                    *response.status_mut() = StatusCode::PARTIAL_CONTENT;
                    let range = format!("bytes {from}-{}/{}", to.saturating_sub(1), self.size);
                    put(&mut response, header::CONTENT_RANGE, &range);
                    response
                }
                Part::Beyond => {
                    let mut response = StatusCode::RANGE_NOT_SATISFIABLE.into_response();
                    put(&mut response, header::CONTENT_RANGE, &format!("bytes */{}", self.size));
                    response
                }
            }
        };
        let headers = response.headers_mut();
        headers.insert(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
        put(&mut response, header::ETAG, &self.tag);
        put(&mut response, header::LAST_MODIFIED, &httpdate::fmt_http_date(self.modified));
        response
    }

    async fn part(&self, from: u64, to: u64, method: &Method) -> Response {
        let body = if *method == Method::HEAD || from == to {
            Body::empty()
        } else {
            let mut pieces = Pieces { file: self.file.clone(), at: from, end: to, reading: None };
            match std::future::poll_fn(|context| pieces.poll_piece(context)).await {
                Ok(piece) if pieces.at == to => Body::from(piece),
                Ok(piece) => Body::new(Begun { first: Some(piece), pieces }),
                Err(error) => {
                    tracing::warn!(%error, "reading a file");
                    return StatusCode::INTERNAL_SERVER_ERROR.into_response();
                }
            }
        };
        let mut response = Response::new(body);
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
        headers.insert(header::CONTENT_LENGTH, HeaderValue::from(to - from));
        response
    }

    /// Has the client what it asks for (RFC 9110, 13.1)?
    fn is_known(&self, headers: &HeaderMap) -> bool {
        if let Some(tags) = text(headers, header::IF_NONE_MATCH) {
            return tags
                .split(',')
                .map(str::trim)
                .any(|tag| tag == "*" || tag.trim_start_matches("W/") == self.tag);
        }
        let since =
            text(headers, header::IF_MODIFIED_SINCE).and_then(|text| httpdate::parse_http_date(text).ok());
        since.is_some_and(|since| self.modified <= since)
    }
}

fn text(headers: &HeaderMap, name: header::HeaderName) -> Option<&str> {
    headers.get(name)?.to_str().ok()
}

fn put(response: &mut Response, name: header::HeaderName, value: &str) {
    if let Ok(value) = HeaderValue::from_str(value) {
        response.headers_mut().insert(name, value);
    }
}

/// One range (RFC 9110, 14.1.2). Several, or words that are none, are passed over: the whole file is a right answer too.
fn part_of(headers: &HeaderMap, file: &OpenFile) -> Part {
    let unchanged = text(headers, header::IF_RANGE)
        .is_none_or(|known| known == file.tag || known == httpdate::fmt_http_date(file.modified));
    let range = text(headers, header::RANGE).filter(|_| unchanged);
    let Some((from, to)) = range.and_then(|range| range.trim().strip_prefix("bytes=")?.split_once('-'))
    else {
        return Part::Whole;
    };
    let size = file.size;
    let number = |text: &str| {
        let is_number = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        // More digits than a file has bytes.
        is_number.then(|| text.parse().unwrap_or(u64::MAX))
    };
    match (number(from), to.is_empty(), number(to)) {
        (Some(from), _, Some(to)) if to < from => Part::Whole,
        (Some(from), true, _) | (Some(from), _, Some(_)) if from >= size => Part::Beyond,
        (Some(from), true, _) => Part::Range(from, size),
        (Some(from), _, Some(to)) => Part::Range(from, to.saturating_add(1).min(size)),
        (None, _, Some(last)) if from.is_empty() && (last == 0 || size == 0) => Part::Beyond,
        (None, _, Some(last)) if from.is_empty() => Part::Range(size.saturating_sub(last), size),
        _ => Part::Whole,
    }
}

/// A part of a file, read as it is taken.
struct Pieces {
    file: Arc<OwnedFd>,
    at: u64,
    end: u64,
    reading: Option<JoinHandle<io::Result<Vec<u8>>>>,
}

impl Pieces {
    fn poll_piece(&mut self, context: &mut Context<'_>) -> Poll<io::Result<Bytes>> {
        let length = usize::try_from(self.end - self.at).unwrap_or(PIECE).min(PIECE);
        let piece = match &mut self.reading {
            None => match read_piece(&self.file, self.at, length, ReadWriteFlags::NOWAIT) {
                Ok(piece) => piece,
                Err(Errno::AGAIN | Errno::OPNOTSUPP) => {
                    let (file, at) = (self.file.clone(), self.at);
                    let read = move || Ok(read_piece(&file, at, length, ReadWriteFlags::empty())?);
                    self.reading = Some(spawn_blocking(read));
                    return self.poll_piece(context);
                }
                Err(error) => return Poll::Ready(Err(error.into())),
            },
            Some(reading) => {
                let read = ready!(Pin::new(reading).poll(context));
                self.reading = None;
                read.map_err(io::Error::other)??
            }
        };
        if piece.is_empty() {
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the file became shorter")));
        }
        self.at += piece.len() as u64;
        Poll::Ready(Ok(Bytes::from(piece)))
    }
}

fn read_piece(file: &OwnedFd, at: u64, length: usize, flags: ReadWriteFlags) -> Result<Vec<u8>, Errno> {
    let mut piece = vec![0; length];
    let read = loop {
        match preadv2(file, &mut [IoSliceMut::new(&mut piece)], at, flags) {
            Err(Errno::INTR) => {}
            read => break read?,
        }
    };
    piece.truncate(read);
    Ok(piece)
}

/// A file whose first piece is read.
struct Begun {
    first: Option<Bytes>,
    pieces: Pieces,
}

impl HttpBody for Begun {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        if let Some(first) = self.first.take() {
            return Poll::Ready(Some(Ok(Frame::data(first))));
        }
        if self.is_end_stream() {
            return Poll::Ready(None);
        }
        let piece = ready!(self.pieces.poll_piece(context));
        Poll::Ready(Some(piece.map(Frame::data)))
    }

    fn is_end_stream(&self) -> bool {
        self.first.is_none() && self.pieces.at == self.pieces.end
    }

    fn size_hint(&self) -> SizeHint {
        let first = self.first.as_ref().map_or(0, |first| first.len() as u64);
        SizeHint::with_exact(first + self.pieces.end - self.pieces.at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn get(
        root: &Arc<FileRoot>,
        method: Method,
        path: &str,
        more: &[(&str, &str)],
    ) -> (u16, HeaderMap, Vec<u8>) {
        let mut headers = HeaderMap::new();
        for (name, value) in more {
            headers
                .insert(header::HeaderName::try_from(*name).unwrap(), HeaderValue::from_str(value).unwrap());
        }
        let uri = format!("/{path}").parse().unwrap();
        let response = answer(State(root.clone()), method, uri, headers).await;
        let (parts, body) = response.into_parts();
        let body = axum::body::to_bytes(body, usize::MAX).await.unwrap();
        (parts.status.as_u16(), parts.headers, body.to_vec())
    }

    #[tokio::test]
    async fn links_never_lead_out_of_the_directory() {
        let dir = tempfile::tempdir().unwrap();
        let repo = dir.path().join("repo");
        std::fs::create_dir_all(repo.join("refs/a b")).unwrap();
        std::fs::write(repo.join("refs/a b/c"), "x").unwrap();
        std::fs::write(repo.join("config"), "x").unwrap();
        std::fs::write(dir.path().join("outside"), "x").unwrap();
        for (link, to) in [
            ("shadow", "/etc/shadow"),
            ("up", "../outside"),
            ("same", "config"),
            ("dir", "/etc"),
            ("loop", "loop"),
        ] {
            std::os::unix::fs::symlink(to, repo.join(link)).unwrap();
        }
        rustix::fs::mknodat(rustix::fs::CWD, repo.join("fifo"), FileType::Fifo, Mode::RUSR, 0).unwrap();
        let root = Arc::new(FileRoot::open(&repo).unwrap());
        for (path, status) in [
            ("config", 200),
            ("same", 200),
            ("refs/a%20b/c", 200),
            ("refs/../config", 200),
            ("", 404),
            ("refs", 404),
            ("fifo", 404),
            ("loop", 404),
            ("shadow", 404),
            ("up", 404),
            ("dir/passwd", 404),
            ("../outside", 404),
            ("%2e%2e/outside", 404),
            ("/etc/passwd", 404),
            ("config%00", 404),
            ("config/", 404),
            ("absent", 404),
        ] {
            assert_eq!(get(&root, Method::GET, path, &[]).await.0, status, "{path}");
        }
        assert_eq!(get(&root, Method::POST, "config", &[]).await.0, 405);
    }

    #[tokio::test]
    async fn files_of_all_sizes_in_whole_and_in_part() {
        let dir = tempfile::tempdir().unwrap();
        let root = Arc::new(FileRoot::open(dir.path()).unwrap());
        for size in [0, 1, PIECE - 1, PIECE, PIECE + 1, 3 * PIECE + 7] {
            let bytes: Vec<u8> = (0..size).map(|at| (at * 7 % 251) as u8).collect();
            std::fs::write(dir.path().join("file"), &bytes).unwrap();
            let (status, headers, body) = get(&root, Method::GET, "file", &[]).await;
            assert_eq!((status, body == bytes), (200, true), "{size}");
            assert_eq!(headers["content-length"], size.to_string());
            let (status, head, body) = get(&root, Method::HEAD, "file", &[]).await;
            assert_eq!((status, body.len(), &head["content-length"]), (200, 0, &headers["content-length"]));
            let tag = headers["etag"].to_str().unwrap();
            let date = headers["last-modified"].to_str().unwrap();
            for known in [("if-none-match", tag), ("if-modified-since", date)] {
                assert_eq!(get(&root, Method::GET, "file", &[known]).await.0, 304, "{known:?}");
            }
            let start = size.saturating_sub(3);
            let (status, _, body) =
                get(&root, Method::GET, "file", &[("range", "bytes=-3"), ("if-range", tag)]).await;
            assert_eq!(
                (status, body),
                if size == 0 { (416, vec![]) } else { (206, bytes[start..].to_vec()) }
            );
        }
        let size = 3 * PIECE + 7;
        let last = (size - 1).to_string();
        for (range, status, told) in [
            ("bytes=0-0".to_owned(), 206, format!("bytes 0-0/{size}")),
            (format!("bytes={last}-"), 206, format!("bytes {last}-{last}/{size}")),
            ("bytes=1-99999999999999999999999".to_owned(), 206, format!("bytes 1-{last}/{size}")),
            (format!("bytes={size}-"), 416, format!("bytes */{size}")),
            ("bytes=-0".to_owned(), 416, format!("bytes */{size}")),
            ("bytes=5-2".to_owned(), 200, String::new()),
            ("bytes=0-1,3-4".to_owned(), 200, String::new()),
            ("bytes=-".to_owned(), 200, String::new()),
            ("lines=1-2".to_owned(), 200, String::new()),
        ] {
            let (found, headers, _) = get(&root, Method::GET, "file", &[("range", &range)]).await;
            let content_range = headers.get("content-range").map(|value| value.to_str().unwrap());
            assert_eq!((found, content_range.unwrap_or_default()), (status, told.as_str()), "{range}");
        }
        let old = [("range", "bytes=0-0"), ("if-range", "\"other\"")];
        assert_eq!(get(&root, Method::GET, "file", &old).await.0, 200);
    }
}
