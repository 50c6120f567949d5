//! The launcher of one host: a process that outlives whoever started it, and with which everything of the host goes.
//!
//! 1. Its record, a lock, a control group; a guard that removes the group should the launcher be killed;
//! 2. a mount namespace of its own, in which it keeps nothing but what it needs: it must not hold other people's mounts;
//! 3. the host's files, mounted there; the console;
//! 4. for each boot: the deployment, checked; process 1 in new namespaces; the network card; and the wait for its end.
//!    SIGHUP is a reboot, SIGINT a power-off (reboot(2), "Behavior inside PID namespaces").
//!
//! Process 1 dies with the launcher, all processes of the host with process 1, mounts and loop devices with the last process.
//! SIGTERM is the power button.

use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::mpsc;

use rustix::fs::{FlockOperation, flock};
use rustix::mount::{MountPropagationFlags, UnmountFlags, mount_change, unmount};
use rustix::process::{Pid, Signal};

use super::console::Console;
use super::deployment::{self, Deployment};
use super::init::READY;
use super::kernel::{self, Apart, unshare};
use super::lacks::Lacks;
use super::spec::{HostSpec, InitSpec, Link};
use super::storage::{self, Mounted};
use super::{ContainerError, VERB, cgroup};
use crate::lab::machine::Network;
use crate::rim::command;

/// What the launcher says when its host has begun to boot.
pub const STARTED: &str = "started\n";
/// Modules of this machine that hosts need; built in, or loaded already, is fine.
const MODULES: [&str; 5] = ["overlay", "erofs", "loop", "xfs", "ext4"];

/// The host's process 1; 0 between two boots.
static INIT: AtomicI32 = AtomicI32::new(0);

/// Why process 1 ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Reboot,
    PowerOff,
}

/// Runs the host of the record at `path` until it powers itself off.
pub fn run(path: &Path) -> Result<(), ContainerError> {
    // Who started it may go, with its terminal. Fails for the leader of a group, which has no terminal to lose.
    let _ = rustix::process::setsid();
    let spec = read_spec(path)?;
    let _lock = lock(&spec.dir)?;
    load_modules();
    let hierarchy = cgroup::hierarchy()?;
    let group = cgroup::of_host(&hierarchy, &spec.dir);
    // Before there is a group: from now on it goes with us, whenever we are killed.
    let guard = start_guard(&group)?;
    cgroup::create(&group, spec.memory_mib, spec.cpus)?;
    let ran = Host::run(&spec, &hierarchy, &group);
    let _ = fs::remove_file(HostSpec::pid_path(&spec.dir));
    drop(guard);
    cgroup::remove(&group)?;
    ran
}

/// Removes the group when the launcher, whose end of stdin it holds, is gone.
pub fn guard(group: &Path) -> Result<(), ContainerError> {
    let _ = rustix::process::setsid();
    let mut nothing = Vec::new();
    let _ = std::io::stdin().read_to_end(&mut nothing);
    cgroup::remove(group)
}

fn read_spec(path: &Path) -> Result<HostSpec, ContainerError> {
    let text = fs::read(path).map_err(ContainerError::path("reading", path))?;
    serde_json::from_slice(&text).map_err(|source| ContainerError::Record { path: path.to_owned(), source })
}

fn lock(dir: &Path) -> Result<File, ContainerError> {
    let path = HostSpec::lock_path(dir);
    let file = File::create(&path).map_err(ContainerError::path("making", &path))?;
    flock(&file, FlockOperation::NonBlockingLockExclusive)
        .map_err(|_errno| ContainerError::Busy(dir.to_owned()))?;
    Ok(file)
}

/// Loads what is not there, as far as this machine can; whoever needs it says what is missing.
pub(super) fn load_modules() {
    if let Err(error) = command::run(Command::new("modprobe").args(["--quiet", "--all"]).args(MODULES)) {
        tracing::debug!(%error, "no module was loaded");
    }
}

