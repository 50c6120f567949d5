//! The command line: one file per verb, and the only place that prints.

/// Prints a formatted line of the answer on stdout.
macro_rules! say {
    ($($text:tt)*) => { $crate::cli::print_line(&format!($($text)*)) };
}

mod boot;
mod cluster;
mod completions;
mod compose;
mod container_host;
mod disk_image;
mod gc;
mod host;
mod import;
mod install;
mod interrupt;
mod lint;
mod lock;
pub mod progress;
mod release;
mod report;
mod rollback;
mod scratch;
mod serve;
mod status;
mod time;
mod trial;
mod upgrade;
mod verify;
mod why;

use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};

pub use report::{Failure, Kind};

use crate::rim::fetch::{DEFAULT_LEAST_RATE, set_least_rate};

/// One ostree commit carries a host's operating system and the services that run on it.
#[derive(Debug, Parser)]
#[command(name = "rackstep", version, about, propagate_version = true, after_help = EXAMPLES)]
struct Arguments {
    #[command(subcommand)]
    verb: Verb,
    /// Give a server up that sends less than so many bytes a second over a minute; 0: never.
    #[arg(long, global = true, value_name = "BYTES", default_value_t = DEFAULT_LEAST_RATE, env = "RACKSTEP_MIN_RATE", hide_short_help = true)]
    min_rate: u64,
}

#[derive(Debug, Subcommand)]
enum Verb {
    Lock(lock::Arguments),
    Compose(compose::Arguments),
    Import(import::Arguments),
    Lint(lint::Arguments),
    Release(release::Arguments),
    Serve(serve::Arguments),
    Box(disk_image::Arguments),
    Cluster(cluster::Arguments),
    Upgrade(upgrade::Arguments),
    Rollback(rollback::Arguments),
    Confirm(trial::ConfirmArguments),
    Abandon(trial::AbandonArguments),
    Why(why::WhyArguments),
    History(why::HistoryArguments),
    Status(status::Arguments),
    Verify(verify::Arguments),
    Gc(gc::Arguments),
    Completions(completions::Arguments),
    #[command(hide = true)]
    Man(completions::ManArguments),
    #[command(hide = true)]
    Install(install::Arguments),
    #[command(hide = true)]
    Boot(boot::Arguments),
    #[command(hide = true)]
    ContainerHost(container_host::Arguments),
}

/// The verbs by who uses them, as the help lists them. A test holds the list against the verbs.
const GROUPS: &[(&str, &[&str])] = &[
    ("Make releases", &["import", "lint", "lock", "compose", "release"]),
    ("Image racks", &["serve"]),
    (
        "Operate a host",
        &["status", "why", "upgrade", "rollback", "confirm", "abandon", "history", "verify", "gc"],
    ),
    ("Develop on a laptop", &["box", "cluster"]),
    ("Shells", &["completions"]),
];

/// The program's command line, its verbs grouped.
fn command() -> clap::Command {
    let command = Arguments::command();
    let mut verbs = String::new();
    for (group, names) in GROUPS {
        verbs += &format!("{group}:\n");
        for verb in names.iter().filter_map(|name| command.find_subcommand(name)) {
            let about = verb.get_about().map(ToString::to_string).unwrap_or_default();
            verbs += &format!("  {:<12} {about}\n", verb.get_name());
        }
        verbs += "\n";
    }
    let template =
        format!("{{about-with-newline}}\n{{usage-heading}} {{usage}}\n\n{verbs}{{options}}{{after-help}}");
    command.help_template(template)
}

const EXAMPLES: &str = "\
Make a release:      rackstep lock host.yaml && rackstep compose host.yaml --repo /srv/repo
Image a rack:        rackstep serve --rack rack.yaml
Try it on a laptop:  rackstep cluster up               or, for Vagrant:
                     rackstep box 1.0.0 --repo /srv/repo --output /srv/boxes
Upgrade this host:   rackstep upgrade             fetch and verify; next boot unchanged
                     rackstep upgrade --commit --reboot
And back:            rackstep rollback --reboot   needs no network
What runs here:      rackstep status

Exit codes: 0 done, 1 failed, 2 wrong usage or input file, 3 refused by a check,
            70 a bug in rackstep, 130 interrupted";

/// What BSD's sysexits(3) calls EX_SOFTWARE.
const BUG: u8 = 70;

/// Runs the program and gives its exit code: 0 done, 1 failed, 2 usage or bad input file, 3 refused by a check, 70 bug.
pub fn run() -> ExitCode {
    let parsed = command().try_get_matches().and_then(|matches| Arguments::from_arg_matches(&matches));
    let arguments = match parsed {
        Ok(arguments) => arguments,
        Err(error) => error.exit(),
    };
    start_log();
    set_least_rate(arguments.min_rate);
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
        Verb::Import(arguments) => import::run(arguments),
        Verb::Lint(arguments) => lint::run(&arguments),
        Verb::Release(arguments) => release::run(arguments),
        Verb::Serve(arguments) => serve::run(arguments),
        Verb::Box(arguments) => disk_image::run(&arguments),
        Verb::Cluster(arguments) => cluster::run(&arguments),
        Verb::Upgrade(arguments) => upgrade::run(&arguments),
        Verb::Rollback(arguments) => rollback::run(&arguments),
        Verb::Confirm(arguments) => trial::confirm(&arguments),
        Verb::Abandon(arguments) => trial::abandon(&arguments),
        Verb::Why(arguments) => why::why(&arguments),
        Verb::History(arguments) => why::history(&arguments),
        Verb::Status(arguments) => status::run(&arguments),
        Verb::Verify(arguments) => verify::run(&arguments),
        Verb::Gc(arguments) => gc::run(&arguments),
        Verb::Completions(arguments) => completions::run(&arguments, command()),
        Verb::Man(arguments) => completions::run_man(&arguments, command()),
        Verb::Install(arguments) => install::run(arguments),
        Verb::Boot(arguments) => boot::run(&arguments),
        Verb::ContainerHost(arguments) => container_host::run(&arguments),
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

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::{Arguments, CommandFactory, GROUPS, command};

    #[test]
    fn every_verb_that_people_use_is_in_one_group() {
        let arguments = Arguments::command();
        let verbs: BTreeSet<&str> = arguments
            .get_subcommands()
            .filter(|verb| !verb.is_hide_set())
            .map(clap::Command::get_name)
            .collect();
        let grouped: Vec<&str> = GROUPS.iter().flat_map(|(_, names)| names.iter().copied()).collect();
        assert_eq!(grouped.iter().copied().collect::<BTreeSet<_>>(), verbs);
        assert_eq!(grouped.len(), verbs.len());
    }

    #[test]
    fn the_command_line_is_sound() {
        command().debug_assert();
    }
}
