//! Fetches package files into a cache by digest.
//!
//! 1. what the cache has is taken; 2. the rest streams in over a few connections, hashed on the way;
//! 3. a broken transfer leaves its beginning for the next try; 4. only a file of the locked digest gets its name.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;

use sha2::{Digest as _, Sha256};

use super::apt::Mirrors;
use super::{PackageError, at, remove};
use crate::model::{Digest, Package, Progress};
use crate::rim::command::run;
use crate::rim::fetch::{Fetch, attempt};

/// Mirrors limit connections per client; more than this gains nothing on small files.
const CONNECTIONS: usize = 6;
const CHUNK: usize = 1 << 17;

/// The cached file of `package`.
pub fn cached(cache: &Path, package: &Package) -> PathBuf {
    cache.join("debs").join(format!("{}.deb", package.sha256.hex()))
}

/// Makes sure that the cache has every package's file; gives the number of bytes that had to be fetched.
pub fn fetch_all(
    cache: &Path,
    mirrors: &Mirrors,
    packages: &[Package],
    progress: &dyn Progress,
) -> Result<u64, PackageError> {
    let debs = cache.join("debs");
    std::fs::create_dir_all(&debs).map_err(at(&debs))?;
    let missing: Vec<&Package> = packages.iter().filter(|package| !is_cached(cache, package)).collect();
    let bytes = missing.iter().map(|package| package.size).sum();
    progress.begin("downloading packages", Some(bytes));
    let fetcher = Fetcher { cache, mirrors, progress, fetch: Fetch::new()? };
    let queue = Mutex::new(missing.iter());
    let first_error = Mutex::new(None);
    let next = || {
        let stop = lock(&first_error).is_some();
        if stop { None } else { lock(&queue).next() }
    };
    std::thread::scope(|scope| {
        for _ in 0..CONNECTIONS.min(missing.len()) {
            scope.spawn(|| {
                while let Some(package) = next() {
                    if let Err(error) = fetcher.fetch(package) {
                        lock(&first_error).get_or_insert(error);
                    }
                }
            });
        }
    });
    if let Some(error) = first_error.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner) {
        return Err(error);
    }
    progress.end(&tell_fetched(missing.len(), packages.len(), bytes));
    Ok(bytes)
}

/// What was fetched, in words.
fn tell_fetched(fetched: usize, all: usize, bytes: u64) -> String {
    if fetched == 0 {
        return format!("all {all} packages were in the cache");
    }
    format!("{fetched} of {all} packages fetched, {} MB", bytes / 1_000_000)
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// A file gets its name only after its digest was checked, so name and size are enough here.
fn is_cached(cache: &Path, package: &Package) -> bool {
    cached(cache, package).metadata().is_ok_and(|found| found.len() == package.size)
}

struct Fetcher<'a> {
    cache: &'a Path,
    mirrors: &'a Mirrors,
    progress: &'a dyn Progress,
    fetch: Fetch,
}

