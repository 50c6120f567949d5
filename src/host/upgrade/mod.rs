//! Runs the plans of `upgrade` and `rollback` on a host.
//!
//! 1. prepare: pull, check out locked; all of it additive and repeatable;
//! 2. verify: every object of that very release is read;
//! 3. flip: the sysroot takes checkout and proof by value.
//!
//! Docker is never touched: layers are mounted, and images recorded, at boot.
//!
//! Before the flip nothing is undone: a failure leaves garbage for `gc`, and the next boot as it was.

pub mod plan;

use std::fmt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::host::history::{Begun, begin};
use crate::host::newest::note_accepted;
use crate::host::startable::{StartError, require_startable};
use crate::host::upgrade::plan::{Plan, Step};
use crate::model::causes::in_one_line;
use crate::model::history::Outcome;
use crate::model::kernel_arguments;
use crate::model::newest::KnownRelease;
use crate::model::{Commit, DeploymentId, HostConfig, Progress, RELEASE_DIR};
use crate::ostree::repo::{ReleaseError, Repo, RepoError, VerifiedRelease};
use crate::ostree::signature::PublicKey;
use crate::ostree::sysroot::{PREPARED_REF, StagedLocked, Sysroot, SysrootError};
use crate::release::pull::{PullError, PullReport, PullRequest, pull};
use crate::rim::command::{self, CommandError};
use crate::rim::versioned::VersionedError;

/// The engines that a plan runs against.
pub struct Host<'a> {
    /// Deployments and repo.
    pub sysroot: &'a Sysroot,
    /// Who this host is and what it follows.
    pub config: &'a HostConfig,
    /// Where the newest accepted releases are remembered.
    pub newest: &'a Path,
    /// Where acts are taken note of.
    pub history: &'a Path,
    /// Who asks.
    pub who: &'a str,
    /// Who listens.
    pub progress: &'a dyn Progress,
}

/// What a run did.
#[derive(Debug, Default)]
pub struct Done {
    /// The pull, if there was one.
    pub pulled: Option<PullReport>,
    /// What became the next boot.
    pub next_boot: Option<Commit>,
}

