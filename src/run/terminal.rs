//! What a run says: lines on the standard output, and a progress bar where that is a terminal.

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

/// Where messages and progress go.
pub struct Terminal {
    quiet: bool,
    bars: bool,
    warns: bool,
}

/// Longest silence of a run whose output is not a terminal.
const SILENCE: Duration = Duration::from_secs(10);

/// A loss or a score: four digits behind the point, or an exponent where it is large.
pub fn decimals(value: f64) -> String {
    if value.abs() < 1e5 || !value.is_finite() { format!("{value:.4}") } else { format!("{value:.3e}") }
}

impl Terminal {
    /// `quiet`: nothing but warnings is said.
    pub fn new(quiet: bool) -> Terminal {
        Terminal { quiet, bars: std::io::stdout().is_terminal() && std::io::stderr().is_terminal(), warns: true }
    }

    /// For what is done ahead, and done again when it is its turn to be told.
    pub fn silent() -> Terminal {
        Terminal { quiet: true, bars: false, warns: false }
    }

    /// Prints a line. A reader that went away does not stop a run.
    pub fn line(&self, text: impl AsRef<str>) {
        if !self.quiet {
            let mut out = std::io::stdout().lock();
            let _ = writeln!(out, "{}", text.as_ref()).and_then(|()| out.flush());
        }
    }

    /// Prints a warning on the standard error, also where all else is quiet: a silent one would be a wrong result.
    pub fn warn(&self, text: impl AsRef<str>) {
        if self.warns {
            let _ = writeln!(std::io::stderr(), "warning: {}", text.as_ref());
        }
    }

    /// Progress towards `total`, of which `done` are done already. Where there is no bar, `talkative` work prints a line
    /// about every twentieth of the way; other work only if it takes long.
    pub fn progress(&self, what: &'static str, done: u64, total: u64, talkative: bool) -> Progress<'_> {
        let bar = (self.bars && !self.quiet).then(|| {
            let style = ProgressStyle::with_template("{prefix} {bar:30} {pos}/{len} {msg} {elapsed}<{eta}")
                .unwrap_or_else(|_| ProgressStyle::default_bar());
            let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr()).with_style(style).with_prefix(what);
            bar.set_position(done);
            bar.reset_eta();
            bar
        });
        Progress {
            terminal: self,
            what,
            bar,
            talkative,
            first: done,
            total,
            started: Instant::now(),
            spoken: Instant::now(),
            spoken_at: done,
        }
    }
}

/// A bar, or now and then a line.
pub struct Progress<'a> {
    terminal: &'a Terminal,
    what: &'static str,
    bar: Option<ProgressBar>,
    talkative: bool,
    first: u64,
    total: u64,
    started: Instant,
    spoken: Instant,
    spoken_at: u64,
}

impl Progress<'_> {
    /// Reports that `done` are done; `message` is only made where it is shown.
    pub fn update(&mut self, done: u64, message: impl FnOnce() -> String) {
        if let Some(bar) = &self.bar {
            bar.set_message(message());
            bar.set_position(done);
            return;
        }
        let far = self.talkative && (done == self.total || (done - self.spoken_at.min(done)) * 20 >= self.total);
        if self.terminal.quiet || !(far || self.spoken.elapsed() >= SILENCE) {
            return;
        }
        (self.spoken, self.spoken_at) = (Instant::now(), done);
        let message = message();
        let space = if message.is_empty() { "" } else { "  " };
        let left = match done - self.first.min(done) {
            fresh if fresh == 0 || done == self.total => String::new(),
            fresh => format!("  {} left", clock(self.started.elapsed().mul_f64((self.total - done.min(self.total)) as f64 / fresh as f64))),
        };
        self.terminal.line(format!("{} {done}/{}{space}{message}{left}", self.what, self.total));
    }

    /// Prints a line above the bar.
    pub fn line(&self, text: impl AsRef<str>) {
        match &self.bar {
            Some(bar) => bar.suspend(|| self.terminal.line(text)),
            None => self.terminal.line(text),
        }
    }

    /// Hides the bar while something else is shown.
    pub fn pause<T>(&self, run: impl FnOnce() -> T) -> T {
        if let Some(bar) = &self.bar {
            bar.set_draw_target(ProgressDrawTarget::hidden());
        }
        let result = run();
        if let Some(bar) = &self.bar {
            bar.set_draw_target(ProgressDrawTarget::stderr());
        }
        result
    }
}

impl Drop for Progress<'_> {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

/// A duration as hours, minutes and seconds.
pub fn clock(duration: Duration) -> String {
    let seconds = duration.as_secs();
    let (hours, minutes) = (seconds / 3600, seconds / 60 % 60);
    if hours > 0 { format!("{hours}:{minutes:02}:{:02}", seconds % 60) } else { format!("{minutes}:{:02}", seconds % 60) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clocks() {
        assert_eq!([5, 65, 3605].map(|seconds| clock(Duration::from_secs(seconds))), ["0:05", "1:05", "1:00:05"]);
    }
}
