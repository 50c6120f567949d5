//! `rackstep cluster adopt`.

use std::path::PathBuf;

use clap::Args;

use super::place::{DEFAULT_FILE, UNCHANGED, explain, read_file, require_root};
use crate::cli::{Failure, Kind};
use crate::lab::cluster::adopt::{AdoptError, Request, adopt};
use crate::model::cluster::Platform;

/// Take the disk of a machine that a rack imaged as the disk of a machine of this cluster.
///
/// The mark on the disk must say that it is this machine's and finished. The disk is copied (a reflink where the file system
/// can); `up` then starts it. The cluster must be a new one: the disk's key becomes its key. `platform` of the cluster file says on what; without it, as a container.
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  rackstep cluster adopt control /var/lib/libvirt/images/control.raw --key ~/.ssh/rack"
)]
pub struct AdoptArguments {
    /// The machine: its name here and on the disk
    #[arg(value_name = "NAME")]
    machine: String,
    /// The disk: a raw file that nobody uses
    disk: PathBuf,
    /// The private key that the disk lets in as root; the public one lies beside it
    #[arg(long, value_name = "FILE")]
    key: PathBuf,
    /// The cluster file
    #[arg(short, long, default_value = DEFAULT_FILE)]
    file: PathBuf,
}

/// Runs the verb.
pub fn run(arguments: &AdoptArguments) -> Result<(), Failure> {
    let named = read_file(&arguments.file)?;
    require_root("adopt")?;
    named.read_record()?;
    let name = &arguments.machine;
    let machine = named.cluster.machines.iter().find(|machine| machine.name == *name).ok_or_else(|| {
        let told = format!("{} has no machine {name:?}", arguments.file.display());
        Failure::new(Kind::BadInput, told, UNCHANGED)
    })?;
    let _lock = named.home.lock_or_make().map_err(explain)?;
    let request = Request {
        home: &named.home,
        file: &named.file,
        cluster: &named.cluster,
        platform: named.cluster.platform.unwrap_or(Platform::Container),
        machine,
        disk: &arguments.disk,
        key: &arguments.key,
    };
    let mark = adopt(&request).map_err(|error| {
        let kind = match error {
            AdoptError::NotItsDisk { .. } | AdoptError::Taken(_) | AdoptError::There(_) => Kind::Refused,
            AdoptError::Cluster(_) | AdoptError::Unread { .. } => Kind::Failed,
        };
        Failure::new(kind, error, "the cluster has no new machine")
    })?;
    say!("state: {name} has the disk of order {}; `rackstep cluster up` starts it", mark.order);
    Ok(())
}
