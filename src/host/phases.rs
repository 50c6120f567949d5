//! Runs the phases that are due, in order, and starts the pods that waited for them.
//!
//! 1. Wait until the pods that a phase needs are ready;
//! 2. run it to its end;
//! 3. record it, on the disk; a cut between 2 and 3 runs it again, which phases must bear;
//! 4. start the pods that waited for this one last.
//!
//! The first failure ends it: later phases build on earlier ones, and the pods that wait stay out. A phase whose image is not
//! there is no failure of the others: it waits, and what needs it.

use std::time::Duration;

use crate::docker::{Docker, DockerError};
use crate::host::boot::plan::{BootPlan, Decision, KeptOut, PlannedPhase, needed_pods};
use crate::model::{PhaseRecord, Progress};

use super::boot::{BootError, Release};
use super::journal::{append, read_journal};
use super::places::Places;
use super::pods::PodError;
use super::readiness::{ReadinessError, wait_ready};
use crate::rim::versioned::VersionedError;

/// How long a pod may take to become ready: minutes on an emulated processor.
const READY_LIMIT: Duration = Duration::from_secs(20 * 60);

/// How long one phase may take: a migration of a large database takes long, but not forever.
const PHASE_LIMIT: Duration = Duration::from_secs(60 * 60);

/// Why a phase is not done.
#[derive(Debug, thiserror::Error)]
pub enum PhaseError {
    /// What it needs does not come up.
    #[error("waiting for what phase {phase} needs")]
    Needs {
        /// The phase.
        phase: String,
        /// Why.
        #[source]
        source: Box<ReadinessError>,
    },
    /// Docker could not run it.
    #[error("running phase {phase}")]
    Run {
        /// The phase.
        phase: String,
        /// Why.
        #[source]
        source: Box<DockerError>,
    },
    /// It ran and failed.
    #[error("phase {phase} ended with exit code {code}; its last words:\n{log}")]
    Failed {
        /// The phase.
        phase: String,
        /// Exit code.
        code: i64,
        /// The end of its log.
        log: String,
    },
    /// Its pod.
    #[error("preparing phase {phase}")]
    Pod {
        /// The phase.
        phase: String,
        /// Why.
        #[source]
        source: PodError,
    },
    /// The journal.
    #[error("recording phase {phase}")]
    Journal {
        /// The phase.
        phase: String,
        /// Why.
        #[source]
        source: VersionedError,
    },
}

/// What running the phases did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PhasesDone {
    /// Ids that ran, in order.
    pub ran: Vec<String>,
    /// Pods that were started because what they waited for is done.
    pub started: Vec<String>,
    /// Phases that wait for a confirm.
    pub waiting: Vec<String>,
    /// What waits for images that Docker does not have.
    pub kept_out: KeptOut,
}

/// Runs everything that `plan` says is due.
pub fn run_phases(
    docker: &Docker,
    release: &Release,
    places: &Places,
    plan: &BootPlan,
    kept_out: KeptOut,
    progress: &dyn Progress,
) -> Result<PhasesDone, BootError> {
    let mut done = PhasesDone { kept_out, ..PhasesDone::default() };
    let mut waiting = plan.pods.clone();
    waiting.retain(|pod| !done.kept_out.pods.contains_key(&pod.name));
    let due = plan.phases.iter().filter(|planned| !done.kept_out.phases.contains_key(&planned.phase.id));
    for planned in due.collect::<Vec<_>>() {
        match planned.decision {
            Decision::Run => {
                progress.begin(&format!("phase {}", planned.phase.id), None);
                run_phase(docker, release, places, planned)?;
                progress.end("");
                done.ran.push(planned.phase.id.clone());
            }
            Decision::WaitsForConfirm => done.waiting.push(planned.phase.id.clone()),
            Decision::Done { .. } | Decision::NewerRan { .. } => {}
        }
        for pod in &mut waiting {
            let waited = !pod.waits_for.is_empty();
            pod.waits_for.retain(|phase| *phase != planned.phase.id);
            if waited && pod.waits_for.is_empty() {
                release.start_pod(&pod.name, places)?;
                tracing::info!(pod = pod.name, "started");
                done.started.push(pod.name.clone());
            }
        }
    }
    Ok(done)
}

fn run_phase(
    docker: &Docker,
    release: &Release,
    places: &Places,
    planned: &PlannedPhase,
) -> Result<(), PhaseError> {
    let id = || planned.phase.id.clone();
    for pod in needed_pods(&planned.phase) {
        wait_ready(docker, &release.pods, pod, release.pins.pins(), READY_LIMIT)
            .map_err(|source| PhaseError::Needs { phase: id(), source: Box::new(source) })?;
    }
    let commit = release.pins.commit();
    let no_pod = || PodError::Unfit {
        path: planned.phase.pod.clone().into(),
        problem: "there is no such pod".to_owned(),
    };
    let run = release
        .pods
        .get(&planned.phase.pod)
        .ok_or_else(no_pod)
        .and_then(|pod| pod.render_phase(&planned.phase, planned.image, commit, places))
        .map_err(|source| PhaseError::Pod { phase: id(), source })?;
    tracing::info!(phase = planned.phase.id, "running");
    let outcome = docker
        .run_once(&run, PHASE_LIMIT)
        .map_err(|source| PhaseError::Run { phase: id(), source: Box::new(source) })?;
    if outcome.code != 0 {
        return Err(PhaseError::Failed { phase: id(), code: outcome.code, log: outcome.log });
    }
    let record =
        PhaseRecord { phase: id(), image: planned.image, release: commit, created: release.info.created };
    let path = places.journal();
    let mut journal = read_journal(&path).map_err(|source| PhaseError::Journal { phase: id(), source })?;
    append(&path, &mut journal, record).map_err(|source| PhaseError::Journal { phase: id(), source })
}
