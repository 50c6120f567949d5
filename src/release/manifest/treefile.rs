//! The treefile: what a host tree is made of.
//!
//! 1. [`Fragment`] is one file as written; 2. `include` brings in others first, lists append and scalars
//!    override; 3. [`Treefile`] is the merged and validated whole, its paths resolved against the file that named them.
//!
//! Nothing is guessed: an unknown key, a missing name or a path that does not exist is an error with its line.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::{ImageSource, Origin};
use crate::model::place::{InputError, Place, SourceText};
use crate::model::{Digest, PackageRequest, Ref, is_debian_name, kernel_argument};
use crate::release::lock::ARCHITECTURE;

/// What Debian divides its suites into; the first is always taken.
pub const COMPONENTS: [&str; 4] = ["main", "contrib", "non-free", "non-free-firmware"];

/// How deep fragments may include each other: deeper is a circle.
const MAX_INCLUDE_DEPTH: usize = 16;

/// One file as written.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Fragment {
    name: Option<String>,
    #[serde(rename = "ref")]
    follows: Option<String>,
    version: Option<String>,
    include: Vec<String>,
    suites: Vec<String>,
    components: Vec<String>,
    packages: Vec<String>,
    binaries: Vec<Binary>,
    files: Option<String>,
    users: BTreeMap<String, u32>,
    groups: BTreeMap<String, u32>,
    units: Units,
    postprocess: Vec<String>,
    initramfs: Initramfs,
    kernel_arguments: Vec<String>,
    services: Vec<String>,
    images: BTreeMap<String, ImageSource>,
    upgrade_from: Vec<String>,
}

/// A program that is in no distribution package.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Binary {
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: String,
    /// Where it comes from, such as `go:k8s.io/kubernetes/cmd/kubelet`.
    pub source: String,
    /// Path in the tree.
    pub install: String,
    /// What it must be, as 64 hexadecimal digits.
    #[serde(default)]
    pub sha256: Option<String>,
    /// Where to download it instead of building it.
    #[serde(default)]
    pub url: Option<String>,
}

/// Which systemd units a host starts.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Units {
    /// Enabled by preset.
    pub enable: Vec<String>,
    /// Disabled.
    pub disable: Vec<String>,
    /// Never started, by nobody.
    pub mask: Vec<String>,
}

/// What goes into the initramfs besides dracut's defaults.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Initramfs {
    /// dracut modules to add.
    pub modules: Vec<String>,
    /// Kernel drivers to add.
    pub drivers: Vec<String>,
}

/// A host tree's description, merged and validated.
#[derive(Debug, Clone)]
pub struct Treefile {
    /// Name of the host image.
    pub name: String,
    /// The ref that its releases are written to.
    pub follows: Ref,
    /// The version that people say.
    pub version: String,
    /// Distribution suites, the release first.
    pub suites: Vec<String>,
    /// Components of each suite, `main` first.
    pub components: Vec<String>,
    /// Packages asked for; their dependencies come by themselves.
    pub packages: Vec<String>,
    /// Programs that no package has.
    pub binaries: Vec<Binary>,
    /// Trees of files laid over the packages, in order.
    pub files: Vec<PathBuf>,
    /// Ids of the users that packages make; with `groups`: every one of them, or none.
    pub users: BTreeMap<String, u32>,
    /// Ids of the groups that packages make.
    pub groups: BTreeMap<String, u32>,
    /// systemd units.
    pub units: Units,
    /// Scripts run in the tree, in order.
    pub postprocess: Vec<PathBuf>,
    /// The initramfs.
    pub initramfs: Initramfs,
    /// Kernel arguments of every host.
    pub kernel_arguments: Vec<String>,
    /// Directories of service definitions.
    pub services: Vec<PathBuf>,
    /// Container images that no service names, or from elsewhere than a service says.
    pub images: BTreeMap<String, Origin>,
    /// Versions that may be upgraded to this one; empty: any.
    pub upgrade_from: Vec<String>,
    /// Every file that was read, the named one last.
    pub sources: Vec<SourceText>,
}

