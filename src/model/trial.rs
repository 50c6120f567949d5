//! A release on trial: what counts its boots, what decides, and what is remembered of it.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::Commit;
use super::deployment::name_release;

/// Kernel argument of every deployment: which release a boot entry boots. `grub-config` reads it.
pub const RELEASE_ARGUMENT: &str = "rackstep.release=";
/// Kernel argument that GRUB adds while it counts: which boot of the trial it is.
pub const TRIAL_ARGUMENT: &str = "rackstep.trial=";

/// How often GRUB boots a release that is not confirmed, before it takes the way back.
pub const TRIAL_BOOTS: u32 = 3;

/// What GRUB's environment says of a trial (`grub-config` writes the script that keeps it).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ladder {
    /// The release that proved healthy last.
    pub confirmed: Option<Commit>,
    /// The release that is counted.
    pub trial: Option<Commit>,
    /// Boots so far: up to [`TRIAL_BOOTS`] of the trial, then of the way back.
    pub tries: u32,
}

impl Ladder {
    /// Names of GRUB's variables.
    pub const NAMES: [&'static str; 3] = ["confirmed", "trial", "tries"];

    /// From the values of GRUB's variables, in the order of [`Ladder::NAMES`]; what is no commit and no number is not there.
    pub fn parse(values: [Option<&str>; 3]) -> Self {
        let commit = |text: Option<&str>| text.and_then(|text| text.parse().ok());
        let tries = values[2].and_then(|text| text.parse().ok()).unwrap_or_default();
        Self { confirmed: commit(values[0]), trial: commit(values[1]), tries }
    }
}

/// The format number of `trial.json`.
pub const POLICY_FORMAT: u32 = 1;

/// How a release's trial ends: `trial.json` of the release, or of the host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrialPolicy {
    /// [`POLICY_FORMAT`].
    pub format: u32,
    /// Who ends a trial that went well.
    #[serde(default)]
    pub confirm: Confirm,
    /// Seconds that the required probes get, from the boot on.
    #[serde(default = "default_deadline")]
    pub deadline: u64,
}

/// Half an hour: an emulated host takes eight minutes to its services, a migration may take more.
fn default_deadline() -> u64 {
    30 * 60
}

impl Default for TrialPolicy {
    fn default() -> Self {
        Self { format: POLICY_FORMAT, confirm: Confirm::default(), deadline: default_deadline() }
    }
}

/// Who ends a trial that went well.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Confirm {
    /// The host itself.
    #[default]
    Automatic,
    /// A person, with `rackstep confirm`.
    ByHand,
}

/// The format number of probes.
pub const PROBE_FORMAT: u32 = 1;

/// One probe of `health.d`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Probe {
    /// [`PROBE_FORMAT`].
    pub format: u32,
    /// What its failure means.
    #[serde(default)]
    pub needs: Needs,
    /// What is looked at.
    pub check: Check,
}

/// What the failure of a probe means.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Needs {
    /// The release is not good.
    #[default]
    Required,
    /// It is told, and that is all.
    Wanted,
}

/// What a probe looks at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Check {
    /// The boot came to its end: systemd's `multi-user.target` is active.
    Boot,
    /// Every phase that is due has run.
    Phases,
    /// These pods are ready; empty: all of the release.
    Pods(Vec<String>),
    /// These units of systemd are active.
    Units(Vec<String>),
    /// An HTTP GET of this URL is answered with success.
    Http(String),
    /// A file system has so many bytes free.
    Disk {
        /// A path in it.
        path: String,
        /// Bytes.
        free: u64,
    },
    /// A program beside the probe ends with 0; its last line is the reason when it does not.
    Script {
        /// Its name in `health.d`.
        name: String,
        /// Seconds that it gets.
        #[serde(default = "default_script_limit")]
        seconds: u64,
    },
}

fn default_script_limit() -> u64 {
    30
}

/// The format number of the deny list.
pub const DENIED_FORMAT: u32 = 1;

/// Releases that this host came back from: `upgrade` does not take them until a person allows them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DenyList {
    /// [`DENIED_FORMAT`].
    pub format: u32,
    /// Oldest first.
    pub releases: Vec<Denied>,
}

impl Default for DenyList {
    fn default() -> Self {
        Self { format: DENIED_FORMAT, releases: Vec::new() }
    }
}

/// A release that this host came back from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Denied {
    /// The commit.
    pub commit: Commit,
    /// The version that people say.
    pub version: Option<String>,
    /// Why.
    pub reason: BadReason,
    /// When, in seconds since 1970, by the host's clock.
    pub at: u64,
}

impl DenyList {
    /// The entry of a release.
    pub fn find(&self, commit: Commit) -> Option<&Denied> {
        self.releases.iter().find(|denied| denied.commit == commit)
    }
}

/// Why a release on trial is not good.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "because", rename_all = "kebab-case")]
pub enum BadReason {
    /// Required probes did not succeed in time.
    Unhealthy {
        /// What each said last.
        probes: Vec<String>,
        /// Seconds that they had.
        seconds: u64,
    },
    /// It never came as far as its probes: a panic, a hang, a power cut at each boot.
    DidNotComeUp {
        /// Boots that GRUB counted.
        boots: u32,
    },
}

impl fmt::Display for BadReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unhealthy { probes, seconds } => {
                write!(f, "not healthy after {seconds} s: {}", probes.join("; "))
            }
            Self::DidNotComeUp { boots } => write!(f, "did not come up in {boots} boots"),
        }
    }
}

impl fmt::Display for Denied {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", name_release(self.version.as_deref(), self.commit), self.reason)
    }
}

/// The format number of the trial's state.
pub const STATE_FORMAT: u32 = 1;

/// Where the trial of this boot stands: `/run/rackstep/trial.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrialState {
    /// [`STATE_FORMAT`].
    pub format: u32,
    /// The release that runs.
    pub release: Commit,
    /// What its probes decide.
    pub stage: StageName,
    /// When its probes began to be tried, in seconds since 1970.
    pub since: u64,
    /// When a trial is given up, in seconds since 1970.
    pub until: u64,
    /// What the probes say.
    pub verdict: Verdict,
    /// What probes that decide nothing say.
    #[serde(default)]
    pub warnings: Vec<String>,
}

/// What the probes of a boot decide.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum StageName {
    /// Whether the host goes back.
    Trial,
    /// Whether the only release is confirmed.
    First,
    /// Nothing: the release was confirmed before.
    Confirmed,
    /// Nothing: the host came back to it, and does not go anywhere again.
    Returned,
    /// Nothing: boots are not counted here, or a person chose the entry.
    Uncounted,
}

/// What probes say together.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "verdict", rename_all = "kebab-case")]
pub enum Verdict {
    /// Some do not succeed yet.
    Waiting {
        /// What they say.
        reasons: Vec<String>,
    },
    /// All succeed.
    Good,
    /// Time is over.
    Bad {
        /// Why.
        reason: BadReason,
    },
}
