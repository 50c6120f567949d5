//! The `rackstep` program: parses the command line and leaves the rest to [`rackstep::cli`].

use std::process::ExitCode;

fn main() -> ExitCode {
    rackstep::cli::run()
}
