//! One virtual machine: its power switch, its console, and waiting for what it does.

use std::fs::{self, File};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use super::accelerator::{self, Accelerator, QEMU};
use super::hypervisor::start_container;
use super::spec::{Firmware, MachineSpec, find_uefi};
use super::{Hypervisor, MachineError, Network, Running, Ssh, interrupt, qmp};
use crate::rim::command;
use crate::rim::wait::poll;

/// How many of the console's last lines an error shows.
const TAIL_LINES: usize = 30;
/// QEMU opens its control socket before it does anything slow.
const SOCKET: Duration = Duration::from_secs(30);
/// A killed QEMU is gone at once.
const DEATH: Duration = Duration::from_secs(30);

/// A virtual machine: one that ends with the program, or one that [`Machine::attach`] finds and leaves as it is.
#[derive(Debug)]
pub struct Machine<'n> {
    /// What it is made of; changes take effect at the next power-on.
    pub spec: MachineSpec,
    network: &'n Network,
    tap: String,
    accelerator: Accelerator,
    /// Who runs it, if it outlives the program.
    keeper: Option<Hypervisor>,
    qemu: Option<Qemu>,
    mark: usize,
    /// Does it end with the program though a launcher of its own runs it?
    ends_with_us: bool,
}

/// The emulator's process.
#[derive(Debug)]
enum Qemu {
    /// Ends with us.
    Child(Child),
    /// Outlives us.
    Kept(Running),
}

impl<'n> Machine<'n> {
    /// A machine plugged into `network`, powered off.
    pub fn new(network: &'n Network, spec: MachineSpec) -> Result<Self, MachineError> {
        fs::create_dir_all(&spec.dir)
            .map_err(MachineError::io(format!("creating {}", spec.dir.display())))?;
        let console = spec.console_path();
        File::create(&console).map_err(MachineError::io(format!("creating {}", console.display())))?;
        let accelerator = accelerator::choose()?;
        let tap = network.add_tap()?;
        Ok(Self { spec, network, tap, accelerator, keeper: None, qemu: None, mark: 0, ends_with_us: true })
    }

    /// A machine that outlives the program, as it is: on, if an earlier program left it on. Its console goes on.
    pub fn attach(
        network: &'n Network,
        spec: MachineSpec,
        accelerator: Accelerator,
        keeper: &Hypervisor,
    ) -> Result<Self, MachineError> {
        fs::create_dir_all(&spec.dir)
            .map_err(MachineError::io(format!("creating {}", spec.dir.display())))?;
        // Known again by another program, and within the 15 characters of an interface's name.
        let tap = format!("tap{}", spec.mac.replace(':', ""));
        let (qemu, keeper) = (keeper.find(&spec)?.map(Qemu::Kept), Some(keeper.clone()));
        let mut machine =
            Self { spec, network, tap, accelerator, keeper, qemu, mark: 0, ends_with_us: false };
        machine.mark();
        Ok(machine)
    }

    /// From the next power-on its disk boots on this machine's own kernel; it still ends with the program.
    pub fn go_on_as_container(&mut self) -> Result<(), MachineError> {
        if self.is_on()? {
            return Err(MachineError::Input(format!("{} is on", self.spec.name)));
        }
        (self.keeper, self.accelerator) = (Some(Hypervisor::Container), Accelerator::Native);
        Ok(())
    }

    /// Is it a host on this machine's own kernel?
    pub fn is_container(&self) -> bool {
        matches!(self.keeper, Some(Hypervisor::Container))
    }

    /// How it is run.
    pub fn accelerator(&self) -> Accelerator {
        self.accelerator
    }

    /// Powers it on; a machine that is on stays so.
    pub fn power_on(&mut self) -> Result<(), MachineError> {
        if self.is_on()? {
            return Ok(());
        }
        if let Some(Hypervisor::Libvirt(libvirt)) = &self.keeper {
            let domain = libvirt.start(&self.spec, self.network, self.accelerator)?;
            self.qemu = Some(Qemu::Kept(Running::Domain(domain)));
            return Ok(());
        }
        if let Some(Hypervisor::Container) = &self.keeper {
            let container = start_container(&self.spec, self.network)?;
            if self.ends_with_us {
                interrupt::register_pid(container.launcher_pid());
            }
            self.qemu = Some(Qemu::Kept(Running::Container(container)));
            return Ok(());
        }
        let code = match self.spec.firmware {
            Firmware::Bios => None,
            Firmware::Uefi => {
                let (code, template) = find_uefi()?;
                let variables = self.spec.variables_path();
                if !variables.exists() {
                    fs::copy(&template, &variables)
                        .map_err(MachineError::io(format!("copying {}", template.display())))?;
                }
                Some(code)
            }
        };
        let _ = fs::remove_file(self.spec.control_path());
        let mut command = self.network.command(QEMU);
        command.args(self.spec.render_arguments(self.accelerator, &self.tap, code.as_deref()));
        self.qemu = Some(if self.keeper.is_some() { self.detach(command)? } else { self.spawn(command)? });
        self.wait("its control socket", SOCKET, |machine| {
            Ok(machine.spec.control_path().exists().then_some(()))
        })
    }

