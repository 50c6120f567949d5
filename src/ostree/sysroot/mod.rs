//! The sysroot: deployments, and the one act that changes the next boot.
//!
//! 1. [`Sysroot::stage_locked`] checks a commit out beside the others: additive, the next boot is untouched;
//! 2. that very release is proven, by somebody else ([`VerifiedRelease`]);
//! 3. [`Sysroot::finalize`] takes both by value and makes it the next boot. [`Sysroot::set_next_boot`] does the same for a
//!    deployment that is already there.
//!
//! On the booted host libostree *stages*: it merges /etc and swaps the boot loader's link at shutdown, unless
//! `/run/ostree/staged-deployment-locked` exists (`ostree-sysroot-deploy.c`, `_ostree_sysroot_finalize_staged_inner`). On
//! any other sysroot it deploys, and the flip writes the boot entries. Nothing here makes a release bootable without proof,
//! except [`Sysroot::deploy_first`], for a disk that has nothing to lose.
//!
//! GObjects stay on the thread that opened the sysroot.

mod boot_room;
mod lock;
mod open;
mod reap;

use std::path::{Path, PathBuf};

use crate::model::deployment::Role;
use crate::model::trial::RELEASE_ARGUMENT;
use crate::model::{Commit, Deployment, DeploymentId, RELEASE_DIR, Ref};
use crate::ostree::repo::VerifiedRelease;

pub use boot_room::BootCopy;
pub use lock::LockError;
pub use reap::Stuck;

/// The stateroot of every host of ours.
pub const STATEROOT: &str = "rackstep";

/// Names the release that a staged deployment came from; protects its objects when the host restarts before the flip.
pub const PREPARED_REF: &str = "rackstep/prepared";

/// An ostree sysroot.
#[derive(Debug)]
pub struct Sysroot {
    inner: ostree::Sysroot,
    path: PathBuf,
}

