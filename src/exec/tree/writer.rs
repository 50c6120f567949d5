//! Writes the finished tree into the repo: commit, then refs.
//!
//! The commit has no parent and no time of its own, so the same tree of the same lock is the same commit in any repo.
//! A second ref, `releases/<name>/<version>`, keeps it and lets a client find a version.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::engine::command::{CommandError, run, run_text};
use crate::model::commit::ParseCommitError;
use crate::model::{Commit, Digest, Ref};
use crate::plan::compose::Head;

/// Metadata key of the digest of a release's inputs.
pub const INPUTS_KEY: &str = "rackstep.inputs";

/// Why the repo did not take the commit.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// ostree failed.
    #[error(transparent)]
    Command(#[from] CommandError),
    /// ostree answered something else than a commit.
    #[error("ostree gave no commit")]
    Answer(#[from] ParseCommitError),
    /// The repo could not be made.
    #[error("making the repo {path}")]
    Create {
        /// The repo.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

/// What a new commit says of itself.
#[derive(Debug)]
pub struct NewCommit<'a> {
    /// The ref that will name it.
    pub follows: &'a Ref,
    /// The treefile's name.
    pub name: &'a str,
    /// The release's version.
    pub version: &'a str,
    /// The lock's time.
    pub created: u64,
    /// Digest of all inputs.
    pub inputs: Digest,
    /// Kernel release; none: not bootable.
    pub kernel: Option<&'a str>,
    /// Key to sign with.
    pub sign_key: Option<&'a Path>,
}

fn ostree(repo: &Path) -> Command {
    let mut command = Command::new("ostree");
    command.arg(format!("--repo={}", repo.display()));
    command
}

/// The head of `follows`, if repo and ref exist.
pub fn observe_head(repo: &Path, follows: &Ref) -> Result<Option<Head>, WriteError> {
    if !repo.join("config").is_file() {
        return Ok(None);
    }
    let Ok(text) = run_text(ostree(repo).args(["rev-parse", follows.as_str()])) else { return Ok(None) };
    let commit: Commit = text.trim().parse()?;
    // Printed as a GVariant: 'text'.
    let inputs = run_text(
        ostree(repo).arg("show").arg(format!("--print-metadata-key={INPUTS_KEY}")).arg(commit.hex()),
    );
    let inputs = inputs.ok().map(|text| text.trim().trim_matches('\'').to_owned());
    Ok(Some(Head { commit, inputs }))
}

/// Commits the tree at `root`.
pub fn write(repo: &Path, root: &Path, new: &NewCommit<'_>) -> Result<Commit, WriteError> {
    if !repo.join("config").is_file() {
        std::fs::create_dir_all(repo)
            .map_err(|source| WriteError::Create { path: repo.to_owned(), source })?;
        run(ostree(repo).args(["init", "--mode=archive"]))?;
    }
    let mut command = ostree(repo);
    command.args(["commit", "--orphan", "--parent=none", "--no-bindings"]);
    command.arg(format!("--tree=dir={}", root.display())).arg(format!("--timestamp=@{}", new.created));
    command.arg(format!("--subject={} {}", new.name, new.version));
    command.arg(format!("--add-metadata-string=version={}", new.version));
    command.arg(format!("--add-metadata-string=rackstep.release={}", new.name));
    command.arg(format!("--add-metadata-string={INPUTS_KEY}={}", new.inputs.hex()));
    if let Some(kernel) = new.kernel {
        command
            .arg("--add-metadata=ostree.bootable=true")
            .arg(format!("--add-metadata-string=ostree.linux={kernel}"));
    }
    let commit: Commit = run_text(&mut command)?.trim().parse()?;
    for name in [format!("releases/{}/{}", new.name, new.version), new.follows.to_string()] {
        run(ostree(repo).args(["refs", "--force", "--create", &name]).arg(commit.hex()))?;
    }
    run(ostree(repo).args(["summary", "--update"]))?;
    Ok(commit)
}
