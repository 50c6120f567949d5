//! What `rackstep lock` and `rackstep compose` say to people who wrote something wrong: text, exit code, and what is true.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use tempfile::TempDir;

const TREEFILE: &str = "name: tiny\nref: test/tiny\nversion: \"1.0\"\nsuites: [trixie]\npackages: [bash]\n";

const LOCK: &str = "format: 1\nname: tiny\ncreated: 1700000000\nsuites: [trixie]\narchitecture: amd64\nrequested: [bash]\nbinaries: []\nimages: {}\npackages: []\n";

/// A directory with a treefile, and the program run in it.
struct Project {
    dir: TempDir,
}

impl Project {
    fn new(treefile: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("tiny.yaml"), treefile).unwrap();
        Self { dir }
    }

    fn write(&self, name: &str, text: &str) {
        let path = self.dir.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    fn rackstep(&self, arguments: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_rackstep"))
            .args(arguments)
            .current_dir(self.dir.path())
            .env("RACKSTEP_CACHE", self.dir.path().join("cache"))
            .output()
            .unwrap()
    }

    fn compose(&self) -> Output {
        self.rackstep(&["compose", "tiny.yaml", "--repo", "repo"])
    }
}

fn require(output: &Output, code: i32, heading: &str, state: &str) {
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(code), "{told}");
    assert!(told.contains(heading), "{told}\nexpected {heading}");
    assert_eq!(told.trim_end().lines().last(), Some(format!("state: {state}").as_str()), "{told}");
    assert!(output.stdout.is_empty());
}

#[test]
fn a_broken_treefile_is_told_by_file_and_line() {
    let table = [
        (TREEFILE.replace("packages:", "pakages:"), "error: tiny.yaml:5:1: unknown field `pakages`"),
        (TREEFILE.replace("[bash]", "[bash"), "error: tiny.yaml:6:1: did not find expected"),
        (
            TREEFILE.replace("test/tiny", "test//tiny"),
            "error: tiny.yaml:2:6: ref: \"test//tiny\" is not a ref",
        ),
        (format!("{TREEFILE}files: root\n"), "error: tiny.yaml:6:8: files: directory root does not exist"),
        (
            format!("{TREEFILE}services:\n- web\n"),
            "error: tiny.yaml:7:3: services: directory web does not exist",
        ),
        (
            format!("{TREEFILE}images: {{web: {{recipe: web.yaml}}}}\n"),
            "error: tiny.yaml:6:10: images: web: recipe web.yaml does not exist",
        ),
    ];
    for (text, heading) in table {
        let project = Project::new(&text);
        require(&project.compose(), 2, heading, "repo unchanged");
        require(&project.rackstep(&["lock", "tiny.yaml"]), 2, heading, "no lock written");
        assert!(!project.dir.path().join("repo").exists());
        assert!(!project.dir.path().join("tiny.lock.yaml").exists());
    }
    let project = Project::new(TREEFILE);
    let output = project.rackstep(&["compose", "none.yaml", "--repo", "repo"]);
    require(&output, 2, "error: none.yaml: cannot read none.yaml", "repo unchanged");
}

#[test]
fn a_broken_service_is_told_by_file_and_line() {
    let project = Project::new(&format!("{TREEFILE}services: [web]\n"));
    project.write("web/service.yaml", "name: web\nimages:\n  web: {recipe: image.yaml}\npods: [pod.yaml]\n");
    project.write("web/image.yaml", "name: web\n");
    project.write(
        "web/pod.yaml",
        "apiVersion: v1\nkind: Pod\nmetadata: {name: web}\nspec:\n  hostNetwork: true\n  containers:\n  - {name: web, image: nginx}\n",
    );
    let heading =
        "error: web/pod.yaml:7:24: pod web: image \"nginx\" is not among the service's images (web)";
    require(&project.compose(), 2, heading, "repo unchanged");
}

#[test]
fn a_lock_that_is_missing_broken_or_stale() {
    let project = Project::new(TREEFILE);
    let output = project.compose();
    require(&output, 2, "error: tiny.lock.yaml cannot be read", "repo unchanged");
    assert!(String::from_utf8_lossy(&output.stderr).contains("hint: run `rackstep lock`"));
    let table = [
        (LOCK.replace("format: 1", "format: 7"), "tiny.lock.yaml:1:9: format 7 is not known, expected 1"),
        (LOCK.replace("created:", "creatd:"), "tiny.lock.yaml:3:1: unknown field `creatd`"),
        (
            LOCK.replace("[bash]", "[vim]"),
            "tiny.lock.yaml does not fit the treefile: package bash is not locked",
        ),
        (LOCK.replace("[bash]", "[bash, vim]"), "package vim is locked and no longer asked for"),
        (LOCK.replace("[trixie]", "[sid]"), "suites are sid, expected trixie"),
        (
            format!("{LOCK}components: [contrib]\n"),
            "tiny.lock.yaml does not fit the treefile: components besides main are [contrib], expected []",
        ),
        (LOCK.replace("name: tiny", "name: other"), "it is of other, not of tiny"),
    ];
    for (lock, heading) in table {
        project.write("tiny.lock.yaml", &lock);
        require(&project.compose(), 2, heading, "repo unchanged");
    }
    assert!(!project.dir.path().join("repo").exists());
}