    fn spawn(&self, mut command: Command) -> Result<Qemu, MachineError> {
        let failed = || format!("starting {QEMU} for {}", self.spec.name);
        let log = File::create(self.words_path()).map_err(MachineError::io(failed()))?;
        let child = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .map_err(MachineError::io(failed()))?;
        // `ip netns exec` becomes QEMU: same pid.
        interrupt::register_pid(child.id());
        Ok(Qemu::Child(child))
    }

    /// QEMU leaves our session by itself, once it has said what is wrong with its arguments.
    fn detach(&self, mut command: Command) -> Result<Qemu, MachineError> {
        self.network.plug(&self.tap)?;
        command.arg("-daemonize").arg("-pidfile").arg(self.spec.pid_path()).stdin(Stdio::null());
        command::run(&mut command)
            .map_err(MachineError::program(format!("starting {QEMU} for {}", self.spec.name)))?;
        Hypervisor::Qemu.find(&self.spec)?.map(Qemu::Kept).ok_or_else(|| MachineError::PoweredOff {
            machine: self.spec.name.clone(),
            waited: "its process".to_owned(),
            tail: self.tail(),
        })
    }

    /// Is it on?
    pub fn is_on(&mut self) -> Result<bool, MachineError> {
        let on = match &mut self.qemu {
            None => return Ok(false),
            Some(Qemu::Kept(running)) => running.is_alive()?,
            Some(Qemu::Child(child)) => {
                let looking = MachineError::io(format!("looking at {}", self.spec.name));
                let on = child.try_wait().map_err(looking)?.is_none();
                if !on {
                    interrupt::forget_pid(child.id());
                }
                on
            }
        };
        if !on {
            self.qemu = None;
        }
        Ok(on)
    }

    /// Cuts the power: QEMU is killed, nothing is flushed.
    pub fn power_cut(&mut self) -> Result<(), MachineError> {
        let failed = || format!("cutting the power of {}", self.spec.name);
        match self.qemu.take() {
            None => {}
            Some(Qemu::Kept(running)) => {
                running.power_cut()?;
                if let Running::Container(container) = &running {
                    interrupt::forget_pid(container.launcher_pid());
                }
            }
            Some(Qemu::Child(mut child)) => {
                child.kill().map_err(MachineError::io(failed()))?;
                child.wait().map_err(MachineError::io(failed()))?;
                interrupt::forget_pid(child.id());
            }
        }
        Ok(())
    }

    /// Pulls the plug by way of QEMU's control socket.
    pub fn quit(&mut self) -> Result<(), MachineError> {
        self.execute("quit")?;
        self.wait_power_off(DEATH)
    }

    /// Presses the power button: a guest that listens shuts down.
    pub fn press_power_button(&self) -> Result<(), MachineError> {
        self.execute("system_powerdown")
    }

    /// Presses the reset button: the guest starts again, without a shutdown.
    pub fn reset(&self) -> Result<(), MachineError> {
        self.execute("system_reset")
    }

    fn execute(&self, command: &str) -> Result<(), MachineError> {
        qmp::execute(&self.spec.name, &self.spec.control_path(), command).map(drop)
    }

    /// Waits until the guest has powered itself off.
    pub fn wait_power_off(&mut self, bound: Duration) -> Result<(), MachineError> {
        let off = poll(bound, || Ok::<_, MachineError>((!self.is_on()?).then_some(())))?;
        off.ok_or_else(|| self.timeout("power-off", bound))
    }

    /// All that came over the serial console since the machine was made, control sequences left out.
    pub fn console(&self) -> String {
        let bytes = fs::read(self.spec.console_path()).unwrap_or_default();
        readable(&String::from_utf8_lossy(&bytes))
    }

    /// The console's text since the last mark.
    pub fn console_since_mark(&self) -> String {
        self.console().get(self.mark..).unwrap_or_default().to_owned()
    }

    /// From now on, waits look only at what the console says next.
    pub fn mark(&mut self) {
        self.mark = self.console().len();
    }