impl Treefile {
    /// Parses a treefile that stands alone; its paths stay relative.
    pub fn parse(text: &str, file_name: &str) -> Result<Self, InputError> {
        Self::load_with(Path::new(file_name), &mut |path| {
            if path == Path::new(file_name) {
                Ok(text.to_owned())
            } else {
                Err(std::io::ErrorKind::NotFound.into())
            }
        })
    }

    /// Reads a treefile and what it includes, and checks that the files it names exist.
    pub fn load(path: &Path) -> Result<Self, InputError> {
        let treefile = Self::load_with(path, &mut |path| std::fs::read_to_string(path))?;
        treefile.require_files()?;
        Ok(treefile)
    }

    /// Reads fragments through `read`: the part without a file system.
    pub fn load_with(
        path: &Path,
        read: &mut dyn FnMut(&Path) -> std::io::Result<String>,
    ) -> Result<Self, InputError> {
        let mut merged = Merged::default();
        merged.add(path, None, 0, read)?;
        merged.validate()
    }

    /// An error about `value` under `key`, at the place in the file that names it.
    pub fn error(&self, key: &str, value: &str, message: impl Into<String>) -> InputError {
        error_in(&self.sources, key, value, message)
    }

    fn require_files(&self) -> Result<(), InputError> {
        for (key, paths, is_directory) in [
            ("files", &self.files, true),
            ("postprocess", &self.postprocess, false),
            ("services", &self.services, true),
        ] {
            for path in paths {
                let found = if is_directory { path.is_dir() } else { path.is_file() };
                if !found {
                    let what = if is_directory { "directory" } else { "file" };
                    let written = self.as_written(path);
                    return Err(self.error(key, &written, format!("{key}: {what} {written} does not exist")));
                }
            }
        }
        for (name, origin) in &self.images {
            if let Some(path) = origin.missing_file() {
                let what = if matches!(origin, Origin::Recipe(_)) { "recipe" } else { "image source" };
                let message = format!("images: {name}: {what} {} does not exist", path.display());
                return Err(self.error("images", name, message));
            }
        }
        Ok(())
    }

    /// The path as a source spells it: the longest ending of `path` that one of the sources mentions.
    fn as_written(&self, path: &Path) -> String {
        for source in self.sources.iter().rev() {
            let base = Path::new(&source.file).parent().unwrap_or(Path::new(""));
            if let Ok(rest) = path.strip_prefix(base)
                && source.text.contains(&*rest.to_string_lossy())
            {
                return rest.to_string_lossy().into_owned();
            }
        }
        path.display().to_string()
    }
}

fn error_in(sources: &[SourceText], key: &str, value: &str, message: impl Into<String>) -> InputError {
    let source = sources.iter().rev().find(|source| source.mentions(key, value)).or(sources.last());
    match source {
        Some(source) => source.error(key, value, message),
        None => InputError::of_file("treefile", message),
    }
}

/// Fragments laid over each other, not yet validated.
#[derive(Debug, Default)]
struct Merged {
    fragment: Fragment,
    files: Vec<PathBuf>,
    postprocess: Vec<PathBuf>,
    services: Vec<PathBuf>,
    images: BTreeMap<String, Origin>,
    sources: Vec<SourceText>,
}

impl Merged {
    fn add(
        &mut self,
        path: &Path,
        included_by: Option<(&SourceText, &str)>,
        depth: usize,
        read: &mut dyn FnMut(&Path) -> std::io::Result<String>,
    ) -> Result<(), InputError> {
        let file = path.display().to_string();
        let blame = |message: String| match included_by {
            Some((source, written)) => source.error("include", written, message),
            None => InputError::of_file(&file, message),
        };
        if depth > MAX_INCLUDE_DEPTH {
            return Err(blame(format!("include: {file} includes itself, or is nested too deep")));
        }
        let text = read(path).map_err(|error| blame(format!("cannot read {file}: {error}")))?;
        let source = SourceText::new(&file, text);
        // A file of comments alone is YAML's null.
        let fragment = source.parse::<Option<Fragment>>()?.unwrap_or_default();
        let base = path.parent().unwrap_or(Path::new(""));
        for include in &fragment.include {
            self.add(&base.join(include), Some((&source, include)), depth + 1, read)?;
        }
        let under =
            |paths: &[String]| paths.iter().map(|path| normalize(&base.join(path))).collect::<Vec<_>>();
        self.files.extend(under(fragment.files.as_slice()));
        self.postprocess.extend(under(&fragment.postprocess));
        self.services.extend(under(&fragment.services));
        for (name, image) in &fragment.images {
            let origin = image.origin(base);
            let wrong = |message| source.error("images", name, format!("images: {name}: {message}"));
            self.images.insert(name.clone(), origin.map_err(wrong)?.map_path(normalize));
        }
        self.sources.push(source);
        self.fragment.lay_over(fragment);
        Ok(())
    }

