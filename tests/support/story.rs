//! The story's beginnings for tests: the program that is tested, told in plain lines.

use std::path::PathBuf;
use std::process::Command;

use rackstep::lab::story::{self, Plain, Releases, Story};

/// Names a directory in which the stories of one run of scripts/parts.sh share their releases.
const KEPT: &str = "RACKSTEP_STORY_KEPT";

/// Begins a story. The environment's `variable` may name a repo that has the releases already.
pub fn begin(variable: &str) -> Story<'static> {
    let releases = match std::env::var_os(variable) {
        Some(repo) => Releases::Given(repo.into()),
        None => match std::env::var_os(KEPT) {
            Some(dir) if variable == "RACKSTEP_STORY_REPO" => Releases::Kept(dir.into()),
            _ => Releases::New,
        },
    };
    Story::begin(env!("CARGO_BIN_EXE_rackstep").as_ref(), releases, &Plain).unwrap()
}

/// A file of this checkout; asked when the test runs: checkouts share compiled tests.
pub fn checkout(path: &str) -> PathBuf {
    PathBuf::from(std::env::var_os("CARGO_MANIFEST_DIR").unwrap()).join(path)
}

/// The program under test.
pub fn rackstep() -> Command {
    Command::new(env!("CARGO_BIN_EXE_rackstep"))
}

/// Runs a command that must succeed; gives its stdout. Its stderr goes to the test's.
pub fn run(command: &mut Command) -> String {
    story::run(command).unwrap()
}