fn start_guard(group: &Path) -> Result<ChildStdin, ContainerError> {
    let mut command = own_program("guard");
    command.arg(group).stdin(Stdio::piped()).stdout(Stdio::null());
    let mut child = command.spawn().map_err(ContainerError::io("starting the guard"))?;
    child.stdin.take().ok_or_else(|| ContainerError::Unable("the guard has no stdin".to_owned()))
}

/// This very program, with a part of the hidden verb.
pub(super) fn own_program(part: &str) -> Command {
    use std::os::unix::process::CommandExt as _;
    let mut command = Command::new("/proc/self/exe");
    command.arg0("rackstep").args([VERB, part]);
    command
}

/// One host, from its first boot to its last.
struct Host<'a> {
    spec: &'a HostSpec,
    group: &'a Path,
    lacks: Lacks,
    mounted: Mounted,
    console: Console,
    network: Option<(Network, &'a Link)>,
}

impl<'a> Host<'a> {
    fn run(spec: &'a HostSpec, hierarchy: &Path, group: &'a Path) -> Result<(), ContainerError> {
        let network = match &spec.link {
            None => None,
            Some(link) => Some((open_network(link)?, link)),
        };
        unshare(Apart::Mounts).map_err(ContainerError::io("making a mount namespace"))?;
        keep_only(&needed(spec, hierarchy)?)?;
        let mounted = storage::mount(spec)?;
        let mut console = Console::open(&spec.dir.join("console.log"))?;
        listen_to_power_button();
        let lacks = Lacks::observe(hierarchy);
        console.say(&format!("this machine lacks {lacks:?}"));
        let mut host = Host { spec, group, lacks, mounted, console, network };
        let ran = host.boot_again_and_again();
        // Only now: what cannot be unmounted is still told of, and goes with this process.
        let let_go = host.mounted.unmount();
        ran.and(let_go)
    }

    fn boot_again_and_again(&mut self) -> Result<(), ContainerError> {
        let mut first = true;
        loop {
            let sysroot = self.mounted.sysroot.clone();
            let deployment =
                deployment::find(&sysroot).map_err(|source| ContainerError::Refused { sysroot, source })?;
            self.console.say(&format!(
                "boots {} by {}: release {}",
                deployment.commit, deployment.entry, deployment.version
            ));
            let end = self.boot(&deployment, std::mem::take(&mut first))?;
            self.console.say(&format!("process 1 ended: {end:?}"));
            if end == End::PowerOff {
                return Ok(());
            }
        }
    }

    fn boot(&self, deployment: &Deployment, first: bool) -> Result<End, ContainerError> {
        let orders = self.orders(deployment);
        with_first_process("init", |child, orders_pipe, answers| {
            let pid = child.id();
            if let Some((network, link)) = &self.network {
                network
                    .plug_host(&link.outside, &link.mac, pid)
                    .map_err(|error| ContainerError::Network(Box::new(error)))?;
            }
            let said = give_orders(&orders, orders_pipe, answers)?;
            if !said.is_empty() {
                return Err(ContainerError::Init(format!("did not start: {}", said.trim())));
            }
            note_pid(&HostSpec::init_path(&self.spec.dir), pid)?;
            INIT.store(pid.cast_signed(), Ordering::SeqCst);
            if first {
                note_pid(&HostSpec::pid_path(&self.spec.dir), std::process::id())?;
                announce()?;
            }
            let status = child.wait().map_err(ContainerError::io("waiting for process 1"));
            INIT.store(0, Ordering::SeqCst);
            end_of(status?)
        })
    }

    fn orders(&self, deployment: &Deployment) -> InitSpec {
        let var = self.mounted.sysroot.join("ostree/deploy").join(&deployment.stateroot).join("var");
        InitSpec {
            name: self.spec.name.clone(),
            sysroot: self.mounted.sysroot.clone(),
            checkout: deployment.checkout.clone(),
            identity: deployment.identity,
            var: self.mounted.state.clone().unwrap_or(var),
            cgroup: self.group.to_owned(),
            console: self.console.terminal.clone(),
            options: deployment.options.clone(),
            credentials: self.spec.credentials.clone(),
            lacks: self.lacks.clone(),
        }
    }
}