impl Fetcher<'_> {
    fn fetch(&self, package: &Package) -> Result<(), PackageError> {
        let base = self.mirrors.base(package.archive).ok_or_else(|| PackageError::NoMirror {
            suite: format!("{:?}", package.archive).to_lowercase(),
        })?;
        let url = format!("{base}/{}", package.path.replace('+', "%2b").replace('~', "%7e"));
        let part = self.cache.join("debs").join(format!("{}.part", package.sha256.hex()));
        if !url.starts_with("http://") {
            return self.fetch_by_apt(package, &url, &part);
        }
        attempt(|error| matches!(error, PackageError::Transfer { .. }), || self.stream(package, &url, &part))
    }

    /// Schemes that are apt's business (TLS, proxies with a login, tor) stay apt's business.
    fn fetch_by_apt(&self, package: &Package, url: &str, part: &Path) -> Result<(), PackageError> {
        let checksum = format!("SHA256:{}", package.sha256.hex());
        run(Command::new("/usr/lib/apt/apt-helper").arg("download-file").arg(url).arg(part).arg(checksum))?;
        self.progress.advance(package.size);
        let path = cached(self.cache, package);
        std::fs::rename(part, &path).map_err(at(&path))
    }

    fn stream(&self, package: &Package, url: &str, part: &Path) -> Result<(), PackageError> {
        let broke = |source: Box<dyn std::error::Error + Send + Sync>| PackageError::Transfer {
            name: package.name.clone(),
            version: package.version.clone(),
            source,
        };
        let mut hasher = Sha256::new();
        let mut have = hash_existing(part, package.size, &mut hasher)?;
        let answer = self.fetch.send(url, |client| match have {
            0 => client.get(url),
            have => client.get(url).header("Range", format!("bytes={have}-")),
        });
        let answer = answer.map_err(|error| broke(error.into()))?;
        let (status, mut body) = (answer.status, answer.body);
        match status {
            206 => self.progress.advance(have),
            200 => {
                have = 0;
                hasher = Sha256::new();
            }
            403 | 404 | 410 => {
                return Err(PackageError::Gone {
                    name: package.name.clone(),
                    version: package.version.clone(),
                    status: in_words(status),
                });
            }
            _ => {
                remove(part)?;
                return Err(broke(format!("the mirror answered {}", in_words(status)).into()));
            }
        }
        let mut file = OpenOptions::new()
            .create(true)
            .write(true)
            .append(have > 0)
            .truncate(have == 0)
            .open(part)
            .map_err(at(part))?;
        let mut chunk = vec![0; CHUNK];
        // One byte more than locked is already too many: no mirror fills our disk.
        while have <= package.size {
            let read = match body.read(&mut chunk) {
                Ok(read) => read,
                Err(error) => {
                    return Err(broke(body.failure.take().map_or_else(|| error.into(), Into::into)));
                }
            };
            if read == 0 {
                break;
            }
            hasher.update(&chunk[..read]);
            file.write_all(&chunk[..read]).map_err(at(part))?;
            self.progress.advance(read as u64);
            have += read as u64;
        }
        if have < package.size {
            return Err(broke(format!("ended after {have} of {} bytes", package.size).into()));
        }
        let got = Digest::from_bytes(hasher.finalize().into());
        if got != package.sha256 {
            remove(part)?;
            return Err(PackageError::Digest {
                name: package.name.clone(),
                version: package.version.clone(),
                expected: package.sha256,
                got,
            });
        }
        file.sync_data().map_err(at(part))?;
        let path = cached(self.cache, package);
        std::fs::rename(part, &path).map_err(at(&path))
    }
}

fn in_words(status: u16) -> String {
    reqwest::StatusCode::from_u16(status).map_or_else(|_| status.to_string(), |status| status.to_string())
}

