//! Progress for people: a bar on a terminal, plain lines elsewhere.

use std::io::IsTerminal;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

use crate::model::Progress;

/// How often the bar is redrawn when nothing moves: a serial console is slow.
const TICK: Duration = Duration::from_secs(1);

/// Shows stages on stderr.
#[derive(Debug, Default)]
pub struct Terminal {
    current: Mutex<Option<Stage>>,
}

#[derive(Debug)]
struct Stage {
    name: String,
    began: Instant,
    bar: Option<ProgressBar>,
}

impl Terminal {
    fn with<R>(&self, act: impl FnOnce(&mut Option<Stage>) -> R) -> R {
        let mut current = self.current.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        act(&mut current)
    }
}

impl Progress for Terminal {
    fn begin(&self, stage: &str, total: Option<u64>) {
        let bar = std::io::stderr().is_terminal().then(|| make_bar(stage, total));
        self.with(|current| {
            *current = Some(Stage { name: stage.to_owned(), began: Instant::now(), bar });
        });
    }

    fn advance(&self, amount: u64) {
        self.with(|current| {
            if let Some(Stage { bar: Some(bar), .. }) = current {
                bar.inc(amount);
            }
        });
    }

    #[allow(clippy::print_stderr)]
    fn end(&self, summary: &str) {
        let Some(stage) = self.with(Option::take) else { return };
        if let Some(bar) = &stage.bar {
            bar.finish_and_clear();
        }
        eprintln!("{:<28} {:>7.1} s  {summary}", stage.name, stage.began.elapsed().as_secs_f64());
    }
}

fn make_bar(stage: &str, total: Option<u64>) -> ProgressBar {
    let (bar, template) = match total {
        Some(total) => (ProgressBar::new(total), "{msg:<28} {bar:30} {percent:>3} % {elapsed} (eta {eta})"),
        None => (ProgressBar::new_spinner(), "{msg:<28} {spinner} {elapsed}"),
    };
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style);
    }
    bar.set_message(stage.to_owned());
    bar.enable_steady_tick(TICK);
    bar
}
