//! A whole release over loopback: packs, against libostree's pull of objects and against its static delta.

use std::path::Path;
use std::process::Command;

use super::session::{Session, add_remote, init, ostree_pull};
use crate::Outcome;
use crate::images::disk_bytes;
use crate::release::{self, text};
use crate::report::{Bar, Row};

/// The size of release; fewer files would be an easier race.
const FILES: f64 = 60_000.0;

pub fn run(session: &mut Session) -> Outcome<Vec<Row>> {
    let [commit_a, commit_b] = session.commits()?;
    let [pack_a, _, pack_update] = session.packs()?;
    let ours = session.pulls()?;
    let (a, b) = (commit_a.text("commit").to_owned(), commit_b.text("commit").to_owned());
    let url = session.nginx()?.url("ours");

    let repo = session.dir("transport-objects");
    init(&repo, "bare")?;
    add_remote(&repo, &url)?;
    let objects = session.peer("ostree pull by objects", &mut ostree_pull(&repo, &a))?;
    let objects_update = session.peer("ostree pull by objects, update", &mut ostree_pull(&repo, &b))?;
    std::fs::remove_dir_all(&repo)?;

    let server = session.repo();
    let full = session.peer(
        "ostree static-delta from nothing",
        &mut generate(&server, &["--empty", &format!("--to={a}")]),
    )?;
    let before = disk_bytes(&server.join("deltas"))?;
    let update = session.peer(
        "ostree static-delta of the update",
        &mut generate(&server, &[&format!("--from={a}"), &format!("--to={b}")]),
    )?;
    let delta_bytes = disk_bytes(&server.join("deltas"))? - before;
    release::run(Command::new("ostree").args(["summary", "-u"]).arg(format!("--repo={}", text(&server))))?;
    let repo = session.dir("transport-delta");
    init(&repo, "bare")?;
    add_remote(&repo, &url)?;
    let delta = session.peer("ostree pull by delta", &mut pull_by_delta(&repo, &a))?;
    let delta_update = session.peer("ostree pull by delta, update", &mut pull_by_delta(&repo, &b))?;
    std::fs::remove_dir_all(&repo)?;

    let files = commit_a.number("files");
    let size = if files >= FILES { String::new() } else { format!(" of only {files} files") };
    let update_bytes = pack_update.number("bytes");
    Ok(vec![
        Row::seconds(
            "from nothing",
            "ostree pull from nginx",
            ours[0].seconds,
            objects.seconds,
            Bar::Faster(3.0),
        )
        .note(format!("{files} files{size}")),
        Row::seconds(
            "from nothing",
            "static delta, ostree pull",
            ours[0].seconds,
            delta.seconds,
            Bar::Faster(3.0),
        ),
        Row::bytes("update, size", "static delta", update_bytes, delta_bytes as f64, Bar::AtMost(1.2)),
        Row::seconds(
            "update, pull",
            "ostree pull from nginx",
            ours[1].seconds,
            objects_update.seconds,
            Bar::None,
        ),
        Row::seconds(
            "update, pull",
            "static delta, ostree pull",
            ours[1].seconds,
            delta_update.seconds,
            Bar::None,
        ),
        Row::seconds("made, from nothing", "static delta", pack_a.seconds, full.seconds, Bar::Faster(10.0)),
        Row::seconds("made, update", "static delta", pack_update.seconds, update.seconds, Bar::Faster(10.0)),
    ])
}

fn generate(repo: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new("ostree");
    command.args(["static-delta", "generate"]).arg(format!("--repo={}", repo.display())).args(arguments);
    command
}

fn pull_by_delta(repo: &Path, commit: &str) -> Command {
    let mut command = Command::new("ostree");
    command
        .args(["pull", "--require-static-deltas", "bench", commit])
        .arg(format!("--repo={}", repo.display()));
    command
}
