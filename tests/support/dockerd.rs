//! A private Docker daemon for one test: own data root, own socket, no network of its own; gone when it is dropped.

// Each test takes what it needs of it.
#![allow(dead_code, clippy::unwrap_used)]

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rackstep::engine::docker::Docker;

/// How long a daemon may take to listen, on a busy machine.
const START_LIMIT: Duration = Duration::from_secs(60);

/// How long a daemon may take to end before it is killed.
const STOP_LIMIT: Duration = Duration::from_secs(20);

/// How often conditions are looked at.
const POLL: Duration = Duration::from_millis(50);

/// A running daemon.
pub struct Dockerd {
    root: tempfile::TempDir,
    data_root: PathBuf,
    child: Option<Child>,
}

impl Dockerd {
    /// Starts a daemon and waits until it answers.
    pub fn start() -> Self {
        let root = new_root();
        let data_root = root.path().join("data");
        Self::start_in(root, data_root)
    }

    /// The same with its data in a directory that the test chose.
    pub fn start_on(data_root: &Path) -> Self {
        Self::start_in(new_root(), data_root.to_owned())
    }

    fn start_in(root: tempfile::TempDir, data_root: PathBuf) -> Self {
        let mut daemon = Self { root, data_root, child: None };
        daemon.run();
        daemon
    }

    /// Starts it, on the data that is there.
    pub fn run(&mut self) {
        let path = |name: &str| self.root.path().join(name);
        let log = File::create(path("log")).unwrap();
        let child = Command::new("dockerd")
            .args(["--iptables=false", "--ip6tables=false", "--bridge=none", "--storage-driver=overlay2"])
            .arg("--data-root")
            .arg(self.data_root())
            .arg("--exec-root")
            .arg(path("exec"))
            .arg("--pidfile")
            .arg(self.pid_file())
            .args(["-H", &self.url()])
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .expect("dockerd is installed (package docker.io)");
        self.child = Some(child);
        let limit = Instant::now() + START_LIMIT;
        loop {
            match Docker::connect(Some(&self.url())) {
                Ok(_) => return,
                Err(error) if Instant::now() > limit => {
                    panic!("dockerd does not answer: {error}\n{}", fs::read_to_string(path("log")).unwrap())
                }
                Err(_) => std::thread::sleep(POLL),
            }
        }
    }

    /// Ends it and waits for its end.
    pub fn stop(&mut self) {
        let Some(mut child) = self.child.take() else { return };
        if let Some(pid) = rustix::process::Pid::from_raw(child.id() as i32) {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        }
        let limit = Instant::now() + STOP_LIMIT;
        while matches!(child.try_wait(), Ok(None)) && Instant::now() < limit {
            std::thread::sleep(POLL);
        }
        let _ = child.kill();
        let _ = child.wait();
        // A daemon that had to be killed leaves its containerd behind.
        let pid_file = self.root.path().join("exec/containerd/containerd.pid");
        let pid = fs::read_to_string(pid_file).ok().and_then(|pid| pid.trim().parse().ok());
        if let Some(pid) = pid.and_then(rustix::process::Pid::from_raw) {
            let name = fs::read_to_string(format!("/proc/{}/comm", pid.as_raw_nonzero())).unwrap_or_default();
            if name.starts_with("containerd") {
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
            }
        }
    }

    /// Where it listens.
    pub fn url(&self) -> String {
        format!("unix://{}", self.root.path().join("docker.sock").display())
    }

    /// Its data root.
    pub fn data_root(&self) -> PathBuf {
        self.data_root.clone()
    }

    /// The file with its process id.
    pub fn pid_file(&self) -> PathBuf {
        self.root.path().join("docker.pid")
    }

    /// A connection of ours to it.
    pub fn connect(&self) -> Docker {
        Docker::connect(Some(&self.url())).unwrap()
    }

    /// Runs Docker's own client against it and gives its output.
    pub fn client(&self, arguments: &[&str]) -> Result<String, String> {
        let output = Command::new("docker").args(["-H", &self.url()]).args(arguments).output().unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
        if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
    }

    /// Files named `name` in the layers of its store.
    pub fn stored_files(&self, name: &str) -> Vec<PathBuf> {
        walkdir::WalkDir::new(self.data_root().join("overlay2"))
            .into_iter()
            .filter_map(Result::ok)
            .filter(|entry| entry.file_type().is_file() && entry.file_name() == name)
            .map(walkdir::DirEntry::into_path)
            .filter(|path| path.components().any(|part| part.as_os_str() == "diff"))
            .collect()
    }
}

impl Drop for Dockerd {
    fn drop(&mut self) {
        self.stop();
        unmount_below(self.root.path());
        unmount_below(&self.data_root.join("overlay2"));
    }
}

fn new_root() -> tempfile::TempDir {
    tempfile::Builder::new().prefix("rackstep-dockerd-").tempdir().unwrap()
}

/// What a killed daemon leaves mounted would keep its directory from going.
fn unmount_below(root: &Path) {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let mut below: Vec<&str> = mounts
        .lines()
        .filter_map(|line| line.split(' ').nth(1))
        .filter(|path| Path::new(path).starts_with(root))
        .collect();
    below.reverse();
    for path in below {
        let _ = rustix::mount::unmount(path, rustix::mount::UnmountFlags::DETACH);
    }
}