/// Why a plan did not run to its end.
#[derive(Debug, thiserror::Error)]
pub enum UpgradeError {
    /// The pull failed.
    #[error("pulling release {commit}")]
    Pull {
        /// The commit.
        commit: Commit,
        /// Why.
        #[source]
        source: Box<PullError>,
    },
    /// The host's repo could not be opened.
    #[error("opening the repo {path}")]
    Repo {
        /// Where it is.
        path: PathBuf,
        /// Why.
        #[source]
        source: RepoError,
    },
    /// A key in the host's configuration is not one.
    #[error("{0:?} in the host's trusted keys is not an ed25519 public key in base64")]
    Key(String),
    /// The sysroot failed.
    #[error("changing the deployments")]
    Sysroot(#[from] SysrootError),
    /// The release would stop the host's boot.
    #[error("release {commit} could not start")]
    Start {
        /// The commit.
        commit: Commit,
        /// What its boot would stumble over.
        #[source]
        source: Box<StartError>,
    },
    /// The release may not follow what the host has.
    #[error("release {commit} ({version}) upgrades from {}, not from {found}", from.join(", "))]
    NotFrom {
        /// The commit.
        commit: Commit,
        /// Its version.
        version: String,
        /// What it upgrades from.
        from: Vec<String>,
        /// The version that the host has.
        found: String,
    },
    /// The kernel arguments that a release brings could not be read.
    #[error("reading the kernel arguments of release {commit}")]
    Arguments {
        /// The commit.
        commit: Commit,
        /// Why.
        #[source]
        source: RepoError,
    },
    /// The newest accepted release could not be remembered.
    #[error("remembering release {commit} as accepted")]
    Newest {
        /// The commit.
        commit: Commit,
        /// Why.
        #[source]
        source: VersionedError,
    },
    /// Objects of the release are bad.
    #[error(transparent)]
    Release(#[from] ReleaseError),
    /// A step came before what it needs: a plan that no planner of ours makes.
    #[error("the plan's step \"{0}\" comes before what it needs")]
    Order(String),
    /// The act could not be taken note of.
    #[error("taking note of what is done")]
    History(#[source] VersionedError),
    /// The host would not restart.
    #[error("asking for a restart")]
    Reboot(#[source] CommandError),
}

impl UpgradeError {
    /// Whether a check said no, as against something that did not work.
    pub fn is_refusal(&self) -> bool {
        match self {
            Self::Release(ReleaseError::Bad { .. }) | Self::NotFrom { .. } | Self::Start { .. } => true,
            Self::Pull { source, .. } => source.is_refusal(),
            _ => false,
        }
    }

    /// Whether there was no room left on a disk.
    pub fn is_disk_full(&self) -> bool {
        match self {
            Self::Pull { source, .. } => source.is_disk_full(),
            Self::Sysroot(source) => source.is_disk_full(),
            _ => false,
        }
    }
}

/// Carries a plan's values from step to step.
struct Run<'a> {
    host: &'a Host<'a>,
    staged: Option<StagedLocked>,
    /// Set for a rollback: the deployment that is there already.
    deployment: Option<DeploymentId>,
    proof: Option<VerifiedRelease>,
    done: Done,
}

/// Runs `plan`; for a rollback `deployment` is the way back.
pub fn run(host: &Host<'_>, plan: &Plan, deployment: Option<DeploymentId>) -> Result<Done, UpgradeError> {
    let Some(act) = begin_act(host, plan)? else { return Ok(Done::default()) };
    let ran = run_steps(host, plan, deployment);
    let (outcome, reason) = match &ran {
        Ok(_) => (Outcome::Done, None),
        Err(error) => (Outcome::Failed, Some(in_one_line(error))),
    };
    act.end(outcome, reason).map_err(UpgradeError::History)?;
    // After the act's end is on the disk: nothing may be left to do.
    if ran.is_ok() && plan.steps.contains(&Step::Reboot) {
        reboot(host)?;
    }
    ran
}

/// Takes note of the plan, unless it does nothing.
fn begin_act(host: &Host<'_>, plan: &Plan) -> Result<Option<Begun>, UpgradeError> {
    if plan.steps.is_empty() {
        return Ok(None);
    }
    let release = plan.target.map(|commit| (commit, host.sysroot.version_of(commit)));
    begin(host.history, plan.reason.verb(), release, host.who, Some(plan.reason.to_string()))
        .map(Some)
        .map_err(UpgradeError::History)
}

fn run_steps(host: &Host<'_>, plan: &Plan, deployment: Option<DeploymentId>) -> Result<Done, UpgradeError> {
    let mut run = Run { host, staged: None, deployment, proof: None, done: Done::default() };
    for step in &plan.steps {
        tracing::info!(%step, "step");
        run.step(step)?;
    }
    Ok(run.done)
}

/// Restarts the host; a sysroot that nothing runs from is not this machine.
fn reboot(host: &Host<'_>) -> Result<(), UpgradeError> {
    if host.sysroot.is_booted() {
        command::run(Command::new("systemctl").arg("reboot")).map_err(UpgradeError::Reboot)?;
    }
    Ok(())
}

/// The keys that the host trusts.
pub fn trusted_keys(config: &HostConfig) -> Result<Vec<PublicKey>, UpgradeError> {
    let parse = |text: &String| PublicKey::parse(text).ok_or_else(|| UpgradeError::Key(text.clone()));
    config.trusted_keys.iter().map(parse).collect()
}

impl Run<'_> {
    fn step(&mut self, step: &Step) -> Result<(), UpgradeError> {
        match step {
            Step::Pull { commit, from } => self.pull(*commit, from),
            Step::Stage { commit } => self.stage(*commit),
            Step::Verify { commit } => self.verify(*commit),
            Step::Flip { commit } => self.flip(*commit, step),
            Step::Reboot => Ok(()),
        }
    }

    fn pull(&mut self, commit: Commit, from: &str) -> Result<(), UpgradeError> {
        let repo = self.repo()?;
        let keys = trusted_keys(self.host.config)?;
        // The ref protects the objects until they are deployed.
        let reference = Some(PREPARED_REF.to_owned());
        let request = PullRequest { repo_url: from.to_owned(), commit, keys, reference };
        let report = pull(&request, &repo, self.host.progress)
            .map_err(|source| UpgradeError::Pull { commit, source: Box::new(source) })?;
        self.done.pulled = Some(report);
        Ok(())
    }

    fn stage(&mut self, commit: Commit) -> Result<(), UpgradeError> {
        let sysroot = self.host.sysroot;
        let merge = sysroot.merge_source()?;
        if let Some((old, _)) = &merge {
            self.require_path(*old, commit)?;
        }
        self.host.progress.begin("check out", None);
        let staged = match sysroot.staged_locked(commit)? {
            Some(staged) => staged,
            None => {
                sysroot.stage_locked(commit, &self.host.config.follows, &self.arguments(merge, commit)?)?
            }
        };
        self.host.progress.end("");
        require_startable(&staged.path().join(RELEASE_DIR), commit)
            .map_err(|source| UpgradeError::Start { commit, source: Box::new(source) })?;
        self.staged = Some(staged);
        Ok(())
    }

    /// A release may tell which ones it upgrades from; the same version again is always fine.
    fn require_path(&self, old: Commit, new: Commit) -> Result<(), UpgradeError> {
        let repo = self.repo()?;
        let info = |commit| {
            repo.release_info(commit)
                .map_err(|source| UpgradeError::Repo { path: repo.path().to_owned(), source })
        };
        let Some(new_info) = info(new)? else { return Ok(()) };
        let found = info(old)?.map_or_else(|| "an unknown release".to_owned(), |old| old.version);
        let from = new_info.upgrade_from;
        if from.is_empty() || from.contains(&found) || new_info.version == found {
            return Ok(());
        }
        Err(UpgradeError::NotFrom { commit: new, version: new_info.version, from, found })
    }

    /// Kernel arguments of the release that is to follow.
    fn arguments(
        &self,
        merge: Option<(Commit, Vec<String>)>,
        commit: Commit,
    ) -> Result<Vec<String>, UpgradeError> {
        let Some((old, current)) = merge else { return Ok(Vec::new()) };
        let repo = self.repo()?;
        let brought = |commit| {
            repo.kernel_arguments(commit).map_err(|source| UpgradeError::Arguments { commit, source })
        };
        Ok(kernel_arguments::following(
            &current,
            &brought(old)?,
            &brought(commit)?,
            &self.host.config.kernel_arguments,
        ))
    }

    fn repo(&self) -> Result<Repo, UpgradeError> {
        let path = self.host.sysroot.repo_path();
        Repo::open(&path).map_err(|source| UpgradeError::Repo { path, source })
    }

    fn verify(&mut self, commit: Commit) -> Result<(), UpgradeError> {
        self.proof = Some(self.repo()?.verify_release(commit, self.host.progress)?);
        // The way back needs no memory, and must not stumble over a damaged one.
        if self.deployment.is_none() { self.remember(commit) } else { Ok(()) }
    }

    /// Takes note of a verified release of the host's ref: nothing older is taken from then on unless it is named.
    fn remember(&self, commit: Commit) -> Result<(), UpgradeError> {
        let repo = self.repo()?;
        let info = repo
            .commit_info(commit)
            .map_err(|source| UpgradeError::Repo { path: repo.path().to_owned(), source })?;
        let follows = self.host.config.follows.as_str();
        if !info.refs.iter().any(|bound| bound == follows) {
            return Ok(());
        }
        let release = KnownRelease { commit, version: info.version, created: info.timestamp };
        note_accepted(self.host.newest, follows, release)
            .map_err(|source| UpgradeError::Newest { commit, source })
    }

    fn flip(&mut self, commit: Commit, step: &Step) -> Result<(), UpgradeError> {
        let order = || UpgradeError::Order(step.to_string());
        let proof = self.proof.take().ok_or_else(order)?;
        match (self.staged.take(), &self.deployment) {
            (Some(staged), _) => self.host.sysroot.finalize(staged, proof)?,
            (None, Some(id)) => self.host.sysroot.set_next_boot(id, proof)?,
            (None, None) => return Err(order()),
        }
        self.done.next_boot = Some(commit);
        Ok(())
    }
}

impl fmt::Debug for Host<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Host").field("config", self.config).finish_non_exhaustive()
    }
}
