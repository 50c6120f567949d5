//! `/var/lib/rackstep/history.json`: what was done on a host, by whom, and how it ended.

use serde::{Deserialize, Serialize};

use super::Commit;

/// The format number that this program writes and reads.
pub const HISTORY_FORMAT: u32 = 1;

/// How many acts are kept.
pub const KEPT: usize = 500;

/// The acts of a host, oldest first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct History {
    /// [`HISTORY_FORMAT`].
    pub format: u32,
    /// The number of the next act.
    pub next: u64,
    /// What was done.
    pub acts: Vec<Act>,
}

impl Default for History {
    fn default() -> Self {
        Self { format: HISTORY_FORMAT, next: 1, acts: Vec::new() }
    }
}

/// One act.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Act {
    /// Its number: never given twice.
    pub id: u64,
    /// What it is.
    pub verb: ActVerb,
    /// The release that it is about.
    pub release: Option<Commit>,
    /// The version that people say.
    pub version: Option<String>,
    /// Who asked: a user's name, or `rackstep` for what a host does by itself.
    pub who: String,
    /// When it began, in seconds since 1970, by the host's clock.
    pub began: u64,
    /// When it ended.
    pub ended: Option<u64>,
    /// How it ended.
    pub outcome: Outcome,
    /// Why it was begun, or why it ended so.
    pub reason: Option<String>,
    /// The boot and the process that do it: how an act that was cut off is known.
    pub boot: String,
    /// The process.
    pub process: u32,
}

/// What was done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ActVerb {
    /// A release was made the next boot, or prepared.
    Upgrade,
    /// The previous release was made the next boot.
    Rollback,
    /// The host went back by itself.
    Return,
    /// A trial was ended well.
    Confirm,
    /// A release was taken off the deny list.
    Allow,
    /// What was prepared was given up.
    Abandon,
    /// State was brought back.
    Restore,
}

impl ActVerb {
    /// As people say it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Upgrade => "upgrade",
            Self::Rollback => "rollback",
            Self::Return => "return",
            Self::Confirm => "confirm",
            Self::Allow => "allow",
            Self::Abandon => "abandon",
            Self::Restore => "restore",
        }
    }
}

/// How an act ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// It goes on, or was cut off a moment ago.
    Running,
    /// It did what it was to do.
    Done,
    /// It did not.
    Failed,
    /// A power cut or a kill ended it.
    Interrupted,
}

impl Outcome {
    /// As people say it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Done => "done",
            Self::Failed => "failed",
            Self::Interrupted => "interrupted",
        }
    }
}
