//! Rollouts over machines that Vagrant made: waves, health between them, what is where when one fails, the way back, and the
//! repo served meanwhile. `vagrant` and `ssh` are stand-ins that play three hosts (`support/fake_hosts.py`); all else is real.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;

const HOSTS: [&str; 3] = ["control", "compute-1", "compute-2"];

/// Three hosts in a directory, and a repo that they look for.
struct Hosts {
    dir: tempfile::TempDir,
}

impl Hosts {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let programs = dir.path().join("bin");
        fs::create_dir_all(dir.path().join("repo")).unwrap();
        fs::create_dir(&programs).unwrap();
        fs::write(dir.path().join("repo/config"), "[core]\n").unwrap();
        let script =
            Path::new(&std::env::var_os("CARGO_MANIFEST_DIR").unwrap()).join("tests/support/fake_hosts.py");
        for name in ["ssh", "vagrant"] {
            symlink(&script, programs.join(name)).unwrap();
        }
        // Free now; taken by the command under test.
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        for host in HOSTS {
            let state = serde_json::json!({
                "repo": format!("http://127.0.0.1:{port}/releases"), "releases": ["1.0.0"], "booted": "1.0.0",
                "next": "1.0.0", "boot": 1, "log": [], "fails": null,
            });
            fs::write(dir.path().join(format!("{host}.json")), state.to_string()).unwrap();
        }
        Self { dir }
    }

    fn path(&self, host: &str) -> PathBuf {
        self.dir.path().join(format!("{host}.json"))
    }

    fn state(&self, host: &str) -> Value {
        serde_json::from_slice(&fs::read(self.path(host)).unwrap()).unwrap()
    }

    /// How the host fails: `upgrade`, `services`, or not at all.
    fn set_failure(&self, host: &str, fails: Option<&str>) {
        let mut state = self.state(host);
        state["fails"] = serde_json::json!(fails);
        fs::write(self.path(host), state.to_string()).unwrap();
    }

    fn booted(&self) -> [String; 3] {
        HOSTS.map(|host| self.state(host)["booted"].as_str().unwrap().to_owned())
    }

    /// Every word of a verb that the host heard, in order.
    fn log(&self, host: &str) -> Vec<String> {
        let state = self.state(host);
        state["log"].as_array().unwrap().iter().map(|line| line.as_str().unwrap().to_owned()).collect()
    }

    fn run(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_rackstep"));
        command.arg("cluster").args(arguments).arg("--vagrant").arg(self.dir.path());
        let programs =
            format!("{}:{}", self.dir.path().join("bin").display(), std::env::var("PATH").unwrap());
        command.env("PATH", programs).env("FAKE_HOSTS", self.dir.path()).output().unwrap()
    }

    fn upgrade(&self, more: &[&str]) -> Output {
        let repo = self.dir.path().join("repo");
        let mut arguments = vec!["upgrade", "--timeout=2", "--repo", repo.to_str().unwrap()];
        arguments.extend(more);
        self.run(&arguments)
    }
}

fn told(output: &Output, code: i32) -> (String, String) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (stdout, stderr) = (text(&output.stdout), text(&output.stderr));
    assert_eq!(output.status.code(), Some(code), "{stdout}\n{stderr}");
    (stdout, stderr)
}

