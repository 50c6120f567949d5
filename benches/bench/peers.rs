//! The neighbours: nginx, Debian's docker-registry, dockerd, each private to the run and gone with it.
//!
//! nginx and the registry come out of their Debian packages unpacked in the cache: installing them would start services on
//! this machine.

use std::fs::{self, File};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::release::{run, text};
use crate::{Bench, Outcome};

const START_LIMIT: Duration = Duration::from_secs(120);
const STOP_LIMIT: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(50);
/// Both programs are in these packages alone.
const PACKAGES: [&str; 2] = ["nginx", "docker-registry"];

/// A program in the background.
struct Daemon(Child);

impl Daemon {
    fn start(command: &mut Command, log: &Path) -> Outcome<Self> {
        let log = File::create(log)?;
        let child = command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).spawn()?;
        Ok(Self(child))
    }

    fn stop(&mut self) {
        if let Some(pid) = Pid::from_raw(self.0.id() as i32) {
            let _ = kill_process(pid, Signal::TERM);
        }
        let limit = Instant::now() + STOP_LIMIT;
        while matches!(self.0.try_wait(), Ok(None)) && Instant::now() < limit {
            std::thread::sleep(POLL);
        }
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Where the programs of Debian's packages are.
pub fn programs(bench: &Bench) -> Outcome<PathBuf> {
    let root = bench.inputs.join("peers");
    if root.join("done").exists() {
        return Ok(root);
    }
    let _ = fs::remove_dir_all(&root);
    let debs = root.join("debs");
    fs::create_dir_all(&debs)?;
    let download = || run(Command::new("apt-get").arg("download").args(PACKAGES).current_dir(&debs));
    // Lists may be missing or older than the mirror.
    download().or_else(|_| run(Command::new("apt-get").args(["-q", "update"])).and_then(|()| download()))?;
    for deb in fs::read_dir(&debs)? {
        run(Command::new("dpkg-deb").arg("-x").arg(deb?.path()).arg(&root))?;
    }
    fs::write(root.join("done"), "")?;
    Ok(root)
}

fn free_port() -> Outcome<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

fn wait_for(port: u16, log: &Path) -> Outcome<()> {
    let limit = Instant::now() + START_LIMIT;
    while TcpStream::connect(("127.0.0.1", port)).is_err() {
        if Instant::now() > limit {
            return Err(format!("nothing listens: {}", fs::read_to_string(log)?).into());
        }
        std::thread::sleep(POLL);
    }
    Ok(())
}

/// nginx over a directory.
pub struct Nginx {
    _daemon: Daemon,
    port: u16,
    log: PathBuf,
}

impl Nginx {
    /// Serves `root`.
    pub fn start(bench: &Bench, root: &Path) -> Outcome<Self> {
        let dir = bench.scratch.join("nginx");
        fs::create_dir_all(&dir)?;
        let (port, log) = (free_port()?, dir.join("access.log"));
        // Two workers for two cores; what libostree wants of a server (its documentation) is nginx's default.
        let configuration = format!(
            "daemon off; pid {dir}/pid; error_log {dir}/error.log; worker_processes 2; user root;\n\
             events {{ worker_connections 1024; }}\n\
             http {{ log_format bytes '$body_bytes_sent'; access_log {log} bytes; default_type application/octet-stream;\n\
             sendfile on; tcp_nodelay on; keepalive_requests 1000000;\n\
             client_body_temp_path {dir}/t1; proxy_temp_path {dir}/t2; fastcgi_temp_path {dir}/t3;\n\
             uwsgi_temp_path {dir}/t4; scgi_temp_path {dir}/t5;\n\
             server {{ listen 127.0.0.1:{port}; root {root}; }} }}\n",
            dir = dir.display(),
            log = log.display(),
            root = root.display(),
        );
        let file = dir.join("nginx.conf");
        fs::write(&file, configuration)?;
        let program = programs(bench)?.join("usr/sbin/nginx");
        let error_log = dir.join("error.log");
        let mut command = Command::new(program);
        command.arg("-c").arg(&file).arg("-e").arg(&error_log).arg("-p").arg(&dir);
        let daemon = Daemon::start(&mut command, &dir.join("log"))?;
        wait_for(port, &error_log)?;
        Ok(Self { _daemon: daemon, port, log })
    }

    /// The URL of `path` below the root.
    pub fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}/{path}", self.port)
    }

    /// Bytes of bodies sent so far.
    pub fn sent(&self) -> Outcome<u64> {
        let text = fs::read_to_string(&self.log)?;
        Ok(text.lines().filter_map(|line| line.parse::<u64>().ok()).sum())
    }
}

/// Debian's registry.
pub struct Registry {
    _daemon: Daemon,
    port: u16,
    dir: PathBuf,
}

