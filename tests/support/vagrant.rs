//! A Vagrant project of a test's: the Vagrantfile that is shipped, and machines in a libvirt of the test's own.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use rackstep::lab::machine::accelerator::{self, Accelerator};
use rackstep::model::status::Status;
use rackstep::rim::wait::poll_gently;

use super::libvirt::Libvirt;
use rackstep::lab::story::Composed;

use super::story::run;

/// From ssh to all services, emulated.
const SERVICES: Duration = Duration::from_secs(15 * 60);
/// Lines of a console that tell why.
const TAIL: usize = 40;

/// The directory of the Vagrantfile that is under test.
pub fn shipped() -> PathBuf {
    Path::new(&std::env::var_os("CARGO_MANIFEST_DIR").unwrap()).join("vagrant")
}

/// The commit that a machine runs.
pub fn booted(status: &Status) -> String {
    status.booted.map(|commit| commit.to_string()).unwrap_or_default()
}

/// A directory with a Vagrantfile that is ours, and consoles in files beside it.
pub struct Project<'l> {
    libvirt: &'l Libvirt,
    pub directory: PathBuf,
    machines: Vec<String>,
}

impl<'l> Project<'l> {
    /// Lays it in `work`, for `machines` of which `cluster` says how large they are (`vagrant/cluster.yaml`).
    pub fn lay(libvirt: &'l Libvirt, work: &Path, cluster: &str, machines: &[&str]) -> Self {
        let directory = work.join("project");
        std::fs::create_dir(&directory).unwrap();
        std::fs::write(directory.join("cluster.yaml"), cluster).unwrap();
        let mut text =
            format!("load {:?}\nVagrant.configure(\"2\") do |config|\n", shipped().join("Vagrantfile"));
        for name in machines {
            let console = directory.join(format!("{name}.console"));
            text += &format!(
                "  config.vm.define {name:?} do |machine|\n    machine.vm.provider(:libvirt) {{ |libvirt| \
                 libvirt.serial type: \"file\", source: {{ path: {console:?} }} }}\n  end\n"
            );
        }
        std::fs::write(directory.join("Vagrantfile"), text + "end\n").unwrap();
        let machines = machines.iter().map(|&name| name.to_owned()).collect();
        Self { libvirt, directory, machines }
    }

    /// A command where the machines are, with a Vagrant home of the test's.
    pub fn enter(&self, program: &str) -> Command {
        let mut command = self.libvirt.command(program);
        command
            .env("VAGRANT_CWD", &self.directory)
            .env("RACKSTEP_CLUSTER", self.directory.join("cluster.yaml"));
        command.env("VAGRANT_HOME", self.directory.join("home")).env("HOME", &self.directory);
        command.env("VAGRANT_CHECKPOINT_DISABLE", "1");
        // By a kernel that starts or does not, where the Vagrantfile only looks for a device.
        let driver = if accelerator::choose().unwrap() == Accelerator::Kvm { "kvm" } else { "qemu" };
        command.env("RACKSTEP_DRIVER", driver);
        command
    }

    pub fn vagrant(&self, arguments: &[&str]) -> String {
        run(self.enter("vagrant").args(arguments))
    }

    /// What a command says on a machine.
    pub fn ssh(&self, name: &str, script: &str) -> Result<String, String> {
        let output = self.enter("vagrant").args(["ssh", name, "--no-tty", "-c", script]).output().unwrap();
        if !output.status.success() {
            return Err(String::from_utf8_lossy(&output.stderr).into_owned());
        }
        Ok(String::from_utf8(output.stdout).unwrap())
    }

    fn status(&self, name: &str) -> Result<Status, String> {
        let text = self.ssh(name, "rackstep status --json")?;
        serde_json::from_str(&text).map_err(|error| format!("{error}: {text}"))
    }

    /// The status, from a machine that may be too busy to answer at once: `vagrant ssh` has ended there without a word.
    pub fn wait_for_status(&self, name: &str) -> Status {
        let mut last = String::new();
        let found = until(SERVICES, || self.status(name).map_err(|error| last = error).ok());
        found.unwrap_or_else(|| panic!("{name} says nothing: {last}"))
    }

    /// Waits until each machine has booted `release`, and every container runs the image that it pins.
    pub fn wait_until_services_run(&self, release: &Composed) {
        for name in &self.machines {
            let mut last = Err("not asked yet".to_owned());
            let found = until(SERVICES, || {
                last = self.status(name);
                last.as_ref().is_ok_and(|status| runs(status, release)).then_some(())
            });
            assert!(found.is_some(), "the services of {} do not run on {name}: {last:?}", release.version);
        }
    }
}

/// Looks until there is something to see. Vagrant takes seconds of a processor that the machines could use.
pub fn until<T>(bound: Duration, mut look: impl FnMut() -> Option<T>) -> Option<T> {
    let found = poll_gently(bound, || false, || -> Result<_, std::convert::Infallible> { Ok(look()) });
    let Ok(found) = found;
    found
}

/// Whether the machine has booted `release`, and every container runs the image that it pins.
pub fn runs(status: &Status, release: &Composed) -> bool {
    let exact = status.services.iter().all(|container| container.running == Some(container.expected));
    booted(status) == release.commit && !status.services.is_empty() && exact
}

impl Drop for Project<'_> {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            return;
        }
        for name in &self.machines {
            let bytes = std::fs::read(self.directory.join(format!("{name}.console"))).unwrap_or_default();
            let text = String::from_utf8_lossy(&bytes).into_owned();
            let lines: Vec<&str> = text.lines().collect();
            eprintln!("--- console of {name}\n{}", lines[lines.len().saturating_sub(TAIL)..].join("\n"));
        }
    }
}
