//! The command line: one file per verb, and the only place that prints.

/// Prints a formatted line of the answer on stdout.
macro_rules! say {
    ($($text:tt)*) => { $crate::cli::print_line(&format!($($text)*)) };
}

mod boot;
mod cluster;
mod compose;
mod disk_image;
mod gc;
mod host;
mod install;
mod interrupt;
mod lock;
pub mod progress;
mod release;
mod report;
mod rollback;
mod scratch;
mod serve;
mod status;
mod upgrade;
mod verify;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

pub use report::{Failure, Kind};

/// One ostree commit carries a host's operating system and the services that run on it.
#[derive(Debug, Parser)]
#[command(name = "rackstep", version, about, propagate_version = true, after_help = EXAMPLES)]
struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    Lock(lock::Arguments),
    Compose(compose::Arguments),
    Release(release::Arguments),
    Serve(serve::Arguments),
    Box(disk_image::Arguments),
    Cluster(cluster::Arguments),
    Upgrade(upgrade::Arguments),
    Rollback(rollback::Arguments),
    Status(status::Arguments),
    Verify(verify::Arguments),
    Gc(gc::Arguments),
    Install(install::Arguments),
    Boot(boot::Arguments),
}

const EXAMPLES: &str = "\
Make a release:      rackstep lock host.yaml && rackstep compose host.yaml --repo /srv/repo
Image a rack:        rackstep serve --rack rack.yaml
Try it on a laptop:  rackstep cluster up               or, for Vagrant:
                     rackstep box 1.0.0 --repo /srv/repo --output /srv/boxes
Upgrade this host:   rackstep upgrade             look, fetch and verify; the next boot stays as it is
                     rackstep upgrade --commit --reboot
And back:            rackstep rollback --reboot   needs no network
What runs here:      rackstep status

Exit codes: 0 done, 1 failed, 2 wrong usage or input file, 3 refused by a check, 70 a bug in rackstep, 130 interrupted";

/// What BSD's sysexits(3) calls EX_SOFTWARE.
const BUG: u8 = 70;

/// Runs the program and gives its exit code: 0 done, 1 failed, 2 usage or bad input file, 3 refused by a check, 70 bug.
pub fn run() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => error.exit(),
    };
    start_log();
    // A panic has said where it happened; the state on the disk is right at every instant, so nothing is to be undone.
    match std::panic::catch_unwind(|| dispatch(arguments.verb)) {
        Ok(Ok(())) => ExitCode::SUCCESS,
        Ok(Err(failure)) => failure.report(),
        Err(_panic) => {
            eprintln!("rackstep: this is a bug; please report the lines above");
            ExitCode::from(BUG)
        }
    }
}

fn dispatch(verb: Verb) -> Result<(), Failure> {
    match verb {
        Verb::Lock(arguments) => lock::run(arguments),
        Verb::Compose(arguments) => compose::run(arguments),
        Verb::Release(arguments) => release::run(arguments),
        Verb::Serve(arguments) => serve::run(arguments),
        Verb::Box(arguments) => disk_image::run(&arguments),
        Verb::Cluster(arguments) => cluster::run(&arguments),
        Verb::Upgrade(arguments) => upgrade::run(&arguments),
        Verb::Rollback(arguments) => rollback::run(&arguments),
        Verb::Status(arguments) => status::run(&arguments),
        Verb::Verify(arguments) => verify::run(&arguments),
        Verb::Gc(arguments) => gc::run(&arguments),
        Verb::Install(arguments) => install::run(arguments),
        Verb::Boot(arguments) => boot::run(&arguments),
    }
}

/// Variable that says what is logged on stderr, as `tracing`'s filters are written; without it, warnings.
const LOG_VARIABLE: &str = "RACKSTEP_LOG";

fn start_log() {
    let filter = tracing_subscriber::EnvFilter::try_from_env(LOG_VARIABLE)
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("warn"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_target(false)
        .without_time()
        .compact()
        .init();
}

/// What is said, in one line, wherever releases are taken without a signature.
const NO_KEY: &str = "no key is trusted: whoever can change the repo or answer for its server decides what runs (trusted_keys)";

/// Prints one line of the answer on stdout. Whoever reads it may have heard enough (`| head`): that ends nothing.
fn print_line(line: &str) {
    use std::io::Write;
    let _ = writeln!(std::io::stdout(), "{line}");
}

/// Prints an answer as JSON on stdout.
fn print_json(answer: &impl serde::Serialize) -> Result<(), Failure> {
    let text = serde_json::to_string_pretty(answer)
        .map_err(|error| Failure::new(Kind::Failed, error, "the answer could not be written as JSON"))?;
    print_line(&text);
    Ok(())
}
