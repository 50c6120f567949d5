//! The releases of a story: locked and composed by the program itself, or found.

use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{Releases, Story, StoryError, run};

/// A composed release.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Composed {
    /// Its commit, in hexadecimal digits.
    pub commit: String,
    /// Its version.
    pub version: String,
    /// What `compose --json` said; null for a release that was found in somebody's repo.
    pub answer: Value,
}

impl Story<'_> {
    /// Locks and composes `treefile` into the story's repo, unless it has that release already.
    pub fn compose(&mut self, name: &str, treefile: &Path, version: &str) -> Result<Composed, StoryError> {
        if let Releases::Given(repo) = &self.releases {
            return find(repo, version);
        }
        let dir = match &self.releases {
            Releases::Kept(dir) => dir.clone(),
            _ => self.work().to_owned(),
        };
        let record = dir.join(format!("{version}.json"));
        if let Some(composed) = read_record(&record) {
            self.teller().moved(&format!("{name}: {version} was composed of these very inputs before"));
            return Ok(composed);
        }
        let lock = self.lock(name, treefile, &dir, version)?;
        let (mut compose, key, repo) = (self.rackstep(), self.key.clone(), self.repo());
        compose.arg("compose").arg(treefile).arg("--lock").arg(lock).arg("--repo").arg(repo);
        compose.arg("--sign-key").arg(key).arg("--json");
        let answer = self.timed(&format!("compose {name}"), || run(&mut compose))?;
        let composed = read_answer(&answer)?;
        if composed.version != version {
            return Err(StoryError::Wrong(format!("{name} is {}, not {version}", composed.version)));
        }
        let text = serde_json::json!(composed).to_string();
        let unfinished = record.with_extension("new");
        fs::write(&unfinished, text)
            .and_then(|()| fs::rename(&unfinished, &record))
            .map_err(StoryError::io(format!("writing {}", record.display())))?;
        Ok(composed)
    }

    /// A lock that is there belongs to the same inputs, as the directory does.
    fn lock(
        &mut self,
        name: &str,
        treefile: &Path,
        dir: &Path,
        version: &str,
    ) -> Result<PathBuf, StoryError> {
        let lock = dir.join(format!("{version}.lock.yaml"));
        if !lock.exists() {
            let mut command = self.rackstep();
            command.arg("lock").arg(treefile).arg("--output").arg(&lock);
            self.timed(&format!("lock {name}"), || run(&mut command))?;
        }
        Ok(lock)
    }

    /// Makes a Vagrant box of release 1.0.0 of `name`; gives its catalogue.
    pub fn make_box(&mut self, name: &str) -> Result<PathBuf, StoryError> {
        let boxes = self.work().join("boxes");
        let mut command = self.rackstep();
        command.args(["box", "1.0.0", "--size=10", "--repo"]).arg(self.repo()).arg("--output").arg(&boxes);
        command.args(self.public_key().map(|key| format!("--keys={}", key.display())));
        self.timed(&format!("rackstep box of {name}"), || run(&mut command))?;
        Ok(boxes.join(format!("{name}.json")))
    }
}

fn read_record(path: &Path) -> Option<Composed> {
    serde_json::from_slice(&fs::read(path).ok()?).ok()
}

fn read_answer(text: &str) -> Result<Composed, StoryError> {
    let unclear = || StoryError::Answer { from: "rackstep compose".to_owned(), answer: text.to_owned() };
    let answer: Value = serde_json::from_str(text).map_err(|_error| unclear())?;
    let word = |key: &str| answer[key].as_str().map(str::to_owned).ok_or_else(unclear);
    Ok(Composed { commit: word("commit")?, version: word("version")?, answer })
}

/// The release `version` in somebody's repo.
fn find(repo: &Path, version: &str) -> Result<Composed, StoryError> {
    let releases = repo.join("refs/heads/releases");
    let reading = || StoryError::io(format!("looking for releases in {}", repo.display()));
    let names = fs::read_dir(&releases).map_err(reading())?;
    let mut refs = names.flatten().map(|name| name.path().join(version)).filter(|path| path.exists());
    let found = refs
        .next()
        .ok_or_else(|| StoryError::Wrong(format!("no release {version} in {}", repo.display())))?;
    let commit = fs::read_to_string(found).map_err(reading())?.trim().to_owned();
    Ok(Composed { commit, version: version.to_owned(), answer: Value::Null })
}
