//! Bytes at rest, both releases: on the server and on a host.

use super::session::Session;
use crate::Outcome;
use crate::images::disk_bytes;
use crate::report::{Bar, Row};

pub fn run(session: &mut Session) -> Outcome<Vec<Row>> {
    session.pulls()?;
    session.host_pulls()?;
    session.docker_pulls()?;
    session.host_records()?;
    let repo = session.repo();
    let packs = disk_bytes(&repo.join("packs"))?;
    let ours = disk_bytes(&repo)?;
    let objects = ours - packs;
    let registry = disk_bytes(&session.registry()?.data())?;
    let hosts = disk_bytes(&session.dir("hosts"))?;
    let host_ours = disk_bytes(&session.dir("host-ours"))?;
    let host_peer = disk_bytes(&session.dir("host-peer"))?;
    let docker = disk_bytes(&session.peer_docker()?.data())?;
    let records = disk_bytes(&session.host_docker()?.data())?;
    let registry_peer = "registry + ostree repo of the host";
    Ok(vec![
        Row::bytes(
            "server, without packs",
            registry_peer,
            objects as f64,
            (registry + hosts) as f64,
            Bar::None,
        ),
        Row::bytes(
            "server, packs included",
            registry_peer,
            (objects + packs) as f64,
            (registry + hosts) as f64,
            Bar::None,
        ),
        Row::bytes(
            "host, repo alone",
            "Docker's data + ostree repo of the host",
            host_ours as f64,
            (docker + host_peer) as f64,
            Bar::None,
        )
        .note("both releases"),
        Row::bytes(
            "host, repo and Docker's records",
            "Docker's data + ostree repo of the host",
            (host_ours + records) as f64,
            (docker + host_peer) as f64,
            Bar::AtMost(0.7),
        )
        .note("both releases; containers run from the repo"),
    ])
}