fn open_network(link: &Link) -> Result<Network, ContainerError> {
    Network::open(&link.network)
        .ok_or_else(|| ContainerError::Unable(format!("there is no network {}", link.network)))
}

/// Starts a part of this program as process 1 of new namespaces, and lets `act` work with it. It is gone afterwards.
pub(super) fn with_first_process<R>(
    part: &'static str,
    act: impl FnOnce(&mut Child, ChildStdin, ChildStdout) -> Result<R, ContainerError>,
) -> Result<R, ContainerError> {
    let (born, births) = mpsc::sync_channel(1);
    let (done, wait_for_end) = mpsc::channel::<()>();
    // A thread gives its children new process ids once; and they end with the thread that made them, not with the process.
    let mother = std::thread::spawn(move || {
        let child = unshare(Apart::Host)
            .and_then(|()| own_program(part).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn());
        let _ = born.send(child);
        let _ = wait_for_end.recv();
    });
    let birth = births.recv().map_err(|_closed| ContainerError::Init("was never born".to_owned()))?;
    let mut child = birth.map_err(ContainerError::io("starting process 1"))?;
    let (Some(orders), Some(answers)) = (child.stdin.take(), child.stdout.take()) else {
        return Err(ContainerError::Init("has no pipes".to_owned()));
    };
    let result = act(&mut child, orders, answers);
    // Does nothing to a process that was waited for.
    let _ = child.kill();
    let _ = child.wait();
    drop(done);
    let _ = mother.join();
    result
}

/// Waits until process 1 will end with us, tells it what to do, and gives what it said until it became another program.
pub(super) fn give_orders(
    orders: &impl serde::Serialize,
    mut pipe: ChildStdin,
    mut answers: ChildStdout,
) -> Result<String, ContainerError> {
    let speaking = || ContainerError::io("speaking to process 1");
    let mut ready = vec![0; READY.len()];
    answers.read_exact(&mut ready).map_err(speaking())?;
    let text = serde_json::to_vec(orders)
        .map_err(|source| ContainerError::Record { path: "orders".into(), source })?;
    pipe.write_all(&text).map_err(speaking())?;
    drop(pipe);
    let mut said = String::new();
    answers.read_to_string(&mut said).map_err(speaking())?;
    Ok(said)
}

fn end_of(status: ExitStatus) -> Result<End, ContainerError> {
    let signal = |wanted: Signal| status.signal() == Some(wanted.as_raw());
    if signal(Signal::HUP) {
        Ok(End::Reboot)
    } else if signal(Signal::INT) {
        Ok(End::PowerOff)
    } else {
        Err(ContainerError::Init(format!("ended without a shutdown: {status}")))
    }
}

fn note_pid(path: &Path, pid: u32) -> Result<(), ContainerError> {
    fs::write(path, format!("{pid}\n")).map_err(ContainerError::path("writing", path))
}

/// Whoever started us has waited for this, and listens no longer.
fn announce() -> Result<(), ContainerError> {
    let mut out = std::io::stdout();
    let _ = out.write_all(STARTED.as_bytes()).and_then(|()| out.flush());
    let null =
        File::options().write(true).open("/dev/null").map_err(ContainerError::io("opening /dev/null"))?;
    rustix::stdio::dup2_stdout(&null).map_err(|errno| ContainerError::io("closing stdout")(errno.into()))
}

/// SIGTERM powers the host off. Between two boots nobody hears it.
fn listen_to_power_button() {
    std::thread::spawn(|| {
        let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_all().build() else { return };
        runtime.block_on(async {
            use tokio::signal::unix::{SignalKind, signal};
            let Ok(mut terminate) = signal(SignalKind::terminate()) else { return };
            while terminate.recv().await.is_some() {
                // Our own child, which is not waited for before the number is taken back.
                if let Some(init) = Pid::from_raw(INIT.load(Ordering::SeqCst))
                    && let Err(error) = kernel::ask_to_power_off(init)
                {
                    tracing::warn!(%error, "pressing the power button");
                }
            }
        });
    });
}

