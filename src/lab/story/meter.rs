//! Bytes, rate and time left of something that moves.

use std::time::Duration;

/// Rates of shorter times are noise.
const SETTLED: Duration = Duration::from_secs(2);

/// Follows one stage after another.
#[derive(Debug, Clone, Default)]
pub struct Meter {
    /// The stage, when it was first seen, and its bytes then.
    began: Option<(String, Duration, u64)>,
}

impl Meter {
    /// Tells where `stage` is at `now`, a time since anything; `progress`: bytes done and in all.
    pub fn tell(&mut self, stage: &str, now: Duration, progress: Option<(u64, u64)>) -> String {
        let Some((done, all)) = progress.filter(|(_, all)| *all > 0) else { return stage.to_owned() };
        let began = self.began.take().filter(|(name, ..)| name == stage);
        let (_, since, first) = &*self.began.insert(began.unwrap_or((stage.to_owned(), now, done)));
        let percent = done.saturating_mul(100) / all;
        let line = format!("{stage} {percent} % · {} of {} MB", done / 1_000_000, all / 1_000_000);
        let (took, moved) = (now.saturating_sub(*since), done.saturating_sub(*first));
        if took < SETTLED || moved == 0 {
            return line;
        }
        let rate = moved as f64 / took.as_secs_f64();
        let left = all.saturating_sub(done) as f64 / rate;
        format!("{line} · {:.1} MB/s · {left:.0} s left", rate / 1e6)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rate_and_time_left_come_with_time() {
        let mut meter = Meter::default();
        let at = Duration::from_secs;
        let mb = 1_000_000;
        let cases = [
            ("pull", 0, Some((10 * mb, 100 * mb)), "pull 10 % · 10 of 100 MB"),
            ("pull", 1, Some((20 * mb, 100 * mb)), "pull 20 % · 20 of 100 MB"),
            ("pull", 4, Some((50 * mb, 100 * mb)), "pull 50 % · 50 of 100 MB · 10.0 MB/s · 5 s left"),
            ("seal", 5, None, "seal"),
            // A stage that begins anew counts from there.
            ("other", 9, Some((0, 4 * mb)), "other 0 % · 0 of 4 MB"),
            ("other", 13, Some((0, 4 * mb)), "other 0 % · 0 of 4 MB"),
            ("empty", 14, Some((0, 0)), "empty"),
        ];
        for (stage, seconds, progress, expected) in cases {
            assert_eq!(meter.tell(stage, at(seconds), progress), expected);
        }
    }
}
