//! The story's book-keeping: what was composed, how long it took, what was seen.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use rackstep::model::status::ContainerStatus;
use serde_json::Value;

/// One run of the story.
pub struct Story {
    work: tempfile::TempDir,
    /// A repo that is composed already, for work on the later chapters.
    composed: Option<PathBuf>,
    /// Signs every release; the hosts trust nothing else.
    key: PathBuf,
    timings: Vec<(String, Duration)>,
    /// Bytes that the upgrade pulled.
    pub pulled: Option<u64>,
}

/// A composed release.
#[derive(Debug, Clone)]
pub struct Composed {
    pub commit: String,
    pub version: String,
    /// What `compose --json` said.
    pub answer: Value,
}

/// What was seen inside the machine.
#[derive(Debug, Clone, PartialEq)]
pub struct Observed {
    pub commit: String,
    pub version: String,
    pub kernel: String,
    pub keystone_version: String,
    pub keystone_image: String,
    /// What runs against what is pinned.
    pub containers: Vec<ContainerStatus>,
}

impl Story {
    /// Begins one. The environment's `variable` may name a repo that has the releases already.
    pub fn begin(variable: &str) -> Self {
        let composed = std::env::var_os(variable).map(PathBuf::from);
        let work = tempfile::Builder::new().prefix("rackstep-story-").tempdir_in("/var/tmp").unwrap();
        let key = work.path().join("release-key");
        if composed.is_none() {
            run(rackstep().args(["release", "keygen"]).arg(&key));
        }
        Self { work, composed, key, timings: Vec::new(), pulled: None }
    }

    /// The file of the keys that hosts trust; none for a repo that was composed before, by somebody with another key.
    pub fn public_key(&self) -> Option<PathBuf> {
        self.composed.is_none().then(|| self.key.with_extension("pub"))
    }

    /// What that file says.
    pub fn trusted_keys(&self) -> Vec<String> {
        self.public_key()
            .map(|file| std::fs::read_to_string(file).unwrap())
            .map(|text| text.lines().filter(|line| !line.starts_with('#')).map(str::to_owned).collect())
            .unwrap_or_default()
    }

    pub fn work(&self) -> &Path {
        self.work.path()
    }

    /// The repo of the releases.
    pub fn repo(&self) -> PathBuf {
        self.composed.clone().unwrap_or_else(|| self.work().join("repo"))
    }

    /// Runs `act` and remembers how long it took.
    pub fn timed<R>(&mut self, name: &str, act: impl FnOnce() -> R) -> R {
        eprintln!("--- {name}");
        let began = Instant::now();
        let result = act();
        let took = began.elapsed();
        eprintln!("--- {name}: {:.1} s", took.as_secs_f64());
        self.timings.push((name.to_owned(), took));
        result
    }

    /// Locks and composes one release into the story's repo.
    pub fn compose(&mut self, name: &str, treefile: &str, version: &str) -> Composed {
        if let Some(repo) = &self.composed {
            let names = std::fs::read_dir(repo.join("refs/heads/releases")).unwrap();
            let mut refs = names.map(|name| name.unwrap().path().join(version)).filter(|path| path.exists());
            let found = refs.next().unwrap_or_else(|| panic!("no release {version} in {}", repo.display()));
            let commit = std::fs::read_to_string(found).unwrap().trim().to_owned();
            return Composed { commit, version: version.to_owned(), answer: Value::Null };
        }
        let lock = self.work().join(format!("{}.lock.yaml", name.replace(' ', "-")));
        // Asked when it runs: checkouts share compiled tests.
        let treefile = Path::new(&std::env::var_os("CARGO_MANIFEST_DIR").unwrap()).join(treefile);
        let (repo, key) = (self.repo(), self.key.clone());
        self.timed(&format!("lock {name}"), || {
            run(rackstep().arg("lock").arg(&treefile).arg("--output").arg(&lock));
        });
        let answer = self.timed(&format!("compose {name}"), || {
            run(rackstep()
                .arg("compose")
                .arg(&treefile)
                .arg("--lock")
                .arg(&lock)
                .arg("--repo")
                .arg(&repo)
                .arg("--sign-key")
                .arg(&key)
                .arg("--json"))
        });
        let answer: Value = serde_json::from_str(&answer).unwrap();
        let text = |key: &str| answer[key].as_str().unwrap_or_else(|| panic!("{key} in {answer}")).to_owned();
        assert_eq!(text("version"), version);
        Composed { commit: text("commit"), version: text("version"), answer }
    }

    /// Makes a Vagrant box of release 1.0.0 of `name`; gives its catalogue.
    pub fn make_box(&mut self, name: &str) -> PathBuf {
        let boxes = self.work().join("boxes");
        let mut command = rackstep();
        command.args(["box", "1.0.0", "--size=10", "--repo"]).arg(self.repo()).arg("--output").arg(&boxes);
        command.args(self.public_key().map(|key| format!("--keys={}", key.display())));
        self.timed(&format!("rackstep box of {name}"), || run(&mut command));
        boxes.join(format!("{name}.json"))
    }

    /// Prints what took how long.
    pub fn print_timings(&self) {
        println!("\ntime");
        for (name, took) in &self.timings {
            println!("  {name:<34} {:>7.1} s", took.as_secs_f64());
        }
    }

    /// Prints what was composed, measured and seen.
    pub fn print_table(&self, releases: &[&Composed], seen: &[(&str, &Observed)]) {
        println!("\ncomposed");
        for release in releases {
            println!("  {} {}  {}", release.version, &release.commit[..10], summary(&release.answer));
        }
        self.print_timings();
        match self.pulled {
            Some(bytes) => println!("\nbytes pulled by the upgrade  {bytes}"),
            None => println!("\nbytes pulled by the upgrade  unknown"),
        }
        println!("\nseen inside the machine");
        println!(
            "  {:<20} {:<8} {:<12} {:<34} {:<10} keystone image Id",
            "", "release", "commit", "kernel", "keystone"
        );
        for (name, seen) in seen {
            println!(
                "  {name:<20} {:<8} {:<12} {:<34} {:<10} {}",
                seen.version,
                &seen.commit[..10],
                seen.kernel,
                seen.keystone_version,
                &seen.keystone_image[..19]
            );
        }
    }
}

fn summary(answer: &Value) -> String {
    let images = answer["images"].as_object().map_or(0, serde_json::Map::len);
    format!("{} packages, {images} images of {} bytes", answer["packages"], answer["image_bytes"])
}

impl Observed {
    /// Everything that runs is of `release`, and nothing else.
    pub fn require_exactly(&self, release: &Composed) {
        assert_eq!(self.commit, release.commit);
        assert_eq!(self.version, release.version);
        assert!(!self.containers.is_empty(), "no services");
        for container in &self.containers {
            assert_eq!(container.running, Some(container.expected), "{container:?}");
        }
    }
}

/// The program under test.
pub fn rackstep() -> Command {
    Command::new(env!("CARGO_BIN_EXE_rackstep"))
}

/// Runs a command that must succeed; gives its stdout. Its stderr goes to the test's.
pub fn run(command: &mut Command) -> String {
    let output = command.stderr(std::process::Stdio::inherit()).output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", output.status);
    String::from_utf8(output.stdout).unwrap()
}
