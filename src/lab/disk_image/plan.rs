//! Plans a disk image: a disk that is imaged once and started many times, as machines that nobody knows yet. Pure.
//!
//! It names no host, no interface and no address: each machine gets its name from outside (Vagrant, SMBIOS credentials), its
//! network by DHCP, and its machine id and host keys at its first boot.

use crate::model::imaging::{Disk, ImagingPlan};
use crate::model::{Commit, Ref};

/// Bytes of a GiB, the unit in which disk images are sized.
pub const GIB: u64 = 1 << 30;
/// Sectors of a virtual disk.
const SECTOR: u32 = 512;
/// Arguments of a virtual machine's kernel; a release may name its own besides.
///
/// An emulator on busy cores delivers the timer's interrupts late, which a kernel takes for a broken board and panics. The
/// consoles are where people and tools look for a virtual machine's words.
const ARGUMENTS: [&str; 3] = ["no_timer_check", "console=tty0", "console=ttyS0,115200n8"];

/// What is wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wish {
    /// The release.
    pub commit: Commit,
    /// The ref that the machines will follow.
    pub follows: Ref,
    /// The repo that it is made from: a path.
    pub repo: String,
    /// Base URL of the repo that the machines will follow.
    pub follow_repo: String,
    /// ed25519 public keys, base64: for the imaging and for the machines.
    pub trusted_keys: Vec<String>,
    /// Lines for root's authorized_keys.
    pub ssh_keys: Vec<String>,
    /// Size of the disk in GiB.
    pub gib: u64,
}

/// Plans the image.
pub fn plan_disk_image(wish: &Wish) -> ImagingPlan {
    ImagingPlan {
        order: format!("disk-image.{}", wish.commit.short()),
        host: String::new(),
        generation: 0,
        disk: Disk {
            name: "disk.raw".to_owned(),
            size: wish.gib * GIB,
            sector: SECTOR,
            model: None,
            serial: None,
            wwn: None,
            by_path: Vec::new(),
            rotational: false,
            removable: false,
            transport: None,
            contents: Vec::new(),
            mark: None,
        },
        wiped: Vec::new(),
        wipe: false,
        commit: wish.commit,
        follows: wish.follows.clone(),
        repo: wish.repo.clone(),
        follow_repo: Some(wish.follow_repo.clone()),
        trusted_keys: wish.trusted_keys.clone(),
        kernel_arguments: ARGUMENTS.map(str::to_owned).to_vec(),
        ssh_keys: wish.ssh_keys.clone(),
        mac: String::new(),
        address: None,
        gateway: None,
        dns: Vec::new(),
        rack_server: String::new(),
    }
}

/// The ref that machines made of a commit follow: of those that the commit says it belongs to, and those that point at
/// it, the first one that moves.
pub fn choose_ref(bound: &[String], pointing: &[String]) -> Option<Ref> {
    let moves = |name: &&String| !name.starts_with(crate::model::commit::RELEASE_REFS) && !name.contains(':');
    bound.iter().chain(pointing).filter(moves).find_map(|name| name.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wish() -> Wish {
        Wish {
            commit: "3f2a9c015d474b579c1e0a6f5f3f1b223f2a9c015d474b579c1e0a6f5f3f1b22".parse().unwrap(),
            follows: "rackstep/x86_64/host".parse().unwrap(),
            repo: "/srv/repo".into(),
            follow_repo: "http://192.168.121.1:8080".into(),
            trusted_keys: vec!["key".into()],
            ssh_keys: vec!["ssh-rsa AAAA vagrant".into()],
            gib: 40,
        }
    }

    #[test]
    fn nothing_in_it_belongs_to_one_machine() {
        let plan = plan_disk_image(&wish());
        assert_eq!((plan.host.as_str(), plan.mac.as_str(), &plan.address), ("", "", &None));
        assert_eq!((plan.disk.size, plan.disk.serial), (42_949_672_960, None));
        assert!(plan.wiped.is_empty() && plan.rack_server.is_empty());
        assert_eq!(plan.kernel_arguments.last().unwrap(), "console=ttyS0,115200n8");
    }

    #[test]
    fn a_ref_that_moves() {
        let list = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        for (bound, pointing, chosen) in [
            (list(&["rackstep/a"]), list(&["releases/a/1.0.0", "rackstep/b"]), Some("rackstep/a")),
            (list(&[]), list(&["releases/a/1.0.0", "rackstep/b"]), Some("rackstep/b")),
            (list(&[]), list(&["origin:rackstep/b", "releases/a/1.0.0"]), None),
        ] {
            assert_eq!(choose_ref(&bound, &pointing).as_ref().map(Ref::as_str), chosen, "{bound:?}");
        }
    }
}
