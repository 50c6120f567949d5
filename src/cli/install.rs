//! `rackstep install`: images this machine, or an image file.
//!
//! In the initramfs: look, tell the rack server, do what it answers. With `--plan` and `--target`: the same work on a file,
//! for disk images of virtual machines.

use std::fs;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use super::scratch::Scratch;
use crate::cli::progress::Terminal;
use crate::cli::{Failure, Kind, NO_KEY};
use crate::imaging::install::approve::{ApproveError, Approved, approve_disk, approve_file};
use crate::imaging::install::inventory::{observe_inventory, observe_own_address};
use crate::imaging::install::server::{RackServer, Reporter};
use crate::imaging::install::{Aftermath, InstallError, Interrupted, Job, Step, Watcher, install};
use crate::model::Progress;
use crate::model::imaging::{ImagingAnswer, ImagingPlan, Inventory};
use crate::rim::firmware::{normal_mac, observe_boot_arguments};

/// Image this machine as the rack server says.
///
/// Runs in the initramfs that the rack server boots. With --plan and --target it images a file instead.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Base URL of the rack server [default: rackstep.server= of the kernel's command line]
    #[arg(long, value_name = "URL", conflicts_with = "plan")]
    server: Option<String>,
    /// MAC address by which the server knows this machine [default: rackstep.mac= or BOOTIF= of the kernel's command line]
    #[arg(long, value_name = "MAC", conflicts_with = "plan")]
    mac: Option<String>,
    /// The secret that netboot gave this attempt [default: rackstep.secret= of the kernel's command line]
    #[arg(long, value_name = "SECRET", conflicts_with = "plan", hide_env_values = true)]
    secret: Option<String>,
    /// Take the plan from a file instead of a server
    #[arg(long, value_name = "FILE", requires = "target")]
    plan: Option<PathBuf>,
    /// Image this file instead of a disk; made if it is not there
    #[arg(long, value_name = "IMAGEFILE", requires = "plan")]
    target: Option<PathBuf>,
    /// Look, check and print the plan; write nothing
    #[arg(long)]
    dry_run: bool,
    /// Fails at a step, for rehearsals: `before:STEP`, `after:STEP`, or `kill:STEP` to die as in a power cut
    #[arg(long, hide = true, value_name = "WHEN:STEP")]
    fault: Option<Fault>,
}

/// A fault that was asked for.
#[derive(Debug, Clone, Copy)]
struct Fault {
    when: When,
    step: Step,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum When {
    Before,
    After,
    Kill,
}

impl FromStr for Fault {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (when, step) = text.split_once(':').unwrap_or((text, ""));
        let when = match when {
            "before" => When::Before,
            "after" => When::After,
            "kill" => When::Kill,
            _ => return Err("not before:, after: or kill: and a step".to_owned()),
        };
        let step = Step::ALL.into_iter().find(|known| known.name() == step).ok_or("no such step")?;
        Ok(Self { when, step })
    }
}

/// Runs the verb.
pub fn run(arguments: Arguments) -> Result<(), Failure> {
    let scratch = Scratch::enter()?;
    match (&arguments.plan, &arguments.target) {
        (Some(plan), Some(target)) => image_file(&arguments, plan, target, &scratch),
        _ => image_machine(&arguments, &scratch),
    }
}

fn image_machine(arguments: &Arguments, scratch: &Scratch) -> Result<(), Failure> {
    let boot = observe_boot_arguments();
    let missing = |what: &str| Failure::new(Kind::BadInput, what.to_owned(), "nothing changed");
    let url = arguments
        .server
        .clone()
        .or(boot.server)
        .ok_or_else(|| missing("no rack server: neither --server nor rackstep.server= is given"))?;
    let mac = arguments
        .mac
        .as_deref()
        .map(normal_mac)
        .or(boot.mac)
        .ok_or_else(|| missing("no MAC address: neither --mac nor rackstep.mac= nor BOOTIF= is given"))?;
    let secret = arguments.secret.clone().or(boot.secret).ok_or_else(|| {
        missing(
            "no secret: neither --secret nor rackstep.secret= is given; boot from the rack server's network",
        )
    })?;
    let nothing = |error: Box<dyn std::error::Error + Send + Sync>| {
        Failure::new(Kind::Failed, error, "nothing changed")
    };

    let inventory = observe_inventory().map_err(|error| nothing(error.into()))?;
    tell_inventory(&inventory);
    let server = RackServer::new(&url, &mac, &secret).map_err(|error| nothing(error.into()))?;
    let plan = match server.ask(&inventory).map_err(|error| nothing(error.into()))? {
        ImagingAnswer::Image(plan) => plan,
        ImagingAnswer::BootDisk { reason } => {
            tell(&format!("not imaged: {reason}"));
            return Ok(());
        }
        ImagingAnswer::Refuse { reasons } => {
            let told = format!("the rack server says not to image this machine: {}", reasons.join("; "));
            return Err(Failure::new(Kind::Refused, told, "nothing changed"));
        }
    };
    tell_plan(&plan, &plan.disk.name);
    let watcher = Told {
        terminal: Terminal::default(),
        reporter: Some(Reporter::start(server, Some(plan.order.clone()))),
        fault: arguments.fault,
    };
    let approved = approve_disk(&plan, Some(&inventory.disks));
    if arguments.dry_run {
        return tell_dry_run(approved, &plan);
    }
    let address = observe_own_address(&url).unwrap_or_default();
    let job = Job {
        plan: &plan,
        uefi: Some(inventory.uefi),
        address: &address,
        scratch: scratch.path(),
        secret: Some(&secret),
    };
    finish(&job, approved, watcher)
}

