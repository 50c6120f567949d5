//! `/etc/rackstep/host.json`: who this host is and what it follows. Written by the installer.

use serde::{Deserialize, Serialize};

use super::Ref;

/// Path of the host's configuration below its root.
pub const HOST_CONFIG: &str = "etc/rackstep/host.json";

/// The format number that this program writes and reads.
pub const HOST_FORMAT: u32 = 1;

/// Who this host is, and the releases that it follows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HostConfig {
    /// [`HOST_FORMAT`].
    pub format: u32,
    /// Host name; empty: whatever the machine is called when somebody asks.
    pub name: String,
    /// Address that the services announce; empty: the one that the machine has towards its default route.
    pub address: String,
    /// The ref whose newest commit is "the newest release".
    #[serde(rename = "ref")]
    pub follows: Ref,
    /// Base URL of the release repo.
    pub repo: String,
    /// ed25519 public keys, base64; empty: unsigned releases are accepted.
    #[serde(default)]
    pub trusted_keys: Vec<String>,
    /// Base URL of the rack server that imaged it, to call home to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rack_server: Option<String>,
    /// Kernel arguments that are this host's own, whatever its release brings.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub kernel_arguments: Vec<String>,
    /// MAC address by which the rack server knows it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac: Option<String>,
}
