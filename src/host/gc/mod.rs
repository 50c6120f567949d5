//! Takes away what no deployment needs, long after the flip that made it so.
//!
//! 1. Observe: the pin sets of all deployments, read from their commits (never from a checkout that may be damaged), and
//!    what Docker and the repo hold;
//! 2. run the plan of [`plan_reap`](crate::host::gc::plan::plan_reap);
//! 3. objects of mounted layers stay while Docker has the layer, be it for one exited container: their release's ref stays.
//!    Mounts that neither a deployment nor Docker needs go.
//!
//! A deployment whose pins cannot be read ends it before anything goes. What cannot be removed (an immutable file, a
//! mount in use) is told by its path and keeps nothing else.

pub mod plan;

use std::collections::{BTreeMap, BTreeSet};

use crate::docker::records::{RecordError, Records};
use crate::docker::{Docker, DockerError, is_our_tag};
use crate::host::gc::plan::{Found, Plan, Step};
use crate::host::records::MOUNTED_REFS;
use crate::model::causes::in_one_line;
use crate::model::pins::PinsError;
use crate::model::{Commit, Digest, RELEASE_DIR, ReleasePins};
use crate::ostree::repo::{Repo, RepoError};
use crate::ostree::sysroot::{Stuck, Sysroot, SysrootError};
use crate::rim::layers::{Layers, LayersError};

/// Why nothing, or not all of it, was taken away.
#[derive(Debug, thiserror::Error)]
pub enum GcError {
    /// The deployments.
    #[error("looking at the deployments")]
    Sysroot(#[from] SysrootError),
    /// The repo.
    #[error("reading the host's repo")]
    Repo(#[from] RepoError),
    /// A deployment's pins.
    #[error(transparent)]
    Pins(#[from] PinsError),
    /// Docker.
    #[error("asking docker")]
    Docker(#[from] DockerError),
    /// Docker's records.
    #[error("reading docker's records")]
    Records(#[from] RecordError),
    /// Mounted layers.
    #[error("unmounting layers")]
    Layers(#[from] LayersError),
}

/// What went.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Reaped {
    /// Ids of the images that went.
    pub images: Vec<Digest>,
    /// Ids of images that were to go, and that a container still uses.
    pub in_use: Vec<Digest>,
    /// Releases that are no deployment, and stay for layers that Docker still has.
    pub kept: Vec<Commit>,
    /// Layers that were unmounted.
    pub unmounted: usize,
    /// What is not needed and could not be removed.
    pub stuck: Vec<Stuck>,
    /// Bytes that became free in the file system of the host's repo.
    pub freed: u64,
}

/// Looks at everything that a plan needs to know.
pub fn observe(sysroot: &Sysroot, docker: &Docker) -> Result<Found, GcError> {
    let repo = Repo::open(&sysroot.repo_path())?;
    let mut roots = BTreeMap::new();
    for deployment in sysroot.deployments()? {
        let commit = deployment.id.commit;
        roots.insert(commit, read_pinned(&repo, commit)?);
    }
    let images = docker.observe_images()?.into_values();
    let ours =
        images.filter_map(|image| Some((image.id, image.tags.into_iter().find(|tag| is_our_tag(tag))?)));
    Ok(Found { roots, images: ours.collect(), refs: repo.refs()? })
}

/// Layers that must stay mountable.
struct Needed {
    by_deployments: BTreeSet<Digest>,
    by_docker_alone: BTreeSet<Digest>,
}

fn needed_layers(
    sysroot: &Sysroot,
    repo: &Repo,
    docker: &Docker,
    layers: &Layers,
) -> Result<Needed, GcError> {
    let mut by_deployments = BTreeSet::new();
    for deployment in sysroot.deployments()? {
        by_deployments.extend(read_layers(repo, deployment.id.commit)?);
    }
    let records = Records::new(docker.observe_storage()?.data_root, layers.dir());
    let by_docker = records.layers()?;
    Ok(Needed { by_docker_alone: &by_docker - &by_deployments, by_deployments })
}

/// Diff-ids of all layers that a release pins.
fn read_layers(repo: &Repo, commit: Commit) -> Result<BTreeSet<Digest>, GcError> {
    let pins = read_pins(repo, commit)?;
    let images = pins.iter().flat_map(ReleasePins::images);
    Ok(images.flat_map(|(_, image)| &image.layers).map(|layer| layer.diff_id).collect())
}

fn read_pinned(repo: &Repo, commit: Commit) -> Result<BTreeSet<Digest>, GcError> {
    let pins = read_pins(repo, commit)?;
    Ok(pins.iter().flat_map(ReleasePins::images).map(|(_, image)| image.config).collect())
}

fn read_pins(repo: &Repo, commit: Commit) -> Result<Option<ReleasePins>, GcError> {
    match repo.read_file(commit, &format!("{RELEASE_DIR}/pins.json")) {
        Ok(bytes) => Ok(Some(ReleasePins::parse(commit, &bytes)?)),
        // A deployment that is no release of ours pins nothing.
        Err(RepoError::NoFile { .. }) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Runs `plan`.
pub fn run(sysroot: &Sysroot, docker: &Docker, layers: &Layers, plan: &Plan) -> Result<Reaped, GcError> {
    let repo = Repo::open(&sysroot.repo_path())?;
    let before = repo.free_bytes()?;
    let image_of = |step: &Step| match step {
        Step::RemoveImage { image, .. } => Some(*image),
        Step::DropRef { .. } | Step::CleanUp => None,
    };
    let images: BTreeSet<Digest> = plan.steps.iter().filter_map(image_of).collect();
    let mut reaped = Reaped { images: docker.reap(&images)?, ..Reaped::default() };
    reaped.in_use = images.into_iter().filter(|image| !reaped.images.contains(image)).collect();
    let needed = needed_layers(sysroot, &repo, docker, layers)?;
    for step in &plan.steps {
        match step {
            Step::DropRef { name, commit } if name.starts_with(MOUNTED_REFS) => {
                if read_layers(&repo, *commit)?.is_disjoint(&needed.by_docker_alone) {
                    repo.drop_ref(name)?;
                } else {
                    reaped.kept.push(*commit);
                }
            }
            Step::DropRef { name, .. } => repo.drop_ref(name)?,
            Step::CleanUp => reaped.stuck.extend(sysroot.cleanup()?),
            Step::RemoveImage { .. } => {}
        }
    }
    for layer in layers.mounted()? {
        if !needed.by_deployments.contains(&layer) && !needed.by_docker_alone.contains(&layer) {
            match layers.unmount(layer) {
                Ok(()) => reaped.unmounted += 1,
                Err(error) => {
                    reaped.stuck.push(Stuck { path: layers.place(layer), why: in_one_line(&error) })
                }
            }
        }
    }
    reaped.freed = repo.free_bytes()?.saturating_sub(before);
    Ok(reaped)
}