    fn validate(self) -> Result<Treefile, InputError> {
        let Self { fragment, files, postprocess, services, images, sources } = self;
        let missing = |key: &str| {
            let file = sources.last().map_or("treefile", |source| source.file.as_str());
            InputError::of_file(file, format!("key `{key}` is missing"))
        };
        let wrong = |key: &str, value: &str, message: String| Err(error_in(&sources, key, value, message));

        let name = fragment.name.clone().ok_or_else(|| missing("name"))?;
        let follows_text = fragment.follows.clone().ok_or_else(|| missing("ref"))?;
        let follows: Ref = match follows_text.parse() {
            Ok(parsed) => parsed,
            Err(error) => return wrong("ref", &follows_text, format!("ref: {error}")),
        };
        let version = fragment.version.clone().ok_or_else(|| missing("version"))?;
        if version.is_empty() || !version.chars().all(|c| c.is_ascii_alphanumeric() || ".-+~_".contains(c)) {
            return wrong(
                "version",
                &version,
                format!("version: {version:?} has other characters than A-Z a-z 0-9 . - + ~ _"),
            );
        }
        if fragment.suites.is_empty() {
            return Err(missing("suites"));
        }
        if let Some(suite) = fragment.suites.iter().find(|suite| !is_debian_name(suite)) {
            return wrong("suites", suite, format!("suites: {suite:?} is not the name of a suite"));
        }
        if let Some(component) = fragment.components.iter().find(|one| !COMPONENTS.contains(&one.as_str())) {
            let message = format!("components: {component:?} is none of {}", COMPONENTS.join(", "));
            return wrong("components", component, message);
        }
        let mut packages = Vec::new();
        for package in &fragment.packages {
            match package.parse::<PackageRequest>() {
                Ok(request) => packages.push(request),
                Err(error) => return wrong("packages", package, format!("packages: {error}")),
            }
        }
        for argument in &fragment.kernel_arguments {
            if let Some(problem) = kernel_argument::problem_of(argument) {
                return wrong(
                    "kernel_arguments",
                    argument,
                    format!("kernel_arguments: {argument:?}: {problem}"),
                );
            }
        }
        for binary in &fragment.binaries {
            check_binary(binary).map_err(|message| error_in(&sources, "binaries", &binary.name, message))?;
        }
        Ok(Treefile {
            name,
            follows,
            version,
            suites: unique(fragment.suites),
            components: unique([vec![COMPONENTS[0].to_owned()], fragment.components].concat()),
            packages: last_requests(packages).iter().map(ToString::to_string).collect(),
            binaries: last_of_each(fragment.binaries),
            files,
            users: fragment.users,
            groups: fragment.groups,
            units: fragment.units,
            postprocess,
            initramfs: fragment.initramfs,
            kernel_arguments: fragment.kernel_arguments,
            services,
            images,
            upgrade_from: fragment.upgrade_from,
            sources,
        })
    }
}

impl Fragment {
    fn lay_over(&mut self, over: Self) {
        self.name = over.name.or(self.name.take());
        self.follows = over.follows.or(self.follows.take());
        self.version = over.version.or(self.version.take());
        self.suites.extend(over.suites);
        self.components.extend(over.components);
        self.packages.extend(over.packages);
        self.binaries.extend(over.binaries);
        self.users.extend(over.users);
        self.groups.extend(over.groups);
        self.units.enable.extend(over.units.enable);
        self.units.disable.extend(over.units.disable);
        self.units.mask.extend(over.units.mask);
        self.initramfs.modules.extend(over.initramfs.modules);
        self.initramfs.drivers.extend(over.initramfs.drivers);
        self.kernel_arguments.extend(over.kernel_arguments);
        self.upgrade_from.extend(over.upgrade_from);
    }
}

