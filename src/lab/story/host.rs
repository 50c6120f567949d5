//! The imaged host, seen over ssh and from its network.

use std::convert::Infallible;
use std::io::{BufRead as _, BufReader, Read as _};
use std::process::Stdio;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::{Composed, StoryError, Teller};
use crate::lab::machine::{MachineError, Network, Ssh};
use crate::model::status::{ContainerStatus, Status};
use crate::rim::wait::poll;

/// `keystone-manage --version` would load all of keystone for it.
const KEYSTONE_VERSION: &str = r#"import importlib.metadata as m; print(m.version("keystone"))"#;
/// Asks for a token with the administrator's password, on the host itself.
const TOKEN: &str = r#"password=$(cat /var/lib/rackstep/secrets/keystone-admin-password)
curl -s -o /dev/null -D - -H 'Content-Type: application/json' http://127.0.0.1:5000/v3/auth/tokens -d '{"auth":{"identity":{"methods":["password"],"password":{"user":{"name":"admin","domain":{"id":"default"},"password":"'"$password"'"}}}}}'"#;

/// A host with keystone.
#[derive(Debug)]
pub struct Host<'n> {
    /// Its network.
    pub network: &'n Network,
    /// Its shell.
    pub ssh: Ssh<'n>,
}

/// What was seen inside the host.
#[derive(Debug, Clone, PartialEq)]
pub struct Observed {
    /// The booted release's commit.
    pub commit: String,
    /// Its version.
    pub version: String,
    /// The kernel that runs.
    pub kernel: String,
    /// What the keystone that runs says of itself.
    pub keystone_version: String,
    /// The Id of its container image.
    pub keystone_image: String,
    /// What runs against what is pinned.
    pub containers: Vec<ContainerStatus>,
}

impl Observed {
    /// Everything that runs is of `release`, and nothing else.
    pub fn require_exactly(&self, release: &Composed) -> Result<(), StoryError> {
        let wrong = |told: String| Err(StoryError::Wrong(told));
        if (&self.commit, &self.version) != (&release.commit, &release.version) {
            return wrong(format!(
                "{} {} is booted, not {} {}",
                self.version, self.commit, release.version, release.commit
            ));
        }
        if self.containers.is_empty() {
            return wrong("no services".to_owned());
        }
        match self.containers.iter().find(|container| container.running != Some(container.expected)) {
            None => Ok(()),
            Some(container) => wrong(format!("{container:?}")),
        }
    }
}

