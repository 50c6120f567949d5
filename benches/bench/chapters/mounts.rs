//! Ten images on a host that has never seen them: layers mounted from the repo and Docker's records written, against
//! `docker load` of the same and `docker pull` from a registry on loopback; then what containers make of it.

use std::path::PathBuf;
use std::time::Instant;

use super::session::Session;
use crate::measure::Measured;
use crate::peers::Dockerd;
use crate::report::{Bar, Row};
use crate::{Outcome, images, release};

pub fn run(session: &mut Session) -> Outcome<Vec<Row>> {
    session.pulls()?;
    let ours = session.host_records()?;
    let theirs = session.docker_pulls()?;
    let loads = session.docker_loads()?;
    let mut rows = vec![
        Row::seconds(
            "images never seen before",
            "docker load",
            ours.seconds,
            loads.seconds,
            Bar::Faster(15.0),
        )
        .note(format!("{} images, {} layers", ours.number("images"), ours.number("written"))),
        Row::seconds("the same", "docker pull", ours.seconds, theirs[0].seconds, Bar::Faster(15.0)),
    ];
    rows.push(proof(session)?);
    rows.extend(containers(session)?);
    Ok(rows)
}

/// What `upgrade` does beyond pull and check-out, against the least that it could take.
fn proof(session: &mut Session) -> Outcome<Row> {
    let [_, b] = session.commits()?;
    let (repo, commit) = (release::text(&session.dir("host-ours")), b.text("commit").to_owned());
    // Both find it in memory as far as it fits.
    session.step(&["sha256", &repo, &commit])?;
    let least = session.step(&["sha256", &repo, &commit])?;
    let ours = session.step(&["verify", &repo, &commit])?;
    let note = format!("{} files, {:.0} MB", least.number("files"), least.number("bytes") / 1e6);
    Ok(Row::seconds("upgrade's proof", "sha256 of each file", ours.seconds, least.seconds, Bar::AtMost(1.2))
        .note(note))
}

/// Names of images in the order of the set, with the Id that both daemons have them by.
fn ids(session: &Session) -> Outcome<Vec<(String, String)>> {
    let pins = std::fs::read(session.releases[0].dir().join("pins.json"))?;
    let pins: serde_json::Value = serde_json::from_slice(&pins)?;
    let id = |name: &str| pins["images"][name]["config"].as_str().map(str::to_owned);
    let names = images::names(session.bench).into_iter();
    names.map(|name| Ok((name.to_owned(), id(name).ok_or("an image that is not pinned")?))).collect()
}

/// Both daemons have the images of release A: ours mounted, theirs loaded.
fn containers(session: &mut Session) -> Outcome<Vec<Row>> {
    let ids = ids(session)?;
    let python = ids.iter().find(|(name, _)| images::OPENSTACK.contains(&name.as_str())).or(ids.last());
    let (name, id) = python.cloned().ok_or("no images")?;
    let mut rows = Vec::new();
    let mut both = |session: &mut Session, what: &str, each: &[Vec<String>], rounds: usize| -> Outcome<()> {
        let mut seconds = [f64::INFINITY; 2];
        for _ in 0..rounds {
            for (side, best) in seconds.iter_mut().enumerate() {
                let began = Instant::now();
                for arguments in each {
                    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
                    release::run(&mut docker(session, side)?.client(&arguments))?;
                }
                *best = best.min(began.elapsed().as_secs_f64());
            }
        }
        let bar = Bar::AtMost(1.0 / 0.95);
        rows.push(
            Row::seconds(what, "overlay2 of loaded images", seconds[0], seconds[1], bar)
                .note(format!("best of {rounds}")),
        );
        Ok(())
    };
    let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<String>>();
    let create: Vec<Vec<String>> = ids
        .iter()
        .map(|(_, id)| words(&["run", "--rm", "--network=none", "--entrypoint=/bin/true", id]))
        .collect();
    both(session, "a container of each image run", &create, 3)?;
    let run = |script: &str| {
        vec![words(&["run", "--rm", "--network=none", "--entrypoint=/bin/sh", &id, "-c", script])]
    };
    both(session, &format!("find / in {name}"), &run("find / -xdev >/dev/null"), 5)?;
    let read = "find /usr -xdev -type f -print0 | xargs -0 cat | cksum";
    both(session, &format!("all of /usr read in {name}"), &run(read), 3)?;
    let import = format!("python3 -c 'import {}'", module_of(&name));
    both(session, &import, &run(&import), 5)?;
    Ok(rows)
}

fn module_of(name: &str) -> &str {
    match name {
        "keystone" => "keystone.server.wsgi",
        other => other.split('-').next().unwrap_or(other),
    }
}

fn docker<'s>(session: &'s Session<'_>, side: usize) -> Outcome<&'s Dockerd> {
    if side == 0 { session.host_docker() } else { session.loaded_docker() }
}

/// An archive as `docker save` writes it.
pub fn archive(session: &Session, name: &str) -> Outcome<PathBuf> {
    let path = session.dir(&format!("{name}.tar"));
    let layout = session.releases[0].layouts.join(name);
    release::run(
        std::process::Command::new("skopeo")
            .args(["copy", "--quiet"])
            .arg(format!("oci:{}:{name}", layout.display()))
            .arg(format!("docker-archive:{}:bench/{name}:a", path.display())),
    )?;
    Ok(path)
}

/// Sums up.
pub fn sum(what: &str, parts: &[Measured]) -> Measured {
    let mut all = parts[0].clone();
    all.what = what.to_owned();
    all.seconds = parts.iter().map(|part| part.seconds).sum();
    all.cpu_seconds = parts.iter().map(|part| part.cpu_seconds).sum();
    all
}
