//! QEMU's control socket: one command per connection, JSON lines.
//!
//! Protocol: QEMU's "QMP protocol specification": greeting, `qmp_capabilities`, then commands; events may come in between.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};

use super::MachineError;

/// QEMU answers at once unless it hangs.
const ANSWER: Duration = Duration::from_secs(20);

/// Runs one command without arguments and gives what it returned; `quit` may close the socket before it answers.
pub(super) fn execute(machine: &str, socket: &Path, command: &str) -> Result<Value, MachineError> {
    let failed = || format!("{machine}: QMP {command}");
    let mut stream = UnixStream::connect(socket).map_err(MachineError::io(failed()))?;
    stream.set_read_timeout(Some(ANSWER)).map_err(MachineError::io(failed()))?;
    let mut lines = BufReader::new(stream.try_clone().map_err(MachineError::io(failed()))?).lines();
    for name in ["qmp_capabilities", command] {
        writeln!(stream, "{}", json!({ "execute": name })).map_err(MachineError::io(failed()))?;
    }
    let mut answers = 0;
    for line in &mut lines {
        let line = line.map_err(MachineError::io(failed()))?;
        let message: Value = serde_json::from_str(&line).unwrap_or(Value::Null);
        if let Some(error) = message.get("error") {
            let answer = error.get("desc").and_then(Value::as_str).unwrap_or(&line).to_owned();
            return Err(MachineError::Qmp {
                machine: machine.to_owned(),
                command: command.to_owned(),
                answer,
            });
        }
        if let Some(value) = message.get("return") {
            answers += 1;
            if answers == 2 {
                return Ok(value.clone());
            }
        }
    }
    if command == "quit" {
        return Ok(Value::Null);
    }
    let answer = "the socket was closed before the answer".to_owned();
    Err(MachineError::Qmp { machine: machine.to_owned(), command: command.to_owned(), answer })
}
