//! Kolla's image contract, case by case: what `rackstep-start` leaves of a `config.json` is what Kolla's own
//! `set_configs.py` leaves of it. What is expected is written down, so that the cases stand without Kolla; where the
//! package `kolla` can be had, its script is held against the same words. Needs root.
#![allow(clippy::unwrap_used)] // a failed unwrap is a failed test

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::Command;

/// The release of Kolla whose script was read.
const KOLLA: &str = "kolla==23.0.0";

/// Runs what of Kolla's script the contract is, without the places that it writes to outside of the test.
const DRIVER: &str = r"
import importlib.util, json, os, sys, types
sys.modules['yaml'] = types.ModuleType('yaml')
spec = importlib.util.spec_from_file_location('set_configs', sys.argv[1])
kolla = importlib.util.module_from_spec(spec)
spec.loader.exec_module(kolla)
config = json.load(open(sys.argv[2]))
kolla.validate_config(config)
kolla.create_directories(config)
kolla.create_files(config)
for data in config.get('config_files', []):
    kolla.ConfigFile(**data).copy()
kolla.handle_permissions(config)
";

/// A case: what is there, what is asked for, and what is then below `out` (none: it fails).
struct Case {
    name: &'static str,
    setup: &'static str,
    config: &'static str,
    expected: Option<&'static [&'static str]>,
}

