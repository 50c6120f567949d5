//! A rack of one machine: network, rack server, blank machine, and the host that it becomes.

use std::process::{Child, Command};
use std::time::Duration;

use rackstep::lab::machine::{Boot, DiskSpec, Machine, MachineError, MachineSpec, Network, Ssh, SshKey};
use rackstep::model::status::Status;
use rackstep::rim::wait::poll;
use serde_json::Value;

use super::story::{Observed, Story, rackstep};

/// What the rack's network is created with.
pub const SERVER: &str = "10.77.0.1/24";
const MACHINES: &str = "http://10.77.0.1:8080/v1/machines";
const MAC: &str = "52:54:00:00:00:01";
const HOST: &str = "10.77.0.11";
const DISK: u64 = 12 << 30;
const MEMORY_MIB: u32 = 4096;
/// The story is about order, not about speed: an emulated processor pays for mitigations, and Go programs that do
/// little all day pay for their garbage collector.
const ARGUMENTS: &str = r#"["console=ttyS0,115200n8", "mitigations=off", "systemd.setenv=GOGC=400"]"#;
/// `keystone-manage --version` would load all of keystone for it.
const KEYSTONE_VERSION: &str = r#"import importlib.metadata as m; print(m.version("keystone"))"#;
/// From the last service to the word of it at the rack server.
const CALL_HOME: Duration = Duration::from_secs(120);
/// From the order to restart to the kernel's first line.
const RESTART: Duration = Duration::from_secs(300);

pub struct Rack<'n> {
    network: &'n Network,
    machine: Machine<'n>,
    server: Option<Child>,
    key: SshKey,
}

/// The imaged machine, seen over ssh.
pub struct Host<'n> {
    pub network: &'n Network,
    pub ssh: Ssh<'n>,
}

impl<'n> Rack<'n> {
    /// Starts the rack server for `version`, and lays a blank machine beside it, powered off.
    pub fn start(network: &'n Network, story: &Story, version: &str) -> Self {
        let key = SshKey::create(story.work()).unwrap();
        let rack_file = story.work().join("rack.yaml");
        let text = format!(
            r#"name: story
network: {{interface: rack0, address: {SERVER}, range: [10.77.0.100, 10.77.0.199]}}
repo: {repo}
trusted_keys: {keys}
ssh_keys: ["{public}"]
profiles:
  control: {{ref: rackstep/x86_64/openstack-host, release: "{version}", kernel_arguments: {ARGUMENTS}}}
hosts:
  - {{name: control-1, mac: "{MAC}", profile: control, address: {HOST}/24, disk: {{serial: disk-1}}}}
"#,
            repo = story.repo().display(),
            keys = serde_json::to_string(&story.trusted_keys()).unwrap(),
            public = key.public.trim(),
        );
        std::fs::write(&rack_file, text).unwrap();
        let mut command = network.command(&rackstep().get_program().to_string_lossy());
        command.args(["serve", "--rack"]).arg(&rack_file).arg("--state").arg(story.work().join("rack-state"));
        let server = command.spawn().unwrap();
        let directory = story.work().join("control-1");
        std::fs::create_dir_all(&directory).unwrap();
        let mut spec = MachineSpec::new("control-1", &directory);
        spec.memory_mib = MEMORY_MIB;
        spec.cpus = 2;
        spec.mac = MAC.into();
        spec.disks.push(DiskSpec::create_raw(directory.join("disk"), DISK, "disk-1").unwrap());
        spec.boot = Boot::NetworkThenDisk;
        let machine = Machine::new(network, spec).unwrap();
        Self { network, machine, server: Some(server), key }
    }

    pub fn host(&self) -> Host<'n> {
        Host { network: self.network, ssh: Ssh::new(self.network, &self.key, "root", HOST) }
    }

    /// Powers the blank machine on and waits until its installer is through.
    pub fn image_machine(&mut self, bound: Duration) {
        self.machine.power_on().unwrap();
        let imaged = poll(bound, || {
            assert!(self.machine.is_on()?, "the machine is off");
            Ok(["imaged", "installed", "ready"].contains(&self.state().as_str()).then_some(()))
        });
        let imaged: Result<_, MachineError> = imaged;
        assert!(
            imaged.unwrap().is_some(),
            "not imaged within {} s:\n{}",
            bound.as_secs(),
            self.machine.console()
        );
    }

    /// The host has called home, and said that all its services run.
    pub fn require_ready(&self) {
        let found = poll(CALL_HOME, || -> Result<Option<()>, std::convert::Infallible> {
            Ok((self.state() == "ready").then_some(()))
        });
        let Ok(found) = found;
        assert!(found.is_some(), "the rack server has the machine as {:?}", self.state());
    }

    /// The machine's state in the rack server's words.
    fn state(&self) -> String {
        let output = self.network.command("curl").args(["-s", MACHINES]).output().unwrap();
        let rack: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
        let state = rack["machines"][0]["state"].as_str().unwrap_or_default().to_owned();
        assert!(!["failed", "refused"].contains(&state.as_str()), "imaging: {rack:#}");
        state
    }

    pub fn reboot_machine(&mut self) {
        self.machine.mark();
        // The connection ends with the host; its exit code says nothing.
        let _ = self.host().ssh.run("systemctl reboot");
        self.machine.wait_for_console("Linux version", RESTART).unwrap();
    }

    /// Stops the rack server: no repo, no DHCP, no PXE.
    pub fn stop_server(&mut self) {
        if let Some(mut server) = self.server.take() {
            let _ = Command::new("kill").args(["-INT", &server.id().to_string()]).status();
            server.wait().unwrap();
        }
    }
}

