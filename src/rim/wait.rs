//! Waiting on conditions, never for a guessed time: every wait names a condition and a bound.

use std::time::{Duration, Instant};

/// How often a condition is looked at: short against a boot, long against the work of looking.
const POLL: Duration = Duration::from_millis(150);

/// Looks at a condition until it gives a value; `None` when the bound is over.
pub fn poll<T, E>(bound: Duration, mut look: impl FnMut() -> Result<Option<T>, E>) -> Result<Option<T>, E> {
    let began = Instant::now();
    loop {
        if let Some(value) = look()? {
            return Ok(Some(value));
        }
        if began.elapsed() >= bound {
            return Ok(None);
        }
        std::thread::sleep(POLL);
    }
}

/// As [`poll`], for a look that costs whoever is looked at: after each comes a pause of three times as long, within bounds.
/// Ends early, without a value, when `stopped` says so.
///
/// An emulated machine that has to answer ssh all the time does nothing else.
pub fn poll_gently<T, E>(
    bound: Duration,
    stopped: impl Fn() -> bool,
    mut look: impl FnMut() -> Result<Option<T>, E>,
) -> Result<Option<T>, E> {
    const SHORTEST: Duration = Duration::from_secs(1);
    const LONGEST: Duration = Duration::from_secs(10);
    let began = Instant::now();
    while !stopped() {
        let looked = Instant::now();
        if let Some(value) = look()? {
            return Ok(Some(value));
        }
        let pause = (looked.elapsed() * 3).clamp(SHORTEST, LONGEST);
        let paused = Instant::now();
        while paused.elapsed() < pause {
            if stopped() || began.elapsed() >= bound {
                return Ok(None);
            }
            std::thread::sleep(POLL);
        }
    }
    Ok(None)
}
