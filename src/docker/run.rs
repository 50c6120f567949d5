//! Runs a container once, to its end.

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::time::Duration;

use bollard::exec::{StartExecOptions, StartExecResults};
use bollard::models::{ContainerCreateBody, ExecConfig, HostConfig};
use bollard::query_parameters::{
    CreateContainerOptions, LogsOptions, RemoveContainerOptions, WaitContainerOptions,
};
use futures_util::StreamExt as _;

use crate::model::{Commit, Digest};

use super::{Docker, DockerError, RELEASE_LABEL};

/// Lines of a container's log that are kept for the report.
const LOG_LINES: &str = "60";

/// A container that is to run once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunOnce {
    /// Its name; one that is left over from a cut run is replaced.
    pub name: String,
    /// The release that it belongs to.
    pub release: Commit,
    /// Config digest of its image.
    pub image: Digest,
    /// What follows the image's entrypoint; empty: the image's own.
    pub arguments: Vec<String>,
    /// Environment.
    pub environment: BTreeMap<String, String>,
    /// Files and directories of the host.
    pub binds: Vec<Bind>,
    /// Directories that start empty and are lost with the container.
    pub scratch: Vec<PathBuf>,
    /// User, or the image's own.
    pub user: Option<String>,
    /// Working directory, or the image's own.
    pub working_directory: Option<String>,
}

/// A path of the host inside a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bind {
    /// On the host.
    pub host: PathBuf,
    /// In the container.
    pub container: PathBuf,
    /// May it be written to?
    pub read_only: bool,
}

/// How a run ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// Exit code.
    pub code: i64,
    /// The end of its log, both streams.
    pub log: String,
}

impl Docker {
    /// Runs it with the host's network and waits, at most `limit`. The container is gone afterwards, whatever happened.
    pub fn run_once(&self, run: &RunOnce, limit: Duration) -> Result<Outcome, DockerError> {
        self.remove_by_name(&run.name)?;
        let options = CreateContainerOptions { name: Some(run.name.clone()), ..Default::default() };
        self.ask(
            || format!("creating container {}", run.name),
            self.client.create_container(Some(options), render_container(run)),
        )?;
        let outcome = self.start_and_wait(&run.name, limit);
        let removed = self.remove_by_name(&run.name);
        let outcome = outcome?;
        removed?;
        Ok(outcome)
    }

    fn start_and_wait(&self, name: &str, limit: Duration) -> Result<Outcome, DockerError> {
        self.ask(|| format!("starting container {name}"), self.client.start_container(name, None))?;
        let options = WaitContainerOptions { condition: "not-running".to_owned() };
        let ended = self.runtime.block_on(async {
            let wait = async { self.client.wait_container(name, Some(options)).next().await };
            tokio::time::timeout(limit, wait).await
        });
        let log = self.log_of(name)?;
        match ended {
            Err(_) => Err(DockerError::TooLong { container: name.to_owned(), seconds: limit.as_secs(), log }),
            Ok(Some(Ok(answer))) => Ok(Outcome { code: answer.status_code, log }),
            Ok(Some(Err(bollard::errors::Error::DockerContainerWaitError { code, .. }))) => {
                Ok(Outcome { code, log })
            }
            Ok(Some(Err(source))) => Err(DockerError::Call {
                operation: format!("waiting for container {name}"),
                source: Box::new(source),
            }),
            Ok(None) => Err(DockerError::Answer {
                operation: format!("waiting for container {name}"),
                problem: "no exit code".to_owned(),
            }),
        }
    }

    /// Runs a command in a running container; its exit code, or none when it did not end within `limit`.
    pub fn exec_in(
        &self,
        container: &str,
        command: &[String],
        limit: Duration,
    ) -> Result<Option<i64>, DockerError> {
        let operation = || format!("running {command:?} in container {container}");
        let config = ExecConfig {
            cmd: Some(command.to_vec()),
            attach_stdout: Some(true),
            attach_stderr: Some(true),
            ..Default::default()
        };
        let run = async {
            let exec = self.client.create_exec(container, config).await?.id;
            if let StartExecResults::Attached { mut output, .. } =
                self.client.start_exec(&exec, None::<StartExecOptions>).await?
            {
                // Its output ends when it does.
                while let Some(piece) = output.next().await {
                    piece?;
                }
            }
            self.client.inspect_exec(&exec).await
        };
        let ended = self.runtime.block_on(async { tokio::time::timeout(limit, run).await });
        match ended {
            Err(_) => Ok(None),
            Ok(Ok(answer)) => Ok(answer.exit_code),
            Ok(Err(source)) => Err(DockerError::Call { operation: operation(), source: Box::new(source) }),
        }
    }

    /// The end of a container's log, both streams in the order in which Docker kept them.
    pub fn log_of(&self, name: &str) -> Result<String, DockerError> {
        let options =
            LogsOptions { stdout: true, stderr: true, tail: LOG_LINES.to_owned(), ..Default::default() };
        self.ask(|| format!("reading the log of container {name}"), async {
            let mut pieces = std::pin::pin!(self.client.logs(name, Some(options)));
            let mut log = Vec::new();
            while let Some(piece) = pieces.next().await {
                log.extend_from_slice(&piece?.into_bytes());
            }
            Ok(String::from_utf8_lossy(&log).trim_end().to_owned())
        })
    }

    fn remove_by_name(&self, name: &str) -> Result<(), DockerError> {
        let options = RemoveContainerOptions { v: true, force: true, ..Default::default() };
        let removed = self
            .ask(|| format!("removing container {name}"), self.client.remove_container(name, Some(options)));
        match removed {
            Err(error) if !error.is_not_found() => Err(error),
            _ => Ok(()),
        }
    }
}

fn render_container(run: &RunOnce) -> ContainerCreateBody {
    let render_bind = |bind: &Bind| {
        let mode = if bind.read_only { "ro" } else { "rw" };
        format!("{}:{}:{mode}", bind.host.display(), bind.container.display())
    };
    let scratch: HashMap<String, String> =
        run.scratch.iter().map(|path| (path.display().to_string(), String::new())).collect();
    ContainerCreateBody {
        image: Some(run.image.to_string()),
        cmd: (!run.arguments.is_empty()).then(|| run.arguments.clone()),
        env: Some(run.environment.iter().map(|(name, value)| format!("{name}={value}")).collect()),
        user: run.user.clone(),
        working_dir: run.working_directory.clone(),
        labels: Some(HashMap::from([(RELEASE_LABEL.to_owned(), run.release.hex())])),
        host_config: Some(HostConfig {
            network_mode: Some("host".to_owned()),
            binds: Some(run.binds.iter().map(render_bind).collect()),
            tmpfs: (!scratch.is_empty()).then_some(scratch),
            ..Default::default()
        }),
        ..Default::default()
    }
}
