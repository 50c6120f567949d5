//! Stops containers.

use bollard::query_parameters::StopContainerOptions;

use super::{Docker, DockerError, ObservedContainer};

/// Seconds between asking and killing, as kubelet gives to pods.
const GRACE: i32 = 30;

impl Docker {
    /// Stops a container, unless it has ended or gone by itself.
    pub fn stop_container(&self, container: &ObservedContainer) -> Result<(), DockerError> {
        let options = StopContainerOptions { t: Some(GRACE), ..Default::default() };
        let stopped = self.ask(
            || format!("stopping container {}", container.name),
            self.client.stop_container(&container.id, Some(options)),
        );
        match stopped {
            Err(error) if !error.is_not_found() => Err(error),
            _ => Ok(()),
        }
    }
}
