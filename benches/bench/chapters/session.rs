//! What chapters share within one run.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::mounts::{archive, sum};
use crate::images::{self, Edition};
use crate::measure::{self, Measured};
use crate::peers::{Dockerd, Nginx, Registry};
use crate::release::{Release, run, text};
use crate::{Bench, Outcome, report};

/// The ref of ours and of the peer.
pub const REF: &str = "bench/release";

/// Directories below the scratch directory that nginx serves.
const OURS: &str = "ours";
const HOSTS: &str = "hosts";

/// A download: what it took and how many bytes of bodies came.
#[derive(Debug, Clone)]
pub struct Download {
    pub seconds: f64,
    pub bytes: u64,
}

/// One run of the benchmark.
pub struct Session<'b> {
    pub bench: &'b Bench,
    pub releases: [Release; 2],
    /// Everything that was measured.
    pub runs: Vec<Measured>,
    commits: Option<[Measured; 2]>,
    packs: Option<[Measured; 3]>,
    nginx: Option<Nginx>,
    registry: Option<Registry>,
    hosts: Option<[String; 2]>,
    pulls: Option<[Download; 2]>,
    docker_pulls: Option<[Download; 2]>,
    host_pulls: Option<[Download; 2]>,
    peer_docker: Option<Dockerd>,
    host_docker: Option<Dockerd>,
    host_records: Option<Measured>,
    loaded_docker: Option<Dockerd>,
    docker_loads: Option<Measured>,
}

impl<'b> Session<'b> {
    pub fn new(bench: &'b Bench, releases: [Release; 2]) -> Self {
        let runs = releases.iter().filter_map(|release| release.split.clone()).collect();
        Self {
            bench,
            releases,
            runs,
            commits: None,
            packs: None,
            nginx: None,
            registry: None,
            hosts: None,
            pulls: None,
            docker_pulls: None,
            host_pulls: None,
            peer_docker: None,
            host_docker: None,
            host_records: None,
            loaded_docker: None,
            docker_loads: None,
        }
    }

    /// Runs a step of ours.
    pub fn step(&mut self, arguments: &[&str]) -> Outcome<Measured> {
        let measured = measure::step(arguments)?;
        self.runs.push(measured.clone());
        Ok(measured)
    }

    /// Runs a neighbour.
    pub fn peer(&mut self, what: &str, command: &mut Command) -> Outcome<Measured> {
        let measured = measure::peer(what, command)?;
        self.runs.push(measured.clone());
        Ok(measured)
    }

    /// A directory of this run.
    pub fn dir(&self, name: &str) -> PathBuf {
        self.bench.scratch.join(name)
    }

    /// Our repo, on the server.
    pub fn repo(&self) -> PathBuf {
        self.dir(OURS)
    }

    /// Both releases committed to our repo: the older into an empty one, the newer beside it.
    pub fn commits(&mut self) -> Outcome<[Measured; 2]> {
        if let Some(commits) = &self.commits {
            return Ok(commits.clone());
        }
        let repo = text(&self.repo());
        let trees = [text(&self.releases[0].tree), text(&self.releases[1].tree)];
        for tree in &trees {
            warm(tree)?;
        }
        let commits = [
            self.step(&["commit", &repo, &trees[0], REF, DEFLATE])?,
            self.step(&["commit", &repo, &trees[1], REF, DEFLATE])?,
        ];
        self.commits = Some(commits.clone());
        Ok(commits)
    }

    /// The packs of our repo: of the older release whole, of the newer whole, of the newer against the older.
    pub fn packs(&mut self) -> Outcome<[Measured; 3]> {
        if let Some(packs) = &self.packs {
            return Ok(packs.clone());
        }
        let [a, b] = self.commits()?;
        let repo = text(&self.repo());
        let (a, b) = (a.text("commit").to_owned(), b.text("commit").to_owned());
        let packs = [
            self.step(&["pack", &repo, &a])?,
            self.step(&["pack", &repo, &b])?,
            self.step(&["pack", &repo, &b, &a])?,
        ];
        self.packs = Some(packs.clone());
        Ok(packs)
    }

    /// The file server over this run's directory.
    pub fn nginx(&mut self) -> Outcome<&Nginx> {
        if self.nginx.is_none() {
            self.nginx = Some(Nginx::start(self.bench, &self.bench.scratch)?);
        }
        self.nginx.as_ref().ok_or_else(|| "nginx".into())
    }

