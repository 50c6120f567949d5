//! Resolves package names to exact packages.
//!
//! 1. mirror: `--mirror`, or where the machine's own apt gets Debian from; 2. a private apt state in the cache, with an
//!    empty package status, so that nothing installed here counts; 3. essential and required packages plus those asked
//!    for, without recommends; 4. version, digest, size and path of each from the signed package lists.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

use super::conflict;
use super::{PackageError, at};
use crate::model::{Archive, Digest, Package, PackageRequest, Pin};
use crate::rim::command::{CommandError, run, run_text};

const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// Where the archives are.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Mirrors {
    /// The main archive.
    pub main: Option<String>,
    /// The archive of security updates.
    pub security: Option<String>,
}

impl Mirrors {
    /// Takes `mirror`, or asks the machine's own apt.
    pub fn observe(mirror: Option<&str>) -> Result<Self, PackageError> {
        if let Some(mirror) = mirror {
            let main = mirror.trim_end_matches('/').to_owned();
            // Mirrors that carry both keep them side by side, as Debian's own do.
            let security = main.strip_suffix("/debian").map(|base| format!("{base}/debian-security"));
            return Ok(Self { main: Some(main), security });
        }
        let format = "$(ORIGIN)|$(LABEL)|$(REPO_URI)";
        let text = run_text(Command::new("apt-get").args([
            "indextargets",
            "--format",
            format,
            "Created-By: Packages",
        ]))?;
        Ok(Self::parse(&text))
    }

    fn parse(text: &str) -> Self {
        let find = |label: &str| {
            text.lines().find_map(|line| {
                let rest = line.strip_prefix("Debian|")?.strip_prefix(label)?;
                Some(rest.strip_prefix('|')?.trim_end_matches('/').to_owned())
            })
        };
        Self { main: find("Debian"), security: find("Debian-Security") }
    }

    /// The base URL of `archive`.
    pub fn base(&self, archive: Archive) -> Option<&str> {
        match archive {
            Archive::Main => self.main.as_deref(),
            Archive::Security => self.security.as_deref(),
        }
    }

    fn render_sources(&self, suites: &[String], components: &[String]) -> Result<String, PackageError> {
        let mut lines = String::new();
        for suite in suites {
            let base = self
                .base(Archive::of_suite(suite))
                .ok_or_else(|| PackageError::NoMirror { suite: suite.clone() })?;
            lines.push_str(&format!("deb [signed-by={KEYRING}] {base} {suite} {}\n", components.join(" ")));
        }
        Ok(lines)
    }
}

/// A package world of our own.
#[derive(Debug)]
pub struct Apt {
    dir: PathBuf,
    architecture: String,
    /// Other architectures that packages are asked for.
    foreign: Vec<String>,
    suites: Vec<String>,
}

/// What packages are resolved from.
#[derive(Debug, Clone, Copy)]
pub struct Sources<'a> {
    /// The suites, the release first.
    pub suites: &'a [String],
    /// Components of each.
    pub components: &'a [String],
    /// The tree's architecture.
    pub architecture: &'a str,
}

/// Packages by name, version and architecture.
type Known = BTreeMap<(String, String, String), Stanza>;

/// What one package list says of one version of one package.
#[derive(Debug, Clone)]
struct Stanza {
    package: Package,
    is_base: bool,
    provides: Vec<String>,
}

impl Apt {
    /// Sets up a world below `cache` that can resolve `requested`, and fetches its package lists.
    pub fn open(
        cache: &Path,
        mirrors: &Mirrors,
        sources: Sources<'_>,
        requested: &[PackageRequest],
    ) -> Result<Self, PackageError> {
        let architecture = sources.architecture;
        let named: BTreeSet<&String> = requested.iter().filter_map(|one| one.architecture.as_ref()).collect();
        let foreign: Vec<String> = named.into_iter().filter(|name| *name != architecture).cloned().collect();
        let text = mirrors.render_sources(sources.suites, sources.components)?;
        let key = Digest::of(format!("{architecture} {}\n{text}", foreign.join(" ")).as_bytes()).hex();
        let dir = cache.join("lists").join(&key[..16]);
        for sub in ["state/lists/partial", "cache/archives/partial"] {
            let path = dir.join(sub);
            std::fs::create_dir_all(&path).map_err(at(&path))?;
        }
        let path = dir.join("sources.list");
        std::fs::write(&path, text).map_err(at(&path))?;
        let (architecture, suites) = (architecture.to_owned(), sources.suites.to_vec());
        let apt = Self { dir, architecture, foreign, suites };
        // Old lists would resolve to versions that the mirror has dropped: a failure is a failure.
        run(apt.command("apt-get").args(["-qq", "-o", "APT::Update::Error-Mode=any", "update"]))?;
        Ok(apt)
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        let dir = self.dir.display();
        for option in [
            format!("Dir::State={dir}/state"),
            format!("Dir::Cache={dir}/cache"),
            format!("Dir::Etc::sourcelist={dir}/sources.list"),
            format!("APT::Architecture={}", self.architecture),
            format!(
                "APT::Architectures={}",
                [std::slice::from_ref(&self.architecture), &self.foreign[..]].concat().join(",")
            ),
        ] {
            command.arg("-o").arg(option);
        }
        for option in [
            "Dir::State::status=/dev/null",
            "Dir::Etc::sourceparts=/dev/null",
            "Dir::Etc::preferences=/dev/null",
            "Dir::Etc::preferencesparts=/dev/null",
            "APT::Install-Recommends=false",
            "APT::Install-Suggests=false",
            "APT::Get::AllowUnauthenticated=false",
            "Acquire::Languages=none",
            "Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false",
        ] {
            command.arg("-o").arg(option);
        }
        command.env("LC_ALL", "C.UTF-8").env("DEBIAN_FRONTEND", "noninteractive");
        command
    }

