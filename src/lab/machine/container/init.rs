//! Process 1 of a host, before it becomes systemd: what a boot loader, an initramfs and a kernel leave behind, made by mounts.
//!
//! It is born in namespaces of its own ([`super::launcher`]).
//!
//! 1. It ends with its launcher, says so, and waits for its orders;
//! 2. control group, name;
//! 3. mounts: the deployment on itself, `/sysroot` (that alone: `verify` must not walk into `/sys`), `/boot`, `/var`, `/usr`
//!    read-only; kernel settings and `/sys` read-only but the network's; `/dev` and `/run` in memory;
//! 4. the deployment becomes the root, everything else is gone from sight; it is the directory that was checked, or nothing runs;
//! 5. systemd.

use std::ffi::{CStr, OsStr};
use std::fs::{self, Permissions};
use std::io::{Read as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::Command;

use rustix::mount::{
    MountFlags, MountPropagationFlags, UnmountFlags, mount_bind, mount_change, mount_remount, unmount,
};
use rustix::process::{Signal, pivot_root, set_parent_process_death_signal, umask};
use rustix::thread::{CapabilitySet, remove_capability_from_bounding_set};

use super::console::open_terminal;
use super::deployment::INIT;
use super::kernel::{Apart, unshare};
use super::spec::InitSpec;
use super::{ContainerError, lacks, nodes};
use crate::model::RELEASE_DIR;

/// What it says when its life hangs on its launcher's.
pub const READY: &str = "ready\n";
/// What a host says it is: `systemd-detect-virt` knows it as a container.
const KIND: &str = "rackstep";
/// Where systemd looks for what a container's maker has for it (Container Interface of systemd).
const HOST: &str = "run/host";
/// Capabilities that reach past every namespace, to the machine's modules, clock and memory; services of ours need none of them.
const WITHHELD: [CapabilitySet; 3] =
    [CapabilitySet::SYS_MODULE, CapabilitySet::SYS_TIME, CapabilitySet::SYS_RAWIO];
/// Flags of file systems that hold no programs and no devices.
const PLAIN: MountFlags = MountFlags::NOSUID.union(MountFlags::NODEV).union(MountFlags::NOEXEC);

/// Becomes the host's systemd; it comes back only with a failure.
pub fn run() -> ContainerError {
    prepare().map_or_else(|error| error, |error| ContainerError::io("starting systemd")(error))
}

fn prepare() -> Result<std::io::Error, ContainerError> {
    let Some(spec) = listen::<InitSpec>()? else {
        return Err(ContainerError::Init("lost its launcher".to_owned()));
    };
    umask(rustix::fs::Mode::from_raw_mode(0o022));
    enter_group(&spec.cgroup)?;
    rustix::system::sethostname(spec.name.as_bytes())
        .map_err(|errno| ContainerError::io("setting the host's name")(errno.into()))?;
    mount_host(&spec)?;
    leave_machine()?;
    require_identity(Path::new("/"), spec.identity)?;
    // systemd leaves it to whoever makes a container; without it no service gets credentials.
    mount_change("/", MountPropagationFlags::SHARED | MountPropagationFlags::REC)
        .map_err(|errno| ContainerError::io("sharing mounts inside the host")(errno.into()))?;
    for capability in WITHHELD {
        remove_capability_from_bounding_set(capability)
            .map_err(|errno| ContainerError::io("withholding a capability")(errno.into()))?;
    }
    become_systemd(&spec)
}

/// Binds its life to the launcher's, and reads its orders; none, if the launcher is gone.
pub(super) fn listen<T: serde::de::DeserializeOwned>() -> Result<Option<T>, ContainerError> {
    set_parent_process_death_signal(Some(Signal::KILL))
        .map_err(|errno| ContainerError::io("asking to end with the launcher")(errno.into()))?;
    let mut out = std::io::stdout();
    // Orders come only after this: a launcher that died before cannot have sent any.
    out.write_all(READY.as_bytes()).and_then(|()| out.flush()).map_err(ContainerError::io("answering"))?;
    let mut text = String::new();
    std::io::stdin().read_to_string(&mut text).map_err(ContainerError::io("reading orders"))?;
    if text.is_empty() {
        return Ok(None);
    }
    serde_json::from_str(&text)
        .map(Some)
        .map_err(|source| ContainerError::Record { path: "orders".into(), source })
}

/// Enters a control group, and sees nothing above it any more.
pub(super) fn enter_group(group: &Path) -> Result<(), ContainerError> {
    let members = group.join("cgroup.procs");
    fs::write(&members, "0").map_err(ContainerError::path("entering", group))?;
    unshare(Apart::ControlGroups).map_err(ContainerError::io("hiding control groups"))
}

/// Everything of the host, the working directory its root.
fn mount_host(spec: &InitSpec) -> Result<(), ContainerError> {
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)
        .map_err(|errno| ContainerError::io("keeping mounts private")(errno.into()))?;
    bind(&spec.checkout, &spec.checkout)?;
    std::env::set_current_dir(&spec.checkout).map_err(ContainerError::path("entering", &spec.checkout))?;
    require_identity(Path::new("."), spec.identity)?;
    bind(&spec.sysroot, "sysroot")?;
    bind(spec.sysroot.join("boot"), "boot")?;
    bind(&spec.var, "var")?;
    bind("usr", "usr")?;
    make_read_only("usr", MountFlags::empty())?;
    mount_run(spec)?;
    mount_kernel(spec)?;
    nodes::mount(Path::new("dev"), Some(&spec.console))?;
    stand_in(&spec.lacks)
}

