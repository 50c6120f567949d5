//! Bytes over the wire: one release with everything in it, against changed layers and a host beside them.

use super::session::Session;
use crate::Outcome;
use crate::report::{Bar, Row};

const PEER: &str = "docker pull + ostree pull of the host";

pub fn run(session: &mut Session) -> Outcome<Vec<Row>> {
    let ours = session.pulls()?;
    let host = session.host_pulls()?;
    let docker = session.docker_pulls()?;
    let theirs = |index: usize| (docker[index].bytes + host[index].bytes) as f64;
    let split = |index: usize| {
        format!(
            "peer: images {:.0} MB, host {:.0} MB",
            docker[index].bytes as f64 / 1e6,
            host[index].bytes as f64 / 1e6
        )
    };
    Ok(vec![
        Row::bytes("first install", PEER, ours[0].bytes as f64, theirs(0), Bar::AtMost(0.5)).note(split(0)),
        Row::bytes("upgrade", PEER, ours[1].bytes as f64, theirs(1), Bar::AtMost(0.1)).note(split(1)),
    ])
}
