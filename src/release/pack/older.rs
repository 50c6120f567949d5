//! Which file of the older release a new one is likely to come from.
//!
//! 1. The file of the same path;
//! 2. the file of the same path but for what changes from release to release: a layer's diff-id, and versions, be they in
//!    a kernel's directory, a library's name or a Python package's;
//! 3. a file of the same name in another directory, unless too many have that name.
//!
//! Of several, the one nearest in size. A bad guess costs time at compose, nothing else: the whole object is written if
//! that is smaller.

use std::collections::HashMap;
use std::fs;

use crate::model::{Commit, Digest, ObjectKind, ObjectName};
use crate::ostree::repo::{Repo, RepoError};

/// A name that more files have (`__init__.py`) says nothing.
const NAMESAKES: usize = 8;
/// A name shorter than this says nothing, wherever it is: `README`.
const NAME_LENGTH: usize = 7;

/// The files of an older release.
pub struct Older<'r> {
    repo: &'r Repo,
    paths: HashMap<String, Digest>,
    likenesses: HashMap<String, Vec<Digest>>,
    names: HashMap<String, Vec<Digest>>,
}

impl<'r> Older<'r> {
    /// Reads the directories of the release.
    pub fn of(repo: &'r Repo, commit: Commit) -> Result<Self, RepoError> {
        let mut older =
            Self { repo, paths: HashMap::new(), likenesses: HashMap::new(), names: HashMap::new() };
        repo.walk_paths(commit, &mut |path, object| {
            if object.kind != ObjectKind::File {
                return;
            }
            let digest = object.digest;
            older.paths.insert(path.to_owned(), digest);
            let likeness = likeness(path);
            if let Some(name) = name_of(&likeness) {
                let namesakes = older.names.entry(name.to_owned()).or_default();
                // One more than counts is enough to know that there are too many.
                if namesakes.len() <= NAMESAKES && !namesakes.contains(&digest) {
                    namesakes.push(digest);
                }
            }
            let alike = older.likenesses.entry(likeness).or_default();
            if !alike.contains(&digest) {
                alike.push(digest);
            }
        })?;
        Ok(older)
    }

    /// The file to compare with.
    pub fn find(&self, path: &str, new: &Digest) -> Option<Digest> {
        if let Some(same) = self.paths.get(path) {
            return Some(*same);
        }
        let likeness = likeness(path);
        let by_name = || {
            let namesakes = self.names.get(name_of(&likeness)?)?;
            Some(namesakes).filter(|namesakes| namesakes.len() <= NAMESAKES)
        };
        let candidates = self.likenesses.get(&likeness).or_else(by_name)?;
        let size = self.size(new);
        candidates.iter().copied().min_by_key(|digest| self.size(digest).abs_diff(size))
    }

    /// Bytes in the repo: near enough, without opening thousands of files.
    fn size(&self, digest: &Digest) -> u64 {
        let path = self.repo.object_path(&ObjectName::new(ObjectKind::File, *digest));
        fs::symlink_metadata(path).map_or(0, |stat| stat.len())
    }
}

fn name_of(likeness: &str) -> Option<&str> {
    likeness.rsplit('/').next().filter(|name| name.len() >= NAME_LENGTH)
}

/// The path with `*` for each digest and `#` for each version.
fn likeness(path: &str) -> String {
    let parts = path.split('/').map(|part| match part {
        part if part.len() == 64 && part.bytes().all(|byte| byte.is_ascii_hexdigit()) => "*".to_owned(),
        part => without_versions(part),
    });
    parts.collect::<Vec<_>>().join("/")
}

/// Each number, with the numbers and dots, dashes, plusses and tildes that follow it, becomes `#`.
fn without_versions(part: &str) -> String {
    let mut out = String::with_capacity(part.len());
    let mut inside = false;
    for character in part.chars() {
        match character {
            '0'..='9' if inside => {}
            '0'..='9' => {
                out.push('#');
                inside = true;
            }
            '.' | '+' | '~' | '-' if inside => {}
            other => {
                inside = false;
                out.push(other);
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_and_digests_do_not_count() {
        let layer =
            |digit: &str| format!("/usr/lib/rackstep/images/layers/{}/root/usr/bin/x", digit.repeat(64));
        let alike = [
            ("/usr/lib/libssl.so.3.0.17", "/usr/lib/libssl.so.3.0.2"),
            (
                "/usr/lib/modules/6.12.43+deb13-amd64/kernel/a.ko",
                "/usr/lib/modules/6.12.57+deb13-amd64/kernel/a.ko",
            ),
            ("/lib/libdns-9.18.49-1~deb12u1-Debian.so", "/lib/libdns-9.18.49-1~deb12u3-Debian.so"),
            ("/p/keystone-27.0.0.dist-info/RECORD", "/p/keystone-28.0.1.dist-info/RECORD"),
            (&layer("a"), &layer("0")),
        ];
        for (one, other) in alike {
            assert_eq!(likeness(one), likeness(other));
        }
        for (one, other) in
            [("/usr/lib/libssl.so.3", "/usr/lib/libcrypto.so.3"), ("/a/b", "/b/b"), ("/x", "/x1")]
        {
            assert_ne!(likeness(one), likeness(other));
        }
    }
}
