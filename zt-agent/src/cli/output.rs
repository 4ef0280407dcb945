// SPDX-License-Identifier: Apache-2.0
//! Where and how commands print.

use std::io::{self, IsTerminal, Write};

use clap::{Args, ValueEnum};
use serde::Serialize;

/// How to print.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// Aligned columns for people
    #[default]
    Table,
    /// JSON for programs
    Json,
}

/// `-o` of every command that lists something.
#[derive(Clone, Copy, Debug, Default, Args)]
pub struct Output {
    /// How to print
    #[arg(
        short = 'o',
        long = "output",
        value_enum,
        value_name = "FORMAT",
        default_value_t
    )]
    pub format: Format,
}

/// A colour with a meaning.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Tone {
    /// None.
    #[default]
    Plain,
    /// Allowed, healthy.
    Good,
    /// Refused, broken.
    Bad,
    /// Would be refused, degraded.
    Caution,
    /// Beside the point.
    Faint,
}

/// Whether standard output takes colour: a terminal, and `NO_COLOR` is not set.
pub(super) fn colourful() -> bool {
    io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

/// `text` in a tone, if `colour`.
pub(super) fn toned(text: &str, tone: Tone, colour: bool) -> String {
    let code = match tone {
        Tone::Good => "32",
        Tone::Bad => "31",
        Tone::Caution => "33",
        Tone::Faint => "2",
        Tone::Plain => return text.to_owned(),
    };
    if colour {
        format!("\x1b[{code}m{text}\x1b[0m")
    } else {
        text.to_owned()
    }
}

/// Prints `text` and a newline to standard output; an error where `println!` would panic.
pub(super) fn line(text: &str) -> io::Result<()> {
    let mut output = io::stdout().lock();
    output.write_all(text.as_bytes())?;
    output.write_all(b"\n")
}

/// Prints `value` as indented JSON.
pub(super) fn json<T: Serialize + ?Sized>(value: &T) -> io::Result<()> {
    line(&serde_json::to_string_pretty(value).map_err(io::Error::other)?)
}
