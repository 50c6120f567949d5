//! How failures are told: a heading, numbered causes, hints, and one line that says what is now true.

use std::error::Error;
use std::process::ExitCode;

use super::host::NOTHING_CHANGED;
use crate::ostree::repo::RepoError;
use crate::ostree::signature::SignatureError;

/// What kind of failure it is; decides the exit code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// It was tried and did not work: exit code 1.
    Failed,
    /// The command line or an input file is wrong: exit code 2.
    BadInput,
    /// A check said no: exit code 3.
    Refused,
    /// The person at the terminal stopped it: exit code 130, as shells expect after SIGINT.
    Interrupted,
}

/// A failure on its way to the person at the terminal.
#[derive(Debug)]
pub struct Failure {
    kind: Kind,
    error: Box<dyn Error + Send + Sync>,
    hints: Vec<String>,
    state: String,
}

impl Failure {
    /// A failure of `kind`; `state` completes the line `state: …`.
    pub fn new(kind: Kind, error: impl Into<Box<dyn Error + Send + Sync>>, state: impl Into<String>) -> Self {
        Self { kind, error: error.into(), hints: Vec::new(), state: state.into() }
    }

    /// Adds a line that tells what to do about it.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hints.push(hint.into());
        self
    }

    /// The same failure with another exit code.
    #[must_use]
    pub fn of_kind(mut self, kind: Kind) -> Self {
        self.kind = kind;
        self
    }

    /// The text as it is printed, without a last line end.
    pub fn render(&self) -> String {
        let mut lines = vec![format!("error: {}", self.error)];
        let mut cause = self.error.source();
        let mut number = 1;
        while let Some(error) = cause {
            lines.push(format!("  {number}. {error}"));
            number += 1;
            cause = error.source();
        }
        lines.extend(self.hints.iter().map(|hint| format!("hint: {hint}")));
        lines.push(format!("state: {}", self.state));
        lines.join("\n")
    }

    /// Prints it on stderr and gives the exit code.
    #[allow(clippy::print_stderr)]
    pub fn report(&self) -> ExitCode {
        eprintln!("{}", self.render());
        ExitCode::from(match self.kind {
            Kind::Failed => 1,
            Kind::BadInput => 2,
            Kind::Refused => 3,
            Kind::Interrupted => 130,
        })
    }
}

/// What a repo on this machine would not give; only looked at.
pub(super) fn in_repo(error: RepoError) -> Failure {
    let kind = match error {
        RepoError::NotARepo { .. }
        | RepoError::Mode { .. }
        | RepoError::NoRevision { .. }
        | RepoError::Ambiguous { .. } => Kind::BadInput,
        _ => Kind::Failed,
    };
    Failure::new(kind, error, NOTHING_CHANGED)
}

/// A key or a signature that does not do.
pub(super) fn signature(error: SignatureError) -> Failure {
    let kind = match error {
        SignatureError::Key { .. } | SignatureError::KeyFile { .. } => Kind::BadInput,
        SignatureError::Unsigned { .. } | SignatureError::Untrusted { .. } => Kind::Refused,
        _ => Kind::Failed,
    };
    Failure::new(kind, error, NOTHING_CHANGED)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("pulling release 1.1")]
    struct Outer(#[source] std::io::Error);

    #[test]
    fn heading_causes_hints_state() {
        let failure = Failure::new(
            Kind::Failed,
            Outer(std::io::Error::other("no space left on device")),
            "nothing changed",
        )
        .hint("free some space");
        assert_eq!(
            failure.render(),
            "error: pulling release 1.1\n  1. no space left on device\nhint: free some space\nstate: nothing changed"
        );
    }
}
