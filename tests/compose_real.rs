//! A small tree of real packages, composed for real: twice, with separate work, the same commit.
//!
//! Needs root, the machine's mirror (or a warm cache) and mmdebstrap; no kernel, no services.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

const TREEFILE: &str = "name: tiny\nref: test/tiny\nversion: \"1.0\"\nsuites: [trixie]\npackages: [netbase]\nfiles: root\nkernel_arguments: [quiet]\npostprocess: [touch.sh]\n";

fn rackstep(dir: &Path, cache: Option<&Path>, arguments: &[&str]) -> Value {
    let mut command = Command::new(env!("CARGO_BIN_EXE_rackstep"));
    command.args(arguments).arg("--json").current_dir(dir);
    if let Some(cache) = cache {
        command.env("RACKSTEP_CACHE", cache);
    }
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

fn ostree(dir: &Path, arguments: &[&str]) -> String {
    let output = Command::new("ostree").args(arguments).current_dir(dir).output().unwrap();
    assert!(output.status.success(), "ostree {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn the_same_lock_gives_the_same_commit() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    fs::write(dir.join("tiny.yaml"), TREEFILE).unwrap();
    fs::create_dir_all(dir.join("root/etc")).unwrap();
    fs::write(dir.join("root/etc/motd"), "tiny\n").unwrap();
    fs::write(
        dir.join("touch.sh"),
        "#!/bin/sh\nset -e\ntest -e /proc/self\necho done > /usr/lib/postprocessed\n",
    )
    .unwrap();
    Command::new("chmod").args(["755", "touch.sh"]).current_dir(dir).status().unwrap();
    // Package files come from the shared cache when it has them: the mirror is not what is tested here.
    let shared = rackstep::release::tree::cache::Cache::open(None).unwrap();
    let locked = rackstep(dir, None, &["lock", "tiny.yaml"]);
    assert!(locked["packages"].as_u64().unwrap() > 50, "{locked}");

    // Two caches: nothing but the package files is common to the two composes.
    let mut commits = Vec::new();
    for name in ["one", "two"] {
        let cache = dir.join(name);
        fs::create_dir_all(&cache).unwrap();
        let debs = shared.dir().join("debs");
        fs::create_dir_all(&debs).unwrap();
        std::os::unix::fs::symlink(&debs, cache.join("debs")).unwrap();
        let repo = format!("repo-{name}");
        let report = rackstep(dir, Some(&cache), &["compose", "tiny.yaml", "--repo", &repo]);
        assert_eq!(report["unchanged"], false);
        commits.push(report["commit"].as_str().unwrap().to_owned());
    }
    assert_eq!(commits[0], commits[1]);

    let again = rackstep(dir, Some(&dir.join("one")), &["compose", "tiny.yaml", "--repo", "repo-one"]);
    assert_eq!(
        (&again["unchanged"], &again["commit"]),
        (&Value::Bool(true), &Value::String(commits[0].clone()))
    );

    let repo = "--repo=repo-one";
    ostree(dir, &["fsck", repo, "--quiet"]);
    assert_eq!(ostree(dir, &["rev-parse", repo, "releases/tiny/1.0"]).trim(), commits[0]);
    let files = ostree(dir, &["ls", repo, "-R", "test/tiny"]);
    for expected in [
        "/usr/etc/motd",
        "/usr/lib/postprocessed",
        "/usr/bin/rackstep",
        "/usr/lib/rackstep/release.json",
        "/usr/lib/rackstep/pins.json",
    ] {
        assert!(files.lines().any(|line| line.ends_with(&format!(" {expected}"))), "{expected} is missing");
    }
    assert!(!files.contains("/var/lib/dpkg"), "/var is empty");
    let release: Value =
        serde_json::from_str(&ostree(dir, &["cat", repo, "test/tiny", "/usr/lib/rackstep/release.json"]))
            .unwrap();
    assert_eq!((&release["name"], &release["version"]), (&Value::from("tiny"), &Value::from("1.0")));
    assert!(release["packages"]["netbase"].is_string());

    // One changed file: another commit, from the cached packages.
    fs::write(dir.join("root/etc/motd"), "changed\n").unwrap();
    // Under the same version only with consent: what 1.0 means to a host must not change by itself.
    let compose = ["compose", "tiny.yaml", "--repo", "repo-one"];
    let refused = Command::new(env!("CARGO_BIN_EXE_rackstep"))
        .args(compose)
        .current_dir(dir)
        .env("RACKSTEP_CACHE", dir.join("one"))
        .output()
        .unwrap();
    let told = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert_eq!(refused.status.code(), Some(3), "{told}");
    assert!(told.contains("version 1.0 is release ") && told.contains("--replace"), "{told}");
    assert_eq!(ostree(dir, &["rev-parse", "--repo=repo-one", "releases/tiny/1.0"]).trim(), commits[0]);
    let replace: Vec<&str> = compose.into_iter().chain(["--replace"]).collect();
    let changed = rackstep(dir, Some(&dir.join("one")), &replace);
    assert_eq!(changed["unchanged"], false);
    assert_ne!(changed["commit"], commits[0]);
}