/// `/run`, with what systemd and libostree look for there.
fn mount_run(spec: &InitSpec) -> Result<(), ContainerError> {
    mount_new("tmpfs", "run", MountFlags::NOSUID | MountFlags::NODEV, c"mode=755")?;
    write("run/ostree-booted", "", 0o644)?;
    let credentials = Path::new(HOST).join("credentials");
    fs::create_dir_all(&credentials).map_err(ContainerError::path("making", &credentials))?;
    write(Path::new(HOST).join("container-manager"), KIND, 0o644)?;
    for (name, value) in &spec.credentials {
        write(credentials.join(name), value, 0o400)?;
    }
    Ok(())
}

/// What shows the kernel: its settings are the machine's, and only the network's are this host's own.
fn mount_kernel(spec: &InitSpec) -> Result<(), ContainerError> {
    mount_new("proc", "proc", PLAIN, c"")?;
    bind("proc/sys", "proc/sys")?;
    bind("proc/sys/net", "proc/sys/net")?;
    // A boot has a name of its own: journals and `cluster upgrade` tell one from another by it.
    let name =
        fs::read_to_string("/proc/sys/kernel/random/uuid").map_err(ContainerError::io("naming the boot"))?;
    show("boot_id", &name, "proc/sys/kernel/random/boot_id")?;
    for (path, value) in &spec.lacks.tunables {
        show(&path.replace('/', "-"), &format!("{value}\n"), Path::new("proc/sys").join(path))?;
    }
    make_read_only("proc/sys", PLAIN)?;
    // A letter written there restarts the machine.
    const RESTART: &str = "proc/sysrq-trigger";
    if Path::new(RESTART).exists() {
        bind(RESTART, RESTART)?;
        make_read_only(RESTART, PLAIN)?;
    }
    show("cmdline", &format!("{}\n", spec.options), "proc/cmdline")?;
    // udev starts where it may write there.
    mount_new("sysfs", "sys", PLAIN | MountFlags::RDONLY, c"")?;
    mount_new("cgroup2", "sys/fs/cgroup", PLAIN, c"")
}

/// Puts what [`lacks`] has in place of what the machine does not let a host do.
fn stand_in(lacks: &lacks::Lacks) -> Result<(), ContainerError> {
    let real = ["usr/sbin/runc", "usr/bin/runc"]
        .map(Path::new)
        .into_iter()
        .find(|path| fs::symlink_metadata(path).is_ok_and(|metadata| metadata.is_file()));
    if let Some(real) = real.filter(|_| lacks.resource) {
        let moved = Path::new(HOST).join("runc");
        write(&moved, "", 0o755)?;
        bind(real, &moved)?;
        let script = Path::new(HOST).join("runc-without-low-scores");
        write(&script, lacks::RUNC, 0o755)?;
        bind(&script, real)?;
    }
    let settings = Path::new(RELEASE_DIR).join("kubelet.yaml");
    if lacks.controllers && settings.is_file() {
        let text = fs::read_to_string(&settings).map_err(ContainerError::path("reading", &settings))?;
        show("kubelet.yaml", &lacks::kubelet_settings(&text), &settings)?;
    }
    Ok(())
}

