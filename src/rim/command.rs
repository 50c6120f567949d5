//! Runs other programs and tells why they failed.

use std::ffi::OsStr;
use std::io;
use std::process::{Command, Output};

/// How much of a failed program's last words is kept, in bytes.
const STDERR_KEPT: usize = 2000;

/// Why a program did not do its work.
#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    /// It could not be started.
    #[error("starting {program}")]
    Start {
        /// The program's name.
        program: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It ended with a failure.
    #[error("{program} ended with {status}: {stderr}")]
    Status {
        /// The program's name.
        program: String,
        /// Its exit status.
        status: std::process::ExitStatus,
        /// The end of what it wrote to stderr.
        stderr: String,
    },
}

/// Runs `command` to its end and gives its output, or the reason of its failure.
pub fn run(command: &mut Command) -> Result<Output, CommandError> {
    let program = name_of(command.get_program());
    let output =
        command.output().map_err(|source| CommandError::Start { program: program.clone(), source })?;
    if output.status.success() {
        return Ok(output);
    }
    Err(CommandError::Status { program, status: output.status, stderr: tail(&output.stderr) })
}

/// Runs `command` and gives its stdout as text, invalid UTF-8 replaced.
pub fn run_text(command: &mut Command) -> Result<String, CommandError> {
    run(command).map(|output| String::from_utf8_lossy(&output.stdout).into_owned())
}

fn name_of(program: &OsStr) -> String {
    program.to_string_lossy().into_owned()
}

fn tail(stderr: &[u8]) -> String {
    let start = stderr.len().saturating_sub(STDERR_KEPT);
    String::from_utf8_lossy(&stderr[start..]).trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failure_carries_status_and_last_words() {
        let error = run(Command::new("sh").args(["-c", "echo no disk >&2; exit 3"])).unwrap_err();
        assert_eq!(error.to_string(), "sh ended with exit status: 3: no disk");
        let error = run(&mut Command::new("/nonexistent/program")).unwrap_err();
        assert_eq!(error.to_string(), "starting /nonexistent/program");
    }
}
