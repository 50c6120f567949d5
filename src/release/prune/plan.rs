//! What may go from a server's repo: releases that somebody names, or that are older than the newest few; the packs that
//! bring them; shards that no pack names, and what a writer left unfinished.
//!
//! 1. A release that a ref follows stays, whatever is asked: hosts that follow the ref would find nothing;
//! 2. an update *from* a release that goes stays: hosts that run it can still take it.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroUsize;

use serde::Serialize;

use crate::model::commit::{RELEASE_REFS, name_in_ref};
use crate::model::{Commit, Digest};

/// A release of the repo.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Release {
    /// Its commit.
    pub commit: Commit,
    /// The version that people say.
    pub version: Option<String>,
    /// Seconds since 1970: the commit's own time.
    pub created: u64,
    /// Refs that point at it.
    pub refs: Vec<String>,
}

/// What was found in the repo.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Found {
    /// Every release.
    pub releases: Vec<Release>,
    /// Every commit that packs bring, with the shards that they name.
    pub packs: BTreeMap<Commit, BTreeSet<Digest>>,
    /// Every shard with its bytes.
    pub shards: BTreeMap<Digest, u64>,
    /// Files that a writer left behind: path below the repo, with their bytes.
    pub unfinished: BTreeMap<String, u64>,
}

/// Which releases are to go.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Wish {
    /// These.
    pub delete: BTreeSet<Commit>,
    /// Of each name all but so many, the newest, and whatever has no name any more.
    pub keep: Option<NonZeroUsize>,
}

/// Decided: what goes, in this order.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Plan {
    /// Releases that stay.
    pub kept: usize,
    /// Releases that go.
    pub releases: Vec<Release>,
    /// Commits whose packs go: of releases that go or are gone.
    pub packs: Vec<Commit>,
    /// Shards that no pack names any more.
    pub shards: Vec<Digest>,
    /// What a writer left behind.
    pub unfinished: Vec<String>,
    /// Bytes of shards and of what was left behind.
    pub bytes: u64,
}

/// A release that must not go.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("release {commit} stays: the ref {reference} follows it")]
pub struct Followed {
    /// The release.
    pub commit: Commit,
    /// The ref.
    pub reference: String,
}

/// Plans `release prune`.
pub fn plan_prune(found: &Found, wish: &Wish) -> Result<Plan, Followed> {
    for release in found.releases.iter().filter(|release| wish.delete.contains(&release.commit)) {
        if let Some(reference) = following(release) {
            return Err(Followed { commit: release.commit, reference: reference.to_owned() });
        }
    }
    let too_old = wish.keep.map(|keep| too_old(&found.releases, keep)).unwrap_or_default();
    let goes = |release: &Release| wish.delete.contains(&release.commit) || too_old.contains(&release.commit);
    let (releases, kept): (Vec<Release>, Vec<Release>) = found.releases.iter().cloned().partition(goes);
    let stays: BTreeSet<Commit> = kept.iter().map(|release| release.commit).collect();
    let (staying, going): (Vec<_>, Vec<_>) = found.packs.iter().partition(|(to, _)| stays.contains(to));
    let named: BTreeSet<&Digest> = staying.into_iter().flat_map(|(_, shards)| shards).collect();
    let free = found.shards.iter().filter(|(shard, _)| !named.contains(shard));
    let shards_bytes: u64 = free.clone().map(|(_, bytes)| bytes).sum();
    Ok(Plan {
        kept: kept.len(),
        releases,
        packs: going.into_iter().map(|(to, _)| *to).collect(),
        shards: free.map(|(shard, _)| *shard).collect(),
        unfinished: found.unfinished.keys().cloned().collect(),
        bytes: shards_bytes + found.unfinished.values().sum::<u64>(),
    })
}

/// The ref that hosts follow to a release: one that does not merely name its version.
fn following(release: &Release) -> Option<&str> {
    release.refs.iter().map(String::as_str).find(|name| !name.starts_with(RELEASE_REFS))
}

