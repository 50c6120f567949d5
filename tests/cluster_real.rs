//! A developer's cluster of two hosts with real releases: up, upgraded in waves, rolled back, down. The hosts are containers;
//! `RACKSTEP_PLATFORM=libvirt` or `qemu` has machines, which takes the better part of an hour without KVM.
//!
//! `RACKSTEP_STORY_REPO` may name a repo that has both releases already. Needs root.

#![allow(clippy::unwrap_used, clippy::print_stdout)]

mod support;

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use serde_json::Value;
use support::story::{begin, checkout};

/// Runs a verb of `rackstep cluster`, which must succeed, and gives its stdout.
fn cluster(dir: &Path, verb: &str, more: &[&str]) -> String {
    let began = Instant::now();
    let output = Command::new(env!("CARGO_BIN_EXE_rackstep"))
        .args(["cluster", verb])
        .args(more)
        .current_dir(dir)
        .env("XDG_STATE_HOME", dir)
        .stderr(Stdio::inherit())
        .output()
        .unwrap();
    let stdout = String::from_utf8(output.stdout).unwrap();
    println!("--- {verb} {}: {} s\n{stdout}", more.join(" "), began.elapsed().as_secs());
    assert!(output.status.success(), "{verb}: {}", output.status);
    stdout
}

/// Version that every machine runs, with all of its containers.
fn version(dir: &Path) -> String {
    let status: Value = serde_json::from_str(&cluster(dir, "status", &["--json"])).unwrap();
    let mut versions: Vec<String> = Vec::new();
    for machine in status["machines"].as_array().unwrap() {
        let status = &machine["status"];
        for container in status["services"].as_array().unwrap() {
            assert_eq!(container["running"], container["expected"], "{container}");
        }
        let deployments = status["deployments"].as_array().unwrap();
        let booted = deployments.iter().find(|deployment| deployment["commit"] == status["booted"]).unwrap();
        versions.push(booted["version"].as_str().unwrap().to_owned());
    }
    assert_eq!(versions.len(), 2);
    versions.dedup();
    assert_eq!(versions.len(), 1, "{versions:?}");
    versions.remove(0)
}

/// Takes the cluster down whatever happens.
struct Down<'a>(&'a Path);

impl Drop for Down<'_> {
    fn drop(&mut self) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_rackstep"));
        let _ = command.args(["cluster", "down"]).current_dir(self.0).env("XDG_STATE_HOME", self.0).status();
    }
}

#[test]
fn a_cluster_is_upgraded_and_rolled_back_in_waves() {
    let mut story = begin("RACKSTEP_STORY_REPO");
    let first = story.compose("first release", &checkout("host-image/openstack-host.yaml"), "1.0.0").unwrap();
    let next =
        story.compose("second release", &checkout("tests/releases/openstack-host-2.yaml"), "2.0.0").unwrap();
    let (first, next) = (first.version, next.version);
    let dir = tempfile::tempdir_in("/var/tmp").unwrap();
    let text = format!(
        "name: real-{}\nplatform: {}\nrepo: {}\nrelease: {first}\ndisk: 12\ntrusted_keys: {:?}\n\
         control: {{memory: 2048, cpus: 2}}\ncompute: {{count: 1, memory: 2048, cpus: 2}}\n",
        std::process::id(),
        std::env::var("RACKSTEP_PLATFORM").unwrap_or_else(|_| "container".to_owned()),
        story.repo().display(),
        story.trusted_keys().unwrap(),
    );
    fs::write(dir.path().join("cluster.yaml"), text).unwrap();
    let _down = Down(dir.path());

    cluster(dir.path(), "up", &[]);
    assert_eq!(version(dir.path()), first);
    let named = cluster(dir.path(), "ssh", &["compute-1", "--", "hostname && getent hosts control"]);
    assert!(named.starts_with("compute-1\n10.90.0.11 "), "{named}");

    cluster(dir.path(), "upgrade", &[&next]);
    assert_eq!(version(dir.path()), next);
    cluster(dir.path(), "rollback", &[]);
    assert_eq!(version(dir.path()), first);
    cluster(dir.path(), "down", &[]);
    assert!(!dir.path().join("rackstep/clusters").read_dir().unwrap().any(|_| true));
}
