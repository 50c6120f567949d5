//! What this machine does not let a host do, and what stands in for it: in memory, in the host's own mounts, for one boot.
//!
//! | the machine | a host would | instead |
//! | --- | --- | --- |
//! | lacks `CAP_SYS_RESOURCE` | fail to start containers that ask for a low `oom_score_adj` | a script in front of runc takes the wish out |
//! | has no controllers in cgroup 2 | have a kubelet that cannot restart | two settings behind the release's own |
//! | has other kernel settings than kubelet wants | have a kubelet that tries to set them, and may not | files that read as it wants |
//!
//! Nothing of it is on the host's disk, so nothing of it travels into another release, and `verify` sees the release as it is.

use std::fs;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::cgroup;

/// What kubelet wants, and would set itself (`pkg/kubelet/cm/container_manager_linux.go`, `setupKernelTunables`).
const TUNABLES: [(&str, &str); 6] = [
    ("vm/overcommit_memory", "1"),
    ("vm/panic_on_oom", "0"),
    ("kernel/panic", "10"),
    ("kernel/panic_on_oops", "1"),
    ("kernel/keys/root_maxkeys", "1000000"),
    ("kernel/keys/root_maxbytes", "25000000"),
];
/// Number of `CAP_SYS_RESOURCE` in capabilities(7)'s sets.
const SYS_RESOURCE: u32 = 24;

/// Goes in front of runc.
pub const RUNC: &str = r#"#!/bin/sh
# This machine's root may not lower oom_score_adj (CAP_SYS_RESOURCE is missing),
# and runc refuses to start a container that asks for it.
wanted= bundle= process=
for word; do
    case $wanted in
    bundle) bundle=$word ;;
    process) process=$word ;;
    esac
    wanted=
    case $word in
    --bundle | -b) wanted=bundle ;;
    --process | -p) wanted=process ;;
    --bundle=*) bundle=${word#*=} ;;
    --process=*) process=${word#*=} ;;
    esac
done
for file in "${bundle:+$bundle/config.json}" "$process"; do
    if [ -n "$file" ] && [ -f "$file" ]; then
        sed -i -E 's/"oomScoreAdj":-[0-9]+/"oomScoreAdj":0/' "$file"
    fi
done
exec /run/host/runc "$@"
"#;

/// Goes behind the settings of a release's kubelet. Not an empty list: a kubelet that merges a directory of settings loses it.
const KUBELET: &str = "\n# This machine's control groups have no controllers.\ncgroupsPerQOS: false\nenforceNodeAllocatable: [none]\n";

/// What this machine lacks.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lacks {
    /// `CAP_SYS_RESOURCE`.
    pub resource: bool,
    /// Controllers in cgroup 2.
    pub controllers: bool,
    /// Kernel settings that are not as kubelet wants them: path below `/proc/sys`, and value.
    pub tunables: Vec<(String, String)>,
}

impl Lacks {
    /// Looks at this machine.
    pub fn observe(hierarchy: &Path) -> Self {
        let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
        let differs = |(path, wanted): &(&str, &str)| {
            fs::read_to_string(Path::new("/proc/sys").join(path)).is_ok_and(|text| text.trim() != *wanted)
        };
        let tunables = TUNABLES.into_iter().filter(differs);
        Self {
            resource: !has_capability(&status, SYS_RESOURCE),
            controllers: !cgroup::has_controllers(hierarchy),
            tunables: tunables.map(|(path, value)| (path.to_owned(), value.to_owned())).collect(),
        }
    }
}

/// Is the capability in the bounding set (`CapBnd` of proc(5))?
fn has_capability(status: &str, number: u32) -> bool {
    let set = status.lines().find_map(|line| line.strip_prefix("CapBnd:"));
    set.and_then(|set| u64::from_str_radix(set.trim(), 16).ok()).is_some_and(|set| set >> number & 1 == 1)
}

/// The settings of a release's kubelet, for control groups without controllers.
pub fn kubelet_settings(of_release: &str) -> String {
    let is_said = |key: &str| of_release.lines().any(|line| line.starts_with(key));
    if is_said("cgroupsPerQOS:") || is_said("enforceNodeAllocatable:") {
        return of_release.to_owned();
    }
    format!("{}{KUBELET}", of_release.trim_end())
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn capabilities_are_bits() {
        assert!(!has_capability("CapBnd:\t000001fffeffffff\n", SYS_RESOURCE));
        assert!(has_capability("CapInh:\t0\nCapBnd:\t000001ffffffffff\n", SYS_RESOURCE));
        assert!(!has_capability("", SYS_RESOURCE));
    }

    #[test]
    fn what_a_release_says_of_control_groups_stays() {
        assert_eq!(
            kubelet_settings("kind: KubeletConfiguration\n"),
            "kind: KubeletConfiguration\n# This machine's control groups have no controllers.\ncgroupsPerQOS: false\n\
             enforceNodeAllocatable: [none]\n"
        );
        assert_eq!(kubelet_settings("cgroupsPerQOS: true\n"), "cgroupsPerQOS: true\n");
    }

    #[test]
    fn wishes_for_a_low_score_are_taken_out() {
        let dir = tempfile::tempdir().unwrap();
        let (bundle, process) = (dir.path().join("bundle"), dir.path().join("process"));
        fs::create_dir(&bundle).unwrap();
        for file in [&bundle.join("config.json"), &process] {
            fs::write(file, r#"{"oomScoreAdj":-997,"x":1}"#).unwrap();
        }
        let script = dir.path().join("runc");
        fs::write(&script, RUNC.replace("exec /run/host/runc", "echo ran")).unwrap();
        let mut command = Command::new("sh");
        command
            .arg(&script)
            .args(["--root", "/r", "create", "--bundle"])
            .arg(&bundle)
            .arg("--process")
            .arg(&process);
        let output = command.arg("id").output().unwrap();
        assert!(String::from_utf8_lossy(&output.stdout).starts_with("ran --root /r create --bundle"));
        for file in [&bundle.join("config.json"), &process] {
            assert_eq!(fs::read_to_string(file).unwrap(), r#"{"oomScoreAdj":0,"x":1}"#);
        }
    }
}