#[test]
fn a_release_goes_over_all_machines_and_back() {
    let hosts = Hosts::new();
    let (table, _) = told(&hosts.run(&["status"]), 0);
    assert_eq!(table.lines().count(), 4, "{table}");
    assert!(table.contains("compute-2      on       compute-2.test   1.0.0"), "{table}");

    let (waves, _) = told(&hosts.upgrade(&["1.1.0", "--wave=1", "--dry-run"]), 0);
    assert_eq!(
        waves,
        "  1. control: upgrade to 1.1.0\n  2. compute-1: upgrade to 1.1.0\n  3. compute-2: upgrade to 1.1.0\n\
         state: nothing changed\n"
    );
    assert_eq!(hosts.booted(), ["1.0.0"; 3]);

    // The hosts fetch from the repo that the command serves, so this is its proof as well.
    let (stdout, stderr) = told(&hosts.upgrade(&["1.1.0", "--json"]), 0);
    let report: Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!(report["healthy"], true, "{stderr}");
    let waves: Vec<u64> = report["machines"]
        .as_array()
        .unwrap()
        .iter()
        .map(|machine| machine["wave"].as_u64().unwrap())
        .collect();
    assert_eq!(waves, [1, 2, 2]);
    assert_eq!(report["machines"][0]["bytes_pulled"], 7);
    assert!(stderr.contains("upgrade: pulling"), "{stderr}");
    assert_eq!(hosts.booted(), ["1.1.0"; 3]);

    // Again: no restart.
    let (again, _) = told(&hosts.upgrade(&["1.1.0"]), 0);
    assert!(!again.contains("restarted"), "{again}");
    assert_eq!(hosts.log("control"), ["upgrade 1.1.0", "reboot", "upgrade 1.1.0"]);

    told(&hosts.run(&["rollback", "--timeout=2"]), 0);
    assert_eq!(hosts.booted(), ["1.0.0"; 3]);
}

#[test]
fn a_wave_that_is_not_healthy_is_the_last_one() {
    let hosts = Hosts::new();
    hosts.set_failure("control", Some("services"));
    let (stdout, stderr) = told(&hosts.upgrade(&[]), 1);
    assert!(stdout.contains("wave 2  compute-1      untouched"), "{stdout}");
    assert!(
        stderr
            .contains("error: wave 1 is not healthy: control: after 2 s: waits for 1 of 1 containers: db/db"),
        "{stderr}"
    );
    assert!(stderr.ends_with("compute-1 was not touched; compute-2 was not touched\n"), "{stderr}");
    assert_eq!(hosts.booted(), ["1.1.0", "1.0.0", "1.0.0"]);

    // Back to what the others run; they are not moved, and one more rollback would be the wrong way.
    hosts.set_failure("control", None);
    told(&hosts.run(&["rollback", "--timeout=2"]), 0);
    assert_eq!(hosts.booted(), ["1.0.0"; 3]);
    assert_eq!(hosts.log("compute-1"), Vec::<String>::new());

    // The verb itself fails on a machine of the second wave: its neighbour ends what it began.
    hosts.set_failure("compute-1", Some("upgrade"));
    let (_, stderr) = told(&hosts.upgrade(&["1.1.0"]), 1);
    assert!(stderr.contains("wave 2 is not healthy: compute-1: upgrade: error: no space left"), "{stderr}");
    assert!(stderr.contains("state: control runs 1.1.0"), "{stderr}");
    assert_eq!(hosts.booted(), ["1.1.0", "1.0.0", "1.1.0"]);

    // The same command goes on from there.
    hosts.set_failure("compute-1", None);
    told(&hosts.upgrade(&["1.1.0"]), 0);
    assert_eq!(hosts.booted(), ["1.1.0"; 3]);
    let restarts = hosts.log("compute-2").iter().filter(|line| *line == "reboot").count();
    assert_eq!(restarts, 1);
}

#[test]
fn a_machine_that_does_not_answer_keeps_all_as_they_are() {
    let hosts = Hosts::new();
    hosts.set_failure("compute-2", Some("silent"));
    let (_, stderr) = told(&hosts.upgrade(&[]), 3);
    assert!(stderr.contains("error: compute-2 does not answer"), "{stderr}");
    assert_eq!(hosts.log("control"), Vec::<String>::new());
    // The others can go alone.
    let (waves, _) = told(&hosts.upgrade(&["1.1.0", "--only=compute-1", "--dry-run"]), 0);
    assert_eq!(waves, "  1. compute-1: upgrade to 1.1.0\nstate: nothing changed\n");
    let (_, stderr) = told(&hosts.upgrade(&["--only=compute-9"]), 2);
    assert!(stderr.contains("has no machine \"compute-9\", but control, compute-1, compute-2"), "{stderr}");
    let (_, stderr) = told(&hosts.upgrade(&["1.0; reboot"]), 2);
    assert!(stderr.contains("is no version, ref or commit"), "{stderr}");
}
