//! Images one disk: *look, plan, then wipe*, and the first MiB last.
//!
//! 1. **check**: the disk is still what the plan was made for and may be wiped by what is on it now ([`approve`]), the
//!    release answers ([`release`]), the partition table is made, in memory. So far nothing is written.
//! 2. **wipe**: the last MiB and the first one become zero, and a mark says whose unfinished installation this is
//!    ([`crate::rim::disk::mark`]). From here to the last step nothing on the disk can boot: neither the old system, half
//!    overwritten, nor the new one, half written. Then the ends of every old partition go, with all signatures in them.
//! 3. **partition**: the spans of the partitions are attached as loop devices, wiped and formatted ([`workspace`]).
//! 4. **pull** the release, **deploy** it, **configure** it ([`files`]), put the **bootloader** on it.
//! 5. **seal**: everything unmounted and on the disk ([`Settled`](crate::rim::disk::table::Settled) proves it), then the partition table with
//!    the boot code, read back; what `root=UUID=` will find is looked up; the mark says installed last.
//!
//! The BIOS boot partition's content and the EFI program are written before the table, like everything else: they are not
//! reachable without it. UEFI may take the backup table for the first one, so the backup goes to the disk in the same last
//! step, a moment before the first MiB.
//!
//! It retries nothing on the disk, keeps nothing of an old system, and never says "installed": the booted host does.

pub mod approve;
mod check;
pub mod files;
pub mod inventory;
pub mod release;
pub mod server;
mod steps;
pub mod workspace;

use std::path::Path;

use crate::model::RELEASE_DIR;
use crate::model::imaging::{DiskMark, ImagingPlan, MarkState};
use crate::model::kernel_arguments;
use crate::ostree::sysroot::{STATEROOT, Sysroot};
use crate::rim::disk::DiskError;
use crate::rim::disk::layout::{Layout, plan_layout};
use crate::rim::disk::mark::{BoundMark, fs_uuid};
use crate::rim::disk::signatures::{observe_spans, wipe_span};
use crate::rim::disk::table::PreparedTable;
use crate::rim::disk::target::Target;
use crate::rim::grub::Grub;

use approve::Approved;
pub use steps::{Interrupted, Step, StepError, Watcher};
use workspace::{Uuids, Workspace};

/// Name in the scratch directory of the link to the release's own `grub-config`: what `OSTREE_GRUB2_EXEC` is to name.
pub const GRUB_CONFIG_LINK: &str = "grub-config";

/// One machine, or one image file, to be imaged.
#[derive(Debug, Clone, Copy)]
pub struct Job<'a> {
    /// What to do.
    pub plan: &'a ImagingPlan,
    /// The firmware that must be able to start it: UEFI, BIOS, or whichever the release has GRUB for.
    pub uefi: Option<bool>,
    /// Address that the services announce when the plan has no static one.
    pub address: &'a str,
    /// A directory for small files and mount points. In memory where possible.
    pub scratch: &'a Path,
    /// What the host will call home with; none: it has no rack server to call.
    pub secret: Option<&'a str>,
}

/// Why a disk was not imaged, and what is now true of it.
#[derive(Debug, thiserror::Error)]
#[error("step {step} of imaging {target}")]
pub struct InstallError {
    /// The step that failed.
    pub step: Step,
    /// The disk or file.
    pub target: String,
    /// Why.
    #[source]
    pub source: Box<StepError>,
    /// What is now true.
    pub aftermath: Aftermath,
}

/// What a failure left behind.
#[derive(Debug)]
pub enum Aftermath {
    /// Not a byte was written.
    Untouched,
    /// Both ends of the disk were read back as zero: nothing on it boots.
    Blank,
    /// The disk could not be made blank again.
    Unknown(DiskError),
}

