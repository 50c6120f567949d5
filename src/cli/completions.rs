//! `rackstep completions` and `rackstep man`: both are made from the help texts.

use std::path::PathBuf;

use clap::{Args, Command};
use clap_complete::Shell;

use super::{Failure, Kind};

/// Print what a shell needs to complete rackstep's verbs and options.
///
/// For bash: rackstep completions bash > /usr/share/bash-completion/completions/rackstep
#[derive(Debug, Args)]
pub struct Arguments {
    /// The shell.
    #[arg(value_enum)]
    shell: Shell,
}

/// Write a manual page for every verb into a directory.
#[derive(Debug, Args)]
pub struct ManArguments {
    /// The directory; it is made where it is not there.
    #[arg(value_name = "DIR")]
    directory: PathBuf,
}

/// Runs the verb.
pub fn run(arguments: &Arguments, mut command: Command) -> Result<(), Failure> {
    clap_complete::generate(arguments.shell, &mut command, "rackstep", &mut std::io::stdout());
    Ok(())
}

/// Runs the verb `man`.
pub fn run_man(arguments: &ManArguments, command: Command) -> Result<(), Failure> {
    let directory = &arguments.directory;
    std::fs::create_dir_all(directory).and_then(|()| clap_mangen::generate_to(command, directory)).map_err(
        |error| {
            let state = "some of the manual pages may be there";
            Failure::new(Kind::Failed, format!("writing to {}: {error}", directory.display()), state)
        },
    )
}
