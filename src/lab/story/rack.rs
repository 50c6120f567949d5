//! A rack of one machine: network, rack server, blank machine, and the host that it becomes.
//!
//! Its network has a developer cluster's addresses, so that the imaged host can go on as a cluster's.

use std::fs::{self, File};
use std::path::PathBuf;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use super::{Host, Meter, Story, StoryError, Teller};
use crate::lab::machine::accelerator::Accelerator;
use crate::lab::machine::{Boot, DiskSpec, Firmware, Machine, MachineSpec, Network, Ssh, SshKey};
use crate::model::cluster::{BRIDGE_ADDRESS, ClusterMachine, Role, SERVER};
use crate::model::machine::MachineState;
use crate::rack::{MachineView, RackView};
use crate::rim::disk::mark::{Found, observe_mark};
use crate::rim::disk::target::Target;
use crate::rim::wait::poll;

/// The machine's name.
pub const NAME: &str = "control";
const SERIAL: &str = "disk-1";
const DISK: u64 = 12 << 30;
const MEMORY_MIB: u32 = 4096;
const CPUS: u32 = 2;
/// The story is about order, not about speed: an emulated processor pays for mitigations, and Go programs that do
/// little all day pay for their garbage collector.
const ARGUMENTS: &str = r#"["console=ttyS0,115200n8", "mitigations=off", "systemd.setenv=GOGC=400"]"#;
/// From the last service to the word of it at the rack server.
const CALL_HOME: Duration = Duration::from_secs(120);
/// From the order to restart to the kernel's first line.
const RESTART: Duration = Duration::from_secs(300);

/// The rack: its server ends with it, and its machine.
pub struct Rack<'n> {
    network: &'n Network,
    machine: Machine<'n>,
    server: Option<Child>,
    key: SshKey,
    address: String,
}

impl<'n> Rack<'n> {
    /// The network that a rack is started on; it goes when it is dropped.
    pub fn network() -> Result<Network, StoryError> {
        Ok(Network::create(BRIDGE_ADDRESS)?)
    }

    /// Starts the rack server for `version`, and lays a blank machine beside it, powered off.
    pub fn start(
        network: &'n Network,
        story: &Story<'_>,
        version: &str,
        firmware: Firmware,
    ) -> Result<Self, StoryError> {
        let key = SshKey::create(story.work())?;
        let wanted = ClusterMachine::new(NAME.to_owned(), Role::Control, 1, MEMORY_MIB, CPUS);
        let rack_file = story.work().join("rack.yaml");
        let writing = || StoryError::io(format!("writing below {}", story.work().display()));
        fs::write(&rack_file, render_rack(story, &key, version, &wanted)?).map_err(writing())?;
        let log = File::create(story.work().join("serve.log")).map_err(writing())?;
        let mut command = network.command(&story.rackstep().get_program().to_string_lossy());
        command.args(["serve", "--rack"]).arg(&rack_file).arg("--state").arg(story.work().join("rack-state"));
        command.stdout(log.try_clone().map_err(writing())?).stderr(log);
        let server = command.spawn().map_err(StoryError::io("starting the rack server"))?;
        let directory = story.work().join(NAME);
        fs::create_dir_all(&directory).map_err(writing())?;
        let mut spec = MachineSpec::new(NAME, &directory);
        (spec.memory_mib, spec.cpus, spec.firmware) = (wanted.memory, wanted.cpus, firmware);
        spec.mac = wanted.mac.to_string();
        spec.disks.push(DiskSpec::create_raw(directory.join("disk"), DISK, SERIAL)?);
        spec.boot = Boot::NetworkThenDisk;
        let machine = Machine::new(network, spec)?;
        let address = wanted.address.to_string();
        Ok(Self { network, machine, server: Some(server), key, address })
    }

