//! Makes a release commit of a treefile and its lock.
//!
//! 1. read: treefile, lock, services; the lock must fit the treefile; 2. plan: same inputs as the head of the ref:
//!    nothing to do; 3. host tree, cached by stage; 4. services and container images laid in; 5. commit, refs.
//!
//! Everything is made beside the repo; the repo is touched last, in one transaction. A failure or an interrupt before
//! that leaves it as it was.

pub mod plan;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::lock;
use super::tree::binaries::{self, BinaryError, PROGRAM_PATH};
use super::tree::cache::{Cache, link_tree};
use super::tree::files::{self, FileError};
use super::tree::host::{self, HostError, HostInputs};
use super::tree::images::{self, ImageError, Images};
use super::tree::services::{self, ServiceError};
use super::tree::writer::{self, WriteError};
use crate::model::place::InputError;
use crate::model::release::RELEASE_FORMAT;
use crate::model::{Commit, Digest, PinnedImage, Progress, RELEASE_DIR, ReleaseInfo};
use crate::release::compose::plan::{
    ComposePlan, Consent, Inputs, Refusal, Verdict, plan_compose, require_publishable,
};
use crate::release::manifest::service::{self, WantedImage};
use crate::release::manifest::{Lock, Service, Treefile};
use crate::rim::command::CommandError;
use crate::rim::packages::{PackageError, bootstrap, initramfs};