/// Paths that the launcher goes on using.
fn needed(spec: &HostSpec, hierarchy: &Path) -> Result<Vec<PathBuf>, ContainerError> {
    let storage = match &spec.storage {
        super::Storage::Disk(path) | super::Storage::Directory(path) => path,
    };
    let program = fs::read_link("/proc/self/exe").map_err(ContainerError::io("looking for this program"))?;
    let storage = fs::canonicalize(storage).map_err(ContainerError::path("looking for", storage))?;
    let dir = fs::canonicalize(&spec.dir).map_err(ContainerError::path("looking for", &spec.dir))?;
    let mut paths = vec![storage, dir, program, hierarchy.to_owned()];
    paths.extend(["/proc", "/sys", "/dev/pts", "/usr/bin", "/usr/sbin", "/etc"].map(PathBuf::from));
    // `ip` shows a namespace's own /sys to what it runs there.
    paths.extend(spec.link.iter().map(|link| Path::new("/run/netns").join(&link.network)));
    Ok(paths)
}

/// Takes every mount out of this namespace that is on the way to none of `paths`: a copy of it would keep a file system, and
/// its loop device, from going when somebody else unmounts it.
fn keep_only(paths: &[PathBuf]) -> Result<(), ContainerError> {
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)
        .map_err(|errno| ContainerError::io("keeping mounts private")(errno.into()))?;
    let table = fs::read_to_string("/proc/self/mountinfo").map_err(ContainerError::io("reading mounts"))?;
    for place in surplus(&table, paths) {
        // It may have gone with the mount that it was in.
        if let Err(errno) = unmount(&place, UnmountFlags::DETACH) {
            tracing::debug!(%errno, place = %place.display(), "letting a mount go");
        }
    }
    Ok(())
}

/// Mount points that lead to none of `paths`, inner ones first.
fn surplus(table: &str, paths: &[PathBuf]) -> Vec<PathBuf> {
    let places = table.lines().filter_map(|line| line.split(' ').nth(4)).map(unescape);
    let mut places: Vec<PathBuf> =
        places.filter(|place| !paths.iter().any(|path| path.starts_with(place))).collect();
    places.reverse();
    places
}

/// proc(5): blanks and the like are three octal digits.
fn unescape(text: &str) -> PathBuf {
    let mut plain = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('\\') {
        plain.push_str(before);
        match after.get(..3).and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) => {
                plain.push(char::from(byte));
                rest = &after[3..];
            }
            None => {
                plain.push('\\');
                rest = after;
            }
        }
    }
    plain.push_str(rest);
    PathBuf::from(plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_leads_to_our_files_stays() {
        let table = "1 0 8:1 / / rw - ext4 /dev/a rw\n2 1 0:2 / /proc rw - proc proc rw\n\
                     3 1 8:2 / /srv rw - xfs /dev/b rw\n4 3 7:1 / /srv/of\\040others rw - ext4 /dev/loop1 rw\n";
        let paths = ["/proc", "/srv/machines/control"].map(PathBuf::from);
        assert_eq!(surplus(table, &paths), [PathBuf::from("/srv/of others")]);
        assert_eq!(
            surplus(table, &["/proc".into()]),
            [PathBuf::from("/srv/of others"), PathBuf::from("/srv")]
        );
    }

    #[test]
    fn ends_of_process_1() {
        assert_eq!(end_of(ExitStatus::from_raw(1)).unwrap(), End::Reboot);
        assert_eq!(end_of(ExitStatus::from_raw(2)).unwrap(), End::PowerOff);
        for raw in [0, 9, 256] {
            assert!(end_of(ExitStatus::from_raw(raw)).is_err(), "{raw}");
        }
    }
}
