//! What a rack file asks of this machine and of the release repo, looked at before anything is served.
//!
//! 1. The interface and the server's address on it; boot programs, where DHCP is ours; 2. the repo, and in it the release of
//!    each profile, of the profile's ref and signed by a key that its hosts trust. All faults are told, each at its line.

use std::net::{Ipv4Addr, TcpListener};

use super::RackOptions;
use crate::model::Commit;
use crate::model::place::{InputError, SourceText};
use crate::model::rack::{NEWEST, Profile, Rack};
use crate::ostree::repo::{Repo, RepoError};
use crate::ostree::signature::{PublicKey, parse_public_keys, verify_in_repo};
use crate::rack::netboot::dnsmasq::{BIOS_PROGRAM, UEFI_PROGRAM};

/// Interfaces of the network that this process is in, which /sys may not show.
const INTERFACES: &str = "/proc/self/net/dev";

/// Everything that would be found out when a machine asks.
pub fn faults_of(source: &SourceText, rack: &Rack, options: &RackOptions) -> Vec<InputError> {
    let mut faults = machine_faults(source, rack, options);
    match Repo::open(&options.repo) {
        Err(error) => {
            let message = format!("repo {} cannot be opened: {}", options.repo.display(), in_short(&error));
            faults.push(source.error("repo", &options.repo.display().to_string(), message));
        }
        Ok(repo) => {
            let trusted = parse_public_keys(&rack.trusted_keys).unwrap_or_default();
            for (name, profile) in &rack.profiles {
                faults.extend(release_fault(&repo, name, profile, &trusted).map(|fault| {
                    source.error("profiles", fault.value, format!("profile {name:?}: {}", fault.message))
                }));
            }
        }
    }
    faults
}

fn machine_faults(source: &SourceText, rack: &Rack, options: &RackOptions) -> Vec<InputError> {
    let mut faults = Vec::new();
    let (interface, address) = (&rack.network.interface, rack.network.address.address);
    if let Some(there) = missing_interface(interface) {
        let message = format!("this machine has no interface {interface:?}, only {there}");
        faults.push(source.error("network", interface, message));
    } else if !is_ours(address) {
        let message = format!(
            "{address} is no address of this machine: ip address add {} dev {interface}",
            rack.network.address
        );
        faults.push(source.error("network", &rack.network.address.to_string(), message));
    }
    if options.dhcp {
        for path in [BIOS_PROGRAM, UEFI_PROGRAM].map(|program| options.ipxe.join(program)) {
            if !path.exists() {
                let message = format!("{} is missing (Debian package: ipxe; or --ipxe DIR)", path.display());
                faults.push(InputError::of_file(&source.file, message));
            }
        }
    }
    faults
}

/// The interfaces that there are, if `name` is not among them.
fn missing_interface(name: &str) -> Option<String> {
    // A machine without /proc is not known; binding tells.
    let text = std::fs::read_to_string(INTERFACES).ok()?;
    let there: Vec<&str> = text.lines().filter_map(|line| Some(line.split_once(':')?.0.trim())).collect();
    (!there.contains(&name)).then(|| there.join(", "))
}

fn is_ours(address: Ipv4Addr) -> bool {
    !TcpListener::bind((address, 0)).is_err_and(|error| error.kind() == std::io::ErrorKind::AddrNotAvailable)
}

struct Fault<'p> {
    /// What stands in the file.
    value: &'p str,
    message: String,
}

fn release_fault<'p>(
    repo: &Repo,
    name: &'p str,
    profile: &'p Profile,
    trusted: &[PublicKey],
) -> Option<Fault<'p>> {
    let follows = profile.follows.as_str();
    let newest = profile.release == NEWEST;
    let value = if newest { follows } else { &profile.release };
    let fault = |message| Some(Fault { value, message });
    match repo.resolve_ref(follows) {
        Ok(Some(_)) => {}
        Ok(None) => {
            let message = format!("the repo has no ref {follows}; it has {}", known_refs(repo));
            return Some(Fault { value: follows, message });
        }
        Err(error) => return fault(in_short(&error)),
    }
    let commit = match repo.resolve(value) {
        Ok(commit) => commit,
        Err(error) => return fault(in_short(&error)),
    };
    let what = if newest {
        format!("the newest release {}", commit.short())
    } else {
        format!("release {}", commit.short())
    };
    if let Some(told) = other_ref(repo, commit, follows) {
        return fault(format!("{what} {told}"));
    }
    if trusted.is_empty() {
        return None;
    }
    verify_in_repo(repo, commit, trusted).err().map(|error| Fault {
        value: if newest { follows } else { name },
        message: format!("{what}: {error}; machines would refuse it: rackstep release sign"),
    })
}

/// A release that says of which refs it is must name the profile's.
fn other_ref(repo: &Repo, commit: Commit, follows: &str) -> Option<String> {
    let refs = match repo.commit_info(commit) {
        Ok(info) => info.refs,
        Err(error) => return Some(format!("cannot be read: {}", in_short(&error))),
    };
    let other = !refs.is_empty() && !refs.iter().any(|one| one == follows);
    other.then(|| format!("is of {}, not of {follows}", refs.join(", ")))
}

/// Refs that a profile may follow.
fn known_refs(repo: &Repo) -> String {
    let refs = repo.refs().unwrap_or_default();
    let names: Vec<&str> =
        refs.iter().map(|(name, _)| name.as_str()).filter(|name| !name.starts_with("releases/")).collect();
    if names.is_empty() { "none".to_owned() } else { names.join(", ") }
}

fn in_short(error: &RepoError) -> String {
    crate::model::causes::in_one_line(error)
}
