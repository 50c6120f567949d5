//! Tries the probes that decide whether a release is good.
//!
//! Built in, required: the boot came to its end, no phase is due, every pod is ready. Then the release's own,
//! `/usr/lib/rackstep/health.d/*.json`, which say whether they are required. Probes in `/etc/rackstep/health.d` are the
//! host's or another package's: they warn, whatever they say.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::docker::Docker;
use crate::host::boot::Release;
use crate::host::boot::plan::Decision;
use crate::host::places::Places;
use crate::host::readiness::{get, why_not_ready};
use crate::model::trial::{Check, Needs, PROBE_FORMAT, Probe};
use crate::rim::command;
use crate::rim::files::list;
use crate::rim::versioned::{Versioned, VersionedError, read_versioned};

/// Longest time for one HTTP answer.
const ANSWER: Duration = Duration::from_secs(10);

impl Versioned for Probe {
    const WHAT: &'static str = "the health probe";
    const FORMAT: u32 = PROBE_FORMAT;
}

/// A probe with where it came from.
#[derive(Debug, Clone)]
pub struct NamedProbe {
    /// Its file's name without the ending.
    pub name: String,
    /// Where its scripts are.
    pub directory: PathBuf,
    /// The probe.
    pub probe: Probe,
}

/// What one look at all probes gave.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Look {
    /// Required probes that do not succeed, with the reason of each.
    pub required: Vec<String>,
    /// The others.
    pub wanted: Vec<String>,
}

/// The release's and the host's probes. A release whose probe cannot be read is not good: it is told as a required one.
pub fn read_probes(places: &Places, is_booted: bool) -> (Vec<NamedProbe>, Look) {
    let built_in = |name: &str, check| NamedProbe {
        name: name.to_owned(),
        directory: PathBuf::new(),
        probe: Probe { format: PROBE_FORMAT, needs: Needs::Required, check },
    };
    let mut probes = vec![built_in("phases", Check::Phases), built_in("pods", Check::Pods(Vec::new()))];
    if is_booted {
        probes.insert(0, built_in("boot", Check::Boot));
    }
    let mut unread = Look::default();
    for (directory, required) in [(places.health(), true), (places.local_health(), false)] {
        for (name, read) in read_directory(&directory) {
            match read {
                Ok(mut probe) => {
                    if !required {
                        probe.needs = Needs::Wanted;
                    }
                    probes.push(NamedProbe { name, directory: directory.clone(), probe });
                }
                Err(error) => {
                    let list = if required { &mut unread.required } else { &mut unread.wanted };
                    list.push(format!("{name}: {error}"));
                }
            }
        }
    }
    (probes, unread)
}

fn read_directory(directory: &Path) -> Vec<(String, Result<Probe, VersionedError>)> {
    let files = list(directory).unwrap_or_default();
    let probes = files.into_iter().filter(|path| path.extension().is_some_and(|kind| kind == "json"));
    probes
        .map(|path| {
            let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
            let read = read_versioned(&path).and_then(|probe| {
                probe.ok_or_else(|| {
                    crate::rim::files::naming("reading", &path)(std::io::ErrorKind::NotFound.into()).into()
                })
            });
            (name, read)
        })
        .collect()
}

/// Tries every probe once.
pub fn look(
    probes: &[NamedProbe],
    docker: Option<&Docker>,
    release: &Release,
    places: &Places,
    confirmed: bool,
) -> Look {
    let mut look = Look::default();
    for probe in probes {
        if let Some(why) = why_not(probe, docker, release, places, confirmed) {
            let list = match probe.probe.needs {
                Needs::Required => &mut look.required,
                Needs::Wanted => &mut look.wanted,
            };
            list.push(format!("{}: {why}", probe.name));
        }
    }
    look
}

/// What keeps a probe from succeeding; none: nothing.
fn why_not(
    named: &NamedProbe,
    docker: Option<&Docker>,
    release: &Release,
    places: &Places,
    confirmed: bool,
) -> Option<String> {
    match &named.probe.check {
        Check::Boot => inactive("multi-user.target").map(|_| "the boot has not come to its end".to_owned()),
        Check::Units(units) => units.iter().find_map(|unit| inactive(unit)),
        Check::Phases => phases_due(release, places, confirmed),
        Check::Pods(names) => match docker {
            Some(docker) => pods_not_ready(names, docker, release),
            None if release.pods.is_empty() => None,
            None => Some("docker does not answer".to_owned()),
        },
        Check::Http(url) => get(url, ANSWER).err(),
        Check::Disk { path, free } => too_full(path, *free),
        Check::Script { name, seconds } => {
            script_fails(&named.directory.join(name), Duration::from_secs(*seconds))
        }
    }
}