    /// The host that the machine becomes.
    pub fn host(&self) -> Host<'n> {
        Host { network: self.network, ssh: Ssh::new(self.network, &self.key, "root", &self.address) }
    }

    /// The machine's disk, a raw file.
    pub fn disk(&self) -> Option<PathBuf> {
        self.machine.spec.disks.first().map(|disk| disk.path.clone())
    }

    /// What it runs on, for people.
    pub fn runs_on(&self) -> String {
        match self.machine.accelerator() {
            Accelerator::Kvm => "QEMU, by KVM",
            Accelerator::Tcg | Accelerator::TcgSingle => "QEMU, emulated",
            Accelerator::Native => "container on this kernel",
        }
        .to_owned()
    }

    /// Powers the blank machine on and waits until its installer is through.
    pub fn image_machine(&mut self, bound: Duration, teller: &dyn Teller) -> Result<(), StoryError> {
        self.machine.power_on()?;
        let (began, mut meter, mut told) = (Instant::now(), Meter::default(), String::new());
        let imaged = poll(bound, || {
            if !self.machine.is_on()? {
                return Err(StoryError::Wrong(format!("the machine is off:\n{}", self.machine.console())));
            }
            let Some(view) = self.view()? else { return Ok(None) };
            let line = tell(&view, &mut meter, began.elapsed());
            if line != told {
                teller.moved(&line);
                told = line;
            }
            let done = [MachineState::Imaged, MachineState::Installed, MachineState::Ready];
            Ok(done.contains(&view.state).then_some(()))
        })?;
        let last = || self.machine.console();
        imaged.ok_or_else(|| StoryError::Timeout { waited: "imaging".to_owned(), bound, last: last() })
    }

    /// Takes the imaged disk out of its machine, whose power is cut, and starts it as a host on this machine's own kernel.
    /// The disk must say by its mark that it is this host's, by this rack's last order.
    pub fn go_on_as_container(&mut self) -> Result<(), StoryError> {
        self.machine.power_cut()?;
        let order = self.view()?.and_then(|view| view.order).map(|order| order.id);
        let (Some(order), Some(disk)) = (order, self.disk()) else {
            return Err(StoryError::Wrong("the rack server gave no order".to_owned()));
        };
        let wrong = |told: String| StoryError::Wrong(format!("{}: {told}", disk.display()));
        let target = Target::open(&disk).map_err(|error| wrong(error.to_string()))?;
        let found = observe_mark(&target, false).map_err(|error| wrong(error.to_string()))?;
        if !matches!(&found, Found::True(mark) if mark.host == NAME && mark.order == order) {
            return Err(wrong(format!("its mark is {found:?}, not one of {NAME} and order {order}")));
        }
        self.machine.spec.boot = Boot::Disk;
        self.machine.go_on_as_container()?;
        self.machine.power_on()?;
        Ok(())
    }

    /// Waits until the imaged host's shell answers.
    pub fn wait_for_shell(&mut self, bound: Duration) -> Result<(), StoryError> {
        let ssh = self.host().ssh;
        Ok(self.machine.wait_for_ssh(&ssh, bound)?)
    }

    /// The host has called home, and said that all its services run.
    pub fn require_ready(&self) -> Result<(), StoryError> {
        let ready = poll(CALL_HOME, || {
            Ok::<_, StoryError>(
                self.view()?.is_some_and(|view| view.state == MachineState::Ready).then_some(()),
            )
        })?;
        let waited = || "the host's word to the rack server".to_owned();
        ready.ok_or_else(|| StoryError::Timeout { waited: waited(), bound: CALL_HOME, last: String::new() })
    }

    /// The machine in the rack server's words; none as long as it does not answer.
    fn view(&self) -> Result<Option<MachineView>, StoryError> {
        let url = format!("http://{SERVER}:8080/v1/machines");
        let asked = self.network.command("curl").args(["-s", &url]).output();
        let output = asked.map_err(StoryError::io("asking the rack server"))?;
        let view: Option<RackView> = serde_json::from_slice(&output.stdout).ok();
        let Some(view) = view.and_then(|rack| rack.machines.into_iter().next()) else { return Ok(None) };
        if matches!(view.state, MachineState::Failed | MachineState::Refused) {
            return Err(StoryError::Wrong(format!("imaging failed: {}", view.reasons.join("; "))));
        }
        Ok(Some(view))
    }

    /// Restarts the host, and waits for the kernel's first line.
    pub fn reboot_machine(&mut self) -> Result<(), StoryError> {
        self.machine.mark();
        self.host().restart_by("systemctl reboot")?;
        let first = if self.machine.is_container() { "rackstep: boots " } else { "Linux version" };
        Ok(self.machine.wait_for_console(first, RESTART)?)
    }

    /// Stops the rack server: no repo, no DHCP, no PXE.
    pub fn stop_server(&mut self) {
        if let Some(mut server) = self.server.take() {
            let _ = Command::new("kill").args(["-INT", &server.id().to_string()]).status();
            let _ = server.wait();
        }
    }

    /// Shuts the host down as its power button does.
    pub fn switch_off(&mut self, bound: Duration) -> Result<(), StoryError> {
        self.host().restart_by("systemctl poweroff")?;
        Ok(self.machine.wait_power_off(bound)?)
    }
}

impl Drop for Rack<'_> {
    fn drop(&mut self) {
        self.stop_server();
    }
}

fn render_rack(
    story: &Story<'_>,
    key: &SshKey,
    version: &str,
    machine: &ClusterMachine,
) -> Result<String, StoryError> {
    let keys = serde_json::json!(story.trusted_keys()?);
    Ok(format!(
        r#"name: story
network: {{interface: rack0, address: {BRIDGE_ADDRESS}, range: [10.90.0.200, 10.90.0.240]}}
repo: {repo}
trusted_keys: {keys}
ssh_keys: ["{public}"]
profiles:
  control: {{ref: rackstep/x86_64/openstack-host, release: "{version}", kernel_arguments: {ARGUMENTS}}}
hosts:
  - {{name: {NAME}, mac: "{mac}", profile: control, address: {address}/24, disk: {{serial: {SERIAL}}}}}
"#,
        repo = story.repo().display(),
        public = key.public.trim(),
        mac = machine.mac,
        address = machine.address,
    ))
}

fn tell(view: &MachineView, meter: &mut Meter, now: Duration) -> String {
    let Some(last) = view.events.last() else {
        return format!("{}: firmware, iPXE, the installer's kernel", view.state.word());
    };
    match last.event.progress {
        Some(progress) => meter.tell(&last.event.step, now, Some(progress)),
        None => format!("{}: {}", last.event.step, last.event.message),
    }
}