#[test]
fn an_unknown_package_is_told_and_the_old_lock_stays() {
    let project = Project::new(&TREEFILE.replace("[bash]", "\n  - bash\n  - no-such-package"));
    project.write("tiny.lock.yaml", LOCK);
    let output = project.rackstep(&["lock", "tiny.yaml"]);
    let heading = "error: tiny.yaml:7:5: package no-such-package is in none of the suites trixie";
    require(&output, 2, heading, "the old lock is as it was");
    assert_eq!(fs::read_to_string(project.dir.path().join("tiny.lock.yaml")).unwrap(), LOCK);
}

#[test]
fn a_conflict_is_told_with_the_reason_of_apt_and_the_line() {
    let packages = "\n  - bash\n  - exim4-daemon-light\n  - postfix";
    let table = [
        (
            TREEFILE.replace("[bash]", packages),
            "error: tiny.yaml:7:5: exim4-daemon-light, postfix cannot be installed: ",
        ),
        (TREEFILE.replace("[bash]", packages), "Conflicts: mail-transport-agent"),
        (
            TREEFILE.replace("[bash]", "[bash=0.1]"),
            "error: tiny.yaml:5:12: package bash=0.1: no suite has that version; there is 5.",
        ),
        (
            TREEFILE.replace("[bash]", "['bash:m68k']"),
            "error: tiny.yaml:5:13: package bash:m68k is in none of the suites trixie",
        ),
        (
            TREEFILE.replace("[bash]", "[vim, bash/sid]"),
            "error: tiny.yaml:5:17: bash/sid cannot be installed: Release 'sid' for 'bash' was not found",
        ),
    ];
    // One project: the package lists of one cache are fetched once.
    let project = Project::new(TREEFILE);
    for (text, heading) in table {
        project.write("tiny.yaml", &text);
        require(&project.rackstep(&["lock", "tiny.yaml"]), 2, heading, "no lock written");
    }
}

#[test]
fn components_versions_and_architectures_are_locked() {
    let project = Project::new(&format!("{TREEFILE}components: [contrib]\n"));
    let locked = |project: &Project| {
        let output = project.rackstep(&["lock", "tiny.yaml"]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        fs::read_to_string(project.dir.path().join("tiny.lock.yaml")).unwrap()
    };
    let lock = locked(&project);
    assert!(lock.contains("components:\n- contrib\n"), "{lock}");
    let bash = lock.split("- name: bash\n  version: ").nth(1).unwrap().lines().next().unwrap();
    let pins = format!("['bash:amd64={bash}', 'libcrypt1:i386', equivs, game-data-packager]");
    project.write("tiny.yaml", &format!("{}components: [contrib]\n", TREEFILE.replace("[bash]", &pins)));
    let lock = locked(&project);
    assert!(lock.contains(&format!("- name: bash\n  version: {bash}\n")), "{lock}");
    assert!(lock.contains("- name: libcrypt1\n") && lock.contains("architecture: i386"), "{lock}");
    assert!(lock.contains("path: pool/contrib/g/game-data-packager/"), "{lock}");
}

#[test]
fn a_package_that_the_mirror_dropped_leaves_the_repo_as_it_was() {
    let project = Project::new(TREEFILE);
    let package = format!(
        "packages:\n- {{name: bash, version: 0.0-1, architecture: amd64, sha256: 'sha256:{}', size: 9, archive: main, path: pool/main/b/bash/bash_0.0-1_amd64.deb}}\n",
        "0".repeat(64)
    );
    project.write("tiny.lock.yaml", &LOCK.replace("packages: []\n", &package));
    let status = Command::new("ostree")
        .args(["init", "--mode=archive", "--repo=repo"])
        .current_dir(project.dir.path())
        .status();
    assert!(status.unwrap().success());
    let before = listing(&project.dir.path().join("repo"));
    let output = project.compose();
    require(&output, 1, "package bash 0.0-1 is no longer to be had (404 Not Found)", "repo unchanged");
    assert_eq!(listing(&project.dir.path().join("repo")), before);
    let left: Vec<_> = fs::read_dir(project.dir.path().join("cache/work")).unwrap().collect();
    assert!(left.is_empty(), "work in progress is removed: {left:?}");
}

fn listing(dir: &Path) -> Vec<String> {
    let entries = walkdir::WalkDir::new(dir).sort_by_file_name();
    entries.into_iter().map(|entry| entry.unwrap().path().display().to_string()).collect()
}
