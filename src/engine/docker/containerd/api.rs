//! What we ask of containerd, in its own messages.
//!
//! Only the fields that we use; the numbers are those of github.com/containerd/containerd, `api/services`, version 1.

use std::collections::HashMap;

use prost::Message;

/// `Introspection.Plugins`: which plugins there are, and where they keep things.
pub(super) const PLUGINS: &str = "containerd.services.introspection.v1.Introspection/Plugins";
/// `Content.Info`: is a blob known?
pub(super) const CONTENT_INFO: &str = "containerd.services.content.v1.Content/Info";
/// `Snapshots.View`: a read-only look at an unpacked chain.
pub(super) const VIEW: &str = "containerd.services.snapshots.v1.Snapshots/View";
/// `Snapshots.Mounts`: how to look at what is there.
pub(super) const MOUNTS: &str = "containerd.services.snapshots.v1.Snapshots/Mounts";
/// `Snapshots.Remove`.
pub(super) const REMOVE: &str = "containerd.services.snapshots.v1.Snapshots/Remove";

#[derive(Clone, PartialEq, Message)]
pub(super) struct PluginsQuestion {
    #[prost(string, repeated, tag = "1")]
    pub filters: Vec<String>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct PluginsAnswer {
    #[prost(message, repeated, tag = "1")]
    pub plugins: Vec<Plugin>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Plugin {
    #[prost(string, tag = "1")]
    pub kind: String,
    #[prost(string, tag = "2")]
    pub id: String,
    #[prost(map = "string, string", tag = "5")]
    pub exports: HashMap<String, String>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct ContentInfoQuestion {
    #[prost(string, tag = "1")]
    pub digest: String,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Nothing {}

#[derive(Clone, PartialEq, Message)]
pub(super) struct ViewQuestion {
    #[prost(string, tag = "1")]
    pub snapshotter: String,
    #[prost(string, tag = "2")]
    pub key: String,
    #[prost(string, tag = "3")]
    pub parent: String,
    #[prost(map = "string, string", tag = "4")]
    pub labels: HashMap<String, String>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct SnapshotQuestion {
    #[prost(string, tag = "1")]
    pub snapshotter: String,
    #[prost(string, tag = "2")]
    pub key: String,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct MountsAnswer {
    #[prost(message, repeated, tag = "1")]
    pub mounts: Vec<Mount>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Mount {
    #[prost(string, tag = "1")]
    pub kind: String,
    #[prost(string, tag = "2")]
    pub source: String,
    #[prost(string, repeated, tag = "4")]
    pub options: Vec<String>,
}
