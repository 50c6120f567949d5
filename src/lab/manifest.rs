//! Cluster files: how many machines of which size, and the release that they begin with.
//!
//! 1. The YAML is read, every key known; 2. what belongs together is checked; 3. machines get names and addresses.
//!
//! `vagrant/Vagrantfile` reads the same file. What is Vagrant's alone (box, blank machines) is known here and left to it.

use std::path::PathBuf;

use serde::Deserialize;
use serde::de::IgnoredAny;

use crate::model::Ref;
use crate::model::cluster::{Cluster, ClusterMachine, Driver, Platform, Role};
use crate::model::place::{InputError, SourceText};

/// GiB that hold two releases, their images in Docker and some state. It is the largest size, not what the file takes.
const DEFAULT_DISK: u64 = 40;
/// A kernel and an initramfs want that much before anything of a release runs.
const LEAST_MEMORY: u32 = 256;
const MOST_CPUS: u32 = 255;
/// What a namespace's name and a socket's path have room for.
const LONGEST_NAME: usize = 40;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Fragment {
    name: Option<String>,
    repo: Option<PathBuf>,
    release: Option<String>,
    #[serde(rename = "ref")]
    follows: Option<Ref>,
    trusted_keys: Option<Vec<String>>,
    #[serde(default)]
    platform: PlatformChoice,
    #[serde(default)]
    driver: Driver,
    disk: Option<u64>,
    control: Sizes,
    #[serde(default)]
    compute: Option<Sizes>,
    /// Version of the box: a version fixes the release, a rule (">= 0") does not.
    version: Option<String>,
    #[serde(default)]
    provisioner: Option<Provisioner>,
    #[serde(rename = "box")]
    _box: Option<IgnoredAny>,
    #[serde(rename = "blank")]
    _blank: Option<IgnoredAny>,
}

/// [`Platform`], or a choice of ours.
#[derive(Debug, Clone, Copy, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
enum PlatformChoice {
    #[default]
    Auto,
    Container,
    Libvirt,
    Qemu,
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields)]
struct Sizes {
    count: Option<u32>,
    memory: u32,
    cpus: u32,
}

/// The machine that serves releases in Vagrant's cluster: it has what we need to know, unless the file says otherwise.
#[derive(Debug, Default, Deserialize)]
struct Provisioner {
    repo: Option<PathBuf>,
    #[serde(rename = "ref")]
    follows: Option<Ref>,
    trusted_keys: Option<Vec<String>>,
}

/// Parses and checks a cluster file. Without a name of its own the cluster is called `default_name`.
pub fn parse_cluster(source: &SourceText, default_name: &str) -> Result<Cluster, InputError> {
    let fragment: Fragment = source.parse()?;
    let name = fragment.name.unwrap_or_else(|| default_name.to_owned());
    if !is_cluster_name(&name) {
        let told = format!(
            "{name:?} is no name for a cluster (small letters, digits and '-', {LONGEST_NAME} at most)"
        );
        return Err(source.error("name", &name, told));
    }
    let machines = [
        machines(source, "control", Role::Control, Some(fragment.control))?,
        machines(source, "compute", Role::Compute, fragment.compute)?,
    ]
    .concat();
    if machines.is_empty() {
        return Err(source.error("control", "count", "a cluster needs a machine"));
    }
    let provisioner = fragment.provisioner.unwrap_or_default();
    let fixed = fragment.version.filter(|version| version.starts_with(|c: char| c.is_ascii_digit()));
    let follows = fragment.follows.or(provisioner.follows).map(|follows| follows.as_str().to_owned());
    let disk_gib = fragment.disk.unwrap_or(DEFAULT_DISK);
    if !(1..=16 * 1024).contains(&disk_gib) {
        return Err(source.error("disk", &disk_gib.to_string(), "disk is a number of GiB"));
    }
    Ok(Cluster {
        name,
        repo: fragment.repo.or(provisioner.repo),
        release: fragment.release.or(fixed).or(follows),
        trusted_keys: fragment.trusted_keys.or(provisioner.trusted_keys).unwrap_or_default(),
        platform: match fragment.platform {
            PlatformChoice::Auto => None,
            PlatformChoice::Container => Some(Platform::Container),
            PlatformChoice::Libvirt => Some(Platform::Libvirt),
            PlatformChoice::Qemu => Some(Platform::Qemu),
        },
        driver: fragment.driver,
        disk_gib,
        machines,
    })
}

/// Is it good for a directory and a network?
pub fn is_cluster_name(name: &str) -> bool {
    (1..=LONGEST_NAME).contains(&name.len())
        && name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-')
}

/// The cluster name that a directory's name comes nearest to.
pub fn name_like(directory: &str) -> String {
    let good = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' };
    let name: String = directory.chars().map(good).collect();
    let name: String = name.trim_matches('-').chars().take(LONGEST_NAME).collect();
    if name.is_empty() { "cluster".to_owned() } else { name }
}

