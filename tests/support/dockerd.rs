//! A private Docker daemon for one test: own data root, own socket, no network of its own; gone when it is dropped.

// Each test takes what it needs of it.
#![allow(dead_code, clippy::unwrap_used)]

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rackstep::docker::{Docker, StoreKind};
use rackstep::formats::image::store::ImageStore;
use rackstep::formats::image::{Limits, Ownership, source};
use rackstep::model::PinnedImage;

/// Runs tests, functions of a `StoreKind`, on both of Docker's image stores.
#[allow(unused_macros)]
macro_rules! on_both_stores {
    ($($name:ident),* $(,)?) => {$(
        mod $name {
            #[test]
            fn classic() {
                super::$name(super::StoreKind::Classic);
            }

            #[test]
            fn containerd() {
                super::$name(super::StoreKind::Containerd);
            }
        }
    )*};
}

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
    kind: StoreKind,
    child: Option<Child>,
    /// The containerd of a daemon that keeps its images there. One of its own: dockerd would take the machine's.
    containerd: Option<Child>,
}

impl Dockerd {
    /// Starts a daemon and waits until it answers.
    pub fn start() -> Self {
        let root = new_root();
        let data_root = root.path().join("data");
        Self::start_in(root, data_root, StoreKind::Classic)
    }

    /// The same with its images in the store that the test chose.
    pub fn start_with(kind: StoreKind) -> Self {
        let root = new_root();
        let data_root = root.path().join("data");
        Self::start_in(root, data_root, kind)
    }

    /// The same with its data in a directory that the test chose.
    pub fn start_on(data_root: &Path) -> Self {
        Self::start_in(new_root(), data_root.to_owned(), StoreKind::Classic)
    }

    fn start_in(root: tempfile::TempDir, data_root: PathBuf, kind: StoreKind) -> Self {
        let mut daemon = Self { root, data_root, kind, child: None, containerd: None };
        daemon.run();
        daemon
    }

    /// Starts it, on the data that is there.
    pub fn run(&mut self) {
        let path = |name: &str| self.root.path().join(name);
        let log = File::create(path("log")).unwrap();
        let mut command = match self.kind {
            StoreKind::Classic => Command::new("dockerd"),
            StoreKind::Containerd => {
                self.containerd = Some(self.run_containerd());
                let mut command = program("dockerd");
                fs::write(path("daemon.json"), r#"{"features": {"containerd-snapshotter": true}}"#).unwrap();
                command.arg("--config-file").arg(path("daemon.json"));
                command.arg("--containerd").arg(self.containerd_socket());
                command
            }
        };
        if self.kind == StoreKind::Classic {
            command.arg("--storage-driver=overlay2");
        }
        let child = command
            .args(["--iptables=false", "--ip6tables=false", "--bridge=none"])
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

    fn run_containerd(&self) -> Child {
        let path = |name: &str| self.root.path().join(name);
        let config = path("containerd.toml");
        let text = format!(
            "version = 2\nroot = {:?}\nstate = {:?}\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n[grpc]\naddress = {:?}\n",
            path("containerd"),
            path("containerd-state"),
            self.containerd_socket(),
        );
        fs::write(&config, text).unwrap();
        let log = File::create(path("containerd.log")).unwrap();
        let mut child = program("containerd")
            .arg("--config")
            .arg(config)
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .expect("containerd is there (scripts/setup.sh)");
        let limit = Instant::now() + START_LIMIT;
        while std::os::unix::net::UnixStream::connect(self.containerd_socket()).is_err() {
            if Instant::now() > limit || child.try_wait().unwrap().is_some() {
                let _ = child.kill();
                panic!(
                    "containerd does not listen:\n{}",
                    fs::read_to_string(path("containerd.log")).unwrap()
                );
            }
            std::thread::sleep(POLL);
        }
        child
    }

    /// Where rackstep looks for the containerd of a daemon that listens at `docker.sock`.
    fn containerd_socket(&self) -> PathBuf {
        self.root.path().join("docker/containerd/containerd.sock")
    }

    /// Ends it and waits for its end.
    pub fn stop(&mut self) {
        self.stop_dockerd();
        if let Some(mut containerd) = self.containerd.take() {
            end(&mut containerd);
        }
    }

    fn stop_dockerd(&mut self) {
        let Some(mut child) = self.child.take() else { return };
        end(&mut child);
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

    /// Whether the image can be saved, and is the pinned one: every layer's digest is looked at.
    pub fn reads_back(&self, image: &PinnedImage) -> bool {
        let dir = tempfile::tempdir().unwrap();
        let saved = dir.path().join("saved");
        fs::create_dir(&saved).unwrap();
        if self.connect().save(image.config, &saved, &|_| false).is_err() {
            return false;
        }
        let limits = Limits::default();
        let store = ImageStore::new(dir.path().join("store"));
        fs::create_dir(store.dir()).unwrap();
        let mut saved = source::open(&saved, None, &limits).unwrap();
        let added = store.add(saved.as_mut(), "saved", Ownership::Apply, &limits);
        added.is_ok_and(|added| (added.config, &added.layers) == (image.config, &image.layers))
    }
}

impl Drop for Dockerd {
    fn drop(&mut self) {
        self.stop();
        unmount_below(self.root.path());
        unmount_below(&self.data_root);
    }
}

/// Has a child of ours end, and waits for it.
fn end(child: &mut Child) {
    if let Some(pid) = rustix::process::Pid::from_raw(child.id() as i32) {
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
    }
    let limit = Instant::now() + STOP_LIMIT;
    while matches!(child.try_wait(), Ok(None)) && Instant::now() < limit {
        std::thread::sleep(POLL);
    }
    let _ = child.kill();
    let _ = child.wait();
}

/// A program of the Docker that has both stores: what setup has unpacked, or the machine's own.
fn program(name: &str) -> Command {
    let variable = |name: &str| std::env::var_os(name).map(PathBuf::from);
    let cache = variable("XDG_CACHE_HOME").or_else(|| Some(variable("HOME")?.join(".cache")));
    let unpacked = cache.map(|cache| cache.join("rackstep/tools/docker-26")).filter(|dir| dir.is_dir());
    let Some(dir) = unpacked else { return Command::new(name) };
    // containerd looks for its shim there as well.
    let mut path = dir.clone().into_os_string();
    path.push(":");
    path.push(std::env::var_os("PATH").unwrap_or_default());
    let mut command = Command::new(dir.join(name));
    command.env("PATH", path);
    command
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