    /// The exact packages that `requested` and a working base need.
    pub fn resolve(&self, requested: &[PackageRequest]) -> Result<Vec<Package>, PackageError> {
        let known = self.read_lists()?;
        self.require_known(&known, requested)?;
        let is_base =
            |stanza: &&Stanza| stanza.is_base && !self.foreign.contains(&stanza.package.architecture);
        let base: BTreeSet<&str> =
            known.values().filter(is_base).map(|stanza| stanza.package.name.as_str()).collect();
        let mut command = self.command("apt-get");
        // Quieter than once, apt keeps its reasons to itself.
        command.args(["-q=1", "--simulate", "install"]).args(&base);
        command.args(requested.iter().map(ToString::to_string));
        let output = command
            .output()
            .map_err(|source| CommandError::Start { program: "apt-get".to_owned(), source })?;
        let simulated = String::from_utf8_lossy(&output.stdout);
        if !output.status.success() {
            let told = conflict::reason(&simulated, &String::from_utf8_lossy(&output.stderr));
            let packages = conflict::involved(&told, requested);
            return Err(PackageError::Conflict { packages, told });
        }
        let mut packages = Vec::new();
        for installed in parse_simulation(&simulated) {
            let stanza = known.get(&installed).ok_or_else(|| {
                let (name, version, architecture) = &installed;
                PackageError::Answer(format!("{name} {version} ({architecture}) is in no package list"))
            })?;
            packages.push(stanza.package.clone());
        }
        packages.sort();
        Ok(packages)
    }

    /// Every request names a package, an architecture and a version that the suites have.
    fn require_known(&self, known: &Known, requested: &[PackageRequest]) -> Result<(), PackageError> {
        let mut versions: BTreeMap<(&str, &str), BTreeSet<&str>> = BTreeMap::new();
        for ((name, version, architecture), stanza) in known {
            let mut add = |name| {
                versions.entry((name, architecture)).or_default().insert(version);
            };
            add(name.as_str());
            stanza.provides.iter().for_each(|name| add(name));
        }
        let of = |request: &PackageRequest| {
            let architecture = request.architecture.as_deref().unwrap_or(&self.architecture);
            let found = |architecture| versions.get(&(request.name.as_str(), architecture));
            found(architecture).into_iter().chain(found("all")).flatten().copied().collect::<Vec<&str>>()
        };
        let unknown: Vec<String> =
            requested.iter().filter(|one| of(one).is_empty()).map(ToString::to_string).collect();
        if !unknown.is_empty() {
            return Err(PackageError::Unknown { packages: unknown, suites: self.suites.clone() });
        }
        for request in requested {
            if let Pin::Version(version) = &request.pin
                && !of(request).contains(&version.as_str())
            {
                let there = of(request).into_iter().map(str::to_owned).collect();
                return Err(PackageError::NoVersion { request: request.to_string(), there });
            }
        }
        Ok(())
    }

