//! `rackstep release diff`: what an upgrade changes, and what it costs. Needs root.

#![allow(clippy::unwrap_used)]

#[path = "support/release.rs"]
mod release;
#[path = "support/tiny_image.rs"]
mod tiny_image;

use std::path::Path;
use std::process::{Command, Output};

use rackstep::model::progress::Silent;
use rackstep::ostree::repo::CommitOptions;
use rackstep::release::pack::{PackOptions, write_pack};
use release::{Recipe, Releases};

fn diff(repo: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_rackstep"));
    command.args(["release", "diff", "--repo"]).arg(repo).args(arguments).output().unwrap()
}

fn shown(repo: &Path, arguments: &[&str]) -> String {
    let output = diff(repo, arguments);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn what_an_upgrade_changes_and_costs() {
    let releases = Releases::new();
    let [one, two] = [1, 2].map(|version| releases.release(&Recipe::version(version), None));
    let repo = releases.repo.path();
    let text = shown(repo, &["1.0.0", "2.0.0"]);
    for line in [
        &format!("release 1.0.0 ({}) → release 2.0.0 ({})", one.commit.short(), two.commit.short()),
        "  ~ kernel 6.1.0-tiny → 6.2.0-tiny",
        "kernel arguments: 2",
        "  + release=2",
        "  - release=1",
        "container images: 1",
        "; no pack leads there",
    ] {
        assert!(text.contains(line), "{line:?} is not in\n{text}");
    }
    // The database stays as it is, and no pod or other file changes.
    assert!(!text.contains("database") && !text.contains("pods:") && !text.contains("other files"), "{text}");

    let pack =
        write_pack(&releases.repo, two.commit, Some(one.commit), None, &PackOptions::default(), &Silent);
    let answer: serde_json::Value =
        serde_json::from_str(&shown(repo, &["1.0.0", "2.0.0", "--json"])).unwrap();
    assert_eq!(answer["to_send"]["pack"], pack.unwrap().index.bytes);
    assert!(answer["to_send"]["objects"].as_u64().unwrap() > 16, "{answer}");
    assert_eq!(answer["images"][0]["after"], two.image("service").config.to_string());
    // There is none that leads back.
    assert!(shown(repo, &["2.0.0", "1.0.0"]).contains("no pack leads there"));
    let same = shown(repo, &["1.0.0", "1.0.0"]);
    assert!(
        same.contains("nothing that a release says of itself changes") && same.contains("0 objects"),
        "{same}"
    );
}

#[test]
fn a_commit_that_is_no_release_is_named() {
    let releases = Releases::new();
    releases.release(&Recipe::version(1), None);
    let tree = tempfile::tempdir().unwrap();
    let options = CommitOptions { reference: Some("other".parse().unwrap()), ..CommitOptions::default() };
    releases.repo.commit_tree(tree.path(), &options, &Silent).unwrap();
    let refused = diff(releases.repo.path(), &["1.0.0", "other"]);
    assert_eq!(refused.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("is no release"));
    assert_eq!(diff(releases.repo.path(), &["1.0.0", "9.9.9"]).status.code(), Some(2));
}