fn machines(
    source: &SourceText,
    key: &str,
    role: Role,
    sizes: Option<Sizes>,
) -> Result<Vec<ClusterMachine>, InputError> {
    let Some(Sizes { count, memory, cpus }) = sizes else { return Ok(Vec::new()) };
    let count = count.unwrap_or(1);
    let most = u32::from(role.most());
    if count > most {
        return Err(source.error(
            key,
            &count.to_string(),
            format!("{key}: {count} machines, {most} at most"),
        ));
    }
    if memory < LEAST_MEMORY {
        let told = format!("{key}: memory is in MiB, {LEAST_MEMORY} at least, not {memory}");
        return Err(source.error(key, &memory.to_string(), told));
    }
    if !(1..=MOST_CPUS).contains(&cpus) {
        return Err(source.error(key, &cpus.to_string(), format!("{key}: {cpus} processors")));
    }
    // As in vagrant/Vagrantfile: one control machine has no number.
    let alone = role == Role::Control && count == 1;
    let name = |number: u8| if alone { key.to_owned() } else { format!("{key}-{number}") };
    let numbers = 1..=u8::try_from(count).unwrap_or(u8::MAX);
    Ok(numbers.map(|number| ClusterMachine::new(name(number), role, number, memory, cpus)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "name: dev
repo: /srv/repo
release: 1.0.0
control: {memory: 4096, cpus: 2}
compute: {count: 2, memory: 3072, cpus: 1}
";

    fn parse(text: &str) -> Result<Cluster, InputError> {
        parse_cluster(&SourceText::new("cluster.yaml", text), "here")
    }

    #[test]
    fn the_file_beside_the_vagrantfile_is_a_good_cluster() {
        let cluster = parse(include_str!("../../vagrant/cluster.yaml")).unwrap();
        assert_eq!(cluster.name, "here");
        assert_eq!(cluster.repo.unwrap().to_str(), Some("/srv/rackstep/repo"));
        assert_eq!(cluster.release.as_deref(), Some("rackstep/x86_64/openstack-host"));
        let names: Vec<&str> = cluster.machines.iter().map(|machine| machine.name.as_str()).collect();
        assert_eq!(names, ["control", "compute-1"]);
    }

    #[test]
    fn machines_have_names_and_addresses() {
        let cluster = parse(GOOD).unwrap();
        let told: Vec<String> = cluster
            .machines
            .iter()
            .map(|m| format!("{} {} {} {}", m.name, m.address, m.memory, m.cpus))
            .collect();
        assert_eq!(
            told,
            ["control 10.90.0.11 4096 2", "compute-1 10.90.0.101 3072 1", "compute-2 10.90.0.102 3072 1"]
        );
        assert_eq!((cluster.release.as_deref(), cluster.disk_gib), (Some("1.0.0"), 40));
        let two = parse(&GOOD.replace("control: {", "control: {count: 2, ")).unwrap();
        assert_eq!(two.machines[1].name, "control-2");
    }

    #[test]
    fn who_runs_machines_is_left_open_unless_it_is_said() {
        for (line, platform) in [
            ("", None),
            ("platform: auto\n", None),
            ("platform: libvirt\n", Some(Platform::Libvirt)),
            ("platform: qemu\n", Some(Platform::Qemu)),
            ("platform: container\n", Some(Platform::Container)),
        ] {
            assert_eq!(parse(&format!("{line}{GOOD}")).unwrap().platform, platform, "{line:?}");
        }
    }

    #[test]
    fn what_is_wrong_is_told_with_its_place() {
        let table = [
            (
                "compute:",
                "computes:",
                "cluster.yaml:5:1",
                "unknown field `computes`, expected one of `name`, `repo`",
            ),
            (
                "cpus: 2",
                "cpu: 2",
                "cluster.yaml:4:25",
                "unknown field `cpu`, expected one of `count`, `memory`, `cpus`",
            ),
            ("name: dev", "name: My_Cluster", "cluster.yaml:1:7", "no name for a cluster"),
            ("memory: 4096", "memory: 4", "cluster.yaml:4:19", "memory is in MiB, 256 at least, not 4"),
            ("count: 2", "count: 200", "cluster.yaml:5:18", "200 machines, 150 at most"),
            ("cpus: 1", "cpus: 0", "cluster.yaml:5:41", "0 processors"),
            (
                "name: dev",
                "driver: xen",
                "cluster.yaml:1:9",
                "unknown variant `xen`, expected one of `kvm`, `qemu`, `auto`",
            ),
            (
                "name: dev",
                "platform: kvm",
                "cluster.yaml:1:11",
                "unknown variant `kvm`, expected one of `auto`, `container`, `libvirt`, `qemu`",
            ),
            ("control: {memory: 4096, cpus: 2}\n", "", "cluster.yaml:1:1", "missing field `control`"),
        ];
        for (from, to, place, message) in table {
            assert!(GOOD.contains(from), "{from}");
            let error = parse(&GOOD.replacen(from, to, 1)).unwrap_err().to_string();
            assert!(error.starts_with(place) && error.contains(message), "{from} → {to}: {error}");
        }
    }

    #[test]
    fn directories_name_clusters() {
        for (directory, name) in [("dev", "dev"), ("My Cluster_2", "my-cluster-2"), ("---", "cluster")] {
            assert_eq!(name_like(directory), name);
            assert!(is_cluster_name(name));
        }
        for bad in ["", "-a", "A", "a_b", "a/b", &"a".repeat(41)] {
            assert!(!is_cluster_name(bad), "{bad}");
        }
    }
}