impl Registry {
    /// An empty registry.
    pub fn start(bench: &Bench) -> Outcome<Self> {
        let dir = bench.scratch.join("registry");
        fs::create_dir_all(&dir)?;
        let port = free_port()?;
        let configuration = format!(
            "version: 0.1\nlog: {{ level: error, accesslog: {{ disabled: false }} }}\nstorage:\n  filesystem: {{ rootdirectory: {} }}\n  cache: {{ blobdescriptor: inmemory }}\nhttp: {{ addr: \"127.0.0.1:{port}\" }}\n",
            dir.join("data").display()
        );
        let file = dir.join("config.yml");
        fs::write(&file, configuration)?;
        let mut command = Command::new(programs(bench)?.join("usr/bin/docker-registry"));
        command.arg("serve").arg(&file).env("OTEL_TRACES_EXPORTER", "none");
        let log = dir.join("log");
        let daemon = Daemon::start(&mut command, &log)?;
        wait_for(port, &log)?;
        Ok(Self { _daemon: daemon, port, dir })
    }

    /// Puts an image of an OCI layout there; layers are compressed as every push does it.
    pub fn push(&self, layout: &Path, name: &str, tag: &str) -> Outcome<()> {
        run(Command::new("skopeo")
            .args(["copy", "--quiet", "--dest-tls-verify=false"])
            .arg(format!("oci:{}:{name}", layout.display()))
            .arg(format!("docker://{}", self.image(name, tag))))
    }

    /// An image's name in it.
    pub fn image(&self, name: &str, tag: &str) -> String {
        format!("127.0.0.1:{}/{name}:{}", self.port, tag.to_lowercase())
    }

    /// Bytes of bodies sent so far, by its access log (common log format: status, then bytes).
    pub fn sent(&self) -> Outcome<u64> {
        let log = fs::read(self.dir.join("log"))?;
        let log = String::from_utf8_lossy(&log);
        let requests = log.lines().filter_map(|line| line.split_once("\"GET ")).map(|(_, rest)| rest);
        let bytes = requests.filter_map(|rest| {
            let after = rest.split_once("\" ")?.1;
            after.split_whitespace().nth(1)?.parse::<u64>().ok()
        });
        Ok(bytes.sum())
    }

    /// Where its data are.
    pub fn data(&self) -> PathBuf {
        self.dir.join("data")
    }
}

/// A Docker daemon of the run.
pub struct Dockerd {
    daemon: Daemon,
    dir: PathBuf,
}

impl Dockerd {
    /// A daemon without images.
    pub fn start(bench: &Bench, name: &str) -> Outcome<Self> {
        let dir = bench.scratch.join(name);
        fs::create_dir_all(&dir)?;
        let daemon = Self::run(&dir)?;
        Ok(Self { daemon, dir })
    }

    /// The same daemon again, on what `meanwhile` has made of its data.
    pub fn restart(&mut self, meanwhile: impl FnOnce(&Path) -> Outcome<()>) -> Outcome<()> {
        self.daemon.stop();
        meanwhile(&self.data())?;
        self.daemon = Self::run(&self.dir)?;
        Ok(())
    }

    fn run(dir: &Path) -> Outcome<Daemon> {
        let path = |name: &str| dir.join(name);
        // No network of its own: pulls take the machine's. The registry is on loopback, which is trusted by default.
        let mut command = Command::new("dockerd");
        command
            .args(["--iptables=false", "--ip6tables=false", "--bridge=none", "--storage-driver=overlay2"])
            .arg("--data-root")
            .arg(path("data"))
            .arg("--exec-root")
            .arg(path("exec"))
            .arg("--pidfile")
            .arg(path("pid"))
            .args(["-H", &format!("unix://{}", path("docker.sock").display())]);
        let daemon = Daemon::start(&mut command, &path("log"))?;
        let limit = Instant::now() + START_LIMIT;
        let url = format!("unix://{}", path("docker.sock").display());
        while Command::new("docker").args(["-H", &url, "version"]).output()?.status.code() != Some(0) {
            if Instant::now() > limit {
                return Err(format!("dockerd: {}", fs::read_to_string(path("log"))?).into());
            }
            std::thread::sleep(POLL);
        }
        Ok(daemon)
    }

    /// Docker's own client.
    pub fn client(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("docker");
        command.args(["-H", &self.url()]).args(arguments);
        command
    }

    /// Where it listens.
    pub fn url(&self) -> String {
        format!("unix://{}", text(&self.dir.join("docker.sock")))
    }

    /// Its data root.
    pub fn data(&self) -> PathBuf {
        self.dir.join("data")
    }
}

impl Drop for Dockerd {
    fn drop(&mut self) {
        self.daemon.stop();
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
        let mounts = mounts.lines().filter_map(|line| line.split(' ').nth(1));
        let below: Vec<&str> = mounts.filter(|path| Path::new(path).starts_with(&self.dir)).collect();
        for path in below.iter().rev() {
            let _ = rustix::mount::unmount(*path, rustix::mount::UnmountFlags::DETACH);
        }
        let _ = fs::remove_dir_all(&self.dir);
    }
}
