//! `rackstep why` and `rackstep history`.

use clap::Args;
use serde::Serialize;

use super::host::{HostArguments, NOTHING_CHANGED};
use super::time::moment;
use super::{Failure, Kind, print_json, print_line};
use crate::host::denied::read_denied;
use crate::host::history::read_history;
use crate::host::trial::{read_ladder, read_policy, read_state};
use crate::host::why::{Known, Why, plan_why};
use crate::model::deployment::name_release;
use crate::model::history::Act;
use crate::model::text::printable;
use crate::rim::clock::now;

/// Say what this host waits for, since when, what comes next, and what you can do.
#[derive(Debug, Args)]
pub struct WhyArguments {
    /// Print it as JSON, format 1.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    host: HostArguments,
}

/// Show what was done on this host: when, by whom, about which release, and how it ended.
#[derive(Debug, Args)]
pub struct HistoryArguments {
    /// Print it as JSON, format 1.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    host: HostArguments,
}

/// Longest reason that is shown, in characters: the last words of a phase are some lines.
const TOLD: usize = 2000;

/// `why --json`, format 1.
#[derive(Debug, Serialize)]
struct Answer {
    format: u32,
    waits_for: Vec<Why>,
}

/// Runs `why`.
pub fn why(arguments: &WhyArguments) -> Result<(), Failure> {
    let failed =
        |error: Box<dyn std::error::Error + Send + Sync>| Failure::new(Kind::Failed, error, NOTHING_CHANGED);
    let sysroot = arguments.host.open_sysroot()?;
    let deployments = sysroot.deployments().map_err(|error| failed(error.into()))?;
    let places = arguments.host.places(&sysroot, &deployments);
    let ladder = read_ladder(&sysroot).map_err(|error| failed(error.into()))?;
    let trial = read_state(&places).map_err(|error| failed(error.into()))?;
    let policy = read_policy(&places).map_err(|error| failed(error.into()))?;
    let denied = read_denied(&places.denied()).map_err(|error| failed(error.into()))?;
    let history = read_history(&places.history()).map_err(|error| failed(error.into()))?;
    let waits_for = plan_why(Known {
        deployments: &deployments,
        ladder: ladder.as_ref(),
        trial: trial.as_ref(),
        confirm: policy.confirm,
        denied: &denied,
        history: &history,
    });
    if arguments.json {
        return print_json(&Answer { format: 1, waits_for });
    }
    if waits_for.is_empty() {
        print_line("this host waits for nothing");
    }
    for why in &waits_for {
        let since = why.since.map(|since| format!(", since {}", age(since))).unwrap_or_default();
        print_line(&printable(&format!("{}{since}", why.what), TOLD));
        print_line(&format!("    next: {}", why.next));
        if let Some(you_can) = &why.you_can {
            print_line(&format!("    you can: {you_can}"));
        }
    }
    Ok(())
}

/// Runs `history`.
pub fn history(arguments: &HistoryArguments) -> Result<(), Failure> {
    let sysroot = arguments.host.open_sysroot()?;
    let places = super::trial::places(&arguments.host, &sysroot)?;
    let history = read_history(&places.history())
        .map_err(|error| Failure::new(Kind::Failed, error, NOTHING_CHANGED))?;
    if arguments.json {
        return print_json(&history);
    }
    if history.acts.is_empty() {
        print_line("nothing was done on this host yet");
    }
    for act in &history.acts {
        print_line(&render_act(act));
    }
    Ok(())
}

fn render_act(act: &Act) -> String {
    let release = act.release.map(|commit| name_release(act.version.as_deref(), commit)).unwrap_or_default();
    let took =
        act.ended.map(|ended| format!(" in {} s", ended.saturating_sub(act.began))).unwrap_or_default();
    let reason =
        act.reason.as_ref().map(|reason| format!(": {}", printable(reason, TOLD))).unwrap_or_default();
    let (verb, outcome) = (act.verb.name(), act.outcome.name());
    let (began, who) = (moment(act.began), printable(&act.who, TOLD));
    format!("{:>4}  {began}  {verb:<8}  {release}  {outcome}{took}, by {who}{reason}", act.id)
}

fn age(since: u64) -> String {
    let seconds = now().saturating_sub(since);
    match seconds {
        0..120 => format!("{seconds} s ago"),
        120..7_200 => format!("{} min ago", seconds / 60),
        7_200..172_800 => format!("{} h ago", seconds / 3_600),
        _ => format!("{} days ago", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::history::{ActVerb, Outcome};

    #[test]
    fn an_act_is_one_line() {
        let act = Act {
            id: 7,
            verb: ActVerb::Return,
            release: Some("a".repeat(64).parse().unwrap()),
            version: Some("1.0.0".to_owned()),
            who: "rackstep".to_owned(),
            began: 1_700_000_000,
            ended: Some(1_700_000_012),
            outcome: Outcome::Done,
            reason: Some("the release on trial is not good".to_owned()),
            boot: String::new(),
            process: 1,
        };
        assert_eq!(
            render_act(&act),
            "   7  2023-11-14T22:13:20Z  return    1.0.0 (aaaaaaaaaa)  done in 12 s, by rackstep: the release on trial is not good"
        );
    }
}
