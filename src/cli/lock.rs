//! `rackstep lock`.

use std::path::PathBuf;

use super::progress::Terminal;
use super::{Failure, Kind};
use crate::release::lock::{self, LockError};
use crate::release::manifest::Treefile;
use crate::release::tree::cache::Cache;
use crate::rim::clock;

/// Resolve a treefile to exact packages, binaries and container images.
///
/// Writes the lock file next to the treefile (host.yaml → host.lock.yaml). Keep it under version control: `rackstep
/// compose` uses nothing that is not in it, and the same lock always gives the same commit.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example:\n  rackstep lock host-image/openstack-host.yaml && git diff host-image/openstack-host.lock.yaml"
)]
pub struct Arguments {
    /// The treefile.
    treefile: PathBuf,
    /// Where to write the lock [default: next to the treefile].
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Mirror of the distribution [default: the one that this machine's apt uses].
    #[arg(long, value_name = "URL")]
    mirror: Option<String>,
    /// Cache of packages, images and stages [default: ~/.cache/rackstep].
    #[arg(long, value_name = "DIR")]
    cache: Option<PathBuf>,
    /// Print what was locked as JSON.
    #[arg(long)]
    json: bool,
}

/// Runs the verb.
pub fn run(arguments: Arguments) -> Result<(), Failure> {
    let path = arguments.output.clone().unwrap_or_else(|| lock::lock_path(&arguments.treefile));
    let state = if path.exists() { "the old lock is as it was" } else { "no lock written" };
    let fail = |error: LockError| {
        let kind = if matches!(error, LockError::Input(_)) { Kind::BadInput } else { Kind::Failed };
        Failure::new(kind, error, state)
    };
    let treefile = Treefile::load(&arguments.treefile).map_err(|error| fail(error.into()))?;
    let services = lock::load_services(&treefile).map_err(|error| fail(error.into()))?;
    let cache =
        Cache::open(arguments.cache.as_deref()).map_err(|error| Failure::new(Kind::Failed, error, state))?;
    let progress = Terminal::default();
    let mirror = arguments.mirror.as_deref();
    let made = lock::resolve(&treefile, &arguments.treefile, &services, &cache, mirror, now(), &progress);
    let made = made.map_err(fail)?;
    lock::write(&made, &path).map_err(fail)?;
    print(&arguments, &made, &path);
    Ok(())
}

fn print(arguments: &Arguments, lock: &crate::release::manifest::Lock, path: &std::path::Path) {
    if arguments.json {
        let images: std::collections::BTreeMap<_, _> =
            lock.images.iter().map(|(name, image)| (name, image.config)).collect();
        let told = serde_json::json!({
            "format": 1, "lock": path, "packages": lock.packages.len(), "package_bytes": lock.package_bytes(),
            "binaries": lock.binaries.len(), "images": images, "created": lock.created,
        });
        say!("{told:#}");
        return;
    }
    say!(
        "{}: {} packages ({} MB), {} binaries, {} images",
        path.display(),
        lock.packages.len(),
        lock.package_bytes() / 1_000_000,
        lock.binaries.len(),
        lock.images.len()
    );
}

/// The time that the lock carries: now, or what reproducible builds agree on.
fn now() -> u64 {
    let agreed = std::env::var("SOURCE_DATE_EPOCH").ok().and_then(|text| text.parse().ok());
    agreed.unwrap_or_else(clock::now)
}
