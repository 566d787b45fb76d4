//! All output goes through here: results to standard output, everything else to standard error.

use std::io::{IsTerminal as _, Write as _};

use serde::Serialize;
use tranship_core::{Fault, FaultKind};

use crate::cli::GlobalArgs;
use crate::failure;

/// Where and how to print.
#[derive(Debug, Clone)]
pub struct Ui {
    /// Machines read.
    pub json: bool,
    /// Results only.
    pub quiet: bool,
    /// Details.
    pub verbose: u8,
    /// Standard error is a terminal.
    pub terminal: bool,
    color_out: bool,
    color_err: bool,
}

/// How a piece of text is meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Style {
    /// As it is.
    Plain,
    /// A heading.
    Bold,
    /// Of less weight.
    Dim,
    /// Fine.
    Good,
    /// Look at it.
    Warn,
    /// In the way.
    Bad,
}

impl Ui {
    /// Decides by the options, the streams and `NO_COLOR`.
    pub fn new(args: &GlobalArgs, no_color: bool) -> Self {
        let terminal = std::io::stderr().is_terminal();
        Self {
            json: args.json,
            quiet: args.quiet,
            verbose: args.verbose,
            terminal,
            color_out: !no_color && std::io::stdout().is_terminal(),
            color_err: !no_color && terminal,
        }
    }

    /// A result line.
    ///
    /// # Errors
    /// `output.broken-pipe` when nobody reads any more.
    pub fn line(&self, text: &str) -> Result<(), Fault> {
        self.document(&shown(text))
    }

    /// A result that is not for a terminal to show line by line, as it is.
    ///
    /// # Errors
    /// `output.broken-pipe` when nobody reads any more.
    pub fn document(&self, text: &str) -> Result<(), Fault> {
        writeln!(std::io::stdout().lock(), "{text}").map_err(|e| output_fault(&e))
    }

    /// A result for machines, as one line.
    ///
    /// # Errors
    /// `output.broken-pipe` when nobody reads any more.
    pub fn json(&self, value: &impl Serialize) -> Result<(), Fault> {
        let text = serde_json::to_string(value).map_err(|e| {
            Fault::new(
                "output.json",
                FaultKind::Bug,
                format!("a result is not JSON: {e}"),
            )
        })?;
        self.document(&text)
    }

    /// A line about what is going on.
    pub fn say(&self, text: &str) {
        if !self.quiet && !self.json {
            self.error_line(&shown(text));
        }
    }

    /// A line that must be seen even with `--quiet`.
    pub fn warn(&self, text: &str) {
        if self.json {
            self.error_line(&serde_json::json!({"event": "warning", "text": text}).to_string());
        } else {
            self.error_line(&format!(
                "{} {}",
                self.paint_err(Style::Warn, "warning:"),
                failure::one_line(text)
            ));
        }
    }

    /// A failure.
    pub fn fail(&self, fault: &Fault) {
        if self.json {
            self.error_line(&serde_json::json!({"event": "error", "error": fault}).to_string());
            return;
        }
        for (index, line) in failure::describe(fault).iter().enumerate() {
            if index == 0 {
                self.error_line(&self.paint_err(Style::Bad, line));
            } else {
                self.error_line(line);
            }
        }
    }

    /// Writes to standard error; that it is closed is no reason to stop.
    pub fn error_line(&self, text: &str) {
        let _ = writeln!(std::io::stderr().lock(), "{text}");
    }

    /// Colours text for standard output.
    pub fn paint(&self, style: Style, text: &str) -> String {
        paint(self.color_out, style, text)
    }

    /// Colours text for standard error.
    pub fn paint_err(&self, style: Style, text: &str) -> String {
        paint(self.color_err, style, text)
    }
}

/// The text without control characters, but for the colours of [`paint`]: names and messages come from other machines.
fn shown(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        let colour = COLOURS.iter().find(|colour| rest.starts_with(**colour));
        let (piece, length) = match colour {
            Some(colour) => (*colour, colour.len()),
            None if c.is_control() => (" ", c.len_utf8()),
            None => (rest.get(..c.len_utf8()).unwrap_or_default(), c.len_utf8()),
        };
        out.push_str(piece);
        rest = rest.get(length..).unwrap_or_default();
    }
    out
}

/// All that [`paint`] makes.
const COLOURS: [&str; 6] = [
    "\u{1b}[0m",
    "\u{1b}[1m",
    "\u{1b}[2m",
    "\u{1b}[31m",
    "\u{1b}[32m",
    "\u{1b}[33m",
];

fn output_fault(error: &std::io::Error) -> Fault {
    let code = if error.kind() == std::io::ErrorKind::BrokenPipe {
        BROKEN_PIPE
    } else {
        "output.failed"
    };
    Fault::new(
        code,
        FaultKind::Environment,
        format!("standard output cannot be written: {error}"),
    )
}

/// Code of the fault that means: nobody reads our output any more.
pub const BROKEN_PIPE: &str = "output.broken-pipe";

fn paint(on: bool, style: Style, text: &str) -> String {
    let code = match style {
        Style::Plain => return text.to_owned(),
        Style::Bold => "1",
        Style::Dim => "2",
        Style::Good => "32",
        Style::Warn => "33",
        Style::Bad => "31",
    };
    if on {
        format!("\u{1b}[{code}m{text}\u{1b}[0m")
    } else {
        text.to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::shown;

    #[test]
    fn only_our_own_colours_reach_the_terminal() {
        let text = "\u{1b}[31mbad\u{1b}[0m \u{1b}]0;title\u{7}\u{1b}[2Jx\u{9b}5n\ny → ü";
        assert_eq!(shown(text), "\u{1b}[31mbad\u{1b}[0m  ]0;title  [2Jx 5n y → ü");
    }
}
