//! A host that runs, or did a moment ago, as other processes see it: by its launcher.

use std::fs;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::process::Signal;

use super::launcher::{STARTED, own_program};
use super::spec::{HostSpec, Storage};
use super::{ContainerError, cgroup, storage};
use crate::rim::process::Detached;

/// A killed launcher is gone at once.
const DEATH: Duration = Duration::from_secs(30);
/// How much of a launcher's last words is told, in bytes.
const WORDS: usize = 2000;

/// A host whose launcher runs.
#[derive(Debug)]
pub struct Container {
    launcher: Detached,
    dir: PathBuf,
}

/// Starts the host of `spec` and waits until it has begun to boot.
pub fn start(spec: &HostSpec) -> Result<Container, ContainerError> {
    let record = HostSpec::path(&spec.dir);
    let text = serde_json::to_vec_pretty(spec)
        .map_err(|source| ContainerError::Record { path: record.clone(), source })?;
    fs::write(&record, text).map_err(ContainerError::path("writing", &record))?;
    let log = HostSpec::log_path(&spec.dir);
    let words = fs::File::create(&log).map_err(ContainerError::path("making", &log))?;
    let mut command = own_program("launch");
    command.arg(&record).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(words);
    let mut child = command.spawn().map_err(ContainerError::io("starting the launcher"))?;
    let mut said = String::new();
    if let Some(mut answers) = child.stdout.take() {
        answers.read_to_string(&mut said).map_err(ContainerError::io("listening to the launcher"))?;
    }
    if said == STARTED
        && let Some(container) = Container::find(&spec.dir)
    {
        return Ok(container);
    }
    let _ = child.wait();
    Err(ContainerError::Launcher { name: spec.name.clone(), said: last_words(&log) })
}

fn last_words(log: &Path) -> String {
    let bytes = fs::read(log).unwrap_or_default();
    String::from_utf8_lossy(&bytes[bytes.len().saturating_sub(WORDS)..]).trim().to_owned()
}

impl Container {
    /// The host in `dir`, if its launcher runs.
    pub fn find(dir: &Path) -> Option<Self> {
        let word = HostSpec::path(dir).display().to_string();
        let launcher = Detached::find(&HostSpec::pid_path(dir), &word)?;
        Some(Self { launcher, dir: dir.to_owned() })
    }

    /// Its launcher's number.
    pub fn launcher_pid(&self) -> u32 {
        self.launcher.pid()
    }

    /// Does its launcher run?
    pub fn is_alive(&self) -> bool {
        self.launcher.is_alive()
    }

    /// Presses its power button: systemd shuts down.
    pub fn press_power_button(&self) {
        self.launcher.signal(Signal::TERM);
    }

    /// Cuts its power: what its file systems have not synced is gone, no process says good-bye. Waits until all of it is gone.
    ///
    /// A host that runs from a directory has no file systems of its own: what it wrote stays.
    pub fn power_cut(&self) -> Result<(), ContainerError> {
        let image = self.image()?;
        if let Some(image) = &image
            && self.is_alive()
        {
            let root = PathBuf::from(format!("/proc/{}/root", self.launcher.pid()));
            let shut = storage::cut(image, &self.dir, &root)?;
            if shut == 0 && self.is_alive() {
                return Err(ContainerError::NothingToCut(image.clone()));
            }
        }
        self.launcher.kill(DEATH).map_err(ContainerError::io("ending the launcher"))?;
        image.map_or(Ok(()), |image| storage::require_free(&image))?;
        // The guard does the same, a moment earlier or later.
        cgroup::remove(&cgroup::of_host(&cgroup::hierarchy()?, &self.dir))
    }

    /// Can a power cut lose what was not synced?
    pub fn can_lose(&self) -> Result<bool, ContainerError> {
        Ok(self.image()?.is_some())
    }

    fn image(&self) -> Result<Option<PathBuf>, ContainerError> {
        let path = HostSpec::path(&self.dir);
        let text = fs::read(&path).map_err(ContainerError::path("reading", &path))?;
        let spec: HostSpec = serde_json::from_slice(&text)
            .map_err(|source| ContainerError::Record { path: path.clone(), source })?;
        Ok(match spec.storage {
            Storage::Disk(image) => Some(image),
            Storage::Directory(_) => None,
        })
    }

    /// A command inside, as root, beside the host's own processes; its network may be out of order.
    pub fn command(&self, arguments: &[String]) -> Result<Command, ContainerError> {
        let path = HostSpec::init_path(&self.dir);
        let text = fs::read_to_string(&path).map_err(ContainerError::path("reading", &path))?;
        let init = text.trim();
        let status = fs::read_to_string(format!("/proc/{init}/status")).unwrap_or_default();
        let parent = status.lines().find_map(|line| line.strip_prefix("PPid:")).map(str::trim);
        if parent != Some(self.launcher.pid().to_string().as_str()) {
            return Err(ContainerError::Init("is between two boots".to_owned()));
        }
        let mut command = Command::new("nsenter");
        command.args(["--target", init]);
        command.args(["--mount", "--uts", "--ipc", "--net", "--pid", "--cgroup", "--root", "--wd", "--"]);
        command
            .args(arguments)
            .env_clear()
            .env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin")
            .env("HOME", "/root")
            .env("TERM", std::env::var_os("TERM").unwrap_or_else(|| "vt220".into()));
        Ok(command)
    }
}