    /// The registry with all images of both releases.
    pub fn registry(&mut self) -> Outcome<&Registry> {
        if self.registry.is_none() {
            let registry = Registry::start(self.bench)?;
            for release in &self.releases {
                for name in images::names(self.bench) {
                    report::say(&format!("  pushing {name} of release {}", release.edition.name()));
                    registry.push(&release.layouts.join(name), name, release.edition.name())?;
                }
            }
            self.registry = Some(registry);
        }
        self.registry.as_ref().ok_or_else(|| "registry".into())
    }

    /// Both host trees as the peer has them: commits of an archive repo made by ostree.
    pub fn hosts(&mut self) -> Outcome<[String; 2]> {
        if let Some(hosts) = &self.hosts {
            return Ok(hosts.clone());
        }
        let repo = self.dir(HOSTS);
        let mut commits = Vec::new();
        init(&repo, "archive")?;
        for release in self.releases.clone() {
            self.peer("ostree commit of the host alone", &mut ostree_commit(&repo, &release.host, REF))?;
            commits.push(rev_parse(&repo, REF)?);
        }
        let hosts = [commits.remove(0), commits.remove(0)];
        self.hosts = Some(hosts.clone());
        Ok(hosts)
    }

    /// Our two releases pulled to a host: from nothing, then the update.
    pub fn pulls(&mut self) -> Outcome<[Download; 2]> {
        if let Some(pulls) = &self.pulls {
            return Ok(pulls.clone());
        }
        self.packs()?;
        let commits = self.commits()?;
        let repo = text(&self.dir("host-ours"));
        let url = self.nginx()?.url(OURS);
        let mut pulls = Vec::new();
        for commit in &commits {
            let before = self.nginx()?.sent()?;
            let pulled = self.step(&["pull", &url, commit.text("commit"), &repo])?;
            if pulled.text("by") != "pack" {
                return Err(format!("the pull took no pack: {}", pulled.told).into());
            }
            pulls.push(Download { seconds: pulled.seconds, bytes: self.nginx()?.sent()? - before });
        }
        let pulls = [pulls[0].clone(), pulls[1].clone()];
        self.pulls = Some(pulls.clone());
        Ok(pulls)
    }

    /// The peer's host pulled with libostree: from nothing, then the update.
    pub fn host_pulls(&mut self) -> Outcome<[Download; 2]> {
        if let Some(pulls) = &self.host_pulls {
            return Ok(pulls.clone());
        }
        let hosts = self.hosts()?;
        let url = self.nginx()?.url(HOSTS);
        let repo = self.dir("host-peer");
        init(&repo, "bare")?;
        add_remote(&repo, &url)?;
        let mut pulls = Vec::new();
        for commit in &hosts {
            let before = self.nginx()?.sent()?;
            let pulled = self.peer("ostree pull of the host alone", &mut ostree_pull(&repo, commit))?;
            pulls.push(Download { seconds: pulled.seconds, bytes: self.nginx()?.sent()? - before });
        }
        let pulls = [pulls[0].clone(), pulls[1].clone()];
        self.host_pulls = Some(pulls.clone());
        Ok(pulls)
    }

    /// All images pulled by Docker: into an empty store, then those of the newer release.
    pub fn docker_pulls(&mut self) -> Outcome<[Download; 2]> {
        if let Some(pulls) = &self.docker_pulls {
            return Ok(pulls.clone());
        }
        self.registry()?;
        self.peer_docker = Some(Dockerd::start(self.bench, "docker-peer")?);
        let mut pulls = Vec::new();
        for edition in Edition::BOTH {
            let mut download = Download { seconds: 0.0, bytes: 0 };
            let before = self.registry()?.sent()?;
            for name in images::names(self.bench) {
                download.seconds += self.docker_pull(name, edition)?.seconds;
            }
            download.bytes = self.registry()?.sent()? - before;
            pulls.push(download);
        }
        let pulls = [pulls[0].clone(), pulls[1].clone()];
        self.docker_pulls = Some(pulls.clone());
        Ok(pulls)
    }

    /// One image pulled by the peer's Docker.
    pub fn docker_pull(&mut self, name: &str, edition: Edition) -> Outcome<Measured> {
        let image = self.registry()?.image(name, edition.name());
        let mut command = self.peer_docker()?.client(&["pull", "--quiet", &image]);
        self.peer(&format!("docker pull {name} of {}", edition.name()), &mut command)
    }

