//! A host without a machine: a real sysroot in a directory, a real Docker daemon, and the real program run against both.
//!
//! What boots is read from the boot entries as a boot loader would, not from what the program says.

// Each test takes what it needs of it.
#![allow(dead_code, clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rackstep::formats::image::store::ImageStore;
use rackstep::model::progress::Silent;
use rackstep::model::{Commit, ReleasePins};
use rackstep::ostree::repo::Repo;
use rackstep::ostree::signature::PublicKey;
use rackstep::ostree::sysroot::Sysroot;
use rackstep::release::pull::{PullRequest, pull};
use rackstep::rim::layers::Layers;
use serde_json::json;

use crate::dockerd::Dockerd;
use crate::release::{REF, Released};

/// The host.
pub struct ScratchHost {
    _dir: tempfile::TempDir,
    pub sysroot: PathBuf,
    pub docker: Dockerd,
}

/// What the program did.
#[derive(Debug)]
pub struct Ran {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

impl Ran {
    /// The line that tells what is now true.
    pub fn state(&self) -> &str {
        let lines = || self.stderr.lines().chain(self.stdout.lines());
        lines().find_map(|line| line.strip_prefix("state: ")).unwrap_or_else(|| panic!("no state: {self}"))
    }

    /// Fails unless it ended with `code` and every one of `parts` stands in what it said on stderr.
    #[track_caller]
    pub fn failed_with(&self, code: i32, parts: &[&str]) {
        assert_eq!(self.code, code, "{self}");
        assert!(self.stderr.lines().any(|line| line.starts_with("error: ")), "{self}");
        for part in parts {
            assert!(self.stderr.contains(part), "{part:?} is not in {self}");
        }
        self.state();
    }

    #[track_caller]
    pub fn succeeded(&self) -> &Self {
        assert_eq!(self.code, 0, "{self}");
        self
    }

    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("{error}: {self}"))
    }
}

impl std::fmt::Display for Ran {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "exit code {}\n{}\n{}", self.code, self.stdout, self.stderr)
    }
}

impl ScratchHost {
    /// A host that runs `released`.
    pub fn install(url: &str, released: &Released, keys: &[PublicKey]) -> Self {
        Self::install_with(Dockerd::start(), url, released, keys)
    }

    /// The same, with a Docker that the test chose.
    pub fn install_with(docker: Dockerd, url: &str, released: &Released, keys: &[PublicKey]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let sysroot = dir.path().join("sysroot");
        Self::install_in(dir, sysroot, docker, url, released, keys)
    }

    /// The same, in places that the test chose.
    pub fn install_in(
        dir: tempfile::TempDir,
        sysroot: PathBuf,
        docker: Dockerd,
        url: &str,
        released: &Released,
        keys: &[PublicKey],
    ) -> Self {
        fs::create_dir_all(sysroot.join("boot")).unwrap();
        let ostree = Sysroot::init(&sysroot, "none").unwrap();
        let repo = Repo::open(&ostree.repo_path()).unwrap();
        let request = PullRequest {
            repo_url: url.to_owned(),
            commit: released.commit,
            keys: keys.to_vec(),
            reference: Some(format!("rackstep:{REF}")),
        };
        pull(&request, &repo, &Silent).unwrap();
        let arguments = ["root=UUID=1", "rw", "quiet", "release=1", "console=ttyS0"].map(str::to_owned);
        let checkout = ostree.deploy_first(released.commit, &REF.parse().unwrap(), &arguments).unwrap();
        let trusted: Vec<String> = keys.iter().map(PublicKey::render).collect();
        let config = json!({
            "format": 1, "name": "control-1", "address": "10.0.0.5", "ref": REF, "repo": url, "trusted_keys": trusted,
            "kernel_arguments": ["console=ttyS0"],
        });
        fs::create_dir_all(checkout.join("etc/rackstep")).unwrap();
        fs::write(checkout.join("etc/rackstep/host.json"), config.to_string()).unwrap();
        let host = Self { _dir: dir, sysroot, docker };
        host.assert_bootable(&[released.commit]);
        host
    }