fn check_binary(binary: &Binary) -> Result<(), String> {
    let name = &binary.name;
    if !binary.install.starts_with("/usr/") || binary.install.split('/').any(|part| part == "..") {
        return Err(format!("binaries: {name}: install path {:?} is not below /usr", binary.install));
    }
    if let Some(sha256) = &binary.sha256 {
        Digest::parse_hex(sha256).map_err(|error| format!("binaries: {name}: sha256: {error}"))?;
    }
    match (&binary.url, &binary.sha256) {
        (Some(_), None) => Err(format!("binaries: {name}: a url without sha256 pins nothing")),
        (None, _) if !binary.source.starts_with("go:") => Err(format!(
            "binaries: {name}: source {:?} is neither go:PACKAGE nor accompanied by a url",
            binary.source
        )),
        _ => Ok(()),
    }
}

/// A package named again in a later fragment, perhaps of another version, replaces the earlier request.
fn last_requests(requests: Vec<PackageRequest>) -> Vec<PackageRequest> {
    let key = |request: &PackageRequest| {
        let architecture = request.architecture.clone().unwrap_or_else(|| ARCHITECTURE.to_owned());
        (request.name.clone(), architecture)
    };
    let mut kept: Vec<PackageRequest> = Vec::new();
    for request in requests {
        match kept.iter_mut().find(|earlier| key(earlier) == key(&request)) {
            Some(earlier) => *earlier = request,
            None => kept.push(request),
        }
    }
    kept
}

/// Takes `a/./b/../c` for `a/c`: the same directory must have one spelling for messages and keys.
fn normalize(path: &Path) -> PathBuf {
    use std::path::Component;
    let mut clean = PathBuf::new();
    for component in path.components() {
        match component {
            Component::CurDir => {}
            Component::ParentDir if matches!(clean.components().next_back(), Some(Component::Normal(_))) => {
                clean.pop();
            }
            other => clean.push(other),
        }
    }
    clean
}

fn unique(items: Vec<String>) -> Vec<String> {
    let mut seen = std::collections::BTreeSet::new();
    items.into_iter().filter(|item| seen.insert(item.clone())).collect()
}

/// A binary named again in a later fragment replaces the earlier one.
fn last_of_each(binaries: Vec<Binary>) -> Vec<Binary> {
    let mut kept: Vec<Binary> = Vec::new();
    for binary in binaries {
        match kept.iter_mut().find(|earlier| earlier.name == binary.name) {
            Some(earlier) => *earlier = binary,
            None => kept.push(binary),
        }
    }
    kept
}