    /// What a host of release A does before Docker starts, when nothing is mounted and Docker has no image.
    pub fn host_records(&mut self) -> Outcome<Measured> {
        if let Some(records) = &self.host_records {
            return Ok(records.clone());
        }
        self.pulls()?;
        let [a, _] = self.commits()?;
        let commit = a.text("commit").to_owned();
        let (repo, layers, files) =
            (text(&self.dir("host-ours")), text(&self.dir("layers")), text(&self.releases[0].dir()));
        let mut docker = Dockerd::start(self.bench, "docker-host")?;
        let mut records = None;
        docker.restart(|data| {
            records = Some(self.step(&["records", &repo, &layers, &text(data), &commit, &files])?);
            Ok(())
        })?;
        self.host_docker = Some(docker);
        let records = records.ok_or("no records")?;
        self.host_records = Some(records.clone());
        Ok(records)
    }

    /// The Docker of a host whose images are mounted.
    pub fn host_docker(&self) -> Outcome<&Dockerd> {
        self.host_docker.as_ref().ok_or_else(|| "the host's Docker does not run".into())
    }

    /// All images of release A loaded, one after the other.
    pub fn docker_loads(&mut self) -> Outcome<Measured> {
        if let Some(loads) = &self.docker_loads {
            return Ok(loads.clone());
        }
        let docker = Dockerd::start(self.bench, "docker-loaded")?;
        let mut loads = Vec::new();
        for name in images::names(self.bench) {
            let archive = archive(self, name)?;
            let mut load = docker.client(&["load", "--quiet", "-i", &text(&archive)]);
            loads.push(self.peer(&format!("docker load {name}"), &mut load)?);
            fs::remove_file(archive)?;
        }
        self.loaded_docker = Some(docker);
        let loads = sum("docker load", &loads);
        self.docker_loads = Some(loads.clone());
        Ok(loads)
    }

    /// The Docker whose images were loaded.
    pub fn loaded_docker(&self) -> Outcome<&Dockerd> {
        self.loaded_docker.as_ref().ok_or_else(|| "no images were loaded".into())
    }

    /// The peer's Docker.
    pub fn peer_docker(&self) -> Outcome<&Dockerd> {
        self.peer_docker.as_ref().ok_or_else(|| "the peer's Docker does not run".into())
    }
}

impl Drop for Session<'_> {
    fn drop(&mut self) {
        // Mounts go before what they are mounted from.
        self.host_docker = None;
        let _ = measure::step(&["unmount", &text(&self.dir("host-ours")), &text(&self.dir("layers"))]);
    }
}

/// The level that `compose` takes.
pub const DEFLATE: &str = "2";

/// Reads a tree, so that whoever comes second does not find it in the page cache while whoever came first did not.
pub fn warm(tree: &str) -> Outcome<()> {
    // Through a pipe: tar reads nothing when it writes to /dev/null itself.
    run(Command::new("sh").args(["-c", "tar -c -f - -C \"$1\" . | cat > /dev/null", "sh", tree]))
}

/// Makes an ostree repo with ostree itself.
pub fn init(repo: &Path, mode: &str) -> Outcome<()> {
    fs::create_dir_all(repo)?;
    run(Command::new("ostree")
        .arg(format!("--repo={}", repo.display()))
        .args(["init", &format!("--mode={mode}")]))
}

/// `ostree commit` of a tree.
pub fn ostree_commit(repo: &Path, tree: &Path, reference: &str) -> Command {
    let mut command = Command::new("ostree");
    command
        .args(["commit", "--timestamp=@0", "--parent=none"])
        .arg(format!("--repo={}", repo.display()))
        .arg(format!("--branch={reference}"))
        .arg(format!("--tree=dir={}", tree.display()));
    command
}

/// The commit of a ref.
pub fn rev_parse(repo: &Path, reference: &str) -> Outcome<String> {
    let output = Command::new("ostree")
        .args(["rev-parse", reference])
        .arg(format!("--repo={}", repo.display()))
        .output()?;
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// Names a server.
pub fn add_remote(repo: &Path, url: &str) -> Outcome<()> {
    run(Command::new("ostree")
        .args(["remote", "add", "--no-gpg-verify", "bench", url])
        .arg(format!("--repo={}", repo.display())))
}

/// `ostree pull` of a commit, object by object.
pub fn ostree_pull(repo: &Path, commit: &str) -> Command {
    let mut command = Command::new("ostree");
    command
        .args(["pull", "--disable-static-deltas", "bench", commit])
        .arg(format!("--repo={}", repo.display()));
    command
}