/// Images the disk.
///
/// The approval is taken by value: it is used once.
pub fn install(job: &Job<'_>, approved: Approved, watcher: &dyn Watcher) -> Result<(), InstallError> {
    let target = approved.path().to_owned();
    let fail = |step, source, aftermath| InstallError {
        step,
        target: target.display().to_string(),
        source: Box::new(source),
        aftermath,
    };
    let (target, layout, table) =
        check(job, approved, watcher).map_err(|source| fail(Step::Check, source, Aftermath::Untouched))?;
    write(job, &target, &layout, table, watcher).map_err(|(step, source)| {
        let aftermath = match target.wipe_ends() {
            Ok(()) => Aftermath::Blank,
            Err(error) => Aftermath::Unknown(error),
        };
        fail(step, source, aftermath)
    })
}

fn check(
    job: &Job<'_>,
    approved: Approved,
    watcher: &dyn Watcher,
) -> Result<(Target, Layout, PreparedTable), StepError> {
    steps::run(watcher, Step::Check, || {
        release::require_commit(job.plan)?;
        let target = approved.open()?;
        let layout = plan_layout(target.size())?;
        let table = PreparedTable::prepare(&target, &layout, job.scratch)?;
        Ok((target, layout, table))
    })
}

fn write(
    job: &Job<'_>,
    target: &Target,
    layout: &Layout,
    mut table: PreparedTable,
    watcher: &dyn Watcher,
) -> Result<(), (Step, StepError)> {
    let at = |step| move |source| (step, source);
    let uuids = Uuids::random().map_err(|error| (Step::Wipe, error.into()))?;
    let mark = mark_of(job, layout, &table, target, &uuids);
    steps::run(watcher, Step::Wipe, || {
        let old = observe_spans(target);
        target.wipe_ends()?;
        mark.as_ref().map_or(Ok(()), |mark| mark.write(target))?;
        approve::require_forgotten(target)?;
        old.into_iter().try_for_each(|span| Ok(wipe_span(target, span)?))
    })
    .map_err(at(Step::Wipe))?;

    let mut workspace =
        steps::run(watcher, Step::Partition, || Ok(Workspace::open(target, layout, uuids, job.scratch)?))
            .map_err(at(Step::Partition))?;
    let filled = fill(job, &mut workspace, &mut table, (target, layout), watcher);
    let root = workspace.root_uuid().to_string();
    // Whatever happened, nothing of ours may hold the disk when its ends are written.
    let closed = workspace.close();
    filled?;
    steps::run(watcher, Step::Seal, || {
        let closed = closed?;
        let found = fs_uuid(target, layout.root)?;
        if found.as_ref() != Some(&root) {
            return Err(StepError::RootNotFound {
                expected: root,
                found: found.unwrap_or_else(|| "nothing".to_owned()),
            });
        }
        Ok(table.write(target, mark.as_ref(), closed)?)
    })
    .map_err(at(Step::Seal))
}

/// The mark of this installation; a disk image of which many machines are made has none.
fn mark_of(
    job: &Job<'_>,
    layout: &Layout,
    table: &PreparedTable,
    target: &Target,
    uuids: &Uuids,
) -> Option<BoundMark> {
    let ImagingPlan { host, generation, order, .. } = job.plan;
    if host.is_empty() {
        return None;
    }
    let mark = DiskMark {
        host: host.clone(),
        generation: *generation,
        order: order.clone(),
        state: MarkState::Unfinished,
        secret: job.secret.map(crate::model::machine::secret_digest).unwrap_or_default(),
    };
    let (root_start, root_size) = (layout.root.start, layout.root.size);
    Some(BoundMark {
        mark,
        table: table.guid(target.sector())?,
        root_start,
        root_size,
        root_uuid: uuids.root.to_string(),
    })
}

