//! Bringing container images into Docker: from the release's own files, against `docker pull` from a registry on loopback.

use super::session::{Session, warm};
use crate::images::Edition;
use crate::peers::Dockerd;
use crate::release::{self, text};
use crate::report::{Bar, Row};
use crate::{Outcome, images};

const PEER: &str = "docker pull";

pub fn run(session: &mut Session) -> Outcome<Vec<Row>> {
    let docker = Dockerd::start(session.bench, "docker-ours")?;
    let [a, b] = session.releases.clone();
    let (url, a, b) = (docker.url(), text(&a.dir()), text(&b.dir()));
    // The peer's registry has just been written and is in memory.
    warm(&a)?;
    let cold = session.step(&["import", &url, &a])?;
    let theirs = session.docker_pulls()?;
    warm(&b)?;
    let upgrade = session.step(&["import", &url, &b])?;
    let nothing = session.step(&["import", &url, &b])?;
    let last = *images::names(session.bench).last().ok_or("no images")?;
    let mut peer_nothing = 0.0;
    for name in images::names(session.bench) {
        peer_nothing += session.docker_pull(name, Edition::B)?.seconds;
    }
    // One image more, on layers that other images brought.
    let id = config_digest(session, last)?;
    release::run(&mut docker.client(&["rmi", &id]))?;
    let one = session.step(&["import", &url, &b])?;
    let image = session.registry()?.image(last, Edition::B.name());
    release::run(&mut session.peer_docker()?.client(&["rmi", &image]))?;
    let peer_one = session.docker_pull(last, Edition::B)?;
    session.step(&["prepare", &url, &b])?;
    session.step(&["verify", &url, &b])?;
    let sent = |step: &crate::measure::Measured| format!("{:.0} MB sent", step.number("bytes") / 1e6);
    Ok(vec![
        Row::seconds("import, Docker empty", PEER, cold.seconds, theirs[0].seconds, Bar::Faster(1.5))
            .note(format!("{}; ours is on the disk then", sent(&cold))),
        Row::seconds(
            "import, older release there",
            PEER,
            upgrade.seconds,
            theirs[1].seconds,
            Bar::Faster(1.5),
        )
        .note(sent(&upgrade)),
        Row::seconds(
            "import of one image on shared layers",
            PEER,
            one.seconds,
            peer_one.seconds,
            Bar::Faster(5.0),
        )
        .note(format!("{last}, {}", sent(&one))),
        Row::seconds("import, all of it there", PEER, nothing.seconds, peer_nothing, Bar::Faster(5.0)),
    ])
}

fn config_digest(session: &Session, name: &str) -> Outcome<String> {
    let pins = std::fs::read(session.releases[1].dir().join("pins.json"))?;
    let pins: serde_json::Value = serde_json::from_slice(&pins)?;
    pins["images"][name]["config"]
        .as_str()
        .map(str::to_owned)
        .ok_or_else(|| format!("{name} is not pinned").into())
}