fn image_file(arguments: &Arguments, plan: &Path, target: &Path, scratch: &Scratch) -> Result<(), Failure> {
    let plan = read_plan(plan)?;
    tell_plan(&plan, &target.display().to_string());
    if arguments.dry_run {
        return Ok(());
    }
    let job = Job { plan: &plan, uefi: None, address: "127.0.0.1", scratch: scratch.path(), secret: None };
    let watcher = Told { terminal: Terminal::default(), reporter: None, fault: arguments.fault };
    finish(&job, approve_file(&plan, target), watcher)
}

fn read_plan(path: &Path) -> Result<ImagingPlan, Failure> {
    let bad = |error: String| {
        Failure::new(
            Kind::BadInput,
            format!("reading the plan {}: {error}", path.display()),
            "nothing changed",
        )
    };
    let text = fs::read_to_string(path).map_err(|error| bad(error.to_string()))?;
    serde_json::from_str(&text).map_err(|error| bad(error.to_string()))
}

fn finish(job: &Job<'_>, approved: Result<Approved, ApproveError>, watcher: Told) -> Result<(), Failure> {
    let outcome = match approved {
        Ok(approved) => install(job, approved, &watcher).map_err(failure_of),
        Err(error) => Err(refusal_of(error)),
    };
    let Told { reporter, .. } = watcher;
    match outcome {
        Ok(()) => {
            let message = format!("release {} is on {}", job.plan.commit.short(), job.plan.disk.name);
            if let Some(reporter) = reporter {
                reporter.finish("done", message);
            }
            tell(&format!(
                "{} has release {}; it is installed when it has booted",
                job.plan.host, job.plan.commit
            ));
            Ok(())
        }
        Err(failure) => {
            if let Some(reporter) = reporter {
                reporter.finish("failed", failure.render());
            }
            Err(failure)
        }
    }
}

fn refusal_of(error: ApproveError) -> Failure {
    let kind = match error {
        ApproveError::Refused { .. } => Kind::Refused,
        ApproveError::Look(_) => Kind::Failed,
    };
    Failure::new(kind, error, "nothing changed")
}

fn failure_of(error: InstallError) -> Failure {
    let state = match &error.aftermath {
        Aftermath::Untouched => "nothing changed".to_owned(),
        Aftermath::Blank => format!("{} is blank: it has no partition table and does not boot", error.target),
        Aftermath::Unknown(why) => {
            format!("{} could not be made blank again ({why}); do not boot it", error.target)
        }
    };
    Failure::new(Kind::Failed, error, state)
}

fn tell_dry_run(approved: Result<Approved, ApproveError>, plan: &ImagingPlan) -> Result<(), Failure> {
    approved.map_err(refusal_of)?;
    tell(&format!("dry run: {} would be imaged; nothing changed", plan.host));
    Ok(())
}

fn tell_inventory(inventory: &Inventory) {
    for disk in &inventory.disks {
        let serial = disk.serial.as_deref().unwrap_or("-");
        let contents = if disk.contents.is_empty() { "blank".to_owned() } else { disk.contents.join(", ") };
        tell(&format!("disk {:<10} {:>6} GiB  serial {serial}  {contents}", disk.name, disk.size >> 30));
    }
}

fn tell_plan(plan: &ImagingPlan, target: &str) {
    tell(&format!("plan {} for {}:", plan.order, plan.host));
    tell(&format!(
        "  disk     {target}, {} GiB, serial {}",
        plan.disk.size >> 30,
        plan.disk.serial.as_deref().unwrap_or("-")
    ));
    tell(&format!(
        "  lost     {}",
        if plan.wiped.is_empty() { "nothing".to_owned() } else { plan.wiped.join(", ") }
    ));
    tell(&format!("  release  {} ({})", plan.commit, plan.follows));
    tell(&format!("  from     {}", plan.repo));
    if plan.trusted_keys.is_empty() {
        tell(&format!("  warning: {NO_KEY}"));
    }
    for (number, step) in Step::ALL.into_iter().enumerate() {
        tell(&format!("  {}. {}", number + 1, step.title()));
    }
}

fn tell(line: &str) {
    say!("{line}");
}

/// Tells the terminal and the rack server.
struct Told {
    terminal: Terminal,
    reporter: Option<Reporter>,
    fault: Option<Fault>,
}

impl Told {
    fn fail_if(&self, when: When, step: Step) -> Result<(), Interrupted> {
        match self.fault {
            Some(fault) if fault.step == step && fault.when == when => {
                Err(Interrupted("a fault was asked for".to_owned()))
            }
            _ => Ok(()),
        }
    }
}

impl Progress for Told {
    fn begin(&self, stage: &str, total: Option<u64>) {
        self.terminal.begin(stage, total);
        if let Some(reporter) = &self.reporter {
            reporter.begin(stage, total);
        }
    }

    fn advance(&self, amount: u64) {
        self.terminal.advance(amount);
        if let Some(reporter) = &self.reporter {
            reporter.advance(amount);
        }
    }

    fn end(&self, summary: &str) {
        self.terminal.end(summary);
        if let Some(reporter) = &self.reporter {
            reporter.end(summary);
        }
    }
}

impl Watcher for Told {
    fn before(&self, step: Step) -> Result<(), Interrupted> {
        if let Some(reporter) = &self.reporter {
            reporter.enter(step);
        }
        if self.fail_if(When::Kill, step).is_err() {
            std::process::abort();
        }
        self.fail_if(When::Before, step)
    }

    fn after(&self, step: Step) -> Result<(), Interrupted> {
        self.fail_if(When::After, step)
    }
}
