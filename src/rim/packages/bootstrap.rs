//! Unpacks exactly the locked packages into a directory.
//!
//! 1. a flat archive of links into the cache, its index made from the package files; 2. mmdebstrap with that archive
//!    alone; 3. what got installed is compared with the lock. No network, and no package that is not in the lock.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::process::Command;

use rayon::prelude::*;

use super::{PackageError, at, chroot, clean, download};
use crate::model::{Digest, Package};
use crate::rim::command::{run, run_text};

/// Files of packages that a host has no use for. Licences stay: a release is a redistribution.
const LEFT_OUT: [&str; 8] = [
    "path-exclude=/usr/share/doc/*",
    "path-include=/usr/share/doc/*/copyright",
    "path-exclude=/usr/share/man/*",
    "path-exclude=/usr/share/info/*",
    "path-exclude=/usr/share/locale/*",
    "path-exclude=/usr/share/lintian/*",
    "path-exclude=/usr/share/linda/*",
    "path-exclude=/usr/share/bash-completion/*",
];

/// The time that packages' scripts are told, in seconds since 1970: one for all locks, so that equal packages give an
/// equal tree. Where a day shows, in `/etc/shadow`, the lock's replaces it (`clean`).
const PACKAGES_TIME: u64 = 1_700_000_000;

/// What decides the outcome of [`install`] besides the packages; bump the number when the code changes it.
pub fn recipe() -> String {
    format!("bootstrap 2\n{}", LEFT_OUT.join("\n"))
}

/// Installs `packages` from the cache into `root`, using `work` for files on the way.
pub fn install(
    cache: &Path,
    packages: &[Package],
    suite: &str,
    architecture: &str,
    work: &Path,
    root: &Path,
) -> Result<(), PackageError> {
    let flat = work.join("archive");
    write_flat_archive(cache, packages, suite, architecture, &flat)?;
    let names: Vec<String> = packages.iter().map(|package| package.label(architecture)).collect();
    let architectures = all_architectures(packages, architecture);
    let mut command = Command::new("mmdebstrap");
    command.args(["--mode=root", "--format=directory", "--variant=essential", "--quiet"]);
    command
        .arg(format!("--architectures={}", architectures.join(",")))
        .arg(format!("--include={}", names.join(",")));
    command.args(LEFT_OUT.map(|option| format!("--dpkgopt={option}")));
    command.args(["--dpkgopt=force-unsafe-io", "--aptopt=APT::Install-Recommends \"false\""]);
    // Services of packages must not start here, nor on the host before presets are applied.
    command.arg("--essential-hook=mkdir -p \"$1/usr/sbin\" && printf '#!/bin/sh\\nexit 101\\n' > \"$1/usr/sbin/policy-rc.d\" && chmod 755 \"$1/usr/sbin/policy-rc.d\"");
    command.arg("--customize-hook=rm -f \"$1/usr/sbin/policy-rc.d\"");
    command.arg(suite).arg(root).arg(format!("deb [trusted=yes] copy://{} ./", flat.display()));
    command.env_clear().envs(chroot::environment(PACKAGES_TIME)).env("TMPDIR", work);
    // The kernel's postinst would run dracut for an initramfs that nobody uses.
    command.env("INITRD", "No");
    run(&mut command)?;
    clean::clean_builder(root)?;
    require_exactly(packages, architecture, root)
}

/// The tree's architecture first, then those of its foreign packages.
fn all_architectures(packages: &[Package], native: &str) -> Vec<String> {
    let foreign: BTreeSet<&str> = packages.iter().map(|package| package.architecture.as_str()).collect();
    let foreign = foreign.into_iter().filter(|name| *name != native && *name != "all");
    std::iter::once(native).chain(foreign).map(str::to_owned).collect()
}

fn write_flat_archive(
    cache: &Path,
    packages: &[Package],
    suite: &str,
    architecture: &str,
    flat: &Path,
) -> Result<(), PackageError> {
    fs::create_dir_all(flat).map_err(at(flat))?;
    let stanzas: Vec<String> =
        packages.par_iter().map(|package| add_to_archive(cache, package, flat)).collect::<Result<_, _>>()?;
    let text = stanzas.join("\n");
    let index = flat.join("Packages");
    fs::write(&index, &text).map_err(at(&index))?;
    // mmdebstrap finds essential packages by the suite that the archive says it is.
    let digest = Digest::of(text.as_bytes()).hex();
    let release = format!(
        "Suite: {suite}\nCodename: {suite}\nArchitectures: {} all\nDate: Thu, 01 Jan 1970 00:00:00 UTC\nSHA256:\n {digest} {} Packages\n",
        all_architectures(packages, architecture).join(" "),
        text.len()
    );
    let path = flat.join("Release");
    fs::write(&path, release).map_err(at(&path))
}

fn add_to_archive(cache: &Path, package: &Package, flat: &Path) -> Result<String, PackageError> {
    let deb = download::cached(cache, package);
    let name = format!("{}.deb", package.sha256.hex());
    let link = flat.join(&name);
    // apt refuses symlinks that leave the archive; a hard link fails across file systems.
    if fs::hard_link(&deb, &link).is_err() {
        fs::copy(&deb, &link).map_err(at(&link))?;
    }
    let control = run_text(Command::new("dpkg-deb").arg("--field").arg(&deb))?;
    Ok(format!(
        "{}\nFilename: ./{name}\nSize: {}\nSHA256: {}\n",
        control.trim_end(),
        package.size,
        package.sha256.hex()
    ))
}

/// The tree's packages, name (with a foreign architecture) → version, from its dpkg database.
pub fn installed(root: &Path, native: &str) -> Result<BTreeMap<String, String>, PackageError> {
    let text = run_text(
        Command::new("dpkg-query")
            .arg(format!("--admindir={}", root.join("var/lib/dpkg").display()))
            .args(["--show", "--showformat=${Package}:${Architecture} ${Version} ${db:Status-Status}\n"]),
    )?;
    let mut packages = BTreeMap::new();
    for line in text.lines() {
        let mut words = line.split(' ');
        match (words.next(), words.next(), words.next()) {
            (Some(name), Some(version), Some("installed")) => {
                let name = name.strip_suffix(&format!(":{native}")).unwrap_or(name);
                let name = name.strip_suffix(":all").unwrap_or(name);
                packages.insert(name.to_owned(), version.to_owned());
            }
            _ => return Err(PackageError::Mismatch(format!("dpkg says {line:?}"))),
        }
    }
    Ok(packages)
}

fn require_exactly(packages: &[Package], native: &str, root: &Path) -> Result<(), PackageError> {
    let expected: BTreeMap<String, String> =
        packages.iter().map(|package| (package.label(native), package.version.clone())).collect();
    let found = installed(root, native)?;
    let differing = expected.iter().find(|(name, version)| found.get(*name) != Some(version));
    let extra = found.keys().find(|name| !expected.contains_key(*name));
    match (differing, extra) {
        (None, None) => Ok(()),
        (Some((name, version)), _) => Err(PackageError::Mismatch(format!(
            "{name}: expected {version}, got {}",
            found.get(name).map_or("nothing", String::as_str)
        ))),
        (None, Some(name)) => Err(PackageError::Mismatch(format!("{name} is not in the lock"))),
    }
}
