//! What can go wrong between us and Docker.

use std::io;

use crate::model::Digest;

/// Why Docker did not do what it was asked for, or could not be asked.
#[derive(Debug, thiserror::Error)]
pub enum DockerError {
    /// The threads that talk to it could not be started.
    #[error("starting the threads that talk to docker")]
    Runtime {
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It does not answer.
    #[error("connecting to docker at {url}")]
    Connect {
        /// Where.
        url: String,
        /// Why.
        #[source]
        source: Box<bollard::errors::Error>,
    },
    /// It refused, or the connection broke.
    #[error("{operation}")]
    Call {
        /// What was asked.
        operation: String,
        /// Its answer.
        #[source]
        source: Box<bollard::errors::Error>,
    },
    /// It said something that we do not understand.
    #[error("docker's answer to {operation} has {problem}")]
    Answer {
        /// What was asked.
        operation: String,
        /// What is wrong with the answer.
        problem: String,
    },
    /// A saved image cannot be written down.
    #[error("writing container image {image} as docker saves it")]
    Save {
        /// Its Id.
        image: Digest,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A step did not end in time.
    #[error("container {container} did not end within {seconds} s; its last words: {log}")]
    TooLong {
        /// Its name.
        container: String,
        /// The bound.
        seconds: u64,
        /// The end of its log.
        log: String,
    },
}

impl DockerError {
    /// True when Docker says that it does not know the thing.
    pub(super) fn is_not_found(&self) -> bool {
        matches!(self, Self::Call { source, .. } if matches!(**source,
            bollard::errors::Error::DockerResponseServerError { status_code: 404, .. }))
    }
}