/// Everything that happens inside the mounted file systems.
fn fill(
    job: &Job<'_>,
    workspace: &mut Workspace,
    table: &mut PreparedTable,
    (target, layout): (&Target, &Layout),
    watcher: &dyn Watcher,
) -> Result<(), (Step, StepError)> {
    let at = |step| move |source| (step, source);
    let plan = job.plan;
    // Dropped with its file descriptors before anything is unmounted.
    let sysroot = steps::run(watcher, Step::Pull, || {
        let sysroot = Sysroot::init(workspace.sysroot(), "grub2")?;
        release::pull(plan, &sysroot, watcher)?;
        Ok(sysroot)
    })
    .map_err(at(Step::Pull))?;

    let root = steps::run(watcher, Step::Deploy, || {
        let root = [format!("root=UUID={}", workspace.root_uuid()), "rw".to_owned()];
        let brought = release::kernel_arguments(plan, &sysroot)?;
        let arguments = kernel_arguments::first(&root, &brought, &plan.kernel_arguments);
        link_grub_config(plan, workspace.sysroot(), job.scratch)?;
        Ok(sysroot.deploy_first(plan.commit, &plan.follows, &arguments)?)
    })
    .map_err(at(Step::Deploy))?;
    drop(sysroot);

    steps::run(watcher, Step::Configure, || {
        let mut files = files::render_files(plan, job.address, workspace.boot_uuid(), workspace.esp_uuid())?;
        files.extend(job.secret.map(files::render_secret));
        files::write_files(&root, &files)?;
        let var = workspace.sysroot().join("ostree/deploy").join(STATEROOT).join("var");
        files::write_ssh_keys(&root, &var, &plan.ssh_keys)?;
        Ok(())
    })
    .map_err(at(Step::Configure))?;

    steps::run(watcher, Step::Bootloader, || {
        let grub = Grub::of(&root)?;
        if let Some(uefi) = job.uefi {
            grub.require(uefi)?;
        }
        if let Some(bios) = grub.make_bios(layout.bios)? {
            target.write(layout.bios.start, &bios.core)?;
            table.set_boot_code(&bios.boot_code);
        }
        grub.install_uefi(workspace.esp())?;
        let boot = workspace.sysroot().join("boot");
        grub.install_files(&boot)?;
        Grub::create_environment(&boot)?;
        Ok(())
    })
    .map_err(at(Step::Bootloader))
}

/// Makes the link that libostree follows after the checkout, when it writes the boot entry; it dangles until then.
fn link_grub_config(plan: &ImagingPlan, sysroot: &Path, scratch: &Path) -> Result<(), DiskError> {
    let link = scratch.join(GRUB_CONFIG_LINK);
    let checkout =
        sysroot.join("ostree/deploy").join(STATEROOT).join("deploy").join(format!("{}.0", plan.commit));
    let _ = std::fs::remove_file(&link);
    std::os::unix::fs::symlink(checkout.join(RELEASE_DIR).join("grub-config"), &link)
        .map_err(DiskError::io("creating", link))
}

#[cfg(test)]
pub(crate) mod tests_support {
    use crate::model::imaging::{Disk, ImagingPlan};

    /// A plan for a blank disk of 8 GiB.
    pub(crate) fn plan() -> ImagingPlan {
        ImagingPlan {
            order: "order-1".into(),
            host: "control-1".into(),
            generation: 0,
            disk: Disk {
                name: "vda".into(),
                size: 8_589_934_592,
                sector: 512,
                model: None,
                serial: Some("RS-1".into()),
                wwn: None,
                by_path: vec![],
                rotational: false,
                removable: false,
                transport: Some("virtio".into()),
                contents: vec![],
                mark: None,
            },
            wiped: vec![],
            wipe: false,
            commit: "3f2a9c015d474b579c1e0a6f5f3f1b223f2a9c015d474b579c1e0a6f5f3f1b22".parse().unwrap(),
            follows: "rackstep/x86_64/host".parse().unwrap(),
            repo: "http://10.77.0.1:8080/repo".into(),
            follow_repo: None,
            trusted_keys: vec![],
            kernel_arguments: vec!["console=ttyS0".into()],
            ssh_keys: vec![],
            mac: "52-54-00-00-00-01".into(),
            address: Some("10.77.0.11/24".into()),
            gateway: Some("10.77.0.1".into()),
            dns: vec!["10.77.0.1".into()],
            rack_server: "http://10.77.0.1:8080".into(),
        }
    }
}
