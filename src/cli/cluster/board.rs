//! Progress of several machines at once: a line for each on a terminal, plain lines elsewhere.

use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

use crate::lab::cluster::Watcher;

/// How often a line is redrawn when nothing happens.
const TICK: Duration = Duration::from_secs(1);

/// Shows what machines do, and knows when somebody wants an end.
#[derive(Debug)]
pub struct Board {
    stop: Arc<AtomicBool>,
    began: Instant,
    bars: Option<(MultiProgress, Mutex<BTreeMap<String, ProgressBar>>)>,
}

impl Board {
    /// `stop` is set from outside.
    pub fn new(stop: &Arc<AtomicBool>) -> Self {
        let bars = std::io::stderr().is_terminal().then(Default::default);
        Self { stop: Arc::clone(stop), began: Instant::now(), bars }
    }

    #[allow(clippy::print_stderr)]
    fn show(&self, machine: &str, what: &str, over: bool) {
        let Some((board, bars)) = &self.bars else {
            eprintln!("{machine:<14} {:>7.1} s  {what}", self.began.elapsed().as_secs_f64());
            return;
        };
        let mut bars = bars.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let bar = bars.entry(machine.to_owned()).or_insert_with(|| board.add(make_bar(machine)));
        // A message of several lines is told once the board is gone.
        let line = what.lines().next().unwrap_or_default().to_owned();
        if over { bar.finish_with_message(line) } else { bar.set_message(line) }
    }
}

impl Watcher for Board {
    fn tell(&self, machine: &str, what: &str) {
        self.show(machine, what, false);
    }

    fn end(&self, machine: &str, what: &str) {
        self.show(machine, what, true);
    }

    fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }
}

fn make_bar(machine: &str) -> ProgressBar {
    let bar = ProgressBar::new_spinner();
    if let Ok(style) = ProgressStyle::with_template("{prefix:<14} {spinner} {elapsed:>5}  {wide_msg}") {
        bar.set_style(style);
    }
    bar.set_prefix(machine.to_owned());
    bar.enable_steady_tick(TICK);
    bar
}
