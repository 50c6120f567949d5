//! Is a pod ready?
//!
//! Asked of Docker and of the service itself, not of kubelet: a kubelet without an API server tells readiness only on an
//! endpoint that needs credentials or an open port, and the host's kubelet listens on neither. So: the container that
//! cri-dockerd made for the pod runs, from the pinned Id, and the pod's own probe succeeds when *we* try it. Pods are on
//! the host's network, so that TCP and HTTP probes are tried from here; `exec` probes run in the container.

use std::collections::BTreeMap;
use std::net::{TcpStream, ToSocketAddrs as _};
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::{Container, Probe};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use crate::docker::{Docker, DockerError, ObservedContainer};
use crate::model::{Digest, PinSet};

use super::pods::{PodError, PodFile};

/// Labels that cri-dockerd gives to the containers of a pod.
const POD_LABEL: &str = "io.kubernetes.pod.name";
const CONTAINER_LABEL: &str = "io.kubernetes.container.name";
const TYPE_LABEL: &str = "io.kubernetes.docker.type";

/// How often readiness is looked at.
const POLL: Duration = Duration::from_secs(1);

/// Shortest time that a probe gets: the pod's own may be short for a host that has just booted.
const SHORTEST_PROBE: Duration = Duration::from_secs(5);

/// Why a pod is not ready, or could not be looked at.
#[derive(Debug, thiserror::Error)]
pub enum ReadinessError {
    /// Docker.
    #[error("asking whether pod {pod} is ready")]
    Docker {
        /// The pod.
        pod: String,
        /// Why.
        #[source]
        source: DockerError,
    },
    /// The pod itself.
    #[error(transparent)]
    Pod(#[from] PodError),
    /// It did not become ready in time.
    #[error("pod {pod} is not ready after {seconds} s: {why}")]
    TooLong {
        /// The pod.
        pod: String,
        /// The bound.
        seconds: u64,
        /// What was missing last.
        why: String,
    },
}

/// The name that kubelet gives to this host, and appends to the names of pods that come from files.
pub fn node_name() -> String {
    rustix::system::uname().nodename().to_string_lossy().to_ascii_lowercase()
}

/// The pod, of those in `names`, that a container of cri-dockerd's belongs to.
pub fn pod_of<'a>(
    container: &ObservedContainer,
    names: impl Iterator<Item = &'a str> + Clone,
    node: &str,
) -> Option<&'a str> {
    let label = container.labels.get(POD_LABEL)?;
    let exact = names.clone().find(|name| *label == format!("{name}-{node}") || label == name);
    // The host may have been renamed since; the longest name wins over one that it begins with.
    exact.or_else(|| {
        names
            .filter(|name| label.strip_prefix(name).is_some_and(|rest| rest.starts_with('-')))
            .max_by_key(|name| name.len())
    })
}

/// Containers of pods that run, by pod and container name.
pub fn running<'a>(
    containers: &'a [ObservedContainer],
    pods: &'a BTreeMap<String, PodFile>,
    node: &str,
) -> BTreeMap<(&'a str, &'a str), &'a ObservedContainer> {
    containers
        .iter()
        .filter(|container| container.is_running())
        .filter(|container| container.labels.get(TYPE_LABEL).is_none_or(|kind| kind == "container"))
        .filter_map(|container| {
            let pod = pod_of(container, pods.keys().map(String::as_str), node)?;
            let name = container.labels.get(CONTAINER_LABEL)?;
            Some(((pod, name.as_str()), container))
        })
        .collect()
}

/// Waits until every container of `name` runs from its pinned image and passes its probe.
pub fn wait_ready(
    docker: &Docker,
    pods: &BTreeMap<String, PodFile>,
    name: &str,
    pins: &PinSet,
    limit: Duration,
) -> Result<(), ReadinessError> {
    let began = Instant::now();
    let Some(pod) = pods.get(name) else {
        return Err(ReadinessError::TooLong {
            pod: name.to_owned(),
            seconds: 0,
            why: "there is no such pod".to_owned(),
        });
    };
    loop {
        let why = match why_not_ready(docker, pods, pod, pins)? {
            None => return Ok(()),
            Some(why) => why,
        };
        if began.elapsed() >= limit {
            return Err(ReadinessError::TooLong { pod: name.to_owned(), seconds: limit.as_secs(), why });
        }
        tracing::debug!(pod = name, why, "not ready yet");
        std::thread::sleep(POLL.min(limit.saturating_sub(began.elapsed())));
    }
}

