//! A whole release over loopback: packs, against libostree's pull of objects and against its static delta.

use std::path::Path;
use std::process::Command;

use super::session::{Session, add_remote, init, ostree_pull};
use crate::Outcome;
use crate::images::file_bytes;
use crate::release;
use crate::report::{Bar, Row};

/// The issue's size of release; fewer files would be an easier race.
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

    let deltas = [session.dir("delta-full"), session.dir("delta-update")];
    let arguments = [format!("--from={a}"), format!("--to={b}")];
    let mut make = generate(&session.repo(), &deltas[1], &[&arguments[0], &arguments[1]])?;
    let update = session.peer("ostree static-delta of the update", &mut make)?;
    let delta_bytes = file_bytes(&deltas[1])?;
    // The longest of all by far: last, and everything known before it is printed by then.
    let to = format!("--to={a}");
    let mut make = generate(&session.repo(), &deltas[0], &["--empty", &to])?;
    let full = session.peer("ostree static-delta from nothing", &mut make)?;
    let repo = session.dir("transport-delta");
    init(&repo, "bare")?;
    let mut fetch = fetch_and_apply(session, &deltas[0], &repo)?;
    let delta = session.peer("static delta, fetched and applied", &mut fetch)?;
    let mut fetch = fetch_and_apply(session, &deltas[1], &repo)?;
    let delta_update = session.peer("static delta of the update, fetched and applied", &mut fetch)?;
    release::run(Command::new("ostree").args(["ls", &b]).arg(format!("--repo={}", repo.display())))?;
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
            "static delta, curl and apply-offline",
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
            "static delta, curl and apply-offline",
            ours[1].seconds,
            delta_update.seconds,
            Bar::None,
        ),
        Row::seconds("made, from nothing", "static delta", pack_a.seconds, full.seconds, Bar::Faster(10.0)),
        Row::seconds("made, update", "static delta", pack_update.seconds, update.seconds, Bar::Faster(10.0)),
    ])
}

/// A delta in a directory of its own, with everything in it.
fn generate(repo: &Path, out: &Path, arguments: &[&str]) -> Outcome<Command> {
    std::fs::create_dir_all(out)?;
    let mut command = Command::new("ostree");
    command
        .args(["static-delta", "generate", "--min-fallback-size=0"])
        .arg(format!("--repo={}", repo.display()))
        .arg(format!("--filename={}", out.join(SUPERBLOCK).display()))
        .args(arguments);
    Ok(command)
}

/// What a careful client does: `ostree pull` of this version fetches the objects besides the delta (ostree#2053).
fn fetch_and_apply(session: &mut Session, delta: &Path, repo: &Path) -> Outcome<Command> {
    let name = delta.file_name().ok_or("a delta without a name")?.to_string_lossy().into_owned();
    let here = session.dir(&format!("{name}-here"));
    let mut command = Command::new("sh");
    command.args(["-c", FETCH_AND_APPLY, "sh"]).arg(repo).arg(&here);
    for file in std::fs::read_dir(delta)? {
        let file = file?.file_name().to_string_lossy().into_owned();
        command.arg(session.nginx()?.url(&format!("{name}/{file}")));
    }
    Ok(command)
}

const SUPERBLOCK: &str = "superblock";
const FETCH_AND_APPLY: &str = r#"set -e
repo=$1 here=$2
shift 2
curl -sSf --create-dirs --output-dir "$here" --remote-name-all "$@"
ostree --repo="$repo" static-delta apply-offline "$here/superblock"
rm -r "$here""#;