const CASES: &[Case] = &[
    Case {
        name: "a file, its owner without a group",
        setup: "echo new > src/a; echo old > out/a; chmod 777 out/a",
        config: r#""config_files": [{"source": "DIR/src/a", "dest": "DIR/out/a", "owner": "daemon", "perm": "0640"}]"#,
        expected: Some(&["a 640 daemon:daemon new"]),
    },
    Case {
        name: "a destination that ends with a slash is a directory",
        setup: "echo new > src/a",
        config: r#""config_files": [{"source": "DIR/src/a", "dest": "DIR/out/deep/", "owner": "daemon:bin", "perm": "0o600"}]"#,
        expected: Some(&["deep/ 755 root:root", "deep/a 600 daemon:bin new"]),
    },
    Case {
        name: "a glob, hidden files aside",
        setup: "echo 1 > src/a.conf; echo 2 > src/b.conf; echo 3 > src/c; echo 4 > src/.d.conf",
        config: r#""config_files": [{"source": "DIR/src/*.conf", "dest": "DIR/out/", "owner": "daemon:", "perm": "0600"}]"#,
        expected: Some(&["a.conf 600 daemon:daemon 1", "b.conf 600 daemon:daemon 2"]),
    },
    Case {
        name: "a glob without a match",
        setup: "",
        config: r#""config_files": [{"source": "DIR/src/*.conf", "dest": "DIR/out/", "owner": "root", "perm": "0600"}]"#,
        expected: None,
    },
    Case {
        name: "a glob without a match, optional",
        setup: "",
        config: r#""config_files": [{"source": "DIR/src/[ab]?.conf", "dest": "DIR/out/", "owner": "root", "perm": "0600", "optional": true}]"#,
        expected: Some(&[]),
    },
    Case {
        name: "a file that is not there",
        setup: "",
        config: r#""config_files": [{"source": "DIR/src/a", "dest": "DIR/out/a", "owner": "root", "perm": "0600"}]"#,
        expected: None,
    },
    Case {
        name: "a directory takes the place of the other",
        setup: "mkdir -p src/d/e; echo 1 > src/d/x; echo 2 > src/d/.y; echo 3 > src/d/e/z; mkdir out/d; echo 4 > out/d/old",
        config: r#""config_files": [{"source": "DIR/src/d", "dest": "DIR/out/d", "owner": "daemon", "perm": "0640"}]"#,
        expected: Some(&[
            "d/ 750 daemon:daemon",
            "d/.y 640 daemon:daemon 2",
            "d/e/ 750 daemon:daemon",
            "d/e/z 640 daemon:daemon 3",
            "d/x 640 daemon:daemon 1",
        ]),
    },
    Case {
        name: "a directory merged into the other",
        setup: "mkdir -p src/d/e; echo 1 > src/d/x; echo 3 > src/d/e/z; mkdir -p out/d/x; echo 4 > out/d/old; echo 5 > out/d/e; chmod 644 out/d/old",
        config: r#""config_files": [{"source": "DIR/src/d", "dest": "DIR/out/d", "owner": "daemon", "perm": "0604", "merge": true}]"#,
        expected: Some(&[
            "d/ 705 daemon:daemon",
            "d/e/ 705 daemon:daemon",
            "d/e/z 604 daemon:daemon 3",
            "d/old 644 root:root 4",
            "d/x 604 daemon:daemon 1",
        ]),
    },
    Case {
        name: "a file where a directory was",
        setup: "echo new > src/a; mkdir -p out/a/b",
        config: r#""config_files": [{"source": "DIR/src/a", "dest": "DIR/out/a", "owner": "root", "perm": "0600"}]"#,
        expected: Some(&["a 600 root:root new"]),
    },
    Case {
        name: "links are followed, and replaced where they are the destination",
        setup: "echo new > src/a; ln -s a src/l; echo old > out/target; ln -s target out/a",
        config: r#""config_files": [{"source": "DIR/src/l", "dest": "DIR/out/a", "owner": "root", "perm": "0600"}]"#,
        expected: Some(&["a 600 root:root new", "target 644 root:root old"]),
    },
    Case {
        name: "properties are the source's own",
        setup: "mkdir src/d; echo 1 > src/d/x; chown daemon:bin src/d/x; chmod 4755 src/d/x; chmod 2711 src/d; chown bin:daemon src/d",
        config: r#""config_files": [{"source": "DIR/src/d", "dest": "DIR/out/d", "preserve_properties": true}]"#,
        expected: Some(&["d/ 2711 bin:daemon", "d/x 755 daemon:bin 1"]),
    },
    Case {
        name: "links stay links in a merge that keeps properties",
        setup: "mkdir src/d; echo 1 > src/d/x; ln -s x src/d/l; ln -s /nowhere src/d/n",
        config: r#""config_files": [{"source": "DIR/src/d", "dest": "DIR/out/d", "preserve_properties": true, "merge": true}]"#,
        expected: Some(&["d/ 755 root:root", "d/l -> x", "d/n -> /nowhere", "d/x 644 root:root 1"]),
    },
    Case {
        name: "neither owner and mode nor the source's own",
        setup: "echo 1 > src/a",
        config: r#""config_files": [{"source": "DIR/src/a", "dest": "DIR/out/a", "owner": "root"}]"#,
        expected: None,
    },
    Case {
        name: "an unknown owner",
        setup: "echo 1 > src/a",
        config: r#""config_files": [{"source": "DIR/src/a", "dest": "DIR/out/a", "owner": "nobody-at-all", "perm": "0600"}]"#,
        expected: None,
    },
    Case {
        name: "a mode that is none",
        setup: "echo 1 > src/a",
        config: r#""config_files": [{"source": "DIR/src/a", "dest": "DIR/out/a", "owner": "root", "perm": "u=rw"}]"#,
        expected: None,
    },
    Case {
        name: "one path alone",
        setup: "mkdir -p out/d/e; chmod 2755 out/d",
        config: r#""permissions": [{"path": "DIR/out/d", "owner": "daemon:bin", "perm": "0640"}]"#,
        expected: Some(&["d/ 750 daemon:bin", "d/e/ 755 root:root"]),
    },
    Case {
        name: "paths by a glob, and one that is not there",
        setup: "mkdir out/v1 out/v2 out/w; echo 1 > out/v1/x",
        config: r#""permissions": [{"path": "DIR/out/v?", "owner": "daemon", "recurse": true}, {"path": "DIR/out/none", "owner": "daemon"}]"#,
        expected: Some(&[
            "v1/ 755 daemon:daemon",
            "v1/x 644 daemon:daemon 1",
            "v2/ 755 daemon:daemon",
            "w/ 755 root:root",
        ]),
    },
    Case {
        name: "all below, with what links lead to",
        setup: "mkdir -p out/d/e out/away; echo 1 > out/d/e/x; echo 2 > out/away/y; ln -s ../away out/d/l; ln -s nowhere out/d/n",
        config: r#""permissions": [{"path": "DIR/out/d", "owner": "daemon", "perm": "0644", "recurse": true}]"#,
        expected: Some(&[
            "away/ 755 daemon:daemon",
            "away/y 644 root:root 2",
            "d/ 755 daemon:daemon",
            "d/e/ 755 daemon:daemon",
            "d/e/x 644 daemon:daemon 1",
            "d/l -> ../away",
            "d/n -> nowhere",
        ]),
    },
    Case {
        name: "what a pattern excludes stays as it is",
        setup: "mkdir -p out/d/lost+found out/d/e; echo 1 > out/d/e/x.keep; echo 2 > out/d/e/y",
        config: r#""permissions": [{"path": "DIR/out/d", "owner": "daemon", "perm": "0600", "recurse": true, "exclude": ["/lost\\+found$|\\.keep$"]}]"#,
        expected: Some(&[
            "d/ 700 daemon:daemon",
            "d/e/ 700 daemon:daemon",
            "d/e/x.keep 644 root:root 1",
            "d/e/y 600 daemon:daemon 2",
            "d/lost+found/ 755 root:root",
        ]),
    },
    Case {
        name: "of two patterns both must exclude",
        setup: "mkdir -p out/d; echo 1 > out/d/a; echo 2 > out/d/ab",
        config: r#""permissions": [{"path": "DIR/out/d", "owner": "daemon", "recurse": true, "exclude": ["a", "b"]}]"#,
        expected: Some(&["d/ 755 daemon:daemon", "d/a 644 daemon:daemon 1", "d/ab 644 root:root 2"]),
    },
    Case {
        name: "directories and files are made",
        setup: "echo 1 > out/there",
        config: r#""directories": [{"path": "DIR/out/a/b", "owner": "daemon", "perm": "0700"}],
            "files": [{"path": "DIR/out/a/b/c", "owner": "bin", "perm": "0600"}, {"path": "DIR/out/there", "owner": "bin", "perm": "0640"}]"#,
        expected: Some(&[
            "a/ 755 root:root",
            "a/b/ 700 daemon:daemon",
            "a/b/c 600 bin:bin ",
            "there 640 bin:bin 1",
        ]),
    },
    Case {
        name: "a file to be made where a directory is",
        setup: "mkdir out/a",
        config: r#""files": [{"path": "DIR/out/a", "owner": "root", "perm": "0600"}]"#,
        expected: None,
    },
    Case {
        name: "no patterns in what is to be made",
        setup: "",
        config: r#""directories": [{"path": "DIR/out/*", "owner": "root", "perm": "0700"}]"#,
        expected: None,
    },
];

