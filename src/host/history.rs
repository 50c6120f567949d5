//! Keeps what was done on this host: begun before the first effect, ended after the last.
//!
//! An act that says that it runs, and whose process is gone, was cut off: the next one that begins says so of it. Every verb
//! itself goes on from what is on the disk, so nothing else is to be done about it.

use std::path::{Path, PathBuf};

use crate::model::Commit;
use crate::model::history::{Act, ActVerb, HISTORY_FORMAT, History, KEPT, Outcome};
use crate::rim::clock::now;
use crate::rim::files::Durability;
use crate::rim::versioned::{Versioned, VersionedError, read_versioned, write_versioned};

impl Versioned for History {
    const WHAT: &'static str = "the history";
    const FORMAT: u32 = HISTORY_FORMAT;
}

/// An act that was begun. Dropped without an end it stays so, and counts as cut off.
#[derive(Debug)]
#[must_use = "an act that was begun is to be ended"]
pub struct Begun {
    path: PathBuf,
    id: u64,
}

/// Reads the history, oldest first; acts whose process is gone are told as interrupted.
pub fn read_history(path: &Path) -> Result<History, VersionedError> {
    let mut history: History = read_versioned(path)?.unwrap_or_default();
    let boot = boot_id();
    for act in &mut history.acts {
        if act.outcome == Outcome::Running && !is_alive(act, &boot) {
            act.outcome = Outcome::Interrupted;
        }
    }
    Ok(history)
}

/// Takes note that an act begins; on the disk when this returns. `reason`: why, if that is not obvious.
pub fn begin(
    path: &Path,
    verb: ActVerb,
    release: Option<(Commit, Option<String>)>,
    who: &str,
    reason: Option<String>,
) -> Result<Begun, VersionedError> {
    let mut history = read_history(path)?;
    let id = history.next;
    let (release, version) = release.map_or((None, None), |(commit, version)| (Some(commit), version));
    history.next += 1;
    history.acts.push(Act {
        id,
        verb,
        release,
        version,
        who: who.to_owned(),
        began: now(),
        ended: None,
        outcome: Outcome::Running,
        reason,
        boot: boot_id(),
        process: std::process::id(),
    });
    let surplus = history.acts.len().saturating_sub(KEPT);
    history.acts.drain(..surplus);
    write_versioned(path, &history, Durability::Durable)?;
    Ok(Begun { path: path.to_owned(), id })
}

impl Begun {
    /// Takes note of the end; `reason` takes the place of that of the beginning, if there is one.
    pub fn end(self, outcome: Outcome, reason: Option<String>) -> Result<(), VersionedError> {
        let mut history = read_history(&self.path)?;
        if let Some(act) = history.acts.iter_mut().find(|act| act.id == self.id) {
            act.outcome = outcome;
            act.ended = Some(now());
            if reason.is_some() {
                act.reason = reason;
            }
            write_versioned(&self.path, &history, Durability::Durable)?;
        }
        Ok(())
    }
}

/// Whoever asks: the user behind sudo, or of the process.
pub fn who() -> String {
    let named = |name| std::env::var(name).ok().filter(|value| !value.is_empty());
    named("SUDO_USER")
        .or_else(|| named("USER"))
        .or_else(|| named("LOGNAME"))
        .unwrap_or_else(|| "root".to_owned())
}

/// What a host does by itself is done by.
pub const ITSELF: &str = "rackstep";

fn boot_id() -> String {
    let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    text.trim().to_owned()
}

fn is_alive(act: &Act, boot: &str) -> bool {
    act.boot == boot && Path::new("/proc").join(act.process.to_string()).exists()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn acts_have_numbers_and_ends_and_cuts_are_seen() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("deep/history.json");
        let commit: Commit = "a".repeat(64).parse().unwrap();
        let first = begin(&path, ActVerb::Upgrade, Some((commit, None)), "alice", None).unwrap();
        first.end(Outcome::Failed, Some("no room".to_owned())).unwrap();
        drop(begin(&path, ActVerb::Rollback, None, "bob", None).unwrap());
        let seen = |history: &History| {
            history.acts.iter().map(|act| (act.id, act.outcome, act.reason.clone())).collect::<Vec<_>>()
        };
        let failed = (1, Outcome::Failed, Some("no room".to_owned()));
        assert_eq!(seen(&read_history(&path).unwrap()), [failed.clone(), (2, Outcome::Running, None)]);
        // The machine was started anew since.
        let mut history: History = read_versioned(&path).unwrap().unwrap();
        history.acts[1].boot = "another".to_owned();
        write_versioned(&path, &history, Durability::Durable).unwrap();
        assert_eq!(seen(&read_history(&path).unwrap()), [failed, (2, Outcome::Interrupted, None)]);
    }

    #[test]
    fn the_oldest_go() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("history.json");
        let one = begin(&path, ActVerb::Confirm, None, ITSELF, None).unwrap();
        one.end(Outcome::Done, None).unwrap();
        let mut history: History = read_versioned(&path).unwrap().unwrap();
        history.acts = vec![history.acts[0].clone(); KEPT];
        write_versioned(&path, &history, Durability::Volatile).unwrap();
        drop(begin(&path, ActVerb::Allow, None, ITSELF, None).unwrap());
        let acts = read_history(&path).unwrap().acts;
        assert_eq!((acts.len(), acts.last().unwrap().id), (KEPT, 2));
    }
}