/// Why there is no release.
#[derive(Debug, thiserror::Error)]
pub enum ComposeError {
    /// Somebody wrote something wrong.
    #[error(transparent)]
    Input(#[from] InputError),
    /// There is no lock.
    #[error("{path} cannot be read")]
    NoLock {
        /// Where it was expected.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The lock was made of another treefile.
    #[error("{path} does not fit the treefile: {why}")]
    StaleLock {
        /// The lock.
        path: PathBuf,
        /// What differs.
        why: String,
    },
    /// The cache.
    #[error("using the cache {path}")]
    Cache {
        /// The directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The host's tree.
    #[error("making the host tree")]
    Host(#[from] HostError),
    /// A binary.
    #[error("getting binaries")]
    Binary(#[from] BinaryError),
    /// A container image.
    #[error("getting container images")]
    Image(#[from] ImageError),
    /// The services.
    #[error("laying in the services")]
    Service(#[from] ServiceError),
    /// Files of the project.
    #[error("reading the inputs")]
    File(#[from] FileError),
    /// It would take a name from another release.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// A host could not start it.
    #[error("the release could not start")]
    Start(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The finished tree.
    #[error("looking at the tree")]
    Tree(#[from] PackageError),
    /// A program.
    #[error(transparent)]
    Command(#[from] CommandError),
    /// The repo.
    #[error("writing the commit")]
    Write(#[from] WriteError),
}

/// What to compose, and where to.
#[derive(Debug)]
pub struct Request<'a> {
    /// The treefile.
    pub treefile: &'a Path,
    /// The lock; next to the treefile if not named.
    pub lock: Option<&'a Path>,
    /// The repo; made if it is not there.
    pub repo: &'a Path,
    /// Key to sign with.
    pub sign_key: Option<&'a Path>,
    /// What is refused otherwise.
    pub consent: Consent,
    /// Write packs for transport.
    pub pack: bool,
    /// Where packages come from; none: the machine's own apt knows.
    pub mirror: Option<&'a str>,
    /// Tells whether a host could start the release whose finished files are in a directory.
    pub require_startable: StartCheck,
}

/// Reads a release's finished files as a host's boot does. A host's readers are above this room.
pub type StartCheck = fn(&Path) -> Result<(), Box<dyn std::error::Error + Send + Sync>>;

/// What came out.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Report {
    /// The release's commit.
    pub commit: Commit,
    /// The ref that names it.
    #[serde(rename = "ref")]
    pub follows: String,
    /// Its version.
    pub version: String,
    /// True when the ref's head was made from these inputs already.
    pub unchanged: bool,
    /// Number of packages.
    pub packages: usize,
    /// Container images: name → config digest.
    pub images: BTreeMap<String, String>,
    /// Bytes of all container images, unpacked.
    pub image_bytes: u64,
}

/// Composes.
pub fn compose(
    request: &Request<'_>,
    cache: &Cache,
    work: &Path,
    progress: &dyn Progress,
) -> Result<Report, ComposeError> {
    let read = read_inputs(request, cache)?;
    let head = writer::observe_head(request.repo, &read.treefile.follows)?;
    let plan = match plan_compose(&read.inputs, head.as_ref()) {
        Verdict::Unchanged(commit) => {
            if let Some(key) = request.sign_key {
                writer::sign(request.repo, commit, key)?;
            }
            let bytes = images::known_bytes(cache, read.lock.images.values());
            return Ok(report(&read, commit, true, bytes));
        }
        Verdict::Compose(plan) => plan,
    };
    let Treefile { follows, name, version, .. } = &read.treefile;
    let published = writer::observe_published(request.repo, follows, name, version)?;
    let names = (follows.as_str(), version.as_str());
    require_publishable(&published, names, read.lock.created, request.sign_key.is_some(), request.consent)?;
    let pins = get_images(request, cache, &read, progress)?;
    let root = make_tree(request, cache, work, &read, &pins, &plan, progress)?;
    let kernel = initramfs::observe_kernel(&root)?;
    let new = writer::NewCommit {
        follows: &read.treefile.follows,
        name: &read.treefile.name,
        version: &read.treefile.version,
        created: read.lock.created,
        inputs: plan.inputs,
        kernel: kernel.as_deref(),
        sign_key: request.sign_key,
        pack: request.pack,
    };
    let commit = writer::write(request.repo, &root, &new, progress)?;
    Ok(report(&read, commit, false, pins.values().map(PinnedImage::size).sum()))
}

/// Everything read and checked, nothing made yet.
struct Read {
    treefile: Treefile,
    services: Vec<Service>,
    lock: Lock,
    programs: Vec<(String, PathBuf)>,
    wanted: BTreeMap<String, WantedImage>,
    inputs: Inputs,
}

fn read_inputs(request: &Request<'_>, cache: &Cache) -> Result<Read, ComposeError> {
    let treefile = Treefile::load(request.treefile)?;
    let services = lock::load_services(&treefile)?;
    let wanted = service::wanted_images(&services, &treefile.images)?;
    let lock_path = request.lock.map_or_else(|| lock::lock_path(request.treefile), Path::to_owned);
    let text = std::fs::read_to_string(&lock_path)
        .map_err(|source| ComposeError::NoLock { path: lock_path.clone(), source })?;
    let lock = Lock::parse(&text, &lock_path.display().to_string())?;
    if let Some(why) = difference(&treefile, &wanted, &lock) {
        return Err(ComposeError::StaleLock { path: lock_path, why });
    }
    let mut programs = Vec::new();
    let mut digests = BTreeMap::new();
    for binary in &treefile.binaries {
        let Some(locked) = lock.binaries.iter().find(|locked| locked.name == binary.name) else { continue };
        programs.push((binary.install.clone(), binaries::locate(cache, request.treefile, binary, locked)?));
        digests.insert(binary.install.clone(), locked.sha256);
    }
    let (own, digest) = binaries::running_program(cache)?;
    programs.push((PROGRAM_PATH.to_owned(), own));
    digests.insert(PROGRAM_PATH.to_owned(), digest);

    let mut host_files = BTreeMap::new();
    for (number, path) in treefile.files.iter().chain(&treefile.postprocess).enumerate() {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        host_files.insert(format!("{number:03} {name}"), files::digest_tree(path)?);
    }
    // What is rendered counts, not how it is written: a comment in a recipe makes no new release.
    let mut service_digests = BTreeMap::new();
    // Sizes that the lock does not know follow from the diff-ids, and are nothing new.
    let pins = lock.images.iter().map(|(name, image)| (name.clone(), image.pinned(|_| 0))).collect();
    for (path, content) in service::render(&services, &pins)? {
        service_digests.insert(path.display().to_string(), Digest::of(&content));
    }
    for service in &services {
        if let Some(config) = &service.config {
            service_digests.insert(format!("config/{}", service.name), files::digest_tree(config)?);
        }
    }
    let identity = BTreeMap::from([
        ("name".to_owned(), treefile.name.clone()),
        ("ref".to_owned(), treefile.follows.to_string()),
        ("version".to_owned(), treefile.version.clone()),
        ("upgrade_from".to_owned(), treefile.upgrade_from.join(" ")),
    ]);
    let inputs = Inputs {
        identity,
        created: lock.created,
        packages: lock.packages.clone(),
        bootstrap: bootstrap::recipe(),
        programs: digests,
        host_files,
        settings: format!(
            "{}\n{:?}\n{:?}\n{:?}\n{:?}\n{:?}",
            host::recipe(),
            treefile.units,
            treefile.initramfs,
            treefile.kernel_arguments,
            treefile.users,
            treefile.groups
        ),
        services: service_digests,
        images: lock.images.iter().map(|(name, image)| (name.clone(), image.config)).collect(),
    };
    Ok(Read { treefile, services, lock, programs, wanted, inputs })
}

/// What the treefile asks for and the lock does not have; a lock that has more is out of date too.
fn difference(treefile: &Treefile, wanted: &BTreeMap<String, WantedImage>, lock: &Lock) -> Option<String> {
    if lock.name != treefile.name {
        return Some(format!("it is of {}, not of {}", lock.name, treefile.name));
    }
    if lock.suites != treefile.suites {
        return Some(format!(
            "suites are {}, expected {}",
            lock.suites.join(", "),
            treefile.suites.join(", ")
        ));
    }
    if lock.components != treefile.components[1..] {
        let locked = lock.components.join(", ");
        let expected = treefile.components[1..].join(", ");
        return Some(format!("components besides main are [{locked}], expected [{expected}]"));
    }
    if let Some(package) = treefile.packages.iter().find(|package| !lock.requested.contains(package)) {
        return Some(format!("package {package} is not locked"));
    }
    if let Some(package) = lock.requested.iter().find(|package| !treefile.packages.contains(package)) {
        return Some(format!("package {package} is locked and no longer asked for"));
    }
    for binary in &treefile.binaries {
        match lock.binaries.iter().find(|locked| locked.name == binary.name) {
            None => return Some(format!("binary {} is not locked", binary.name)),
            Some(locked) if locked.version != binary.version => {
                return Some(format!(
                    "binary {} is locked at {}, expected {}",
                    binary.name, locked.version, binary.version
                ));
            }
            Some(_) => {}
        }
    }
    for (name, image) in wanted {
        match lock.images.get(name) {
            None => return Some(format!("image {name} is not locked")),
            Some(locked) if locked.reference != image.reference => {
                return Some(format!(
                    "image {name} is locked from {}, expected {}",
                    locked.reference, image.reference
                ));
            }
            Some(_) => {}
        }
    }
    let extra = lock.images.keys().find(|name| !wanted.contains_key(*name));
    extra.map(|name| format!("image {name} is locked and no longer asked for"))
}

/// Makes sure that the cache has every locked image.
fn get_images(
    request: &Request<'_>,
    cache: &Cache,
    read: &Read,
    progress: &dyn Progress,
) -> Result<BTreeMap<String, PinnedImage>, ComposeError> {
    progress.begin("container images", Some(read.lock.images.len() as u64));
    let images = Images::new(cache, request.mirror);
    let mut pins = BTreeMap::new();
    for (name, image) in &read.wanted {
        if let Some(locked) = read.lock.images.get(name) {
            pins.insert(name.clone(), images.ensure(name, image, locked)?);
            progress.advance(1);
        }
    }
    progress.end(&format!("{} images", pins.len()));
    Ok(pins)
}

fn make_tree(
    request: &Request<'_>,
    cache: &Cache,
    work: &Path,
    read: &Read,
    pins: &BTreeMap<String, PinnedImage>,
    plan: &ComposePlan,
    progress: &dyn Progress,
) -> Result<PathBuf, ComposeError> {
    let inputs = HostInputs {
        treefile: &read.treefile,
        treefile_path: request.treefile,
        lock: &read.lock,
        programs: &read.programs,
        mirror: request.mirror,
    };
    let host = host::ensure(cache, plan, &inputs, work, progress)?;
    progress.begin("services", None);
    let root = work.join("root");
    link_tree(&host, &root)?;
    let release = ReleaseInfo {
        format: RELEASE_FORMAT,
        name: read.treefile.name.clone(),
        version: read.treefile.version.clone(),
        created: read.lock.created,
        kernel: initramfs::observe_kernel(&root)?.unwrap_or_default(),
        services: read.services.iter().map(|service| service.name.clone()).collect(),
        packages: read
            .lock
            .packages
            .iter()
            .map(|package| (package.label(&read.lock.architecture), package.version.clone()))
            .collect(),
        upgrade_from: read.treefile.upgrade_from.clone(),
    };
    services::install(&root, cache, &read.services, pins, &release)?;
    (request.require_startable)(&root.join(RELEASE_DIR)).map_err(ComposeError::Start)?;
    // The work directory is private; the root of a host is not.
    files::set_mode(&root, 0o755)?;
    progress.end(&format!("{} services", read.services.len()));
    Ok(root)
}

fn report(read: &Read, commit: Commit, unchanged: bool, image_bytes: u64) -> Report {
    Report {
        commit,
        follows: read.treefile.follows.to_string(),
        version: read.treefile.version.clone(),
        unchanged,
        packages: read.lock.packages.len(),
        images: read
            .lock
            .images
            .iter()
            .map(|(name, image)| (name.clone(), image.config.to_string()))
            .collect(),
        image_bytes,
    }
}
