//! A served repo with releases and the hosts that pull them.

use std::fs;
use std::path::PathBuf;

use rackstep::model::Commit;
use rackstep::model::progress::Silent;
use rackstep::ostree::repo::{CommitOptions, CommitReport, MetaValue, Mode, Repo};
use rackstep::ostree::signature::{SecretKey, sign_commit};
use rackstep::release::pack::{PackOptions, PackReport, write_pack};
use rackstep::release::pull::{PullError, PullReport, PullRequest, is_complete, pull};

use crate::server::Server;
use crate::tree::{assert_same_tree, odd_tree, ostree};

pub const REF: &str = "test/os";

pub fn options(reference: &str) -> CommitOptions {
    CommitOptions {
        reference: Some(reference.parse().unwrap()),
        timestamp: 1_700_000_000,
        subject: "a release".into(),
        ..CommitOptions::default()
    }
}

/// A served repo with a signed, packed release, and room for hosts.
pub struct World {
    pub dir: tempfile::TempDir,
    pub repo: Repo,
    pub root: PathBuf,
    pub key: SecretKey,
    pub server: Server,
}

impl World {
    pub fn new() -> Self {
        Self::of(odd_tree)
    }

    /// With another tree.
    pub fn of(make: impl Fn(&std::path::Path)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("root");
        make(&root);
        let repo = Repo::create(&dir.path().join("served"), Mode::Archive).unwrap();
        let server = Server::start(repo.path());
        Self { repo, root, key: SecretKey::generate().unwrap(), server, dir }
    }

    pub fn commit(&self, version: &str) -> Commit {
        let metadata = vec![("version".into(), MetaValue::Text(version.into()))];
        let report: CommitReport =
            self.repo.commit_tree(&self.root, &CommitOptions { metadata, ..options(REF) }, &Silent).unwrap();
        assert!(sign_commit(&self.repo, report.commit, &self.key).unwrap());
        self.repo.publish_releases().unwrap();
        report.commit
    }

    pub fn pack(&self, to: Commit, from: Option<Commit>) -> PackReport {
        // Small shards: several of them, to be cut between and within.
        let options =
            PackOptions { shard_target: 512 << 10, update_shard_target: 512 << 10, ..PackOptions::default() };
        write_pack(&self.repo, to, from, Some(&self.key), &options, &Silent).unwrap()
    }

    pub fn host(&self, name: &str, mode: Mode) -> Repo {
        Repo::create(&self.dir.path().join(name), mode).unwrap()
    }

    pub fn request(&self, commit: Commit) -> PullRequest {
        PullRequest {
            repo_url: self.server.url(),
            commit,
            keys: vec![self.key.public()],
            reference: Some(format!("rackstep:{REF}")),
        }
    }

    pub fn pull(&self, commit: Commit, host: &Repo) -> Result<PullReport, PullError> {
        pull(&self.request(commit), host, &Silent)
    }

    /// The host's repo is sound, has the commit under its ref, and checks out to the tree that was committed.
    pub fn assert_arrived(&self, host: &Repo, commit: Commit) {
        ostree(host.path(), &["fsck"]);
        assert_eq!(host.resolve_ref(&format!("rackstep:{REF}")).unwrap(), Some(commit));
        assert!(is_complete(host, commit));
        let mut got = host.walk_objects(commit).unwrap();
        let mut expected = self.repo.walk_objects(commit).unwrap();
        got.sort();
        expected.sort();
        assert_eq!(got, expected);
        assert_nothing_left_behind(host);
    }

    pub fn assert_same_as_root(&self, host: &Repo, commit: Commit) {
        let out = self.dir.path().join(format!("out-{}", commit.short()));
        ostree(host.path(), &["checkout", &commit.hex(), out.to_str().unwrap()]);
        assert_same_tree(&self.root, &out);
        fs::remove_dir_all(&out).unwrap();
    }
}

pub fn assert_nothing_left_behind(repo: &Repo) {
    let in_dir = |path: &str, part: &str| -> Vec<PathBuf> {
        let entries = fs::read_dir(repo.path().join(path)).unwrap();
        entries.map(|e| e.unwrap().path()).filter(|p| p.to_string_lossy().contains(part)).collect()
    };
    assert_eq!(in_dir("tmp", "rackstep-"), Vec::<PathBuf>::new());
    assert_eq!(in_dir("state", ".shards"), Vec::<PathBuf>::new());
    assert_eq!(in_dir("state", ".commitpartial"), Vec::<PathBuf>::new());
}

/// No ref, and whatever is there is sound: the commit is at most marked partial.
pub fn assert_refused(host: &Repo, commit: Commit) {
    assert_eq!(host.refs().unwrap(), []);
    assert!(!is_complete(host, commit));
    // Partial commits are reported by fsck as such: check every object by itself.
    for head in fs::read_dir(host.path().join("objects")).unwrap() {
        for file in fs::read_dir(head.unwrap().path()).unwrap() {
            let path = file.unwrap().path();
            let hex = path.parent().unwrap().file_name().unwrap().to_str().unwrap().to_owned()
                + path.file_stem().unwrap().to_str().unwrap();
            let kind = path.extension().unwrap().to_str().unwrap();
            if kind != "commitmeta" {
                check_object(host, &hex, kind);
            }
        }
    }
}

pub fn check_object(repo: &Repo, hex: &str, kind: &str) {
    use rackstep::model::{Digest, ObjectKind, ObjectName};
    let digest = Digest::parse_hex(hex).unwrap();
    let kind = match kind {
        "dirtree" => ObjectKind::DirTree,
        "dirmeta" => ObjectKind::DirMeta,
        "commit" => ObjectKind::Commit,
        _ => {
            let mut file = repo.open_file(&digest).unwrap();
            let mut bytes = file.header.stream_prefix();
            std::io::Read::read_to_end(&mut file.content, &mut bytes).unwrap();
            assert_eq!(Digest::of(&bytes), digest);
            return;
        }
    };
    repo.read_metadata(&ObjectName::new(kind, digest)).unwrap();
}
