//! Writes the finished tree into the repo: commit, signature, packs, then refs.
//!
//! The commit has no parent and no time of its own, so the same tree of the same lock is the same commit in any repo.
//! A second ref, `releases/<name>/<version>`, keeps it and lets a client find a version.

use std::path::Path;

use crate::model::{Commit, Digest, Progress, Ref};
use crate::ostree::repo::{CommitOptions, MetaValue, Mode, Repo, RepoError};
use crate::ostree::signature::{SecretKey, SignatureError, sign_commit};
use crate::release::compose::plan::{Head, Published, PublishedHead};
use crate::release::pack::{PackError, PackOptions, write_pack};

/// Metadata key of the digest of a release's inputs.
pub const INPUTS_KEY: &str = "rackstep.inputs";
/// Metadata key of a release's name.
pub const RELEASE_KEY: &str = "rackstep.release";

/// Why the repo did not take the commit.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// The repo.
    #[error(transparent)]
    Repo(#[from] RepoError),
    /// The key or the signature.
    #[error(transparent)]
    Sign(#[from] SignatureError),
    /// A pack.
    #[error(transparent)]
    Pack(#[from] PackError),
    /// The ref of the release is none.
    #[error(transparent)]
    Name(#[from] crate::model::commit::ParseRefError),
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
    /// Write packs: whole, and against the head before.
    pub pack: bool,
}

/// The head of `follows`, if repo and ref exist.
pub fn observe_head(repo: &Path, follows: &Ref) -> Result<Option<Head>, WriteError> {
    if !repo.join("config").is_file() {
        return Ok(None);
    }
    let repo = Repo::open(repo)?;
    let Some(commit) = repo.resolve_ref(follows.as_str())? else { return Ok(None) };
    let info = repo.commit_info(commit)?;
    let inputs = info.metadata.iter().find_map(|(key, value)| match value {
        MetaValue::Text(text) if key == INPUTS_KEY => Some(text.clone()),
        _ => None,
    });
    Ok(Some(Head { commit, inputs }))
}

/// What the repo has published under `follows` and the version of `name`.
pub fn observe_published(
    repo: &Path,
    follows: &Ref,
    name: &str,
    version: &str,
) -> Result<Published, WriteError> {
    if !repo.join("config").is_file() {
        return Ok(Published::default());
    }
    let repo = Repo::open(repo)?;
    let version = repo.resolve_ref(version_ref(name, version)?.as_str())?;
    let head = match repo.resolve_ref(follows.as_str())? {
        None => None,
        Some(commit) => Some(PublishedHead {
            commit,
            created: repo.commit_info(commit)?.timestamp,
            signed: repo.read_detached(commit)?.is_some(),
        }),
    };
    Ok(Published { head, version })
}

fn version_ref(name: &str, version: &str) -> Result<Ref, WriteError> {
    Ok(format!("releases/{name}/{version}").parse()?)
}

/// Signs a release that is there already.
pub fn sign(path: &Path, commit: Commit, key: &Path) -> Result<(), WriteError> {
    let key = SecretKey::load(key)?;
    sign_commit(&Repo::open(path)?, commit, &key)?;
    Ok(())
}

/// Commits the tree at `root`.
pub fn write(
    path: &Path,
    root: &Path,
    new: &NewCommit<'_>,
    progress: &dyn Progress,
) -> Result<Commit, WriteError> {
    // Read first: a key that cannot be read must not leave an unsigned release.
    let key = new.sign_key.map(SecretKey::load).transpose()?;
    let repo = Repo::create(path, Mode::Archive)?;
    // Until the refs are there the new commit looks like one that nobody needs.
    let _nothing_goes = repo.lock_for_packing()?;
    let version_ref = version_ref(new.name, new.version)?;
    let text = |value: &str| MetaValue::Text(value.to_owned());
    let mut metadata = vec![
        ("version".to_owned(), text(new.version)),
        (RELEASE_KEY.to_owned(), text(new.name)),
        (INPUTS_KEY.to_owned(), text(&new.inputs.hex())),
        // Both names, sorted: libostree refuses a commit that is pulled by a ref that it is not bound to.
        ("ostree.ref-binding".to_owned(), MetaValue::List(bindings(new.follows, &version_ref))),
    ];
    if let Some(kernel) = new.kernel {
        metadata.push(("ostree.bootable".to_owned(), MetaValue::Flag(true)));
        metadata.push(("ostree.linux".to_owned(), text(kernel)));
    }
    let options = CommitOptions {
        timestamp: new.created,
        subject: format!("{} {}", new.name, new.version),
        metadata,
        ..CommitOptions::default()
    };
    let commit = repo.commit_tree(root, &options, progress)?.commit;
    if let Some(key) = &key {
        sign_commit(&repo, commit, key)?;
    }
    // Refs move last: who sees the release finds its packs.
    if new.pack {
        let before = repo.resolve_ref(new.follows.as_str())?.filter(|before| *before != commit);
        for from in std::iter::once(None).chain(before.map(Some)) {
            write_pack(&repo, commit, from, key.as_ref(), &PackOptions::default(), progress)?;
        }
    }
    repo.set_ref(version_ref.as_str(), commit)?;
    repo.set_ref(new.follows.as_str(), commit)?;
    repo.publish_releases()?;
    Ok(commit)
}

fn bindings(follows: &Ref, version: &Ref) -> Vec<String> {
    let mut names = vec![follows.to_string(), version.to_string()];
    names.sort();
    names
}