    fn read_lists(&self) -> Result<Known, PackageError> {
        let mut targets = self.command("apt-get");
        targets.args(["indextargets", "--format", "$(RELEASE)|$(FILENAME)", "Created-By: Packages"]);
        let mut known = BTreeMap::new();
        for line in run_text(&mut targets)?.lines() {
            let Some((suite, file)) = line.split_once('|') else { continue };
            // Lists are kept compressed in whatever apt likes: its own helper reads them.
            let text = run_text(Command::new("/usr/lib/apt/apt-helper").args(["cat-file", file]))?;
            for stanza in text.split("\n\n").filter_map(|text| parse_stanza(text, Archive::of_suite(suite))) {
                let Package { name, version, architecture, .. } = &stanza.package;
                let key = (name.clone(), version.clone(), architecture.clone());
                // The first suite named wins when two carry the same version.
                known.entry(key).or_insert(stanza);
            }
        }
        if known.is_empty() {
            return Err(PackageError::Answer("the package lists are empty".to_owned()));
        }
        Ok(known)
    }
}

fn parse_stanza(text: &str, archive: Archive) -> Option<Stanza> {
    let mut fields = BTreeMap::new();
    for line in text.lines() {
        if let Some((key, value)) = line.split_once(": ")
            && !line.starts_with(' ')
        {
            fields.insert(key, value.trim());
        }
    }
    let text = |key: &str| fields.get(key).map(|value| (*value).to_owned());
    let is_base = fields.get("Essential") == Some(&"yes") || fields.get("Priority") == Some(&"required");
    let provides = fields.get("Provides").map_or_else(Vec::new, |list| {
        list.split(',').filter_map(|one| one.split_whitespace().next()).map(str::to_owned).collect()
    });
    let package = Package {
        name: text("Package")?,
        version: text("Version")?,
        architecture: text("Architecture")?,
        sha256: Digest::parse_hex(fields.get("SHA256")?).ok()?,
        size: fields.get("Size")?.parse().ok()?,
        archive,
        path: text("Filename")?,
    };
    Some(Stanza { package, is_base, provides })
}

/// Reads the lines `Inst NAME[:ARCHITECTURE] (VERSION SUITE [ARCHITECTURE])`.
fn parse_simulation(text: &str) -> Vec<(String, String, String)> {
    text.lines()
        .filter_map(|line| {
            let (name, rest) = line.strip_prefix("Inst ")?.split_once(" (")?;
            let (inside, _) = rest.split_once(')')?;
            let version = inside.split_whitespace().next()?;
            let (_, architecture) = inside.rsplit_once('[')?;
            let name = name.split(':').next().unwrap_or(name);
            Some((name.to_owned(), version.to_owned(), architecture.trim_end_matches(']').to_owned()))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mirrors() {
        let text = "Debian Backports|Debian Backports|http://a/debian/\nDebian|Debian|http://m/debian/\nDebian|Debian-Security|http://s/debian-security/\n";
        let mirrors = Mirrors::parse(text);
        assert_eq!(mirrors.base(Archive::Main), Some("http://m/debian"));
        assert_eq!(mirrors.base(Archive::Security), Some("http://s/debian-security"));
        let sources = mirrors
            .render_sources(&["trixie".into(), "trixie-security".into()], &["main".into(), "contrib".into()])
            .unwrap();
        assert!(sources.contains("http://m/debian trixie main contrib\n"));
        assert!(sources.contains("http://s/debian-security trixie-security main contrib\n"));
        let named = Mirrors::observe(Some("http://x/debian/")).unwrap();
        assert_eq!(named.security.as_deref(), Some("http://x/debian-security"));
        let error = Mirrors::default().render_sources(&["trixie".into()], &[]).unwrap_err();
        assert!(error.to_string().contains("suite trixie"));
    }

    #[test]
    fn stanzas_and_simulations() {
        let sha = "0".repeat(64);
        let text = format!(
            "Package: bash\nVersion: 5.2-1\nEssential: yes\nArchitecture: amd64\nDescription: x\n more: y\nProvides: sh, shell (= 1)\nFilename: pool/b.deb\nSize: 12\nSHA256: {sha}"
        );
        let stanza = parse_stanza(&text, Archive::Security).unwrap();
        assert!(stanza.is_base);
        assert_eq!(stanza.provides, ["sh", "shell"]);
        assert_eq!((stanza.package.size, stanza.package.path.as_str()), (12, "pool/b.deb"));
        assert!(parse_stanza("Package: x\n", Archive::Main).is_none());
        let simulated = "NOTE\nInst bash (5.2-1 Debian:13/stable [amd64]) []\nConf bash (5.2-1 Debian:13/stable [amd64])\nInst libc6:i386 (2.41-12 Debian:13.1/stable, Debian-Security:13/stable-security [i386])\n";
        let expected = [("bash", "5.2-1", "amd64"), ("libc6", "2.41-12", "i386")]
            .map(|(name, version, architecture)| (name.into(), version.into(), architecture.into()));
        assert_eq!(parse_simulation(simulated), expected);
    }
}