/// What keeps the pod from being ready; none: it is.
pub fn why_not_ready(
    docker: &Docker,
    pods: &BTreeMap<String, PodFile>,
    pod: &PodFile,
    pins: &PinSet,
) -> Result<Option<String>, ReadinessError> {
    let docker_error = |source| ReadinessError::Docker { pod: pod.name.clone(), source };
    let containers = docker.observe_containers().map_err(docker_error)?;
    let running = running(&containers, pods, &node_name());
    let pinned: BTreeMap<String, Digest> =
        pod.pinned_containers(pins)?.into_iter().map(|(container, _, digest)| (container, digest)).collect();
    for container in pod.containers() {
        let Some(found) = running.get(&(pod.name.as_str(), container.name.as_str())) else {
            return Ok(Some(format!("container {} does not run", container.name)));
        };
        let expected = pinned.get(&container.name).copied();
        if found.image != expected {
            return Ok(Some(format!("container {} runs another image, {:?}", container.name, found.image)));
        }
        let probe = container.readiness_probe.as_ref().or(container.startup_probe.as_ref());
        if let Some(probe) = probe
            && let Some(problem) = try_probe(docker, container, probe, &found.id).map_err(docker_error)?
        {
            return Ok(Some(format!("container {}: {problem}", container.name)));
        }
    }
    Ok(None)
}

/// Tries a probe once; what went wrong, or none.
fn try_probe(
    docker: &Docker,
    container: &Container,
    probe: &Probe,
    id: &str,
) -> Result<Option<String>, DockerError> {
    let limit = Duration::from_secs(probe.timeout_seconds.unwrap_or(1).max(1).unsigned_abs().into())
        .max(SHORTEST_PROBE);
    if let Some(command) = probe.exec.as_ref().and_then(|exec| exec.command.as_ref()) {
        return Ok(match docker.exec_in(id, command, limit)? {
            Some(0) => None,
            Some(code) => Some(format!("its probe {command:?} ended with {code}")),
            None => Some(format!("its probe {command:?} did not end within {} s", limit.as_secs())),
        });
    }
    if let Some(tcp) = &probe.tcp_socket {
        let (host, port) = (tcp.host.as_deref(), number_of(&tcp.port, container));
        return Ok(port.map_or_else(unknown_port, |port| connect(host, port, limit).err()));
    }
    if let Some(http) = &probe.http_get {
        let Some(port) = number_of(&http.port, container) else { return Ok(unknown_port()) };
        // No certificate of a service is known to the host: for HTTPS an open port must do.
        if http.scheme.as_deref() == Some("HTTPS") {
            return Ok(connect(http.host.as_deref(), port, limit).err());
        }
        let host = http.host.as_deref().unwrap_or(LOOPBACK);
        let path = http.path.as_deref().unwrap_or("/");
        return Ok(get(&format!("http://{host}:{port}/{}", path.trim_start_matches('/')), limit).err());
    }
    Ok(None)
}

/// Where a service on the host's network listens unless its pod says otherwise.
const LOOPBACK: &str = "127.0.0.1";

fn unknown_port() -> Option<String> {
    Some("its probe names a port that the container does not have".to_owned())
}

fn number_of(port: &IntOrString, container: &Container) -> Option<u16> {
    match port {
        IntOrString::Int(number) => u16::try_from(*number).ok(),
        IntOrString::String(name) => container
            .ports
            .iter()
            .flatten()
            .find(|port| port.name.as_deref() == Some(name))
            .and_then(|port| u16::try_from(port.container_port).ok()),
    }
}

fn connect(host: Option<&str>, port: u16, limit: Duration) -> Result<(), String> {
    let host = host.unwrap_or(LOOPBACK);
    let problem = |error: std::io::Error| format!("{host}:{port}: {error}");
    let address = (host, port).to_socket_addrs().map_err(problem)?.next();
    let address = address.ok_or_else(|| format!("{host}:{port}: no address"))?;
    TcpStream::connect_timeout(&address, limit).map(drop).map_err(problem)
}

/// An HTTP GET that must be answered with 200 to 399; the error says what came instead.
pub fn get(url: &str, limit: Duration) -> Result<(), String> {
    let answer = crate::rim::tls::blocking_client()
        .timeout(limit)
        .no_proxy()
        .redirect(reqwest::redirect::Policy::none())
        .build()
        .and_then(|client| client.get(url).send())
        .map_err(|error| format!("{url}: {error}"))?;
    let status = answer.status();
    // As kubelet has it: 200 to 399 is ready.
    if status.is_success() || status.is_redirection() { Ok(()) } else { Err(format!("{url}: {status}")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn containers_find_their_pods() {
        let container = |label: &str| ObservedContainer {
            id: String::new(),
            name: String::new(),
            image: None,
            state: "running".to_owned(),
            labels: [(POD_LABEL.to_owned(), label.to_owned())].into(),
        };
        let names = ["nova", "nova-api", "keystone"];
        for (label, node, pod) in [
            ("keystone-control-1", "control-1", Some("keystone")),
            ("nova-api-1", "api-1", Some("nova")),
            ("nova-api-1", "1", Some("nova-api")),
            ("nova-api-old-name", "control-1", Some("nova-api")),
            ("novacaine-control-1", "control-1", None),
            ("other", "control-1", None),
        ] {
            assert_eq!(pod_of(&container(label), names.into_iter(), node), pod, "{label} on {node}");
        }
    }

    #[test]
    fn ports_are_tried() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let limit = Duration::from_secs(5);
        assert_eq!(connect(None, port, limit), Ok(()));
        drop(listener);
        assert!(connect(Some("127.0.0.1"), port, limit).is_err());
        assert!(get(&format!("http://127.0.0.1:{port}/"), limit).is_err());
    }
}