/// Where the treefile as a whole stands, for errors without a line.
impl From<&Treefile> for Place {
    fn from(treefile: &Treefile) -> Self {
        let file = treefile.sources.last().map_or_else(String::new, |source| source.file.clone());
        Self { file, position: None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BASE: &str = "name: host\nref: r/x\nversion: \"1.0\"\nsuites: [trixie]\n";

    #[test]
    fn merges_fragments() {
        let files = [
            (
                "dir/base.yaml",
                "name: base\nref: r/base\nversion: \"1\"\nsuites: [trixie]\npackages: [bash, ssh]\nfiles: root\nservices: [../m/keystone]\nbinaries:\n- {name: k, version: v1, source: 'go:x', install: /usr/bin/k}\n",
            ),
            (
                "dir/top.yaml",
                "include: [base.yaml]\nversion: \"2\"\ncomponents: [non-free-firmware]\npackages: [vim, bash/trixie-backports, 'ssh:i386', ssh=1.2-3]\nfiles: more\nunits: {mask: [x.service]}\nbinaries:\n- {name: k, version: v2, source: 'go:x', install: /usr/bin/k}\n",
            ),
        ];
        let mut read = |path: &Path| {
            let found = files.iter().find(|(name, _)| Path::new(name) == path);
            found.map(|(_, text)| (*text).to_owned()).ok_or_else(|| std::io::ErrorKind::NotFound.into())
        };
        let treefile = Treefile::load_with(Path::new("dir/top.yaml"), &mut read).unwrap();
        assert_eq!((treefile.name.as_str(), treefile.version.as_str()), ("base", "2"));
        assert_eq!(treefile.packages, ["bash/trixie-backports", "ssh=1.2-3", "vim", "ssh:i386"]);
        assert_eq!(treefile.components, ["main", "non-free-firmware"]);
        assert_eq!(treefile.files, [PathBuf::from("dir/root"), PathBuf::from("dir/more")]);
        assert_eq!(treefile.services, [PathBuf::from("m/keystone")]);
        assert_eq!(treefile.units.mask, ["x.service"]);
        assert_eq!(treefile.binaries[0].version, "v2");
        assert_eq!(treefile.error("packages", "bash", "gone").to_string(), "dir/base.yaml:5:12: gone");
    }

    #[test]
    fn errors_name_file_line_and_thing() {
        let table = [
            (
                format!("{BASE}packages: [Bash]\n"),
                "t.yaml:5:12: packages: \"Bash\" is not the name of a package",
            ),
            (
                format!("{BASE}packages:\n  - bash\n  - a b\n"),
                "t.yaml:7:5: packages: \"a b\" is not the name of a package",
            ),
            (
                format!("{BASE}components: [main, non-free-firmwares]\n"),
                "t.yaml:5:20: components: \"non-free-firmwares\" is none of main, contrib, non-free, non-",
            ),
            (
                format!("{BASE}packages: [bash, 'ssh=1 2']\n"),
                "t.yaml:5:19: packages: \"ssh=1 2\" is not the name of a package (NAME[:ARCH",
            ),
            (
                format!("{BASE}kernel_arguments: [quiet, \"x='y\"]\n"),
                "t.yaml:5:28: kernel_arguments: \"x='y\": it has a quote",
            ),
            (
                format!("{BASE}kernel_arguments:\n- a b\n"),
                "t.yaml:6:3: kernel_arguments: \"a b\": it has a blank, which ends an argument",
            ),
            (format!("{BASE}pakages: [bash]\n"), "t.yaml:5:1: unknown field `pakages`"),
            (format!("{BASE}packages: bash\n"), "t.yaml:5:11: packages: invalid type"),
            (format!("{BASE}packages: [bash\n"), "t.yaml:6:1: did not find expected ',' or ']'"),
            ("name: x\nref: a//b\nversion: \"1\"\n".into(), "t.yaml:2:6: ref: \"a//b\" is not a ref"),
            ("name: x\nref: a/b\n".into(), "t.yaml: key `version` is missing"),
            ("# nothing\n".into(), "t.yaml: key `name` is missing"),
            (format!("{BASE}include: [no.yaml]\n"), "t.yaml:5:11: cannot read no.yaml: entity not found"),
            (
                format!("{BASE}images:\n  k: {{source: 'registry:Q'}}\n"),
                "t.yaml:6:3: images: k: source \"registry:Q\": \"library/Q\" is not the name of a repository",
            ),
            (format!("{BASE}include: [t.yaml]\n"), "t.yaml:5:11: include: t.yaml includes itself"),
            (
                format!("{BASE}binaries:\n- {{name: k, version: v1, source: 'go:x', install: /opt/k}}\n"),
                "t.yaml:6:10: binaries: k: install path \"/opt/k\" is not below /usr",
            ),
            (
                format!(
                    "{BASE}binaries:\n- {{name: k, version: v1, source: x, install: /usr/bin/k, url: 'http://h/k'}}\n"
                ),
                "t.yaml:6:10: binaries: k: a url without sha256 pins nothing",
            ),
        ];
        for (text, expected) in table {
            let told = Treefile::parse(&text, "t.yaml").unwrap_err().to_string();
            assert!(told.starts_with(expected), "{told}\nexpected {expected}");
        }
    }

    #[test]
    fn files_that_do_not_exist() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("t.yaml");
        std::fs::write(&path, format!("{BASE}files: root\n")).unwrap();
        let told = Treefile::load(&path).unwrap_err().to_string();
        assert!(told.ends_with("t.yaml:5:8: files: directory root does not exist"), "{told}");
    }
}
