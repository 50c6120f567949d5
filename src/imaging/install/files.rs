//! The files that make a deployment this host's own: name, network, keys, mounts, `host.json`.

use std::fs::{self, OpenOptions, Permissions};
use std::io::{self, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt};
use std::path::{Component, Path, PathBuf};

use uuid::Uuid;

use super::steps::StepError;
use crate::model::HostConfig;
use crate::model::host::{HOST_CONFIG, HOST_FORMAT};
use crate::model::imaging::{ImagingPlan, SECRET_FILE};
use crate::rim::disk::filesystem::{fat_volume, random_uuid};

/// One file below the deployment's root.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostFile {
    /// Path below the root.
    pub path: &'static str,
    /// Permissions.
    pub mode: u32,
    /// Content.
    pub text: String,
}

/// Why a file could not be written.
#[derive(Debug, thiserror::Error)]
#[error("{doing} {}", path.display())]
pub struct FileError {
    doing: &'static str,
    path: PathBuf,
    #[source]
    source: io::Error,
}

/// Renders the files; `leased` is what the services announce when the plan has no static address.
pub fn render_files(
    plan: &ImagingPlan,
    leased: &str,
    boot: &Uuid,
    esp: &Uuid,
) -> Result<Vec<HostFile>, StepError> {
    let host = HostConfig {
        format: HOST_FORMAT,
        name: plan.host.clone(),
        address: plan.address.as_deref().map_or(leased, without_prefix).to_owned(),
        follows: plan.follows.clone(),
        repo: plan.follow_repo.as_ref().unwrap_or(&plan.repo).clone(),
        trusted_keys: plan.trusted_keys.clone(),
        rack_server: Some(plan.rack_server.clone()).filter(|url| !url.is_empty()),
        kernel_arguments: plan.kernel_arguments.clone(),
        mac: Some(plan.mac.clone()).filter(|mac| !mac.is_empty()),
    };
    let file = |path, mode, text| HostFile { path, mode, text };
    let mut files = vec![
        file("etc/hosts", 0o644, render_hosts(plan)),
        file("etc/fstab", 0o644, render_fstab(boot, esp)),
        file(HOST_CONFIG, 0o644, serde_json::to_string_pretty(&host)? + "\n"),
    ];
    if !plan.host.is_empty() {
        files.push(file("etc/hostname", 0o644, format!("{}\n", plan.host)));
    }
    if !plan.mac.is_empty() {
        // Made here, for one machine: a first boot of systemd without one takes seconds to preset every unit again.
        files.push(file("etc/machine-id", 0o444, format!("{}\n", random_uuid()?.as_simple())));
        files.push(file("etc/systemd/network/20-rackstep.network", 0o644, render_network(plan)));
    }
    Ok(files)
}

/// The secret that the host calls home with: root's alone.
pub fn render_secret(secret: &str) -> HostFile {
    HostFile { path: SECRET_FILE, mode: 0o600, text: format!("{secret}\n") }
}

fn render_hosts(plan: &ImagingPlan) -> String {
    let local = "127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n";
    if plan.host.is_empty() {
        return local.to_owned();
    }
    // A lease may change; 127.0.1.1 is Debian's way to name a host without a fixed address.
    let address = plan.address.as_deref().map_or("127.0.1.1", without_prefix);
    format!("{local}{address} {}\n", plan.host)
}

fn without_prefix(address: &str) -> &str {
    address.split_once('/').map_or(address, |(address, _prefix)| address)
}

/// The root is named by root= alone. The ESP is only needed to update GRUB, so nothing mounts it by itself.
/// A slow machine may take longer than systemd's 90 s to find `/boot`, and emergency mode has nobody to log in.
fn render_fstab(boot: &Uuid, esp: &Uuid) -> String {
    format!(
        "UUID={boot} /boot ext4 nosuid,nodev,x-systemd.device-timeout=10min 0 2\n\
         UUID={} /boot/efi vfat umask=0077,noauto 0 0\n",
        fat_volume(esp)
    )
}

fn render_network(plan: &ImagingPlan) -> String {
    let mut text = format!("[Match]\nMACAddress={}\n\n[Network]\n", plan.mac.replace('-', ":"));
    match &plan.address {
        Some(address) => {
            text += &format!("Address={address}\n");
            if let Some(gateway) = &plan.gateway {
                text += &format!("Gateway={gateway}\n");
            }
        }
        // The lease is bound to the MAC address, as the netboot's was: the same address again.
        None => text += "DHCP=yes\n",
    }
    for server in &plan.dns {
        text += &format!("DNS={server}\n");
    }
    if plan.address.is_none() {
        text += "\n[DHCPv4]\nClientIdentifier=mac\nUseHostname=no\n";
    }
    text
}

/// Writes the files below the deployment at `root`.
pub fn write_files(root: &Path, files: &[HostFile]) -> Result<(), FileError> {
    files.iter().try_for_each(|file| write(&root.join(file.path), &file.text, file.mode))
}

/// Gives root its ssh keys. `/root` leads into `/var`, which is the stateroot's `var` while nothing runs.
pub fn write_ssh_keys(root: &Path, var: &Path, keys: &[String]) -> Result<(), FileError> {
    if keys.is_empty() {
        return Ok(());
    }
    let home = home_of_root(root, var);
    let directory = home.join(".ssh");
    for path in [&home, &directory] {
        fs::create_dir_all(path)
            .and_then(|()| fs::set_permissions(path, Permissions::from_mode(0o700)))
            .map_err(|source| FileError { doing: "creating", path: path.clone(), source })?;
    }
    write(&directory.join("authorized_keys"), &(keys.join("\n") + "\n"), 0o600)
}