/// Everything below `dir`: path, mode, owner and content, or where a link leads.
fn listing(dir: &Path) -> Vec<String> {
    let mut lines = Vec::new();
    list_below(dir, "", &mut lines);
    lines.sort();
    lines
}

fn list_below(dir: &Path, prefix: &str, lines: &mut Vec<String>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let name = format!("{prefix}{}", path.file_name().unwrap().to_string_lossy());
        let found = fs::symlink_metadata(&path).unwrap();
        let properties = || {
            let name_of = |database: &str, id: u32| {
                let output = Command::new("getent").args([database, &id.to_string()]).output().unwrap();
                String::from_utf8(output.stdout).unwrap().split(':').next().unwrap().to_owned()
            };
            let (user, group) = (name_of("passwd", found.uid()), name_of("group", found.gid()));
            format!("{:o} {user}:{group}", found.mode() & 0o7777)
        };
        if found.is_symlink() {
            lines.push(format!("{name} -> {}", fs::read_link(&path).unwrap().display()));
        } else if found.is_dir() {
            lines.push(format!("{name}/ {}", properties()));
            list_below(&path, &format!("{name}/"), lines);
        } else {
            lines.push(format!("{name} {} {}", properties(), fs::read_to_string(&path).unwrap().trim()));
        }
    }
}

/// What is left below `out` of a case; none: it failed.
fn outcome(case: &Case, run: impl Fn(&Path) -> Command) -> Option<Vec<String>> {
    let dir = tempfile::tempdir().unwrap();
    let setup = format!("umask 022; mkdir src out; {}", case.setup);
    let made = Command::new("sh").args(["-ec", &setup]).current_dir(dir.path()).status().unwrap();
    assert!(made.success(), "{}", case.name);
    let text = format!("{{\"command\": \"true\", {}}}", case.config);
    let config = dir.path().join("config.json");
    fs::write(&config, text.replace("DIR", dir.path().to_str().unwrap())).unwrap();
    let output = run(&config).output().unwrap();
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    // What is captured shows only where the test fails.
    eprintln!("{}: {} {told}", case.name, output.status);
    output.status.success().then(|| listing(&dir.path().join("out")))
}

fn compare(who: &str, run: impl Fn(&Path) -> Command) {
    for case in CASES {
        let expected = case.expected.map(|lines| lines.iter().map(|line| (*line).to_owned()).collect());
        assert_eq!(outcome(case, &run), expected, "{who}: {}", case.name);
    }
}

fn root() -> PathBuf {
    PathBuf::from(std::env::var_os("CARGO_MANIFEST_DIR").unwrap())
}

#[test]
fn our_entry_point_leaves_what_is_expected() {
    compare("rackstep-start", |config| {
        let mut command = Command::new(root().join("manifests/common/rackstep-start"));
        command.env("RACKSTEP_CONFIG", config).env("KOLLA_CONFIG_STRATEGY", "COPY_ALWAYS");
        command
    });
}

/// Kolla's script of the pinned release, out of its package; none where no index of packages answers.
fn kolla_script() -> Option<PathBuf> {
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join(KOLLA);
    let script = dir.join("kolla/docker/base/set_configs.py");
    if script.is_file() {
        return Some(script);
    }
    let wheels = tempfile::tempdir().unwrap();
    let mut pip = Command::new("python3");
    pip.args(["-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:", "--dest"]);
    if !pip.arg(wheels.path()).arg(KOLLA).output().is_ok_and(|output| output.status.success()) {
        return None;
    }
    let wheel = fs::read_dir(wheels.path()).unwrap().next()?.unwrap().path();
    let unpacked = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let mut unzip = Command::new("python3");
    unzip.args(["-m", "zipfile", "-e"]).arg(wheel).arg(unpacked.path());
    assert!(unzip.status().unwrap().success());
    fs::set_permissions(unpacked.path(), fs::Permissions::from_mode(0o755)).unwrap();
    // Another run may have been faster.
    let _ = fs::rename(unpacked.keep(), &dir);
    script.is_file().then_some(script)
}

#[test]
fn kollas_own_script_leaves_the_same() {
    let Some(script) = kolla_script() else {
        println!("skipped: the package {KOLLA} cannot be had here");
        return;
    };
    compare("set_configs.py", |config| {
        let mut command = Command::new("python3");
        command.args(["-c", DRIVER]).arg(&script).arg(config);
        command
    });
}
