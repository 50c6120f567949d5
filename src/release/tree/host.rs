//! Makes the host's part of the tree: everything but services.
//!
//! 1. packages (cached by their list), their accounts at fixed ids; 2. binaries, and rackstep itself; 3. files of the host image; 4. units;
//! 5. postprocess scripts; 6. kernel, its modules, initramfs; 7. cleaned, and laid out for ostree. The result is cached whole.

use std::path::{Path, PathBuf};

use super::binaries::BinaryError;
use super::cache::{Cache, copy_tree};
use super::files::{self, FileError};
use crate::model::{KERNEL_ARGUMENTS, Progress, RELEASE_DIR};
use crate::release::compose::plan::ComposePlan;
use crate::release::manifest::{Lock, Treefile};
use crate::rim::command::CommandError;
use crate::rim::packages::apt::Mirrors;
use crate::rim::packages::{
    PackageError, accounts, bootstrap, chroot, clean, download, initramfs, layout, modules,
};

const PACKAGES_STAGE: &str = "stage-packages";
const HOST_STAGE: &str = "stage-host";
/// Where scripts stand while they run in the tree.
const SCRIPT_PATH: &str = "rackstep-postprocess";

/// Why the host's tree could not be made.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// Packages, initramfs or layout.
    #[error(transparent)]
    Package(#[from] PackageError),
    /// A binary.
    #[error(transparent)]
    Binary(#[from] BinaryError),
    /// A file.
    #[error("laying files over the tree")]
    File(#[from] FileError),
    /// A file of ours that no host would ever see.
    #[error("{source_path}: /{place} is not part of a release: {why}", source_path = source_path.display(), place = place.display())]
    Lost {
        /// The file in the overlay.
        source_path: PathBuf,
        /// Where it would stand in the tree, links resolved.
        place: PathBuf,
        /// Why it would be lost, and what to do instead.
        why: &'static str,
    },
    /// A program.
    #[error(transparent)]
    Command(#[from] CommandError),
    /// A cached stage could not be kept.
    #[error("keeping {stage} in the cache")]
    Cache {
        /// The stage.
        stage: &'static str,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

/// Codes that decide the outcome of the host stages, for their keys.
pub fn recipe() -> String {
    format!(
        "{}\nhost 1\naccounts {}\nclean {}\nmodules {}\ninitramfs {}\nlayout {}",
        bootstrap::recipe(),
        accounts::ACCOUNTS_VERSION,
        clean::CLEAN_VERSION,
        modules::MODULES_VERSION,
        initramfs::INITRAMFS_VERSION,
        layout::LAYOUT_VERSION
    )
}

/// Everything that the host stages work with.
#[derive(Debug)]
pub struct HostInputs<'a> {
    /// The treefile.
    pub treefile: &'a Treefile,
    /// Path of the treefile.
    pub treefile_path: &'a Path,
    /// The lock.
    pub lock: &'a Lock,
    /// Programs: path in the tree → file.
    pub programs: &'a [(String, PathBuf)],
    /// Where packages come from; none: nothing may be missing.
    pub mirror: Option<&'a str>,
}

/// Gives the directory of the finished host tree; nobody may change a file in it.
pub fn ensure(
    cache: &Cache,
    plan: &ComposePlan,
    inputs: &HostInputs<'_>,
    work: &Path,
    progress: &dyn Progress,
) -> Result<PathBuf, HostError> {
    if let Some(found) = cache.find(HOST_STAGE, &plan.host_key) {
        progress.begin("host tree", None);
        progress.end("taken from the cache");
        return Ok(found);
    }
    let packages = ensure_packages(cache, plan, inputs, work, progress)?;
    let root = work.join("host");
    progress.begin("host files", None);
    copy_tree(&packages, &root)?;
    let fixed = accounts::FixedIds { users: &inputs.treefile.users, groups: &inputs.treefile.groups };
    accounts::fix(&root, fixed)?;
    lay_files(inputs, &root)?;
    progress.end(&format!(
        "{} binaries, {} units",
        inputs.programs.len(),
        inputs.treefile.units.enable.len()
    ));
    postprocess(inputs, &root, progress)?;
    prepare_kernel(inputs, &root, progress)?;
    progress.begin("ostree layout", None);
    clean::clean(&root, inputs.lock.created)?;
    layout::convert(&root)?;
    progress.end("");
    cache
        .keep(HOST_STAGE, &plan.host_key, &root)
        .map_err(|source| HostError::Cache { stage: HOST_STAGE, source })
}

fn ensure_packages(
    cache: &Cache,
    plan: &ComposePlan,
    inputs: &HostInputs<'_>,
    work: &Path,
    progress: &dyn Progress,
) -> Result<PathBuf, HostError> {
    if let Some(found) = cache.find(PACKAGES_STAGE, &plan.packages_key) {
        progress.begin("packages", None);
        progress.end(&format!("{} packages taken from the cache", inputs.lock.packages.len()));
        return Ok(found);
    }
    let lock = inputs.lock;
    let mirrors = Mirrors::observe(inputs.mirror)?;
    download::fetch_all(cache.dir(), &mirrors, &lock.packages, progress)?;
    progress.begin("unpacking packages", None);
    let root = work.join("packages");
    let suite = lock.suites.first().map_or("", String::as_str);
    bootstrap::install(cache.dir(), &lock.packages, suite, &lock.architecture, work, &root)?;
    progress.end(&format!("{} packages", lock.packages.len()));
    cache
        .keep(PACKAGES_STAGE, &plan.packages_key, &root)
        .map_err(|source| HostError::Cache { stage: PACKAGES_STAGE, source })
}

fn lay_files(inputs: &HostInputs<'_>, root: &Path) -> Result<(), HostError> {
    for files in &inputs.treefile.files {
        for laid in files::lay_over(files, root, Path::new(""))? {
            if let Some(why) = layout::why_lost(&laid.place) {
                return Err(HostError::Lost { source_path: laid.source, place: laid.place, why });
            }
        }
    }
    for (path, program) in inputs.programs {
        files::install(program, root, Path::new(path), 0o755)?;
    }
    // Kernel arguments of every host, for whoever writes its first boot entry.
    let arguments = serde_json::json!(inputs.treefile.kernel_arguments);
    let file = Path::new(RELEASE_DIR).join(KERNEL_ARGUMENTS);
    files::write(root, &file, format!("{arguments:#}\n").as_bytes())?;
    let units = &inputs.treefile.units;
    // In this order: what is enabled wins over what is disabled.
    for (verb, names) in [("disable", &units.disable), ("enable", &units.enable), ("mask", &units.mask)] {
        if names.is_empty() {
            continue;
        }
        let mut command =
            vec!["systemctl".to_owned(), "--root=/".to_owned(), "--quiet".to_owned(), verb.to_owned()];
        command.extend(names.iter().cloned());
        chroot::run_in(root, &format!("systemctl {verb}"), inputs.lock.created, &command)?;
    }
    Ok(())
}

fn postprocess(inputs: &HostInputs<'_>, root: &Path, progress: &dyn Progress) -> Result<(), HostError> {
    let scripts = &inputs.treefile.postprocess;
    if scripts.is_empty() {
        return Ok(());
    }
    progress.begin("postprocess", Some(scripts.len() as u64));
    for script in scripts {
        let inside = root.join(SCRIPT_PATH);
        files::install(script, root, Path::new(SCRIPT_PATH), 0o755)?;
        let name = script.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let outcome = chroot::run_in(
            root,
            &format!("running {name}"),
            inputs.lock.created,
            [format!("/{SCRIPT_PATH}")],
        );
        crate::rim::packages::remove(&inside)?;
        outcome?;
        progress.advance(1);
    }
    progress.end(&format!("{} scripts", scripts.len()));
    Ok(())
}

fn prepare_kernel(inputs: &HostInputs<'_>, root: &Path, progress: &dyn Progress) -> Result<(), HostError> {
    let Some(kernel) = initramfs::observe_kernel(root)? else { return Ok(()) };
    progress.begin("kernel modules", None);
    let unpacked = modules::unpack(root, &kernel, inputs.lock.created)?;
    progress.end(&format!("{unpacked} unpacked"));
    progress.begin("initramfs", None);
    initramfs::place_kernel(root, &kernel)?;
    let wanted = &inputs.treefile.initramfs;
    let image = initramfs::build(root, &kernel, &wanted.modules, &wanted.drivers, inputs.lock.created)?;
    let size = image.metadata().map_or(0, |found| found.len());
    progress.end(&format!("kernel {kernel}, {} MB", size / 1_000_000));
    Ok(())
}