/// The working directory becomes the root; the machine's files are gone from sight.
pub(super) fn leave_machine() -> Result<(), ContainerError> {
    let leaving = || ContainerError::io("leaving the machine's files");
    // Onto itself: the old root comes to lie over the new one and is taken away at once (pivot_root(2), "Notes").
    pivot_root(".", ".").map_err(|errno| leaving()(errno.into()))?;
    unmount(".", UnmountFlags::DETACH).map_err(|errno| leaving()(errno.into()))?;
    std::env::set_current_dir("/").map_err(leaving())
}

/// Is it the directory that was checked?
fn require_identity(directory: &Path, expected: (u64, u64)) -> Result<(), ContainerError> {
    let metadata = fs::metadata(directory).map_err(ContainerError::path("looking at", directory))?;
    let marked = directory.join(RELEASE_DIR).join("release.json").is_file();
    if (metadata.dev(), metadata.ino()) == expected && marked {
        return Ok(());
    }
    Err(ContainerError::Init("is not in the deployment that was checked".to_owned()))
}

fn become_systemd(spec: &InitSpec) -> Result<std::io::Error, ContainerError> {
    let opening = || ContainerError::io("opening the host's console");
    let console = open_terminal(Path::new("/dev/console")).map_err(opening())?;
    let copy = || console.try_clone().map_err(opening());
    let mut systemd = Command::new(Path::new("/").join(INIT));
    systemd
        .arg("--system")
        .env_clear()
        .env("container", KIND)
        .env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin")
        .env("TERM", "vt220")
        .stdin(copy()?)
        .stdout(copy()?)
        .stderr(copy()?);
    if !spec.credentials.is_empty() {
        systemd.env("CREDENTIALS_DIRECTORY", Path::new("/").join(HOST).join("credentials"));
    }
    Ok(systemd.exec())
}

/// Shows `text` at `place`, from a file in memory.
fn show(name: &str, text: &str, place: impl AsRef<Path>) -> Result<(), ContainerError> {
    let file = Path::new(HOST).join(name);
    write(&file, text, 0o644)?;
    bind(&file, place)
}

fn write(path: impl AsRef<Path>, text: &str, mode: u32) -> Result<(), ContainerError> {
    let path = path.as_ref();
    fs::write(path, text)
        .and_then(|()| fs::set_permissions(path, Permissions::from_mode(mode)))
        .map_err(ContainerError::path("writing", path))
}

/// Mounts a new file system of `kind`.
pub(super) fn mount_new(
    kind: &str,
    place: impl AsRef<Path>,
    flags: MountFlags,
    options: &CStr,
) -> Result<(), ContainerError> {
    let place = place.as_ref();
    rustix::mount::mount(kind, place, kind, flags, options)
        .map_err(|errno| ContainerError::io(format!("mounting {kind} on {}", place.display()))(errno.into()))
}

/// Shows what is at `from`, and nothing that is mounted below it, at `to` as well.
pub(super) fn bind(from: impl AsRef<OsStr>, to: impl AsRef<Path>) -> Result<(), ContainerError> {
    let (from, to) = (Path::new(from.as_ref()), to.as_ref());
    mount_bind(from, to).map_err(|errno| {
        ContainerError::io(format!("showing {} at {}", from.display(), to.display()))(errno.into())
    })
}

fn make_read_only(place: &str, flags: MountFlags) -> Result<(), ContainerError> {
    mount_remount(place, MountFlags::BIND | MountFlags::RDONLY | flags, c"")
        .map_err(|errno| ContainerError::io(format!("making {place} read-only"))(errno.into()))
}