    /// Runs the program's `verb` on this host.
    pub fn run(&self, verb: &str, arguments: &[&str]) -> Ran {
        self.run_with_docker(&self.docker.url(), verb, arguments)
    }

    pub fn run_with_docker(&self, url: &str, verb: &str, arguments: &[&str]) -> Ran {
        let output = self.command(url, verb, arguments).output().unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let (stdout, stderr) = (text(&output.stdout), text(&output.stderr));
        Ran { code: output.status.code().unwrap_or(-1), stdout, stderr }
    }

    /// Starts the program's `verb` and kills it as soon as it has said a line that begins with `words`, or when it ends.
    pub fn kill_after(&self, words: &str, verb: &str, arguments: &[&str]) {
        let mut child =
            self.command(&self.docker.url(), verb, arguments).stderr(Stdio::piped()).spawn().unwrap();
        let stderr = BufReader::new(child.stderr.take().unwrap());
        let found = stderr.lines().map_while(Result::ok).any(|line| line.starts_with(words));
        let _ = child.kill();
        child.wait().unwrap();
        assert!(found, "it never said {words:?}");
    }

    fn command(&self, docker: &str, verb: &str, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_rackstep"));
        command.arg(verb).arg("--sysroot").arg(&self.sysroot).args(["--docker-host", docker]);
        command.arg("--docker-root").arg(self.docker.data_root()).args(arguments);
        command
    }

    /// Every boot entry, byte for byte, by the name of its file; and which set of them counts.
    pub fn entries(&self) -> BTreeMap<String, Vec<u8>> {
        let loader = self.sysroot.join("boot/loader");
        let mut entries: BTreeMap<String, Vec<u8>> = fs::read_dir(loader.join("entries"))
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .map(|path| (path.file_name().unwrap().to_string_lossy().into_owned(), fs::read(path).unwrap()))
            .collect();
        let target = fs::read_link(&loader).unwrap();
        entries.insert("loader".to_owned(), target.into_os_string().into_encoded_bytes());
        entries
    }

    /// Kernel arguments in the boot entries, without those that name deployment and release; first those that boot by themselves.
    pub fn kernel_arguments(&self) -> Vec<String> {
        let mut found: Vec<(String, String)> = Vec::new();
        for (name, bytes) in self.entries().into_iter().filter(|(name, _)| name != "loader") {
            let text = String::from_utf8(bytes).unwrap();
            let options = text.lines().find_map(|line| line.strip_prefix("options ")).unwrap();
            let rest: Vec<&str> = options
                .split(' ')
                .filter(|word| !word.starts_with("ostree=") && !word.starts_with("rackstep.release="))
                .collect();
            found.push((name, rest.join(" ")));
        }
        found.sort();
        found.into_iter().rev().map(|(_, options)| options).collect()
    }

    /// The deployments that the boot entries name, first the one that boots by itself.
    pub fn bootable(&self) -> Vec<(Commit, PathBuf)> {
        let mut found = Vec::new();
        for (name, bytes) in self.entries() {
            if name == "loader" {
                continue;
            }
            let text = String::from_utf8(bytes).unwrap();
            let line =
                |key: &str| text.lines().find_map(|line| line.strip_prefix(key)).unwrap().trim().to_owned();
            // What the entry boots must be there as well.
            for key in ["linux ", "initrd "] {
                let path = line(key);
                let path = path.trim_start_matches('/');
                let boot = self.sysroot.join("boot");
                assert!(boot.join(path).exists() || self.sysroot.join(path).exists(), "{text}");
            }
            let options = line("options ");
            let link = options.split(' ').find_map(|word| word.strip_prefix("ostree=/")).unwrap();
            let checkout = self.sysroot.join(link).canonicalize().unwrap();
            let commit =
                checkout.file_name().unwrap().to_str().unwrap().split('.').next().unwrap().parse().unwrap();
            let version: u32 = line("version ").parse().unwrap();
            found.push((version, commit, checkout));
        }
        found.sort_by_key(|(version, ..)| std::cmp::Reverse(*version));
        found.into_iter().map(|(_, commit, checkout)| (commit, checkout)).collect()
    }

