// SPDX-License-Identifier: Apache-2.0
//! How the story is told: chapters, lines, columns, and a mark at each expectation.

use std::io::{self, IsTerminal as _, Write as _};
use std::thread;
use std::time::Duration;

use super::error::DemoError;

/// Long enough to read a line, short enough not to bore.
const PAUSE: Duration = Duration::from_millis(700);
const INDENT: &str = "   ";

type Printed = Result<(), DemoError>;

/// What something looks like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Look {
    Plain,
    Good,
    Bad,
    Caution,
    Faint,
    Title,
}

/// A piece of text in one look.
pub(super) type Cell = (String, Look);

/// Text that looks like the rest.
pub(super) fn plain(text: impl Into<String>) -> Cell {
    (text.into(), Look::Plain)
}

/// Where the story is told.
#[derive(Debug)]
pub(super) struct Screen {
    colour: bool,
    pauses: bool,
    chapter: u32,
    expectations: u32,
    failures: Vec<String>,
}

impl Screen {
    /// Standard output. Colour and pauses are for people at a terminal.
    pub(super) fn new(fast: bool) -> Self {
        let terminal = io::stdout().is_terminal();
        Self {
            colour: terminal && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty()),
            pauses: terminal && !fast,
            chapter: 0,
            expectations: 0,
            failures: Vec::new(),
        }
    }

    /// What did not come out as it must.
    pub(super) fn failures(&self) -> &[String] {
        &self.failures
    }

    /// How much was expected so far.
    pub(super) fn expectations(&self) -> u32 {
        self.expectations
    }

    /// The title.
    pub(super) fn title(&self, text: &str) -> Printed {
        self.print(&self.toned(text, Look::Title))
    }

    /// Begins a chapter.
    pub(super) fn chapter(&mut self, text: &str) -> Printed {
        self.chapter += 1;
        self.pause();
        self.print("")?;
        let heading = format!("{}  {text}", self.chapter);
        self.print(&self.toned(&heading, Look::Title))
    }

    /// A line.
    pub(super) fn say(&self, text: &str) -> Printed {
        self.look(text, Look::Plain)
    }

    /// A line that is beside the point.
    pub(super) fn faint(&self, text: &str) -> Printed {
        self.look(text, Look::Faint)
    }

    /// Lines in a look of their own.
    pub(super) fn look(&self, text: &str, look: Look) -> Printed {
        for line in text.lines() {
            self.print(format!("{INDENT}{}", self.toned(line, look)).trim_end())?;
        }
        Ok(())
    }

    /// Text for programs, as it is.
    pub(super) fn raw(&self, text: &str) -> Printed {
        self.print(text)
    }

    /// An empty line.
    pub(super) fn gap(&self) -> Printed {
        self.print("")
    }

    /// A line that tells what has come out, marked with whether it is what must come out.
    pub(super) fn expect(&mut self, holds: bool, text: &str) -> Printed {
        self.expectations += 1;
        if holds {
            self.print(&format!("{INDENT}{} {text}", self.toned("✓", Look::Good)))?;
        } else {
            self.failures.push(text.to_owned());
            self.print(&format!(
                "{INDENT}{}",
                self.toned(&format!("✗ {text}  ← not as it must be"), Look::Bad)
            ))?;
        }
        self.pause();
        Ok(())
    }

    /// Aligned columns below a faint header.
    pub(super) fn table(&self, header: &[&str], rows: &[Vec<Cell>]) -> Printed {
        let header: Vec<Cell> = header
            .iter()
            .map(|name| ((*name).to_owned(), Look::Faint))
            .collect();
        let all = || std::iter::once(&header).chain(rows);
        let width = |column: usize| {
            all()
                .filter_map(|row| row.get(column))
                .map(|(text, _)| text.chars().count())
                .max()
                .unwrap_or(0)
        };
        let widths: Vec<usize> = (0..header.len()).map(width).collect();
        for row in all() {
            let mut line = String::from(INDENT);
            for (index, (text, look)) in row.iter().enumerate() {
                line.push_str(&self.toned(text, *look));
                // Nothing is written after the last column.
                if index + 1 < row.len() {
                    let missing = widths
                        .get(index)
                        .copied()
                        .unwrap_or(0)
                        .saturating_sub(text.chars().count());
                    line.extend(std::iter::repeat_n(' ', missing + 2));
                }
            }
            self.print(line.trim_end())?;
        }
        self.pause();
        Ok(())
    }

    fn pause(&self) {
        if self.pauses {
            thread::sleep(PAUSE);
        }
    }

    fn toned(&self, text: &str, look: Look) -> String {
        let code = match look {
            Look::Good => "32",
            Look::Bad => "31",
            Look::Caution => "33",
            Look::Faint => "2",
            Look::Title => "1",
            Look::Plain => return text.to_owned(),
        };
        if self.colour && !text.is_empty() {
            format!("\x1b[{code}m{text}\x1b[0m")
        } else {
            text.to_owned()
        }
    }

    #[expect(clippy::unused_self, reason = "what is printed belongs to the screen")]
    fn print(&self, line: &str) -> Printed {
        let mut output = io::stdout().lock();
        output
            .write_all(line.as_bytes())
            .and_then(|()| output.write_all(b"\n"))
            .map_err(DemoError::Print)
    }
}

/// Nanoseconds as a person reads them: `850 ns`, `4.2 µs`, `93 µs`, `12.4 ms`, `1.3 s`.
pub(super) fn duration(nanoseconds: u64) -> String {
    let (divisor, unit) = match nanoseconds {
        0..1_000 => return format!("{nanoseconds} ns"),
        1_000..1_000_000 => (1e3, "µs"),
        1_000_000..1_000_000_000 => (1e6, "ms"),
        _ => (1e9, "s"),
    };
    let value = nanoseconds as f64 / divisor;
    if value < 20.0 {
        format!("{value:.1} {unit}")
    } else {
        format!("{value:.0} {unit}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_a_unit_that_fits() {
        let said = [850, 4_230, 93_400, 12_440_000, 1_320_000_000].map(duration);
        assert_eq!(said, ["850 ns", "4.2 µs", "93 µs", "12.4 ms", "1.3 s"]);
    }

    #[test]
    fn colour_is_for_terminals() {
        let mut screen = Screen::new(true);
        screen.colour = false;
        assert_eq!(screen.toned("x", Look::Bad), "x");
        screen.colour = true;
        assert_eq!(screen.toned("x", Look::Bad), "\x1b[31mx\x1b[0m");
        screen.expect(false, "the sky is green").expect("printed");
        assert_eq!((screen.failures().len(), screen.expectations()), (1, 1));
    }
}