impl Host<'_> {
    /// Runs a verb on the host, which must succeed; what it says meanwhile is told.
    pub fn rackstep(&self, arguments: &[&str], teller: &dyn Teller) -> Result<String, StoryError> {
        let line = format!("rackstep {}", arguments.join(" "));
        let speaking = || StoryError::io(format!("{line} on the host"));
        let mut command = self.ssh.command(&line);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().map_err(speaking())?;
        let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
        let mut answer = String::new();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let lines = stderr.into_iter().flat_map(|pipe| BufReader::new(pipe).lines());
                let words = lines.map_while(Result::ok);
                words.filter(|text| !text.trim().is_empty()).for_each(|text| teller.moved(text.trim()));
            });
            stdout.map_or(Ok(0), |mut pipe| pipe.read_to_string(&mut answer))
        })
        .map_err(speaking())?;
        let status = child.wait().map_err(speaking())?;
        if status.success() { Ok(answer) } else { Err(StoryError::Failed { command: line, status }) }
    }

    /// The same with an answer in JSON.
    pub fn rackstep_json(&self, arguments: &[&str], teller: &dyn Teller) -> Result<Value, StoryError> {
        let answer = self.rackstep(arguments, teller)?;
        serde_json::from_str(&answer).map_err(|_error| StoryError::Answer { from: "the host".into(), answer })
    }

    /// What it says of itself.
    pub fn status(&self) -> Result<Status, StoryError> {
        let text = self.ssh.text("rackstep status --json")?;
        serde_json::from_str(&text)
            .map_err(|_error| StoryError::Answer { from: "status".into(), answer: text })
    }

    /// The commit that the next boot takes.
    pub fn next_boot(&self) -> Result<String, StoryError> {
        let status = self.status()?;
        let next = status.deployments.iter().find(|entry| entry.deployment.next_boot);
        next.map(|entry| entry.deployment.id.commit.to_string())
            .ok_or_else(|| StoryError::Wrong("the host has no next boot".to_owned()))
    }

    /// Waits until keystone answers, `commit` is booted and all its containers run.
    ///
    /// Asked from outside: an emulated machine that has to answer ssh all the time starts nothing else.
    pub fn wait_until_services_run(
        &self,
        commit: &str,
        bound: Duration,
        teller: &dyn Teller,
    ) -> Result<Observed, StoryError> {
        let (began, mut last, mut told) = (Instant::now(), "no answer yet".to_owned(), String::new());
        let found = poll(bound, || -> Result<Option<Status>, Infallible> {
            let now = self.look(commit, &mut last);
            if told != last {
                teller.moved(&format!("{last} after {:.0} s", began.elapsed().as_secs_f64()));
                told.clone_from(&last);
            }
            Ok(now)
        });
        let Ok(found) = found;
        let waited = || format!("the services of {commit}");
        let status = found.ok_or_else(|| StoryError::Timeout { waited: waited(), bound, last })?;
        self.observe(status)
    }

    fn look(&self, commit: &str, last: &mut String) -> Option<Status> {
        if !self.keystone_answers() {
            return None;
        }
        let status = match self.status() {
            Ok(status) => status,
            Err(error) => {
                *last = error.to_string();
                return None;
            }
        };
        let booted = status.booted.is_some_and(|booted| booted.to_string() == commit);
        let run = status.services.iter().filter(|container| container.running.is_some()).count();
        let all = status.services.len();
        let of = if booted { "this release" } else { "another release" };
        *last = format!("keystone answers, {run} of {all} containers of {of} run");
        (booted && all > 0 && run == all).then_some(status)
    }

    fn observe(&self, status: Status) -> Result<Observed, StoryError> {
        let is_booted = |commit| Some(commit) == status.booted;
        let booted = status.deployments.iter().find(|entry| is_booted(entry.deployment.id.commit));
        let booted = booted.ok_or_else(|| StoryError::Wrong("nothing is booted".to_owned()))?;
        let keystone = status.services.iter().find(|container| container.pod == "keystone");
        let container = "docker ps -q -f label=io.kubernetes.container.name=keystone";
        Ok(Observed {
            commit: booted.deployment.id.commit.to_string(),
            version: booted.deployment.version.clone().unwrap_or_default(),
            kernel: status.kernel.clone(),
            keystone_version: self
                .ssh
                .text(&format!("docker exec $({container}) python3 -c '{KEYSTONE_VERSION}'"))?,
            keystone_image: keystone
                .and_then(|found| found.running)
                .map(|id| id.to_string())
                .unwrap_or_default(),
            containers: status.services,
        })
    }

    fn keystone_answers(&self) -> bool {
        let url = format!("http://{}:5000/v3", self.ssh.address);
        let asked = self.network.command("curl").args(["-sf", "-m", "20", "-o", "/dev/null", &url]).status();
        asked.is_ok_and(|status| status.success())
    }

    /// Asks keystone's API for a token with the administrator's password; it must be issued.
    pub fn require_token(&self) -> Result<(), StoryError> {
        let answer = self.ssh.text(TOKEN)?;
        let issued =
            answer.starts_with("HTTP/1.1 201") && answer.to_ascii_lowercase().contains("x-subject-token: ");
        if issued { Ok(()) } else { Err(StoryError::Answer { from: "keystone".into(), answer }) }
    }

    /// Gives an order that ends with the host's restart, and the connection with it: its exit status says nothing.
    pub fn restart_by(&self, order: &str) -> Result<(), MachineError> {
        self.ssh.run(order).map(drop)
    }
}
