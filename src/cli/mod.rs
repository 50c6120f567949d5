//! The command line: one file per verb, and the only place that prints.

mod compose;
mod install;
mod lock;
pub mod progress;
mod release;
mod report;
mod serve;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

pub use report::{Failure, Kind};

/// One ostree commit carries a host's operating system and the services that run on it.
#[derive(Debug, Parser)]
#[command(name = "rackstep", version, about, propagate_version = true)]
struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    Lock(lock::Arguments),
    Compose(compose::Arguments),
    Install(install::Arguments),
    Release(release::Arguments),
    Serve(serve::Arguments),
}

/// Runs the program and gives its exit code: 0 done, 1 failed, 2 usage or bad input file, 3 refused by a check, 70 bug.
pub fn run() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => error.exit(),
    };
    let outcome: Result<(), Failure> = match arguments.verb {
        Verb::Lock(arguments) => lock::run(arguments),
        Verb::Compose(arguments) => compose::run(arguments),
        Verb::Install(arguments) => install::run(arguments),
        Verb::Release(arguments) => release::run(arguments),
        Verb::Serve(arguments) => serve::run(arguments),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}
