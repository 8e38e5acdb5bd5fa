//! Progress on stderr: a bar on a terminal, an occasional line elsewhere.

use std::io::IsTerminal;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// How often a line is printed where stderr is no terminal.
const LINE_INTERVAL: Duration = Duration::from_secs(30);
/// No remaining time is told, and no line printed, before so much of this run has been seen.
const MEASURED: Duration = Duration::from_secs(2);

/// The progress of one stage.
pub(crate) struct Progress {
    label: String,
    unit: &'static str,
    bar: Option<ProgressBar>,
    seen: Mutex<Seen>,
}

struct Seen {
    started: Instant,
    /// Where this run began: work done by an earlier run says nothing of this run's rate.
    first: Option<u64>,
    last_line: Option<Instant>,
}

impl Progress {
    /// Progress of `label`, counted in `unit` ("pages", "chunks", "steps").
    pub(crate) fn new(label: impl Into<String>, unit: &'static str) -> Self {
        let label = label.into();
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
            bar.set_style(style("{spinner} {prefix:<22} {msg}"));
            bar.set_prefix(label.clone());
            bar.enable_steady_tick(Duration::from_millis(200));
            bar
        });
        let seen = Seen { started: Instant::now(), first: None, last_line: None };
        Progress { label, unit, bar, seen: Mutex::new(seen) }
    }

    /// `done` of `total` units; a total of 0 is not known yet. `note` is shown beside it.
    pub(crate) fn set(&self, done: u64, total: u64, note: &str) {
        let mut seen = self.seen.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let now = Instant::now();
        if seen.first.is_none() {
            seen.started = now;
        }
        let first = *seen.first.get_or_insert(done);
        let text = describe(done, total, first, now - seen.started, self.unit, note);
        if let Some(bar) = &self.bar {
            if total > 0 && bar.length() != Some(total) {
                bar.set_style(style("{spinner} {prefix:<22} [{bar:24}] {msg}"));
                bar.set_length(total);
            }
            bar.set_position(done);
            bar.set_message(text);
            return;
        }
        let due = match seen.last_line {
            None => now - seen.started >= MEASURED,
            Some(last) => now - last >= LINE_INTERVAL,
        };
        if due {
            eprintln!("{}: {text}", self.label);
            seen.last_line = Some(now);
        }
    }

    /// Something that takes a while and cannot be counted.
    pub(crate) fn say(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.set_message(text.to_owned()),
            None => eprintln!("{}: {text}", self.label),
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template)
        .expect("the template is a constant")
        .progress_chars("=> ")
        .tick_chars("-\\|/ ")
}

/// "12 of 40 chunks, about 1 min 20 s left (note)".
fn describe(
    done: u64,
    total: u64,
    first: u64,
    elapsed: Duration,
    unit: &str,
    note: &str,
) -> String {
    let mut text =
        if total > 0 { format!("{done} of {total} {unit}") } else { format!("{done} {unit}") };
    let fresh = done.saturating_sub(first);
    if total > done && fresh > 0 && elapsed >= MEASURED {
        let left = elapsed.mul_f64((total - done) as f64 / fresh as f64);
        text += &format!(", about {} left", duration(left));
    }
    if !note.is_empty() {
        text += &format!(" ({note})");
    }
    text
}

/// A duration as one says it: "under 1 s", "8 s", "3 min 20 s", "2 h 5 min".
pub(crate) fn duration(time: Duration) -> String {
    let seconds = time.as_secs_f64().round() as u64;
    match (seconds / 3600, seconds / 60 % 60, seconds % 60) {
        (0, 0, 0) => "under 1 s".into(),
        (0, 0, s) => format!("{s} s"),
        (0, m, 0) => format!("{m} min"),
        (0, m, s) => format!("{m} min {s} s"),
        (h, m, _) => format!("{h} h {m} min"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn remaining_time_counts_this_run_only() {
        let check = |done, total, first, seconds, expected: &str| {
            let elapsed = Duration::from_secs(seconds);
            assert_eq!(describe(done, total, first, elapsed, "chunks", ""), expected);
        };
        check(30, 40, 20, 20, "30 of 40 chunks, about 20 s left");
        check(30, 40, 30, 20, "30 of 40 chunks");
        check(1, 100, 0, 1, "1 of 100 chunks");
        check(40, 40, 0, 9, "40 of 40 chunks");
        check(7, 0, 0, 9, "7 chunks");
    }

    #[test]
    fn durations() {
        let check =
            |seconds, expected| assert_eq!(duration(Duration::from_secs(seconds)), expected);
        check(0, "under 1 s");
        check(8, "8 s");
        check(200, "3 min 20 s");
        check(3600 + 300 + 9, "1 h 5 min");
    }
}
