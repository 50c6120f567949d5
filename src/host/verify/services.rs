//! Services out of the way while their images are replaced.

use std::collections::BTreeSet;
use std::process::Command;

use super::{PinnedDeployment, VerifyHostError};
use crate::docker::Docker;
use crate::model::{Digest, Progress};
use crate::rim::command::run;

const KUBELET: &str = "kubelet.service";
const CRI_DOCKERD: &str = "cri-dockerd.service";
const DOCKER: &str = "docker.service";
const DOCKER_SOCKET: &str = "docker.socket";

/// Services that were stopped. They start again when this goes, whatever happened meanwhile.
#[derive(Debug)]
pub struct StoppedServices(());

/// Stops kubelet, which would start them again, and every container of a pinned image.
pub fn stop_services(
    docker: &Docker,
    pinned: &[PinnedDeployment],
    progress: &dyn Progress,
) -> Result<StoppedServices, VerifyHostError> {
    let ids: BTreeSet<Digest> =
        pinned.iter().flat_map(|pinned| pinned.pins.images()).map(|(_, image)| image.config).collect();
    let look = |error| VerifyHostError::Stop(Box::new(error));
    run(Command::new("systemctl").args(["stop", KUBELET])).map_err(VerifyHostError::Kubelet)?;
    let stopped = StoppedServices(());
    let mut running = docker.observe_containers().map_err(look)?;
    running.retain(|container| container.is_running() && container.image.is_some_and(|id| ids.contains(&id)));
    progress.begin("stopping services", Some(running.len() as u64));
    for container in &running {
        docker.stop_container(container).map_err(look)?;
        progress.advance(1);
    }
    progress.end(&format!("{} containers", running.len()));
    Ok(stopped)
}

/// Docker that was stopped. It starts again when this goes, whatever happened meanwhile.
#[derive(Debug)]
pub struct StoppedDocker(());

/// Stops Docker and what would start it: its socket does when anybody calls, as cri-dockerd does all the time.
pub fn stop_docker() -> Result<StoppedDocker, VerifyHostError> {
    let stopped = StoppedDocker(());
    let units = [CRI_DOCKERD, DOCKER_SOCKET, DOCKER];
    run(Command::new("systemctl").arg("stop").args(units)).map_err(VerifyHostError::StopDocker)?;
    Ok(stopped)
}

impl Drop for StoppedDocker {
    fn drop(&mut self) {
        let units = [DOCKER_SOCKET, DOCKER, CRI_DOCKERD];
        if let Err(error) = run(Command::new("systemctl").arg("start").args(units)) {
            tracing::error!(%error, "docker does not start again: systemctl start {}", units.join(" "));
        }
    }
}

impl Drop for StoppedServices {
    fn drop(&mut self) {
        if let Err(error) = run(Command::new("systemctl").args(["start", KUBELET])) {
            tracing::error!(%error, "kubelet does not start again: systemctl start {KUBELET}");
        }
    }
}
