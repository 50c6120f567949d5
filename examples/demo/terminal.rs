//! How the story looks: a line that moves on a terminal; elsewhere a line when there is news, at most every few seconds.

use std::collections::BTreeMap;
use std::io::IsTerminal as _;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use rackstep::lab::story::Teller;

/// Where nothing can be redrawn, a line at most so often.
const PAUSE: Duration = Duration::from_secs(10);
const TICK: Duration = Duration::from_secs(1);

/// Says a sentence of the story.
pub fn say(text: &str) {
    println!("{text}");
}

/// Tells stages.
pub struct Terminal {
    times: BTreeMap<String, f64>,
    stage: Mutex<Option<Stage>>,
}

struct Stage {
    began: Instant,
    expected: Option<f64>,
    bar: Option<ProgressBar>,
    told: Option<Instant>,
}

impl Terminal {
    /// `times`: seconds of stages when they last ran here.
    pub fn new(times: &BTreeMap<String, f64>) -> Self {
        Self { times: times.clone(), stage: Mutex::new(None) }
    }

    /// Says what will take how long: by the last run on this machine, else by the given seconds.
    pub fn announce(&self, stages: &[(&str, u32)], is_there: impl Fn(&str) -> bool) {
        say("What takes how long (by the last run here, else as it was on two cores):");
        let mut all = 0.0;
        for (name, guess) in stages {
            if is_there(name) {
                say(&format!("  {name:<38} done by an earlier run"));
                continue;
            }
            let known = self.times.get(*name).copied();
            let seconds = known.unwrap_or(f64::from(*guess));
            all += seconds;
            say(&format!(
                "  {name:<38} {seconds:>5.0} s{}",
                if known.is_some() { "" } else { "  (a guess)" }
            ));
        }
        say(&format!("  {:<38} {:>5.1} min", "in all", all / 60.0));
    }

    fn lock(&self) -> MutexGuard<'_, Option<Stage>> {
        self.stage.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// `lock` and `compose` draw bars of their own.
fn draws_itself(name: &str) -> bool {
    name.starts_with("lock ") || name.starts_with("compose ")
}

impl Teller for Terminal {
    fn begin(&self, name: &str) {
        let expected = self.times.get(name).copied();
        let last = expected.map(|seconds| format!(" ({seconds:.0} s the last time)")).unwrap_or_default();
        say(&format!("-- {name}{last}"));
        let bar = (std::io::stderr().is_terminal() && !draws_itself(name)).then(|| {
            let bar = ProgressBar::new_spinner();
            if let Ok(style) = ProgressStyle::with_template("   {spinner} {elapsed:>4}  {wide_msg}") {
                bar.set_style(style);
            }
            bar.enable_steady_tick(TICK);
            bar
        });
        *self.lock() = Some(Stage { began: Instant::now(), expected, bar, told: None });
    }

    fn moved(&self, what: &str) {
        let mut stage = self.lock();
        let Some(stage) = stage.as_mut() else { return say(&format!("   {what}")) };
        let took = stage.began.elapsed().as_secs_f64();
        let left = stage.expected.map(|all| all - took).filter(|left| *left > 1.0);
        let left = left.map(|left| format!("  [stage: about {left:.0} s left]")).unwrap_or_default();
        match &stage.bar {
            Some(bar) => bar.set_message(format!("{what}{left}")),
            None if stage.told.is_none_or(|told| told.elapsed() >= PAUSE) => {
                stage.told = Some(Instant::now());
                say(&format!("   {took:>4.0} s  {what}{left}"));
            }
            None => {}
        }
    }

    fn end(&self, name: &str, took: Duration) {
        if let Some(Stage { bar: Some(bar), .. }) = self.lock().take() {
            bar.finish_and_clear();
        }
        say(&format!("   {name}: {:.1} s", took.as_secs_f64()));
    }
}