    /// Waits until the console shows `text`; then moves the mark behind it.
    pub fn wait_for_console(&mut self, text: &str, bound: Duration) -> Result<(), MachineError> {
        let end = self.wait(&format!("{text:?} on the console"), bound, |machine| {
            let said = machine.console_since_mark();
            Ok(said.find(text).map(|at| machine.mark + at + text.len()))
        })?;
        self.mark = end;
        Ok(())
    }

    /// Waits until `address:port` accepts a connection.
    pub fn wait_for_port(&mut self, address: &str, port: u16, bound: Duration) -> Result<(), MachineError> {
        self.wait(&format!("an open port {address}:{port}"), bound, |machine| {
            match machine.network.wait_for_port(address, port, Duration::ZERO) {
                Ok(()) => Ok(Some(())),
                Err(MachineError::Timeout { .. }) => Ok(None),
                Err(error) => Err(error),
            }
        })
    }

    /// Waits until a shell on the machine runs a command.
    pub fn wait_for_ssh(&mut self, ssh: &Ssh<'_>, bound: Duration) -> Result<(), MachineError> {
        self.wait(&format!("ssh at {}", ssh.address), bound, |_| {
            Ok(ssh.run("true")?.status.success().then_some(()))
        })
    }

    /// Waits until `look` gives a value; ends early when the machine is off or its kernel panicked.
    pub fn wait<T>(
        &mut self,
        waited: &str,
        bound: Duration,
        mut look: impl FnMut(&mut Self) -> Result<Option<T>, MachineError>,
    ) -> Result<T, MachineError> {
        let found = poll(bound, || {
            // Order matters: what was said before the power went off still counts.
            let on = self.is_on()?;
            if let Some(value) = look(self)? {
                return Ok(Some(value));
            }
            if !on {
                let (machine, waited) = (self.spec.name.clone(), waited.to_owned());
                let words = fs::read_to_string(self.words_path()).unwrap_or_default();
                let tail = format!("{}\n{}", self.tail(), words.trim());
                return Err(MachineError::PoweredOff { machine, waited, tail });
            }
            if self.has_panicked() {
                let (machine, waited) = (self.spec.name.clone(), waited.to_owned());
                return Err(MachineError::Panicked { machine, waited, tail: self.tail() });
            }
            Ok(None)
        })?;
        found.ok_or_else(|| self.timeout(waited, bound))
    }

    /// Why waiting for it is hopeless: it is off, or its kernel panicked since the mark.
    pub fn trouble(&mut self) -> Result<Option<String>, MachineError> {
        if !self.is_on()? {
            return Ok(Some(format!("it went off{}", self.tail())));
        }
        Ok(self.has_panicked().then(|| format!("its kernel panicked{}", self.tail())))
    }

    fn has_panicked(&self) -> bool {
        self.console_since_mark().contains("Kernel panic - not syncing")
    }

    fn timeout(&self, waited: &str, bound: Duration) -> MachineError {
        MachineError::Timeout {
            machine: self.spec.name.clone(),
            waited: waited.to_owned(),
            bound,
            tail: self.tail(),
        }
    }

    fn tail(&self) -> String {
        let text = self.console();
        let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
        let start = lines.len().saturating_sub(TAIL_LINES);
        format!("; console ({}):\n  {}", self.spec.console_path().display(), lines[start..].join("\n  "))
    }

    fn words_path(&self) -> PathBuf {
        self.spec.dir.join("qemu.log")
    }
}

impl Drop for Machine<'_> {
    fn drop(&mut self) {
        if !self.ends_with_us {
            return;
        }
        if let Err(error) = self.power_cut() {
            tracing::warn!(%error, "stopping a machine");
        }
        self.network.remove_tap(&self.tap);
    }
}

/// Leaves out carriage returns and terminal control sequences (ECMA-48: `ESC [ … letter`).
fn readable(text: &str) -> String {
    let mut clean = String::with_capacity(text.len());
    let mut characters = text.chars();
    while let Some(character) = characters.next() {
        match character {
            '\u{1b}' => {
                if characters.next() == Some('[') {
                    let _ = characters.find(|c| ('@'..='~').contains(c));
                }
            }
            '\n' | '\t' => clean.push(character),
            c if c.is_control() => {}
            c => clean.push(c),
        }
    }
    clean
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn consoles_become_readable() {
        let cases = [
            ("\u{1b}[2J\u{1b}[01;01HiPXE 1.0\r\nok\r\n", "iPXE 1.0\nok\n"),
            ("\u{1b}[0;32mgreen\u{1b}[0m", "green"),
            ("\u{1b}c", ""),
        ];
        for (raw, clean) in cases {
            assert_eq!(readable(raw), clean, "{raw:?}");
        }
    }
}
