//! Is a machine healthy? Asked over ssh, of the machine's own `rackstep status`.

use std::time::Duration;

use super::{Host, Watcher};
use crate::lab::cluster::rollout::plan::judge;
use crate::lab::machine::Ssh;
use crate::model::Commit;
use crate::model::causes::in_one_line;
use crate::model::status::Status;
use crate::rim::wait::poll_gently;

/// The name of this boot, then the status: one connection for both, an emulated machine needs seconds for each.
const QUESTION: &str = "cat /proc/sys/kernel/random/boot_id && rackstep status --json";

/// What a machine says of itself.
#[derive(Debug, Clone)]
pub struct Heard {
    /// The name of this boot.
    pub boot: String,
    /// Its status.
    pub status: Status,
}

/// Asks a machine.
pub fn ask(ssh: &Ssh<'_>) -> Result<Heard, String> {
    let text = ssh.text(QUESTION).map_err(|error| in_one_line(&error))?;
    let (boot, json) = text.split_once('\n').ok_or_else(|| format!("a short answer: {text:?}"))?;
    let status = serde_json::from_str(json).map_err(|error| format!("an answer without meaning: {error}"))?;
    Ok(Heard { boot: boot.to_owned(), status })
}

/// What to wait for.
#[derive(Debug, Clone, Copy, Default)]
pub struct Wanted<'a> {
    /// This release runs.
    pub release: Option<Commit>,
    /// Another boot than this one.
    pub after: Option<&'a str>,
}

/// Waits until a machine is healthy; `alive` says why it is hopeless. Err: what was missing last.
pub fn wait_until_healthy(
    host: &Host<'_>,
    wanted: Wanted<'_>,
    bound: Duration,
    watcher: &dyn Watcher,
    alive: &mut dyn FnMut() -> Result<(), String>,
) -> Result<Status, String> {
    let mut last = String::new();
    let mut tell = |what: String| {
        if last != what {
            watcher.tell(&host.name, &what);
            last = what;
        }
    };
    let found = poll_gently(
        bound,
        || watcher.stopped(),
        || -> Result<Option<Status>, String> {
            alive()?;
            // Why it does not answer changes from try to try while it boots; that it does not is all there is to say.
            let Ok(heard) = ask(&host.ssh) else {
                tell("no answer yet".to_owned());
                return Ok(None);
            };
            if wanted.after == Some(heard.boot.as_str()) {
                tell("has not restarted yet".to_owned());
                return Ok(None);
            }
            match judge(&heard.status, wanted.release) {
                Ok(()) => Ok(Some(heard.status)),
                Err(missing) => {
                    tell(missing);
                    Ok(None)
                }
            }
        },
    )?;
    found.ok_or_else(|| {
        if watcher.stopped() { "stopped".to_owned() } else { format!("after {} s: {last}", bound.as_secs()) }
    })
}