    /// **The invariant**: exactly `expected` is bootable, in that order, every object of it is good, and every image that any
    /// of it pins can be mounted.
    #[track_caller]
    pub fn assert_bootable(&self, expected: &[Commit]) {
        let bootable = self.bootable();
        let commits: Vec<Commit> = bootable.iter().map(|(commit, _)| *commit).collect();
        assert_eq!(commits, expected);
        let repo = Repo::open(&self.sysroot.join("ostree/repo")).unwrap();
        for (commit, checkout) in bootable {
            let (store, pins) = release_at(&checkout, commit);
            assert!(pins.images().all(|(_, image)| store.layer_without_tree(image).is_none()));
            let _ = repo.verify_release(commit, &Silent).unwrap();
        }
    }

    /// What rackstep-records.service does between two runs of Docker.
    pub fn reboot_docker(&mut self) -> Ran {
        self.docker.stop();
        let ran = self.run("boot", &["--records"]);
        self.docker.run();
        ran
    }

    /// Layers that are mounted.
    pub fn layers(&self) -> Layers {
        Layers::new(self.sysroot.join("run/rackstep/layers"), &self.sysroot.join("ostree/repo"))
    }

    /// Ids of all images in Docker.
    pub fn images(&self) -> Vec<String> {
        self.docker.connect().observe_images().unwrap().keys().map(ToString::to_string).collect()
    }

    /// Everything in the sysroot but libostree's lock: paths, sizes, times.
    pub fn listing(&self) -> Vec<String> {
        use std::os::unix::fs::MetadataExt as _;
        // Taking the lock makes its file, and an act that was begun is taken note of, however it ends.
        let state = self.sysroot.join("ostree/deploy/rackstep/var/lib");
        let of_lock = [
            self.sysroot.join("ostree"),
            self.sysroot.join("ostree/lock"),
            state.join("rackstep/history.json"),
            state.join("rackstep"),
            state.clone(),
            state.parent().unwrap().to_owned(),
        ];
        let entries = walkdir::WalkDir::new(&self.sysroot).sort_by_file_name().into_iter();
        entries
            .map(Result::unwrap)
            .filter(|entry| !of_lock.iter().any(|path| path == entry.path()))
            .map(|entry| {
                let stat = fs::symlink_metadata(entry.path()).unwrap();
                let path = entry.path().strip_prefix(&self.sysroot).unwrap();
                format!("{} {} {}.{}", path.display(), stat.size(), stat.mtime(), stat.mtime_nsec())
            })
            .collect()
    }

    /// Fails when an object of the host's repo is not what its name says.
    #[track_caller]
    pub fn assert_repo_sound(&self) {
        let repo = format!("--repo={}", self.sysroot.join("ostree/repo").display());
        let output = Command::new("ostree").args(["fsck", "--all", &repo]).output().unwrap();
        let said = [output.stdout, output.stderr].concat();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&said));
    }
}

impl Drop for ScratchHost {
    fn drop(&mut self) {
        self.docker.stop();
        let layers = self.layers();
        for layer in layers.mounted().unwrap_or_default() {
            let _ = layers.unmount(layer);
        }
    }
}

fn release_at(checkout: &Path, commit: Commit) -> (ImageStore, ReleasePins) {
    let release = checkout.join("usr/lib/rackstep");
    let pins = ReleasePins::parse(commit, &fs::read(release.join("pins.json")).unwrap()).unwrap();
    (ImageStore::new(release.join("images")), pins)
}
