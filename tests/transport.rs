//! Releases on their way: committed on all cores, signed, packed, pulled; with real ostree repos and a server that cuts,
//! corrupts and lies. Needs root: owners and capabilities are part of what travels.

#[path = "transport/tree.rs"]
mod tree;

use rackstep::engine::repo::{CommitOptions, MetaValue, Mode, Repo, RepoError};
use rackstep::model::progress::Silent;
use tree::{odd_tree, ostree};

fn options(reference: &str) -> CommitOptions {
    CommitOptions {
        reference: Some(reference.parse().unwrap()),
        timestamp: 1_700_000_000,
        subject: "a release".into(),
        ..CommitOptions::default()
    }
}

#[test]
fn commit_has_the_checksum_that_ostree_gives() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("root");
    odd_tree(&root);
    for mode in [Mode::Archive, Mode::Bare] {
        let path = dir.path().join(format!("{mode:?}"));
        let repo = Repo::create(&path, mode).unwrap();
        let report = repo.commit_tree(&root, &options("test/odd"), &Silent).unwrap();
        ostree(&path, &["fsck"]);

        let theirs = dir.path().join(format!("{mode:?}-theirs"));
        let peer = Repo::create(&theirs, mode).unwrap();
        let tree = format!("--tree=dir={}", root.display());
        let checksum = ostree(
            &theirs,
            &["commit", "-b", "test/odd", "-s", "a release", "--timestamp=@1700000000", &tree],
        );
        assert_eq!(report.commit.hex(), checksum, "{mode:?}");
        let mut ours = repo.walk_objects(report.commit).unwrap();
        let mut peers = peer.walk_objects(report.commit).unwrap();
        ours.sort();
        peers.sort();
        assert_eq!(ours, peers);

        let again = repo.commit_tree(&root, &options("test/odd"), &Silent).unwrap();
        assert!(again.known);
        assert_eq!((again.commit, again.written), (report.commit, 0));
        assert_eq!(repo.read_file(report.commit, "/usr/bin/link").unwrap().len(), 3 << 20);
        let out = dir.path().join(format!("{mode:?}-out"));
        ostree(&path, &["checkout", "test/odd", out.to_str().unwrap()]);
        if mode == Mode::Bare {
            tree::assert_same_tree(&root, &out);
        }
    }
}

#[test]
fn revisions() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("root");
    std::fs::create_dir_all(root.join("usr/lib/rackstep")).unwrap();
    let repo = Repo::create(&dir.path().join("repo"), Mode::Archive).unwrap();
    let mut commits = Vec::new();
    for (version, timestamp) in [("1.0", 100), ("1.1", 200)] {
        std::fs::write(root.join("version"), version).unwrap();
        let options = CommitOptions {
            timestamp,
            metadata: vec![("version".into(), MetaValue::Text(version.into()))],
            ..options("os/x")
        };
        commits.push(repo.commit_tree(&root, &options, &Silent).unwrap().commit);
    }
    let cases = [("os/x", 1), ("1.0", 0), ("1.1", 1), (&commits[0].hex(), 0), (&commits[1].hex()[..12], 1)];
    for (text, expected) in cases {
        assert_eq!(repo.resolve(text).unwrap(), commits[expected], "{text}");
    }
    for text in ["os/y", "2.0", "abc", ""] {
        assert!(matches!(repo.resolve(text), Err(RepoError::NoRevision { .. })), "{text:?}");
    }
    let listed: Vec<_> =
        repo.releases().unwrap().releases.into_iter().map(|l| (l.commit, l.newest)).collect();
    assert_eq!(listed, [(commits[1], true), (commits[0], false)]);
}

#[test]
fn what_ostree_cannot_hold_is_refused_and_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("root");
    std::fs::create_dir_all(&root).unwrap();
    tree::run("mkfifo", &[root.join("pipe").to_str().unwrap()]);
    let repo = Repo::create(&dir.path().join("repo"), Mode::Archive).unwrap();
    let error = repo.commit_tree(&root, &options("x"), &Silent).unwrap_err();
    assert!(error.to_string().ends_with("pipe cannot be in a commit: it is a pipe"), "{error}");
    assert_eq!(repo.commits().unwrap(), []);
    assert_eq!(repo.refs().unwrap(), []);
}