/// Why the sysroot did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum SysrootError {
    /// libostree failed.
    #[error("{doing}")]
    Ostree {
        /// The operation.
        doing: String,
        /// libostree's words.
        #[source]
        source: glib::Error,
    },
    /// The lock of a staged deployment could not be taken, kept or released.
    #[error("locking the staged deployment")]
    Lock(#[from] LockError),
    /// A commit in the repo is not named as we name commits.
    #[error("reading the deployments of {path}")]
    Name {
        /// The sysroot.
        path: PathBuf,
        /// What is wrong with the name.
        #[source]
        source: crate::model::commit::ParseCommitError,
    },
    /// The deployment is not there.
    #[error("{0} is not a deployment of this host")]
    NoDeployment(DeploymentId),
    /// The proof is of another release.
    #[error("making {commit} the next boot with a proof of {proven}")]
    Proof {
        /// What was to be booted.
        commit: Commit,
        /// What the proof is of.
        proven: Commit,
    },
    /// Another program is at work on it.
    #[error("another program changes the deployments of {path} at the moment")]
    Busy {
        /// The sysroot.
        path: PathBuf,
    },
    /// What was staged and proven is not what is staged now.
    #[error("release {commit} is not what is staged any more: something else changed the deployments")]
    Replaced {
        /// What was to be booted.
        commit: Commit,
    },
    /// The disk of the boot entries is too small for the release's kernel.
    #[error("no space for the kernel of {commit} in {path}: {needed} bytes needed, {free} are free")]
    BootFull {
        /// The release.
        commit: Commit,
        /// Where kernels are put.
        path: PathBuf,
        /// Bytes of kernel and initramfs.
        needed: u64,
        /// Bytes that are free.
        free: u64,
    },
    /// What is left of an old deployment could not be moved out of the way.
    #[error("moving what is left of {path} out of the way")]
    Aside {
        /// The deployment.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A file of a deployment could not be read.
    #[error("reading {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

/// A release checked out but not bootable: the flip takes it by value.
#[derive(Debug)]
pub struct StagedLocked {
    deployment: ostree::Deployment,
    commit: Commit,
    path: PathBuf,
    by: StagedBy,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum StagedBy {
    /// libostree's staging on the booted host, under the lock.
    Staging,
    /// A plain checkout on a sysroot that is not booted.
    Checkout,
}

impl StagedLocked {
    /// The commit.
    pub fn commit(&self) -> Commit {
        self.commit
    }

    /// Root of the checkout.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl SysrootError {
    /// Whether there was no room left on a disk.
    pub fn is_disk_full(&self) -> bool {
        match self {
            Self::BootFull { .. } => true,
            Self::Ostree { source, .. } => source.matches(gio::IOErrorEnum::NoSpace),
            _ => false,
        }
    }
}

impl Sysroot {
    /// True when this program runs on a deployment of this sysroot.
    pub fn is_booted(&self) -> bool {
        self.inner.booted_deployment().is_some()
    }

    /// Keeps every other program from changing the deployments, for as long as this value lives.
    ///
    /// Without it a second upgrade could replace what this one staged after it was proven, and the flip would unlock that.
    pub fn lock(&self) -> Result<(), SysrootError> {
        let acquired = self
            .inner
            .try_lock()
            .map_err(|source| failed(format!("locking the sysroot {}", self.path.display()), source))?;
        if !acquired {
            return Err(SysrootError::Busy { path: self.path.clone() });
        }
        // Somebody may have been at work between the opening and the lock.
        self.reload()
    }

    /// The sysroot's repo.
    pub fn repo(&self) -> ostree::Repo {
        self.inner.repo()
    }

    /// Where its repo is.
    pub fn repo_path(&self) -> PathBuf {
        self.path.join("ostree/repo")
    }

    /// When the commit was made, in seconds since 1970, if it is here.
    pub fn created(&self, commit: Commit) -> Option<u64> {
        let (variant, _) = self.repo().load_commit(&commit.hex()).ok()?;
        Some(ostree::commit_get_timestamp(&variant))
    }

    /// Where the sysroot is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Every deployment, in boot order.
    pub fn deployments(&self) -> Result<Vec<Deployment>, SysrootError> {
        let mut seen_booted = false;
        let mut seen_next = false;
        let has_booted = self.is_booted();
        let mut deployments = Vec::new();
        for raw in self.inner.deployments() {
            let booted = self.inner.booted_deployment().is_some_and(|booted| booted.equal(&raw));
            let role = match () {
                () if raw.is_staged() && lock::is_held() => Role::StagedLocked,
                () if raw.is_staged() => Role::Staged,
                () if booted => Role::Booted,
                () if seen_booted => Role::Rollback,
                () if has_booted => Role::Pending,
                // A sysroot that nothing runs from: its first entry is the next boot, the others are ways back.
                () if seen_next => Role::Rollback,
                () => Role::Pending,
            };
            let next_boot = !seen_next && role != Role::StagedLocked;
            seen_booted |= booted;
            seen_next |= next_boot;
            let commit = self.commit_of(&raw)?;
            deployments.push(Deployment {
                id: DeploymentId {
                    stateroot: raw.osname().to_string(),
                    commit,
                    serial: u32::try_from(raw.deployserial()).unwrap_or_default(),
                },
                role,
                next_boot,
                version: self.version_of(commit),
                path: self.inner.deployment_dirpath(&raw).to_string(),
            });
        }
        Ok(deployments)
    }

    /// What the boot loader reads of every deployment, with where it was copied from.
    pub fn boot_copies(&self) -> Vec<BootCopy> {
        let mut copies: Vec<BootCopy> = Vec::new();
        for raw in self.inner.deployments().iter().filter(|raw| !raw.is_staged()) {
            let dir = format!("boot/ostree/{}-{}", raw.osname(), raw.bootcsum());
            let checkout = self.path.join(self.inner.deployment_dirpath(raw).as_str());
            copies.extend(boot_room::copies(&self.path.join(dir), &checkout));
        }
        // Deployments of one kernel share its copy.
        copies.sort_by(|one, other| one.copy.cmp(&other.copy));
        copies.dedup_by(|one, other| one.copy == other.copy);
        copies
    }

    /// The deployment whose /etc and kernel arguments the next one takes over: its commit and its arguments.
    pub fn merge_source(&self) -> Result<Option<(Commit, Vec<String>)>, SysrootError> {
        let Some(raw) = self.inner.merge_deployment(Some(STATEROOT)) else { return Ok(None) };
        Ok(Some((self.commit_of(&raw)?, kernel_arguments(&raw))))
    }

    /// Checks `commit` out beside the other deployments. The next boot stays as it is.
    ///
    /// `arguments` are its kernel arguments, without the `ostree=` that libostree sets itself.
    pub fn stage_locked(
        &self,
        commit: Commit,
        follows: &Ref,
        arguments: &[String],
    ) -> Result<StagedLocked, SysrootError> {
        let booted = self.is_booted();
        self.protect(commit)?;
        self.discard_staged()?;
        let merge = self.inner.merge_deployment(Some(STATEROOT));
        let origin = self.inner.origin_new_from_refspec(follows.as_str());
        let arguments = identified(arguments, commit);
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let none = gio::Cancellable::NONE;
        let (deployment, by) = if booted {
            lock::take()?;
            let staged = self
                .inner
                .stage_tree(Some(STATEROOT), &commit.hex(), Some(&origin), merge.as_ref(), &arguments, none)
                .map_err(|source| {
                    failed(format!("checking out {commit} in {}", self.path.display()), source)
                })?;
            // libostree drops the lock together with an older staged deployment (ostree#3025); without the lock this one
            // would become the next boot unproven, so it goes away again.
            if let Err(error) = lock::require() {
                self.discard_staged()?;
                return Err(error.into());
            }
            (staged, StagedBy::Staging)
        } else {
            let deployed = self
                .inner
                .deploy_tree(Some(STATEROOT), &commit.hex(), Some(&origin), merge.as_ref(), &arguments, none)
                .map_err(|source| {
                    failed(format!("checking out {commit} in {}", self.path.display()), source)
                })?;
            (deployed, StagedBy::Checkout)
        };
        let path = self.path.join(self.inner.deployment_dirpath(&deployment).as_str());
        let staged = StagedLocked { deployment, commit, path, by };
        self.require_boot_room(&staged)?;
        Ok(staged)
    }

    /// The staged deployment of an earlier [`Sysroot::stage_locked`], if it is still there, locked, and of `commit`.
    pub fn staged_locked(&self, commit: Commit) -> Result<Option<StagedLocked>, SysrootError> {
        let Some(deployment) = self.inner.staged_deployment() else { return Ok(None) };
        if self.commit_of(&deployment)? != commit || !lock::is_held() {
            return Ok(None);
        }
        let path = self.path.join(self.inner.deployment_dirpath(&deployment).as_str());
        Ok(Some(StagedLocked { deployment, commit, path, by: StagedBy::Staging }))
    }

    /// **The flip**: makes a staged release the next boot.
    pub fn finalize(&self, staged: StagedLocked, proof: VerifiedRelease) -> Result<(), SysrootError> {
        require_proof(staged.commit, &proof)?;
        // libostree copies the kernel at shutdown, where a full disk is told to nobody.
        self.require_boot_room(&staged)?;
        match staged.by {
            StagedBy::Staging => {
                self.require_still_staged(&staged)?;
                lock::release()?;
            }
            StagedBy::Checkout => self
                .inner
                .simple_write_deployment(
                    Some(STATEROOT),
                    &staged.deployment,
                    self.inner.merge_deployment(Some(STATEROOT)).as_ref(),
                    ostree::SysrootSimpleWriteDeploymentFlags::NO_CLEAN,
                    gio::Cancellable::NONE,
                )
                .map_err(|source| failed(format!("making {} the next boot", staged.commit), source))?,
        }
        self.reload()
    }

    /// **The flip** for a deployment that is already there: puts it first in the boot order. Drops what is staged.
    pub fn set_next_boot(&self, id: &DeploymentId, proof: VerifiedRelease) -> Result<(), SysrootError> {
        let mut order: Vec<_> = self.inner.deployments().into_iter().filter(|raw| !raw.is_staged()).collect();
        let mut found = None;
        for (index, raw) in order.iter().enumerate() {
            let matches = raw.osname() == id.stateroot.as_str()
                && self.commit_of(raw)? == id.commit
                && u32::try_from(raw.deployserial()) == Ok(id.serial);
            if matches {
                found = Some(index);
            }
        }
        let Some(index) = found else { return Err(SysrootError::NoDeployment(id.clone())) };
        require_proof(id.commit, &proof)?;
        order[..=index].rotate_right(1);
        self.inner
            .write_deployments(&order, gio::Cancellable::NONE)
            .map_err(|source| failed(format!("making {} the next boot", id.commit), source))?;
        self.reload()
    }

    /// Deploys onto a sysroot that has no deployment yet, and makes it bootable: for the installer.
    ///
    /// It takes no proof. The pull that fills a blank disk has checked every object that it wrote, and has found none
    /// missing; the boot sector comes last, and there is nothing older that could be mixed with it.
    pub fn deploy_first(
        &self,
        commit: Commit,
        follows: &Ref,
        arguments: &[String],
    ) -> Result<PathBuf, SysrootError> {
        let origin = self.inner.origin_new_from_refspec(follows.as_str());
        let arguments = identified(arguments, commit);
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let none = gio::Cancellable::NONE;
        let deployment = self
            .inner
            .deploy_tree(Some(STATEROOT), &commit.hex(), Some(&origin), None, &arguments, none)
            .map_err(|source| failed(format!("checking out {commit}"), source))?;
        self.inner
            .simple_write_deployment(
                Some(STATEROOT),
                &deployment,
                None,
                ostree::SysrootSimpleWriteDeploymentFlags::NO_CLEAN,
                none,
            )
            .map_err(|source| failed(format!("writing the boot entry of {commit}"), source))?;
        Ok(self.path.join(self.inner.deployment_dirpath(&deployment).as_str()))
    }

    /// Removes what is staged, if anything. The next boot is then what it was before the staging.
    pub fn discard_staged(&self) -> Result<(), SysrootError> {
        if self.inner.staged_deployment().is_none() {
            return Ok(());
        }
        let rest: Vec<_> = self.inner.deployments().into_iter().filter(|raw| !raw.is_staged()).collect();
        self.inner
            .write_deployments(&rest, gio::Cancellable::NONE)
            .map_err(|source| failed("discarding the staged deployment".into(), source))?;
        self.reload()
    }

    /// Where a deployment's release files are.
    pub fn release_dir(&self, deployment: &Deployment) -> PathBuf {
        self.path.join(&deployment.path).join(RELEASE_DIR)
    }

    /// The lock below /run is one for all: it must be the proven deployment that comes free with it.
    fn require_still_staged(&self, staged: &StagedLocked) -> Result<(), SysrootError> {
        self.reload()?;
        let now = self.inner.staged_deployment();
        if now.is_some_and(|now| now.equal(&staged.deployment)) {
            return Ok(());
        }
        Err(SysrootError::Replaced { commit: staged.commit })
    }

    fn require_boot_room(&self, staged: &StagedLocked) -> Result<(), SysrootError> {
        let path = self.path.join("boot");
        let kernel = format!("ostree/{}-{}", staged.deployment.osname(), staged.deployment.bootcsum());
        if path.join(kernel).exists() {
            return Ok(());
        }
        boot_room::require(&path, &staged.path).map_err(|boot_room::Short { needed, free }| {
            SysrootError::BootFull { commit: staged.commit, path, needed, free }
        })
    }

    fn protect(&self, commit: Commit) -> Result<(), SysrootError> {
        self.repo()
            .set_ref_immediate(None, PREPARED_REF, Some(&commit.hex()), gio::Cancellable::NONE)
            .map_err(|source| failed(format!("protecting {commit} from collection"), source))
    }

    fn reload(&self) -> Result<(), SysrootError> {
        self.inner
            .load(gio::Cancellable::NONE)
            .map_err(|source| failed("reading the sysroot again".into(), source))
    }

    fn commit_of(&self, raw: &ostree::Deployment) -> Result<Commit, SysrootError> {
        raw.csum().parse().map_err(|source| SysrootError::Name { path: self.path.clone(), source })
    }

    /// The version in a commit's metadata, if it is here.
    pub fn version_of(&self, commit: Commit) -> Option<String> {
        let (variant, _) = self.repo().load_commit(&commit.hex()).ok()?;
        glib::VariantDict::new(Some(&variant.child_value(0))).lookup::<String>("version").ok().flatten()
    }
}

fn require_proof(commit: Commit, proof: &VerifiedRelease) -> Result<(), SysrootError> {
    let proven = proof.commit();
    if proven == commit { Ok(()) } else { Err(SysrootError::Proof { commit, proven }) }
}

/// The arguments, and the one that says which release it is. Boot entries are told apart by it, whichever place they have;
/// and libostree, which writes none where kernel and arguments are those of before, always writes them.
fn identified(arguments: &[String], commit: Commit) -> Vec<String> {
    let others = arguments.iter().filter(|argument| !argument.starts_with(RELEASE_ARGUMENT)).cloned();
    others.chain([format!("{RELEASE_ARGUMENT}{commit}")]).collect()
}

/// Kernel arguments of a deployment, without those that libostree and we set ourselves.
fn kernel_arguments(deployment: &ostree::Deployment) -> Vec<String> {
    deployment
        .bootconfig()
        .and_then(|config| config.get("options"))
        .map(|options| {
            options
                .split_ascii_whitespace()
                .filter(|argument| {
                    !argument.starts_with("ostree=") && !argument.starts_with(RELEASE_ARGUMENT)
                })
                .map(str::to_owned)
                .collect()
        })
        .unwrap_or_default()
}

fn failed(doing: String, source: glib::Error) -> SysrootError {
    SysrootError::Ostree { doing, source }
}
