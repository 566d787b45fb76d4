//! Shows the events of a migration: a bar on a terminal, plain lines elsewhere, JSON lines for machines.

use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use tranship_core::event::{Event, Phase};

use crate::render::{bytes, duration_ms};
use crate::ui::{Style, Ui};

/// Plain lines about progress come no more often than this.
const PLAIN_EVERY: Duration = Duration::from_secs(2);

/// The display of one migration, or of one thing that travels by itself.
pub struct Progress {
    ui: Ui,
    /// What travels, if that is not a container.
    name: Option<String>,
    bar: Option<ProgressBar>,
    begun: Instant,
    last_line: Instant,
}

impl Progress {
    /// Nothing shown yet.
    pub fn new(ui: &Ui) -> Self {
        let now = Instant::now();
        Self {
            ui: ui.clone(),
            name: None,
            bar: None,
            begun: now,
            last_line: now,
        }
    }

    /// Nothing shown yet of a thing with this name. Machines are told of it by a note.
    pub fn named(ui: &Ui, name: &str) -> Self {
        let mut progress = Self::new(ui);
        if ui.json {
            progress.show(&Event::Note { text: name.into() });
        }
        progress.name = Some(crate::failure::one_line(name));
        progress
    }

    fn label(&self, phase: Phase) -> String {
        self.name.clone().unwrap_or_else(|| phase.label().into())
    }

    /// Shows one event.
    pub fn show(&mut self, event: &Event) {
        if self.ui.json {
            if let Ok(text) = serde_json::to_string(event) {
                self.ui.error_line(&text);
            }
            return;
        }
        match event {
            Event::PhaseStarted { phase } => self.start(*phase),
            Event::Progress { phase, bytes, total } => self.advance(*phase, *bytes, *total),
            Event::PhaseEnded {
                phase,
                milliseconds,
                bytes,
            } => self.end(*phase, *milliseconds, *bytes),
            Event::Note { text } => self.above(|ui| ui.say(&format!("  {}", crate::failure::one_line(text)))),
            Event::Warning { text } => self.above(|ui| ui.warn(text)),
            Event::Finished { .. } => self.clear(),
        }
    }

    /// Prints a line without tearing the bar.
    fn above(&self, print: impl FnOnce(&Ui)) {
        match &self.bar {
            Some(bar) => bar.suspend(|| print(&self.ui)),
            None => print(&self.ui),
        }
    }

    fn clear(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }

    fn start(&mut self, phase: Phase) {
        self.clear();
        self.begun = Instant::now();
        self.last_line = self.begun;
        if self.ui.terminal && !self.ui.quiet {
            let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
            bar.set_style(ProgressStyle::default_spinner());
            bar.set_message(self.label(phase));
            bar.enable_steady_tick(Duration::from_millis(120));
            self.bar = Some(bar);
        }
    }

    fn advance(&mut self, phase: Phase, moved: u64, total: Option<u64>) {
        if let Some(bar) = &self.bar {
            if let Some(total) = total
                && bar.length().is_none()
            {
                let style = "{msg:11} {bar:28} {decimal_bytes:>9} of {decimal_total_bytes} {decimal_bytes_per_sec:>11}, {eta} left";
                if let Ok(style) = ProgressStyle::with_template(style) {
                    bar.set_style(style);
                }
                bar.set_message(self.label(phase));
                bar.set_length(total);
            }
            bar.set_position(moved);
            return;
        }
        if self.last_line.elapsed() < PLAIN_EVERY {
            return;
        }
        self.last_line = Instant::now();
        let seconds = self.begun.elapsed().as_secs_f64().max(0.001);
        let rate = moved as f64 / seconds;
        let left = total.map(|t| ((t.saturating_sub(moved)) as f64 / rate.max(1.0) * 1000.0) as u64);
        let of = total.map(|t| format!(" of {}", bytes(t))).unwrap_or_default();
        let left = left
            .map(|ms| format!(", {} left", duration_ms(ms)))
            .unwrap_or_default();
        self.ui.say(&format!(
            "  {}: {}{of}, {}/s{left}",
            self.label(phase),
            bytes(moved),
            bytes(rate as u64)
        ));
    }

    fn end(&mut self, phase: Phase, milliseconds: u64, moved: u64) {
        self.clear();
        let moved = if moved > 0 {
            format!(", {}", bytes(moved))
        } else {
            String::new()
        };
        let line = format!("  {:<11} {}{moved}", phase.label(), duration_ms(milliseconds));
        self.ui.say(&self.ui.paint_err(Style::Dim, &line));
    }
}

/// One line that changes in place on a terminal, and comes now and then elsewhere.
pub struct Line {
    ui: Ui,
    bar: Option<ProgressBar>,
    last: Instant,
}

impl Line {
    /// Nothing shown yet.
    pub fn new(ui: &Ui) -> Self {
        let bar = (ui.terminal && !ui.quiet && !ui.json).then(|| {
            let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
            bar.set_style(ProgressStyle::default_spinner());
            bar.enable_steady_tick(Duration::from_millis(120));
            bar
        });
        Self {
            ui: ui.clone(),
            bar,
            last: Instant::now(),
        }
    }

    /// Shows a text in place of the one before.
    pub fn show(&mut self, text: String) {
        if let Some(bar) = &self.bar {
            bar.set_message(text);
        } else if self.last.elapsed() >= PLAIN_EVERY {
            self.last = Instant::now();
            self.ui.say(&format!("  {text}"));
        }
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.clear();
    }
}