/// Feeds what an earlier try left to `hasher` and gives its length; too much of it is thrown away.
fn hash_existing(part: &Path, limit: u64, hasher: &mut Sha256) -> Result<u64, PackageError> {
    let Ok(mut file) = File::open(part) else { return Ok(0) };
    let length = file.metadata().map_err(at(part))?.len();
    if length >= limit {
        drop(file);
        remove(part)?;
        return Ok(0);
    }
    let mut chunk = vec![0; CHUNK];
    loop {
        match file.read(&mut chunk).map_err(at(part))? {
            0 => return Ok(length),
            read => hasher.update(&chunk[..read]),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::BufRead;
    use std::net::TcpListener;

    use super::*;
    use crate::model::{Archive, progress::Silent};

    /// Answers one connection after another with the given scripts; gives the requests seen.
    fn serve(answers: Vec<Vec<u8>>) -> (String, std::thread::JoinHandle<Vec<String>>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let base = format!("http://{}", listener.local_addr().unwrap());
        let handle = std::thread::spawn(move || {
            let mut seen = Vec::new();
            for answer in answers {
                let (mut stream, _) = listener.accept().unwrap();
                let mut lines = std::io::BufReader::new(stream.try_clone().unwrap()).lines();
                let mut request = String::new();
                while let Some(Ok(line)) = lines.next() {
                    if line.is_empty() {
                        break;
                    }
                    request.push_str(&line);
                    request.push('\n');
                }
                seen.push(request);
                stream.write_all(&answer).unwrap();
            }
            seen
        });
        (base, handle)
    }

    fn answer(status: &str, length: usize, body: &[u8]) -> Vec<u8> {
        let head = format!("HTTP/1.1 {status}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n");
        [head.as_bytes(), body].concat()
    }

    fn package(content: &[u8]) -> Package {
        Package {
            name: "p".into(),
            version: "1+a".into(),
            architecture: "all".into(),
            sha256: Digest::of(content),
            size: content.len() as u64,
            archive: Archive::Main,
            path: "pool/p_1+a.deb".into(),
        }
    }

    #[test]
    fn resumes_then_takes_from_the_cache() {
        let dir = tempfile::tempdir().unwrap();
        let package = package(b"0123456789");
        let (base, handle) =
            serve(vec![answer("200 OK", 10, b"0123"), answer("206 Partial Content", 6, b"456789")]);
        let mirrors = Mirrors { main: Some(base), security: None };
        let bytes = fetch_all(dir.path(), &mirrors, std::slice::from_ref(&package), &Silent).unwrap();
        assert_eq!(bytes, 10);
        let seen = handle.join().unwrap();
        assert!(seen[0].starts_with("GET /pool/p_1%2ba.deb "), "{}", seen[0]);
        assert!(seen[1].to_lowercase().contains("range: bytes=4-"), "{}", seen[1]);
        assert_eq!(std::fs::read(cached(dir.path(), &package)).unwrap(), b"0123456789");
        assert_eq!(fetch_all(dir.path(), &mirrors, &[package], &Silent).unwrap(), 0, "no server any more");
    }

    /// The rules of `rim::fetch` hold for packages too: the web alone, and no mirror that fills the disk.
    #[test]
    fn a_mirror_leads_nowhere_else_and_sends_no_more_than_is_locked() {
        let dir = tempfile::tempdir().unwrap();
        let package = package(b"0123456789");
        let redirect = b"HTTP/1.1 302 Found\r\nLocation: file:///etc/shadow\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
        let (base, handle) = serve(vec![redirect.to_vec(); 3]);
        let mirrors = Mirrors { main: Some(base), security: None };
        let error = fetch_all(dir.path(), &mirrors, std::slice::from_ref(&package), &Silent).unwrap_err();
        let told = crate::model::causes::in_one_line(&error);
        assert!(told.contains("the mirror answered 302 Found"), "{told}");
        handle.join().unwrap();
        let (base, handle) = serve(vec![answer("200 OK", 1 << 20, &vec![b'0'; 1 << 20])]);
        let mirrors = Mirrors { main: Some(base), security: None };
        let error = fetch_all(dir.path(), &mirrors, std::slice::from_ref(&package), &Silent).unwrap_err();
        assert!(matches!(error, PackageError::Digest { .. }), "{error}");
        drop(handle);
        assert_eq!(std::fs::read_dir(dir.path().join("debs")).unwrap().count(), 0);
    }

    #[test]
    fn wrong_content_and_missing_files_are_told() {
        let dir = tempfile::tempdir().unwrap();
        let package = package(b"0123456789");
        let (base, handle) =
            serve(vec![answer("200 OK", 10, b"012345678X"), answer("404 Not Found", 0, b"")]);
        let mirrors = Mirrors { main: Some(base), security: None };
        let wrong = fetch_all(dir.path(), &mirrors, std::slice::from_ref(&package), &Silent).unwrap_err();
        assert!(matches!(wrong, PackageError::Digest { .. }), "{wrong}");
        let gone = fetch_all(dir.path(), &mirrors, std::slice::from_ref(&package), &Silent).unwrap_err();
        assert_eq!(gone.to_string(), "package p 1+a is no longer to be had (404 Not Found)");
        assert!(!cached(dir.path(), &package).exists());
        handle.join().unwrap();
    }
}
