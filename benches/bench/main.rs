//! `make bench`: rackstep measured against its neighbours on the same inputs, in one run.
//!
//! 1. [`images`] builds a set of OpenStack images in two releases, [`layers`] gives them shared layers, [`release`] makes
//!    two host trees that carry them;
//! 2. each chapter measures ours and its peer one after the other, each in a process of its own ([`measure`]);
//! 3. [`report`] keeps results as JSON, and prints the table of bars: measured ratio, bar, reached or not.
//!
//! Only ratios within one run count: absolute times are this machine's.
//!
//! `CHAPTERS=commit,mounts` runs some, `SET=small` takes three images instead of ten, `SET=keystone+mariadb` those, `RACKSTEP_BENCH_DIR` is where it works.

mod chapters;
mod images;
mod layers;
mod measure;
mod peers;
mod release;
mod report;
mod steps;

use std::error::Error;
use std::path::PathBuf;
use std::process::ExitCode;

/// Whatever stops a benchmark goes to the person who runs it, as it is.
pub type Outcome<T> = Result<T, Box<dyn Error + Send + Sync>>;

/// Where and what to measure.
pub struct Bench {
    /// The project's directory.
    pub project: PathBuf,
    /// Inputs that outlive a run.
    pub inputs: PathBuf,
    /// What a run makes and removes.
    pub scratch: PathBuf,
    /// `full`, `small`, or names of images with `+` between them.
    pub set: String,
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let done = match arguments.first().map(String::as_str) {
        Some("step") => steps::run(&arguments[1..]),
        _ => run(),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let mut text = error.to_string();
            let mut cause = error.source();
            while let Some(error) = cause {
                text = format!("{text}: {error}");
                cause = error.source();
            }
            report::say(&format!("bench: {text}"));
            ExitCode::FAILURE
        }
    }
}

fn run() -> Outcome<()> {
    let project = std::env::var_os("CARGO_MANIFEST_DIR").map(PathBuf::from).ok_or("cargo bench runs this")?;
    let set = std::env::var("SET").ok().filter(|set| !set.is_empty()).unwrap_or_else(|| "full".to_owned());
    let inputs = match std::env::var_os("RACKSTEP_BENCH_DIR") {
        Some(dir) => PathBuf::from(dir),
        None => images::cache_dir()?.join("bench"),
    };
    let scratch = inputs.join("scratch");
    let _ = std::fs::remove_dir_all(&scratch);
    std::fs::create_dir_all(&scratch)?;
    let bench = Bench { project, inputs, scratch, set };
    let wanted = std::env::var("CHAPTERS").unwrap_or_default();
    let wanted: Vec<&str> = wanted.split(',').map(str::trim).filter(|name| !name.is_empty()).collect();
    let done = chapters::run(&bench, &wanted);
    let _ = std::fs::remove_dir_all(&bench.scratch);
    done
}
