//! Fuzz targets, one program for all: linking the product once is enough.
//!
//! 1. `RACKSTEP_FUZZ` names the target; `RACKSTEP_SEEDS` is a directory that gets its seeds before anything runs;
//! 2. libFuzzer gives bytes, the target looks for a broken promise: a panic, bytes that are not the same again, something
//!    written where it may not, an object in a repo that is not what its name says.
//!
//! Run by `fuzz/run.sh`.
#![no_main]

mod arguments;
mod documents;
mod layer;
mod patch;
mod rack;
mod scratch;
mod shard;
mod skeleton;

use std::path::Path;
use std::sync::OnceLock;

use libfuzzer_sys::fuzz_target;

/// One target.
struct Target {
    name: &'static str,
    run: fn(&[u8]),
    seeds: fn() -> Vec<Vec<u8>>,
}

const TARGETS: [Target; 7] = [
    Target { name: "layer", run: layer::run, seeds: layer::seeds },
    Target { name: "skeleton", run: skeleton::run, seeds: skeleton::seeds },
    Target { name: "shard", run: shard::run, seeds: shard::seeds },
    Target { name: "patch", run: patch::run, seeds: patch::seeds },
    Target { name: "documents", run: documents::run, seeds: documents::seeds },
    Target { name: "arguments", run: arguments::run, seeds: arguments::seeds },
    Target { name: "rack", run: rack::run, seeds: rack::seeds },
];

static TARGET: OnceLock<&Target> = OnceLock::new();

fn prepare() {
    let names = TARGETS.map(|target| target.name).join(", ");
    let name = std::env::var("RACKSTEP_FUZZ").unwrap_or_default();
    let Some(target) = TARGETS.iter().find(|target| target.name == name) else {
        eprintln!("RACKSTEP_FUZZ is {name:?}, expected one of {names}");
        std::process::exit(2);
    };
    if let Ok(dir) = std::env::var("RACKSTEP_SEEDS") {
        for (number, seed) in (target.seeds)().into_iter().enumerate() {
            let written = std::fs::write(Path::new(&dir).join(format!("seed-{number}")), seed);
            written.expect("writing a seed");
        }
    }
    TARGET.get_or_init(|| target);
}

fuzz_target!(init: prepare(), |data: &[u8]| {
    if let Some(target) = TARGET.get() {
        (target.run)(data);
    }
});
