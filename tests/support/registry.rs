//! A private container registry for one test: Debian's docker-registry on loopback; gone when it is dropped.

// Each test takes what it needs of it.
#![allow(dead_code, clippy::unwrap_used)]

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// How long it may take to listen, on a busy machine.
const START_LIMIT: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(50);

/// A running registry.
pub struct Registry {
    dir: tempfile::TempDir,
    child: Child,
    /// HOST:PORT.
    pub host: String,
}

impl Registry {
    /// Starts one that everybody may read and write.
    pub fn start() -> Self {
        Self::start_with("", "")
    }

    /// Starts one with more lines of configuration, at the top and below `http`.
    pub fn start_with(top: &str, http: &str) -> Self {
        let dir = tempfile::Builder::new().prefix("rackstep-registry-").tempdir().unwrap();
        let (config, log) = (dir.path().join("config.yml"), dir.path().join("log"));
        let storage = dir.path().join("storage");
        let text = format!(
            "version: 0.1\nstorage:\n  filesystem:\n    rootdirectory: {}\nhttp:\n  addr: 127.0.0.1:0\n{http}{top}",
            storage.display()
        );
        fs::write(&config, text).unwrap();
        let out = File::create(&log).unwrap();
        let mut child = Command::new(program())
            .arg("serve")
            .arg(&config)
            .stdin(Stdio::null())
            .stdout(out.try_clone().unwrap())
            .stderr(out)
            .spawn()
            .expect("docker-registry is there (scripts/setup.sh)");
        let limit = Instant::now() + START_LIMIT;
        let host = loop {
            let text = fs::read_to_string(&log).unwrap();
            let listening = text.split_once("listening on ").and_then(|(_, rest)| {
                rest.split_once(['"', ',', '\n', ' ']).map(|(address, _)| address.to_owned())
            });
            match listening {
                Some(host) => break host,
                None if Instant::now() > limit || child.try_wait().unwrap().is_some() => {
                    let _ = child.kill();
                    panic!("docker-registry does not listen:\n{text}")
                }
                None => std::thread::sleep(POLL),
            }
        };
        Self { dir, child, host }
    }

    /// Copies an image into it with skopeo; `source` in skopeo's words, `name` as `repository:tag`.
    pub fn push(&self, source: &str, name: &str, options: &[&str]) {
        let target = format!("docker://{}/{name}", self.host);
        let output = Command::new("skopeo")
            .args(["copy", "-q", "--insecure-policy", "--dest-tls-verify=false"])
            .args(options)
            .args([source, &target])
            .output()
            .unwrap();
        assert!(output.status.success(), "{target}: {}", String::from_utf8_lossy(&output.stderr));
    }

    /// What it wrote.
    pub fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("log")).unwrap()
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The installed program, or the one that setup has unpacked.
fn program() -> PathBuf {
    let variable = |name: &str| std::env::var_os(name).map(PathBuf::from);
    let cache = variable("XDG_CACHE_HOME").or_else(|| Some(variable("HOME")?.join(".cache")));
    let unpacked = cache.map(|cache| cache.join("rackstep/tools/docker-registry"));
    unpacked.filter(|path| path.is_file()).unwrap_or_else(|| Path::new("docker-registry").to_owned())
}