fn home_of_root(root: &Path, var: &Path) -> PathBuf {
    let Ok(link) = fs::read_link(root.join("root")) else { return root.join("root") };
    let mut parts = link.components().filter(|part| matches!(part, Component::Normal(_))).peekable();
    if parts.next_if(|part| part.as_os_str() == "var").is_some() {
        var.join(parts.collect::<PathBuf>())
    } else {
        root.join(parts.collect::<PathBuf>())
    }
}

fn write(path: &Path, text: &str, mode: u32) -> Result<(), FileError> {
    let failed = |doing: &'static str| {
        let path = path.to_owned();
        move |source| FileError { doing, path, source }
    };
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).map_err(failed("creating the directory of"))?;
    }
    // A link in the release's /etc (resolv.conf and the like) must not lead the write out of the deployment.
    if path.is_symlink() {
        fs::remove_file(path).map_err(failed("replacing the link"))?;
    }
    // Nobody reads a secret between its writing and its mode.
    OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(mode)
        .open(path)
        .and_then(|mut file| {
            file.set_permissions(Permissions::from_mode(mode)).and_then(|()| file.write_all(text.as_bytes()))
        })
        .map_err(failed("writing"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::imaging::install::tests_support::plan;

    fn rendered(plan: &ImagingPlan) -> Vec<HostFile> {
        let uuid = random_uuid().unwrap();
        render_files(plan, "10.77.0.99", &uuid, &uuid).unwrap()
    }

    fn text<'a>(files: &'a [HostFile], path: &str) -> &'a str {
        &files.iter().find(|file| file.path == path).unwrap().text
    }

    #[test]
    fn static_network() {
        let files = rendered(&plan());
        assert_eq!(text(&files, "etc/hostname"), "control-1\n");
        assert_eq!(
            text(&files, "etc/systemd/network/20-rackstep.network"),
            "[Match]\nMACAddress=52:54:00:00:00:01\n\n[Network]\nAddress=10.77.0.11/24\nGateway=10.77.0.1\nDNS=10.77.0.1\n"
        );
        let host: HostConfig = serde_json::from_str(text(&files, "etc/rackstep/host.json")).unwrap();
        assert_eq!((host.name.as_str(), host.address.as_str()), ("control-1", "10.77.0.11"));
        assert_eq!(host.mac.as_deref(), Some("52-54-00-00-00-01"));
    }

    #[test]
    fn dhcp_network() {
        let plan = ImagingPlan { address: None, gateway: None, dns: vec![], ..plan() };
        assert_eq!(
            text(&rendered(&plan), "etc/systemd/network/20-rackstep.network"),
            "[Match]\nMACAddress=52:54:00:00:00:01\n\n[Network]\nDHCP=yes\n\n[DHCPv4]\nClientIdentifier=mac\nUseHostname=no\n"
        );
    }

    #[test]
    fn a_disk_image_for_many_names_none() {
        let plan = ImagingPlan {
            host: String::new(),
            mac: String::new(),
            address: None,
            follow_repo: Some("http://192.168.121.1:8080".into()),
            ..plan()
        };
        let uuid = random_uuid().unwrap();
        let files = render_files(&plan, "", &uuid, &uuid).unwrap();
        let paths: Vec<_> = files.iter().map(|file| file.path).collect();
        assert_eq!(paths, ["etc/hosts", "etc/fstab", "etc/rackstep/host.json"]);
        assert_eq!(
            text(&files, "etc/hosts"),
            "127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n"
        );
        let host: HostConfig = serde_json::from_str(text(&files, "etc/rackstep/host.json")).unwrap();
        assert_eq!((host.name.as_str(), host.address.as_str(), host.mac), ("", "", None));
        assert_eq!(host.repo, "http://192.168.121.1:8080");
    }

    #[test]
    fn keys_go_where_root_leads() {
        for (link, place) in
            [(Some("var/roothome"), "var/roothome"), (Some("/var/root"), "var/root"), (None, "tree/root")]
        {
            let dir = tempfile::tempdir().unwrap();
            let (root, var) = (dir.path().join("tree"), dir.path().join("var"));
            fs::create_dir_all(&root).unwrap();
            if let Some(link) = link {
                std::os::unix::fs::symlink(link, root.join("root")).unwrap();
            }
            write_ssh_keys(&root, &var, &["ssh-ed25519 AAAA op".to_owned()]).unwrap();
            let file = dir.path().join(place).join(".ssh/authorized_keys");
            assert_eq!(fs::read_to_string(&file).unwrap(), "ssh-ed25519 AAAA op\n");
            assert_eq!(file.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        }
    }

    #[test]
    fn links_in_etc_are_replaced_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let outside = dir.path().join("outside");
        fs::write(&outside, "untouched").unwrap();
        fs::create_dir_all(dir.path().join("tree/etc")).unwrap();
        std::os::unix::fs::symlink(&outside, dir.path().join("tree/etc/hostname")).unwrap();
        write_files(&dir.path().join("tree"), &rendered(&plan())).unwrap();
        assert_eq!(fs::read_to_string(outside).unwrap(), "untouched");
        assert_eq!(fs::read_to_string(dir.path().join("tree/etc/hostname")).unwrap(), "control-1\n");
    }
}