impl Drop for Rack<'_> {
    fn drop(&mut self) {
        self.stop_server();
    }
}

impl Host<'_> {
    /// Runs a verb on the host; it must succeed.
    pub fn rackstep(&self, arguments: &[&str]) -> String {
        self.text(&format!("rackstep {}", arguments.join(" ")))
    }

    pub fn rackstep_json(&self, arguments: &[&str]) -> Value {
        serde_json::from_str(&self.rackstep(arguments)).unwrap()
    }

    pub fn status(&self) -> Result<Status, String> {
        let text = self.ssh.text("rackstep status --json").map_err(|error| error.to_string())?;
        serde_json::from_str(&text).map_err(|error| format!("{error}: {text}"))
    }

    pub fn next_boot(&self) -> String {
        let status = self.status().unwrap();
        let next = status.deployments.iter().find(|entry| entry.deployment.next_boot).unwrap();
        next.deployment.id.commit.to_string()
    }

    /// Waits until keystone answers, `commit` is booted and all its containers run.
    ///
    /// Asked from outside: an emulated machine that has to answer ssh all the time starts nothing else.
    pub fn wait_until_services_run(&self, commit: &str, bound: Duration) -> Observed {
        let mut last = String::from("no answer yet");
        let found = poll(bound, || -> Result<Option<Status>, std::convert::Infallible> {
            if !self.keystone_answers() {
                return Ok(None);
            }
            let status = match self.status() {
                Ok(status) => status,
                Err(error) => {
                    last = error;
                    return Ok(None);
                }
            };
            let booted = status.booted.is_some_and(|booted| booted.to_string() == commit);
            let runs = !status.services.is_empty() && status.services.iter().all(|c| c.running.is_some());
            last = format!("{status:?}");
            Ok((booted && runs).then_some(status))
        });
        let Ok(found) = found;
        let Some(status) = found else {
            panic!("the services of {commit} do not run after {} s: {last}", bound.as_secs())
        };
        self.observe(status)
    }

    fn observe(&self, status: Status) -> Observed {
        let is_booted = |commit| Some(commit) == status.booted;
        let booted = status.deployments.iter().find(|entry| is_booted(entry.deployment.id.commit)).unwrap();
        let keystone = status.services.iter().find(|container| container.pod == "keystone").unwrap();
        let container = "docker ps -q -f label=io.kubernetes.container.name=keystone";
        Observed {
            commit: booted.deployment.id.commit.to_string(),
            version: booted.deployment.version.clone().unwrap_or_default(),
            kernel: status.kernel.clone(),
            keystone_version: self
                .text(&format!("docker exec $({container}) python3 -c '{KEYSTONE_VERSION}'")),
            keystone_image: keystone.running.map(|id| id.to_string()).unwrap_or_default(),
            containers: status.services,
        }
    }

    fn keystone_answers(&self) -> bool {
        let url = format!("http://{}:5000/v3", self.ssh.address);
        let asked = self.network.command("curl").args(["-sf", "-m", "20", "-o", "/dev/null", &url]).status();
        asked.is_ok_and(|status| status.success())
    }

    /// Asks keystone's API for a token with the administrator's password; it must be issued.
    pub fn require_token(&self) {
        let script = r#"password=$(cat /var/lib/rackstep/secrets/keystone-admin-password)
curl -s -o /dev/null -D - -H 'Content-Type: application/json' http://127.0.0.1:5000/v3/auth/tokens -d '{"auth":{"identity":{"methods":["password"],"password":{"user":{"name":"admin","domain":{"id":"default"},"password":"'"$password"'"}}}}}'"#;
        let answer = self.text(script);
        assert!(answer.starts_with("HTTP/1.1 201"), "{answer}");
        assert!(answer.to_ascii_lowercase().contains("x-subject-token: "), "{answer}");
    }

    fn text(&self, script: &str) -> String {
        self.ssh.text(script).unwrap_or_else(|error| panic!("{script}: {error}"))
    }
}