fn inactive(unit: &str) -> Option<String> {
    let mut systemctl = Command::new("systemctl");
    let told = systemctl.args(["is-active", unit]).output();
    match told {
        Ok(output) if output.status.success() => None,
        Ok(output) => Some(format!("{unit} is {}", String::from_utf8_lossy(&output.stdout).trim())),
        Err(error) => Some(format!("{unit}: {error}")),
    }
}

fn phases_due(release: &Release, places: &Places, confirmed: bool) -> Option<String> {
    match release.plan(places, confirmed) {
        Ok(plan) => {
            let due = plan.phases.iter().find(|planned| planned.decision == Decision::Run);
            due.map(|planned| format!("phase {} has not run", planned.phase.id))
        }
        Err(error) => Some(error.to_string()),
    }
}

fn pods_not_ready(names: &[String], docker: &Docker, release: &Release) -> Option<String> {
    let unknown = names.iter().find(|name| !release.pods.contains_key(*name));
    if let Some(name) = unknown {
        return Some(format!("there is no pod {name}"));
    }
    let asked = release.pods.iter().filter(|(name, _)| names.is_empty() || names.contains(name));
    for (name, pod) in asked {
        match why_not_ready(docker, &release.pods, pod, release.pins.pins()) {
            Ok(None) => {}
            Ok(Some(why)) => return Some(format!("pod {name}: {why}")),
            Err(error) => return Some(format!("pod {name}: {error}")),
        }
    }
    None
}

fn too_full(path: &str, free: u64) -> Option<String> {
    match rustix::fs::statvfs(path) {
        Ok(stat) if stat.f_bavail * stat.f_frsize >= free => None,
        Ok(stat) => {
            Some(format!("{path} has {} bytes free, {free} are needed", stat.f_bavail * stat.f_frsize))
        }
        Err(error) => Some(format!("{path}: {error}")),
    }
}

fn script_fails(script: &Path, limit: Duration) -> Option<String> {
    let mut timeout = Command::new("timeout");
    timeout.args(["--kill-after=5", &limit.as_secs().to_string()]).arg(script);
    command::run(&mut timeout).err().map(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn checks_of_others_only_warn() {
        let dir = tempfile::tempdir().unwrap();
        let places = Places::below(dir.path());
        let text = r#"{"format": 1, "needs": "required", "check": {"disk": {"path": "/", "free": 0}}}"#;
        for directory in [places.health(), places.local_health()] {
            fs::create_dir_all(&directory).unwrap();
            fs::write(directory.join("own.json"), text).unwrap();
            fs::write(directory.join("broken.json"), "{").unwrap();
            fs::write(directory.join("README"), "not a probe").unwrap();
        }
        let (probes, unread) = read_probes(&places, false);
        let own: Vec<Needs> =
            probes.iter().filter(|probe| probe.name == "own").map(|probe| probe.probe.needs).collect();
        assert_eq!(own, [Needs::Required, Needs::Wanted]);
        assert_eq!((unread.required.len(), unread.wanted.len()), (1, 1));
        assert!(unread.required[0].starts_with("broken: reading the health probe"), "{unread:?}");
    }

    #[test]
    fn scripts_and_disks_say_why() {
        let dir = tempfile::tempdir().unwrap();
        let script = dir.path().join("check");
        for (text, expected) in [("exit 0", None), ("echo no token >&2; exit 3", Some("no token"))] {
            fs::write(&script, format!("#!/bin/sh\n{text}\n")).unwrap();
            fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
            let told = script_fails(&script, Duration::from_secs(10));
            assert_eq!(told.is_none(), expected.is_none(), "{told:?}");
            assert!(expected.is_none_or(|part| told.as_ref().unwrap().contains(part)), "{told:?}");
        }
        fs::write(&script, "#!/bin/sh\nexec sleep 60\n").unwrap();
        assert!(script_fails(&script, Duration::from_secs(1)).is_some());
        assert_eq!(too_full("/", 0), None);
        assert!(too_full("/", u64::MAX).unwrap().contains("are needed"));
    }
}
