//! Can this machine run hosts as containers? Tried, not guessed: everything that a host needs of the kernel, in an instant.

use std::fs;
use std::path::{Path, PathBuf};

use rustix::mount::{MountFlags, MountPropagationFlags, mount_change};
use serde::{Deserialize, Serialize};

use super::init::{enter_group, leave_machine, listen, mount_new};
use super::launcher::{give_orders, load_modules, with_first_process};
use super::{ContainerError, cgroup, nodes};

/// What a probe says when all is well, and nothing else.
const GOOD: &str = "good";
/// File systems without which no host of ours runs.
const NEEDED: [&str; 3] = ["overlay", "xfs", "ext4"];

/// What the probe's process 1 is told.
#[derive(Debug, Serialize, Deserialize)]
struct Orders {
    place: PathBuf,
    cgroup: PathBuf,
}

/// Tries it; the failure says what stands in the way.
pub fn probe() -> Result<(), ContainerError> {
    let unable = |why: String| Err(ContainerError::Unable(why));
    if !rustix::process::geteuid().is_root() {
        return unable("only root can".to_owned());
    }
    load_modules();
    let known =
        fs::read_to_string("/proc/filesystems").map_err(ContainerError::io("reading file systems"))?;
    let knows = |kind: &str| known.lines().any(|line| line.split_whitespace().next_back() == Some(kind));
    if let Some(kind) = NEEDED.into_iter().find(|kind| !knows(kind)) {
        return unable(format!("its kernel has no {kind}"));
    }
    if !Path::new("/dev/loop-control").exists() {
        return unable("it has no loop devices".to_owned());
    }
    let place = tempfile::Builder::new()
        .prefix("rackstep-probe-")
        .tempdir()
        .map_err(ContainerError::io("making a directory"))?;
    let group = cgroup::of_host(&cgroup::hierarchy()?, place.path());
    cgroup::create(&group, 64, 1)?;
    let orders = Orders { place: place.path().to_owned(), cgroup: group.clone() };
    let said = with_first_process("probe", |_child, pipe, answers| give_orders(&orders, pipe, answers));
    cgroup::remove(&group)?;
    match said?.trim() {
        GOOD => Ok(()),
        said => unable(said.to_owned()),
    }
}

/// The probe's process 1; what it gives is for its launcher to hear.
pub fn inside() -> String {
    match assemble() {
        Ok(()) => GOOD.to_owned(),
        Err(error) => crate::model::causes::in_one_line(&error),
    }
}

/// A host's mounts around nothing.
fn assemble() -> Result<(), ContainerError> {
    let Some(orders) = listen::<Orders>()? else {
        return Err(ContainerError::Init("lost its launcher".to_owned()));
    };
    enter_group(&orders.cgroup)?;
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)
        .map_err(|errno| ContainerError::io("keeping mounts private")(errno.into()))?;
    let root = &orders.place;
    mount_new("tmpfs", root, MountFlags::empty(), c"mode=755,size=4m")?;
    std::env::set_current_dir(root).map_err(ContainerError::path("entering", root))?;
    for directory in ["proc", "sys", "dev", "lower", "upper", "work", "merged"] {
        fs::create_dir(directory).map_err(ContainerError::path("making", root))?;
    }
    mount_new("proc", "proc", MountFlags::NOSUID, c"")?;
    mount_new("sysfs", "sys", MountFlags::RDONLY, c"")?;
    mount_new("cgroup2", "sys/fs/cgroup", MountFlags::NOSUID, c"")?;
    nodes::mount(Path::new("dev"), None)?;
    mount_new("overlay", "merged", MountFlags::empty(), c"lowerdir=lower,upperdir=upper,workdir=work")?;
    leave_machine()
}
