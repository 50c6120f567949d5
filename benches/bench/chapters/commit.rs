//! Making a commit, against `ostree commit` of the same tree: both must give the same checksum.

use super::session::{DEFLATE, REF, Session, init, ostree_commit, rev_parse};
use crate::Outcome;
use crate::release::{self, text};
use crate::report::{Bar, Row};

pub fn run(session: &mut Session) -> Outcome<Vec<Row>> {
    let [cold, warm] = session.commits()?;
    let repo = session.dir("commit-peer");
    init(&repo, "archive")?;
    let [a, b] = session.releases.clone();
    let peer_cold = session.peer("ostree commit, empty repo", &mut ostree_commit(&repo, &a.tree, REF))?;
    same(&rev_parse(&repo, REF)?, cold.text("commit"))?;
    let peer_warm =
        session.peer("ostree commit, older release there", &mut ostree_commit(&repo, &b.tree, REF))?;
    same(&rev_parse(&repo, REF)?, warm.text("commit"))?;
    std::fs::remove_dir_all(&repo)?;
    // For those who say that a lower level is all there is to it.
    init(&repo, "archive")?;
    let level = format!("--repo={}", repo.display());
    release::run(std::process::Command::new("ostree").args([
        &level,
        "config",
        "set",
        "archive.zlib-level",
        DEFLATE,
    ]))?;
    let peer_level =
        session.peer("ostree commit, empty repo, our level", &mut ostree_commit(&repo, &a.tree, REF))?;
    std::fs::remove_dir_all(&repo)?;
    let ours = text(&session.repo());
    let again = session.step(&["commit", &ours, &text(&b.tree), REF, DEFLATE])?;
    let there = 100.0 * (1.0 - warm.number("written") / warm.number("files"));
    Ok(vec![
        Row::seconds(
            "commit, empty repo",
            "ostree commit",
            cold.seconds,
            peer_cold.seconds,
            Bar::Faster(2.0),
        )
        .note(format!(
            "{} files, {:.1} GB; zlib {DEFLATE} and 6",
            cold.number("files"),
            cold.number("bytes") / 1e9
        )),
        Row::seconds(
            "the same, both at zlib 2",
            "ostree commit",
            cold.seconds,
            peer_level.seconds,
            Bar::None,
        ),
        Row::seconds(
            "commit, older release there",
            "ostree commit",
            warm.seconds,
            peer_warm.seconds,
            Bar::Faster(10.0),
        )
        .note(format!("{there:.1} % of the files there")),
        Row::seconds(
            "commit, all of it there",
            "ostree commit as above",
            again.seconds,
            peer_warm.seconds,
            Bar::None,
        ),
    ])
}

fn same(theirs: &str, ours: &str) -> Outcome<()> {
    if theirs == ours {
        Ok(())
    } else {
        Err(format!("ostree made {theirs} of the tree, rackstep {ours}").into())
    }
}