fn too_old(releases: &[Release], keep: NonZeroUsize) -> BTreeSet<Commit> {
    let mut newest: Vec<&Release> = releases.iter().collect();
    newest.sort_by_key(|release| (Reverse(release.created), release.commit));
    let mut kept: BTreeMap<&str, usize> = BTreeMap::new();
    let mut too_old = BTreeSet::new();
    for release in newest {
        let mut stays = following(release).is_some();
        for name in release.refs.iter().filter_map(|name| name_in_ref(name)) {
            let count = kept.entry(name).or_default();
            *count += 1;
            stays |= *count <= keep.get();
        }
        if !stays {
            too_old.insert(release.commit);
        }
    }
    too_old
}

#[cfg(test)]
mod tests {
    use super::*;

    fn commit(letter: char) -> Commit {
        letter.to_string().repeat(64).parse().unwrap()
    }

    fn digest(name: &str) -> Digest {
        Digest::of(name.as_bytes())
    }

    fn release(letter: char, created: u64, refs: &[&str]) -> Release {
        let refs = refs.iter().map(|name| (*name).to_owned()).collect();
        Release { commit: commit(letter), version: None, created, refs }
    }

    /// 1.0 and 1.1 of a host, the second followed by hosts; a build of 1.1 that was composed again; another host's 7.
    fn found() -> Found {
        Found {
            releases: vec![
                release('a', 1, &["releases/host/1.0"]),
                release('b', 3, &["main", "releases/host/1.1"]),
                release('c', 2, &[]),
                release('d', 0, &["releases/other/7"]),
            ],
            packs: [
                (commit('a'), [digest("base"), digest("old")].into()),
                (commit('b'), [digest("base"), digest("new"), digest("a to b")].into()),
            ]
            .into(),
            shards: ["base", "old", "new", "a to b", "lost"].map(|name| (digest(name), 10)).into(),
            unfinished: [("packs/shards/.tmp-x".to_owned(), 3)].into(),
        }
    }

    fn shards(names: &[&str]) -> Vec<Digest> {
        let mut digests: Vec<Digest> = names.iter().map(|name| digest(name)).collect();
        digests.sort();
        digests
    }

    #[test]
    fn without_a_wish_only_what_nobody_names_goes() {
        let plan = plan_prune(&found(), &Wish::default()).unwrap();
        let unfinished = vec!["packs/shards/.tmp-x".to_owned()];
        let shards = shards(&["lost"]);
        assert_eq!(plan, Plan { kept: 4, shards, unfinished, bytes: 13, ..Plan::default() });
    }

    #[test]
    fn a_deleted_release_takes_its_packs_and_leaves_the_update_from_it() {
        let wish = Wish { delete: [commit('a')].into(), keep: None };
        let plan = plan_prune(&found(), &wish).unwrap();
        assert_eq!((plan.kept, plan.packs), (3, vec![commit('a')]));
        assert_eq!(plan.releases, [found().releases[0].clone()]);
        assert_eq!(plan.shards, shards(&["old", "lost"]));
        assert_eq!(plan.bytes, 23);
    }

    #[test]
    fn what_hosts_follow_stays() {
        let wish = Wish { delete: [commit('b')].into(), keep: None };
        let refused = plan_prune(&found(), &wish).unwrap_err();
        assert_eq!(refused, Followed { commit: commit('b'), reference: "main".into() });
        // Also when it is not among the newest.
        let mut found = found();
        found.releases[1].created = 0;
        let wish = Wish { keep: NonZeroUsize::new(1), ..Wish::default() };
        let gone: Vec<Commit> =
            plan_prune(&found, &wish).unwrap().releases.iter().map(|release| release.commit).collect();
        assert_eq!(gone, [commit('c')]);
    }

    #[test]
    fn the_newest_of_each_name_are_kept() {
        let keep = |count| {
            let wish = Wish { keep: NonZeroUsize::new(count), ..Wish::default() };
            let plan = plan_prune(&found(), &wish).unwrap();
            plan.releases.iter().map(|release| release.commit).collect::<Vec<_>>()
        };
        assert_eq!(keep(1), [commit('a'), commit('c')]);
        assert_eq!(keep(2), [commit('c')]);
    }

    #[test]
    fn packs_of_a_commit_that_is_gone_go() {
        let mut found = found();
        found.releases.remove(0);
        assert_eq!(plan_prune(&found, &Wish::default()).unwrap().packs, [commit('a')]);
    }
}
