//! An error with its causes, for places that have one line for it: a report, an answer over HTTP.

use std::error::Error;

/// The error and all its causes, divided by colons.
pub fn in_one_line(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}
